mod model;
mod store;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use waystation_core::account::{OfflineError, OfflineMessage, OfflineStore};
use waystation_core::storage::{Batch, Storage, StorageError};
use waystation_core::{Jid, Stanza};

use self::store::TestStorage;
use super::{Limits, MAX_ACCOUNTS, PAGE, SPACE, Spool, clock, key, prefix};

const ROOMY: Limits = Limits { messages: 1_000, bytes: 1_000_000 };

fn jid(text: &str) -> Jid {
    Jid::parse(text).unwrap()
}

fn juliet() -> Jid {
    jid("juliet@capulet.example")
}

fn message(body: &str) -> Stanza {
    let xml = format!(
        "<message from='romeo@montague.example/a' to='juliet@capulet.example'><body>{body}</body></message>"
    );
    Stanza::parse(xml.as_bytes()).unwrap()
}

fn body(message: &OfflineMessage) -> String {
    message.stanza.element().unwrap().child("body", "jabber:client").unwrap().text()
}

async fn bodies(spool: &Spool, account: Jid) -> Vec<String> {
    spool.load(account, None, usize::MAX).await.unwrap().iter().map(body).collect()
}

fn spool(limits: Limits) -> (Arc<TestStorage>, Spool) {
    let storage = Arc::new(TestStorage::default());
    (storage.clone(), Spool::new(storage, limits))
}

async fn store_all(spool: &Spool, messages: impl IntoIterator<Item = u32>) {
    for number in messages {
        spool.store(juliet(), message(&number.to_string())).await.unwrap();
    }
}

#[tokio::test]
async fn messages_come_out_stamped_and_in_order() {
    let (_, spool) = spool(ROOMY);
    store_all(&spool, 0..3).await;
    assert_eq!(bodies(&spool, juliet()).await, ["0", "1", "2"]);
    let first = spool.load(juliet(), None, 1).await.unwrap().remove(0).stanza;
    assert_eq!(first.from(), Some(&jid("romeo@montague.example/a")));
    let delay = first.element().unwrap().child("delay", "urn:xmpp:delay").cloned().unwrap();
    assert_eq!(delay.attr("from"), Some("capulet.example"));
    assert!(waystation_core::datetime::Timestamp::parse(delay.attr("stamp").unwrap()).is_ok());
}

#[tokio::test]
async fn first_calls_at_the_same_time_keep_their_order() {
    let (storage, spool) = spool(ROOMY);
    storage.hold();
    let mut calls: Vec<_> =
        (0..5).map(|number| spool.store(juliet(), message(&number.to_string()))).collect();
    // Polled last to first: the order of the calls must count, not that of the polls.
    calls.reverse();
    let all = tokio::spawn(join_all(calls));
    storage.wait_for_commits(1).await;
    storage.release();
    assert!(all.await.unwrap().iter().all(Result::is_ok));
    assert_eq!(bodies(&spool, juliet()).await, ["0", "1", "2", "3", "4"]);
}

#[tokio::test]
async fn later_calls_join_behind_those_that_wait() {
    let (storage, spool) = spool(ROOMY);
    storage.hold();
    let first = spool.store(juliet(), message("first"));
    let second = spool.store(juliet(), message("second"));
    let driver = tokio::spawn(second);
    storage.wait_for_commits(1).await;
    storage.release();
    driver.await.unwrap().unwrap();
    store_all(&spool, [3]).await;
    // The first was never polled until now, but its place was taken when it was called.
    first.await.unwrap();
    assert_eq!(bodies(&spool, juliet()).await, ["first", "second", "3"]);
}

#[tokio::test]
async fn a_call_resolves_only_once_it_is_durable() {
    let (storage, spool) = spool(ROOMY);
    store_all(&spool, [0]).await;
    storage.hold();
    let mut call = spool.store(juliet(), message("1"));
    assert!((&mut call).now_or_never().is_none());
    assert_eq!(bodies(&spool, juliet()).await, ["0"]);
    storage.release();
    call.await.unwrap();
    assert_eq!(bodies(&spool, juliet()).await, ["0", "1"]);
}

#[tokio::test]
async fn order_holds_over_a_restart_and_a_clock_that_was_ahead() {
    let (storage, before) = spool(ROOMY);
    let ahead = clock() + 3_600_000_000;
    let put = Batch::new().put(SPACE, key(&prefix(&juliet()), ahead), message("ahead").to_bytes());
    storage.commit(put).await.unwrap();
    store_all(&before, [1]).await;
    let after = Spool::new(storage, ROOMY);
    store_all(&after, [2]).await;
    assert_eq!(bodies(&after, juliet()).await, ["ahead", "1", "2"]);
}

#[tokio::test]
async fn a_full_account_refuses_and_keeps_what_it_has() {
    let (storage, spool) = spool(Limits { messages: 3, ..ROOMY });
    store_all(&spool, 0..3).await;
    assert!(matches!(spool.store(juliet(), message("3")).await, Err(OfflineError::Full)));
    // Others are not concerned, and a restart does not make room.
    spool.store(jid("nurse@capulet.example"), message("n")).await.unwrap();
    let again = Spool::new(storage, Limits { messages: 3, ..ROOMY });
    assert!(matches!(again.store(juliet(), message("3")).await, Err(OfflineError::Full)));
    assert_eq!(bodies(&again, juliet()).await, ["0", "1", "2"]);
    let oldest = again.load(juliet(), None, 1).await.unwrap().remove(0).key;
    again.remove(juliet(), vec![oldest]).await.unwrap();
    store_all(&again, [3]).await;
    assert!(matches!(again.store(juliet(), message("4")).await, Err(OfflineError::Full)));
    assert_eq!(bodies(&again, juliet()).await, ["1", "2", "3"]);
}

#[tokio::test]
async fn the_limit_in_bytes_counts_what_is_stored() {
    let (storage, roomy) = spool(ROOMY);
    store_all(&roomy, [1]).await;
    let size = storage.bytes(SPACE);
    let limits = Limits { bytes: 2 * size + 10, ..ROOMY };
    let spool = Spool::new(storage.clone(), limits);
    store_all(&spool, [2]).await;
    assert!(matches!(spool.store(juliet(), message("3")).await, Err(OfflineError::Full)));
    let loaded = spool.load(juliet(), None, 1).await.unwrap();
    spool.remove(juliet(), vec![loaded[0].key.clone()]).await.unwrap();
    store_all(&spool, [3]).await;
    assert!(storage.bytes(SPACE) <= limits.bytes);
}

#[tokio::test]
async fn calls_that_wait_are_limited_too() {
    let (storage, spool) = spool(Limits { messages: 2, ..ROOMY });
    storage.hold();
    let calls: Vec<_> = (0..3).map(|number| spool.store(juliet(), message(&number.to_string()))).collect();
    let results = tokio::spawn(join_all(calls));
    storage.wait_for_commits(1).await;
    storage.release();
    let results = results.await.unwrap();
    assert!(results[0].is_ok() && results[1].is_ok());
    assert!(matches!(results[2], Err(OfflineError::Full)));
}

#[tokio::test]
async fn a_failed_commit_is_told_and_takes_no_room() {
    let (storage, spool) = spool(Limits { messages: 2, ..ROOMY });
    store_all(&spool, [0]).await;
    storage.fail_commits(1);
    let failed = spool.store(juliet(), message("lost")).await;
    assert!(matches!(failed, Err(OfflineError::Storage(StorageError::Full))));
    store_all(&spool, [1]).await;
    assert!(matches!(spool.store(juliet(), message("2")).await, Err(OfflineError::Full)));
    assert_eq!(bodies(&spool, juliet()).await, ["0", "1"]);
}

#[tokio::test]
async fn a_failed_count_fails_all_that_wait_and_is_tried_again() {
    let (storage, spool) = spool(ROOMY);
    storage.fail_commits(1);
    let calls = join_all((0..3).map(|number| spool.store(juliet(), message(&number.to_string()))));
    assert!(
        calls.await.iter().all(|result| matches!(result, Err(OfflineError::Storage(StorageError::Full))))
    );
    storage.fail_scans(1);
    assert!(spool.store(juliet(), message("0")).await.is_err());
    store_all(&spool, [1]).await;
    assert_eq!(bodies(&spool, juliet()).await, ["1"]);
}

#[tokio::test]
async fn a_call_dropped_while_it_waits_leaves_no_trace() {
    let (storage, spool) = spool(Limits { messages: 2, ..ROOMY });
    storage.hold();
    let first = spool.store(juliet(), message("0"));
    drop(spool.store(juliet(), message("dropped")));
    let last = spool.store(juliet(), message("1"));
    let last = tokio::spawn(async move { (last.await, first.await) });
    storage.wait_for_commits(1).await;
    storage.release();
    assert!(matches!(last.await.unwrap(), (Ok(()), Ok(()))));
    assert_eq!(bodies(&spool, juliet()).await, ["0", "1"]);
}

#[tokio::test]
async fn a_removal_during_the_count_is_counted() {
    let (storage, before) = spool(ROOMY);
    store_all(&before, 0..2).await;
    let loaded = before.load(juliet(), None, 1).await.unwrap();
    let spool = Spool::new(storage, Limits { messages: 2, ..ROOMY });
    let mut store = spool.store(juliet(), message("2"));
    // The rows are read, but the count has not ended yet.
    assert!((&mut store).now_or_never().is_none());
    spool.remove(juliet(), vec![loaded[0].key.clone()]).await.unwrap();
    store.await.unwrap();
    assert_eq!(bodies(&spool, juliet()).await, ["1", "2"]);
}

#[tokio::test]
async fn a_failed_removal_makes_no_room() {
    let (storage, spool) = spool(Limits { messages: 1, ..ROOMY });
    store_all(&spool, [0]).await;
    let position = spool.load(juliet(), None, 1).await.unwrap().remove(0).key;
    storage.fail_commits(1);
    assert!(spool.remove(juliet(), vec![position]).await.is_err());
    assert!(matches!(spool.store(juliet(), message("1")).await, Err(OfflineError::Full)));
    assert_eq!(bodies(&spool, juliet()).await, ["0"]);
}

#[tokio::test]
async fn pages_continue_after_a_position() {
    let (_, spool) = spool(ROOMY);
    let total = u32::try_from(2 * PAGE + 5).unwrap();
    store_all(&spool, 0..total).await;
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = spool.load(juliet(), after, PAGE + 3).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        seen.extend(page.iter().map(body));
    }
    assert_eq!(seen, (0..total).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!(spool.load(juliet(), None, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn damaged_messages_do_not_hold_up_others() {
    let (storage, spool) = spool(ROOMY);
    store_all(&spool, [0]).await;
    for damaged in [&b"<message"[..], b"", b"\xff\xfe", b"<foo/>", b"<message from='@'/>"] {
        let put = Batch::new().put(SPACE, key(&prefix(&juliet()), clock()), damaged.to_vec());
        storage.commit(put).await.unwrap();
    }
    let spool = Spool::new(storage, ROOMY);
    store_all(&spool, [1]).await;
    assert_eq!(bodies(&spool, juliet()).await, ["0", "1"]);
    assert_eq!(spool.load(juliet(), None, 2).await.unwrap().len(), 2);
}

#[tokio::test]
async fn clearing_an_account_leaves_others_alone() {
    let (storage, spool) = spool(Limits { messages: 200, ..ROOMY });
    store_all(&spool, 0..100).await;
    for neighbour in ["juliet@capulet.example.org", "julie@capulet.example", "capulet.example"] {
        spool.store(jid(neighbour), message("n")).await.unwrap();
    }
    assert_eq!(spool.count(juliet()).await.unwrap(), 100);
    spool.clear(juliet()).await.unwrap();
    assert_eq!(spool.count(juliet()).await.unwrap(), 0);
    assert_eq!(storage.rows(SPACE), 3);
    store_all(&spool, 0..200).await;
    assert_eq!(spool.count(juliet()).await.unwrap(), 200);
    assert_eq!(Spool::new(storage, ROOMY).count(juliet()).await.unwrap(), 200);
}

#[tokio::test]
async fn positions_that_are_none_are_refused() {
    let (_, spool) = spool(ROOMY);
    for bad in [&b""[..], b"1234567", b"12345678", b"12345678123456789"] {
        let bad = Bytes::from_static(bad);
        assert!(matches!(spool.load(juliet(), Some(bad.clone()), 1).await, Err(StorageError::Invalid(_))));
        assert!(matches!(spool.remove(juliet(), vec![bad]).await, Err(StorageError::Invalid(_))));
    }
    spool.remove(juliet(), Vec::new()).await.unwrap();
}

#[tokio::test]
async fn accounts_at_rest_are_forgotten_when_there_are_too_many() {
    let (_, spool) = spool(Limits { messages: 1, ..ROOMY });
    store_all(&spool, [0]).await;
    for number in 0..MAX_ACCOUNTS {
        spool.store(jid(&format!("user{number}@capulet.example")), message("x")).await.unwrap();
        assert!(spool.shared.lock().len() <= MAX_ACCOUNTS);
    }
    // Forgotten, but what is stored counts all the same.
    assert!(matches!(spool.store(juliet(), message("1")).await, Err(OfflineError::Full)));
}

#[tokio::test]
async fn a_resource_does_not_make_another_account() {
    let (_, spool) = spool(Limits { messages: 1, ..ROOMY });
    spool.store(jid("juliet@capulet.example/balcony"), message("0")).await.unwrap();
    assert!(matches!(spool.store(juliet(), message("1")).await, Err(OfflineError::Full)));
    assert_eq!(spool.count(jid("juliet@capulet.example/chamber")).await.unwrap(), 1);
}

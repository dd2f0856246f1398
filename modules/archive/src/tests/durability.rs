//! What survives repetition, failure and a restart, and what queries see meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use waystation_core::Condition;
use waystation_core::error::ErrorType;
use waystation_core::storage::StorageError;

use super::world::*;
use crate::chunk::{ROWS, WITH};
use crate::prefs::PREFS;
use crate::state::STATES;
use crate::{Config, NS_MAM};

#[tokio::test]
async fn p3_handing_over_again_changes_nothing() {
    let world = world();
    world.fill([2, 4, 6]).await;
    for again in [vec![2], vec![6], vec![2, 4, 6], vec![4, 6, 8], vec![8, 8]] {
        world.fill(again).await;
    }
    // A message that is there is left as it is, whatever is handed over under its position.
    world.add(vec![message(4, "2020-01-01T00:00:00Z", "from='a@b'", "<body>other</body>")]).await.unwrap();
    assert_eq!(world.positions().await, [2, 4, 6, 8]);
    assert_eq!(world.query("").await.unwrap().count(), Some(4));
    // The first call's three in one chunk, and the one that was new.
    assert_eq!((world.storage.rows(ROWS), world.storage.rows(WITH)), (2, 2));
    assert_eq!(world.newest().await, Some(8));
}

#[tokio::test]
async fn repeated_before_it_is_stored_it_is_there_once() {
    let world = world();
    world.fill([1]).await;
    world.storage.hold();
    let adds: Vec<_> = [vec![2, 3], vec![2, 3], vec![3, 4], vec![2]]
        .into_iter()
        .map(|positions| world.archive().add(jid(JULIET), positions.into_iter().map(plain).collect()))
        .collect();
    tokio::task::yield_now().await;
    world.storage.release();
    for add in adds {
        add.await.unwrap();
    }
    assert_eq!(world.positions().await, [1, 2, 3, 4]);
    assert_eq!(world.query("").await.unwrap().count(), Some(4));
}

#[tokio::test]
async fn what_was_missed_can_be_handed_over_late() {
    let world = world();
    world.fill([2, 8]).await;
    world.fill([5]).await;
    let mut early = plain(3);
    early.at = at(0);
    world.add(vec![early]).await.unwrap();
    assert_eq!(world.positions().await, [2, 3, 5, 8]);
    // Its time was made to fit, so that spans of time are still found.
    let answer = world.query(&form(&[("end", "2010-07-10T23:00:05Z")])).await.unwrap();
    assert_eq!(answer.positions(), [2, 3, 5]);
    assert_eq!((answer.count(), world.newest().await), (Some(3), Some(8)));
}

#[tokio::test]
async fn position_0_is_refused_and_an_empty_call_is_none() {
    let world = world();
    assert!(matches!(world.add(vec![plain(0)]).await, Err(StorageError::Invalid(_))));
    assert_eq!(world.newest().await, None);
    world.add(Vec::new()).await.unwrap();
    assert_eq!((world.newest().await, world.storage.rows(STATES)), (None, 0));
}

#[tokio::test]
async fn queries_see_what_was_added_before_them() {
    let world = world();
    world.fill([1]).await;
    world.storage.hold();
    // Not even polled: what counts is the call.
    let add = world.archive().add(jid(JULIET), vec![plain(2)]);
    let query = async {
        let answer = world.query("").await.unwrap();
        (answer.positions(), answer.count())
    };
    let release = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.storage.release();
    };
    let (seen, ()) = tokio::join!(query, release);
    assert_eq!(seen, (vec![1, 2], Some(2)));
    add.await.unwrap();
    // The same for an account that is not in memory yet.
    let other = over(world.storage.clone(), Config::default());
    let add = other.archive().add(jid(JULIET), vec![plain(3)]);
    assert_eq!(other.query("").await.unwrap().positions(), [1, 2, 3]);
    add.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_query_does_not_wait_for_ever() {
    let world = world();
    world.fill([1]).await;
    world.storage.hold();
    let add = world.archive().add(jid(JULIET), vec![plain(2)]);
    let started = tokio::time::Instant::now();
    for payload in ["query", "metadata", "prefs"] {
        let error =
            world.iq(payload == "query", &format!("<{payload} xmlns='{NS_MAM}'/>")).await.unwrap_err();
        assert_eq!(
            (error.condition, error.kind),
            (Condition::InternalServerError, ErrorType::Wait),
            "{payload}"
        );
    }
    assert_eq!(started.elapsed(), Config::default().commit_wait * 3);
    world.storage.release();
    add.await.unwrap();
    assert_eq!(world.positions().await, [1, 2]);
}

/// DELIVERY P5: what was shown live and could not be archived yet is no gap in a query's answer.
#[tokio::test(start_paused = true)]
async fn a_query_waits_for_what_failed_to_be_handed_over_again() {
    for known in [true, false] {
        let world = world();
        if known {
            world.fill([1]).await;
        }
        world.storage.fail_commits(0, 1);
        assert!(world.add(vec![plain(2), plain(3)]).await.is_err());
        let error = world.query("").await.unwrap_err();
        assert_eq!((error.condition, error.kind), (Condition::InternalServerError, ErrorType::Wait));
        let again = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.fill([2]).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.fill([3]).await;
        };
        let (answer, ()) = tokio::join!(world.query(""), again);
        let expected: &[u64] = if known { &[1, 2, 3] } else { &[2, 3] };
        assert_eq!(answer.unwrap().positions(), expected);
    }
}

#[tokio::test]
async fn a_failed_commit_is_told_and_nothing_behind_it_takes_effect() {
    for fill_first in [true, false] {
        let world = world();
        if fill_first {
            world.fill([1]).await;
        }
        world.storage.hold();
        world.storage.fail_commits(0, 1);
        let adds: Vec<_> = (2..=4).map(|n| world.archive().add(jid(JULIET), vec![plain(n)])).collect();
        tokio::task::yield_now().await;
        world.storage.release();
        // Long after the failure, which the caller has not heard of.
        assert_eq!(world.newest().await, fill_first.then_some(1));
        let late = world.archive().add(jid(JULIET), vec![plain(5)]);
        let mut outcomes = Vec::new();
        for add in adds.into_iter().chain([late]) {
            outcomes.push(add.await);
        }
        assert!(matches!(outcomes[0], Err(StorageError::Full)), "{outcomes:?}");
        assert!(outcomes.iter().all(Result::is_err), "{outcomes:?}");
        assert_eq!(world.newest().await, fill_first.then_some(1));
        // Handed over again, in whatever order, nothing is lost.
        for n in [4, 2, 3, 5] {
            world.fill([n]).await;
        }
        let expected: Vec<_> = if fill_first { (1..=5).collect() } else { (2..=5).collect() };
        assert_eq!(world.positions().await, expected);
        assert_eq!(world.query("").await.unwrap().count(), Some(expected.len()));
    }
}

/// What waited for the driver when something before it failed would else be taken, and the gap
/// in front of it be seen.
#[tokio::test]
async fn what_waits_behind_a_late_message_fails_with_what_came_before_it() {
    let world = world();
    world.fill([5]).await;
    world.storage.hold();
    world.storage.fail_commits(0, 1);
    let adds: Vec<_> = [6, 3, 7].map(|n| world.archive().add(jid(JULIET), vec![plain(n)])).into();
    tokio::task::yield_now().await;
    world.storage.release();
    let mut outcomes = Vec::new();
    for add in adds {
        outcomes.push(add.await);
    }
    assert!(outcomes[0].is_err() && outcomes[2].is_err(), "{outcomes:?}");
    assert_eq!(world.newest().await, Some(5));
    world.fill([3, 6, 7]).await;
    assert_eq!(world.positions().await, [3, 5, 6, 7]);
}

#[tokio::test]
async fn a_large_add_that_fails_in_the_middle_keeps_a_beginning() {
    let world = world();
    world.storage.fail_commits(1, 1);
    let all: Vec<u64> = (1..=2_500).collect();
    let outcome = world.add(all.iter().copied().map(plain).collect()).await;
    assert!(matches!(outcome, Err(StorageError::Full)), "{outcome:?}");
    let kept = world.newest().await.unwrap();
    assert!(kept > 0 && kept < 2_500, "{kept}");
    assert_eq!(world.storage.rows(ROWS) as u64, kept.div_ceil(FULL));
    world.fill(all.clone()).await;
    assert_eq!(world.positions().await, all);
    assert_eq!(world.storage.rows(ROWS), world.storage.rows(WITH));
}

#[tokio::test]
async fn failed_reads_are_temporary_errors_and_forget_nothing() {
    let world = world();
    world.fill([1, 2]).await;
    let again = over(world.storage.clone(), Config::default());
    for reads in 1..4 {
        world.storage.fail_reads(reads);
        for _ in 0..reads {
            let error = again.query(&form(&[("start", "2010-07-10T23:00:00Z")])).await.unwrap_err();
            assert_eq!((error.condition, error.kind), (Condition::InternalServerError, ErrorType::Wait));
            assert!(again.sent().is_empty());
        }
    }
    let fresh = over(world.storage.clone(), Config::default());
    world.storage.fail_reads(1);
    assert!(fresh.add(vec![plain(3)]).await.is_err());
    fresh.fill([3]).await;
    assert_eq!(fresh.positions().await, [1, 2, 3]);
    // A failure while preferences are stored leaves it to the store which ones hold.
    let prefs = |default| format!("<prefs xmlns='{NS_MAM}' default='{default}'/>");
    world.storage.fail_commits(0, 1);
    let error = fresh.iq(true, &prefs("never")).await.unwrap_err();
    assert_eq!(error.condition, Condition::ResourceConstraint);
    assert_eq!(fresh.iq(false, &prefs("never")).await.unwrap().attr("default"), Some("always"));
    assert_eq!(world.storage.rows(PREFS), 0);
}

#[tokio::test]
async fn damage_is_reported_and_hides_nothing_else() {
    let world = world();
    for position in 1..=3 {
        world.fill([position]).await;
    }
    world.storage.damage(ROWS, crate::row::key(&crate::row::prefix(&jid(JULIET)), 2));
    assert_eq!(world.positions().await, [1, 3]);
    world.storage.damage(STATES, crate::state::State::key(&jid(JULIET)));
    let again = over(world.storage.clone(), Config::default());
    assert!(again.newest_of(JULIET).await.is_err());
    assert!(again.add(vec![plain(4)]).await.is_err());
}

#[tokio::test]
async fn a_reopened_store_continues() {
    let folder = tempfile::tempdir().unwrap();
    let mut expected = Vec::new();
    for round in 0..3u64 {
        let data_dir = waystation_storage::DataDir::lock(folder.path()).unwrap();
        let options = waystation_storage::Options { min_free_bytes: Some(0), ..Default::default() };
        let storage = waystation_storage::open(&data_dir, &options).unwrap();
        let world = over(Arc::new(Shared(storage.clone())), Config::default());
        assert_eq!(world.newest().await, expected.last().copied());
        let positions: Vec<_> = (1..=150).map(|n| round * 1_000 + n).collect();
        world.fill(positions.clone()).await;
        expected.extend(positions);
        assert_eq!(world.positions().await, expected);
        assert_eq!(world.query("").await.unwrap().count(), Some(expected.len()));
        storage.close().await.unwrap();
    }
}

#[tokio::test]
async fn more_accounts_than_memory_holds_lose_nothing() {
    let world = world();
    let account = |n: u64| jid(&format!("user{n}@capulet.example"));
    for round in [1, 2] {
        // A hundred at a time: what is on its way is kept in memory.
        for n in 0..101 {
            let add = |n| world.archive().add(account(n), vec![plain(round)]);
            for added in (n * 100..n * 100 + 100).map(add).collect::<Vec<_>>() {
                added.await.unwrap();
            }
        }
    }
    for n in [0, 5_000, 10_099] {
        assert_eq!(world.archive().newest(account(n)).await.unwrap().map(|id| id.0), Some(2));
    }
    assert_eq!(world.storage.rows(ROWS), 20_200);
}

/// Writers, readers and retention at once, over a real engine and several threads: a reader sees
/// all that was added before it asked, without a hole, while the oldest go.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_writers_and_retention_do_not_disturb_each_other() {
    const ROUNDS: u64 = 150;
    let folder = tempfile::tempdir().unwrap();
    let data_dir = waystation_storage::DataDir::lock(folder.path()).unwrap();
    let options =
        waystation_storage::Options { kind: waystation_storage::Kind::Memory, ..Default::default() };
    let storage = waystation_storage::open(&data_dir, &options).unwrap();
    let config = Config { max_messages: Some(500), page_limit: 10, ..Config::default() };
    let world = Arc::new(over(Arc::new(Shared(storage)), config));
    let added = Arc::new(AtomicU64::new(0));
    let writer = tokio::spawn({
        let (world, added) = (world.clone(), added.clone());
        async move {
            for round in 0..ROUNDS {
                // Two calls under way at once, and one of them again.
                let first = round * 10 + 1;
                let call = |positions: std::ops::Range<u64>| {
                    world.archive().add(jid(JULIET), positions.map(plain).collect())
                };
                let calls = [call(first..first + 5), call(first + 5..first + 10), call(first..first + 5)];
                added.store(first + 9, Ordering::SeqCst);
                for call in calls {
                    call.await.unwrap();
                }
            }
        }
    });
    let sweeper = tokio::spawn({
        let world = world.clone();
        async move {
            loop {
                world.archives.sweep(std::time::SystemTime::now()).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
    });
    while !writer.is_finished() {
        let before = added.load(Ordering::SeqCst);
        let positions = world.query(&set("<before/>")).await.unwrap().positions();
        assert!(positions.windows(2).all(|pair| pair[1] == pair[0] + 1), "{positions:?}");
        // Unless retention took what was there when it asked, while it was reading.
        if added.load(Ordering::SeqCst) - before < 400 {
            assert!(positions.last().copied().unwrap_or(0) >= before, "{before}: {positions:?}");
        }
    }
    writer.await.unwrap();
    sweeper.abort();
    let _ = sweeper.await;
    world.archives.sweep(std::time::SystemTime::now()).await.unwrap();
    let last = ROUNDS * 10;
    assert_eq!(world.positions().await, (last - 499..=last).collect::<Vec<_>>());
    assert_eq!(world.query("").await.unwrap().count(), Some(500));
}

//! The contract of `Storage`, run over every back-end: one function per promise.
#![allow(clippy::unwrap_used, reason = "in a test, also in its functions, it is an assertion")]

mod model;
mod support;

use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use support::Backend;
use waystation_committer::block_on;
use waystation_core::storage::{
    Batch, MAX_BATCH_BYTES, MAX_BATCH_OPS, MAX_KEY, MAX_VALUE, ScanRange, Space, Storage, StorageError,
};
use waystation_storage::Kind;

/// Two spaces, the name of one being the beginning of the other's.
const A: Space = Space("roster");
const B: Space = Space("roster_version");

async fn get(store: &Arc<dyn Storage>, space: Space, key: &'static str) -> Option<Bytes> {
    store.get(space, key.into()).await.expect("readable")
}

async fn keys(store: &Arc<dyn Storage>, range: ScanRange) -> Vec<String> {
    let rows = store.scan(A, range).await.expect("readable");
    rows.into_iter().map(|(key, _)| String::from_utf8_lossy(&key).into_owned()).collect()
}

/// Makes one test per back-end of each function named.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        contract!(@backend fjall Fjall $($name)*);
        contract!(@backend sled Sled $($name)*);
        contract!(@backend memory Memory $($name)*);
    };
    (@backend $module:ident $kind:ident $($name:ident)*) => {
        mod $module {
            use super::*;
            $(
                #[test]
                fn $name() {
                    block_on(super::$name(Backend::new(Kind::$kind)));
                }
            )*
        }
    };
}

contract!(
    a_batch_changes_several_spaces_at_once,
    the_last_change_of_a_key_in_a_batch_wins,
    a_failed_condition_applies_nothing,
    conditions_alone_are_checked,
    conditions_see_the_batches_queued_before,
    unawaited_commits_apply_in_the_order_of_issue,
    dropping_the_future_does_not_undo_a_queued_commit,
    a_resolved_commit_is_read_back,
    readers_see_a_batch_whole,
    concurrent_compare_and_set_counts_right,
    scans_return_prefixes_bounds_and_limits,
    pages_after_a_key_cover_every_row_once,
    long_scans_work_from_any_thread,
    spaces_do_not_run_together,
    limits_hold_at_their_edge,
    names_of_spaces_are_checked,
    closing_applies_what_was_queued_and_refuses_the_rest,
);

async fn a_batch_changes_several_spaces_at_once(backend: Backend) {
    let store = backend.open();
    store.commit(Batch::new().put(A, "gone", "1")).await.unwrap();
    let batch =
        Batch::new().put(A, "k", "in a").put(B, "k", "in b").delete(A, "gone").delete(B, "never there");
    store.commit(batch).await.unwrap();
    assert_eq!(get(&store, A, "k").await.unwrap(), "in a");
    assert_eq!(get(&store, B, "k").await.unwrap(), "in b");
    assert_eq!(get(&store, A, "gone").await, None);
    store.commit(Batch::new()).await.unwrap();
}

async fn the_last_change_of_a_key_in_a_batch_wins(backend: Backend) {
    let store = backend.open();
    let batch = Batch::new()
        .put(A, "twice", "first")
        .put(A, "twice", "second")
        .put(A, "put then deleted", "1")
        .delete(A, "put then deleted")
        .delete(A, "deleted then put")
        .put(A, "deleted then put", "1");
    store.commit(batch).await.unwrap();
    assert_eq!(get(&store, A, "twice").await.unwrap(), "second");
    assert_eq!(get(&store, A, "put then deleted").await, None);
    assert_eq!(get(&store, A, "deleted then put").await.unwrap(), "1");
    let store = backend.reopen(store).await;
    if backend.is_durable() {
        assert_eq!(get(&store, A, "twice").await.unwrap(), "second");
        assert_eq!(get(&store, A, "put then deleted").await, None);
        assert_eq!(get(&store, A, "deleted then put").await.unwrap(), "1");
    }
}

async fn a_failed_condition_applies_nothing(backend: Backend) {
    let store = backend.open();
    store.commit(Batch::new().put(A, "k", "old").put(A, "other", "1")).await.unwrap();
    let write = || Batch::new().put(A, "k", "new").put(B, "k", "new").delete(A, "other");
    let failing = [
        write().expect(A, "k", Some("not this".into())),
        write().expect(A, "k", None),
        write().expect(A, "absent", Some("1".into())),
        // The first one holds, the second does not.
        write().expect(A, "k", Some("old".into())).expect(B, "k", Some("".into())),
    ];
    for batch in failing {
        let outcome = store.commit(batch.clone()).await;
        assert!(matches!(outcome, Err(StorageError::Conflict)), "{batch:?}: {outcome:?}");
        assert_eq!(get(&store, A, "k").await.unwrap(), "old");
        assert_eq!(get(&store, B, "k").await, None);
        assert_eq!(get(&store, A, "other").await.unwrap(), "1");
    }
    let holding = write().expect(A, "k", Some("old".into())).expect(B, "k", None);
    store.commit(holding).await.unwrap();
    assert_eq!(get(&store, A, "k").await.unwrap(), "new");
    assert_eq!(get(&store, A, "other").await, None);
}

async fn conditions_alone_are_checked(backend: Backend) {
    let store = backend.open();
    store.commit(Batch::new().expect(A, "k", None)).await.unwrap();
    let outcome = store.commit(Batch::new().expect(A, "k", Some("1".into()))).await;
    assert!(matches!(outcome, Err(StorageError::Conflict)), "{outcome:?}");
}

async fn conditions_see_the_batches_queued_before(backend: Backend) {
    let store = backend.open();
    // Issued together, so that some of them share a group.
    let outcomes = join_all([
        store.commit(Batch::new().put(A, "k", "1").put(A, "removed", "1")),
        store.commit(Batch::new().expect(A, "k", Some("1".into())).put(A, "k", "2").delete(A, "removed")),
        store.commit(Batch::new().expect(A, "k", Some("1".into())).put(A, "k", "never")),
        store.commit(Batch::new().expect(A, "removed", None).put(A, "seen", "1")),
        store.commit(Batch::new().expect(A, "removed", Some("1".into())).put(A, "seen", "never")),
    ])
    .await;
    let conflicts: Vec<_> = outcomes.iter().map(|o| matches!(o, Err(StorageError::Conflict))).collect();
    assert_eq!(conflicts, [false, false, true, false, true], "{outcomes:?}");
    assert_eq!(get(&store, A, "k").await.unwrap(), "2");
    assert_eq!(get(&store, A, "seen").await.unwrap(), "1");
}

async fn unawaited_commits_apply_in_the_order_of_issue(backend: Backend) {
    let store = backend.open();
    let mut last: Option<Bytes> = None;
    let commits: Vec<_> = (0..500)
        .map(|n| {
            let value = Bytes::from(n.to_string());
            let batch = Batch::new().expect(A, "k", last.replace(value.clone())).put(A, "k", value);
            store.commit(batch)
        })
        .collect();
    // Polled backwards: the order is that of the calls, not that of the polls.
    for (n, commit) in commits.into_iter().enumerate().rev() {
        commit.await.unwrap_or_else(|error| panic!("commit {n}: {error}"));
    }
    assert_eq!(get(&store, A, "k").await.unwrap(), "499");
}

async fn dropping_the_future_does_not_undo_a_queued_commit(backend: Backend) {
    let store = backend.open();
    drop(store.commit(Batch::new().put(A, "k", "1")));
    // Later in the order, so that once it resolves the first one was applied.
    store.commit(Batch::new().put(A, "other", "1")).await.unwrap();
    assert_eq!(get(&store, A, "k").await.unwrap(), "1");
}

async fn a_resolved_commit_is_read_back(backend: Backend) {
    let store = backend.open();
    for n in 0..200_u32 {
        let (key, value) = (Bytes::from(format!("k{}", n % 7)), Bytes::from(n.to_string()));
        store.commit(Batch::new().put(A, key.clone(), value.clone())).await.unwrap();
        assert_eq!(store.get(A, key.clone()).await.unwrap(), Some(value.clone()));
        let rows = store.scan(A, ScanRange::prefix(key.clone(), 1)).await.unwrap();
        assert_eq!(rows, [(key.clone(), value)]);
        if n % 3 == 0 {
            store.commit(Batch::new().delete(A, key.clone())).await.unwrap();
            assert_eq!(store.get(A, key.clone()).await.unwrap(), None);
            assert_eq!(store.scan(A, ScanRange::prefix(key, 1)).await.unwrap(), []);
        }
    }
}

async fn readers_see_a_batch_whole(backend: Backend) {
    let store = backend.open();
    // Each batch moves the one row from key to key: a reader that saw half of it would find
    // two rows or none.
    store.commit(Batch::new().put(A, "0", "")).await.unwrap();
    let writer = std::thread::spawn({
        let store = Arc::clone(&store);
        move || {
            for n in 0..300_u32 {
                let (from, to) = ((n % 5).to_string(), ((n + 1) % 5).to_string());
                block_on(store.commit(Batch::new().delete(A, from).put(A, to, ""))).unwrap();
            }
        }
    });
    let mut scans = 0_u32;
    while !writer.is_finished() || scans == 0 {
        let rows = store.scan(A, ScanRange::prefix("", 10)).await.unwrap();
        assert_eq!(rows.len(), 1, "after {scans} scans: {rows:?}");
        scans += 1;
    }
    writer.join().unwrap();
}

async fn concurrent_compare_and_set_counts_right(backend: Backend) {
    const THREADS: u32 = 8;
    const STEPS: u32 = 40;
    let store = backend.open();
    let count = || {
        let mut done = 0;
        while done < STEPS {
            let now = block_on(store.get(A, "counter".into())).unwrap();
            let count: u32 = now.as_ref().map_or(0, |v| std::str::from_utf8(v).unwrap().parse().unwrap());
            let batch = Batch::new().expect(A, "counter", now).put(A, "counter", (count + 1).to_string());
            match block_on(store.commit(batch)) {
                Ok(()) => done += 1,
                Err(StorageError::Conflict) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(count);
        }
    });
    assert_eq!(get(&store, A, "counter").await.unwrap(), (THREADS * STEPS).to_string());
}

async fn scans_return_prefixes_bounds_and_limits(backend: Backend) {
    let store = backend.open();
    let mut batch = Batch::new().put(A, &b"b\xff"[..], "");
    for key in ["a", "b", "b1", "b2", "b3", "c"] {
        batch = batch.put(A, key, key);
    }
    store.commit(batch).await.unwrap();
    let between = |start, end| ScanRange { start, end, reverse: false, limit: 100 };
    let at = |key: &'static str| Bytes::from(key);

    assert_eq!(keys(&store, ScanRange::prefix("b", 100)).await, ["b", "b1", "b2", "b3", "b\u{fffd}"]);
    assert_eq!(keys(&store, ScanRange::prefix("b", 3)).await, ["b", "b1", "b2"]);
    assert_eq!(keys(&store, ScanRange::prefix("c", 3).reversed()).await, ["c"]);
    assert_eq!(keys(&store, ScanRange::prefix("b3", 9).reversed()).await, ["b3"]);
    assert_eq!(keys(&store, ScanRange::prefix("", 2).reversed()).await.len(), 2);
    assert_eq!(keys(&store, ScanRange::prefix("b", 3).after("b1")).await[..2], ["b2", "b3"]);
    assert_eq!(keys(&store, ScanRange::prefix("zz", 100)).await.len(), 0);
    assert_eq!(keys(&store, ScanRange::prefix("", 0)).await.len(), 0);

    use Bound::{Excluded, Included, Unbounded};
    let cases: [(_, _, &[&str]); 8] = [
        (Included(at("b")), Included(at("b2")), &["b", "b1", "b2"]),
        (Excluded(at("b")), Excluded(at("b2")), &["b1"]),
        (Unbounded, Excluded(at("b1")), &["a", "b"]),
        (Included(at("b4")), Included(at("c")), &["b\u{fffd}", "c"]),
        (Included(at("b1")), Included(at("b1")), &["b1"]),
        (Included(at("b1")), Excluded(at("b1")), &[]),
        (Excluded(at("b1")), Excluded(at("b1")), &[]),
        (Included(at("c")), Included(at("a")), &[]),
    ];
    for (start, end, expected) in cases {
        let range = between(start, end);
        assert_eq!(keys(&store, range.clone()).await, expected, "{range:?}");
        let backwards: Vec<_> = expected.iter().rev().copied().collect();
        assert_eq!(keys(&store, range.clone().reversed()).await, backwards, "{range:?}");
    }
}

async fn pages_after_a_key_cover_every_row_once(backend: Backend) {
    let store = backend.open();
    let all: Vec<_> = (0..250).map(|n| format!("juliet@example.com\0{n:04}")).collect();
    let batch = all.iter().fold(Batch::new(), |batch, key| batch.put(A, key.clone(), "v"));
    store.commit(batch.put(A, "romeo@example.com\u{0}0000", "not hers")).await.unwrap();
    let mut paged = Vec::new();
    let mut range = ScanRange::prefix("juliet@example.com\0", 32);
    loop {
        let page = keys(&store, range.clone()).await;
        assert!(page.len() <= 32);
        let Some(last) = page.last().cloned() else { break };
        range = range.after(last);
        paged.extend(page);
    }
    assert_eq!(paged, all);
}

async fn long_scans_work_from_any_thread(backend: Backend) {
    let store = backend.open();
    let all: Vec<_> = (0..5000).map(|n| format!("{n:05}")).collect();
    let batch = all.iter().fold(Batch::new(), |batch, key| batch.put(A, key.clone(), "v"));
    store.commit(batch).await.unwrap();
    // One row more than is read in place, and far more; from a thread without any runtime.
    let thread = std::thread::spawn(move || {
        block_on(async {
            assert_eq!(keys(&store, ScanRange::prefix("", 1001)).await, all[..1001]);
            assert_eq!(keys(&store, ScanRange::prefix("", usize::MAX)).await, all);
            let mut backwards = keys(&store, ScanRange::prefix("", 4999).reversed()).await;
            backwards.reverse();
            assert_eq!(backwards, all[1..]);
            store.commit(Batch::new().delete(A, "00000")).await.unwrap();
            assert_eq!(get(&store, A, "00000").await, None);
        });
    });
    thread.join().unwrap();
}

async fn spaces_do_not_run_together(backend: Backend) {
    let store = backend.open();
    let batch = Batch::new().put(A, "_version", "a").put(B, &[0][..], "b").put(A, &[0xff; 40][..], "");
    store.commit(batch).await.unwrap();
    assert_eq!(store.scan(A, ScanRange::prefix("", 100)).await.unwrap().len(), 2);
    let rows = store.scan(B, ScanRange::prefix("", 100).reversed()).await.unwrap();
    assert_eq!(rows, [(Bytes::from_static(&[0]), "b".into())]);
    assert_eq!(store.scan(Space("unused"), ScanRange::prefix("", 100)).await.unwrap(), []);
    assert_eq!(store.get(Space("unused"), "k".into()).await.unwrap(), None);
}

async fn limits_hold_at_their_edge(backend: Backend) {
    let store = backend.open();
    let long = |len: usize| Bytes::from(vec![b'x'; len]);
    let too_large = |outcome: Result<(), StorageError>| {
        assert!(matches!(outcome, Err(StorageError::TooLarge(_))), "{outcome:?}");
    };

    let full = || (0..MAX_BATCH_OPS).fold(Batch::new(), |batch, n| batch.put(B, n.to_string(), "v"));
    store.commit(full()).await.unwrap();
    assert_eq!(store.scan(B, ScanRange::prefix("", usize::MAX)).await.unwrap().len(), MAX_BATCH_OPS);
    too_large(store.commit(full().delete(B, "one more")).await);
    let removals = (0..MAX_BATCH_OPS).fold(Batch::new(), |batch, n| batch.delete(B, n.to_string()));
    store.commit(removals).await.unwrap();
    assert_eq!(store.scan(B, ScanRange::prefix("", usize::MAX)).await.unwrap().len(), 0);

    store.commit(Batch::new().put(A, long(MAX_KEY), "v").put(A, "k", long(MAX_VALUE))).await.unwrap();
    assert_eq!(store.get(A, long(MAX_KEY)).await.unwrap().unwrap(), "v");
    assert_eq!(get(&store, A, "k").await.unwrap(), long(MAX_VALUE));
    let rows = store.scan(A, ScanRange::prefix(long(MAX_KEY), 2)).await.unwrap();
    assert_eq!(rows.len(), 1);

    too_large(store.commit(Batch::new().put(A, long(MAX_KEY + 1), "v")).await);
    too_large(store.commit(Batch::new().delete(A, long(MAX_KEY + 1))).await);
    too_large(store.commit(Batch::new().expect(A, long(MAX_KEY + 1), None)).await);
    too_large(store.commit(Batch::new().put(A, "k", long(MAX_VALUE + 1))).await);
    too_large(store.get(A, long(MAX_KEY + 1)).await.map(drop));
    too_large(store.scan(A, ScanRange::prefix(long(MAX_KEY + 1), 1)).await.map(drop));
    let empty = store.commit(Batch::new().put(A, "", "v")).await;
    assert!(matches!(empty, Err(StorageError::Invalid(_))), "{empty:?}");
    too_large(store.scan(A, ScanRange::prefix("", 1).after(vec![b'x'; 70_000])).await.map(drop));

    let half = long(MAX_BATCH_BYTES / 2 - 1);
    store.commit(Batch::new().put(B, "a", half.clone()).put(B, "b", half.clone())).await.unwrap();
    too_large(store.commit(Batch::new().put(B, "aa", half.clone()).put(B, "b", half)).await);
}

async fn names_of_spaces_are_checked(backend: Backend) {
    let store = backend.open();
    for name in ["", "Upper", "with space", "a\0b", "dots.", "a_name_of_thirty_three_characters"] {
        let outcome = store.commit(Batch::new().put(Space(name), "k", "v")).await;
        assert!(matches!(outcome, Err(StorageError::Invalid(_))), "{name:?}: {outcome:?}");
        assert!(store.get(Space(name), "k".into()).await.is_err());
        assert!(store.scan(Space(name), ScanRange::prefix("", 1)).await.is_err());
    }
    store.commit(Batch::new().put(Space("a_name_of_thirty_two_characters_"), "k", "v")).await.unwrap();
}

async fn closing_applies_what_was_queued_and_refuses_the_rest(backend: Backend) {
    let store = backend.open();
    let queued: Vec<_> =
        (0..200).map(|n| store.commit(Batch::new().put(A, format!("{n:03}"), "v"))).collect();
    store.close().await.unwrap();
    for commit in queued {
        commit.await.unwrap();
    }
    let closed = |error| assert!(matches!(error, StorageError::Closed), "{error:?}");
    closed(store.commit(Batch::new().put(A, "late", "v")).await.unwrap_err());
    closed(store.get(A, "000".into()).await.unwrap_err());
    closed(store.scan(A, ScanRange::prefix("", 1)).await.unwrap_err());
    closed(store.scan(A, ScanRange::prefix("", 0)).await.unwrap_err());
    closed(store.scan(A, ScanRange::prefix("", 5000)).await.unwrap_err());
    closed(store.close().await.unwrap_err());
    drop(store);
    if backend.is_durable() {
        let store = backend.open();
        assert_eq!(keys(&store, ScanRange::prefix("", 1000)).await.len(), 200);
        assert_eq!(get(&store, A, "late").await, None);
    }
}

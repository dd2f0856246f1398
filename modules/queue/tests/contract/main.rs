//! The contract of `QueueBackend`, run over every back-end: one function per promise.
#![allow(clippy::unwrap_used, reason = "in a test, also in its functions, it is an assertion")]

mod model;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::future::join_all;
use smallvec::smallvec;
use support::{Backend, ack, all, mark, name, payload, records, settle, texts};
use waystation_committer::block_on;
use waystation_core::queue::{
    Append, Batch, LeaseId, MAX_BATCH_BYTES, MAX_BATCH_ITEMS, MAX_PAYLOAD, MAX_QUEUE_NAME, MAX_QUEUES,
    QueueBackend, QueueError, QueueStats, RecordId, Settle, Verdict,
};
use waystation_queue::Kind;

/// Makes one test per back-end of each function named.
macro_rules! contract {
    ($($name:ident),* $(,)?) => {
        contract!(@backend log Log $($name)*);
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
    records_are_read_back_in_order,
    a_record_in_several_queues_is_one_record,
    an_acknowledged_record_is_gone_from_its_queue_only,
    ids_grow_and_are_never_used_twice,
    unawaited_commits_apply_in_the_order_of_issue,
    dropping_the_future_does_not_undo_a_queued_commit,
    reading_goes_on_after_a_position_and_stops_at_its_limits,
    long_payloads_in_pieces_are_read_back_as_one,
    marks_only_grow_and_can_be_removed,
    verdicts_on_what_is_not_there_change_nothing,
    a_nack_delays_and_counts,
    parking_sets_aside_and_unparking_puts_back_in_place,
    a_lease_is_exclusive_until_it_ends,
    a_lease_is_settled_once_by_its_holder,
    attempts_and_parking_outlive_the_queue_and_leases_do_not,
    a_verdict_in_a_batch_ends_the_lease,
    purging_takes_everything_that_is_there,
    statistics_count_what_is_there,
    names_of_queues_are_listed_in_order,
    limits_hold_at_their_edge,
    many_threads_commit_and_acknowledge,
    closing_commits_what_was_queued_and_refuses_the_rest,
);

async fn records_are_read_back_in_order(backend: Backend) {
    let queue = backend.open();
    let before = SystemTime::now() - Duration::from_secs(1);
    let ids = queue.commit(records(&["a"], &["one", "two", ""])).await.unwrap();
    queue.commit(records(&["a"], &["four"])).await.unwrap();
    assert_eq!(texts(&queue, "a").await, ["one", "two", "", "four"]);
    let queue = backend.reopen(queue).await;
    let read = all(&queue, "a").await;
    assert_eq!(read.iter().map(|r| &r.payload[..]).collect::<Vec<_>>(), [&b"one"[..], b"two", b"", b"four"]);
    assert_eq!(read[..3].iter().map(|r| r.id).collect::<Vec<_>>(), ids);
    for record in &read {
        assert_eq!(record.attempts, 0);
        assert!(record.since > before && record.since < SystemTime::now() + Duration::from_secs(1));
    }
    assert_eq!(texts(&queue, "other").await.len(), 0);
    assert_eq!(queue.commit(Batch::default()).await.unwrap(), []);
}

async fn a_record_in_several_queues_is_one_record(backend: Backend) {
    let queue = backend.open();
    let mut batch = records(&["a", "b"], &["both"]);
    batch.records.push(records(&["b"], &["only b"]).records.remove(0));
    let ids = queue.commit(batch).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(all(&queue, "a").await[0].id, ids[0]);
    assert_eq!(all(&queue, "b").await.iter().map(|r| r.id).collect::<Vec<_>>(), ids);
    queue.commit(ack("a", ids[0])).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await.len(), 0);
    assert_eq!(texts(&queue, "b").await, ["both", "only b"]);
}

async fn an_acknowledged_record_is_gone_from_its_queue_only(backend: Backend) {
    let queue = backend.open();
    let ids = queue.commit(records(&["a"], &["0", "1", "2", "3", "4"])).await.unwrap();
    // Out of order, twice, and from the middle.
    for index in [3, 1, 1, 0] {
        queue.commit(ack("a", ids[index])).await.unwrap();
    }
    assert_eq!(texts(&queue, "a").await, ["2", "4"]);
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await, ["2", "4"]);
    queue.commit(ack("a", ids[2])).await.unwrap();
    queue.commit(ack("a", ids[4])).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await.len(), 0);
    let nothing = QueueStats { as_of: ids[ids.len() - 1], ..QueueStats::default() };
    assert_eq!(queue.stats(name("a")).await.unwrap(), nothing);
}

async fn ids_grow_and_are_never_used_twice(backend: Backend) {
    let mut queue = backend.open();
    let mut last = RecordId(0);
    for round in 0..30 {
        let ids = queue.commit(records(&[["a", "b"][round % 2]], &["x"; 3])).await.unwrap();
        for id in ids {
            assert!(id > last, "{id:?} after {last:?}");
            last = id;
            // Everything is acknowledged at once, so that nothing but the log knows of the ids.
            queue.commit(ack(["a", "b"][round % 2], id)).await.unwrap();
        }
        if round % 7 == 0 {
            queue = backend.reopen(queue).await;
        }
    }
}

async fn unawaited_commits_apply_in_the_order_of_issue(backend: Backend) {
    let queue = backend.open();
    let commits: Vec<_> =
        (0..500).map(|n: u32| queue.commit(records(&["a"], &[n.to_string().as_str()]))).collect();
    let mut ids = Vec::new();
    // Polled backwards: the order is that of the calls, not that of the polls.
    for commit in commits.into_iter().rev() {
        ids.extend(commit.await.unwrap());
    }
    assert!(ids.is_sorted_by(|a, b| a > b));
    assert_eq!(texts(&queue, "a").await, (0..500).map(|n| n.to_string()).collect::<Vec<_>>());
}

async fn dropping_the_future_does_not_undo_a_queued_commit(backend: Backend) {
    let queue = backend.open();
    drop(queue.commit(records(&["a"], &["dropped"])));
    queue.commit(records(&["b"], &["later"])).await.unwrap();
    assert_eq!(texts(&queue, "a").await, ["dropped"]);
}

async fn reading_goes_on_after_a_position_and_stops_at_its_limits(backend: Backend) {
    let queue = backend.open();
    let mut ids = Vec::new();
    for n in 0..300 {
        let text = format!("{n:0100}");
        ids.extend(queue.commit(records(&["a", "b"], &[&text])).await.unwrap());
        queue.commit(ack("b", *ids.last().unwrap())).await.unwrap();
    }
    for page in [1, 7, 64, 299, 300, 1000] {
        let mut read = Vec::new();
        let mut after = None;
        loop {
            let some = queue.read(name("a"), after, page, usize::MAX).await.unwrap();
            assert!(some.len() <= page);
            let Some(last) = some.last() else { break };
            after = Some(last.id);
            read.extend(some.iter().map(|record| record.id));
        }
        assert_eq!(read, ids, "pages of {page}");
    }
    let read = |max, bytes| queue.read(name("a"), Some(ids[9]), max, bytes);
    assert_eq!(read(0, 1000).await.unwrap().len(), 0);
    assert_eq!(read(10, 0).await.unwrap().len(), 1, "the first one in any case");
    assert_eq!(read(10, 199).await.unwrap().len(), 1);
    assert_eq!(read(10, 200).await.unwrap().len(), 2);
    assert_eq!(read(10, usize::MAX).await.unwrap()[0].id, ids[10]);
    assert_eq!(queue.read(name("a"), Some(RecordId(u64::MAX)), 9, 9).await.unwrap().len(), 0);
    assert_eq!(queue.read(name("b"), None, 9, 9).await.unwrap().len(), 0);
}

async fn long_payloads_in_pieces_are_read_back_as_one(backend: Backend) {
    let queue = backend.open();
    let piece = |byte: u8, len: usize| Bytes::from(vec![byte; len]);
    let lengths = [0, 1, 7, 2047, 2048, 2049, 70_000, 1_000_000];
    let mut expected = Vec::new();
    for (n, first) in lengths.iter().enumerate() {
        let second = lengths[(n + 3) % lengths.len()];
        let payload = smallvec![piece(1, *first), piece(2, second), piece(3, n)];
        expected.push(payload.concat());
        let append = Append { queues: smallvec![name("a"), name("b")], payload };
        let batch = Batch { records: vec![append], ..Batch::default() };
        queue.commit(batch).await.unwrap();
    }
    let queue = backend.reopen(queue).await;
    for of in ["a", "b"] {
        let read = all(&queue, of).await;
        assert_eq!(read.len(), expected.len());
        assert!(read.iter().zip(&expected).all(|(record, bytes)| record.payload == bytes));
    }
}

async fn marks_only_grow_and_can_be_removed(backend: Backend) {
    let mut queue = backend.open();
    queue.commit(mark(7, Some(5))).await.unwrap();
    queue.commit(mark(7, Some(3))).await.unwrap();
    queue.commit(mark(u128::MAX, Some(u64::MAX))).await.unwrap();
    queue.commit(mark(8, None)).await.unwrap();
    for _ in 0..2 {
        assert_eq!(queue.mark(7).await.unwrap(), Some(5));
        assert_eq!(queue.mark(u128::MAX).await.unwrap(), Some(u64::MAX));
        assert_eq!(queue.mark(8).await.unwrap(), None);
        // Enough to seal the segment that holds the marks, and to remove it.
        for _ in 0..40 {
            let ids = queue.commit(records(&["a"], &[&"x".repeat(500)])).await.unwrap();
            queue.commit(ack("a", ids[0])).await.unwrap();
        }
        queue = backend.reopen(queue).await;
    }
    queue.commit(mark(7, None)).await.unwrap();
    queue.commit(mark(7, Some(1))).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(queue.mark(7).await.unwrap(), Some(1), "once removed it begins anew");
}

async fn verdicts_on_what_is_not_there_change_nothing(backend: Backend) {
    let queue = backend.open();
    let ids = queue.commit(records(&["a"], &["kept"])).await.unwrap();
    let verdicts = || {
        [
            Verdict::Ack,
            Verdict::Nack { delay: Duration::ZERO },
            Verdict::Park { reason: "no".into() },
            Verdict::Unpark,
        ]
    };
    for verdict in verdicts() {
        for id in [0, ids[0].0 + 1, u64::MAX] {
            queue.commit(settle("a", RecordId(id), verdict.clone())).await.unwrap();
        }
        queue.commit(settle("b", ids[0], verdict)).await.unwrap();
    }
    queue.commit(settle("a", ids[0], Verdict::Unpark)).await.unwrap();
    let later = queue.commit(records(&["a"], &["later"])).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await, ["kept", "later"]);
    assert_eq!(queue.parked(name("a"), None, 10).await.unwrap(), []);
    assert_eq!(queue.queues(String::new(), None, 10).await.unwrap(), [name("a")]);
    // What was acknowledged is as absent as what never was.
    queue.commit(ack("a", ids[0])).await.unwrap();
    for verdict in verdicts() {
        queue.commit(settle("a", ids[0], verdict)).await.unwrap();
    }
    assert_eq!(texts(&queue, "a").await, ["later"]);
    assert_eq!(all(&queue, "a").await[0].id, later[0]);
}

async fn a_nack_delays_and_counts(backend: Backend) {
    const DELAY: Duration = Duration::from_millis(150);
    let queue = backend.open();
    let ids = queue.commit(records(&["a"], &["delayed", "not"])).await.unwrap();
    let began = Instant::now();
    queue.commit(settle("a", ids[0], Verdict::Nack { delay: DELAY })).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await, ["delayed", "not"], "a reader sees it all the same");
    assert_eq!(all(&queue, "a").await[0].attempts, 1);
    let leased = queue.lease(name("a"), 10, Duration::from_secs(60)).await.unwrap();
    if began.elapsed() < DELAY {
        assert_eq!(leased.iter().map(|l| l.record.id).collect::<Vec<_>>(), [ids[1]]);
        std::thread::sleep(DELAY);
        let leased = queue.lease(name("a"), 10, Duration::from_secs(60)).await.unwrap();
        assert_eq!(leased[0].record.id, ids[0]);
        assert_eq!(leased[0].record.attempts, 1);
    }
    queue.commit(settle("a", ids[1], Verdict::Nack { delay: Duration::MAX })).await.unwrap();
    assert_eq!(queue.lease(name("a"), 10, Duration::MAX).await.unwrap().len(), 0);
}

async fn parking_sets_aside_and_unparking_puts_back_in_place(backend: Backend) {
    let queue = backend.open();
    let ids = queue.commit(records(&["a"], &["0", "1", "2"])).await.unwrap();
    let park = |reason: String| settle("a", ids[1], Verdict::Park { reason });
    queue.commit(park("because".into())).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await, ["0", "2"]);
    let parked = queue.parked(name("a"), None, 10).await.unwrap();
    assert_eq!((&parked[0].record.payload[..], &*parked[0].reason), (&b"1"[..], "because"));
    assert_eq!(queue.parked(name("a"), Some(ids[1]), 10).await.unwrap(), []);
    assert_eq!(queue.parked(name("a"), Some(ids[0]), 0).await.unwrap(), []);
    let stats = queue.stats(name("a")).await.unwrap();
    assert_eq!((stats.pending, stats.bytes, stats.parked), (2, 2, 1));
    assert_eq!(queue.lease(name("a"), 10, Duration::from_millis(1)).await.unwrap().len(), 2);
    // A refusal of what is set aside means nothing; a second reason replaces the first.
    queue.commit(settle("a", ids[1], Verdict::Nack { delay: Duration::ZERO })).await.unwrap();
    queue.commit(park("\u{20ac}".repeat(500))).await.unwrap();
    let parked = queue.parked(name("a"), None, 10).await.unwrap();
    assert_eq!((parked[0].reason.len(), parked[0].record.attempts), (999, 0));
    queue.commit(settle("a", ids[1], Verdict::Unpark)).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await, ["0", "1", "2"]);
    queue.commit(park("again".into())).await.unwrap();
    queue.commit(ack("a", ids[1])).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(texts(&queue, "a").await, ["0", "2"]);
    assert_eq!(queue.stats(name("a")).await.unwrap().parked, 0);
}

async fn a_lease_is_exclusive_until_it_ends(backend: Backend) {
    let queue = backend.open();
    queue.commit(records(&["a"], &["0", "1", "2"])).await.unwrap();
    assert_eq!(queue.lease(name("a"), 0, Duration::from_secs(60)).await.unwrap().len(), 0);
    let first = queue.lease(name("a"), 2, Duration::from_millis(50)).await.unwrap();
    assert_eq!(first.iter().map(|l| &l.record.payload[..]).collect::<Vec<_>>(), [b"0", b"1"]);
    queue.extend(first[1].lease, Duration::from_secs(60)).await.unwrap();
    let second = queue.lease(name("a"), 9, Duration::from_secs(60)).await.unwrap();
    assert!(second.iter().any(|l| l.record.payload == "2"));
    assert_eq!(texts(&queue, "a").await, ["0", "1", "2"], "a reader sees them all the same");
    std::thread::sleep(Duration::from_millis(60));
    let third = queue.lease(name("a"), 9, Duration::from_secs(60)).await.unwrap();
    let taken = second.iter().chain(&third).find(|l| l.record.payload == "0").unwrap();
    assert_eq!(taken.record.attempts, 1, "the first lease counts");
    assert_ne!(taken.lease, first[0].lease);
    assert!(matches!(queue.extend(first[0].lease, Duration::MAX).await, Err(QueueError::LeaseLost)));
    assert!(matches!(queue.settle(first[0].lease, Verdict::Ack).await, Err(QueueError::LeaseLost)));
    queue.settle(first[1].lease, Verdict::Ack).await.unwrap();
    assert_eq!(texts(&queue, "a").await, ["0", "2"]);
    let stats = queue.stats(name("a")).await.unwrap();
    assert_eq!((stats.pending, stats.leased), (2, 2));
}

async fn a_lease_is_settled_once_by_its_holder(backend: Backend) {
    let queue = backend.open();
    let ids = queue.commit(records(&["a"], &["0", "1", "2"])).await.unwrap();
    let leased = queue.lease(name("a"), 9, Duration::from_secs(60)).await.unwrap();
    // Together, so that they may share a group.
    let twice = join_all([
        queue.settle(leased[0].lease, Verdict::Ack),
        queue.settle(leased[0].lease, Verdict::Nack { delay: Duration::ZERO }),
    ]);
    let outcomes = twice.await;
    assert!(outcomes[0].is_ok() && matches!(outcomes[1], Err(QueueError::LeaseLost)), "{outcomes:?}");
    queue.settle(leased[1].lease, Verdict::Nack { delay: Duration::ZERO }).await.unwrap();
    queue.settle(leased[2].lease, Verdict::Park { reason: "bad".into() }).await.unwrap();
    for lease in &leased {
        let outcome = queue.extend(lease.lease, Duration::from_secs(1)).await;
        assert!(matches!(outcome, Err(QueueError::LeaseLost)), "{outcome:?}");
    }
    assert!(matches!(queue.settle(LeaseId(u64::MAX), Verdict::Ack).await, Err(QueueError::LeaseLost)));
    let again = queue.lease(name("a"), 9, Duration::from_secs(60)).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].record.id, again[0].record.attempts), (ids[1], 1), "one lease, one attempt");
    assert_eq!(queue.parked(name("a"), None, 9).await.unwrap()[0].record.id, ids[2]);
}

async fn attempts_and_parking_outlive_the_queue_and_leases_do_not(backend: Backend) {
    let queue = backend.open();
    queue.commit(records(&["a"], &["0", "1"])).await.unwrap();
    let leased = queue.lease(name("a"), 1, Duration::from_secs(3600)).await.unwrap();
    // Enough to seal the segment that holds them.
    for _ in 0..10 {
        queue.commit(records(&["b"], &[&"x".repeat(1000)])).await.unwrap();
    }
    let queue = backend.reopen(queue).await;
    if backend.is_durable() {
        assert!(matches!(queue.settle(leased[0].lease, Verdict::Ack).await, Err(QueueError::LeaseLost)));
        let again = queue.lease(name("a"), 9, Duration::from_secs(60)).await.unwrap();
        assert_eq!(again.iter().map(|l| l.record.attempts).collect::<Vec<_>>(), [1, 0]);
        queue.settle(again[1].lease, Verdict::Park { reason: "why".into() }).await.unwrap();
        let queue = backend.reopen(queue).await;
        let parked = queue.parked(name("a"), None, 9).await.unwrap();
        assert_eq!((parked[0].record.attempts, &*parked[0].reason), (1, "why"));
        assert_eq!(all(&queue, "a").await[0].attempts, 2);
    }
}

async fn a_verdict_in_a_batch_ends_the_lease(backend: Backend) {
    let queue = backend.open();
    let ids = queue.commit(records(&["a"], &["0", "1"])).await.unwrap();
    let leased = queue.lease(name("a"), 9, Duration::from_secs(60)).await.unwrap();
    queue.commit(ack("a", ids[0])).await.unwrap();
    queue.commit(settle("a", ids[1], Verdict::Nack { delay: Duration::ZERO })).await.unwrap();
    for lease in leased {
        assert!(matches!(queue.settle(lease.lease, Verdict::Ack).await, Err(QueueError::LeaseLost)));
    }
    assert_eq!(all(&queue, "a").await[0].attempts, 1, "the lease was the attempt");
    assert_eq!(queue.stats(name("a")).await.unwrap().leased, 0);
}

async fn purging_takes_everything_that_is_there(backend: Backend) {
    let queue = backend.open();
    let mut ids = Vec::new();
    for n in 0..50 {
        ids.extend(queue.commit(records(&["a", "b"], &[&n.to_string().repeat(200)])).await.unwrap());
    }
    queue.commit(settle("a", ids[3], Verdict::Park { reason: "x".into() })).await.unwrap();
    let leased = queue.lease(name("a"), 1, Duration::from_secs(60)).await.unwrap();
    queue.purge(name("a")).await.unwrap();
    queue.purge(name("absent")).await.unwrap();
    assert!(matches!(queue.settle(leased[0].lease, Verdict::Ack).await, Err(QueueError::LeaseLost)));
    let later = queue.commit(records(&["a"], &["later"])).await.unwrap();
    let queue = backend.reopen(queue).await;
    assert_eq!(all(&queue, "a").await.iter().map(|r| r.id).collect::<Vec<_>>(), later);
    assert_eq!(all(&queue, "b").await.len(), 50);
    assert_eq!(queue.parked(name("a"), None, 9).await.unwrap(), []);
    let stats = queue.stats(name("a")).await.unwrap();
    assert_eq!((stats.pending, stats.bytes, stats.parked), (1, 5, 0));
}

async fn statistics_count_what_is_there(backend: Backend) {
    let mut queue = backend.open();
    let mut ids = Vec::new();
    for n in 0..60 {
        ids.extend(queue.commit(records(&["a"], &[&"x".repeat(n * 5)])).await.unwrap());
    }
    queue.commit(ack("a", ids[0])).await.unwrap();
    queue.commit(ack("a", ids[30])).await.unwrap();
    queue.commit(settle("a", ids[1], Verdict::Park { reason: String::new() })).await.unwrap();
    let bytes = (0..60).sum::<u64>() * 5 - 150 - 5;
    for round in 0..2 {
        let stats = queue.stats(name("a")).await.unwrap();
        let expected =
            QueueStats { pending: 57, bytes, leased: 0, parked: 1, oldest: Some(ids[2]), as_of: ids[59] };
        assert_eq!(stats, expected, "round {round}");
        queue = backend.reopen(queue).await;
    }
    let nothing = QueueStats { as_of: ids[59], ..QueueStats::default() };
    assert_eq!(queue.stats(name("none")).await.unwrap(), nothing);
}

async fn names_of_queues_are_listed_in_order(backend: Backend) {
    let queue = backend.open();
    let names = ["a", "a/1", "a/10", "a/2", "b/\u{20ac}", "c"];
    for of in names.iter().rev() {
        queue.commit(records(&[of], &["x"])).await.unwrap();
    }
    let gone = queue.commit(records(&["a/11"], &["x"])).await.unwrap();
    queue.commit(ack("a/11", gone[0])).await.unwrap();
    let queue = backend.reopen(queue).await;
    let list = async |prefix: &str, after: Option<&str>, max| {
        let names = queue.queues(prefix.to_owned(), after.map(name), max).await.unwrap();
        names.iter().map(|name| name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(list("", None, 100).await, names);
    assert_eq!(list("a/", None, 100).await, ["a/1", "a/10", "a/2"]);
    assert_eq!(list("a/", None, 2).await, ["a/1", "a/10"]);
    assert_eq!(list("a/", Some("a/10"), 2).await, ["a/2"]);
    assert_eq!(list("a/", Some("a"), 2).await, ["a/1", "a/10"]);
    assert_eq!(list("b", Some("c"), 2).await.len(), 0);
    assert_eq!(list("", Some("c"), 2).await.len(), 0);
    assert_eq!(list("x", None, 2).await.len(), 0);
}

async fn limits_hold_at_their_edge(backend: Backend) {
    let queue = backend.open();
    let invalid = async |batch: Batch| {
        let outcome = queue.commit(batch).await;
        assert!(matches!(outcome, Err(QueueError::Invalid(_))), "{outcome:?}");
    };
    let of_length = |len: usize| {
        let append =
            Append { queues: smallvec![name("a")], payload: smallvec![Bytes::from(vec![b'x'; len])] };
        Batch { records: vec![append], ..Batch::default() }
    };
    queue.commit(of_length(MAX_PAYLOAD)).await.unwrap();
    invalid(of_length(MAX_PAYLOAD + 1)).await;
    let mut most = of_length(MAX_PAYLOAD);
    for _ in 1..MAX_BATCH_BYTES / MAX_PAYLOAD {
        most.records.push(most.records[0].clone());
    }
    queue.commit(most.clone()).await.unwrap();
    most.records.push(of_length(1).records.remove(0));
    invalid(most).await;
    queue.purge(name("a")).await.unwrap();

    let longest = "n".repeat(MAX_QUEUE_NAME);
    queue.commit(records(&[&longest], &["x"])).await.unwrap();
    assert_eq!(texts(&queue, &longest).await, ["x"]);
    for wrong in ["", "a\nb", "\u{7f}", &"n".repeat(MAX_QUEUE_NAME + 1)] {
        invalid(records(&[wrong], &["x"])).await;
        invalid(ack(wrong, RecordId(1))).await;
        assert!(matches!(queue.stats(name(wrong)).await, Err(QueueError::Invalid(_))));
        assert!(matches!(queue.purge(name(wrong)).await, Err(QueueError::Invalid(_))));
    }
    let many: Vec<_> = (0..=MAX_QUEUES).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    queue.commit(records(&many[1..], &["x"])).await.unwrap();
    invalid(records(&many, &["x"])).await;
    invalid(records(&["a", "b", "a"], &["x"])).await;
    invalid(records(&[], &["x"])).await;

    queue.commit(records(&["a"], &vec!["x"; MAX_BATCH_ITEMS])).await.unwrap();
    invalid(records(&["a"], &vec!["x"; MAX_BATCH_ITEMS + 1])).await;
    let settles =
        vec![Settle { queue: name("a"), id: RecordId(1), verdict: Verdict::Ack }; MAX_BATCH_ITEMS + 1];
    invalid(Batch { settles, ..Batch::default() }).await;
    invalid(Batch { marks: vec![mark(1, None).marks[0]; MAX_BATCH_ITEMS + 1], ..Batch::default() }).await;
    let queue = backend.reopen(queue).await;
    assert_eq!(queue.stats(name("a")).await.unwrap().pending, MAX_BATCH_ITEMS as u64);
    let everything: Vec<_> = all(&queue, "a").await;
    let settles = everything.iter().map(|r| Settle { queue: name("a"), id: r.id, verdict: Verdict::Ack });
    queue.commit(Batch { settles: settles.collect(), ..Batch::default() }).await.unwrap();
    assert_eq!(queue.stats(name("a")).await.unwrap().pending, 0);
}

async fn many_threads_commit_and_acknowledge(backend: Backend) {
    let queue = backend.open();
    let work = |thread: usize| {
        let of = format!("q{}", thread % 3);
        for n in 0..60 {
            let text = format!("{thread} {n}");
            let ids = block_on(queue.commit(records(&[&of, "all"], &[&text]))).unwrap();
            if n % 3 != 0 {
                block_on(queue.commit(ack(&of, ids[0]))).unwrap();
            }
            block_on(queue.read(name(&of), None, 5, usize::MAX)).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || work(thread));
        }
    });
    let queue = backend.reopen(queue).await;
    assert_eq!(all(&queue, "all").await.len(), 360);
    let ids: Vec<_> = all(&queue, "all").await.iter().map(|record| record.id).collect();
    assert!(ids.is_sorted_by(|a, b| a < b));
    for of in ["q0", "q1", "q2"] {
        assert_eq!(all(&queue, of).await.len(), 40);
    }
}

async fn closing_commits_what_was_queued_and_refuses_the_rest(backend: Backend) {
    let queue = backend.open();
    let commits: Vec<_> =
        (0..50).map(|n: u32| queue.commit(records(&["a"], &[n.to_string().as_str()]))).collect();
    queue.close().await.unwrap();
    for commit in commits {
        commit.await.unwrap();
    }
    assert!(matches!(queue.close().await, Err(QueueError::Closed) | Ok(())));
    let closed =
        |outcome: Result<(), QueueError>| assert!(matches!(outcome, Err(QueueError::Closed)), "{outcome:?}");
    closed(queue.commit(records(&["a"], &["x"])).await.map(|_| ()));
    closed(queue.read(name("a"), None, 1, 1).await.map(|_| ()));
    closed(queue.lease(name("a"), 1, Duration::ZERO).await.map(|_| ()));
    closed(queue.extend(LeaseId(1), Duration::ZERO).await);
    closed(queue.settle(LeaseId(1), Verdict::Ack).await);
    closed(queue.parked(name("a"), None, 1).await.map(|_| ()));
    closed(queue.purge(name("a")).await);
    closed(queue.mark(1).await.map(|_| ()));
    closed(queue.stats(name("a")).await.map(|_| ()));
    closed(queue.queues(String::new(), None, 1).await.map(|_| ()));
    // The old one still exists: its folder is free all the same.
    if backend.is_durable() {
        let again: Arc<dyn QueueBackend> = backend.open();
        assert_eq!(all(&again, "a").await.len(), 50);
        assert_eq!(payload("x").len(), 1);
    }
}

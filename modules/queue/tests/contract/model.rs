//! Random operations, compared with a simple model.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use waystation_committer::block_on;
use waystation_core::queue::{
    Append, Batch, LeaseId, Mark, QueueBackend, QueueError, QueueStats, RecordId, Settle, Verdict,
};
use waystation_queue::Kind;

use crate::support::{Backend, name, payload};

const QUEUES: [&str; 3] = ["a/juliet", "a/romeo", "b"];
/// Longer than any test: what waits or is leased so long stays so.
const LONG: Duration = Duration::from_secs(3600);

/// What is done to the queue. Records are named by how long ago they were appended.
#[derive(Clone, Debug)]
enum Step {
    Commit { records: Vec<(u8, usize)>, settles: Vec<(usize, usize, Say)>, marks: Vec<(u8, Option<u64>)> },
    Lease { queue: usize, max: usize },
    SettleLease { lease: usize, say: Say },
    Read { queue: usize, after: usize, max: usize, bytes: usize },
    Purge(usize),
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Say {
    Ack,
    Later,
    Now,
    Park,
    Unpark,
}

impl Say {
    fn verdict(self) -> Verdict {
        match self {
            Self::Ack => Verdict::Ack,
            Self::Later => Verdict::Nack { delay: LONG },
            Self::Now => Verdict::Nack { delay: Duration::ZERO },
            Self::Park => Verdict::Park { reason: "reason".to_owned() },
            Self::Unpark => Verdict::Unpark,
        }
    }
}

fn say() -> impl Strategy<Value = Say> {
    prop_oneof![8 => Just(Say::Ack), 1 => Just(Say::Later), 1 => Just(Say::Now), 1 => Just(Say::Park), 1 => Just(Say::Unpark)]
}

fn step() -> impl Strategy<Value = Step> {
    let queue = || 0..QUEUES.len();
    let length = prop_oneof![6 => 0..300_usize, 1 => 1000..6000_usize];
    let commit = (
        prop::collection::vec((1..8_u8, length), 0..5),
        prop::collection::vec((queue(), 0..60_usize, say()), 0..6),
        prop::collection::vec((0..3_u8, prop::option::weighted(0.8, 0..50_u64)), 0..2),
    );
    prop_oneof![
        12 => commit.prop_map(|(records, settles, marks)| Step::Commit { records, settles, marks }),
        2 => (queue(), 0..4_usize).prop_map(|(queue, max)| Step::Lease { queue, max }),
        2 => (0..6_usize, say()).prop_map(|(lease, say)| Step::SettleLease { lease, say }),
        3 => (queue(), 0..60_usize, 0..20_usize, 0..3000_usize)
            .prop_map(|(queue, after, max, bytes)| Step::Read { queue, after, max, bytes }),
        1 => queue().prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Default)]
struct Item {
    text: String,
    attempts: u32,
    waits: bool,
    parked: bool,
    lease: Option<LeaseId>,
}

#[derive(Default)]
struct Model {
    queues: [BTreeMap<u64, Item>; 3],
    marks: HashMap<u128, u64>,
    ids: Vec<u64>,
    leases: Vec<(LeaseId, usize, u64)>,
    texts: usize,
}

impl Model {
    fn id(&self, ago: usize) -> RecordId {
        let index = self.ids.len().checked_sub(1 + ago);
        RecordId(index.map_or(u64::MAX - 1, |index| self.ids[index]))
    }

    fn settle(&mut self, queue: usize, id: u64, say: Say) {
        let Some(item) = self.queues[queue].get_mut(&id) else { return };
        match say {
            Say::Ack => {
                self.queues[queue].remove(&id);
            }
            Say::Later | Say::Now if item.parked => {}
            Say::Later | Say::Now => {
                item.waits = matches!(say, Say::Later);
                item.attempts += u32::from(item.lease.take().is_none());
            }
            Say::Park => {
                item.parked = true;
                item.waits = false;
                item.lease = None;
            }
            Say::Unpark => item.parked = false,
        }
    }

    fn held(&self, lease: LeaseId, queue: usize, id: u64) -> bool {
        self.queues[queue].get(&id).is_some_and(|item| item.lease == Some(lease))
    }

    fn stats(&self, queue: usize) -> QueueStats {
        let items = &self.queues[queue];
        let pending = || items.iter().filter(|(_, item)| !item.parked);
        QueueStats {
            pending: pending().count() as u64,
            bytes: pending().map(|(_, item)| item.text.len() as u64).sum(),
            leased: pending().filter(|(_, item)| item.lease.is_some()).count() as u64,
            parked: items.values().filter(|item| item.parked).count() as u64,
            oldest: pending().next().map(|(id, _)| RecordId(*id)),
            as_of: RecordId(0),
        }
    }
}

async fn check(queue: &Arc<dyn QueueBackend>, model: &Model, n: usize) {
    for (index, of) in QUEUES.iter().enumerate() {
        let stats = QueueStats { as_of: RecordId(0), ..queue.stats(name(of)).await.unwrap() };
        assert_eq!(stats, model.stats(index), "step {n}: {of}");
        let items = || model.queues[index].iter();
        let read = queue.read(name(of), None, usize::MAX, usize::MAX).await.unwrap();
        let read =
            read.iter().map(|r| (r.id.0, String::from_utf8_lossy(&r.payload).into_owned(), r.attempts));
        let pending = items().filter(|(_, item)| !item.parked);
        let pending = pending.map(|(id, item)| (*id, item.text.clone(), item.attempts));
        assert_eq!(read.collect::<Vec<_>>(), pending.collect::<Vec<_>>(), "step {n}: {of}");
        let parked = queue.parked(name(of), None, usize::MAX).await.unwrap();
        let parked = parked.iter().map(|p| (p.record.id.0, p.record.attempts, p.record.payload.len()));
        let expected = items().filter(|(_, item)| item.parked);
        let expected = expected.map(|(id, item)| (*id, item.attempts, item.text.len()));
        assert_eq!(parked.collect::<Vec<_>>(), expected.collect::<Vec<_>>(), "step {n}: parked of {of}");
    }
    for key in 0..3 {
        assert_eq!(queue.mark(key).await.unwrap(), model.marks.get(&key).copied(), "step {n}");
    }
}

async fn run(kind: Kind, steps: Vec<Step>) {
    let backend = Backend::new(kind);
    let mut queue = backend.open();
    let mut model = Model::default();
    for (n, step) in steps.into_iter().enumerate() {
        match step {
            Step::Commit { records, settles, marks } => {
                let mut batch = Batch::default();
                let mut texts = Vec::new();
                for (bits, len) in &records {
                    model.texts += 1;
                    let text = format!("{}{}", model.texts, "x".repeat(*len));
                    let queues = (0..3).filter(|bit| bits & (1 << bit) != 0).map(|bit| name(QUEUES[bit]));
                    batch.records.push(Append { queues: queues.collect(), payload: payload(&text) });
                    texts.push((*bits, text));
                }
                for (of, ago, say) in &settles {
                    let settle =
                        Settle { queue: name(QUEUES[*of]), id: model.id(*ago), verdict: say.verdict() };
                    batch.settles.push(settle);
                }
                batch.marks =
                    marks.iter().map(|(key, value)| Mark { key: u128::from(*key), value: *value }).collect();
                let ids = queue.commit(batch).await.unwrap();
                assert_eq!(ids.len(), records.len());
                for (of, ago, say) in settles {
                    model.settle(of, model.id(ago).0, say);
                }
                for (key, value) in marks {
                    match value {
                        Some(value) => {
                            let present = model.marks.entry(u128::from(key)).or_insert(value);
                            *present = value.max(*present);
                        }
                        None => drop(model.marks.remove(&u128::from(key))),
                    }
                }
                for (id, (bits, text)) in ids.iter().zip(texts) {
                    assert!(model.ids.last().is_none_or(|last| *last < id.0), "step {n}: ids grow");
                    model.ids.push(id.0);
                    for bit in (0..3).filter(|bit| bits & (1 << bit) != 0) {
                        model.queues[bit].insert(id.0, Item { text: text.clone(), ..Item::default() });
                    }
                }
            }
            Step::Lease { queue: of, max } => {
                let leased = queue.lease(name(QUEUES[of]), max, LONG).await.unwrap();
                let mut expected = Vec::new();
                for (id, item) in &mut model.queues[of] {
                    if expected.len() < max && !item.parked && !item.waits && item.lease.is_none() {
                        expected.push((*id, item.attempts));
                        let lease = leased.get(expected.len() - 1).map(|leased| leased.lease);
                        item.lease = lease;
                        item.attempts += 1;
                        model.leases.extend(lease.map(|lease| (lease, of, *id)));
                    }
                }
                let leased: Vec<_> = leased.iter().map(|l| (l.record.id.0, l.record.attempts)).collect();
                assert_eq!(leased, expected, "step {n}");
            }
            Step::SettleLease { lease, say } => {
                let Some(&(lease, of, id)) = model.leases.iter().rev().nth(lease) else { continue };
                let held = model.held(lease, of, id);
                let outcome = queue.settle(lease, say.verdict()).await;
                match outcome {
                    Ok(()) => assert!(held, "step {n}"),
                    Err(QueueError::LeaseLost) => assert!(!held, "step {n}"),
                    Err(error) => panic!("step {n}: {error}"),
                }
                if held {
                    model.settle(of, id, say);
                }
            }
            Step::Read { queue: of, after, max, bytes } => {
                let after = model.id(after);
                let read = queue.read(name(QUEUES[of]), Some(after), max, bytes).await.unwrap();
                let mut expected = Vec::new();
                let mut sum = 0;
                for (id, item) in model.queues[of].iter().filter(|(id, item)| **id > after.0 && !item.parked)
                {
                    sum += item.text.len();
                    if expected.len() == max || (sum > bytes && !expected.is_empty()) {
                        break;
                    }
                    expected.push(*id);
                }
                assert_eq!(read.iter().map(|r| r.id.0).collect::<Vec<_>>(), expected, "step {n}");
            }
            Step::Purge(of) => {
                queue.purge(name(QUEUES[of])).await.unwrap();
                model.queues[of].clear();
            }
            Step::Reopen if backend.is_durable() => {
                queue = backend.reopen(queue).await;
                model.queues.iter_mut().flat_map(|q| q.values_mut()).for_each(|item| item.lease = None);
                model.leases.clear();
            }
            Step::Reopen => {}
        }
        if n % 8 == 0 {
            check(&queue, &model, n).await;
        }
    }
    let queue = backend.reopen(queue).await;
    if backend.is_durable() {
        model.queues.iter_mut().flat_map(|q| q.values_mut()).for_each(|item| item.lease = None);
    }
    check(&queue, &model, usize::MAX).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_is_like_the_model(steps in prop::collection::vec(step(), 1..80)) {
        block_on(run(Kind::Log, steps));
    }

    #[test]
    fn memory_is_like_the_model(steps in prop::collection::vec(step(), 1..80)) {
        block_on(run(Kind::Memory, steps));
    }
}

//! What was done to a queue and what was answered, and whether what is there afterwards fits it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use smallvec::smallvec;
use waystation_committer::block_on;
use waystation_core::queue::{
    Append, Batch, Mark, QueueBackend, QueueError, QueueName, RecordId, Settle, Verdict,
};

pub(crate) const QUEUES: [&str; 2] = ["a/juliet@example.org", "a/romeo@example.org"];

/// How much is known of whether something took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Known {
    /// It was refused.
    No,
    /// The answer leaves it open.
    Open,
    Yes,
}

/// A record that was appended.
#[derive(Clone, Debug)]
struct Sent {
    text: String,
    /// Which batch it was part of.
    batch: usize,
    queues: Vec<usize>,
    stored: Known,
    id: Option<RecordId>,
    acknowledged: [Known; 2],
}

/// See the module's header.
#[derive(Clone, Default, Debug)]
pub(crate) struct History {
    sent: Vec<Sent>,
    batches: usize,
    mark: u64,
    mark_open: u64,
    /// A commit has failed in a way that stops the queue.
    stopped: bool,
}

fn queue_name(index: usize) -> QueueName {
    QueueName::from(QUEUES[index])
}

/// A text that says who it is, of about a length.
fn text(number: usize, length: usize) -> String {
    format!("record {number} {}", "x".repeat(length))
}

impl History {
    /// One step of the script: a batch of records, acknowledgements of older ones, a mark.
    pub(crate) fn step(&mut self, queue: &Arc<dyn QueueBackend>, n: usize, flush_failed: impl Fn() -> bool) {
        let mut batch = Batch::default();
        let number = self.batches;
        self.batches += 1;
        let first = self.sent.len();
        for k in 0..n % 3 + usize::from(n.is_multiple_of(4)) {
            let queues = [vec![0], vec![1], vec![0, 1]][(n + k) % 3].clone();
            let text = text(self.sent.len(), (n * 37 + k * 211) % 700);
            // In two pieces, one of which may be long enough to be written from where it is.
            let bytes = Bytes::from(text.clone());
            let at = bytes.len() / 3;
            batch.records.push(Append {
                queues: queues.iter().map(|queue| queue_name(*queue)).collect(),
                payload: smallvec![bytes.slice(..at), bytes.slice(at..)],
            });
            let (stored, acknowledged) = (Known::Open, [Known::No; 2]);
            self.sent.push(Sent { text, batch: number, queues, stored, id: None, acknowledged });
        }
        // All but every seventh record is acknowledged some time later, so that segments are
        // removed, and some are compacted.
        let mut settled = Vec::new();
        for (index, sent) in self.sent.iter().enumerate() {
            let due = index % 7 != 3 && index + 6 <= first && sent.stored == Known::Yes;
            for &of in sent.queues.iter().filter(|_| due) {
                if sent.acknowledged[of] == Known::No && settled.len() < 5 {
                    settled.push((index, of));
                }
            }
        }
        for (index, of) in &settled {
            if let Some(id) = self.sent[*index].id {
                batch.settles.push(Settle { queue: queue_name(*of), id, verdict: Verdict::Ack });
            }
        }
        if let Some(sent) = self.sent.iter().rev().find(|sent| sent.stored == Known::Yes)
            && let Some(id) = sent.id
        {
            // Neither changes what is pending; both are more kinds of change to recover.
            let queue = queue_name(sent.queues[0]);
            let verdict = Verdict::Nack { delay: Duration::from_secs(n as u64 % 2 * 1000) };
            batch.settles.push(Settle { queue, id, verdict });
        }
        let mark = self.mark_open + 1;
        batch.marks.push(Mark { key: 7, value: Some(mark) });
        // The queue goes on after it has answered, and may fail then.
        let failed_before = flush_failed();
        let outcome = block_on(queue.commit(batch));
        let known = match &outcome {
            Ok(_) => Known::Yes,
            Err(QueueError::Full) => Known::No,
            Err(QueueError::Io(_) | QueueError::Closed) => Known::Open,
            Err(error) => panic!("step {n}: {error}"),
        };
        assert!(known == Known::Open || !self.stopped, "step {n}: {outcome:?} after the queue had stopped");
        assert!(known != Known::Yes || !failed_before, "step {n}: success after a failed flush");
        self.stopped |= known == Known::Open;
        self.mark_open = mark;
        if known == Known::Yes {
            self.mark = mark;
        }
        let ids = outcome.unwrap_or_default();
        for (index, sent) in self.sent[first..].iter_mut().enumerate() {
            sent.stored = known;
            sent.id = ids.get(index).copied();
        }
        for (index, of) in settled {
            self.sent[index].acknowledged[of] = known;
        }
    }

    /// Takes back what is known of the last step, as if the crash had come before its answer.
    pub(crate) fn reopen_last(&mut self, before: &History) {
        let known = before.sent.len();
        for (index, sent) in self.sent.iter_mut().enumerate() {
            if index >= known {
                sent.stored = Known::Open;
                continue;
            }
            for of in 0..2 {
                if sent.acknowledged[of] != before.sent[index].acknowledged[of] {
                    sent.acknowledged[of] = Known::Open;
                }
            }
        }
        self.mark = before.mark;
    }

    /// Asserts that what is in the queue fits what was answered, and learns what was open.
    pub(crate) fn check(&mut self, queue: &Arc<dyn QueueBackend>) {
        self.stopped = false;
        let by_text: HashMap<String, usize> =
            self.sent.iter().enumerate().map(|(index, sent)| (sent.text.clone(), index)).collect();
        let mut found: [BTreeSet<usize>; 2] = [BTreeSet::new(), BTreeSet::new()];
        let mut ids: BTreeMap<u64, usize> = BTreeMap::new();
        for (of, there) in found.iter_mut().enumerate() {
            let records =
                block_on(queue.read(queue_name(of), None, usize::MAX, usize::MAX)).expect("readable");
            assert!(records.is_sorted_by(|a, b| a.id < b.id), "the order of ids");
            let stats = block_on(queue.stats(queue_name(of))).expect("readable");
            assert_eq!(stats.pending, records.len() as u64, "figures fit what is there");
            assert_eq!(stats.bytes, records.iter().map(|r| r.payload.len() as u64).sum::<u64>());
            for record in records {
                let text = String::from_utf8(record.payload.to_vec()).expect("what was written");
                let index = *by_text.get(&text).unwrap_or_else(|| panic!("never sent: {text}"));
                let sent = &self.sent[index];
                assert!(sent.queues.contains(&of), "in the wrong queue: {sent:?}");
                assert_ne!(sent.stored, Known::No, "refused and stored: {sent:?}");
                assert_ne!(sent.acknowledged[of], Known::Yes, "acknowledged and served: {sent:?}");
                assert!(sent.id.is_none_or(|id| id == record.id), "another id: {sent:?} {:?}", record.id);
                assert_eq!(*ids.entry(record.id.0).or_insert(index), index, "two records of one id");
                there.insert(index);
            }
        }
        let mut parts: HashMap<usize, bool> = HashMap::new();
        for (index, sent) in self.sent.iter_mut().enumerate() {
            for &of in &sent.queues {
                let there = found[of].contains(&index);
                if sent.stored == Known::Yes && sent.acknowledged[of] == Known::No {
                    assert!(there, "lost: {sent:?} of {of}");
                }
                if sent.stored == Known::Open {
                    // Whole or not at all: nothing of an open batch is acknowledged before it.
                    let whole = *parts.entry(sent.batch).or_insert(there);
                    assert_eq!(whole, there, "half of a batch: {sent:?}");
                }
                if sent.acknowledged[of] == Known::Open {
                    sent.acknowledged[of] = if there { Known::No } else { Known::Yes };
                }
            }
            if sent.stored == Known::Open {
                let stored = parts.get(&sent.batch) == Some(&true);
                sent.stored = if stored { Known::Yes } else { Known::No };
                sent.id = ids.iter().find(|(_, found)| **found == index).map(|(id, _)| RecordId(*id));
            }
        }
        let mark = block_on(queue.mark(7)).expect("readable").unwrap_or(0);
        assert!(
            mark >= self.mark && mark <= self.mark_open,
            "mark {mark}, not {} to {}",
            self.mark,
            self.mark_open
        );
        self.mark = mark;
        self.mark_open = self.mark_open.max(mark);
        // A new record gets an id that no record ever had.
        let last = self.sent.iter().filter_map(|sent| sent.id).max().unwrap_or(RecordId(0));
        let append = Append { queues: smallvec![QueueName::from("probe")], payload: smallvec![] };
        let probe =
            block_on(queue.commit(Batch { records: vec![append], ..Batch::default() })).expect("it works");
        assert!(probe[0] > last, "{probe:?} after {last:?}");
        let settle = Settle { queue: "probe".into(), id: probe[0], verdict: Verdict::Ack };
        block_on(queue.commit(Batch { settles: vec![settle], ..Batch::default() })).expect("it works");
    }
}

//! What the tests of the contract share: a back-end in a temporary folder, and short ways to say
//! what goes in and to see what is there.

use std::sync::Arc;

use bytes::Bytes;
use smallvec::smallvec;
use tempfile::TempDir;
use waystation_core::queue::{
    Append, Batch, Mark, Payload, QueueBackend, QueueName, Record, RecordId, Settle, Verdict,
};
use waystation_queue::{Kind, MIN_SEGMENT, Options, memory, open};

/// An engine with a folder of its own.
pub(crate) struct Backend {
    kind: Kind,
    folder: TempDir,
}

impl Backend {
    /// With an empty folder.
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// Whether records outlive the queue.
    pub(crate) fn is_durable(&self) -> bool {
        self.kind != Kind::Memory
    }

    /// Opens the queue: with the smallest segments, so that they are sealed and removed too.
    pub(crate) fn open(&self) -> Arc<dyn QueueBackend> {
        let options = Options { segment_bytes: MIN_SEGMENT, min_free_bytes: Some(0), ..Options::default() };
        match self.kind {
            Kind::Log => open(self.folder.path(), &options).expect("the queue opens"),
            Kind::Memory => memory(),
        }
    }

    /// Closes a queue, which must have no other owner, and opens it again; a queue in memory, which
    /// would be empty, goes on instead.
    pub(crate) async fn reopen(&self, queue: Arc<dyn QueueBackend>) -> Arc<dyn QueueBackend> {
        if !self.is_durable() {
            return queue;
        }
        queue.close().await.expect("the queue closes");
        drop(queue);
        self.open()
    }
}

pub(crate) fn name(text: &str) -> QueueName {
    QueueName::from(text)
}

pub(crate) fn payload(text: &str) -> Payload {
    smallvec![Bytes::copy_from_slice(text.as_bytes())]
}

/// A batch of one record per text, all in the same queues.
pub(crate) fn records(queues: &[&str], texts: &[&str]) -> Batch {
    let queues: smallvec::SmallVec<[QueueName; 2]> = queues.iter().map(|queue| name(queue)).collect();
    let records = texts.iter().map(|text| Append { queues: queues.clone(), payload: payload(text) });
    Batch { records: records.collect(), ..Batch::default() }
}

pub(crate) fn settle(queue: &str, id: RecordId, verdict: Verdict) -> Batch {
    Batch { settles: vec![Settle { queue: name(queue), id, verdict }], ..Batch::default() }
}

pub(crate) fn ack(queue: &str, id: RecordId) -> Batch {
    settle(queue, id, Verdict::Ack)
}

pub(crate) fn mark(key: u128, value: Option<u64>) -> Batch {
    Batch { marks: vec![Mark { key, value }], ..Batch::default() }
}

/// Every pending record of a queue.
pub(crate) async fn all(queue: &Arc<dyn QueueBackend>, of: &str) -> Vec<Record> {
    queue.read(name(of), None, usize::MAX, usize::MAX).await.expect("readable")
}

/// The payloads of every pending record.
pub(crate) async fn texts(queue: &Arc<dyn QueueBackend>, of: &str) -> Vec<String> {
    let text = |record: &Record| String::from_utf8_lossy(&record.payload).into_owned();
    all(queue, of).await.iter().map(text).collect()
}

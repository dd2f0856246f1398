//! The durable queue: records appended to the log and acknowledged.
//!
//! What must hold: one batch is under way at a time, so that the log's thread, which is counted as
//! well, finds the same groups in each run; nothing is flushed, for that is the kernel's work.

use bytes::Bytes;
use smallvec::smallvec;
use waystation_core::queue::{Append, Batch, QueueName, RecordId, Settle, Verdict};
use waystation_core::storage::Durability;
use waystation_queue::Options;

use crate::{Failure, ROUND, in_time, message, on_this_thread};

/// Ten messages a batch, each in the queues of both accounts, with the acknowledgements of the
/// batch before: what the intake commits when ten are under way.
pub(crate) fn append(messages: usize) -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let options = Options { durability: Durability::Os, ..Options::default() };
    let log = waystation_queue::open(folder.path(), &options)?;
    let names = ["a/juliet@localhost", "a/romeo@localhost"].map(QueueName::from);
    let message = Bytes::from(message());
    let end = memchr::memchr(b'>', &message).ok_or("a message without a start tag")?;
    let append = Append {
        queues: names.iter().cloned().collect(),
        payload: smallvec![message.slice(..end), message.slice(end..)],
    };
    let commit_all = async {
        let mut before: Vec<RecordId> = Vec::new();
        for _ in 0..messages / ROUND {
            let acknowledged = before.iter().flat_map(|id| names.iter().map(move |name| (name, *id)));
            let batch = Batch {
                records: vec![append.clone(); ROUND],
                settles: acknowledged
                    .map(|(queue, id)| Settle { queue: queue.clone(), id, verdict: Verdict::Ack })
                    .collect(),
                marks: Vec::new(),
            };
            before = log.commit(batch).await?;
        }
        log.close().await?;
        Ok(())
    };
    on_this_thread(in_time(commit_all))
}

//! A few threads that read files, so that a slow device does not hold up a caller's event loop.
//!
//! Threads of our own rather than tokio's blocking pool: queues are called from many
//! single-threaded runtimes, each of which would start a pool of up to 512 threads, and from
//! threads without any runtime. Here the number is fixed, and at the limit a read's future waits.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};
use waystation_core::queue::QueueError;

type Job = Box<dyn FnOnce() + Send>;

/// See the module's header. Its threads end when it is dropped.
pub(crate) struct Readers {
    /// One per job that is queued or runs.
    permits: Arc<Semaphore>,
    jobs: SyncSender<Job>,
}

impl Readers {
    /// Starts `threads` threads.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        // With a permit per thread, the channel never holds more than it has room for.
        let (jobs, queue) = sync_channel(threads);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..threads {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name(format!("queue-read-{index}")).spawn(move || work(&queue))?;
        }
        Ok(Self { permits: Arc::new(Semaphore::new(threads)), jobs })
    }

    /// Runs `job` on one of the threads.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await.map_err(|_| QueueError::Closed)?;
        let (reply, outcome) = oneshot::channel();
        let job = Box::new(move || {
            let result = job();
            // Only now is there a free thread, even if the caller has gone meanwhile.
            drop(permit);
            let _ = reply.send(result);
        });
        self.jobs.try_send(job).map_err(|_| QueueError::Closed)?;
        // Unanswered means that the job panicked; the panic's text went to the log.
        outcome.await.unwrap_or_else(|_| Err(QueueError::Io("reading failed inside the queue".to_owned())))
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A panic costs the read, not the thread.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a read panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn more_jobs_than_threads_all_run_and_a_panic_costs_only_its_own() {
        let readers = Readers::start(2).unwrap();
        for round in 0..3 {
            let jobs = (0..20).map(|n| {
                readers.run(move || {
                    assert_ne!(n, 7, "the panic that this test wants");
                    Ok(n)
                })
            });
            let results = futures_util::future::join_all(jobs).await;
            for (n, result) in results.into_iter().enumerate() {
                assert_eq!(result.ok(), (n != 7).then_some(n), "round {round}");
            }
        }
    }

    #[tokio::test]
    async fn a_dropped_future_gives_its_permit_back() {
        let readers = Readers::start(1).unwrap();
        let (release, blocked) = sync_channel::<()>(0);
        let first = readers.run(move || {
            let _ = blocked.recv();
            Ok(())
        });
        // Polled once, so that the job is running, then abandoned.
        assert!(futures_util::FutureExt::now_or_never(first).is_none());
        drop(release);
        assert_eq!(readers.run(|| Ok(5)).await.unwrap(), 5);
    }
}

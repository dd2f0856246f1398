//! A few threads that read, so that a slow device or a long scan does not hold up a caller's event
//! loop.
//!
//! What must hold: their number is fixed, and at the limit a read's future waits, holding nothing
//! but its own job; a job that panics costs its read, never a thread.
//!
//! Threads of our own rather than tokio's blocking pool: stores are called from many single-threaded
//! runtimes, each of which would start a pool of up to 512 threads, and from threads without any.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, oneshot};

use crate::Failure;

type Job = Box<dyn FnOnce() + Send>;

/// The threads that read for a store. They end after what they were given once this is dropped.
pub struct Readers {
    /// One per job that is queued or runs.
    permits: Arc<Semaphore>,
    jobs: SyncSender<Job>,
}

impl Readers {
    /// Starts `threads` threads, named `name` with a number. Only the first 15 bytes of a thread's
    /// name show outside the process.
    ///
    /// # Errors
    /// Those of the system, which did not start a thread; the ones before it end by themselves.
    pub fn start(name: &'static str, threads: usize) -> io::Result<Self> {
        // With a permit per thread, the channel never holds more than it has room for.
        let (jobs, queue) = sync_channel(threads);
        let queue = Arc::new(Mutex::new(queue));
        for index in 0..threads {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name(format!("{name}-{index}")).spawn(move || work(name, &queue))?;
        }
        Ok(Self { permits: Arc::new(Semaphore::new(threads)), jobs })
    }

    /// Runs `job` on one of the threads, once one is free. A job that has begun runs to its end even
    /// if the future is dropped.
    ///
    /// # Errors
    /// What the job answers; [`Failure::panicked`] when it panicked; [`Failure::closed`] when the
    /// threads are gone.
    pub async fn run<T: Send + 'static, E: Failure>(
        &self,
        job: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, E> {
        let permits = Arc::clone(&self.permits);
        let permit = permits.acquire_owned().await.map_err(|_| E::closed())?;
        let (reply, outcome) = oneshot::channel();
        let job = Box::new(move || {
            let result = job();
            // Only now is there a free thread, even if the caller has gone meanwhile.
            drop(permit);
            let _ = reply.send(result);
        });
        self.jobs.try_send(job).map_err(|_| E::closed())?;
        // Unanswered means that the job panicked; the panic's text went to the log.
        outcome.await.unwrap_or_else(|_| Err(E::panicked()))
    }
}

fn work(name: &str, queue: &Mutex<Receiver<Job>>) {
    loop {
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A panic costs the read, not the thread.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!(threads = name, "a read panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use waystation_core::storage::StorageError;

    use super::*;

    #[tokio::test]
    async fn more_jobs_than_threads_all_run_and_a_panic_costs_only_its_own() {
        let readers = Readers::start("test-read", 2).unwrap();
        for round in 0..3 {
            let jobs = (0..20).map(|n| {
                readers.run(move || {
                    assert_ne!(n, 7, "the panic that this test wants");
                    Ok::<_, StorageError>(n)
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
        let readers = Readers::start("test-read", 1).unwrap();
        let (release, blocked) = sync_channel::<()>(0);
        let first = readers.run(move || {
            let _ = blocked.recv();
            Ok::<_, StorageError>(())
        });
        // Polled once, so that the job is running, then abandoned.
        assert!(futures_util::FutureExt::now_or_never(first).is_none());
        drop(release);
        assert_eq!(readers.run(|| Ok::<_, StorageError>(5)).await.unwrap(), 5);
    }
}

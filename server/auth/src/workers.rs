//! Where passwords are hashed: threads that block no session.
//!
//! What must hold: no more hashes run at once than there are permits, no more wait than the
//! queue holds, and a caller that goes away frees its place no sooner than its work is done.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Too much waits already, or the runtime is going down: refuse the login for now
/// ([`SaslError::TemporaryAuthFailure`](crate::SaslError::TemporaryAuthFailure)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being checked")]
pub struct Busy;

/// Runs password hashes on the blocking threads of the tokio runtime. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PasswordWorkers {
    /// One permit for each piece of work that runs or waits.
    admitted: Arc<Semaphore>,
    /// One permit for each piece of work that runs.
    running: Arc<Semaphore>,
}

impl Default for PasswordWorkers {
    /// As many at once as there are processors, and 256 waiting for each of these: at most about
    /// a second of work.
    fn default() -> Self {
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        Self::new(parallel, 256 * parallel)
    }
}

impl PasswordWorkers {
    /// `parallel` pieces of work at once (at least one), `waiting` more in the queue.
    pub fn new(parallel: usize, waiting: usize) -> Self {
        let parallel = parallel.max(1);
        Self {
            admitted: Arc::new(Semaphore::new(parallel.saturating_add(waiting).min(Semaphore::MAX_PERMITS))),
            running: Arc::new(Semaphore::new(parallel.min(Semaphore::MAX_PERMITS))),
        }
    }

    /// Runs `work` on a blocking thread. Must be called on a tokio runtime.
    ///
    /// # Errors
    /// [`Busy`] when the queue is full, or `work` did not run to its end.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let admitted = self.admitted.clone().try_acquire_owned().map_err(|_| Busy)?;
        let running = self.running.clone().acquire_owned().await.map_err(|_| Busy)?;
        let permits: (OwnedSemaphorePermit, OwnedSemaphorePermit) = (admitted, running);
        let task = tokio::task::spawn_blocking(move || {
            // The permits live as long as the thread works, even when nobody waits any more.
            let _permits = permits;
            work()
        });
        task.await.map_err(|_| Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_full_queue_refuses_and_recovers() {
        let workers = PasswordWorkers::new(1, 1);
        let (release, blocked) = mpsc::sync_channel::<()>(2);
        let (started, has_started) = mpsc::sync_channel::<()>(2);
        let blocked = Arc::new(std::sync::Mutex::new(blocked));
        let job = || {
            let (blocked, started) = (blocked.clone(), started.clone());
            move || {
                started.send(()).unwrap();
                blocked.lock().unwrap().recv_timeout(DEADLINE).unwrap();
            }
        };
        let first = tokio::spawn({
            let (workers, job) = (workers.clone(), job());
            async move { workers.run(job).await }
        });
        let second = tokio::spawn({
            let (workers, job) = (workers.clone(), job());
            async move { workers.run(job).await }
        });
        // Both tasks get their turn at this await; then one runs and one waits.
        while workers.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(workers.run(|| ()).await, Err(Busy));
        release.send(()).unwrap();
        release.send(()).unwrap();
        assert_eq!(tokio::time::timeout(DEADLINE, first).await.unwrap().unwrap(), Ok(()));
        assert_eq!(tokio::time::timeout(DEADLINE, second).await.unwrap().unwrap(), Ok(()));
        assert_eq!(has_started.try_iter().count(), 2);
        assert_eq!(workers.run(|| 7).await, Ok(7));
    }

    #[tokio::test]
    async fn a_cancelled_caller_frees_its_place_when_the_work_is_done() {
        let workers = PasswordWorkers::new(1, 0);
        let (release, blocked) = mpsc::sync_channel::<()>(1);
        let running = workers.running.clone();
        let caller = tokio::spawn({
            let workers = workers.clone();
            async move { workers.run(move || blocked.recv_timeout(DEADLINE).is_ok()).await }
        });
        while running.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        caller.abort();
        let _ = caller.await;
        assert_eq!(workers.run(|| ()).await, Err(Busy));
        release.send(()).unwrap();
        let deadline = std::time::Instant::now() + DEADLINE;
        while workers.run(|| ()).await.is_err() {
            assert!(std::time::Instant::now() < deadline, "the place was never freed");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_that_panics_frees_its_place() {
        let workers = PasswordWorkers::new(1, 0);
        assert_eq!(workers.run(|| -> () { panic!("expected by the test") }).await, Err(Busy));
        let deadline = std::time::Instant::now() + DEADLINE;
        while workers.run(|| ()).await.is_err() {
            assert!(std::time::Instant::now() < deadline, "the place was never freed");
            tokio::task::yield_now().await;
        }
    }
}

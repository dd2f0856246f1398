//! The threads that actors live on.
//!
//! What must hold: an account's sessions and its route share one arbiter, chosen by the bare
//! JID's hash, so that a message between them wakes no other thread; arbiter 0 is the
//! system's own thread, so that a server on one core runs on one thread.

use std::cell::Cell;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};

use actix_rt::{Arbiter, ArbiterHandle};

thread_local! {
    /// Which arbiter this thread is, once a set of them was started.
    static HERE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The server's arbiters.
pub struct Arbiters {
    handles: Vec<ArbiterHandle>,
    /// Whose turn it is in [`Arbiters::run_in_turn`].
    next: AtomicUsize,
    /// Arbiters that this set started, joined by [`Arbiters::stop`].
    owned: std::sync::Mutex<Vec<Arbiter>>,
}

impl Arbiters {
    /// Starts `count` arbiters (at least one), the first being the current thread's.
    ///
    /// Must be called inside a running actix system.
    pub fn start(count: usize) -> Self {
        HERE.set(Some(0));
        let mut handles = vec![Arbiter::current()];
        let mut owned = Vec::new();
        for index in 1..count.max(1) {
            let arbiter = Arbiter::new();
            // Before anything else can run there.
            arbiter.spawn_fn(move || HERE.set(Some(index)));
            handles.push(arbiter.handle());
            owned.push(arbiter);
        }
        Self { handles, next: AtomicUsize::new(0), owned: std::sync::Mutex::new(owned) }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// The arbiter of an account.
    pub fn place(&self, bare_jid: &str) -> usize {
        if self.handles.len() == 1 {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        bare_jid.hash(&mut hasher);
        // The remainder is below the count, which is a usize.
        (hasher.finish() % self.handles.len() as u64) as usize
    }

    /// True on the thread of this arbiter.
    pub fn is_here(&self, index: usize) -> bool {
        HERE.get() == Some(index)
    }

    /// Runs `start` on an arbiter's thread, where it may start actors and local tasks. False
    /// when the arbiter has ended, which happens only while the server stops.
    pub fn run_on(&self, index: usize, start: impl FnOnce() + Send + 'static) -> bool {
        self.handles[index % self.handles.len()].spawn_fn(start)
    }

    /// The same on one arbiter after the other, for what belongs to no account yet.
    pub fn run_in_turn(&self, start: impl FnOnce() + Send + 'static) -> bool {
        self.run_on(self.next.fetch_add(1, Ordering::Relaxed), start)
    }

    /// Runs a future on an arbiter's thread.
    pub fn spawn_on(&self, index: usize, future: impl Future<Output = ()> + Send + 'static) -> bool {
        self.handles[index % self.handles.len()].spawn(future)
    }

    /// Stops and joins the arbiters that [`Arbiters::start`] started.
    pub fn stop(&self) {
        let owned =
            std::mem::take(&mut *self.owned.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        for arbiter in &owned {
            arbiter.stop();
        }
        for arbiter in owned {
            // A panic of an arbiter's thread was reported by the panic hook already.
            let _ = arbiter.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[actix_rt::test]
    async fn an_account_stays_on_its_arbiter_and_work_runs_there() {
        let arbiters = Arbiters::start(3);
        assert_eq!(arbiters.count(), 3);
        assert_eq!(arbiters.place("a@b"), arbiters.place("a@b"));
        let used: std::collections::HashSet<_> =
            (0..100).map(|i| arbiters.place(&format!("u{i}@b"))).collect();
        assert_eq!(used.len(), 3);
        let (tx, rx) = tokio::sync::oneshot::channel();
        let arbiters = Arc::new(arbiters);
        let there = Arc::clone(&arbiters);
        assert!(arbiters.run_on(2, move || {
            let _ = tx.send((std::thread::current().id(), [0, 1, 2].map(|index| there.is_here(index))));
        }));
        let (id, is_here) = rx.await.unwrap();
        assert_ne!(id, std::thread::current().id());
        assert_eq!(is_here, [false, false, true]);
        assert_eq!([0, 1, 2].map(|index| arbiters.is_here(index)), [true, false, false]);
        let mut turns = std::collections::HashSet::new();
        for _ in 0..3 {
            let (tx, rx) = tokio::sync::oneshot::channel();
            assert!(arbiters.run_in_turn(move || {
                let _ = tx.send(std::thread::current().id());
            }));
            turns.insert(rx.await.unwrap());
        }
        assert_eq!(turns.len(), 3);
        arbiters.stop();
    }
}

//! The signal that the server is stopping, and the count of what must end before it does.
//!
//! What must hold: whoever holds a [`DrainSignal`] keeps the server from ending until it is
//! dropped or the drain's time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, watch};

struct Shared {
    holders: AtomicUsize,
    empty: Notify,
}

/// The side that starts the drain.
pub struct Drain {
    started: watch::Sender<bool>,
    shared: Arc<Shared>,
}

/// The side that is told, and that keeps the server waiting while it lives.
pub struct DrainSignal {
    started: watch::Receiver<bool>,
    shared: Arc<Shared>,
}

impl Default for Drain {
    fn default() -> Self {
        Self {
            started: watch::channel(false).0,
            shared: Arc::new(Shared { holders: AtomicUsize::new(0), empty: Notify::new() }),
        }
    }
}

impl Drain {
    /// A new signal that counts as a holder until dropped.
    pub fn signal(&self) -> DrainSignal {
        self.shared.holders.fetch_add(1, Ordering::AcqRel);
        DrainSignal { started: self.started.subscribe(), shared: self.shared.clone() }
    }

    /// Tells all holders; resolves with how many are left when all have ended or `limit` has
    /// passed.
    pub async fn drain(&self, limit: Duration) -> usize {
        self.started.send_replace(true);
        let wait = async {
            loop {
                let empty = self.shared.empty.notified();
                tokio::pin!(empty);
                // Registered before the count is read, so that no notification is missed.
                empty.as_mut().enable();
                if self.shared.holders.load(Ordering::Acquire) == 0 {
                    return;
                }
                empty.await;
            }
        };
        // Whether time ran out shows in the count.
        let _ = tokio::time::timeout(limit, wait).await;
        self.shared.holders.load(Ordering::Acquire)
    }
}

impl DrainSignal {
    /// Resolves when the drain starts (at once if it has).
    pub async fn started(&mut self) {
        // An error means that the Drain is gone: the server is ending all the more.
        let _ = self.started.wait_for(|started| *started).await;
    }

    /// True when the drain has started.
    pub fn is_draining(&self) -> bool {
        *self.started.borrow()
    }
}

impl Clone for DrainSignal {
    fn clone(&self) -> Self {
        self.shared.holders.fetch_add(1, Ordering::AcqRel);
        Self { started: self.started.clone(), shared: self.shared.clone() }
    }
}

impl Drop for DrainSignal {
    fn drop(&mut self) {
        if self.shared.holders.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shared.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[actix_rt::test]
    async fn a_drain_waits_for_its_holders_but_not_beyond_its_limit() {
        let drain = Drain::default();
        let mut signal = drain.signal();
        let kept = signal.clone();
        let task = actix_rt::spawn(async move { signal.started().await });
        assert_eq!(drain.drain(Duration::from_millis(50)).await, 1, "one holder never ended");
        task.await.unwrap();
        drop(kept);
        assert_eq!(drain.drain(Duration::from_secs(5)).await, 0);
    }
}

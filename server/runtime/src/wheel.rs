//! One timer wheel per arbiter for the many coarse deadlines of idle actors.
//!
//! An entry is a waker in the slot of its second: 16 bytes, no allocation of its own, no
//! cancellation. What must hold: an entry wakes its task at or after its time (to the second),
//! possibly earlier when the time is beyond the wheel's span; so a task that is woken looks at
//! its own deadline and registers again if it is not due.

use std::cell::RefCell;
use std::task::Waker;
use std::time::Duration;

/// Span of the wheel in seconds.
const SLOTS: usize = 512;

struct Wheel {
    slots: Vec<Vec<Waker>>,
    now: usize,
}

thread_local! {
    static WHEEL: RefCell<Option<Wheel>> = const { RefCell::new(None) };
}

/// Wakes `waker` after about `delay`, rounded up to whole seconds, at most 511 s.
///
/// The first call on a thread starts the thread's ticking task; it must run inside a runtime.
pub fn wake_after(delay: Duration, waker: Waker) {
    WHEEL.with_borrow_mut(|wheel| {
        let wheel = wheel.get_or_insert_with(|| {
            actix_rt::spawn(tick_forever());
            Wheel { slots: (0..SLOTS).map(|_| Vec::new()).collect(), now: 0 }
        });
        // One second more than asked, for the current one has partly passed.
        let seconds = usize::try_from(delay.as_secs()).unwrap_or(SLOTS).saturating_add(1);
        let slot = (wheel.now + seconds.min(SLOTS - 1)) % SLOTS;
        wheel.slots[slot].push(waker);
    });
}

async fn tick_forever() {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    // After a pause of the process each missed second still empties its slot.
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    interval.tick().await;
    loop {
        interval.tick().await;
        let due = WHEEL.with_borrow_mut(|wheel| {
            let wheel = wheel.as_mut()?;
            wheel.now = (wheel.now + 1) % SLOTS;
            Some(std::mem::take(&mut wheel.slots[wheel.now]))
        });
        for waker in due.into_iter().flatten() {
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::task::Wake;
    use std::time::Instant;

    use super::*;

    #[derive(Default)]
    struct WokenAt(Mutex<Option<Instant>>, tokio::sync::Notify);
    impl Wake for WokenAt {
        fn wake(self: Arc<Self>) {
            *self.0.lock().unwrap() = Some(Instant::now());
            self.1.notify_one();
        }
    }

    #[actix_rt::test]
    async fn an_entry_wakes_after_its_time_and_not_before() {
        let start = Instant::now();
        let woken = Arc::new(WokenAt::default());
        wake_after(Duration::from_secs(1), woken.clone().into());
        tokio::time::timeout(Duration::from_secs(10), woken.1.notified()).await.expect("never woken");
        assert!(woken.0.lock().unwrap().unwrap() - start >= Duration::from_secs(1));
    }
}

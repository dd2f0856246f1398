//! How late timers fire on each arbiter: the measure of how long its actors keep a thread.
//!
//! What must hold: timers are due at fixed times, counted from the start, so that a thread that is
//! held up for long is late for every timer it missed, not for one; a measurement leaves nothing
//! behind on the arbiters.

use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use crate::{Arbiters, percentile};

/// The time between two timers.
pub const INTERVAL: Duration = Duration::from_millis(10);
/// How many timers are measured: one second of them.
const TIMERS: u32 = 100;

/// The lateness of the timers of one arbiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lateness {
    /// 99 of 100 timers were no later.
    pub p99: Duration,
    /// The latest of all.
    pub worst: Duration,
}

impl Lateness {
    /// Of single timers, of which there is at least one.
    fn of(mut late: Vec<Duration>) -> Self {
        late.sort_unstable();
        let at = |percent| percentile(&late, percent).unwrap_or_default();
        Self { p99: at(99), worst: at(100) }
    }
}

/// Measures for a second on all arbiters at once. `None` stands for an arbiter that has ended,
/// which happens only while the server stops.
pub async fn measure(arbiters: &Arbiters) -> Vec<Option<Lateness>> {
    let begun: Vec<_> = (0..arbiters.count())
        .map(|index| {
            let (done, result) = oneshot::channel();
            arbiters.spawn_on(index, async move {
                // Whoever asked may have gone; then nobody needs the result.
                let _ = done.send(on_this_thread().await);
            });
            result
        })
        .collect();
    let mut all = Vec::with_capacity(begun.len());
    for result in begun {
        all.push(result.await.ok());
    }
    all
}

async fn on_this_thread() -> Lateness {
    let start = Instant::now();
    let mut late = Vec::with_capacity(TIMERS as usize);
    for n in 1..=TIMERS {
        let due = start + INTERVAL * n;
        sleep_until(due).await;
        late.push(due.elapsed());
    }
    Lateness::of(late)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_the_nearest() {
        let ms = Duration::from_millis;
        assert_eq!(Lateness::of(vec![ms(3)]), Lateness { p99: ms(3), worst: ms(3) });
        let hundred = (1..=100).map(ms).collect();
        assert_eq!(Lateness::of(hundred), Lateness { p99: ms(99), worst: ms(100) });
        let few = (1..=10).rev().map(ms).collect();
        assert_eq!(Lateness::of(few), Lateness { p99: ms(10), worst: ms(10) });
    }

    #[actix_rt::test]
    async fn a_thread_that_is_held_up_is_late_for_every_timer_it_missed() {
        let arbiters = Arbiters::start(2);
        const HELD_UP: Duration = Duration::from_millis(200);
        let holder = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            arbiters.run_on(1, || std::thread::sleep(HELD_UP));
        };
        let (measured, ()) = tokio::join!(measure(&arbiters), holder);
        assert_eq!(measured.len(), 2);
        let held = measured[1].unwrap();
        // Some 20 timers were due meanwhile: one percent of all does not hide them.
        assert!(held.worst >= HELD_UP - 2 * INTERVAL, "{held:?}");
        assert!(held.p99 >= HELD_UP - 4 * INTERVAL, "{held:?}");
        arbiters.stop();
        assert_eq!(measure(&arbiters).await[1], None, "an arbiter that has ended");
    }
}

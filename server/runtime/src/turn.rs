//! How a task that has more to do lets others go first.
//!
//! What must hold: between two turns of such a task its thread also looks at timers and sockets.

use std::future::Future;
use std::pin::pin;
use std::task::Context;

/// Has the task woken again after the other tasks of its thread that are ready, and after a look
/// at timers and sockets. The task returns `Pending` then.
///
/// A plain wake would not do: the runtime polls tasks that wake each other up to 61 times before
/// it looks at a timer, and two sessions that flood make that some tens of milliseconds.
pub fn after_others(cx: &mut Context<'_>) {
    // Its first poll hands the waker to the runtime, and that is all of it that is wanted.
    let _ = pin!(tokio::task::yield_now()).poll(cx);
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;
    use std::time::{Duration, Instant};

    use super::*;

    #[actix_rt::test]
    async fn timers_are_looked_at_between_the_turns_of_a_busy_task() {
        const TURN: Duration = Duration::from_millis(1);
        const DUE: Duration = Duration::from_millis(10);
        let busy = actix_rt::spawn(poll_fn(|cx| {
            let end = Instant::now() + TURN;
            while Instant::now() < end {
                std::hint::spin_loop();
            }
            after_others(cx);
            Poll::<()>::Pending
        }));
        // Of several, because the machine may have other work: 61 turns would make all of them late.
        let mut best = Duration::MAX;
        for _ in 0..5 {
            let due = tokio::time::Instant::now() + DUE;
            tokio::time::sleep_until(due).await;
            best = best.min(due.elapsed());
        }
        busy.abort();
        assert!(best < 10 * TURN, "{best:?}");
    }
}

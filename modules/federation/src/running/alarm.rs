//! The next moment at which a stream has to look at its deadlines, in the wheel of its arbiter.
//!
//! What must hold: a stream is woken at or after each moment that it asked for, to about two seconds, and has
//! few places in the wheel, however often it asks.

use std::task::Context;
use std::time::{Duration, Instant};

use waystation_runtime::wheel;

/// The longest that the wheel waits.
const LONGEST: Duration = Duration::from_secs(500);

#[derive(Default)]
pub(super) struct Alarm {
    /// When the wheel will wake the stream.
    next: Option<Instant>,
}

impl Alarm {
    /// Has the task woken at `then`, or a little later; sooner when that is far away.
    pub(super) fn wake_at(&mut self, then: Instant, cx: &Context<'_>) {
        let now = Instant::now();
        let then = then.min(now + LONGEST);
        if self.next.is_none_or(|next| next <= now || then < next) {
            self.next = Some(then);
            // A part of a second would be cut off, and the task woken too early.
            wheel::wake_after(
                then.saturating_duration_since(now) + Duration::from_secs(1),
                cx.waker().clone(),
            );
        }
    }
}

//! How many frames that carry nothing a client may send: pings, pongs, empty fragments.
//!
//! What must hold: what the server's own limit of bytes does not see, because it never reaches the
//! stream, is bounded here (M8, ping flood).

use std::time::Instant;

/// At once.
pub(crate) const BURST: u32 = 20;
/// In the long run.
const PER_SECOND: u32 = 5;

/// A token bucket.
pub(crate) struct Quota {
    left: u32,
    since: Instant,
}

impl Quota {
    pub(crate) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now }
    }

    /// Takes one; false when none is left.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since).as_millis() * u128::from(PER_SECOND) / 1000;
        if earned > 0 {
            // More than a burst is not kept, so the sum is small.
            self.left = (self.left + earned.min(u128::from(BURST)) as u32).min(BURST);
            self.since = now;
        }
        let had = self.left > 0;
        self.left = self.left.saturating_sub(1);
        had
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn m8_a_burst_passes_and_then_some_each_second() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
        for _ in 0..BURST {
            assert!(quota.take(start));
        }
        assert!(!quota.take(start));
        assert!(!quota.take(start + Duration::from_millis(199)));
        assert!(quota.take(start + Duration::from_millis(200)));
        assert!(!quota.take(start + Duration::from_millis(200)));
        let later = start + Duration::from_secs(100_000_000);
        assert_eq!((0..100).filter(|_| quota.take(later)).count(), BURST as usize);
    }

    #[test]
    fn steady_pings_pass_for_ever() {
        let start = Instant::now();
        let mut quota = Quota::new(start);
        assert!((0..1000).all(|n| quota.take(start + Duration::from_millis(200 * n))));
    }
}

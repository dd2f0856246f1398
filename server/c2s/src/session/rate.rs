//! How fast a client may send: a token bucket in bytes (DELIVERY.md 4).
//!
//! What must hold: a client above its rate is not punished, only read more slowly.

use std::time::{Duration, Instant};

use crate::context::Limits;

/// The bucket. Without a rate it never pauses.
pub(super) struct Bucket {
    /// Bytes a second; 0 for no limit.
    rate: u32,
    burst: u32,
    /// May be negative: what was read cannot be unread.
    level: i64,
    filled: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(limits: &Limits) -> Self {
        Self { rate: limits.rate, burst: limits.burst, level: i64::from(limits.burst), filled: None }
    }

    /// Takes `bytes`; how long to pause before reading more, if at all.
    pub(super) fn spend(&mut self, bytes: usize) -> Option<Duration> {
        if self.rate == 0 {
            return None;
        }
        self.spend_at(bytes, Instant::now())
    }

    fn spend_at(&mut self, bytes: usize, now: Instant) -> Option<Duration> {
        if let Some(filled) = self.filled {
            let gained = now.saturating_duration_since(filled).as_secs_f64() * f64::from(self.rate);
            self.level = (self.level + gained as i64).min(i64::from(self.burst));
        }
        self.filled = Some(now);
        self.level -= i64::try_from(bytes).unwrap_or(i64::MAX);
        (self.level < 0).then(|| Duration::from_secs_f64(-self.level as f64 / f64::from(self.rate)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x15_a_burst_passes_and_the_rest_waits() {
        let mut bucket = Bucket { rate: 1000, burst: 5000, level: 5000, filled: None };
        let start = Instant::now();
        assert_eq!(bucket.spend_at(5000, start), None);
        assert_eq!(bucket.spend_at(500, start), Some(Duration::from_millis(500)));
        assert_eq!(bucket.spend_at(1000, start + Duration::from_millis(1500)), None);
        assert_eq!(bucket.spend_at(5001, start + Duration::from_secs(100)), Some(Duration::from_millis(1)));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut bucket = Bucket { rate: 0, burst: 0, level: 0, filled: None };
        assert_eq!(bucket.spend(usize::MAX), None);
    }
}

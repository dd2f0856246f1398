//! How fast a client may send: a token bucket, in bytes or in stanzas (DELIVERY.md 4).
//!
//! What must hold: a client above its rate is not punished, only read more slowly.

use std::time::{Duration, Instant};

use crate::context::Rate;

/// The bucket. Without a rate it never pauses.
pub(super) struct Bucket {
    rate: Rate,
    /// May be negative: what was read cannot be unread. Fractions count: a rate may be as low as
    /// one a second.
    level: f64,
    filled: Option<Instant>,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, level: f64::from(rate.burst), filled: None }
    }

    /// Takes `tokens`; how long to pause before reading more, if at all.
    pub(super) fn spend(&mut self, tokens: usize) -> Option<Duration> {
        if self.rate.per_second == 0 {
            return None;
        }
        self.spend_at(tokens, Instant::now())
    }

    fn spend_at(&mut self, tokens: usize, now: Instant) -> Option<Duration> {
        let per_second = f64::from(self.rate.per_second);
        if let Some(filled) = self.filled {
            let gained = now.saturating_duration_since(filled).as_secs_f64() * per_second;
            self.level = (self.level + gained).min(f64::from(self.rate.burst));
        }
        self.filled = Some(now);
        self.level -= tokens as f64;
        (self.level < 0.0).then(|| Duration::from_secs_f64(-self.level / per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x15_a_burst_passes_and_the_rest_waits() {
        let mut bucket = Bucket::new(Rate { per_second: 1000, burst: 5000 });
        let start = Instant::now();
        assert_eq!(bucket.spend_at(5000, start), None);
        assert_eq!(bucket.spend_at(500, start), Some(Duration::from_millis(500)));
        assert_eq!(bucket.spend_at(1000, start + Duration::from_millis(1500)), None);
        assert_eq!(bucket.spend_at(5001, start + Duration::from_secs(100)), Some(Duration::from_millis(1)));
    }

    #[test]
    fn fractions_of_a_token_add_up() {
        let mut bucket = Bucket::new(Rate { per_second: 1, burst: 1 });
        let start = Instant::now();
        assert_eq!(bucket.spend_at(1, start), None);
        for n in 1..=3 {
            assert_eq!(bucket.spend_at(0, start + Duration::from_millis(250) * n), None);
        }
        assert_eq!(bucket.spend_at(1, start + Duration::from_secs(1)), None);
        assert_eq!(bucket.spend_at(1, start + Duration::from_secs(1)), Some(Duration::from_secs(1)));
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let mut bucket = Bucket::new(Rate::NONE);
        assert_eq!(bucket.spend(usize::MAX), None);
    }
}

//! How fast a remote domain may send: a token bucket in bytes, one for all of its streams.
//!
//! What must hold: a domain above its rate is not punished, only read more slowly; a domain has one
//! bucket while it has a stream, and none after its last has ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Settings;

/// The buckets of all domains that have streams.
#[derive(Default)]
pub(crate) struct Rates {
    /// Bytes a second; 0 for no limit.
    per_second: u64,
    /// Bytes at once above that.
    burst: u64,
    domains: Mutex<HashMap<Box<str>, Arc<Mutex<Bucket>>>>,
}

struct Bucket {
    /// May be negative: what was read cannot be unread.
    level: f64,
    filled: Instant,
}

/// A stream's share in the bucket of its domain.
#[derive(Clone)]
pub(crate) struct Rate {
    per_second: u64,
    burst: u64,
    bucket: Option<Arc<Mutex<Bucket>>>,
}

impl Rates {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self { per_second: settings.inbound_rate, burst: settings.inbound_burst, domains: Mutex::default() }
    }

    /// The bucket of a domain, for one more stream of it.
    pub(crate) fn of(&self, domain: &str) -> Rate {
        let (per_second, burst) = (self.per_second, self.burst);
        if per_second == 0 {
            return Rate { per_second, burst, bucket: None };
        }
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = domains.get(domain) {
            return Rate { per_second, burst, bucket: Some(bucket.clone()) };
        }
        // Looked through when a domain is new, so at most as often as streams begin.
        domains.retain(|_, bucket| Arc::strong_count(bucket) > 1);
        let bucket = Arc::new(Mutex::new(Bucket { level: burst as f64, filled: Instant::now() }));
        domains.insert(domain.into(), bucket.clone());
        Rate { per_second, burst, bucket: Some(bucket) }
    }
}

impl Rate {
    /// Takes bytes; how long to pause before reading more, if at all.
    pub(crate) fn spend(&self, bytes: usize) -> Option<Duration> {
        self.spend_at(bytes, Instant::now())
    }

    fn spend_at(&self, bytes: usize, now: Instant) -> Option<Duration> {
        let mut bucket = lock(self.bucket.as_deref()?);
        let gained = now.saturating_duration_since(bucket.filled).as_secs_f64() * self.per_second as f64;
        bucket.level = (bucket.level + gained).min(self.burst as f64) - bytes as f64;
        bucket.filled = bucket.filled.max(now);
        (bucket.level < 0.0).then(|| Duration::from_secs_f64(-bucket.level / self.per_second as f64))
    }
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(inbound_rate: u64) -> Rates {
        Rates::new(&Settings { inbound_rate, inbound_burst: 5000, ..Settings::default() })
    }

    #[test]
    fn all_streams_of_a_domain_share_its_rate_and_others_have_theirs() {
        let rates = rates(1000);
        let (one, two, other) = (rates.of("a.test"), rates.of("a.test"), rates.of("b.test"));
        let now = Instant::now() + Duration::from_secs(1);
        assert_eq!(one.spend_at(3000, now), None);
        assert_eq!(two.spend_at(2000, now), None);
        assert_eq!(two.spend_at(500, now), Some(Duration::from_millis(500)));
        assert_eq!(one.spend_at(500, now + Duration::from_millis(500)), Some(Duration::from_millis(500)));
        assert_eq!(other.spend_at(5000, now), None);
        assert_eq!(one.spend_at(5001, now + Duration::from_secs(60)), Some(Duration::from_millis(1)));
    }

    #[test]
    fn a_domain_without_streams_is_forgotten() {
        let rates = rates(1000);
        for n in 0..10 {
            drop(rates.of(&format!("{n}.test")));
        }
        let kept = rates.of("kept.test");
        drop(rates.of("another.test"));
        drop(rates.of("last.test"));
        assert_eq!(rates.domains.lock().unwrap().len(), 2, "the last that was made, and one with a stream");
        drop(kept);
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        assert_eq!(rates(0).of("a.test").spend(usize::MAX), None);
    }
}

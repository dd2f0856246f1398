//! How many domains one account may be the first to write to (SECURITY M11, DELIVERY 4).
//!
//! What must hold: an account has so many domains at once and gets as many again in a minute; what is
//! remembered of accounts is bounded, and forgotten when it says nothing any more.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ahash::HashMap;

/// Accounts that are remembered.
const MAX_ACCOUNTS: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);

/// What a new domain costs its sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// An answer, or the server itself.
    Nothing,
    /// Presence, which goes to all contacts at once.
    Tenth,
    /// Anything that an account may send to anyone.
    Whole,
}

/// What is left to an account: tenths of domains, at that moment.
struct Bucket {
    tenths: f64,
    at: Instant,
}

/// See the module's header.
#[derive(Default)]
pub(crate) struct NewDomains {
    accounts: Mutex<HashMap<Arc<str>, Bucket>>,
}

impl NewDomains {
    /// True when the account may open another domain, of `limit` in a minute; 0 is no limit.
    pub(crate) fn take(&self, account: &Arc<str>, cost: Cost, limit: u32, now: Instant) -> bool {
        let cost = match cost {
            _ if limit == 0 => return true,
            Cost::Nothing => return true,
            Cost::Tenth => 1.0,
            Cost::Whole => 10.0,
        };
        let full = f64::from(limit) * 10.0;
        let refilled = |bucket: &Bucket| {
            let passed = now.saturating_duration_since(bucket.at).as_secs_f64() / MINUTE.as_secs_f64();
            (bucket.tenths + passed * full).min(full)
        };
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if accounts.len() >= MAX_ACCOUNTS && !accounts.contains_key(account) {
            // Whoever has all again need not be remembered. If nobody is forgotten, nobody new is let in.
            accounts.retain(|_, bucket| refilled(bucket) < full);
            if accounts.len() >= MAX_ACCOUNTS {
                return false;
            }
        }
        let bucket = accounts.entry(account.clone()).or_insert(Bucket { tenths: full, at: now });
        bucket.tenths = refilled(bucket);
        bucket.at = now;
        if bucket.tenths < cost {
            return false;
        }
        bucket.tenths -= cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_its_domains_at_once_and_again_within_a_minute() {
        let (new, now) = (NewDomains::default(), Instant::now());
        let [one, other] = ["a@h", "b@h"].map(Arc::<str>::from);
        let take = |account, cost, seconds| new.take(account, cost, 2, now + Duration::from_secs(seconds));
        assert!(take(&one, Cost::Whole, 0) && take(&one, Cost::Whole, 0));
        assert!(!take(&one, Cost::Whole, 0) && !take(&one, Cost::Tenth, 0) && take(&one, Cost::Nothing, 0));
        assert!(take(&other, Cost::Whole, 0), "accounts do not share");
        assert!(!take(&one, Cost::Whole, 29));
        assert!(take(&one, Cost::Whole, 31));
        for _ in 0..10 {
            assert!(take(&other, Cost::Tenth, 0));
        }
        assert!(!take(&other, Cost::Tenth, 0));
    }

    #[test]
    fn a_bounded_number_of_accounts_is_remembered() {
        let (new, now) = (NewDomains::default(), Instant::now());
        for i in 0..MAX_ACCOUNTS {
            assert!(new.take(&format!("{i}@h").into(), Cost::Whole, 10, now));
        }
        let late: Arc<str> = "late@h".into();
        assert!(!new.take(&late, Cost::Whole, 10, now));
        assert!(new.take(&late, Cost::Whole, 10, now + MINUTE));
        assert_eq!(new.accounts.lock().unwrap().len(), 1);
    }

    #[test]
    fn no_limit_lets_everything_through() {
        let new = NewDomains::default();
        let now = Instant::now();
        assert!((0..1_000).all(|_| new.take(&"a@b".into(), Cost::Whole, 0, now)));
        assert!(new.accounts.lock().unwrap().is_empty(), "nobody is remembered");
    }
}

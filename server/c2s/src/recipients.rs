//! How many addresses an account may send presence to (XEP-0205, SECURITY M4): a token bucket of
//! recipients it has not had lately, over all of its sessions.
//!
//! What must hold: who reconnects gains nothing, so the buckets are kept here and not with the
//! sessions; a bucket that is full again is forgotten, so memory is bounded by the accounts that
//! wrote to somebody new within the window; what an account remembers is bounded as well.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use waystation_core::Jid;

/// Recipients that are remembered of one account: 8 bytes each. To those it may send more.
const REMEMBERED: usize = 1_000;

/// Accounts before those with a full bucket are looked for.
const FIRST_SWEEP: usize = 1_024;

/// The limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecipientLimit {
    /// New recipients at once, and as many again in each window; 0 for no limit.
    pub count: u32,
    /// The window, over which they come back evenly.
    pub window: Duration,
}

impl RecipientLimit {
    /// No limit at all.
    pub const NONE: Self = Self { count: 0, window: Duration::ZERO };

    /// Recipients that come back in a second.
    fn rate(&self) -> f64 {
        f64::from(self.count) / self.window.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// One account's bucket.
struct Account {
    left: f64,
    at: Instant,
    /// Keyed hashes of bare JIDs, the oldest first.
    recent: VecDeque<u64>,
}

struct Accounts {
    by_jid: HashMap<Jid, Account>,
    sweep_at: usize,
}

/// The buckets of all accounts. Shared by all sessions.
pub struct Recipients {
    limit: RecipientLimit,
    accounts: Mutex<Accounts>,
    hasher: RandomState,
}

impl Recipients {
    /// All buckets full.
    pub fn new(limit: RecipientLimit) -> Self {
        let accounts = Accounts { by_jid: HashMap::new(), sweep_at: FIRST_SWEEP };
        Self { limit, accounts: Mutex::new(accounts), hasher: RandomState::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        // Every operation leaves the buckets consistent, so a panic elsewhere does not matter.
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a token if `to` is new to the account.
    ///
    /// # Errors
    /// The time until there is a token, when there is none.
    pub(crate) fn take(&self, account: &Jid, to: &Jid, now: Instant) -> Result<(), Duration> {
        if self.limit.count == 0 || account.bare_eq(to) {
            return Ok(());
        }
        let recipient = self.hasher.hash_one(to.bare_str());
        let rate = self.limit.rate();
        let full = f64::from(self.limit.count);
        let mut accounts = self.lock();
        accounts.make_room(account, full, rate, now);
        let bucket = accounts.by_jid.entry(account.to_bare()).or_insert_with(|| Account {
            left: full,
            at: now,
            recent: VecDeque::new(),
        });
        if bucket.recent.contains(&recipient) {
            return Ok(());
        }
        bucket.left = bucket.level(full, rate, now);
        bucket.at = now;
        if bucket.left < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.left) / rate));
        }
        bucket.left -= 1.0;
        if bucket.recent.len() >= REMEMBERED {
            bucket.recent.pop_front();
        }
        bucket.recent.push_back(recipient);
        Ok(())
    }
}

impl Account {
    fn level(&self, full: f64, rate: f64, now: Instant) -> f64 {
        (self.left + now.saturating_duration_since(self.at).as_secs_f64() * rate).min(full)
    }
}

impl Accounts {
    /// Forgets full buckets before a new one is made. Seldom enough to cost little: the accounts
    /// have to double before the next time.
    fn make_room(&mut self, account: &Jid, full: f64, rate: f64, now: Instant) {
        if self.by_jid.len() < self.sweep_at || self.by_jid.contains_key(account.bare_str()) {
            return;
        }
        self.by_jid.retain(|_, account| account.level(full, rate, now) < full);
        self.sweep_at = (2 * self.by_jid.len()).max(FIRST_SWEEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(name: &str) -> Jid {
        Jid::parse(&format!("{name}@localhost")).unwrap()
    }

    fn recipients() -> Recipients {
        Recipients::new(RecipientLimit { count: 10, window: Duration::from_secs(100) })
    }

    #[test]
    fn m4_new_recipients_take_tokens_and_known_ones_none() {
        let (recipients, start) = (recipients(), Instant::now());
        let [romeo, juliet] = [jid("romeo"), jid("juliet")];
        for n in 0..10 {
            let to = jid(&format!("to{n}"));
            assert_eq!(recipients.take(&romeo, &to, start), Ok(()));
            assert_eq!(recipients.take(&romeo, &to.with_resource("r").unwrap(), start), Ok(()));
        }
        assert_eq!(recipients.take(&romeo, &jid("new"), start), Err(Duration::from_secs(10)));
        assert_eq!(recipients.take(&romeo, &jid("to0"), start), Ok(()), "known");
        assert_eq!(recipients.take(&romeo, &romeo, start), Ok(()), "its own");
        let resource = romeo.with_resource("other").unwrap();
        assert!(recipients.take(&resource, &jid("new"), start).is_err(), "all sessions share it");
        assert_eq!(recipients.take(&juliet, &jid("new"), start), Ok(()), "others do not");
        let later = start + Duration::from_secs(10);
        assert_eq!(recipients.take(&romeo, &jid("new"), later), Ok(()));
        assert_eq!(recipients.take(&romeo, &jid("newer"), later), Err(Duration::from_secs(10)));
    }

    #[test]
    fn without_a_limit_nothing_is_kept() {
        let recipients = Recipients::new(RecipientLimit::NONE);
        for n in 0..100 {
            assert_eq!(recipients.take(&jid("romeo"), &jid(&format!("to{n}")), Instant::now()), Ok(()));
        }
        assert!(recipients.lock().by_jid.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let start = Instant::now();
        let many = Recipients::new(RecipientLimit { count: 5_000, window: Duration::from_secs(1) });
        for n in 0..5_000 {
            assert_eq!(many.take(&jid("romeo"), &jid(&format!("to{n}")), start), Ok(()));
        }
        assert_eq!(many.lock().by_jid[jid("romeo").bare_str()].recent.len(), REMEMBERED);
        let recipients = recipients();
        for n in 0..10 * FIRST_SWEEP as u32 {
            // One token each, which is there again ten seconds later.
            let now = start + Duration::from_millis(100) * n;
            assert_eq!(recipients.take(&jid(&format!("from{n}")), &jid("to"), now), Ok(()));
        }
        assert!(recipients.lock().by_jid.len() <= 2 * FIRST_SWEEP);
    }
}

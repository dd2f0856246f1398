//! How many failed logins are tolerated (XEP-0205): for each connection, each address, and each
//! account from one address.
//!
//! What must hold: an account is never locked for addresses that did nothing wrong, or anyone
//! could lock anyone out; memory is bounded, and whoever floods the tables with addresses pushes
//! out the entries that matter least; an attempt holds its token while it runs, so that guesses
//! in parallel count as much as guesses in a row.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A token bucket: `burst` failures at once, then one for each `refill`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Failures that are allowed at once.
    pub burst: u32,
    /// Time in which one more is allowed. Zero: there is no limit.
    pub refill: Duration,
}

impl Bucket {
    /// Time that an empty bucket takes to fill.
    fn capacity(&self) -> Duration {
        self.refill.saturating_mul(self.burst)
    }
}

/// The limits, with what happens at each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailureLimits {
    /// Failures on one connection; the last one closes it with `policy-violation` (RFC 6120
    /// 6.4.5 wants 2 to 5).
    pub per_connection: u32,
    /// Failures from one address (IPv6: one /64); beyond it every login from there is refused.
    pub address: Bucket,
    /// Failures for one account from one address; beyond it such logins are refused. A success
    /// resets it.
    pub account: Bucket,
    /// Entries in each of the two tables, about 50 bytes each.
    pub max_entries: usize,
}

impl Default for FailureLimits {
    /// An address may stand for a large office, so it gets ten times as much as an account: 100
    /// at once and 360 an hour, against 10 and 60.
    fn default() -> Self {
        Self {
            per_connection: 5,
            address: Bucket { burst: 100, refill: Duration::from_secs(10) },
            account: Bucket { burst: 10, refill: Duration::from_secs(60) },
            max_entries: 65_536,
        }
    }
}

impl FailureLimits {
    /// No limit at all, for benchmarks.
    pub fn disabled() -> Self {
        let bucket = Bucket { burst: u32::MAX, refill: Duration::ZERO };
        Self { per_connection: u32::MAX, address: bucket, account: bucket, max_entries: 1 }
    }

    /// The counter of one connection.
    pub fn connection(&self) -> ConnectionFailures {
        ConnectionFailures { left: self.per_connection }
    }
}

/// Counts the failures of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionFailures {
    left: u32,
}

impl ConnectionFailures {
    /// Counts a failure. True: close the stream with `policy-violation`.
    #[must_use]
    pub fn failed(&mut self) -> bool {
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
}

/// Too many failures: refuse the login without looking at its password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many failed logins; retry in {} s", retry_after.as_secs() + 1)]
pub struct Refused {
    /// Time until one more attempt is allowed.
    pub retry_after: Duration,
}

/// The buckets, by key. A bucket is the time at which it will be full again: what lies in the
/// past is full and need not be kept.
#[derive(Debug)]
struct Table<K> {
    bucket: Bucket,
    max_entries: usize,
    full_at: HashMap<K, Instant>,
}

impl<K: Hash + Eq> Table<K> {
    fn new(bucket: Bucket, max_entries: usize) -> Self {
        Self { bucket, max_entries: max_entries.max(1), full_at: HashMap::new() }
    }

    fn check(&self, key: &K, now: Instant) -> Result<(), Refused> {
        let missing = self.full_at.get(key).map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        match missing.saturating_add(self.bucket.refill).checked_sub(self.bucket.capacity()) {
            Some(retry_after) if !retry_after.is_zero() => Err(Refused { retry_after }),
            _ => Ok(()),
        }
    }

    /// Takes a token whether or not there is one.
    fn take(&mut self, key: K, now: Instant) {
        if self.bucket.refill.is_zero() {
            return;
        }
        if !self.full_at.contains_key(&key) {
            self.make_room(now);
        }
        let latest = now + self.bucket.capacity();
        let at = self.full_at.entry(key).or_insert(now);
        *at = ((*at).max(now) + self.bucket.refill).min(latest);
    }

    /// Gives a token back.
    fn give_back(&mut self, key: &K) {
        if let Some(at) = self.full_at.get_mut(key)
            && let Some(earlier) = at.checked_sub(self.bucket.refill)
        {
            *at = earlier;
        }
    }

    /// Forgets what is full again; if that is not enough, a quarter of the table, the fullest
    /// buckets first. Rare, for it frees that much.
    fn make_room(&mut self, now: Instant) {
        if self.full_at.len() < self.max_entries {
            return;
        }
        self.full_at.retain(|_, at| *at > now);
        let mut excess = (self.full_at.len() + self.max_entries / 4 + 1).saturating_sub(self.max_entries);
        if excess == 0 || self.full_at.is_empty() {
            return;
        }
        let mut times: Vec<Instant> = self.full_at.values().copied().collect();
        let (_, &mut limit, _) = times.select_nth_unstable((excess - 1).min(self.full_at.len() - 1));
        self.full_at.retain(|_, at| {
            let goes = *at <= limit && excess > 0;
            excess -= usize::from(goes);
            !goes
        });
    }
}

/// An address, or the /64 network of an IPv6 address: one customer gets at least that much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Network(u128);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self(v4.to_ipv6_mapped().to_bits()),
            IpAddr::V6(v6) => Self(v6.to_bits() >> 64 << 64),
        }
    }
}

/// The buckets of all addresses and accounts. Shared by all listeners.
#[derive(Debug)]
pub struct FailureTracker {
    tables: Mutex<Tables>,
    /// Accounts are kept as keyed hashes: names of any length take the same memory.
    hasher: RandomState,
}

#[derive(Debug)]
struct Tables {
    addresses: Table<Network>,
    accounts: Table<(Network, u64)>,
}

impl FailureTracker {
    /// Empty tables with the given limits.
    pub fn new(limits: &FailureLimits) -> Arc<Self> {
        Arc::new(Self {
            tables: Mutex::new(Tables {
                addresses: Table::new(limits.address, limits.max_entries),
                accounts: Table::new(limits.account, limits.max_entries),
            }),
            hasher: RandomState::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // Every operation leaves the tables consistent, so a panic elsewhere does not matter.
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks whether logins from an address are refused at the moment.
    ///
    /// # Errors
    /// [`Refused`] when they are.
    pub fn check_address(&self, address: IpAddr, now: Instant) -> Result<(), Refused> {
        self.lock().addresses.check(&address.into(), now)
    }

    /// Begins an attempt to log in as `local` (prepared) at `host`, whether or not that account
    /// exists.
    ///
    /// # Errors
    /// [`Refused`] when the address has no token left, or has none left for this account.
    pub fn begin(
        self: &Arc<Self>,
        address: IpAddr,
        host: &str,
        local: &str,
        now: Instant,
    ) -> Result<Attempt, Refused> {
        let network = Network::from(address);
        let account = (network, self.hasher.hash_one((host, local)));
        let mut tables = self.lock();
        tables.addresses.check(&network, now)?;
        tables.accounts.check(&account, now)?;
        tables.accounts.take(account, now);
        drop(tables);
        Ok(Attempt { tracker: self.clone(), account, began: now, open: true })
    }
}

/// An attempt to log in that has begun. Dropping it counts as a failure, so that no path through
/// the code can forget one.
#[derive(Debug)]
#[must_use = "dropping an attempt counts as a failure"]
pub struct Attempt {
    tracker: Arc<FailureTracker>,
    account: (Network, u64),
    began: Instant,
    open: bool,
}

impl Attempt {
    /// The login succeeded: earlier failures of this account from this address are forgotten.
    pub fn succeeded(mut self) {
        self.open = false;
        self.tracker.lock().accounts.full_at.remove(&self.account);
    }

    /// The login came to nothing through no fault of the client (a storage failure).
    pub fn abandoned(mut self) {
        self.open = false;
        self.tracker.lock().accounts.give_back(&self.account);
    }

    /// The login failed.
    pub fn failed(self) {}
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.open {
            self.tracker.lock().addresses.take(self.account.0, self.began);
        }
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;

//! How often one address may try to register an account.
//!
//! What must hold: an address (an IPv6 /64 counts as one) gets at most one new account and
//! [`MAX_FAILURES`] failed attempts in each interval, also when attempts run at the same time;
//! the table never exceeds its limit, and while it is full of addresses that still wait, new
//! addresses are refused.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Failed attempts of an address in one interval; more would let it search for taken usernames.
pub const MAX_FAILURES: u32 = 10;

/// Most addresses that are remembered at once.
pub const MAX_ADDRESSES: usize = 10_000;

/// Least time between two searches of a full table for entries to drop.
const SWEEP_PAUSE: Duration = Duration::from_secs(1);

/// The addresses that have registered or tried to.
#[derive(Debug)]
pub(crate) struct AddressLimit {
    interval: Duration,
    capacity: usize,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    entries: HashMap<IpAddr, Entry>,
    next_sweep: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    /// No attempt before this: an account was registered, or an attempt is running.
    next: Instant,
    failures: u32,
    /// When the failures are forgotten.
    forget: Instant,
}

impl AddressLimit {
    /// One account per `interval` and address; zero for no limit.
    pub(crate) fn new(interval: Duration, capacity: usize) -> Self {
        Self { interval, capacity, table: Mutex::default() }
    }

    /// Begins an attempt; false when the address has to wait. Unless [`AddressLimit::failed`]
    /// follows, the attempt counts as a new account.
    pub(crate) fn begin(&self, address: IpAddr, now: Instant) -> bool {
        if self.interval.is_zero() {
            return true;
        }
        let key = network(address);
        let mut table = self.lock();
        if !table.entries.contains_key(&key) && !table.has_room(self.capacity, now) {
            return false;
        }
        let entry = table.entries.entry(key).or_insert(Entry { next: now, failures: 0, forget: now });
        if now >= entry.forget {
            entry.failures = 0;
        }
        if now < entry.next || entry.failures >= MAX_FAILURES {
            return false;
        }
        entry.next = now + self.interval;
        true
    }

    /// The attempt that was begun did not register an account.
    pub(crate) fn failed(&self, address: IpAddr, now: Instant) {
        if let Some(entry) = self.lock().entries.get_mut(&network(address)) {
            if entry.failures == 0 {
                entry.forget = now + self.interval;
            }
            entry.failures += 1;
            entry.next = now;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // No change of the table can be left half done by a panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// True when one more entry fits, after dropping those that no longer hold anyone back.
    fn has_room(&mut self, capacity: usize, now: Instant) -> bool {
        if self.entries.len() < capacity {
            return true;
        }
        if self.next_sweep.is_some_and(|next| now < next) {
            return false;
        }
        self.next_sweep = Some(now + SWEEP_PAUSE);
        self.entries.retain(|_, entry| now < entry.next || now < entry.forget);
        self.entries.len() < capacity
    }
}

/// What counts as one address: an IPv4 address, also when mapped into IPv6, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(600);
    const SECOND: Duration = Duration::from_secs(1);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn m5_one_account_per_address_and_interval() {
        let limit = AddressLimit::new(INTERVAL, 10);
        let start = Instant::now();
        assert!(limit.begin(ip("192.0.2.1"), start));
        assert!(!limit.begin(ip("192.0.2.1"), start + INTERVAL - SECOND));
        assert!(limit.begin(ip("192.0.2.2"), start));
        assert!(limit.begin(ip("192.0.2.1"), start + INTERVAL));
        assert!(!limit.begin(ip("192.0.2.1"), start + INTERVAL + SECOND));
    }

    #[test]
    fn m5_an_ipv6_network_and_a_mapped_address_count_as_one() {
        let limit = AddressLimit::new(INTERVAL, 10);
        let now = Instant::now();
        assert!(limit.begin(ip("2001:db8:0:1::1"), now));
        assert!(!limit.begin(ip("2001:db8:0:1:ffff::2"), now));
        assert!(limit.begin(ip("2001:db8:0:2::1"), now));
        assert!(limit.begin(ip("192.0.2.1"), now));
        assert!(!limit.begin(ip("::ffff:192.0.2.1"), now));
    }

    #[test]
    fn failures_cost_less_than_accounts_but_are_limited() {
        let limit = AddressLimit::new(INTERVAL, 10);
        let start = Instant::now();
        let address = ip("192.0.2.1");
        for second in 0..MAX_FAILURES {
            let now = start + SECOND * second;
            assert!(limit.begin(address, now), "attempt {second}");
            limit.failed(address, now);
        }
        assert!(!limit.begin(address, start + INTERVAL - SECOND));
        assert!(limit.begin(address, start + INTERVAL));
    }

    #[test]
    fn attempts_at_the_same_time_register_one_account() {
        let limit = AddressLimit::new(INTERVAL, 10);
        let now = Instant::now();
        assert!(limit.begin(ip("192.0.2.1"), now));
        assert!(!limit.begin(ip("192.0.2.1"), now));
        limit.failed(ip("192.0.2.1"), now);
        assert!(limit.begin(ip("192.0.2.1"), now));
    }

    #[test]
    fn a_full_table_refuses_new_addresses_until_old_ones_expire() {
        let limit = AddressLimit::new(INTERVAL, 3);
        let start = Instant::now();
        for last in 1..=3 {
            assert!(limit.begin(IpAddr::from([192, 0, 2, last]), start + SECOND * u32::from(last)));
        }
        assert!(!limit.begin(ip("198.51.100.1"), start + INTERVAL));
        assert!(limit.begin(ip("198.51.100.1"), start + INTERVAL + SECOND));
        assert!(!limit.begin(ip("198.51.100.2"), start + INTERVAL + SECOND));
        assert_eq!(limit.lock().entries.len(), 3);
    }

    #[test]
    fn no_interval_is_no_limit() {
        let limit = AddressLimit::new(Duration::ZERO, 0);
        let now = Instant::now();
        assert!((0..100).all(|_| limit.begin(ip("192.0.2.1"), now)));
    }
}

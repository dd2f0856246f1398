//! Who may connect: how many connections an address may have, and how fast it may open them.
//!
//! An address is an IPv4 address or an IPv6 /64 network, since a single customer commonly has a whole /64.
//! The table is bounded: an address without connections is forgotten once its allowance is full again, and
//! when the table is full of active ones, new addresses are refused.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Limits per address. Zero switches a limit off.
#[derive(Debug, Clone, PartialEq)]
pub struct AddressLimits {
    /// Connections open at once.
    pub connections: u32,
    /// New connections per second, in the long run.
    pub rate: f64,
    /// New connections that may come at once before `rate` applies.
    pub burst: u32,
    /// Addresses that are kept track of.
    pub tracked: usize,
}

impl Default for AddressLimits {
    /// 200 connections, 20 new ones a second after a burst of 100, 65,536 addresses.
    fn default() -> Self {
        Self { connections: 200, rate: 20.0, burst: 100, tracked: 65_536 }
    }
}

impl AddressLimits {
    /// No limit for any address.
    pub fn unlimited() -> Self {
        Self { connections: 0, rate: 0.0, burst: 0, tracked: 0 }
    }

    fn active(&self) -> bool {
        self.connections > 0 || self.rate > 0.0
    }
}

/// Why a connection was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address has as many connections as it may.
    #[error("too many connections from this address")]
    Connections,
    /// The address opens connections too fast.
    #[error("connections opened too fast from this address")]
    Rate,
    /// The table of addresses is full.
    #[error("too many addresses connected")]
    Addresses,
}

/// The table of addresses; clones share it, so that several listeners can count together.
#[derive(Clone)]
pub struct Admission {
    limits: Arc<AddressLimits>,
    table: Arc<Mutex<Table>>,
}

#[derive(Default)]
struct Table {
    entries: HashMap<Key, Entry>,
    /// The size at which entries that are no longer needed are looked for.
    purge_at: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Key {
    V4(u32),
    /// The first 64 bits.
    V6(u64),
}

impl From<IpAddr> for Key {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => Self::V6((v6.to_bits() >> 64) as u64),
        }
    }
}

struct Entry {
    connections: u32,
    allowance: f64,
    updated: Instant,
}

impl Entry {
    fn refill(&mut self, limits: &AddressLimits, now: Instant) {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.allowance = elapsed.mul_add(limits.rate, self.allowance).min(limits.full_allowance());
        self.updated = now;
    }
}

impl AddressLimits {
    fn full_allowance(&self) -> f64 {
        f64::from(self.burst.max(1))
    }
}

/// One connection's place in the count of its address, given back on drop.
pub struct AddressSlot {
    table: Arc<Mutex<Table>>,
    key: Key,
}

impl Drop for AddressSlot {
    fn drop(&mut self) {
        if let Some(entry) = lock(&self.table).entries.get_mut(&self.key) {
            entry.connections = entry.connections.saturating_sub(1);
        }
    }
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    // Every change under the lock is complete in itself, so a poisoned lock guards a whole table.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// An empty table.
    pub fn new(limits: AddressLimits) -> Self {
        Self { limits: Arc::new(limits), table: Arc::default() }
    }

    /// Counts a new connection from `address`, or refuses it. `None` means that there are no limits.
    pub fn admit(&self, address: IpAddr) -> Result<Option<AddressSlot>, Refusal> {
        self.admit_at(address, Instant::now())
    }

    fn admit_at(&self, address: IpAddr, now: Instant) -> Result<Option<AddressSlot>, Refusal> {
        let limits = &*self.limits;
        if !limits.active() {
            return Ok(None);
        }
        let key = Key::from(address);
        let mut table = lock(&self.table);
        if !table.entries.contains_key(&key) {
            table.make_room(limits, now)?;
        }
        let entry = table.entries.entry(key).or_insert_with(|| Entry {
            connections: 0,
            allowance: limits.full_allowance(),
            updated: now,
        });
        entry.refill(limits, now);
        if limits.connections > 0 && entry.connections >= limits.connections {
            return Err(Refusal::Connections);
        }
        if limits.rate > 0.0 {
            if entry.allowance < 1.0 {
                return Err(Refusal::Rate);
            }
            entry.allowance -= 1.0;
        }
        entry.connections += 1;
        Ok(Some(AddressSlot { table: self.table.clone(), key }))
    }

    /// How many connections `address` has.
    pub fn connections(&self, address: IpAddr) -> u32 {
        lock(&self.table).entries.get(&Key::from(address)).map_or(0, |entry| entry.connections)
    }
}

impl Table {
    /// Makes room for one more entry. Looking through the table is paid for by the entries added since the
    /// last time, so that a flood of new addresses cannot make each accept slow.
    fn make_room(&mut self, limits: &AddressLimits, now: Instant) -> Result<(), Refusal> {
        const SMALLEST_PURGE: usize = 64;
        let tracked = limits.tracked.max(1);
        if self.entries.len() >= self.purge_at.max(SMALLEST_PURGE).min(tracked) {
            self.entries.retain(|_, entry| {
                entry.refill(limits, now);
                entry.connections > 0 || (limits.rate > 0.0 && entry.allowance < limits.full_allowance())
            });
            self.purge_at = self.entries.len() * 2;
            if self.entries.len() < self.entries.capacity() / 4 {
                self.entries.shrink_to(SMALLEST_PURGE.max(self.purge_at));
            }
        }
        if self.entries.len() >= tracked { Err(Refusal::Addresses) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn connections_are_capped_and_given_back() {
        let limits = AddressLimits { connections: 2, rate: 0.0, burst: 0, tracked: 10 };
        let admission = Admission::new(limits);
        let one = address("192.0.2.1");
        let first = admission.admit(one).unwrap();
        let _second = admission.admit(one).unwrap();
        assert_eq!(admission.admit(one).err(), Some(Refusal::Connections));
        assert!(admission.admit(address("192.0.2.2")).is_ok(), "another address is not concerned");
        drop(first);
        assert_eq!(admission.connections(one), 1);
        assert!(admission.admit(one).is_ok());
    }

    #[test]
    fn rate_applies_after_the_burst() {
        let limits = AddressLimits { connections: 0, rate: 10.0, burst: 3, tracked: 10 };
        let admission = Admission::new(limits);
        let one = address("192.0.2.1");
        let start = Instant::now();
        for _ in 0..3 {
            admission.admit_at(one, start).unwrap();
        }
        assert_eq!(admission.admit_at(one, start).err(), Some(Refusal::Rate));
        assert!(admission.admit_at(one, start + Duration::from_millis(101)).is_ok());
        assert_eq!(admission.admit_at(one, start + Duration::from_millis(101)).err(), Some(Refusal::Rate));
        let later = start + Duration::from_secs(3600);
        for _ in 0..3 {
            admission.admit_at(one, later).unwrap();
        }
        assert_eq!(
            admission.admit_at(one, later).err(),
            Some(Refusal::Rate),
            "no more than the burst is saved up"
        );
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address() {
        let limits = AddressLimits { connections: 1, rate: 0.0, burst: 0, tracked: 10 };
        let admission = Admission::new(limits);
        let _held = admission.admit(address("2001:db8:0:1::1")).unwrap();
        assert!(admission.admit(address("2001:db8:0:1:ffff::2")).is_err());
        assert!(admission.admit(address("2001:db8:0:2::1")).is_ok());
        let _v4 = admission.admit(address("192.0.2.7")).unwrap();
        assert!(admission.admit(address("::ffff:192.0.2.7")).is_err(), "a mapped address is the IPv4 one");
    }

    #[test]
    fn the_table_is_bounded() {
        let limits = AddressLimits { connections: 5, rate: 1.0, burst: 1, tracked: 100 };
        let admission = Admission::new(limits);
        let start = Instant::now();
        let held: Vec<_> =
            (0..100u32).map(|n| admission.admit_at(IpAddr::from(n.to_be_bytes()), start).unwrap()).collect();
        let newcomer = address("198.51.100.1");
        assert_eq!(admission.admit_at(newcomer, start).err(), Some(Refusal::Addresses));
        drop(held);
        assert_eq!(
            admission.admit_at(newcomer, start).err(),
            Some(Refusal::Addresses),
            "used allowance is remembered"
        );
        assert!(admission.admit_at(newcomer, start + Duration::from_secs(2)).is_ok());
        assert_eq!(lock(&admission.table).entries.len(), 1, "idle addresses are forgotten");
    }

    #[test]
    fn no_limits_no_table() {
        let admission = Admission::new(AddressLimits::unlimited());
        assert!(admission.admit(address("192.0.2.1")).unwrap().is_none());
        assert!(lock(&admission.table).entries.is_empty());
    }
}

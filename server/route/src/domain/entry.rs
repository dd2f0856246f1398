//! Which remote domains have a route, and how much waits for each (DELIVERY 4, row "s2s out per domain").
//!
//! What must hold: at most one route of a pair of domains takes work at any time; a route ends only while
//! nothing is counted for it and nobody is about to give it something, and what is on its way to its queue is
//! counted, so a committed record finds the route that it was meant for; what a queue held before its route
//! began is counted once.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ahash::HashMap;
use waystation_core::Stanza;
use waystation_core::queue::{QueueName, QueueStats, RecordId};
use waystation_runtime::{Inlet, Offer, Outlet};

use super::{DomainConfig, DomainMail};
use crate::remote::Pair;

/// The handle of a domain's route.
pub(crate) type DomainOutlet = Outlet<DomainMail>;

/// The prefix of all queues of remote domains.
pub const DOMAIN_QUEUES: &str = "d/";

/// The queue of a pair of domains. No domain holds a slash.
pub fn domain_queue(pair: &Pair) -> QueueName {
    [DOMAIN_QUEUES, &pair.local, "/", &pair.remote].concat().into()
}

/// Reads [`domain_queue`].
pub(crate) fn parse_queue(name: &str) -> Option<Pair> {
    let (local, remote) = name.strip_prefix(DOMAIN_QUEUES)?.split_once('/')?;
    (!local.is_empty() && !remote.is_empty()).then(|| Pair::new(local, remote))
}

/// How the route of a pair is reached, and what waits for it.
pub struct Domain {
    /// The domains.
    pub pair: Arc<Pair>,
    /// Their queue.
    pub queue: QueueName,
    pub(crate) outlet: DomainOutlet,
    /// The newest record that was committed for it: what is offered afterwards comes behind that.
    newest: AtomicU64,
    /// The route had no room for a record, and is given none until it reads the log.
    behind: AtomicBool,
    counts: Mutex<Counts>,
    /// It is counted among the domains that wait.
    pending: AtomicBool,
}

/// What is in the queue and on its way there.
#[derive(Default)]
struct Counts {
    closed: bool,
    /// Those who are about to give the route something ([`Claim`]).
    claims: usize,
    records: u64,
    bytes: u64,
    /// The position up to which the queue was counted when the route began; `None` until it was.
    counted: Option<RecordId>,
    /// What was committed until then, with its bytes.
    early: Vec<(RecordId, u64)>,
}

impl Counts {
    fn remove(&mut self, records: u64, bytes: u64) {
        self.records = self.records.saturating_sub(records);
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Why nothing more may wait for a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// Its route has ended: look again.
    Gone,
    /// As much waits as may.
    Full,
}

impl Domain {
    /// One whose route is about to be started, for whoever gives it something then.
    pub(crate) fn begin(pair: Arc<Pair>, outlet: DomainOutlet) -> Claim {
        let queue = domain_queue(&pair);
        let domain = Arc::new(Self {
            pair,
            queue,
            outlet,
            newest: AtomicU64::new(0),
            behind: AtomicBool::new(false),
            counts: Mutex::new(Counts { claims: 1, ..Counts::default() }),
            pending: AtomicBool::new(false),
        });
        Claim { domain }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the route from ending; `None` when it has.
    fn claim(self: &Arc<Self>) -> Option<Claim> {
        let mut counts = self.counts();
        if counts.closed {
            return None;
        }
        counts.claims += 1;
        drop(counts);
        Some(Claim { domain: self.clone() })
    }

    /// Room for a record of so many bytes; with `limits` only as much as they allow.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        bytes: usize,
        limits: Option<&DomainConfig>,
    ) -> Result<Reservation, NoRoom> {
        let bytes = bytes as u64;
        let mut counts = self.counts();
        if counts.closed {
            return Err(NoRoom::Gone);
        }
        if let Some(limits) = limits
            && (counts.records >= limits.queue_records || counts.bytes + bytes > limits.queue_bytes)
        {
            return Err(NoRoom::Full);
        }
        counts.records += 1;
        counts.bytes += bytes;
        drop(counts);
        Ok(Reservation { domain: self.clone(), bytes, open: true })
    }

    /// A record that room was reserved for is in the queue.
    fn committed(&self, id: RecordId, bytes: u64) {
        let mut counts = self.counts();
        match counts.counted {
            Some(counted) if id <= counted => counts.remove(1, bytes),
            Some(_) => {}
            None => counts.early.push((id, bytes)),
        }
    }

    /// What the queue held when its route began, of which all up to `given` was known to whom it concerned.
    pub(super) fn found(&self, stats: &QueueStats, given: RecordId) {
        let mut counts = self.counts();
        counts.records += stats.pending;
        counts.bytes += stats.bytes;
        counts.counted = Some(stats.as_of);
        for (id, bytes) in std::mem::take(&mut counts.early) {
            if id <= stats.as_of {
                counts.remove(1, bytes);
            }
        }
        drop(counts);
        if stats.pending > 0 {
            // What is newer than that is on its way here.
            self.newest.fetch_max(stats.as_of.min(given).0, Ordering::SeqCst);
        }
    }

    /// Records have left the queue, or never will.
    pub(super) fn release(&self, records: u64, bytes: u64) {
        self.counts().remove(records, bytes);
    }

    /// Records that wait or are on their way, and their bytes.
    pub(crate) fn depth(&self) -> (u64, u64) {
        let counts = self.counts();
        (counts.records, counts.bytes)
    }

    /// The newest record that was committed for it.
    pub(super) fn newest(&self) -> u64 {
        self.newest.load(Ordering::SeqCst)
    }

    /// The route begins to read the log, after which it is given records again.
    pub(super) fn reads_the_log(&self) {
        self.behind.store(false, Ordering::SeqCst);
    }

    /// Gives the route a record; false when the route has ended.
    pub(crate) fn record(&self, id: RecordId, stanza: Stanza, at: SystemTime) -> bool {
        // In one order with the route's look at both: if this is not mailed, the route will look once more.
        self.newest.fetch_max(id.0, Ordering::SeqCst);
        if self.behind.load(Ordering::SeqCst) {
            return !self.outlet.is_closed();
        }
        match self.outlet.offer(DomainMail::Record(id, stanza, at)) {
            Offer::Accepted => true,
            Offer::Full(_) => {
                self.behind.store(true, Ordering::SeqCst);
                self.outlet.offer_control(DomainMail::Behind).is_accepted()
            }
            Offer::Gone(_) => false,
        }
    }

    /// Gives the route a stanza that nothing keeps, with its place among the records. `in_any_case`: also
    /// when the route has no room.
    pub(crate) fn offer(&self, stanza: Stanza, in_any_case: bool) -> Offer<Stanza> {
        let mail = DomainMail::Stanza(stanza, self.newest());
        let offered = if in_any_case { self.outlet.offer_control(mail) } else { self.outlet.offer(mail) };
        match offered {
            Offer::Accepted => Offer::Accepted,
            Offer::Full(DomainMail::Stanza(stanza, _)) => Offer::Full(stanza),
            Offer::Gone(DomainMail::Stanza(stanza, _)) => Offer::Gone(stanza),
            // What is given back is what was offered.
            Offer::Full(_) | Offer::Gone(_) => Offer::Accepted,
        }
    }

    /// Closes the inlet of its route when nobody has a claim to it and nothing is counted, or `whatever` is;
    /// true when it did.
    pub(super) fn close_if_idle(&self, inlet: &mut Inlet<DomainMail>, whatever: bool) -> bool {
        let mut counts = self.counts();
        if counts.claims > 0 || (counts.records > 0 && !whatever) || !inlet.close_if_idle() {
            return false;
        }
        counts.closed = true;
        true
    }

    /// Closes it whatever is counted.
    pub(super) fn close(&self, inlet: &mut Inlet<DomainMail>) {
        self.counts().closed = true;
        drop(inlet.close());
    }
}

/// Whoever has it may give the route something: it does not end before this is dropped, but in a panic. Without
/// it a route that has just begun could end, having nothing to do, before it is given what it was begun for.
pub(crate) struct Claim {
    domain: Arc<Domain>,
}

impl Deref for Claim {
    type Target = Arc<Domain>;

    fn deref(&self) -> &Arc<Domain> {
        &self.domain
    }
}

impl Drop for Claim {
    /// A route that could have ended meanwhile looks again by itself.
    fn drop(&mut self) {
        self.domain.counts().claims -= 1;
    }
}

/// Room for one record in the queue of a domain; given back when it is dropped, unless the record is there.
pub struct Reservation {
    domain: Arc<Domain>,
    bytes: u64,
    open: bool,
}

impl Reservation {
    /// The domain.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// The record is in the queue.
    pub(crate) fn commit(mut self, id: RecordId) -> Arc<Domain> {
        self.open = false;
        self.domain.committed(id, self.bytes);
        self.domain.clone()
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.open {
            self.domain.release(1, self.bytes);
        }
    }
}

/// The routes of remote domains.
#[derive(Default)]
pub(crate) struct Domains {
    /// By remote domain: few servers have many domains of their own.
    routes: Mutex<HashMap<Box<str>, Vec<Arc<Domain>>>>,
    count: AtomicUsize,
    /// Those that hold something and are not sending.
    pending: AtomicUsize,
}

impl Domains {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<Arc<Domain>>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The route of a pair, if there is one that takes work.
    pub(crate) fn find(&self, local: &str, remote: &str) -> Option<Arc<Domain>> {
        let routes = self.lock();
        let found = routes.get(remote)?.iter().find(|domain| *domain.pair.local == *local)?;
        (!found.outlet.is_closed()).then(|| found.clone())
    }

    /// The same, started by `start` when there is none.
    pub(crate) fn find_or_start<E>(
        &self,
        local: &str,
        remote: &str,
        start: impl FnOnce() -> Result<Claim, E>,
    ) -> Result<Claim, E> {
        let mut routes = self.lock();
        let of_remote = routes.get(remote).and_then(|all| all.iter().find(|d| *d.pair.local == *local));
        if let Some(found) = of_remote.and_then(Domain::claim) {
            return Ok(found);
        }
        let domain = start()?;
        let all = routes.entry(remote.into()).or_default();
        let before = all.len();
        all.retain(|other| *other.pair.local != *local);
        all.push(domain.domain.clone());
        if all.len() > before {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(domain)
    }

    /// Removes a route that has closed its inlet, unless a newer one has taken its place.
    pub(super) fn remove(&self, domain: &Arc<Domain>) {
        self.set_pending(domain, false);
        let mut routes = self.lock();
        let Some(all) = routes.get_mut(&domain.pair.remote) else { return };
        let before = all.len();
        all.retain(|other| !Arc::ptr_eq(other, domain));
        if all.len() < before {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        if all.is_empty() {
            routes.remove(&domain.pair.remote);
        }
    }

    /// Whether a route holds something and is not sending.
    pub(crate) fn set_pending(&self, domain: &Domain, pending: bool) {
        match (domain.pending.swap(pending, Ordering::AcqRel), pending) {
            (false, true) => self.pending.fetch_add(1, Ordering::AcqRel),
            (true, false) => self.pending.fetch_sub(1, Ordering::AcqRel),
            _ => return,
        };
    }

    /// How many hold something and are not sending.
    pub(crate) fn pending(&self) -> usize {
        self.pending.load(Ordering::Acquire)
    }

    /// How many routes there are.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// All, or those to one domain, in the order of their names.
    pub(crate) fn all(&self, remote: Option<&str>) -> Vec<Arc<Domain>> {
        let mut all: Vec<_> = match remote {
            Some(remote) => self.lock().get(remote).cloned().unwrap_or_default(),
            None => self.lock().values().flatten().cloned().collect(),
        };
        all.sort_by(|a, b| (&a.pair.remote, &a.pair.local).cmp(&(&b.pair.remote, &b.pair.local)));
        all
    }
}

#[cfg(test)]
mod tests {
    use waystation_runtime::outlet;

    use super::*;

    fn begun() -> (Claim, Inlet<DomainMail>) {
        let (outlet, inlet) = outlet(1000, 10);
        (Domain::begin(Arc::new(Pair::new("h", "r")), outlet), inlet)
    }

    fn domain() -> (Arc<Domain>, Inlet<DomainMail>) {
        let (claim, inlet) = begun();
        (claim.clone(), inlet)
    }

    #[test]
    fn a_route_that_is_claimed_does_not_end() {
        let domains = Domains::default();
        let (begun, mut inlet) = begun();
        let first = domains.find_or_start::<()>("h", "r", || Ok(begun)).unwrap();
        assert!(!first.close_if_idle(&mut inlet, false), "it was begun for something");
        let second = domains.find_or_start::<()>("h", "r", || panic!("there is one")).unwrap();
        let domain = first.clone();
        drop(first);
        assert!(!domain.close_if_idle(&mut inlet, true));
        drop(second);
        assert!(domain.close_if_idle(&mut inlet, false));
        assert!(domain.claim().is_none());
    }

    #[test]
    fn names_of_queues_read_back() {
        let pair = Pair::new("a.example", "[2001:db8::1]");
        assert_eq!(parse_queue(&domain_queue(&pair)), Some(pair));
        for wrong in ["a/x@y", "d/x", "d//y", "d/x/"] {
            assert_eq!(parse_queue(wrong), None);
        }
    }

    #[test]
    fn what_the_queue_held_is_counted_once() {
        let (domain, _inlet) = domain();
        let [first, second, third, refused] = [0; 4].map(|_| domain.reserve(10, None).unwrap());
        // Committed before the queue was looked at; the route does not know yet.
        first.commit(RecordId(5));
        drop(refused);
        let as_of = RecordId(6);
        domain.found(&QueueStats { pending: 3, bytes: 30, as_of, ..QueueStats::default() }, RecordId(4));
        assert_eq!(domain.newest(), 4);
        assert_eq!(domain.depth(), (3 + 2, 50), "two are on their way");
        second.commit(RecordId(6));
        assert_eq!(domain.depth(), (4, 40), "it was counted already");
        third.commit(RecordId(7));
        assert_eq!(domain.depth(), (4, 40));
        domain.release(4, 40);
        assert_eq!(domain.depth(), (0, 0));
    }

    #[test]
    fn limits_hold_to_the_record_and_the_byte_and_a_route_with_something_does_not_close() {
        let (domain, mut inlet) = domain();
        let limits = DomainConfig { queue_records: 2, queue_bytes: 100, ..DomainConfig::default() };
        let first = domain.reserve(60, Some(&limits)).unwrap();
        assert_eq!(domain.reserve(41, Some(&limits)).err(), Some(NoRoom::Full));
        let _second = domain.reserve(40, Some(&limits)).unwrap();
        assert_eq!(domain.reserve(0, Some(&limits)).err(), Some(NoRoom::Full));
        let _third = domain.reserve(1000, None).unwrap();
        assert!(!domain.close_if_idle(&mut inlet, false));
        drop((first, _second, _third));
        assert!(domain.close_if_idle(&mut inlet, false));
        assert_eq!(domain.reserve(1, None).err(), Some(NoRoom::Gone));
    }

    #[test]
    fn a_stale_removal_leaves_the_newer_route() {
        let domains = Domains::default();
        let [(first, mut inlet), (second, _inlet)] = [begun(), begun()];
        let first = domains.find_or_start::<()>("h", "r", || Ok(first)).unwrap().clone();
        first.close(&mut inlet);
        assert!(domains.find("h", "r").is_none());
        let second = domains.find_or_start::<()>("h", "r", || Ok(second)).unwrap().clone();
        [&first, &second].into_iter().for_each(|domain| domains.set_pending(domain, true));
        assert_eq!((domains.len(), domains.pending()), (1, 2));
        domains.remove(&first);
        assert_eq!((domains.len(), domains.pending()), (1, 1));
        assert!(domains.find("h", "r").is_some_and(|found| Arc::ptr_eq(&found, &second)));
        assert!(domains.find("other", "r").is_none());
        domains.remove(&second);
        assert_eq!((domains.len(), domains.pending(), domains.all(None).len()), (0, 0, 0));
    }
}

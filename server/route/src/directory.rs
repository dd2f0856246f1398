//! Which account has a route, and where (ARCHITECTURE: Directory).
//!
//! What must hold: at most one route of an account takes work at any time. A route leaves by
//! closing its inlet while it is idle and then removing its own entry, so an outlet that
//! answers `Gone` means "look again", never "lost".

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ahash::{HashMap, RandomState};
use waystation_core::Jid;
use waystation_core::queue::QueueName;
use waystation_runtime::Outlet;

use crate::mail::AccountMail;

const SHARDS: usize = 64;

/// The handle of an account's route.
pub type AccountOutlet = Outlet<AccountMail>;

/// How an account's route is reached, and its queue.
#[derive(Clone)]
pub struct Entry {
    /// Its route.
    pub outlet: AccountOutlet,
    /// The name of its queue, made once.
    pub queue: QueueName,
}

/// Live account routes by bare JID.
pub struct Directory {
    shards: Vec<Mutex<HashMap<Arc<str>, Entry>>>,
    hasher: RandomState,
    routes: AtomicUsize,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::default())).collect(),
            hasher: RandomState::new(),
            routes: AtomicUsize::new(0),
        }
    }
}

impl Directory {
    fn shard(&self, bare: &str) -> MutexGuard<'_, HashMap<Arc<str>, Entry>> {
        let index = self.hasher.hash_one(bare) as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The route of an account, started by `start` when there is none (or only one that has
    /// closed); `None` when `start` cannot start any. `take` is what is wanted of it.
    pub fn find_or_start<T>(
        &self,
        account: &Jid,
        start: impl FnOnce() -> Option<Entry>,
        take: impl FnOnce(&Entry) -> T,
    ) -> Option<T> {
        let bare = account.bare_str();
        let mut shard = self.shard(bare);
        if let Some(entry) = shard.get(bare)
            && !entry.outlet.is_closed()
        {
            return Some(take(entry));
        }
        let entry = start()?;
        let taken = take(&entry);
        if shard.insert(account.bare_text(), entry).is_none() {
            self.routes.fetch_add(1, Ordering::Relaxed);
        }
        Some(taken)
    }

    /// The route of an account, if there is one.
    pub fn find(&self, bare: &str) -> Option<AccountOutlet> {
        self.shard(bare).get(bare).map(|entry| &entry.outlet).filter(|outlet| !outlet.is_closed()).cloned()
    }

    /// Removes a route that has closed its inlet, unless a newer one has taken its place.
    pub fn remove(&self, bare: &str, route: &AccountOutlet) {
        let mut shard = self.shard(bare);
        if shard.get(bare).is_some_and(|found| found.outlet.same_queue(route)) {
            shard.remove(bare);
            self.routes.fetch_sub(1, Ordering::Relaxed);
            // A map that once held many routes does not keep their room for ever.
            if shard.capacity() > 64 && shard.len() < shard.capacity() / 4 {
                shard.shrink_to_fit();
            }
        }
    }

    /// How many routes there are.
    pub fn len(&self) -> usize {
        self.routes.load(Ordering::Relaxed)
    }

    /// True when there is no route.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All routes, for administrators.
    pub fn all(&self) -> Vec<AccountOutlet> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.values().map(|entry| entry.outlet.clone()));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use waystation_runtime::outlet;

    use super::*;

    #[test]
    fn a_stale_removal_leaves_the_newer_route() {
        let directory = Directory::default();
        let account = Jid::parse("a@h").unwrap();
        let entry = |outlet: &AccountOutlet| Some(Entry { outlet: outlet.clone(), queue: "a/a@h".into() });
        let taken = |entry: &Entry| entry.outlet.clone();
        let (first, mut first_inlet) = outlet(1000, 10);
        let found = directory.find_or_start(&account, || entry(&first), taken);
        assert!(found.is_some_and(|o| o.same_queue(&first)));
        let again = directory.find_or_start(&account, || panic!("started twice"), taken);
        assert!(again.is_some_and(|o| o.same_queue(&first)));
        first_inlet.close();
        assert!(directory.find("a@h").is_none(), "a closed route is not found");
        let (second, _second_inlet) = outlet(1000, 10);
        directory.find_or_start(&account, || entry(&second), taken);
        directory.remove("a@h", &first);
        assert!(directory.find("a@h").is_some_and(|o| o.same_queue(&second)));
        assert_eq!(directory.len(), 1);
        directory.remove("a@h", &second);
        assert!(directory.is_empty());
    }
}

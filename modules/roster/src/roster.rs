//! The roster of one account: its contacts in memory, its versions, and the rows that hold both.
//!
//! What must hold: every change goes through [`Roster::store`], which returns the batch that
//! brings the stored rows to the same content; `version` grows by one with every change that
//! clients see, and no two items share one; for every version from `floor` on, the changes since
//! then are known (RFC 6121 2.6.3).
//!
//! Rows: space `roster`, key account NUL contact (both bare), value [`Contact::encode`]; space
//! `roster_version`, key account, value format (1 byte, 1), version and floor (8 bytes each,
//! little endian). Versions start at a random multiple of 2^32, so that those of a removed account
//! are unknown to an account that gets its name later.

use std::collections::BTreeMap;

use waystation_core::Jid;
use waystation_core::storage::{Batch, ScanRange, Space, Storage, StorageError, key};

use crate::RosterConfig;
use crate::contact::Contact;

/// Contacts.
const CONTACTS: Space = Space("roster");
/// Versions.
const VERSIONS: Space = Space("roster_version");
const VERSION_FORMAT: u8 = 1;
/// Most removed items that are remembered for clients that were away; who was away longer gets
/// the whole roster.
const MAX_REMOVED: usize = 100;
/// Rows read at once.
const PAGE: usize = 1_000;

/// The roster of one account.
#[derive(Debug)]
pub(crate) struct Roster {
    account: Jid,
    contacts: BTreeMap<Jid, Contact>,
    /// Removed items by the version of their removal.
    removed: BTreeMap<u64, Jid>,
    /// Version of the last change; 0 before the first.
    version: u64,
    /// Oldest version for which all later changes are known.
    floor: u64,
    totals: Totals,
}

/// Sums over all contacts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Totals {
    items: usize,
    item_bytes: usize,
    requests: usize,
    request_bytes: usize,
}

impl Totals {
    fn of(jid: &Jid, contact: &Contact) -> Self {
        Self {
            items: usize::from(contact.listed),
            item_bytes: if contact.listed { jid.as_str().len() + contact.text_len() } else { 0 },
            requests: usize::from(contact.request.is_some()),
            request_bytes: contact.request.as_ref().map_or(0, bytes::Bytes::len),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            items: self.items + other.items,
            item_bytes: self.item_bytes + other.item_bytes,
            requests: self.requests + other.requests,
            request_bytes: self.request_bytes + other.request_bytes,
        }
    }

    /// `other` was added before.
    fn minus(self, other: Self) -> Self {
        Self {
            items: self.items - other.items,
            item_bytes: self.item_bytes - other.item_bytes,
            requests: self.requests - other.requests,
            request_bytes: self.request_bytes - other.request_bytes,
        }
    }
}

impl Roster {
    /// Reads an account's roster.
    ///
    /// # Errors
    /// When the store fails, and [`StorageError::Corrupt`] when a row cannot be read back.
    pub(crate) async fn load(storage: &dyn Storage, account: Jid) -> Result<Self, StorageError> {
        let mut roster = Self {
            contacts: BTreeMap::new(),
            removed: BTreeMap::new(),
            version: 0,
            floor: 0,
            totals: Totals::default(),
            account,
        };
        if let Some(value) = storage.get(VERSIONS, roster.version_key()).await? {
            (roster.version, roster.floor) =
                decode_versions(&value).ok_or_else(|| corrupt("the version of a roster"))?;
        }
        let prefix = key(&[roster.account.as_str(), ""]);
        let mut range = ScanRange::prefix(prefix.clone(), PAGE);
        loop {
            let rows = storage.scan(CONTACTS, range.clone()).await?;
            let Some((last, _)) = rows.last() else { break };
            range = range.after(last.clone());
            let full = rows.len() == PAGE;
            for (row_key, value) in rows {
                let jid = row_key
                    .get(prefix.len()..)
                    .and_then(|jid| std::str::from_utf8(jid).ok())
                    .and_then(|jid| Jid::parse(jid).ok())
                    .ok_or_else(|| corrupt("the address of a contact"))?;
                let contact = Contact::decode(&value).ok_or_else(|| corrupt("a contact"))?;
                roster.insert(jid, contact);
            }
            if !full {
                break;
            }
        }
        Ok(roster)
    }

    /// The account's bare JID.
    pub(crate) fn account(&self) -> &Jid {
        &self.account
    }

    /// What is known of a contact, by its bare JID.
    pub(crate) fn contact(&self, bare: &str) -> Option<&Contact> {
        self.contacts.get(bare)
    }

    /// All contacts with what is known of them, in the order of their JIDs.
    pub(crate) fn contacts(&self) -> impl Iterator<Item = (&Jid, &Contact)> {
        self.contacts.iter()
    }

    /// The items that clients see.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&Jid, &Contact)> {
        self.contacts.iter().filter(|(_, contact)| contact.listed)
    }

    /// The contacts that may see the account's presence.
    pub(crate) fn subscribers(&self) -> impl Iterator<Item = &Jid> {
        self.contacts.iter().filter(|(_, contact)| contact.state.is_from()).map(|(jid, _)| jid)
    }

    /// True when the contact may see the account's presence.
    pub(crate) fn is_subscriber(&self, bare: &str) -> bool {
        self.contact(bare).is_some_and(|contact| contact.state.is_from())
    }

    /// Requests that wait for an answer, and the bytes they take up.
    pub(crate) fn pending_requests(&self) -> (usize, usize) {
        (self.totals.requests, self.totals.request_bytes)
    }

    /// Whether `contact` may replace what is known of `jid`: what is over a limit already may
    /// still shrink.
    pub(crate) fn has_room(&self, jid: &Jid, contact: &Contact, config: &RosterConfig) -> bool {
        let before = self.totals;
        let old = self.contacts.get(jid.as_str()).map(|old| Totals::of(jid, old)).unwrap_or_default();
        let after = before.minus(old).plus(Totals::of(jid, contact));
        after.items <= config.max_items().max(before.items)
            && after.item_bytes <= config.max_roster_bytes.max(before.item_bytes)
    }

    /// Replaces what is known of a contact and returns what to commit. `seen` says whether
    /// clients see the change: it then gets a version of its own. `first_version` is where
    /// versions begin if this is the first such change.
    pub(crate) fn store(
        &mut self,
        jid: &Jid,
        mut contact: Contact,
        seen: bool,
        first_version: impl FnOnce() -> u64,
    ) -> Batch {
        let mut batch = Batch::new();
        if let Some(old) = self.contacts.remove(jid.as_str()) {
            self.totals = self.totals.minus(Totals::of(jid, &old));
            if old.is_removed() {
                self.removed.remove(&old.changed);
            }
        }
        if seen {
            if self.version == 0 {
                self.floor = first_version();
                self.version = self.floor;
            }
            self.version += 1;
            contact.changed = self.version;
        }
        if contact.is_void() {
            batch = batch.delete(CONTACTS, self.contact_key(jid));
        } else {
            batch = batch.put(CONTACTS, self.contact_key(jid), contact.encode());
            self.insert(jid.clone(), contact);
        }
        while self.removed.len() > MAX_REMOVED {
            batch = self.forget_oldest_removal(batch);
        }
        if seen {
            batch = batch.put(VERSIONS, self.version_key(), encode_versions(self.version, self.floor));
        }
        batch
    }

    /// Empties the roster and returns what to commit.
    pub(crate) fn clear(&mut self) -> Batch {
        let mut batch = Batch::new();
        for jid in self.contacts.keys() {
            batch = batch.delete(CONTACTS, self.contact_key(jid));
        }
        self.contacts.clear();
        self.removed.clear();
        self.totals = Totals::default();
        self.version = 0;
        self.floor = 0;
        batch.delete(VERSIONS, self.version_key())
    }

    /// The version as clients see it.
    pub(crate) fn version(&self) -> String {
        version_text(self.version)
    }

    /// Items changed or removed after the version `seen` of a client, oldest change first. `None`
    /// when they are not known, or when the whole roster is shorter than one push for each of
    /// them (RFC 6121 2.6.3): a push costs about two items.
    pub(crate) fn changes_since(&self, seen: &str) -> Option<Vec<(&Jid, &Contact)>> {
        let seen = u64::from_str_radix(seen, 16).ok()?;
        if seen < self.floor || seen > self.version {
            return None;
        }
        let mut changes: Vec<_> =
            self.contacts.iter().filter(|(_, contact)| contact.changed > seen).collect();
        if changes.len() * 2 > self.totals.items + 1 {
            return None;
        }
        changes.sort_unstable_by_key(|(_, contact)| contact.changed);
        Some(changes)
    }

    fn insert(&mut self, jid: Jid, contact: Contact) {
        self.totals = self.totals.plus(Totals::of(&jid, &contact));
        if contact.is_removed() {
            self.removed.insert(contact.changed, jid.clone());
        }
        self.contacts.insert(jid, contact);
    }

    fn forget_oldest_removal(&mut self, batch: Batch) -> Batch {
        let Some((version, jid)) = self.removed.pop_first() else { return batch };
        self.floor = version;
        let row = self.contact_key(&jid);
        let Some(contact) = self.contacts.get_mut(jid.as_str()) else { return batch };
        contact.changed = 0;
        if contact.is_void() {
            self.contacts.remove(jid.as_str());
            batch.delete(CONTACTS, row)
        } else {
            batch.put(CONTACTS, row, contact.encode())
        }
    }

    fn contact_key(&self, jid: &Jid) -> bytes::Bytes {
        key(&[self.account.as_str(), jid.as_str()])
    }

    fn version_key(&self) -> bytes::Bytes {
        key(&[self.account.as_str()])
    }
}

/// A version as clients see it.
pub(crate) fn version_text(version: u64) -> String {
    format!("{version:x}")
}

fn encode_versions(version: u64, floor: u64) -> Vec<u8> {
    let mut out = vec![VERSION_FORMAT];
    out.extend_from_slice(&version.to_le_bytes());
    out.extend_from_slice(&floor.to_le_bytes());
    out
}

fn decode_versions(bytes: &[u8]) -> Option<(u64, u64)> {
    let (&format, rest) = bytes.split_first()?;
    let (version, floor) = rest.split_first_chunk()?;
    let floor = floor.try_into().ok()?;
    (format == VERSION_FORMAT).then(|| (u64::from_le_bytes(*version), u64::from_le_bytes(floor)))
}

fn corrupt(what: &str) -> StorageError {
    StorageError::Corrupt(format!("{what} cannot be read"))
}

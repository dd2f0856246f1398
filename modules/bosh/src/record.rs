//! What of a session is in the store, so that it goes on after a crash or restart of the server.
//!
//! In the space `bosh`: under the hash of the session's identifier a head, which is an element of
//! attributes; under the same hash followed by a request's ID the response to that request.
//!
//! What must hold: the identifier itself is not stored, so who reads the store cannot take over a
//! session; the head and the responses that it lists are written in one batch, and what it no
//! longer lists is deleted with it.

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use waystation_core::Jid;
use waystation_core::storage::{Batch, ScanRange, Space, Storage, StorageError};
use waystation_core::xml::{Element, escape_attr};

use crate::keys;
use crate::session::{Answered, Snapshot, Terms};
use crate::upstream::Counting;

/// Sessions that can be taken up again.
pub(crate) const SPACE: Space = Space("bosh");
const NS: &str = "urn:waystation:bosh";
/// Room for a head, in bytes, which suffices for most.
const HEAD: usize = 1024;
/// Rows that are read at once when expired sessions are looked for.
const PAGE: usize = 500;

/// A head that is being written.
struct Tag(Vec<u8>);

impl Tag {
    fn open(name: &str) -> Self {
        let mut tag = Self(Vec::with_capacity(HEAD));
        tag.begin(name);
        tag
    }

    fn begin(&mut self, name: &str) {
        self.0.push(b'<');
        self.0.extend_from_slice(name.as_bytes());
    }

    fn declare(&mut self, namespace: &str) {
        self.text("xmlns", namespace);
    }

    fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        escape_attr(value, &mut self.0);
        self.0.push(b'\'');
    }

    fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        // Writing to memory cannot fail.
        let _ = write!(self.0, "{value}'");
    }

    fn name(&mut self, name: &str) {
        self.0.push(b' ');
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"='");
    }

    /// Ends the start tag, or the element with it.
    fn end(&mut self, empty: bool) {
        self.0.extend_from_slice(if empty { &b"/>"[..] } else { b">" });
    }

    fn close(mut self, name: &str) -> Bytes {
        self.0.extend_from_slice(b"</");
        self.0.extend_from_slice(name.as_bytes());
        self.end(false);
        self.0.into()
    }
}

/// The hash of a session's identifier, by which it is known.
pub(crate) type SidHash = [u8; 32];

/// The hash of an identifier.
pub(crate) fn sid_hash(sid: &str) -> SidHash {
    Sha256::digest(sid).into()
}

/// What stays the same while a session lasts, and is not in its [`Terms`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The domain that it is for.
    pub(crate) host: String,
    pub(crate) from: Option<String>,
    pub(crate) lang: Option<String>,
    /// The header Content-Type of its responses.
    pub(crate) content: String,
    /// It was created over an encrypted connection.
    pub(crate) secure: bool,
}

/// A stored session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) identity: Identity,
    pub(crate) terms: Terms,
    pub(crate) snapshot: Snapshot,
    pub(crate) answered: VecDeque<Answered>,
    pub(crate) account: Jid,
    /// The identifier of its stream, for resumption.
    pub(crate) stream: String,
    /// Stanzas for the client that were acknowledged on it, as it counts.
    pub(crate) acknowledged: u64,
    pub(crate) counting: Option<Counting>,
}

impl Record {
    /// When it is over if nothing is heard of it, by the clock: a request may be held, and then
    /// the client be silent.
    fn expires(&self, now: SystemTime) -> u64 {
        let silence = self.snapshot.pause.unwrap_or_default().max(self.terms.inactivity);
        let until = now + self.terms.wait + silence;
        until.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    /// The head, as `Element` would write it: this is done for each response.
    fn head(&self, now: SystemTime) -> Bytes {
        let Self { identity, terms, snapshot, answered, account, stream, acknowledged, counting } = self;
        let mut head = Tag::open("session");
        head.declare(NS);
        head.number("expires", self.expires(now));
        head.text("account", account.as_str());
        head.text("stream", stream);
        head.text("host", &identity.host);
        head.text("content", &identity.content);
        head.number("secure", identity.secure.into());
        head.number("wait", terms.wait.as_secs());
        head.number("hold", terms.hold as u64);
        head.number("requests", terms.requests as u64);
        head.number("inactivity", terms.inactivity.as_secs());
        head.number("polling", terms.polling.as_secs());
        head.number("maxpause", terms.max_pause.as_secs());
        head.number("acks", terms.acks.into());
        head.number("legacy", terms.legacy.into());
        head.number("major", terms.version.0.into());
        head.number("minor", terms.version.1.into());
        head.number("rid", snapshot.answered_rid);
        head.number("sent", snapshot.sent);
        head.number("got", snapshot.got);
        head.number("confirmed", snapshot.confirmed);
        head.number("acknowledged", *acknowledged);
        for (name, value) in [("from", &identity.from), ("lang", &identity.lang)] {
            value.iter().for_each(|value| head.text(name, value));
        }
        if let Some(key) = snapshot.next_key {
            head.text("key", &String::from_utf8_lossy(&key));
        }
        if let Some(pause) = snapshot.pause {
            head.number("pause", pause.as_secs());
        }
        if let Some(counting) = counting {
            head.number("counts-sent", counting.sent);
            head.number("counts-got", counting.got);
        }
        head.end(false);
        for answered in answered {
            head.begin("answered");
            head.number("rid", answered.rid);
            head.number("got", answered.got);
            head.number("empty", answered.empty.into());
            answered.key.iter().for_each(|key| head.text("key", key));
            head.end(true);
        }
        head.close("session")
    }

    /// Writes the session. `stored` are the responses that are in the store, and become those
    /// that will be.
    pub(crate) fn put(&self, hash: &SidHash, stored: &mut Vec<u64>) -> Batch {
        let mut batch = Batch::new().put(SPACE, hash.to_vec(), self.head(SystemTime::now()));
        for answered in self.answered.iter().filter(|answered| !stored.contains(&answered.rid)) {
            batch = batch.put(SPACE, response_key(hash, answered.rid), answered.body.clone());
        }
        let now: Vec<u64> = self.answered.iter().map(|answered| answered.rid).collect();
        for rid in stored.iter().filter(|rid| !now.contains(rid)) {
            batch = batch.delete(SPACE, response_key(hash, *rid));
        }
        *stored = now;
        batch
    }

    /// Removes a session with the responses that are in the store.
    pub(crate) fn delete(hash: &SidHash, stored: &[u64]) -> Batch {
        let batch = Batch::new().delete(SPACE, hash.to_vec());
        stored.iter().fold(batch, |batch, rid| batch.delete(SPACE, response_key(hash, *rid)))
    }

    /// Reads a session; `None` when there is none, or its time is over.
    ///
    /// # Errors
    /// [`StorageError::Corrupt`] for one that cannot be read, or those of the store.
    pub(crate) async fn load(
        storage: &dyn Storage,
        hash: &SidHash,
        now: Instant,
    ) -> Result<Option<Self>, StorageError> {
        let Some(head) = storage.get(SPACE, hash.to_vec().into()).await? else { return Ok(None) };
        let damaged = || StorageError::Corrupt("a BOSH session".into());
        let head = Element::parse(&head, "").map_err(|_| damaged())?;
        if expires(&head).ok_or_else(damaged)? < unix_seconds() {
            return Ok(None);
        }
        let mut record = Self::read(&head).ok_or_else(damaged)?;
        for row in head.children().filter(|row| row.is("answered", NS)) {
            let number = |name: &str| row.attr(name)?.parse().ok();
            let (Some(rid), Some(got)) = (number("rid"), number("got")) else { return Err(damaged()) };
            let body = storage.get(SPACE, response_key(hash, rid)).await?.ok_or_else(damaged)?;
            record.answered.push_back(Answered {
                rid,
                body,
                key: row.attr("key").map(str::to_owned),
                got,
                at: now,
                empty: row.attr("empty") == Some("1"),
                repeats: 0,
            });
        }
        Ok(Some(record))
    }

    fn read(head: &Element) -> Option<Self> {
        if !head.is("session", NS) {
            return None;
        }
        let text = |name| head.attr(name).map(str::to_owned);
        let number = |name| head.attr(name)?.parse::<u64>().ok();
        let seconds = |name| number(name).map(Duration::from_secs);
        let flag = |name| head.attr(name) == Some("1");
        let counting = match (number("counts-sent"), number("counts-got")) {
            (Some(sent), Some(got)) => Some(Counting { sent, got }),
            _ => None,
        };
        Some(Self {
            identity: Identity {
                host: text("host")?,
                from: text("from"),
                lang: text("lang"),
                content: text("content")?,
                secure: flag("secure"),
            },
            terms: Terms {
                wait: seconds("wait")?,
                hold: usize::try_from(number("hold")?).ok()?,
                requests: usize::try_from(number("requests")?).ok()?,
                inactivity: seconds("inactivity")?,
                polling: seconds("polling")?,
                max_pause: seconds("maxpause")?,
                acks: flag("acks"),
                legacy: flag("legacy"),
                version: (u32::try_from(number("major")?).ok()?, u32::try_from(number("minor")?).ok()?),
            },
            snapshot: Snapshot {
                answered_rid: number("rid")?,
                sent: number("sent")?,
                got: number("got")?,
                confirmed: number("confirmed")?,
                next_key: match head.attr("key") {
                    Some(key) => Some(keys::parse(key)?),
                    None => None,
                },
                pause: seconds("pause"),
            },
            answered: VecDeque::new(),
            account: Jid::parse(head.attr("account")?).ok()?,
            stream: text("stream")?,
            acknowledged: number("acknowledged")?,
            counting,
        })
    }
}

/// Removes sessions whose time is over, and what cannot be read; how many.
///
/// # Errors
/// Those of the store.
pub(crate) async fn sweep(storage: &dyn Storage) -> Result<usize, StorageError> {
    let (mut removed, mut after) = (0, None::<Bytes>);
    let mut doomed: Option<Bytes> = None;
    loop {
        let mut range = ScanRange::prefix(Bytes::new(), PAGE);
        if let Some(last) = after {
            range = range.after(last);
        }
        let rows = storage.scan(SPACE, range).await?;
        let Some((last, _)) = rows.last() else { return Ok(removed) };
        after = Some(last.clone());
        let mut batch = Batch::new();
        for (key, value) in rows {
            if key.len() == size_of::<SidHash>() {
                let expired = Element::parse(&value, "").ok().and_then(|head| expires(&head));
                let is_doomed = expired.is_none_or(|expires| expires < unix_seconds());
                removed += usize::from(is_doomed);
                doomed = is_doomed.then(|| key.clone());
            }
            // A head comes before its responses.
            if doomed.as_ref().is_some_and(|doomed| key.starts_with(doomed)) {
                batch = batch.delete(SPACE, key);
            }
        }
        if !batch.is_empty() {
            storage.commit(batch).await?;
        }
    }
}

fn expires(head: &Element) -> Option<u64> {
    head.attr("expires")?.parse().ok()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn response_key(hash: &SidHash, rid: u64) -> Bytes {
    [&hash[..], &rid.to_be_bytes()].concat().into()
}

#[cfg(test)]
#[path = "record_tests.rs"]
mod tests;

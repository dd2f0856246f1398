//! What an account wants archived (XEP-0441).
//!
//! On disk, in the space `archive_prefs`: the account's bare JID, holding a version byte (1), a
//! byte for the default, and the JIDs of both lists, each behind NUL and `+` (always) or `-`
//! (never). Accounts that never said anything have no row.
//!
//! What must hold: no more JIDs are kept than the configuration allows; `never` prevails over
//! `always` when both name the other party, so that a mistake costs a copy, not a secret.

use std::collections::BTreeSet;

use bytes::Bytes;
use waystation_core::storage::{Space, StorageError};
use waystation_core::{Condition, Element, Jid, StanzaError};

use crate::NS_MAM;

/// The preferences, and nothing else.
pub(crate) const PREFS: Space = Space("archive_prefs");

const VERSION: u8 = 1;

/// What is archived of parties that neither list names (XEP-0441 2.1.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Everything.
    #[default]
    Always,
    /// Nothing.
    Never,
    /// What is exchanged with contacts in the roster.
    Roster,
}

impl Policy {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Always, "always"), (Self::Never, "never"), (Self::Roster, "roster")];

    /// The attribute's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Never => "never",
            Self::Roster => "roster",
        }
    }

    /// Reads the attribute's value.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(policy, _)| *policy)
    }
}

/// The preferences of one account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Prefs {
    pub(crate) default: Policy,
    pub(crate) always: BTreeSet<Jid>,
    pub(crate) never: BTreeSet<Jid>,
}

impl Prefs {
    /// The key of an account.
    pub(crate) fn key(account: &Jid) -> Bytes {
        Bytes::copy_from_slice(account.bare_str().as_bytes())
    }

    /// True when a message to or from `other` is wanted; `contact` says whether the roster has it.
    pub(crate) fn want(&self, other: &Jid, contact: bool) -> bool {
        let named = |list: &BTreeSet<Jid>| {
            // A listed bare JID means all resources, a full one only itself (XEP-0441 2.3.1).
            !list.is_empty() && (list.contains(other) || list.contains(other.bare_str()))
        };
        if named(&self.never) {
            return false;
        }
        match self.default {
            Policy::Always => true,
            Policy::Roster if contact => true,
            _ => named(&self.always),
        }
    }

    /// Reads `<prefs/>` of a request; `limit` is the most JIDs in both lists.
    ///
    /// # Errors
    /// `bad-request` for a missing or unknown default and a list that is there twice,
    /// `jid-malformed`, and `policy-violation` for too many JIDs.
    pub(crate) fn parse(element: &Element, limit: usize) -> Result<Self, StanzaError> {
        let default = element.attr("default").and_then(Policy::parse);
        let default = default.ok_or_else(|| {
            StanzaError::new(Condition::BadRequest).with_text("default must be always, never or roster")
        })?;
        let list = |name: &str| {
            let mut lists = element.children().filter(|child| child.is(name, NS_MAM));
            let list = lists.next();
            if lists.next().is_some() {
                return Err(StanzaError::new(Condition::BadRequest).with_text("a list is there twice"));
            }
            let jids = list.iter().flat_map(|list| list.children()).filter(|child| child.is("jid", NS_MAM));
            jids.map(|jid| Jid::parse(jid.text().trim()).map_err(|_| Condition::JidMalformed.into()))
                .collect::<Result<BTreeSet<_>, StanzaError>>()
        };
        let prefs = Self { default, always: list("always")?, never: list("never")? };
        if prefs.always.len() + prefs.never.len() > limit {
            return Err(StanzaError::new(Condition::PolicyViolation).with_text("too many JIDs"));
        }
        Ok(prefs)
    }

    /// The `<prefs/>` of a reply (XEP-0441 2.1).
    pub(crate) fn to_element(&self) -> Element {
        let list = |name: &str, jids: &BTreeSet<Jid>| {
            Element::new(name, NS_MAM)
                .with_children(jids.iter().map(|jid| Element::new("jid", NS_MAM).with_text(jid.as_str())))
        };
        Element::new("prefs", NS_MAM)
            .with_attr("default", self.default.as_str())
            .with_child(list("always", &self.always))
            .with_child(list("never", &self.never))
    }

    pub(crate) fn encode(&self) -> Bytes {
        let default = match self.default {
            Policy::Always => 0,
            Policy::Never => 1,
            Policy::Roster => 2,
        };
        let mut out = vec![VERSION, default];
        for (mark, jids) in [(b'+', &self.always), (b'-', &self.never)] {
            for jid in jids {
                out.extend_from_slice(&[0, mark]);
                out.extend_from_slice(jid.as_str().as_bytes());
            }
        }
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        Self::read(bytes).ok_or_else(|| StorageError::Corrupt("archiving preferences".into()))
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let &[VERSION, default, ref rest @ ..] = bytes else { return None };
        let default = *[Policy::Always, Policy::Never, Policy::Roster].get(usize::from(default))?;
        let mut prefs = Self { default, ..Self::default() };
        if rest.is_empty() {
            return Some(prefs);
        }
        for part in rest.strip_prefix(&[0])?.split(|&byte| byte == 0) {
            let (mark, jid) = part.split_first()?;
            let jid = Jid::parse(std::str::from_utf8(jid).ok()?).ok()?;
            match mark {
                b'+' => prefs.always.insert(jid),
                b'-' => prefs.never.insert(jid),
                _ => return None,
            };
        }
        Some(prefs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefs(xml: &str) -> Result<Prefs, Condition> {
        let xml = format!("<prefs xmlns='{NS_MAM}' {xml}</prefs>");
        Prefs::parse(&Element::parse(xml.as_bytes(), "").unwrap(), 3).map_err(|error| error.condition)
    }

    const LISTS: &str = "default='roster'><always><jid>romeo@montague.example</jid></always>\
        <never><jid>montague@montague.example/home</jid></never>";

    #[test]
    fn preferences_are_read_and_written_as_xep_0441_2_1_shows() {
        let read = prefs(LISTS).unwrap();
        assert_eq!(Prefs::decode(&read.encode()).unwrap(), read);
        assert_eq!(Prefs::parse(&read.to_element(), 3).unwrap(), read);
        assert_eq!(
            String::from_utf8(prefs("default='never'>").unwrap().to_element().to_vec("")).unwrap(),
            "<prefs xmlns='urn:xmpp:mam:2' default='never'><always/><never/></prefs>"
        );
    }

    #[test]
    fn m1_malformed_preferences_are_refused_by_name() {
        let many: String = (0..4).map(|n| format!("<jid>a@b{n}</jid>")).collect();
        for (xml, expected) in [
            (">", Condition::BadRequest),
            ("default=''>", Condition::BadRequest),
            ("default='sometimes'>", Condition::BadRequest),
            ("default='always'><never/><never/>", Condition::BadRequest),
            ("default='always'><never><jid>a@b@c</jid></never>", Condition::JidMalformed),
            ("default='always'><always><jid/></always>", Condition::JidMalformed),
            (&format!("default='always'><always>{many}</always>"), Condition::PolicyViolation),
        ] {
            assert_eq!(prefs(xml), Err(expected), "{xml}");
        }
    }

    #[test]
    fn jids_match_as_xep_0441_2_1_and_2_3_say() {
        let jid = |text| Jid::parse(text).unwrap();
        let (romeo, home) = (jid("romeo@montague.example/a"), jid("montague@montague.example/home"));
        let (away, other) = (jid("montague@montague.example/away"), jid("nurse@capulet.example"));
        for (default, expected) in [
            // Listed always, listed never, another resource of the latter, in neither list.
            ("always", [true, false, true, true]),
            ("never", [true, false, false, false]),
            ("roster", [true, false, false, false]),
        ] {
            let read = prefs(&LISTS.replace("roster", default)).unwrap();
            let wanted = [&romeo, &home, &away, &other].map(|jid| read.want(jid, false));
            assert_eq!(wanted, expected, "{default}");
        }
        let roster = prefs(LISTS).unwrap();
        assert!(roster.want(&other, true) && !roster.want(&home, true));
        let both = prefs("default='always'><always><jid>a@b</jid></always><never><jid>a@b</jid></never>");
        assert!(!both.unwrap().want(&jid("a@b"), true));
    }

    #[test]
    fn what_is_no_preferences_is_refused() {
        for bytes in [&b""[..], &[1], &[2, 0], &[1, 3], b"\x01\x00x", b"\x01\x00\0*a@b", b"\x01\x00\0+@"] {
            assert!(Prefs::decode(bytes).is_err(), "{bytes:?}");
        }
    }
}

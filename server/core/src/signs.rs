//! What a stanza may hold, told without parsing it.
//!
//! What must hold: a sign that is not there means that the stanza certainly has no such child;
//! one that is there means nothing, and whoever asked parses the stanza and looks. Every stanza
//! is searched at most once: a message is asked about half a dozen times on its way.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

use memchr::memmem::Finder;

/// Something for whose sake a stanza would have to be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Sign {
    /// Message processing hints (XEP-0334).
    Hints = 1,
    /// Chat states (XEP-0085).
    ChatStates = 2,
    /// Carbons (XEP-0280).
    Carbons = 4,
    /// What rooms send (XEP-0045).
    Muc = 8,
    /// Stanza ids and delays (XEP-0359, XEP-0203), which only some may claim.
    Claims = 16,
}

/// All of them.
const ALL: u8 = 31;
/// What a namespace is declared with, and what may stand for a character of it.
static DECLARATION: LazyLock<[Finder<'static>; 2]> = LazyLock::new(|| ["xmlns", "&#"].map(Finder::new));

/// They were looked for.
const KNOWN: u8 = 128;

static FINDERS: LazyLock<[(u8, Finder<'static>); 6]> = LazyLock::new(|| {
    [
        (Sign::Hints as u8, Finder::new("urn:xmpp:hints")),
        (Sign::ChatStates as u8, Finder::new("chatstates")),
        (Sign::Carbons as u8, Finder::new("urn:xmpp:carbons")),
        (Sign::Muc as u8, Finder::new("protocol/muc")),
        (Sign::Claims as u8, Finder::new("urn:xmpp:sid")),
        (Sign::Claims as u8, Finder::new("urn:xmpp:delay")),
    ]
});

/// The signs of one stanza, once they are known.
#[derive(Debug, Default)]
pub(crate) struct Signs(AtomicU8);

impl Clone for Signs {
    fn clone(&self) -> Self {
        Self(AtomicU8::new(self.0.load(Ordering::Relaxed)))
    }
}

impl Signs {
    /// True when one of `wanted` may be in a stanza that consists of `parts`.
    pub(crate) fn any(&self, wanted: &[Sign], parts: [&[u8]; 2]) -> bool {
        let mut known = self.0.load(Ordering::Relaxed);
        if known == 0 {
            known = KNOWN | parts.into_iter().fold(0, |signs, part| signs | search(part));
            self.0.store(known, Ordering::Relaxed);
        }
        wanted.iter().any(|sign| known & *sign as u8 != 0)
    }

    /// Those of a stanza to which `added` was added.
    pub(crate) fn with(&self, added: &[u8]) -> Self {
        match self.0.load(Ordering::Relaxed) {
            0 => Self::default(),
            known => Self(AtomicU8::new(known | search(added))),
        }
    }

    /// Those of a stanza to which something was added that has no other signs than these.
    pub(crate) fn with_known(&self, added: &[Sign]) -> Self {
        match self.0.load(Ordering::Relaxed) {
            0 => Self::default(),
            known => Self(AtomicU8::new(added.iter().fold(known, |signs, sign| signs | *sign as u8))),
        }
    }
}

fn search(part: &[u8]) -> u8 {
    // Most chat messages declare no namespace, and are searched for nothing else.
    let [declaration, reference] = &*DECLARATION;
    if declaration.find(part).is_none() {
        return 0;
    }
    // A namespace can also be written with character references.
    if reference.find(part).is_some() {
        return ALL;
    }
    FINDERS.iter().filter(|(_, finder)| finder.find(part).is_some()).fold(0, |signs, (sign, _)| signs | sign)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stanza;

    const SIGNS: [Sign; 5] = [Sign::Hints, Sign::ChatStates, Sign::Carbons, Sign::Muc, Sign::Claims];

    fn of(xml: &str) -> Vec<Sign> {
        let stanza = Stanza::parse(xml.as_bytes()).unwrap();
        SIGNS.into_iter().filter(|sign| stanza.may_hold(&[*sign])).collect()
    }

    #[test]
    fn a_sign_shows_wherever_a_namespace_can_be_declared() {
        assert_eq!(of("<message><body>urn:xmpp:hints chatstates</body></message>"), []);
        for (namespace, sign) in [
            ("urn:xmpp:hints", Sign::Hints),
            ("http://jabber.org/protocol/chatstates", Sign::ChatStates),
            ("urn:xmpp:carbons:2", Sign::Carbons),
            ("http://jabber.org/protocol/muc#user", Sign::Muc),
            ("urn:xmpp:sid:0", Sign::Claims),
            ("urn:xmpp:delay", Sign::Claims),
        ] {
            assert_eq!(of(&format!("<message><x xmlns='{namespace}'/></message>")), [sign]);
            assert_eq!(of(&format!("<message xmlns:p='{namespace}'><p:x/></message>")), [sign]);
        }
        assert_eq!(of("<message><x xmlns='urn:xmpp:&#104;ints'/></message>"), SIGNS);
        assert_eq!(of("<message xmlns:p='urn:&#x78;mpp:sid:0'><p:x/></message>"), SIGNS);
    }

    #[test]
    fn what_is_added_is_seen_before_and_after_the_first_look() {
        let plain = Stanza::parse(b"<message><body>b</body></message>").unwrap();
        let hint = "<store xmlns='urn:xmpp:hints'/>";
        assert!(plain.with_appended(hint).may_hold(&[Sign::Hints]));
        assert!(!plain.may_hold(&[Sign::Hints]));
        assert!(plain.with_appended(hint).may_hold(&[Sign::Hints]));
        assert!(!plain.with_appended(hint).may_hold(&[Sign::Claims]));
        assert!(!plain.may_hold(&SIGNS));
    }
}

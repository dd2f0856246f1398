//! Addresses (RFC 7622): `local@domain/resource` in one canonical form.
//!
//! What must hold: a [`Jid`] is always prepared, so equality of text is equality of address;
//! cloning one costs a reference count; splitting one costs nothing.

use std::borrow::Cow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;
use std::sync::Arc;

use crate::prep::{self, PrepError, ascii};

/// An address: bare (`local@domain` or `domain`) or full (with a resource).
#[derive(Clone)]
pub struct Jid {
    text: Arc<str>,
    /// Offset of `@`, or 0 when there is no localpart (a localpart is never empty).
    at: u16,
    /// Offset of `/`, or 0 when there is no resource (a domain is never empty).
    slash: u16,
    /// Nothing in it needs escaping.
    plain: bool,
}

impl Jid {
    /// Parses and prepares an address.
    ///
    /// # Errors
    /// [`PrepError`] when a part is empty, too long, or holds a forbidden character.
    pub fn parse(s: &str) -> Result<Self, PrepError> {
        match Self::canonical(s) {
            Some(jid) => Ok(jid),
            None => Self::prepare(s),
        }
    }

    /// An address that consists of ASCII and is prepared already, as nearly all are: it is looked at
    /// once and copied once, which spares two thirds of 1,150 instructions. `None` tells nothing.
    fn canonical(s: &str) -> Option<Self> {
        let bytes = s.as_bytes();
        // Then no part but a label can be too long, and offsets fit.
        if bytes.len() > prep::MAX_DNS_NAME {
            return None;
        }
        let (at, mut label) = match ascii::run(bytes, ascii::LOCAL) {
            0 => (0, 0),
            end if bytes.get(end) == Some(&b'@') => (end, end + 1),
            _ => (0, 0),
        };
        let slash = loop {
            let end = label + ascii::run(&bytes[label..], ascii::LABEL);
            if !prep::is_canonical_label(&bytes[label..end]) {
                return None;
            }
            match bytes.get(end) {
                Some(b'.') => label = end + 1,
                Some(b'/') => break end,
                Some(_) => return None,
                None => break 0,
            }
        };
        let mut plain = true;
        if slash != 0 {
            let resource = &bytes[slash + 1..];
            let end = ascii::run(resource, ascii::PLAIN);
            plain = end == resource.len();
            let rest = &resource[end..];
            if matches!(resource, [] | [b' ', ..]) || ascii::run(rest, ascii::RESOURCE) < rest.len() {
                return None;
            }
        }
        Some(Self { text: s.into(), at: at as u16, slash: slash as u16, plain })
    }

    /// Parses an address of any form.
    fn prepare(s: &str) -> Result<Self, PrepError> {
        let (rest, resource) = match s.split_once('/') {
            Some((rest, resource)) => (rest, Some(resource)),
            None => (s, None),
        };
        let (local, domain) = match rest.split_once('@') {
            Some((local, domain)) => (Some(local), domain),
            None => (None, rest),
        };
        Self::new(local, domain, resource)
    }

    /// Prepares and joins the parts.
    ///
    /// # Errors
    /// As [`Jid::parse`].
    pub fn new(local: Option<&str>, domain: &str, resource: Option<&str>) -> Result<Self, PrepError> {
        let local = local.map(prep::localpart).transpose()?;
        let domain = prep::domain(domain)?;
        let resource = resource.map(prep::resource).transpose()?;
        Ok(Self::join(local.as_deref(), &domain, resource.as_deref()))
    }

    /// Joins parts that are prepared already. Parts are at most 1023 bytes, so offsets fit.
    fn join(local: Option<&str>, domain: &str, resource: Option<&str>) -> Self {
        let mut text = String::with_capacity(
            local.map_or(0, |l| l.len() + 1) + domain.len() + resource.map_or(0, |r| r.len() + 1),
        );
        let mut at = 0;
        let mut slash = 0;
        if let Some(local) = local {
            text.push_str(local);
            at = text.len() as u16;
            text.push('@');
        }
        text.push_str(domain);
        if let Some(resource) = resource {
            slash = text.len() as u16;
            text.push('/');
            text.push_str(resource);
        }
        let plain = !text.contains(ascii::is_escaped);
        Self { text: text.into(), at, slash, plain }
    }

    /// The whole address.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address without its resource, as text.
    pub fn bare_str(&self) -> &str {
        if self.slash == 0 { &self.text } else { &self.text[..self.slash as usize] }
    }

    /// The localpart.
    pub fn local(&self) -> Option<&str> {
        (self.at != 0).then(|| &self.text[..self.at as usize])
    }

    /// The domainpart.
    pub fn domain(&self) -> &str {
        let start = if self.at == 0 { 0 } else { self.at as usize + 1 };
        &self.bare_str()[start..]
    }

    /// The resourcepart.
    pub fn resource(&self) -> Option<&str> {
        (self.slash != 0).then(|| &self.text[self.slash as usize + 1..])
    }

    /// True when there is no resource.
    pub fn is_bare(&self) -> bool {
        self.slash == 0
    }

    /// The address without its resource.
    #[must_use]
    pub fn to_bare(&self) -> Self {
        if self.slash == 0 {
            return self.clone();
        }
        Self::part(self.bare_str(), self.at)
    }

    /// The text of the bare JID; shares the memory of one that has no resource.
    #[must_use]
    pub fn bare_text(&self) -> Arc<str> {
        if self.slash == 0 { self.text.clone() } else { self.bare_str().into() }
    }

    /// The domain alone.
    #[must_use]
    pub fn to_domain(&self) -> Self {
        if self.at == 0 && self.slash == 0 {
            return self.clone();
        }
        Self::part(self.domain(), 0)
    }

    /// An address without a resource. Only resources can hold characters that need escaping.
    fn part(text: &str, at: u16) -> Self {
        Self { text: text.into(), at, slash: 0, plain: true }
    }

    /// The bare address with another resource.
    ///
    /// # Errors
    /// [`PrepError`] when the resource cannot be prepared.
    pub fn with_resource(&self, resource: &str) -> Result<Self, PrepError> {
        let resource = prep::resource(resource)?;
        Ok(Self::join(self.local(), self.domain(), Some(&resource)))
    }

    /// True when both have the same localpart and domain.
    pub fn bare_eq(&self, other: &Jid) -> bool {
        self.bare_str() == other.bare_str()
    }

    /// The shared text.
    pub fn shared(&self) -> Arc<str> {
        self.text.clone()
    }

    /// The address escaped for an attribute value.
    ///
    /// Only resources can hold characters that need it.
    #[inline]
    pub fn escaped(&self) -> Cow<'_, str> {
        if self.plain { Cow::Borrowed(&self.text) } else { Cow::Owned(self.escape()) }
    }

    #[cold]
    fn escape(&self) -> String {
        let mut out = Vec::with_capacity(self.text.len() + 16);
        waystation_xml::escape_attr(&self.text, &mut out);
        // Escaping text gives text.
        String::from_utf8(out).unwrap_or_default()
    }
}

impl PartialEq for Jid {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.text, &other.text) || self.text == other.text
    }
}
impl Eq for Jid {}
impl Hash for Jid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}
impl PartialOrd for Jid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Jid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}
impl fmt::Display for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for Jid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &*self.text)
    }
}
impl FromStr for Jid {
    type Err = PrepError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        Self::parse(s)
    }
}
/// Lets a map keyed by bare addresses be asked with [`Jid::bare_str`], without a copy.
impl std::borrow::Borrow<str> for Jid {
    fn borrow(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jid(s: &str) -> Jid {
        Jid::parse(s).unwrap()
    }

    #[test]
    fn parts_are_found() {
        let full = jid("Romeo@Montague.Example/Orchard / x@y");
        assert_eq!(full.local(), Some("romeo"));
        assert_eq!(full.domain(), "montague.example");
        assert_eq!(full.resource(), Some("Orchard / x@y"));
        assert_eq!(full.bare_str(), "romeo@montague.example");
        assert_eq!(full.to_bare(), jid("romeo@montague.example"));
        assert_eq!(full.to_domain(), jid("montague.example"));
        assert_eq!(jid("localhost/r").local(), None);
        assert_eq!(jid("localhost/r").domain(), "localhost");
    }

    #[test]
    fn f8_malformed_addresses_are_refused() {
        for bad in ["", "@", "a@", "@b", "a@b@c", "a@b/", "/r", "a@b/\u{0}", "a b@c", "a@-", "a@b..c"] {
            assert!(Jid::parse(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(Jid::parse(&format!("{}@b", "a".repeat(1024))).is_err());
        assert!(Jid::parse(&format!("{}@b", "a".repeat(1023))).is_ok());
    }

    /// Parses in both ways, and tells whether the fast one knew the address.
    #[track_caller]
    fn check_both_ways(s: &str) -> bool {
        let slow = Jid::prepare(s);
        let Some(fast) = Jid::canonical(s) else {
            // It takes all that it is meant for.
            let missed =
                slow.is_ok_and(|jid| jid.as_str() == s && s.is_ascii() && !jid.domain().starts_with('['));
            assert!(!missed || s.len() > prep::MAX_DNS_NAME, "{s:?} takes the slow way");
            return false;
        };
        let all = |jid: &Jid| (jid.to_string(), jid.at, jid.slash, jid.plain, jid.escaped().into_owned());
        assert_eq!(slow.as_ref().map(all), Ok(all(&fast)), "{s:?}");
        assert_eq!((fast.as_str(), Jid::parse(s)), (s, slow), "{s:?}");
        true
    }

    #[test]
    fn both_ways_of_parsing_agree_on_all_short_addresses() {
        const BYTES: &[u8] = b"aZ@/.-[ '1";
        let mut known = 0;
        let mut text = String::new();
        for length in 0..=5 {
            for mut number in 0..BYTES.len().pow(length) {
                text.clear();
                for _ in 0..length {
                    text.push(BYTES[number % BYTES.len()].into());
                    number /= BYTES.len();
                }
                known += u32::from(check_both_ways(&text));
            }
        }
        assert!(known > 3_000, "{known}");
    }

    #[test]
    fn both_ways_of_parsing_agree_on_each_byte_of_each_part() {
        for byte in 0..128u8 {
            let c = char::from(byte);
            for part in
                [c.to_string(), format!("{c}b"), format!("b{c}"), format!("b{c}b"), format!("xn--{c}")]
            {
                for s in [format!("{part}@b/c"), format!("a@{part}/c"), format!("a@b/{part}"), part.clone()] {
                    check_both_ways(&s);
                    check_both_ways(&s.replace('b', "\u{e9}"));
                }
            }
        }
        for s in [
            "a@[::1]/r",
            "[::1]",
            "a@xn--bcher-kva/r",
            "a@b.xn--bcher-kva",
            "a@b./r",
            "a@b..c",
            "a@127.0.0.1",
        ] {
            check_both_ways(s);
        }
    }

    #[test]
    fn both_ways_of_parsing_agree_on_lengths() {
        for n in [1, 62, 63, 64, 240, 252, 253, 254, 1022, 1023, 1024] {
            let (part, labels) = ("a".repeat(n), "a.".repeat(n));
            for s in [
                format!("{part}@b"),
                format!("{part}@b/c"),
                format!("a@{part}"),
                format!("a@{part}.b"),
                format!("a@{labels}b"),
                format!("a@b/{part}"),
                part,
            ] {
                check_both_ways(&s);
            }
        }
    }

    #[test]
    fn what_needs_no_escaping_is_known_of_all_parts() {
        let full = jid("a@b/it's");
        assert_eq!(full.escaped(), "a@b/it&apos;s");
        assert_eq!((full.to_bare().escaped(), full.to_domain().escaped()), ("a@b".into(), "b".into()));
        assert_eq!(full.to_bare().with_resource("<").unwrap().escaped(), "a@b/&lt;");
        assert_eq!(full.with_resource("c").unwrap().escaped(), "a@b/c");
        assert_eq!(jid("A@b/\u{e9}\"").escaped(), "a@b/\u{e9}&quot;");
        assert!(matches!(jid("a@b/\u{e9}").escaped(), Cow::Borrowed(_)));
    }

    #[test]
    fn resources_are_escaped_for_attributes() {
        assert_eq!(jid("a@b/<'&\">").escaped(), "a@b/&lt;&apos;&amp;&quot;&gt;");
    }
}

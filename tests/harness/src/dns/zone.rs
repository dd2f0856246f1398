//! What a test's name server knows: names and their records, as data.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::error::{Error, Result};

/// Seconds that a record holds when nothing else is said.
const TTL: u32 = 60;
/// CNAMEs of one answer: a loop ends there.
const MAX_CHAIN: usize = 32;

/// A record's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Data {
    /// An IPv4 address.
    A(Ipv4Addr),
    /// An IPv6 address.
    Aaaa(Ipv6Addr),
    /// Another name for the same.
    Cname(String),
    /// Where a service is: priority, weight, port and target; the target `.` says that it is nowhere.
    Srv(u16, u16, u16, String),
    /// A text of up to 255 bytes.
    Txt(String),
}

impl Data {
    /// Its type's number on the wire.
    pub fn kind(&self) -> u16 {
        match self {
            Self::A(_) => 1,
            Self::Cname(_) => 5,
            Self::Txt(_) => 16,
            Self::Aaaa(_) => 28,
            Self::Srv(..) => 33,
        }
    }
}

/// A record: how long it holds, in seconds, and its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Seconds that it may be kept.
    pub ttl: u32,
    /// What it says.
    pub data: Data,
}

/// The records of all names, written as a zone file is: a line for each record, `NAME [TTL] TYPE DATA`,
/// names without the dot at their end, `;` before remarks.
///
/// ```text
/// _xmpp-server._tcp.example.org  SRV  0 5 5269 xmpp.example.org
/// xmpp.example.org       30      A    127.0.0.1
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Zone {
    /// By name in lower case.
    records: BTreeMap<String, Vec<Record>>,
}

/// What a zone has for a question.
#[derive(Debug)]
pub struct Found<'a> {
    /// The records of the answer with their names: CNAMEs first, in the order in which they were followed.
    pub records: Vec<(String, &'a Record)>,
    /// Whether the last name, after all CNAMEs, exists.
    pub exists: bool,
}

impl Zone {
    /// A zone without a name.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a record that holds for a minute.
    pub fn add(&mut self, name: &str, data: Data) {
        self.add_for(name, TTL, data);
    }

    /// Adds a record that holds for so many seconds.
    pub fn add_for(&mut self, name: &str, ttl: u32, data: Data) {
        self.records.entry(name.to_ascii_lowercase()).or_default().push(Record { ttl, data });
    }

    /// Takes all records of a name away.
    pub fn remove(&mut self, name: &str) {
        self.records.remove(&name.to_ascii_lowercase());
    }

    /// The records of a name for a type's number, 255 for all of them. CNAMEs are followed.
    pub fn find(&self, name: &str, kind: u16) -> Found<'_> {
        let mut name = name.to_ascii_lowercase();
        let mut records = Vec::new();
        loop {
            let here = self.records.get(&name).map(Vec::as_slice).unwrap_or_default();
            let wanted = here.iter().filter(|r| r.data.kind() == kind || kind == 255);
            let before = records.len();
            records.extend(wanted.map(|r| (name.clone(), r)));
            let alias = here.iter().find_map(|r| match &r.data {
                Data::Cname(target) => Some((r, target)),
                _ => None,
            });
            match alias {
                Some((record, target)) if records.len() == before && before < MAX_CHAIN => {
                    records.push((name, record));
                    name = target.to_ascii_lowercase();
                }
                _ => return Found { exists: self.exists(&name), records },
            }
        }
    }

    /// A name exists when it, or one below it, has a record.
    fn exists(&self, name: &str) -> bool {
        let below = format!(".{name}");
        self.records.keys().any(|k| k == name || k.ends_with(&below))
    }
}

impl FromStr for Zone {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut zone = Self::new();
        for line in text.lines() {
            let words: Vec<_> = line.split(';').next().unwrap_or_default().split_whitespace().collect();
            if let Some((name, rest)) = words.split_first() {
                let (ttl, data) =
                    read(rest).ok_or_else(|| Error::Setup(format!("no record of a zone: {line:?}")))?;
                zone.add_for(name, ttl, data);
            }
        }
        Ok(zone)
    }
}

/// `[TTL] TYPE DATA`.
fn read(words: &[&str]) -> Option<(u32, Data)> {
    let (ttl, words) = match words.first()?.parse() {
        Ok(ttl) => (ttl, &words[1..]),
        Err(_) => (TTL, words),
    };
    let (kind, data) = words.split_first()?;
    let data = match (*kind, data) {
        ("A", [address]) => Data::A(address.parse().ok()?),
        ("AAAA", [address]) => Data::Aaaa(address.parse().ok()?),
        ("CNAME", [target]) => Data::Cname((*target).to_owned()),
        ("TXT", words) => Data::Txt(words.join(" ")),
        ("SRV", [priority, weight, port, target]) => {
            Data::Srv(priority.parse().ok()?, weight.parse().ok()?, port.parse().ok()?, (*target).to_owned())
        }
        _ => return None,
    };
    Some((ttl, data))
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, record) in self.records.iter().flat_map(|(n, rs)| rs.iter().map(move |r| (n, r))) {
            write!(f, "{name} {} ", record.ttl)?;
            match &record.data {
                Data::A(address) => writeln!(f, "A {address}")?,
                Data::Aaaa(address) => writeln!(f, "AAAA {address}")?,
                Data::Cname(target) => writeln!(f, "CNAME {target}")?,
                Data::Srv(priority, weight, port, target) => {
                    writeln!(f, "SRV {priority} {weight} {port} {target}")?;
                }
                Data::Txt(text) => writeln!(f, "TXT {text}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_read_as_they_are_written_and_nonsense_is_refused() {
        let text = "_xmpp-server._tcp.example.org 60 SRV 0 5 5269 xmpp.example.org\n\
                    example.org 60 TXT two words\n\
                    www.example.org 60 CNAME example.org\n\
                    xmpp.example.org 30 A 127.0.0.1\nxmpp.example.org 60 AAAA ::1\n";
        let zone: Zone = text.parse().unwrap();
        assert_eq!(zone.to_string(), text);
        assert_eq!("Xmpp.Example.org A 127.0.0.1 ; here\n\n".parse::<Zone>().unwrap().records.len(), 1);
        for bad in ["a", "a A", "a A 1.2.3", "a SRV 0 0 b", "a 5 MX 10 b", "a A ::1"] {
            assert!(bad.parse::<Zone>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn cnames_are_followed_and_loops_end() {
        let zone: Zone = "a CNAME B\nb CNAME c.d\nc.d A 127.0.0.1\nx CNAME y\ny CNAME x".parse().unwrap();
        let found = zone.find("A", 1);
        assert_eq!((found.records.len(), found.exists), (3, true));
        assert_eq!(zone.find("a", 5).records.len(), 1, "asked for, it is not followed");
        assert_eq!(zone.find("x", 1).records.len(), MAX_CHAIN);
        assert!(zone.find("d", 1).exists, "a name between others has no record and exists");
        assert!(!zone.find("e", 1).exists);
    }
}

//! The wire format of DNS (RFC 1035 4, RFC 6891), as much of it as a server for tests needs.

use super::zone::{Data, Found};

/// The answer has to be asked for again, over TCP.
const TRUNCATED: u16 = 0x0200;
/// A response, authoritative, with recursion available: the server knows all there is.
const RESPONSE: u16 = 0x8000 | 0x0400 | 0x0080;
/// The bit by which whoever asks wishes for recursion.
const WISHED: u16 = 0x0100;
/// The type of the extension record.
const OPT: u16 = 41;
/// The bytes of an answer over UDP to someone who has no extensions.
const PLAIN: usize = 512;

/// Codes of responses.
pub(super) mod code {
    pub(in crate::dns) const NO_ERROR: u16 = 0;
    pub(in crate::dns) const SERVER_FAILURE: u16 = 2;
    pub(in crate::dns) const NAME_ERROR: u16 = 3;
    pub(in crate::dns) const NOT_IMPLEMENTED: u16 = 4;
    pub(in crate::dns) const REFUSED: u16 = 5;
}

/// A question that came.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) id: u16,
    /// The name as it was written, without the dot at its end.
    pub(super) name: String,
    pub(super) kind: u16,
    flags: u16,
    /// The question's own bytes: they are repeated as they are.
    raw: Vec<u8>,
    /// The bytes that an answer over UDP may have, where the question said so.
    extended: Option<u16>,
}

impl Question {
    /// Reads a message; `None` for what is no question.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
        let flags = word(2)?;
        if flags & 0x8000 != 0 || word(4)? != 1 {
            return None;
        }
        let mut labels = Vec::new();
        let mut at = 12;
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            match length {
                0 => break,
                1..=63 => labels.push(message.get(at..at + length)?),
                _ => return None,
            }
            at += length;
        }
        let name = String::from_utf8(labels.join(&b'.')).ok()?;
        let kind = word(at)?;
        let end = at + 4;
        let raw = message.get(12..end)?.to_vec();
        // The extension record is the only one that may follow a question and matters: root, type, size.
        let extended = match (message.get(end), word(end + 1)) {
            (Some(0), Some(OPT)) => word(end + 3),
            _ => None,
        };
        Some(Self { id: word(0)?, name, kind, flags, raw, extended })
    }

    /// The most bytes of an answer over UDP.
    pub(super) fn limit(&self) -> usize {
        self.extended.map_or(PLAIN, |size| usize::from(size).max(PLAIN))
    }

    /// A response without a record.
    pub(super) fn failed(&self, code: u16) -> Vec<u8> {
        self.response(code, &[], &[], false)
    }

    /// A response of what was found, of up to `limit` bytes: when that is too little, one that says so.
    pub(super) fn answer(&self, found: &Found<'_>, limit: usize) -> Vec<u8> {
        let mut records = Vec::new();
        for (name, record) in &found.records {
            let mut bytes = Vec::new();
            if name.eq_ignore_ascii_case(&self.name) {
                bytes.extend_from_slice(&[0xc0, 12]);
            } else {
                put_name(&mut bytes, name);
            }
            put_record(&mut bytes, record.data.kind(), record.ttl, &data(&record.data));
            records.push(bytes);
        }
        // Nothing of the kind: the zone's head says for how long that holds (RFC 2308 2). The server is the
        // whole of DNS: there is one zone, the root.
        let answered = found.records.iter().any(|(_, r)| r.data.kind() == self.kind || self.kind == 255);
        let head = if answered { Vec::new() } else { vec![start_of_authority()] };
        let code = if found.exists || answered { code::NO_ERROR } else { code::NAME_ERROR };
        let whole = self.response(code, &records, &head, false);
        if whole.len() <= limit { whole } else { self.response(code, &[], &[], true) }
    }

    fn response(&self, code: u16, answers: &[Vec<u8>], head: &[Vec<u8>], truncated: bool) -> Vec<u8> {
        let mut out = Vec::new();
        let flags = RESPONSE | (self.flags & (WISHED | 0x7800)) | if truncated { TRUNCATED } else { 0 };
        let count = |of: usize| u16::try_from(of).unwrap_or(u16::MAX);
        for word in [
            self.id,
            flags | code,
            1,
            count(answers.len()),
            count(head.len()),
            u16::from(self.extended.is_some()),
        ] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        out.extend_from_slice(&self.raw);
        out.extend(answers.iter().chain(head).flatten());
        if self.extended.is_some() {
            out.extend_from_slice(&[0, 0, 41, 0x10, 0, 0, 0, 0, 0, 0, 0]);
        }
        out
    }

    /// Whether it is an ordinary question: of names, for records of the Internet.
    pub(super) fn is_ordinary(&self) -> bool {
        self.flags & 0x7800 == 0 && self.raw.ends_with(&[0, 1])
    }
}

fn put_name(out: &mut Vec<u8>, name: &str) {
    for label in name.split('.').filter(|l| !l.is_empty()) {
        let label = &label.as_bytes()[..label.len().min(63)];
        out.push(u8::try_from(label.len()).unwrap_or(63));
        out.extend_from_slice(label);
    }
    out.push(0);
}

fn put_record(out: &mut Vec<u8>, kind: u16, ttl: u32, data: &[u8]) {
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&1_u16.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(data);
}

fn data(data: &Data) -> Vec<u8> {
    let mut out = Vec::new();
    match data {
        Data::A(address) => out.extend(address.octets()),
        Data::Aaaa(address) => out.extend(address.octets()),
        Data::Cname(target) => put_name(&mut out, target),
        Data::Srv(priority, weight, port, target) => {
            for word in [priority, weight, port] {
                out.extend(word.to_be_bytes());
            }
            put_name(&mut out, target);
        }
        Data::Txt(text) => {
            let text = &text.as_bytes()[..text.len().min(255)];
            out.push(u8::try_from(text.len()).unwrap_or(255));
            out.extend_from_slice(text);
        }
    }
    out
}

/// The head of the zone: that nothing is there holds for a minute.
fn start_of_authority() -> Vec<u8> {
    let mut data = Vec::new();
    put_name(&mut data, "ns.invalid");
    put_name(&mut data, "root.ns.invalid");
    for number in [1_u32, 3600, 600, 86400, 60] {
        data.extend(number.to_be_bytes());
    }
    let mut out = vec![0];
    put_record(&mut out, 6, 60, &data);
    out
}

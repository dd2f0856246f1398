//! The `<body/>` wrapper (XEP-0124 6): reading the one of a request, writing the one of a response.
//!
//! What must hold: what is read was proven by the same reader as every other stream, under the
//! same restrictions, and its payloads are written anew from what they mean, so that nothing
//! that is declared around them is lost or taken for something else; what is written is one
//! element that stands for itself.

use bytes::Bytes;
use waystation_core::xml::{Element, Event, Framer, Limits, Node, XmlError, escape_attr};

use crate::request::Condition;

/// `http://jabber.org/protocol/httpbind`
pub(crate) const NS_HTTPBIND: &str = "http://jabber.org/protocol/httpbind";
/// `urn:xmpp:xbosh` (XEP-0206)
pub(crate) const NS_XBOSH: &str = "urn:xmpp:xbosh";
pub(crate) const NS_CLIENT: &str = "jabber:client";
pub(crate) const NS_STREAMS: &str = "http://etherx.jabber.org/streams";

/// Why a request's body was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BodyError {
    /// It is not the XML that section 6 allows, or too much of it.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// It is XML, but no wrapper.
    #[error("{0}")]
    Format(&'static str),
}

/// Reads a wrapper: an XML declaration perhaps, one `<body/>`, and nothing else.
///
/// Payloads without a namespace of their own are in `jabber:client` afterwards: XEP-0206 2 says
/// that clients leave it out.
pub(crate) fn parse(input: &[u8], limits: Limits) -> Result<Element, BodyError> {
    let mut rest = after_declaration(input)?;
    let mut framer = Framer::new_frames(limits);
    let mut body = None;
    loop {
        match framer.next(&mut rest)? {
            Event::Whitespace(_) => {}
            Event::Stanza(_) if body.is_some() => {
                return Err(BodyError::Format("there is more than one element"));
            }
            Event::Stanza(frame) => {
                if frame.name() != "body" || frame.namespace() != NS_HTTPBIND {
                    return Err(BodyError::Format("the element is no body of httpbind"));
                }
                body = Some(frame.element()?);
            }
            Event::NeedMore => break,
            Event::Open(_) | Event::Close => return Err(XmlError::NotWellFormed.into()),
        }
    }
    if framer.is_mid_stanza() {
        return Err(XmlError::NotWellFormed.into());
    }
    let mut body = body.ok_or(BodyError::Format("there is no element"))?;
    let text = |node: &Node| matches!(node, Node::Text(text) if !text.trim_ascii().is_empty());
    if body.nodes().iter().any(text) {
        return Err(BodyError::Format("the body holds text"));
    }
    for payload in body.children_mut() {
        payload.rescope(NS_HTTPBIND, NS_CLIENT);
    }
    Ok(body)
}

/// What follows a byte order mark and an XML declaration, either of which may be absent.
fn after_declaration(input: &[u8]) -> Result<&[u8], XmlError> {
    if matches!(input, [0x00 | 0xFE | 0xFF, ..]) {
        return Err(XmlError::UnsupportedEncoding);
    }
    let input = input.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(input);
    let Some(declared) = input.strip_prefix(b"<?xml") else { return Ok(input) };
    if !declared.first().is_some_and(u8::is_ascii_whitespace) {
        return Err(XmlError::Restricted);
    }
    let end = declared.windows(2).position(|two| two == b"?>").ok_or(XmlError::NotWellFormed)?;
    let text = std::str::from_utf8(&declared[..end]).map_err(|_| XmlError::NotWellFormed)?;
    let mut expected = ["version", "encoding", "standalone"].iter();
    let (mut rest, mut versioned) = (text.trim_ascii(), false);
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=').ok_or(XmlError::NotWellFormed)?;
        let after = after.trim_ascii_start();
        let quote =
            after.chars().next().filter(|q| matches!(q, '\'' | '"')).ok_or(XmlError::NotWellFormed)?;
        let (value, next) = after[1..].split_once(quote).ok_or(XmlError::NotWellFormed)?;
        let name = name.trim_ascii();
        if !expected.any(|known| *known == name) {
            return Err(XmlError::NotWellFormed);
        }
        match name {
            "version" if value == "1.0" => versioned = true,
            "encoding" if value.eq_ignore_ascii_case("utf-8") => {}
            "encoding" => return Err(XmlError::UnsupportedEncoding),
            "standalone" if value == "yes" => {}
            _ => return Err(XmlError::Restricted),
        }
        if !next.is_empty() && !next.starts_with(|c: char| c.is_ascii_whitespace()) {
            return Err(XmlError::NotWellFormed);
        }
        rest = next.trim_ascii_start();
    }
    if versioned { Ok(&declared[end + 2..]) } else { Err(XmlError::NotWellFormed) }
}

/// A wrapper that is being written.
#[derive(Default)]
pub(crate) struct Wrapper {
    attributes: Vec<u8>,
    /// XEP-0206 2: the prefix is declared on the body.
    streams: bool,
    payloads: Vec<Bytes>,
}

impl Wrapper {
    /// With `type='terminate'`.
    pub(crate) fn terminate(condition: Option<Condition>) -> Self {
        let mut wrapper = Self::default();
        wrapper.attr("type", "terminate");
        if let Some(condition) = condition {
            wrapper.attr("condition", condition.as_str());
        }
        wrapper
    }

    /// Adds an attribute.
    pub(crate) fn attr(&mut self, name: &str, value: &str) {
        self.attributes.push(b' ');
        self.attributes.extend_from_slice(name.as_bytes());
        self.attributes.extend_from_slice(b"='");
        escape_attr(value, &mut self.attributes);
        self.attributes.push(b'\'');
    }

    /// Adds a payload: one that uses the prefix `stream`, or one that stands for itself.
    pub(crate) fn payload(&mut self, payload: &Payload) {
        self.streams |= payload.is_stream;
        self.payloads.push(payload.bytes.clone());
    }

    /// The text of the wrapper.
    pub(crate) fn finish(self) -> Bytes {
        let inner: usize = self.payloads.iter().map(Bytes::len).sum();
        let mut out = Vec::with_capacity(self.attributes.len() + inner + 128);
        out.extend_from_slice(b"<body xmlns='");
        out.extend_from_slice(NS_HTTPBIND.as_bytes());
        out.push(b'\'');
        if self.streams {
            out.extend_from_slice(b" xmlns:stream='");
            out.extend_from_slice(NS_STREAMS.as_bytes());
            out.push(b'\'');
        }
        out.extend_from_slice(&self.attributes);
        if self.payloads.is_empty() {
            out.extend_from_slice(b"/>");
        } else {
            out.push(b'>');
            for payload in &self.payloads {
                out.extend_from_slice(payload);
            }
            out.extend_from_slice(b"</body>");
        }
        out.into()
    }
}

/// An element on its way to the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Payload {
    pub(crate) bytes: Bytes,
    /// It has the prefix `stream`.
    pub(crate) is_stream: bool,
    /// How many stanzas the client has got with this one, since they are counted.
    pub(crate) number: u64,
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;

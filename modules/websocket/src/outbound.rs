//! From the bytes of the server's stream to messages (RFC 7395 3.3).
//!
//! What must hold: each element is a message of its own that can be read by itself, so what it
//! took from the stream header is declared on it; after SASL success a new stream begins.

use bytes::BytesMut;
use waystation_core::xml::{Event, Frame, Framer, Limits, MAX_DEPTH, Ns, StreamOpen, XmlError, escape_attr};

use crate::NS_FRAMING;
use crate::frame::write_text;

/// What the server's bytes are to the client.
pub(crate) struct Outbound {
    framer: Framer,
}

/// What was found in the server's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The client has been told that it is authenticated.
    pub(crate) authenticated: bool,
    /// The stream has ended.
    pub(crate) closed: bool,
}

impl Outbound {
    pub(crate) fn new() -> Self {
        // The server keeps what it sends within bounds; this one's limits are not in its way.
        let limits = Limits {
            max_stanza_bytes: usize::MAX,
            max_depth: MAX_DEPTH,
            max_elements: usize::MAX,
            max_attributes: usize::MAX,
        };
        Self { framer: Framer::new(limits) }
    }

    /// Adds messages for what the server has sent. What follows the end of its stream is ignored.
    pub(crate) fn add(&mut self, mut input: &[u8], out: &mut BytesMut) -> Result<Found, XmlError> {
        let mut found = Found::default();
        loop {
            match self.framer.next(&mut input)? {
                Event::NeedMore => return Ok(found),
                Event::Whitespace(_) => {}
                Event::Open(open) => write_open(&open, out),
                Event::Stanza(frame) => {
                    write_element(&frame, out);
                    if frame.head.namespace == Ns::Sasl && frame.name() == "success" {
                        found.authenticated = true;
                        self.framer.restart();
                    }
                }
                Event::Close => {
                    let close = format!("<close xmlns='{NS_FRAMING}'/>");
                    write_text(&[close.as_bytes()], out);
                    found.closed = true;
                    return Ok(found);
                }
            }
        }
    }
}

fn write_open(open: &StreamOpen, out: &mut BytesMut) {
    let mut tag = format!("<open xmlns='{NS_FRAMING}'").into_bytes();
    let attributes = [
        ("from", &open.from),
        ("to", &open.to),
        ("id", &open.id),
        ("version", &open.version),
        ("xml:lang", &open.lang),
    ];
    for (name, value) in attributes {
        let Some(value) = value else { continue };
        tag.push(b' ');
        tag.extend_from_slice(name.as_bytes());
        tag.extend_from_slice(b"='");
        escape_attr(value, &mut tag);
        tag.push(b'\'');
    }
    tag.extend_from_slice(b"/>");
    write_text(&[&tag], out);
}

/// Writes an element, with the declaration that its name needs.
fn write_element(frame: &Frame<'_>, out: &mut BytesMut) {
    let (head, bytes) = (frame.head, frame.bytes);
    let prefix = head.prefix.slice(bytes);
    let declares = |name: &[u8]| {
        head.attributes.iter().any(|attribute| {
            attribute.is_declaration
                && if name.is_empty() {
                    attribute.prefix.is_empty()
                } else {
                    attribute.local.slice(bytes) == name
                }
        })
    };
    let (name, rest) = bytes.split_at(head.name.end as usize);
    let declaration: &[u8] = match prefix {
        _ if declares(prefix) => b"",
        b"" => b" xmlns='jabber:client'",
        // No other prefix is on the server's stream header.
        _ => b" xmlns:stream='http://etherx.jabber.org/streams'",
    };
    write_text(&[name, declaration, rest], out);
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' id='a&amp;b' from='localhost' version='1.0' xml:lang='en'>";

    /// The texts of the messages, which are short enough for the short form of a frame's length or
    /// take the one of two bytes.
    fn texts(mut frames: &[u8]) -> Vec<String> {
        let mut texts = Vec::new();
        while !frames.is_empty() {
            assert_eq!(frames[0], 0x81);
            let (start, len) = match frames[1] {
                126 => (4, usize::from(u16::from_be_bytes([frames[2], frames[3]]))),
                len => (2, usize::from(len)),
            };
            texts.push(String::from_utf8(frames[start..start + len].to_vec()).unwrap());
            frames = &frames[start + len..];
        }
        texts
    }

    #[test]
    fn each_element_is_a_message_that_declares_what_it_needs_however_it_is_cut() {
        let stream = format!(
            "{HEADER}<stream:features><a xmlns='urn:a'/></stream:features>\
             <success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>{HEADER}<iq id='1'/> \n\
             <message><body>hi</body></message><r xmlns='urn:xmpp:sm:3'/>\
             <iq xmlns='jabber:client' id='2'></iq><a:b xmlns:a='urn:b'/>\
             <stream:error><x xmlns='urn:x'/></stream:error></stream:stream>ignored"
        );
        let open = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='localhost' id='a&amp;b' \
                    version='1.0' xml:lang='en'/>";
        let want = [
            open,
            "<stream:features xmlns:stream='http://etherx.jabber.org/streams'><a xmlns='urn:a'/></stream:features>",
            "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>",
            open,
            "<iq xmlns='jabber:client' id='1'/>",
            "<message xmlns='jabber:client'><body>hi</body></message>",
            "<r xmlns='urn:xmpp:sm:3'/>",
            "<iq xmlns='jabber:client' id='2'></iq>",
            "<a:b xmlns:a='urn:b'/>",
            "<stream:error xmlns:stream='http://etherx.jabber.org/streams'><x xmlns='urn:x'/></stream:error>",
            "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>",
        ];
        for size in [1, 2, 7, 100, stream.len()] {
            let mut outbound = Outbound::new();
            let mut out = BytesMut::new();
            let mut found = Found::default();
            for piece in stream.as_bytes().chunks(size) {
                if !found.closed {
                    let more = outbound.add(piece, &mut out).unwrap();
                    found.closed = more.closed;
                    found.authenticated |= more.authenticated;
                }
            }
            assert_eq!(found, Found { authenticated: true, closed: true });
            assert_eq!(texts(&out), want, "in pieces of {size}");
        }
    }

    #[test]
    fn an_element_named_success_elsewhere_restarts_nothing() {
        let mut outbound = Outbound::new();
        let stream = format!("{HEADER}<success xmlns='urn:x'/><success/><iq/>");
        let found = outbound.add(stream.as_bytes(), &mut BytesMut::new()).unwrap();
        assert_eq!(found, Found::default());
    }
}

//! From what the framer proved well-formed to a [`Stanza`].
//!
//! What must hold: the result means the same under any stream in `jabber:client`; addresses
//! are prepared; the head is written anew with the sender that the server vouches for, and the
//! stanza's bytes are copied exactly once.

use std::sync::Arc;

use bytes::Bytes;
use waystation_xml::{Attribute, Event, Frame, Framer, Ns, XmlError};

use crate::error::{Condition, StanzaError};
use crate::jid::Jid;
use crate::parts::{ChildName, EMPTY, Head, Parts};
use crate::signs::Signs;
use crate::stanza::{Kind, SERVER_MADE, Stanza, StanzaType};

/// Longest `xml:lang` that is relayed, in bytes; a longer one is dropped (SECURITY X16).
pub const MAX_LANG: usize = 64;

/// What the server puts on a stanza as it comes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp<'a> {
    /// The sender to write, whatever the stanza says; `None` keeps the stanza's own.
    pub from: Option<&'a Jid>,
    /// The language of the stream, for stanzas that have none (RFC 6120 8.1.5).
    pub lang: Option<&'a str>,
    /// Where a stanza without `to` goes (RFC 6120 10.3); `None` leaves it without.
    pub default_to: Option<&'a Jid>,
}

/// A top-level element that is no valid stanza.
#[derive(Debug)]
pub enum ReadError {
    /// Not one of the three stanzas (`unsupported-stanza-type`).
    NotAStanza,
    /// The stanza is answered with an error, which `reply_to` makes.
    Refused(Box<Refused>),
    /// It cannot be written anew; a fault of the reader.
    Malformed(XmlError),
}

/// A stanza that is answered with an error.
#[derive(Debug)]
pub struct Refused {
    /// What is wrong.
    pub error: StanzaError,
    /// The error reply, without addresses; `None` when it must not be answered.
    pub reply: Option<Stanza>,
}

impl Stanza {
    /// Makes a stanza of a top-level element in `jabber:client`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(frame: &Frame<'_>, stamp: Stamp<'_>) -> Result<Self, ReadError> {
        if !frame.head.reserialise {
            return read_plain(frame, stamp);
        }
        let element = frame.element().map_err(ReadError::Malformed)?;
        let mut anew = Vec::with_capacity(frame.bytes.len() + 64);
        // Under no inherited namespace, so that the element declares its own.
        element.write(&mut anew, "");
        let mut framer = Framer::new_frames(SERVER_MADE);
        let mut input = anew.as_slice();
        match framer.next(&mut input) {
            Ok(Event::Stanza(frame)) => read_plain(&frame, stamp),
            Ok(_) => Err(ReadError::Malformed(XmlError::NotWellFormed)),
            Err(error) => Err(ReadError::Malformed(error)),
        }
    }

    /// Reads back a stanza that was stored by [`Stanza::to_bytes`].
    ///
    /// # Errors
    /// [`ReadError`] when the bytes are damaged.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReadError> {
        // Stored without the stream around it, so the content namespace must be put back.
        let mut header = Framer::new(SERVER_MADE);
        let mut input: &[u8] =
            b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
        header.next(&mut input).map_err(ReadError::Malformed)?;
        let mut input = bytes;
        match header.next(&mut input) {
            Ok(Event::Stanza(frame)) => Self::read(&frame, Stamp::default()),
            Ok(_) => Err(ReadError::Malformed(XmlError::NotWellFormed)),
            Err(error) => Err(ReadError::Malformed(error)),
        }
    }
}

fn read_plain(frame: &Frame<'_>, stamp: Stamp<'_>) -> Result<Stanza, ReadError> {
    let (bytes, head) = (frame.bytes, frame.head);
    if head.namespace != Ns::Client {
        return Err(ReadError::NotAStanza);
    }
    let kind = match head.name(bytes) {
        "message" => Kind::Message,
        "presence" => Kind::Presence,
        "iq" => Kind::Iq,
        _ => return Err(ReadError::NotAStanza),
    };
    let raw = |name: &str| head.attribute(bytes, name);
    let type_attribute = head.attr(bytes, "type");
    let stanza_type = StanzaType::parse(kind, type_attribute.as_deref());
    // The id stays in its wire form: it is relayed, not looked at.
    let id = raw("id").map(|a| a.value.slice(bytes));
    let refuse = |condition: Condition| {
        let error = StanzaError::new(condition);
        let answerable = Stanza::build(
            stanza_type.unwrap_or(match kind {
                // Of an unknown type: answered like a request (RFC 6120 8.2.3, X17).
                Kind::Iq => StanzaType::Iq(crate::stanza::IqType::Get),
                _ => StanzaType::error_of(kind),
            }),
            None,
            None,
            id.and_then(|id| std::str::from_utf8(id).ok()),
            "",
        );
        let reply = match (stanza_type, kind) {
            (None, Kind::Presence) => {
                let mut inner = Vec::new();
                error.write(&mut inner);
                Some(Stanza::build(StanzaType::error_of(kind), None, None, answerable.raw_id(), &inner))
            }
            _ => answerable.error_reply(&error),
        };
        ReadError::Refused(Box::new(Refused { error, reply }))
    };
    let Some(stanza_type) = stanza_type else {
        return Err(refuse(Condition::BadRequest));
    };
    let address = |name: &str| match head.attr(bytes, name) {
        Some(text) => Jid::parse(&text).map(Some).map_err(|_| refuse(Condition::JidMalformed)),
        None => Ok(None),
    };
    let to = match address("to")? {
        None => stamp.default_to.cloned(),
        to => to,
    };
    let from = match stamp.from {
        Some(from) => Some(from.clone()),
        None => address("from")?,
    };
    if kind == Kind::Iq {
        // RFC 6120 8.2.3: an id always, exactly one child in a request, at most one in a result.
        let children_ok = match stanza_type {
            StanzaType::Iq(crate::stanza::IqType::Get | crate::stanza::IqType::Set) => head.children == 1,
            StanzaType::Iq(crate::stanza::IqType::Result) => head.children <= 1,
            _ => true,
        };
        if id.is_none() || !children_ok {
            return Err(refuse(Condition::BadRequest));
        }
    }
    let lang = head
        .attributes
        .iter()
        .find(|a| a.prefix.slice(bytes) == b"xml" && a.local.slice(bytes) == b"lang")
        .map(|a| a.value.slice(bytes))
        .filter(|lang| lang.len() <= MAX_LANG);
    let inherited = if lang.is_none() { stamp.lang } else { None };

    let is_extra = |attr: &Attribute| match (attr.prefix.slice(bytes), attr.local.slice(bytes)) {
        (b"", b"from" | b"to" | b"type" | b"id") => attr.is_declaration,
        // The content namespace is the stream's.
        (b"", b"xmlns") | (b"xml", b"lang") => false,
        _ => true,
    };
    let extra = || head.attributes.iter().filter(|attr| is_extra(attr)).map(|attr| attr.raw(bytes));
    let extra_length = extra().map(|raw| 1 + raw.len()).sum();
    let write_extra = |out: &mut Vec<u8>| {
        extra().for_each(|raw| {
            out.push(b' ');
            out.extend_from_slice(raw);
        });
    };
    // What stands for itself is shared by all: there is much presence without content.
    let tail = &bytes[head.open_end..];
    let behind = if tail == EMPTY { &[] } else { tail };
    let written = Head {
        stanza_type,
        from: from.as_ref().map(Jid::escaped),
        to: to.as_ref().map(Jid::escaped),
        id,
        lang: inherited.map(str::as_bytes).or(lang),
    };
    let (all, length, spans) = written.write(extra_length, write_extra, behind);
    let all = Bytes::from(all);
    let (head, tail) = match behind {
        [] => (all, Bytes::from_static(EMPTY)),
        _ => (all.slice(..length), all.slice(length..)),
    };
    let (child, signs) = (ChildName::of_frame(frame), Signs::default());
    Ok(Stanza(Arc::new(Parts { head, tail, from, to, child, spans, stanza_type, signs })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Condition, StanzaError};

    const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' xmlns:e='urn:e'>";

    fn read(xml: &str, stamp: Stamp<'_>) -> Result<Stanza, ReadError> {
        let mut framer = Framer::new(SERVER_MADE);
        let mut input = HEADER.as_bytes();
        framer.next(&mut input).unwrap();
        let mut input = xml.as_bytes();
        match framer.next(&mut input).unwrap() {
            Event::Stanza(frame) => Stanza::read(&frame, stamp),
            other => panic!("no stanza: {other:?}"),
        }
    }

    fn text(stanza: &Stanza) -> String {
        String::from_utf8(stanza.to_bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_head_is_written_anew_and_the_tail_is_untouched() {
        let from = Jid::parse("a@h/r'1").unwrap();
        let stamp = Stamp { from: Some(&from), lang: Some("en"), default_to: None };
        let stanza = read(
            "<message xmlns='jabber:client' id=\"it's\" to='B@H' from='evil@x' x='1' xmlns:y='urn:y' \
             type='chat'><body>hi &amp; bye</body><y:z/></message >",
            stamp,
        )
        .unwrap();
        assert_eq!(
            text(&stanza),
            "<message from='a@h/r&apos;1' to='b@h' type='chat' id='it&apos;s' xml:lang='en' x='1' \
             xmlns:y='urn:y'><body>hi &amp; bye</body><y:z/></message >"
        );
        assert_eq!(stanza.id().unwrap(), "it's");
        assert_eq!(stanza.child(), Some(("body", "jabber:client")));
        let again = Stanza::parse(&stanza.to_bytes()).unwrap();
        assert_eq!(text(&again), text(&stanza));
        let to = Jid::parse("c@h").unwrap();
        assert!(
            text(&again.with_to(to))
                .contains(" to='c@h' type='chat' id='it&apos;s' xml:lang='en' x='1' xmlns:y")
        );
    }

    #[test]
    fn x3_cdata_is_delivered_escaped() {
        let stanza =
            read("<message to='b@h'><body><![CDATA[</body><x/>]]></body></message>", Stamp::default())
                .unwrap();
        assert_eq!(text(&stanza), "<message to='b@h'><body>&lt;/body&gt;&lt;x/&gt;</body></message>");
    }

    #[test]
    fn x7_prefixes_of_the_stream_header_do_not_leak() {
        let stanza = read("<message to='b@h'><e:x/></message>", Stamp::default()).unwrap();
        assert_eq!(text(&stanza), "<message to='b@h'><x xmlns='urn:e'/></message>");
        let stanza = read(
            "<a:message xmlns:a='jabber:client' to='b@h'><a:body>x</a:body></a:message>",
            Stamp::default(),
        );
        assert_eq!(text(&stanza.unwrap()), "<message to='b@h'><body>x</body></message>");
    }

    #[test]
    fn x17_what_is_no_valid_stanza_is_answered_by_name() {
        for (xml, condition) in [
            ("<iq id='1' type='get'/>", Condition::BadRequest),
            ("<iq id='1' type='get'><a xmlns='u'/><b xmlns='u'/></iq>", Condition::BadRequest),
            ("<iq type='get'><a xmlns='u'/></iq>", Condition::BadRequest),
            ("<iq id='1'><a xmlns='u'/></iq>", Condition::BadRequest),
            ("<iq id='1' type='bogus'><a xmlns='u'/></iq>", Condition::BadRequest),
            ("<presence id='1' type='bogus'/>", Condition::BadRequest),
            ("<message id='1' to='a@b@c'/>", Condition::JidMalformed),
            ("<message id='1' to=''/>", Condition::JidMalformed),
        ] {
            let Err(ReadError::Refused(refused)) = read(xml, Stamp::default()) else {
                panic!("{xml} was read")
            };
            assert_eq!(refused.error.condition, condition, "{xml}");
            assert!(refused.reply.is_some_and(|r| r.stanza_type().is_error()), "{xml}");
        }
        for xml in ["<iq id='1' type='error' to='a@b@c'/>", "<message type='error' to='@'/>"] {
            let Err(ReadError::Refused(refused)) = read(xml, Stamp::default()) else {
                panic!("{xml} was read")
            };
            assert!(refused.reply.is_none(), "X18: {xml} was answered");
        }
        assert!(matches!(read("<foo/>", Stamp::default()), Err(ReadError::NotAStanza)));
        assert!(matches!(read("<message xmlns='urn:evil'/>", Stamp::default()), Err(ReadError::NotAStanza)));
    }

    #[test]
    fn x16_a_long_language_is_dropped() {
        let xml = format!("<message to='b@h' xml:lang='{}'/>", "x".repeat(MAX_LANG + 1));
        assert_eq!(text(&read(&xml, Stamp::default()).unwrap()), "<message to='b@h'/>");
    }

    #[test]
    fn children_are_appended_to_any_form_of_stanza() {
        for xml in ["<message to='b@h'/>", "<message to='b@h' />", "<message to='b@h'></message>"] {
            let stanza = read(xml, Stamp::default()).unwrap().with_appended("<x xmlns='u'/>");
            assert_eq!(text(&stanza), "<message to='b@h'><x xmlns='u'/></message>");
        }
        let stanza = read("<message to='b@h'><body/></message>", Stamp::default()).unwrap();
        assert_eq!(
            text(&stanza.with_appended("<x xmlns='u'/>")),
            "<message to='b@h'><body/><x xmlns='u'/></message>"
        );
    }

    #[test]
    fn replies_swap_addresses_and_keep_the_id() {
        let from = Jid::parse("a@h/r").unwrap();
        let stamp = Stamp { from: Some(&from), ..Stamp::default() };
        let iq = read("<iq id='&lt;1' type='get' to='h'><q xmlns='u'/></iq>", stamp).unwrap();
        assert_eq!(text(&iq.result(None)), "<iq from='h' to='a@h/r' type='result' id='&lt;1'/>");
        let error = StanzaError::new(Condition::ItemNotFound).with_text("no");
        assert_eq!(
            text(&iq.error_reply(&error).unwrap()),
            "<iq from='h' to='a@h/r' type='error' id='&lt;1'><error type='cancel'><item-not-found \
             xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/><text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas' \
             xml:lang='en'>no</text></error></iq>"
        );
    }
}

//! From what the framer proved well-formed to a [`Stanza`].
//!
//! What must hold: the result means the same under any stream in `jabber:client`; addresses
//! are prepared; the head is written anew with the sender that the server vouches for, and the
//! stanza's bytes are copied exactly once.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use waystation_xml::{Attribute, Event, Frame, Framer, XmlError};

use crate::error::{Condition, StanzaError};
use crate::jid::Jid;
use crate::parts::{ChildName, EMPTY, Head, Parts, quotable};
use crate::signs::Signs;
use crate::stanza::{Kind, NS_CLIENT, SERVER_MADE, Stanza, StanzaType};

/// Longest `xml:lang` that is relayed, in bytes; a longer one is dropped (SECURITY X16).
pub const MAX_LANG: usize = 64;

/// Content namespace of streams between servers.
const NS_SERVER: &str = "jabber:server";

/// What the server puts on a stanza as it comes in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp<'a> {
    /// The sender to write, whatever the stanza says; `None` keeps the stanza's own.
    pub from: Option<&'a Jid>,
    /// The language of the stream, for stanzas that have none (RFC 6120 8.1.5).
    pub lang: Option<&'a str>,
    /// Where a stanza without `to` goes (RFC 6120 10.3); `None` leaves it without.
    pub default_to: Option<&'a Jid>,
    /// An address that the stanza may well be to: if it is, and is written the same way, it is not
    /// parsed again. Most go where the one before went.
    pub known_to: Option<&'a Jid>,
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
    /// Makes a stanza of a top-level element in `jabber:client` or `jabber:server`. Of the latter the
    /// element, and what it contains up to elements of other namespaces, are in `jabber:client` from here on
    /// (RFC 6120 4.8.3). Which of the two a stream may carry, its holder looks at before.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read(frame: &Frame<'_>, stamp: Stamp<'_>) -> Result<Self, ReadError> {
        if !frame.head.reserialise {
            return read_plain(frame, stamp);
        }
        let mut element = frame.element().map_err(ReadError::Malformed)?;
        element.rescope(NS_SERVER, NS_CLIENT);
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
    if !head.namespace.is_content() {
        return Err(ReadError::NotAStanza);
    }
    let kind = match head.name.slice(bytes) {
        b"message" => Kind::Message,
        b"presence" => Kind::Presence,
        b"iq" => Kind::Iq,
        _ => return Err(ReadError::NotAStanza),
    };
    let attributes = Attributes::of(bytes, head);
    let stanza_type = match attributes.stanza_type {
        Some(attribute) if attribute.has_entities => StanzaType::parse(kind, Some(&attribute.value(bytes))),
        attribute => StanzaType::of_bytes(kind, attribute.map(|attribute| attribute.value.slice(bytes))),
    };
    // The id stays in its wire form: it is relayed, not looked at.
    let id = attributes.id.map(|attribute| attribute.value.slice(bytes));
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
    let address = |attribute: Option<&Attribute>| match attribute {
        Some(attribute) => {
            Jid::parse(&attribute.value(bytes)).map(Some).map_err(|_| refuse(Condition::JidMalformed))
        }
        None => Ok(None),
    };
    let is_known = |known: &&Jid| {
        attributes.to.is_some_and(|to| !to.has_entities && to.value.slice(bytes) == known.as_str().as_bytes())
    };
    let to = match stamp.known_to.filter(is_known) {
        // A prepared address is what preparing it gives.
        Some(known) => Some(known.clone()),
        None => match address(attributes.to)? {
            None => stamp.default_to.cloned(),
            to => to,
        },
    };
    let from = match stamp.from {
        Some(from) => Some(from.clone()),
        None => address(attributes.from)?,
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
    let lang = match attributes.lang.filter(|lang| lang.value.len() <= MAX_LANG) {
        Some(lang) => Some(value(bytes, lang)),
        None => stamp.lang.map(|lang| quotable(lang.as_bytes())),
    };
    let write_extra = |out: &mut Vec<u8>| {
        for attribute in head.attributes.iter().filter(|attribute| Name::of(bytes, attribute) == Name::Extra)
        {
            out.push(b' ');
            out.extend_from_slice(attribute.raw(bytes));
        }
    };
    // What stands for itself is shared by all: there is much presence without content.
    let tail = &bytes[head.open_end..];
    let behind = if tail == EMPTY { &[] } else { tail };
    let written = Head {
        stanza_type,
        from: from.as_ref().map(Jid::escaped),
        to: to.as_ref().map(Jid::escaped),
        id: attributes.id.map(|id| value(bytes, id)),
        lang,
    };
    let (all, length, spans) = written.write(attributes.extra, write_extra, behind);
    let mut head = Bytes::from(all);
    let tail = match behind {
        [] => Bytes::from_static(EMPTY),
        _ => head.split_off(length),
    };
    let (child, signs) = (ChildName::of_frame(frame), Signs::default());
    Ok(Stanza(Arc::new(Parts { head, tail, from, to, child, spans, stanza_type, signs })))
}

/// What a stanza's attributes are to the reader.
#[derive(PartialEq)]
enum Name {
    From,
    To,
    Type,
    Id,
    Lang,
    /// The content namespace is the stream's.
    Namespace,
    /// Relayed as it is.
    Extra,
}

impl Name {
    fn of(bytes: &[u8], attribute: &Attribute) -> Self {
        let local = attribute.local.slice(bytes);
        if !attribute.prefix.is_empty() {
            let is_lang = local == b"lang" && attribute.prefix.slice(bytes) == b"xml";
            return if is_lang { Self::Lang } else { Self::Extra };
        }
        match local {
            b"from" => Self::From,
            b"to" => Self::To,
            b"type" => Self::Type,
            b"id" => Self::Id,
            b"xmlns" => Self::Namespace,
            _ => Self::Extra,
        }
    }
}

/// The attributes of a stanza, found in one go.
#[derive(Default)]
struct Attributes<'a> {
    from: Option<&'a Attribute>,
    to: Option<&'a Attribute>,
    stanza_type: Option<&'a Attribute>,
    id: Option<&'a Attribute>,
    lang: Option<&'a Attribute>,
    /// Bytes of the others, each with a space before it.
    extra: usize,
}

impl<'a> Attributes<'a> {
    fn of(bytes: &[u8], head: &'a waystation_xml::Head) -> Self {
        let mut all = Self::default();
        // None comes twice: the framer refuses that.
        for attribute in &head.attributes {
            match Name::of(bytes, attribute) {
                Name::From => all.from = Some(attribute),
                Name::To => all.to = Some(attribute),
                Name::Type => all.stanza_type = Some(attribute),
                Name::Id => all.id = Some(attribute),
                Name::Lang => all.lang = Some(attribute),
                Name::Namespace => {}
                Name::Extra => all.extra += 1 + attribute.raw(bytes).len(),
            }
        }
        all
    }
}

/// An attribute's raw value, to be written between single quotes.
fn value<'a>(bytes: &'a [u8], attribute: &Attribute) -> Cow<'a, [u8]> {
    let value = attribute.value.slice(bytes);
    // One that stands between apostrophes holds none.
    match bytes.get(attribute.value.end as usize) {
        Some(b'\'') => Cow::Borrowed(value),
        _ => quotable(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Condition, StanzaError};
    use crate::queue::RecordId;
    use crate::signs::Sign;

    const SERVER_HEADER: &str = "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback'>";
    const HEADER: &str = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' xmlns:e='urn:e'>";

    fn read(xml: &str, stamp: Stamp<'_>) -> Result<Stanza, ReadError> {
        read_under(HEADER, xml, stamp)
    }

    fn read_under(header: &str, xml: &str, stamp: Stamp<'_>) -> Result<Stanza, ReadError> {
        let mut framer = Framer::new(SERVER_MADE);
        let mut input = header.as_bytes();
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
        let stamp = Stamp { from: Some(&from), lang: Some("en"), ..Stamp::default() };
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
    fn a_stanza_between_servers_is_one_between_client_and_server_from_here_on() {
        let server = |xml: &str| read_under(SERVER_HEADER, xml, Stamp::default()).unwrap();
        for (xml, expected, child) in [
            ("<message from='a@x' to='b@h'><body>1</body></message>", None, ("body", "jabber:client")),
            // What repeats the namespace, on the stanza or below it, means the same.
            (
                "<message xmlns='jabber:server' from='a@x' to='b@h'><body>2</body></message>",
                Some("<message from='a@x' to='b@h'><body>2</body></message>"),
                ("body", "jabber:client"),
            ),
            (
                "<message from='a@x' to='b@h'><subject xmlns='jabber:server'>3</subject></message>",
                Some("<message from='a@x' to='b@h'><subject>3</subject></message>"),
                ("subject", "jabber:client"),
            ),
            (
                "<s:message xmlns:s='jabber:server' from='a@x' to='b@h'><s:body>4</s:body></s:message>",
                Some("<message from='a@x' to='b@h'><body>4</body></message>"),
                ("body", "jabber:client"),
            ),
            (
                "<message from='a@x' to='b@h'><body><![CDATA[<5>]]></body></message>",
                Some("<message from='a@x' to='b@h'><body>&lt;5&gt;</body></message>"),
                ("body", "jabber:client"),
            ),
            // A client's stanza that is forwarded stays one (XEP-0297), and so does a server's.
            (
                "<message from='a@x' to='b@h'><f xmlns='u'><message xmlns='jabber:client'><body>6</body>\
                 </message><message xmlns='jabber:server'/></f></message>",
                None,
                ("f", "u"),
            ),
            // A prefix of the header that means nothing elsewhere.
            (
                "<message from='a@x' to='b@h'><db:x>7</db:x></message>",
                Some("<message from='a@x' to='b@h'><x xmlns='jabber:server:dialback'>7</x></message>"),
                ("x", "jabber:server:dialback"),
            ),
        ] {
            let stanza = server(xml);
            assert_eq!(text(&stanza), expected.unwrap_or(xml), "{xml}");
            assert_eq!(stanza.child(), Some(child), "{xml}");
            assert_eq!(text(&Stanza::parse(&stanza.to_bytes()).unwrap()), text(&stanza), "{xml}");
        }
        // Under a client's stream the other namespace is one like any other.
        let stanza = read("<message to='b@h'><body xmlns='jabber:server'/></message>", Stamp::default());
        assert_eq!(stanza.unwrap().child(), Some(("body", "jabber:server")));
        let refused = read_under(SERVER_HEADER, "<iq id='1' type='get'/>", Stamp::default());
        assert!(matches!(refused, Err(ReadError::Refused(_))));
        let other = read_under(SERVER_HEADER, "<message xmlns='u'/>", Stamp::default());
        assert!(matches!(other, Err(ReadError::NotAStanza)));
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
    fn a_stanza_id_is_appended_to_any_form_of_message() {
        let by = Jid::parse("b@h").unwrap();
        let element = "<stanza-id xmlns='urn:xmpp:sid:0' by='b@h' id='000000000002a'/>";
        for (tail, content) in [
            ("/>", ""),
            (" />", ""),
            ("></message>", ""),
            ("><body>a</body></message>", "<body>a</body>"),
            ("><body>a</body></message >", "<body>a</body>"),
            ("><body/></message\n>", "<body/>"),
            (">a/></message>", "a/>"),
            ("><message></message></message>", "<message></message>"),
        ] {
            let plain = read(&format!("<message to='b@h' id='1'{tail}"), Stamp::default()).unwrap();
            let with = plain.with_stanza_id(&by, RecordId(74));
            assert_eq!(
                text(&with),
                format!("<message to='b@h' id='1'>{content}{element}</message>"),
                "{tail}"
            );
            assert_eq!(text(&with), text(&plain.with_appended(element)), "{tail}");
            assert_eq!(
                (with.id(), with.to(), with.child()),
                (plain.id(), plain.to(), plain.child()),
                "{tail}"
            );
            assert!(with.may_hold(&[Sign::Claims]) && !with.may_hold(&[Sign::Hints]), "{tail}");
        }
        let by = Jid::parse("b@h/it's").unwrap();
        let with = read("<message/>", Stamp::default()).unwrap().with_stanza_id(&by, RecordId(0));
        assert!(text(&with).contains(" by='b@h/it&apos;s' id='0000000000000'"), "{}", text(&with));
    }

    #[test]
    fn apostrophes_are_escaped_wherever_they_come_from() {
        let xml = "<message to=\"b@h/it's\" id=\"'1'\" xml:lang=\"e'n\" x=\"'\"/>";
        let stanza = read(xml, Stamp { lang: Some("en"), ..Stamp::default() }).unwrap();
        let expected = "<message to='b@h/it&apos;s' id='&apos;1&apos;' xml:lang='e&apos;n' x=\"'\"/>";
        assert_eq!(text(&stanza), expected);
        let stanza = read("<message/>", Stamp { lang: Some("e'n"), ..Stamp::default() }).unwrap();
        assert_eq!(text(&stanza), "<message xml:lang='e&apos;n'/>");
        assert_eq!(text(&stanza.with_raw_lang("'")), "<message xml:lang='&apos;'/>");
        let built = Stanza::build(stanza.stanza_type(), None, None, Some("it's"), "");
        assert_eq!(text(&built), "<message id='it&apos;s'/>");
    }

    #[test]
    fn a_known_address_is_taken_only_for_itself() {
        let known = Jid::parse("b@h/it's").unwrap();
        let stamp = Stamp { known_to: Some(&known), ..Stamp::default() };
        let to = |to: &str| read(&format!("<message to={to}/>"), stamp).unwrap().to().unwrap().clone();
        assert!(Arc::ptr_eq(&to("\"b@h/it's\"").shared(), &known.shared()));
        for (other, expected) in [("'b@h/it&apos;s'", "b@h/it's"), ("'B@h'", "b@h"), ("'b@h/it'", "b@h/it")] {
            assert_eq!(to(other).as_str(), expected);
        }
        assert!(read("<message/>", stamp).unwrap().to().is_none());
    }

    #[test]
    fn attributes_are_told_apart_by_their_whole_name() {
        let xml = "<message xmlns:id='u' xmlns='jabber:client' xmlns:type='v' type='&#99;hat' id:from='1' \
                   type:to='2' id:id='3' xml:id='4' xml:space='5' fro='6' xml:lang='l' To='7'/>";
        let stanza = read(xml, Stamp::default()).unwrap();
        assert_eq!(
            text(&stanza),
            "<message type='chat' xml:lang='l' xmlns:id='u' xmlns:type='v' id:from='1' type:to='2' \
             id:id='3' xml:id='4' xml:space='5' fro='6' To='7'/>"
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

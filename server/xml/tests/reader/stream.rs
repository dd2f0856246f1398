//! What a stream of XML is cut into, in order and in time.

use waystation_xml::fuzzing::{HEADER, Item, trace};
use waystation_xml::{Element, Event, Framer, Limits, Ns, XmlError, ns};

use crate::common::{content, every_split, stream};

#[test]
fn a_whole_stream() {
    let input = "<?xml version='1.0'?>\n<stream:stream to='localhost' xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams'> <message to='a'><body>b</body></message>\n\
        <presence/><iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq></stream:stream>\n";
    let items = every_split(input.as_bytes());
    let kinds: Vec<String> = items
        .iter()
        .map(|item| match item {
            Item::Stanza(bytes, head) => head.name(bytes).to_owned(),
            Item::Open(_) => "open".to_owned(),
            Item::Whitespace(count) => format!("{count} spaces"),
            other => format!("{other:?}"),
        })
        .collect();
    assert_eq!(
        kinds,
        ["1 spaces", "open", "1 spaces", "message", "1 spaces", "presence", "iq", "Close", "1 spaces"]
    );
}

#[test]
fn what_arrives_whole_is_a_slice_of_the_input() {
    let mut framer = Framer::new(Limits::authenticated());
    trace(&mut framer, [HEADER]);
    let input = b"<presence/><message/><iq".to_vec();
    let mut rest = &input[..];
    match framer.next(&mut rest) {
        Ok(Event::Stanza(frame)) => assert_eq!(frame.bytes.as_ptr(), input.as_ptr()),
        other => panic!("{other:?}"),
    }
    assert_eq!(rest, b"<message/><iq");
    match framer.next(&mut rest) {
        Ok(Event::Stanza(frame)) => assert_eq!(frame.name(), "message"),
        other => panic!("{other:?}"),
    }
    assert!(!framer.is_mid_stanza());
    assert!(matches!(framer.next(&mut rest), Ok(Event::NeedMore)));
    assert!(framer.is_mid_stanza() && rest.is_empty());
    let mut rest = &b"/><presence/>"[..];
    match framer.next(&mut rest) {
        Ok(Event::Stanza(frame)) => assert_eq!(frame.bytes, b"<iq/>"),
        other => panic!("{other:?}"),
    }
    // Nothing beyond the element is taken: what follows may not be XML (a TLS handshake, say).
    assert_eq!(rest, b"<presence/>");
}

#[test]
fn the_head_says_where_things_are() {
    let input =
        b"<message  to='a' xml:lang=\"en\"\n id='1&amp;2' ><body>x</body> <z:y xmlns:z='urn:z'/></message >";
    match &content(input)[..] {
        [Item::Stanza(bytes, head)] => {
            assert_eq!(head.name(bytes), "message");
            assert_eq!(head.namespace(bytes), ns::CLIENT);
            assert_eq!(head.attr(bytes, "to").as_deref(), Some("a"));
            assert_eq!(head.attr(bytes, "id").as_deref(), Some("1&2"));
            assert_eq!(head.attr(bytes, "lang"), None);
            assert_eq!(head.lang(bytes).as_deref(), Some("en"));
            let raw: Vec<_> = head.attributes.iter().map(|a| a.raw(bytes)).collect();
            assert_eq!(raw, [&b"to='a'"[..], b"xml:lang=\"en\"", b"id='1&amp;2'"]);
            let entities: Vec<_> = head.attributes.iter().map(|a| a.has_entities).collect();
            assert_eq!(entities, [false, false, true]);
            assert_eq!(head.tail(bytes), b"<body>x</body> <z:y xmlns:z='urn:z'/>");
            assert_eq!(&bytes[head.close_start..], b"</message >");
            assert_eq!(head.children, 2);
            assert_eq!(bytes[head.child.as_ref().unwrap().start..][..6], *b"<body>");
            assert!(!head.self_closing && !head.reserialise);
        }
        other => panic!("{other:?}"),
    }
    match &content(b"<iq id='1'\t/>")[..] {
        [Item::Stanza(bytes, head)] => {
            assert!(head.self_closing);
            assert_eq!(&bytes[head.open_end..], b"/>");
            assert_eq!(head.tail(bytes), b"");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn namespaces_that_the_core_tells_apart() {
    for (input, namespace) in [
        ("<message/>", Ns::Client),
        ("<message xmlns='jabber:server'/>", Ns::Server),
        ("<stream:features/>", Ns::Streams),
        ("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>", Ns::Tls),
        ("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>", Ns::Sasl),
        ("<r xmlns='urn:xmpp:sm:3'/>", Ns::StreamManagement),
        ("<x:r xmlns:x='urn:xmpp:s&#109;:3'/>", Ns::StreamManagement),
        ("<r xmlns='urn:xmpp:sm:2'/>", Ns::Other),
        ("<r xmlns=''/>", Ns::Other),
    ] {
        match &content(input.as_bytes())[..] {
            [Item::Stanza(_, head)] => assert_eq!(head.namespace, namespace, "{input}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn declarations_of_an_unusual_header_stay_in_force() {
    let header =
        b"<s:stream xmlns:s='http://etherx.jabber.org/streams' xmlns='jabber:client' xmlns:x='urn:x&amp;y'>";
    let mut framer = Framer::new(Limits::authenticated());
    trace(&mut framer, [&header[..]]);
    let mut input = &b"<message x:a='1'><x:y/><z x:b='2'/></message><x:q/></s:stream>"[..];
    match framer.next(&mut input) {
        Ok(Event::Stanza(frame)) => {
            assert!(frame.head.reserialise);
            let element = frame.element().unwrap();
            assert_eq!(element.attr_ns("a", "urn:x&y"), Some("1"));
            assert!(element.child("y", "urn:x&y").is_some());
            let child = frame.head.child.as_ref().unwrap();
            assert_eq!(child.namespace(frame.bytes), "urn:x&y");
            let written = element.to_vec(ns::CLIENT);
            assert_eq!(Element::parse(&written, ns::CLIENT), Ok(element));
            // Without the header, the prefix is unknown.
            assert_eq!(Element::parse(frame.bytes, ns::CLIENT), Err(XmlError::NotWellFormed));
        }
        other => panic!("{other:?}"),
    }
    match framer.next(&mut input) {
        Ok(Event::Stanza(frame)) => assert_eq!(frame.namespace(), "urn:x&y"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(framer.next(&mut input), Ok(Event::Close)));
}

#[test]
fn a_restart_forgets_everything() {
    let mut framer = Framer::new(Limits::authenticated());
    let header = b"<stream:stream xmlns:a='urn:a' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>";
    trace(&mut framer, [&header[..]]);
    assert!(matches!(trace(&mut framer, [&b"<a:b/><message"[..]])[..], [Item::Stanza(..), Item::Unfinished]));
    framer.restart();
    assert!(!framer.is_mid_stanza());
    let again = [b"<?xml version='1.0'?>", HEADER, b"<a:b/>"].concat();
    let items = trace(&mut framer, [&again[..]]);
    assert!(matches!(items[..], [Item::Open(_), Item::Error(XmlError::NotWellFormed)]), "{items:?}");
    framer.restart();
    assert!(matches!(trace(&mut framer, [HEADER])[..], [Item::Open(_)]));
    // A header is not a stanza.
    framer.restart();
    assert_eq!(trace(&mut framer, [&b"<message/>"[..]]), [Item::Error(XmlError::InvalidNamespace)]);
}

#[test]
fn an_error_stays() {
    let mut framer = Framer::new(Limits::authenticated());
    trace(&mut framer, [HEADER]);
    for input in [&b"<a></b>"[..], b"<message/>", b""] {
        assert_eq!(trace(&mut framer, [input]), [Item::Error(XmlError::NotWellFormed)]);
    }
    assert!(!framer.is_mid_stanza());
}

#[test]
fn limits_can_change_within_a_stream() {
    let mut framer = Framer::new(Limits::pre_auth());
    trace(&mut framer, [HEADER]);
    let large = format!("<message>{}</message>", "x".repeat(10_000));
    framer.set_limits(Limits::authenticated());
    assert!(matches!(trace(&mut framer, [large.as_bytes()])[..], [Item::Stanza(..)]));
    assert_eq!(trace(&mut framer, [&large.as_bytes()[..9000]]), [Item::Unfinished]);
    framer.set_limits(Limits::pre_auth());
    assert_eq!(trace(&mut framer, [&large.as_bytes()[9000..]]), [Item::Error(XmlError::StanzaTooBig)]);
}

#[test]
fn a_stream_may_end_where_it_starts() {
    let items = every_split(b"<stream:stream xmlns:stream='http://etherx.jabber.org/streams'/> ");
    assert!(matches!(items[..], [Item::Open(_), Item::Close, Item::Whitespace(1)]), "{items:?}");
    assert_eq!(stream(b""), []);
}

/// RFC 7395: each frame is an element of its own, and declares its own namespaces.
#[test]
fn frames_without_a_stream_header() {
    let mut framer = Framer::new_frames(Limits::authenticated());
    for (frame, namespace) in [
        ("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='localhost' version='1.0'/>", Ns::Other),
        ("<message xmlns='jabber:client'><body>x</body></message>", Ns::Client),
        ("<stream:features xmlns:stream='http://etherx.jabber.org/streams'/>", Ns::Streams),
        ("<message/>", Ns::Other),
    ] {
        match &trace(&mut framer, [frame.as_bytes()])[..] {
            [Item::Stanza(bytes, head)] => {
                assert_eq!(head.namespace, namespace, "{frame}");
                assert_eq!(bytes, frame.as_bytes());
                assert_eq!(head.reserialise, namespace == Ns::Streams, "{frame}");
            }
            other => panic!("{other:?}"),
        }
    }
    for bad in ["<stream:features/>", "</message>", "</>", "x", "<a/>x", "\u{FEFF}<a/>", "<a></b>"] {
        framer.restart();
        let items = trace(&mut framer, [bad.as_bytes()]);
        assert_eq!(items.last(), Some(&Item::Error(XmlError::NotWellFormed)), "{bad}");
    }
    framer.restart();
    assert_eq!(trace(&mut framer, [&b"<a>"[..]]), [Item::Unfinished]);
}

/// Each error has a condition that RFC 6120 section 4.9.3 knows.
#[test]
fn conditions() {
    for (error, condition) in [
        (XmlError::NotWellFormed, "not-well-formed"),
        (XmlError::Restricted, "restricted-xml"),
        (XmlError::UnsupportedEncoding, "unsupported-encoding"),
        (XmlError::BadNamespacePrefix, "bad-namespace-prefix"),
        (XmlError::InvalidNamespace, "invalid-namespace"),
        (XmlError::BadFormat, "bad-format"),
        (XmlError::InvalidXml, "invalid-xml"),
        (XmlError::StanzaTooBig, "policy-violation"),
        (XmlError::TooDeep, "policy-violation"),
        (XmlError::TooManyElements, "policy-violation"),
        (XmlError::TooManyAttributes, "policy-violation"),
        (XmlError::TooManyNamespaces, "policy-violation"),
    ] {
        assert_eq!(error.condition(), condition);
    }
}

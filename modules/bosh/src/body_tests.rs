use proptest::prelude::*;

use super::*;

fn limits() -> Limits {
    Limits { max_stanza_bytes: 262_144 + 8192, ..Limits::authenticated() }
}

fn read(xml: &str) -> Result<Element, BodyError> {
    parse(xml.as_bytes(), limits())
}

fn wrapped(attributes: &str, content: &str) -> String {
    format!("<body rid='1' xmlns='{NS_HTTPBIND}' {attributes}>{content}</body>")
}

fn refused(content: &str) -> BodyError {
    let xml = wrapped("", content);
    read(&xml).expect_err(&xml)
}

fn payloads(xml: &str) -> Vec<String> {
    let text = |e: &Element| String::from_utf8(e.to_vec(NS_CLIENT)).unwrap();
    read(xml).unwrap_or_else(|error| panic!("{error}: {xml}")).children().map(text).collect()
}

#[test]
fn xep_0124_6_a_wrapper_may_be_empty_or_hold_several_payloads() {
    assert_eq!(payloads(&format!("<body xmlns='{NS_HTTPBIND}'/>")), [""; 0]);
    let xml =
        wrapped("", "\n <message xmlns='jabber:client' to='a@b'/>\n<iq xmlns='jabber:client' type='get'/>");
    assert_eq!(payloads(&xml), ["<message to='a@b'/>", "<iq type='get'/>"]);
}

#[test]
fn xep_0206_2_payloads_without_a_namespace_are_stanzas() {
    let xml = wrapped("", "<message><body>hi</body><x xmlns='urn:x'><body/></x></message>");
    assert_eq!(payloads(&xml), ["<message><body>hi</body><x xmlns='urn:x'><body/></x></message>"]);
}

#[test]
fn xep_0124_6_what_is_declared_around_a_payload_comes_with_it() {
    for (attributes, content, expected) in [
        (
            "xmlns:c='jabber:client'",
            "<c:message><c:body>x</c:body></c:message>",
            "<message><body>x</body></message>",
        ),
        (
            "xmlns:x='urn:x'",
            "<message xmlns='jabber:client'><x:a/></message>",
            "<message><a xmlns='urn:x'/></message>",
        ),
        ("xmlns:x='urn:x'", "<presence x:a='1'/>", "<presence xmlns:ns0='urn:x' ns0:a='1'/>"),
        (
            "xmlns:s='urn:ietf:params:xml:ns:xmpp-sasl'",
            "<s:auth mechanism='PLAIN'>AA==</s:auth>",
            "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AA==</auth>",
        ),
    ] {
        assert_eq!(payloads(&wrapped(attributes, content)), [expected]);
    }
    let prefixed =
        format!("<b:body xmlns:b='{NS_HTTPBIND}'><b:message/><message xmlns='jabber:client'/></b:body>");
    assert_eq!(payloads(&prefixed), ["<message/>", "<message/>"]);
}

#[test]
fn xep_0124_6_a_request_is_one_wrapper_and_nothing_else() {
    for xml in [
        "",
        "   ",
        "text",
        "<body/>",
        "<body xmlns='jabber:client'/>",
        &format!("<bodies xmlns='{NS_HTTPBIND}'/>"),
        &format!("<body xmlns='{NS_HTTPBIND}'/><body xmlns='{NS_HTTPBIND}'/>"),
        &format!("<body xmlns='{NS_HTTPBIND}'/>text"),
        &format!("<body xmlns='{NS_HTTPBIND}'>"),
        &format!("<body xmlns='{NS_HTTPBIND}'><message></body>"),
        &wrapped("", "text"),
        &wrapped("", "<message/>text"),
        &wrapped("", "<![CDATA[text]]>"),
        "<stream:stream xmlns:stream='http://etherx.jabber.org/streams' to='x'>",
        "</body>",
    ] {
        assert!(read(xml).is_err(), "{xml}");
    }
}

#[test]
fn x1_dtds_are_refused_in_a_bosh_body() {
    let started = std::time::Instant::now();
    let entities: String =
        (1..10).map(|i| format!("<!ENTITY a{i} '{}'>", format!("&a{};", i - 1).repeat(8))).collect();
    for xml in [
        format!("<!DOCTYPE body [<!ENTITY a0 'x'>{entities}]><body xmlns='{NS_HTTPBIND}'>&a9;</body>"),
        format!(
            "<?xml version='1.0'?><!DOCTYPE body SYSTEM 'file:///etc/passwd'><body xmlns='{NS_HTTPBIND}'/>"
        ),
        wrapped("", "<!DOCTYPE x><message/>"),
        wrapped("", "<message><!DOCTYPE x></message>"),
    ] {
        assert!(matches!(read(&xml), Err(BodyError::Xml(_))), "{xml}");
    }
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn x2_only_predefined_entities_and_characters_are_taken_in_a_bosh_body() {
    let xml = wrapped("", "<message><body>&lt;&gt;&amp;&apos;&quot;&#x41;</body></message>");
    let body = read(&xml).unwrap();
    assert_eq!(body.children().next().unwrap().child("body", NS_CLIENT).unwrap().text(), "<>&'\"A");
    for entity in ["&foo;", "&#0;", "&#x1F;", "&#xD800;", "&#xFFFE;", "&#x110000;", "&amp"] {
        refused(&format!("<message><body>{entity}</body></message>"));
        assert!(read(&wrapped(&format!("to='{entity}'"), "")).is_err(), "{entity}");
    }
}

#[test]
fn x3_comments_and_instructions_are_refused_and_cdata_is_text_in_a_bosh_body() {
    for content in ["<!-- x -->", "<?php ?>", "<message><!-- x --></message>", "<message><?php ?></message>"]
    {
        assert_eq!(refused(content), BodyError::Xml(XmlError::Restricted), "{content}");
    }
    let xml = wrapped("", "<message><body><![CDATA[</body><x/>]]></body></message>");
    assert_eq!(payloads(&xml), ["<message><body>&lt;/body&gt;&lt;x/&gt;</body></message>"]);
}

#[test]
fn x4_declarations_of_a_bosh_body() {
    let body = format!("<body xmlns='{NS_HTTPBIND}'/>");
    for good in [
        "<?xml version='1.0'?>",
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n",
        "<?xml version='1.0' encoding='utf-8' standalone='yes' ?>",
        "\u{FEFF}",
        "\u{FEFF}<?xml version='1.0'?>",
    ] {
        assert!(read(&format!("{good}{body}")).is_ok(), "{good}");
    }
    for (wrong, error) in [
        ("<?xml version='1.0' encoding='UTF-16'?>", XmlError::UnsupportedEncoding),
        ("<?xml version='1.0' encoding='ISO-8859-1'?>", XmlError::UnsupportedEncoding),
        ("<?xml version='1.0' standalone='no'?>", XmlError::Restricted),
        ("<?xml version='1.1'?>", XmlError::Restricted),
        ("<?xml encoding='utf-8'?>", XmlError::NotWellFormed),
        ("<?xml version='1.0' version='1.0'?>", XmlError::NotWellFormed),
        ("<?xml version='1.0'encoding='utf-8'?>", XmlError::NotWellFormed),
        ("<?xml version='1.0'", XmlError::NotWellFormed),
        ("<?xml-stylesheet href='x'?>", XmlError::Restricted),
    ] {
        assert_eq!(read(&format!("{wrong}{body}")), Err(BodyError::Xml(error)), "{wrong}");
    }
    for wrong in ["<?xml version='1.0'?><?xml version='1.0'?>", " <?xml version='1.0'?>", "\u{FEFF}\u{FEFF}"]
    {
        assert!(read(&format!("{wrong}{body}")).is_err(), "{wrong}");
    }
    let utf16: Vec<u8> = body.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for prefix in [&b"\xFF\xFE"[..], b"\xFE\xFF", b""] {
        assert!(parse(&[prefix, &utf16].concat(), limits()).is_err());
    }
}

#[test]
fn x5_invalid_utf8_is_refused_in_a_bosh_body() {
    for bytes in [
        &b"\xC0\xAF"[..],
        b"\xE0\x80\xBC",
        b"\xED\xA0\x80",
        b"\xF0\x80\x80\xBC",
        b"\xF4\x90\x80\x80",
        b"\xFF",
        b"\xC3",
        b"\xE2\x82",
        b"\xF0\x9F\x98",
    ] {
        for (before, after) in [
            ("<message><body>", "</body></message>"),
            ("<message to='", "'/>"),
            ("<message", "/>"),
            ("<message x", "='1'/>"),
            ("<message xmlns='", "'/>"),
        ] {
            let text = wrapped("", &format!("{before}@@{after}"));
            let (start, end) = text.split_once("@@").unwrap();
            let input = [start.as_bytes(), bytes, end.as_bytes()].concat();
            assert!(parse(&input, limits()).is_err(), "{before}{bytes:x?}");
        }
    }
}

#[test]
fn x6_control_characters_are_refused_in_a_bosh_body() {
    for byte in (0..0x20).chain([0xFFFE, 0xFFFF]).filter(|c| ![9, 10, 13].contains(c)) {
        let character = char::from_u32(byte).unwrap();
        refused(&format!("<message><body>{character}</body></message>"));
    }
    assert!(read(&wrapped("", "<message><body>\u{7F}\t\n</body></message>")).is_ok());
}

#[test]
fn x7_nothing_is_smuggled_out_of_a_bosh_body() {
    for wrong in [
        "<a:message/>",
        "<message xmlns:a='urn:x' xmlns:b='urn:x' a:x='1' b:x='2'/>",
        "<message x='1' x='2'/>",
        "<message xmlns:xml='urn:x'/>",
        "<message xmlns:xmlns='urn:x'/>",
        "<message xmlns:x=''/>",
        "<message to='<'/>",
    ] {
        refused(wrong);
    }
    // The default namespace of the wrapper does not reach into a payload, nor out of it.
    let xml = wrapped("", "<message xmlns='jabber:client'><body xmlns=''/></message><presence/>");
    assert_eq!(payloads(&xml), ["<message><body xmlns=''/></message>", "<presence/>"]);
    // Neither a stanza nor a wrapper.
    let xml =
        wrapped("", &format!("<message xmlns='urn:evil'/><message><body xmlns='{NS_HTTPBIND}'/></message>"));
    assert_eq!(payloads(&xml), ["<message xmlns='urn:evil'/>", "<message><body/></message>"]);
    let quoted = wrapped("", "<message id='&apos;&quot;&lt;&#10;]]&gt;'/>");
    let again = wrapped("", &payloads(&quoted).concat());
    assert_eq!(payloads(&again), payloads(&quoted));
}

#[test]
fn x8_a_body_that_does_not_end_is_refused_at_once() {
    let started = std::time::Instant::now();
    let long = format!("<body xmlns='{NS_HTTPBIND}' a='{}", "x".repeat(200_000));
    assert_eq!(read(&long), Err(BodyError::Xml(XmlError::NotWellFormed)));
    assert!(started.elapsed().as_secs() < 20);
}

#[test]
fn x9_m7_bodies_have_a_limit() {
    let most = limits().max_stanza_bytes;
    let empty = wrapped("", "<message><body></body></message>").len();
    let of =
        |size: usize| wrapped("", &format!("<message><body>{}</body></message>", "x".repeat(size - empty)));
    assert!(read(&of(most)).is_ok());
    assert_eq!(read(&of(most + 1)), Err(BodyError::Xml(XmlError::StanzaTooBig)));
    assert_eq!(refused(&"<a/>".repeat(5_000)), BodyError::Xml(XmlError::TooManyElements));
    let attributes: String = (0..300).map(|i| format!(" a{i}=''")).collect();
    assert_eq!(refused(&format!("<a{attributes}/>")), BodyError::Xml(XmlError::TooManyAttributes));
}

#[test]
fn x10_bodies_have_a_depth() {
    let of = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert!(read(&wrapped("", &of(127))).is_ok());
    assert_eq!(refused(&of(128)), BodyError::Xml(XmlError::TooDeep));
    assert_eq!(refused(&"<a>".repeat(60_000)), BodyError::Xml(XmlError::TooDeep));
}

#[test]
fn xep_0206_2_responses_declare_the_stream_prefix_when_they_use_it() {
    let mut wrapper = Wrapper::default();
    wrapper.attr("from", "it's <here>");
    let payload = |text: &str, is_stream| Payload { bytes: text.to_owned().into(), is_stream, number: 0 };
    wrapper.payload(&payload("<stream:features/>", true));
    wrapper.payload(&payload("<message xmlns='jabber:client'/>", false));
    let text = String::from_utf8(wrapper.finish().to_vec()).unwrap();
    let body = read(&text).unwrap();
    assert!(body.children().next().unwrap().is("features", NS_STREAMS));
    assert!(body.children().nth(1).unwrap().is("message", NS_CLIENT));
    assert_eq!(body.attr("from"), Some("it's <here>"));
    assert_eq!(&Wrapper::default().finish()[..], b"<body xmlns='http://jabber.org/protocol/httpbind'/>");
}

proptest! {
    #[test]
    fn no_input_panics(input in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse(&input, limits());
    }

    #[test]
    fn no_declaration_panics(input in "<\\?xml[ a-z='\"0-9.é-]{0,40}(\\?>)?.{0,20}") {
        let _ = read(&input);
    }
}

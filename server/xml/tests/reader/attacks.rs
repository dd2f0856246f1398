//! The rows X1 to X17 of the catalogue of attacks, as far as the reader decides them; those about limits are
//! in `limits`.

use waystation_xml::XmlError::*;
use waystation_xml::fuzzing::{HEADER, Item, trace};
use waystation_xml::{Element, Framer, Limits, Ns, ns};

use crate::common::{content, error, every_split, every_split_of_content, passed, refused, stream_refused};

#[test]
fn x1_billion_laughs() {
    let mut dtd = String::from("<!DOCTYPE s [<!ENTITY a0 \"ha\">");
    for level in 1..10 {
        dtd += &format!("<!ENTITY a{level} \"{}\">", format!("&a{};", level - 1).repeat(8));
    }
    dtd += "]>";
    stream_refused(format!("<?xml version='1.0'?>{dtd}"), Restricted);
    stream_refused(&dtd, Restricted);
    refused(&dtd, Restricted);
    refused(format!("<message>{dtd}<body>&a9;</body></message>"), Restricted);
    refused("<!ENTITY x SYSTEM 'file:///etc/passwd'>", Restricted);
    // Refused at the first byte that says so, whatever would follow.
    assert_eq!(error(&content(b"<!D")), Some(Restricted));
    let mut framer = Framer::new_frames(Limits::authenticated());
    assert_eq!(error(&trace(&mut framer, [dtd.as_bytes()])), Some(Restricted));
}

#[test]
fn x2_entity_references() {
    for reference in ["&foo;", "&nbsp;", "&LT;", "&ltt;", "&_;"] {
        refused(format!("<message><body>{reference}</body></message>"), Restricted);
        refused(format!("<message id='{reference}'/>"), Restricted);
    }
    for reference in [
        "&",
        "& ",
        "&;",
        "&#;",
        "&#x;",
        "&#X41;",
        "&#0;",
        "&#x1F;",
        "&#xB;",
        "&#xD800;",
        "&#xDFFF;",
        "&#xFFFE;",
        "&#65535;",
        "&#x110000;",
        "&#99999999999999999999;",
        "&#-1;",
        "&#4 1;",
        "&#x4g;",
        "&#65<",
        "&1;",
    ] {
        refused(format!("<message><body>{reference}</body></message>"), NotWellFormed);
        refused(format!("<message id='{reference}'/>"), NotWellFormed);
    }
    let good = "&lt;&gt;&amp;&apos;&quot;&#x41;&#65;&#x10FFFF;&#0000000000000000000000065;";
    let meaning = "<>&'\"AA\u{10FFFF}A";
    let message = passed(format!("<message id='{good}'><body>{good}</body></message>"));
    assert_eq!(message.attr("id"), Some(meaning));
    assert_eq!(message.child("body", ns::CLIENT).unwrap().text(), meaning);
    let written = String::from_utf8(message.to_vec(ns::CLIENT)).unwrap();
    assert!(written.contains("&lt;&gt;&amp;'\"AA\u{10FFFF}A</body>"), "{written}");
}

#[test]
fn x3_comments_and_processing_instructions() {
    for bad in
        ["<!-- x -->", "<!---->", "<?php ?>", "<?x?>", "<?xml-stylesheet href='x'?>", "<?XML version='1.0'?>"]
    {
        refused(bad, Restricted);
        refused(format!("<message>{bad}</message>"), Restricted);
        refused(format!("<message><body>x{bad}</body></message>"), Restricted);
        stream_refused(bad, Restricted);
    }
    let after_end = [HEADER, b"</stream:stream><!-- x -->"].concat();
    assert_eq!(error(&every_split(&after_end)), Some(NotWellFormed));
    refused("<message<!-- x -->/>", NotWellFormed);
    refused("<message id='<!-- x -->'/>", NotWellFormed);
}

#[test]
fn x3_cdata_is_delivered_escaped() {
    let input = b"<message><body><![CDATA[</body><x/>&amp;]] >]]]]></body></message>";
    let message = passed(input);
    assert_eq!(message.children().count(), 1);
    assert_eq!(message.child("body", ns::CLIENT).unwrap().text(), "</body><x/>&amp;]] >]]");
    match &content(input)[..] {
        [Item::Stanza(_, head)] => assert!(head.reserialise),
        other => panic!("{other:?}"),
    }
    let written = String::from_utf8(message.to_vec(ns::CLIENT)).unwrap();
    assert!(!written.contains("CDATA"));
    assert!(written.contains("<body>&lt;/body&gt;&lt;x/&gt;&amp;amp;]] &gt;]]</body>"), "{written}");
    for good in ["<![CDATA[]]>", "<![CDATA[]]]>", "<![CDATA[>]]>", "<![CDATA[]>]]>", "<![CDATA[x]]>>"] {
        passed(format!("<message>{good}</message>"));
    }
    for bad in
        ["<![CDATA[x]]>]]>", "<![cdata[x]]>", "<![CDATA x]]>", "<![CDATA[\0]]>", "<![INCLUDE[x]]>", "]]>"]
    {
        refused(format!("<message>{bad}</message>"), NotWellFormed);
    }
    refused("<message a='<![CDATA[x]]>'/>", NotWellFormed);
    refused("<![CDATA[ ]]>", BadFormat);
    assert_eq!(every_split_of_content(b"<message><![CDATA[]]]]</message>").last(), Some(&Item::Unfinished));
}

#[test]
fn x4_xml_declaration_and_encoding() {
    let header = std::str::from_utf8(HEADER).unwrap();
    for good in
        ["", "\u{FEFF}", "<?xml version='1.0'?>", "\u{FEFF}<?xml version='1.0' encoding='utf-8'?>\r\n "]
    {
        let items = every_split(format!("{good}{header}").as_bytes());
        assert!(matches!(items.last(), Some(Item::Open(_))), "{good:?}: {items:?}");
    }
    stream_refused("<?xml version='1.0' encoding='UTF-16'?>", UnsupportedEncoding);
    stream_refused("<?xml version='1.0' encoding='ISO-8859-1'?>", UnsupportedEncoding);
    stream_refused("<?xml version='1.0' standalone='no'?>", Restricted);
    stream_refused("<?xml version='1.1'?>", Restricted);
    let utf16 = |big: bool, text: &str| -> Vec<u8> {
        text.encode_utf16().flat_map(|u| if big { u.to_be_bytes() } else { u.to_le_bytes() }).collect()
    };
    for big in [false, true] {
        stream_refused(utf16(big, "<?xml version='1.0'?>"), UnsupportedEncoding);
        stream_refused(utf16(big, "\u{FEFF}<stream:stream>"), UnsupportedEncoding);
    }
    // One byte order mark, and only at the very start.
    stream_refused(format!("\u{FEFF}\u{FEFF}{header}"), NotWellFormed);
    stream_refused(format!("<?xml version='1.0'?>\u{FEFF}{header}"), NotWellFormed);
    stream_refused(format!(" <?xml version='1.0'?>{header}"), NotWellFormed);
    stream_refused(b"\xEF\xBB<", NotWellFormed);
    refused("\u{FEFF}<message/>", BadFormat);
    // One declaration, and only there.
    stream_refused(format!("<?xml version='1.0'?><?xml version='1.0'?>{header}"), NotWellFormed);
    refused("<?xml version='1.0'?>", NotWellFormed);
    refused("<message><?xml version='1.0'?></message>", NotWellFormed);
    let mut frames = Framer::new_frames(Limits::authenticated());
    assert_eq!(error(&trace(&mut frames, [&b"<?xml version='1.0'?><a/>"[..]])), Some(NotWellFormed));
}

#[test]
fn x5_invalid_utf8() {
    let sequences: [&[u8]; 24] = [
        b"\xC0\xAF",
        b"\xC1\x81",
        b"\xE0\x80\xBC",
        b"\xE0\x9F\xBF",
        b"\xED\xA0\x80",
        b"\xED\xBF\xBF",
        b"\xF0\x80\x80\xBC",
        b"\xF0\x8F\xBF\xBF",
        b"\xF4\x90\x80\x80",
        b"\xF5\x80\x80\x80",
        b"\xF8\x88\x80\x80\x80",
        b"\xFE",
        b"\xFF",
        b"\x80",
        b"\xBF",
        b"\xC3",
        b"\xE2",
        b"\xE2\x82",
        b"\xF0",
        b"\xF0\x9F",
        b"\xF0\x9F\x98",
        b"\xE2\x82\xC3",
        b"\xC3\xC3\xA9",
        b"\xF0\x9F\x98\xF0",
    ];
    let around: [(&[u8], &[u8]); 10] = [
        (b"<message><body>x", b"</body></message>"),
        (b"<message><![CDATA[", b"]]></message>"),
        (b"<message id='", b"'/>"),
        (b"<message id=\"x", b"\"/>"),
        (b"<message xmlns:a='urn:", b"'/>"),
        (b"<message xmlns='", b"'/>"),
        (b"<message><a", b">x</a></message>"),
        (b"<message><a ", b"='x'/></message>"),
        (b"<message><a", b":b/></message>"),
        (b"<", b"/>"),
    ];
    for bad in sequences {
        for (before, after) in around {
            refused([before, bad, after].concat(), NotWellFormed);
        }
    }
    // A byte that ends a sequence too early is not taken for a part of it.
    for next in [b'<', b'\'', b'"', b'>', b'&', b' ', b'\0', 0x7F, 0xC3] {
        refused([b"<message><body>\xE2\x82", &[next][..], b"</body></message>"].concat(), NotWellFormed);
        refused([b"<message id='\xF0\x9F\x98", &[next][..], b"'/>"].concat(), NotWellFormed);
    }
}

#[test]
fn x6_characters_that_xml_forbids() {
    let forbidden = (0u8..0x20).filter(|b| !matches!(b, b'\t' | b'\n' | b'\r')).map(|b| vec![b]);
    for bad in forbidden.chain([b"\xEF\xBF\xBE".to_vec(), b"\xEF\xBF\xBF".to_vec()]) {
        for (before, after) in [
            (&b"<message><body>"[..], &b"</body></message>"[..]),
            (b"<message><body>sixteen bytes and", b" more than that</body></message>"),
            (b"<message><![CDATA[", b"]]></message>"),
            (b"<message id='", b"'/>"),
            (b"<message ", b"id='1'/>"),
            (b"<mess", b"age/>"),
            (b"<message></message", b">"),
        ] {
            refused([before, &bad, after].concat(), NotWellFormed);
        }
        stream_refused(&bad, if bad == [0] { UnsupportedEncoding } else { NotWellFormed });
    }
    refused(b"\0<message/>", NotWellFormed);
    let legal = "\u{7F}\u{80}\u{85}\u{9F}\u{2028}\u{D7FF}\u{E000}\u{FDD0}\u{FDEF}\u{FFFD}\u{10000}\u{1FFFE}\u{10FFFF}";
    let message = passed(format!("<message id='{legal}'><body>{legal}</body></message>"));
    assert_eq!(message.attr("id"), Some(legal));
    assert_eq!(message.child("body", ns::CLIENT).unwrap().text(), legal);
}

#[test]
fn x7_values_keep_what_they_hold() {
    for (raw, meaning) in [
        ("&quot;&apos;&lt;>", "\"'<>"),
        ("a\tb\nc\rd\r\ne", "a b c d e"),
        ("&#9;&#10;&#13;", "\t\n\r"),
        ("]]>", "]]>"),
        ("&amp;lt;", "&lt;"),
        (" <".trim_end_matches('<'), " "),
    ] {
        let message = passed(format!("<message id='{raw}'><x xmlns='urn:x' y=\"{raw}\"/></message>"));
        assert_eq!(message.attr("id"), Some(meaning));
        assert_eq!(message.child("x", "urn:x").unwrap().attr("y"), Some(meaning));
        let again = Element::parse(&message.to_vec(ns::CLIENT), ns::CLIENT);
        assert_eq!(again.as_ref(), Ok(&message));
    }
    refused("<message id='<'/>", NotWellFormed);
    refused("<message id=\"a<b\"/>", NotWellFormed);
}

#[test]
fn x7_namespace_names_cannot_inject() {
    for raw in ["urn:\nx", "urn:|x", "urn:&apos;x&quot;", "urn:\"x", "urn: x", "a&#10;b", "x&#39; y=&#39;z"] {
        let message = passed(format!("<message><x xmlns='{raw}'/></message>"));
        let again = Element::parse(&message.to_vec(ns::CLIENT), ns::CLIENT);
        assert_eq!(again.as_ref(), Ok(&message), "{raw:?}");
        assert_eq!(message.children().next().unwrap().attrs().count(), 0);
    }
    refused("<message><x xmlns='urn:\x01'/></message>", NotWellFormed);
    refused("<message><x xmlns='urn:&#1;'/></message>", NotWellFormed);
}

#[test]
fn x7_prefixes_that_change_meaning_are_reserialised() {
    let reserialise = |input: &str| match &content(input.as_bytes())[..] {
        [Item::Stanza(_, head)] => head.reserialise,
        other => panic!("{input}: {other:?}"),
    };
    for plain in [
        "<message><body>x</body></message>",
        "<message xmlns='jabber:client'><body>x</body></message>",
        "<message xmlns:x='urn:x'><x:y/></message>",
        "<message><x xmlns='urn:x'><message xmlns='jabber:client'/></x></message>",
        "<message><body xmlns=''/></message>",
        "<message xml:lang='en'><body xml:lang='de'/></message>",
    ] {
        assert!(!reserialise(plain), "{plain}");
    }
    for twisted in [
        "<a:message xmlns:a='jabber:client'/>",
        "<a:message xmlns:a='urn:x'/>",
        "<message xmlns='jabber:server'/>",
        "<message><body xmlns='jabber:client'>x</body></message>",
        "<message><body xmlns='jabber&#58;client'>x</body></message>",
        "<message><body xmlns='jabber:server'>x</body></message>",
        "<message><x xmlns='urn:x' xmlns:c='jabber:client'/></message>",
        "<message><x xmlns='urn:x'><y><z xmlns:c='jabber:server'/></y></x></message>",
        "<message xmlns:stream='urn:x'><stream:error/></message>",
        "<message><stream:error/></message>",
        "<message><x><y stream:z='1'/></x></message>",
        "<message stream:z='1'/>",
        "<message><body><![CDATA[x]]></body></message>",
        "<stream:error/>",
    ] {
        assert!(reserialise(twisted), "{twisted}");
    }
    let message = passed("<a:message xmlns:a='jabber:client' xmlns='urn:x'><a:body/><y/></a:message>");
    assert!(message.is("message", ns::CLIENT));
    assert!(message.child("body", ns::CLIENT).is_some() && message.child("y", "urn:x").is_some());
    assert_eq!(message.to_vec(ns::CLIENT), b"<message><body/><y xmlns='urn:x'/></message>");
}

#[test]
fn x7_namespace_violations() {
    for bad in [
        "<a:message/>",
        "<message><a:body/></message>",
        "<message a:b='c'/>",
        "<message><x xmlns:a='urn:a'/><a:y/></message>",
        "<message><x xmlns:a='urn:a'></x><a:y/></message>",
        "<message xmlns:xml='urn:x'/>",
        "<message xmlns:xmlns='urn:x'/>",
        "<message xmlns:xmlns='http://www.w3.org/2000/xmlns/'/>",
        "<message xmlns:a='http://www.w3.org/2000/xmlns/'/>",
        "<message xmlns='http://www.w3.org/2000/xmlns/'/>",
        "<message xmlns:a='http://www.w3.org/XML/1998/namespace'/>",
        "<message xmlns='http://www.w3.org/XML/1998/namespace'/>",
        "<message xmlns='http://www.w3.org/XML/1998/name&#115;pace'/>",
        "<message xmlns:a=''/>",
        "<xmlns:message/>",
        "<message xmlns:=''/>",
        "<message xmlns:a:b='urn:x'/>",
        "<:message/>",
        "<message:/>",
        "<a:b:c xmlns:a='urn:a'/>",
        "<message :a='b'/>",
        "<message xmlns:a='urn:a' a:='b'/>",
        "<message xmlns:a='urn:a'><a:1/></message>",
        "<message xmlns:a='urn:a'><a:/></message>",
        "<message xmlns:a='urn:a'><a: b=''/></message>",
        "<message xmlns:a='urn:a'><a:></a:></message>",
        "<message a='1' a='2'/>",
        "<message xmlns='jabber:client' xmlns='jabber:client'/>",
        "<message xmlns:a='urn:a' xmlns:a='urn:b'/>",
        "<message xmlns:a='urn:x' a:x='1' a:x='2'/>",
        "<message xmlns:a='urn:x' xmlns:b='urn:x' a:x='1' b:x='2'/>",
        "<message xmlns:a='urn:x' xmlns:b='urn:&#120;' a:x='1' b:x='2'/>",
        "<message xmlns:a='urn:x y' xmlns:b='urn:x\ty' a:x='1' b:x='2'/>",
        "<message xmlns:a='urn:x'><y xmlns:b='urn:x' a:x='1' b:x='2'/></message>",
        "<message xmlns:a='urn:x' xmlns:b='urn:y'><z xmlns:b='urn:x' a:x='1' b:x='2'/></message>",
        "<message xmlns:a='http://etherx.jabber.org/streams' a:x='1' stream:x='2'/>",
    ] {
        refused(bad, NotWellFormed);
    }
    refused("<xml:message/>", Restricted);
    for good in [
        "<message xmlns:xml='http://www.w3.org/XML/1998/namespace' xml:lang='en'/>",
        "<message xmlns:a='urn:a' a:x='1' x='2'/>",
        "<message xmlns:a='urn:a' xmlns:b='urn:b' a:x='1' b:x='2'/>",
        "<message xmlns:a='urn:a'><x xmlns:a='urn:b'><a:y/></x><a:y/></message>",
        "<message xmlns:a='urn:x' xmlns:b='urn:x'><z xmlns:b='urn:y' a:x='1' b:x='2'/></message>",
        "<message><body xmlns=''/></message>",
        "<message xmlnsx='1' xmlns-y='2'/>",
        "<message><xmlns/></message>",
    ] {
        passed(good);
    }
    let many: String = (0..20).map(|i| format!(" a{i}='1'")).collect();
    passed(format!("<message{many}/>"));
    refused(format!("<message{many} a7='2'/>"), NotWellFormed);
}

#[test]
fn x13_unclosed_and_mismatched() {
    for bad in [
        "<message></iq>",
        "<message></messag>",
        "<message></messages>",
        "<message></Message>",
        "<message></message x='y'>",
        "<message></ message>",
        "<message><body></message></body>",
        "<message></stream:stream>",
        "<message/ >",
        "<message//>",
        "<message / >",
        "< message/>",
        "<message a/>",
        "<message a=/>",
        "<message a=b/>",
        "<message a='b'c='d'/>",
        "<message a='b\"/>'\"/>",
        "<message 'a'='b'/>",
        "<message =''/>",
        "<message<body/></message>",
        "<1/>",
        "<-a/>",
        "<.a/>",
        "</message>",
        "</>",
        "<>",
        "<//>",
        "</stream:streams>",
        "</stream>",
    ] {
        refused(bad, NotWellFormed);
    }
    for text in ["x", "<message/>x", "&lt;", "]]>", "é", "<message/>\u{A0}"] {
        let items = every_split_of_content(text.as_bytes());
        assert_eq!(error(&items), Some(BadFormat), "{text}");
    }
    for partial in ["<", "<message", "<message ", "<message/", "<message>", "<message></message", "</stream"]
    {
        let items = every_split_of_content(partial.as_bytes());
        assert_eq!(items, [Item::Unfinished], "{partial}");
    }
    // Elements of the stream namespace are for the session to judge.
    for own in ["<stream:error/>", "<stream:features/>", "<stream:stream></stream:stream>"] {
        match &every_split_of_content(own.as_bytes())[..] {
            [Item::Stanza(_, head)] => assert_eq!(head.namespace, Ns::Streams, "{own}"),
            other => panic!("{own}: {other:?}"),
        }
    }
    let two = every_split_of_content(b"<message/></stream:stream>  ");
    assert!(matches!(two[..], [Item::Stanza(..), Item::Close, Item::Whitespace(2)]), "{two:?}");
    assert_eq!(error(&every_split_of_content(b"</stream:stream><message/>")), Some(NotWellFormed));
}

#[test]
fn x14_stream_headers() {
    let streams = "http://etherx.jabber.org/streams";
    for (bad, with) in [
        ("<stream:stream xmlns='jabber:client' xmlns:stream='urn:wrong'>".to_owned(), InvalidNamespace),
        ("<stream xmlns='jabber:client'>".to_owned(), InvalidNamespace),
        ("<stream:stream xmlns='jabber:client'>".to_owned(), NotWellFormed),
        (format!("<stream:streams xmlns:stream='{streams}'>"), BadFormat),
        (format!("<stream:stream xmlns:stream='{streams}' to='a' to='b'>"), NotWellFormed),
        (format!("<stream:stream xmlns:stream='{streams}' to='&bad;'>"), Restricted),
        ("GET / HTTP/1.1\r\n".to_owned(), NotWellFormed),
        ("POST / HTTP/1.1\r\n".to_owned(), NotWellFormed),
        ("\u{16}\u{3}\u{1}".to_owned(), NotWellFormed),
        ("</stream:stream>".to_owned(), NotWellFormed),
        ("</>".to_owned(), NotWellFormed),
        ("<html>".to_owned(), InvalidNamespace),
    ] {
        stream_refused(bad, with);
    }
    let open = |header: &str| match every_split(header.as_bytes()).into_iter().next() {
        Some(Item::Open(open)) => open,
        other => panic!("{header}: {other:?}"),
    };
    let usual = open(&format!(
        "<?xml version='1.0'?><stream:stream from='a@b' to=\"&lt;x&gt;\" id='i' version='1.0' xml:lang='en' \
         xmlns='jabber:client' xmlns:stream='{streams}'>"
    ));
    assert_eq!(usual.from.as_deref(), Some("a@b"));
    assert_eq!(usual.to.as_deref(), Some("<x>"));
    assert_eq!(usual.id.as_deref(), Some("i"));
    assert_eq!(usual.version.as_deref(), Some("1.0"));
    assert_eq!(usual.lang.as_deref(), Some("en"));
    assert_eq!(usual.content_namespace, ns::CLIENT);
    assert!(usual.stream_prefix_ok);
    let other = open(&format!("<s:stream xmlns:s='{streams}' xmlns='urn:evil'>"));
    assert_eq!(other.content_namespace, "urn:evil");
    assert!(!other.stream_prefix_ok);
    assert_eq!((other.to, other.version), (None, None));
    let prefix_free = open(&format!("<stream xmlns='{streams}'>"));
    assert_eq!(prefix_free.content_namespace, "");
    assert!(prefix_free.stream_prefix_ok);
}

#[test]
fn x15_white_space_costs_nothing() {
    let mut framer = Framer::new(Limits::pre_auth());
    trace(&mut framer, [HEADER]);
    let flood = vec![b' '; 1 << 16];
    let mut sum = 0;
    for _ in 0..1600 {
        match &trace(&mut framer, [&flood[..]])[..] {
            [Item::Whitespace(count)] => sum += count,
            other => panic!("{other:?}"),
        }
        assert!(!framer.is_mid_stanza());
    }
    assert_eq!(sum, 100 << 20);
    assert!(matches!(
        trace(&mut framer, [&b"\t\r\n <message/>"[..]])[..],
        [Item::Whitespace(4), Item::Stanza(..)]
    ));
}

#[test]
fn x16_language() {
    let head = |input: &str| match content(input.as_bytes()).into_iter().next() {
        Some(Item::Stanza(bytes, head)) => head.lang(&bytes).map(|lang| lang.into_owned()),
        other => panic!("{other:?}"),
    };
    assert_eq!(head("<message xml:lang='de'/>").as_deref(), Some("de"));
    assert_eq!(head("<message xml:lang=''/>").as_deref(), Some(""));
    assert_eq!(head("<message xml:lang='d&#101;'/>").as_deref(), Some("de"));
    assert_eq!(head("<message lang='de' xmlns:a='urn:a' a:lang='fr'/>"), None);
    assert_eq!(
        head(&format!("<message xml:lang='{}'/>", "x".repeat(1 << 16))).map(|l| l.len()),
        Some(1 << 16)
    );
    refused("<message xml:lang='a' xml:lang='b'/>", NotWellFormed);
}

#[test]
fn x17_heads_of_odd_stanzas() {
    let head = |input: &str| match content(input.as_bytes()).into_iter().next() {
        Some(Item::Stanza(bytes, head)) => (bytes, head),
        other => panic!("{other:?}"),
    };
    let (bytes, foo) = head("<foo xmlns='jabber:client'/>");
    assert_eq!((foo.name(&bytes), foo.namespace), ("foo", Ns::Client));
    let (bytes, iq) = head("<iq><a xmlns='urn:a'/><b xmlns='urn:b'/></iq>");
    assert_eq!((iq.children, iq.attr(&bytes, "id"), iq.attr(&bytes, "type")), (2, None, None));
    let child = iq.child.as_ref().unwrap();
    assert_eq!((child.name(&bytes), child.namespace(&bytes)), ("a", "urn:a"));
    let (bytes, rebound) = head("<iq xmlns='urn:x' xmlns:a='urn:x'><a:b xmlns:a='urn:y'/></iq>");
    assert_eq!(rebound.child.as_ref().unwrap().namespace(&bytes), "urn:y");
    let (bytes, rebound) = head("<iq xmlns='urn:x'><b xmlns='urn:y'/></iq>");
    assert_eq!(rebound.child.as_ref().unwrap().namespace(&bytes), "urn:y");
    let (_, empty) = head("<iq type='get' id='1'/>");
    assert_eq!((empty.children, &empty.child), (0, &None));
    let (bytes, own) = head("<message xmlns='urn:x'/>");
    assert_eq!((own.namespace, own.namespace(&bytes)), (Ns::Other, "urn:x"));
    let (bytes, none) = head("<message xmlns=''/>");
    assert_eq!((none.namespace, none.namespace(&bytes)), (Ns::Other, ""));
}

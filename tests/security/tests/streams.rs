//! SECURITY.md rows X2, X4, X5, X6, X13, X14, X16: every variant of a row, one stream each.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Config, RawClient};
use waystation_security::{HEADER, World, condition};

/// As many connections as there are variants.
fn world() -> World {
    World::with(many())
}

fn many() -> Config {
    Config::default().with("limits.connections_per_address", "0").with("limits.connection_rate", "0")
}

/// The condition of the stream error that ends the connection.
async fn stream_error(raw: &mut RawClient) -> String {
    raw.read_until("<stream:error><").await.unwrap();
    let rest = raw.read_to_end().await.unwrap();
    assert!(rest.trim_end().ends_with("</stream:stream>"), "{rest}");
    rest.split([' ', '/']).next().unwrap_or_default().to_owned()
}

async fn refused(world: &World, bytes: &[u8]) -> String {
    let mut raw = world.connect().await;
    raw.send(bytes).await.unwrap();
    stream_error(&mut raw).await
}

#[tokio::test]
async fn x4_xml_declarations() {
    let world = world();
    let utf16: Vec<u8> = format!("\u{feff}{HEADER}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16be: Vec<u8> = HEADER.encode_utf16().flat_map(u16::to_be_bytes).collect();
    let rest = HEADER.strip_prefix("<?xml version='1.0'?>").unwrap();
    let declared = |declaration: &str| format!("{declaration}{rest}").into_bytes();
    for (bytes, expected) in [
        (declared("<?xml version='1.0' encoding='UTF-16'?>"), &["unsupported-encoding"][..]),
        (declared("<?xml version='1.0' encoding='ISO-8859-1'?>"), &["unsupported-encoding"]),
        (declared("<?xml version='1.0' encoding='UTF-7'?>"), &["unsupported-encoding"]),
        (declared("<?xml version='1.0' standalone='no'?>"), &["restricted-xml"]),
        (declared("<?xml version='1.1'?>"), &["restricted-xml"]),
        (declared("<?xml encoding='UTF-8'?>"), &["not-well-formed"]),
        (declared("<?xml version='1.0'?><?xml version='1.0'?>"), &["not-well-formed", "restricted-xml"]),
        (declared(" <?xml version='1.0'?>"), &["not-well-formed", "restricted-xml"]),
        (declared("\u{feff}\u{feff}"), &["not-well-formed", "bad-format"]),
        (format!("{HEADER}<?xml version='1.0'?>").into_bytes(), &["not-well-formed"]),
        (format!("{HEADER}\u{feff}").into_bytes(), &["not-well-formed", "bad-format"]),
        (utf16, &["unsupported-encoding", "not-well-formed", "bad-format"]),
        (utf16be, &["unsupported-encoding", "not-well-formed", "bad-format"]),
    ] {
        let got = refused(&world, &bytes).await;
        assert!(expected.contains(&got.as_str()), "{}: {got}", String::from_utf8_lossy(&bytes));
    }
    for declaration in [
        "",
        "\u{feff}",
        "<?xml version=\"1.0\" encoding='utf-8' standalone='yes' ?>\n",
        "\u{feff}<?xml version='1.0'?>",
    ] {
        let mut raw = world.connect().await;
        raw.send(declared(declaration)).await.unwrap();
        raw.read_until("</stream:features>").await.unwrap();
    }
    world.end();
}

#[tokio::test]
async fn x14_every_variant_of_the_header() {
    const STREAMS: &str = "http://etherx.jabber.org/streams";
    let world = world();
    let header = |name: &str, attributes: &str| format!("<{name} {attributes}>").into_bytes();
    let usual = format!("xmlns='jabber:client' xmlns:stream='{STREAMS}' to='localhost'");
    for (bytes, expected) in [
        (
            header(
                "s:stream",
                &format!("xmlns='jabber:client' xmlns:s='{STREAMS}' to='localhost' version='1.0'"),
            ),
            "bad-namespace-prefix",
        ),
        (header("stream", "xmlns='jabber:client' to='localhost' version='1.0'"), "invalid-namespace"),
        (header("stream:stream", "xmlns='jabber:client' to='localhost' version='1.0'"), "not-well-formed"),
        (
            header(
                "stream:stream",
                &format!("xmlns='jabber:server' xmlns:stream='{STREAMS}' to='localhost' version='1.0'"),
            ),
            "invalid-namespace",
        ),
        (
            header("stream:stream", &format!("xmlns:stream='{STREAMS}' to='localhost' version='1.0'")),
            "invalid-namespace",
        ),
        (header("stream:other", &format!("{usual} version='1.0'")), "bad-format"),
        (header("stream:stream", &format!("{usual} version='0.9'")), "unsupported-version"),
        (header("stream:stream", &format!("{usual} version='1'")), "unsupported-version"),
        (header("stream:stream", &format!("{usual} version=''")), "unsupported-version"),
        (header("stream:stream", &format!("{usual} version='1.0' version='1.0'")), "not-well-formed"),
        (header("stream:stream", &format!("{usual} to='localhost' version='1.0'")), "not-well-formed"),
        (
            header(
                "stream:stream",
                &format!("xmlns='jabber:client' xmlns:stream='{STREAMS}' to='localhost/r' version='1.0'"),
            ),
            "improper-addressing",
        ),
        (
            header(
                "stream:stream",
                &format!("xmlns='jabber:client' xmlns:stream='{STREAMS}' to='localhost.evil' version='1.0'"),
            ),
            "host-unknown",
        ),
        (
            header(
                "stream:stream",
                &format!(
                    "xmlns='jabber:client' xmlns:stream='{STREAMS}' to='l&#x6f;calhost&#10;x' version='1.0'"
                ),
            ),
            "host-unknown",
        ),
        (format!("{HEADER}{HEADER}").into_bytes(), "not-well-formed"),
    ] {
        let got = refused(&world, &bytes).await;
        let other = expected == "bad-format" || expected == "not-well-formed";
        assert!(
            got == expected
                || (other
                    && ["invalid-xml", "bad-format", "not-well-formed", "unsupported-stanza-type"]
                        .contains(&got.as_str())),
            "{}: {got}",
            String::from_utf8_lossy(&bytes)
        );
    }
    // A higher version is answered with ours, and other ways to write the same host are the same.
    for attributes in [
        format!("{usual} version='2.0'"),
        format!("{usual} version='1.10'"),
        format!("xmlns='jabber:client' xmlns:stream='{STREAMS}' to='LOCALHOST' version='1.0'"),
        format!("xmlns='jabber:client' xmlns:stream='{STREAMS}' to='localhost.' version='1.0'"),
    ] {
        let mut raw = world.connect().await;
        raw.send(header("stream:stream", &attributes)).await.unwrap();
        let got = raw.read_until("</stream:features>").await.unwrap();
        assert!(got.contains("version='1.0'") && got.contains("from='localhost'"), "{attributes}: {got}");
    }
    world.end();
}

#[tokio::test]
async fn x2_x6_references_and_characters() {
    let world = world();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    romeo
        .send(
            "<message to='juliet@localhost/r' id='&lt;&amp;&quot;&apos;&gt;'><body>&lt;&gt;&amp;&apos;&quot;&#x41;&#65;\
             \u{7f}\u{85}\t\u{10ffff}\u{e000}</body></message>",
        )
        .await
        .unwrap();
    let got = juliet.next("the message").await.unwrap();
    assert_eq!(got.attr("id"), Some("<&\"'>"));
    assert_eq!(got.child("body").unwrap().text(), "<>&'\"AA\u{7f}\u{85}\t\u{10ffff}\u{e000}");
    let references = [
        "&foo;",
        "&#0;",
        "&#x1F;",
        "&#xD800;",
        "&#xDFFF;",
        "&#xFFFE;",
        "&#xFFFF;",
        "&#x110000;",
        "&#99999999999999999999;",
        "&#;",
        "&#x;",
        "&;",
        "&lt",
        "&#-1;",
        "&#x41",
        "& amp;",
        "&LT;",
    ];
    let controls = (0..0x20u8).filter(|c| !b"\t\n\r".contains(c)).map(|c| char::from(c).to_string());
    let bad = references
        .into_iter()
        .map(str::to_owned)
        .chain(controls)
        .chain(["\u{fffe}".into(), "\u{ffff}".into()]);
    for text in bad {
        for stanza in [
            format!("<message to='juliet@localhost/r'><body>{text}</body></message>"),
            format!("<message to='juliet@localhost/r'><body a='{text}'/></message>"),
        ] {
            let mut attacker = world.login("romeo", "x").await;
            attacker.send(&stanza).await.unwrap();
            let got = stream_error(attacker.raw()).await;
            assert!(["not-well-formed", "restricted-xml"].contains(&got.as_str()), "{text:?}: {got}");
        }
    }
    assert!(juliet.drain().await.unwrap().is_empty(), "nothing of it was relayed");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn x5_invalid_utf8_in_every_place() {
    let world = world();
    let mut juliet = world.login("juliet", "r").await;
    let bad: [&[u8]; 9] = [
        b"\xC0\xAF",
        b"\xE0\x80\xBC",
        b"\xED\xA0\x80",
        b"\xF0\x80\x80\xBC",
        b"\xF4\x90\x80\x80",
        b"\xFF",
        b"\xC3",
        b"\xE2\x82",
        b"\xF0\x9F\x98",
    ];
    for (before, after) in [
        ("<message to='juliet@localhost/r'><body>", "</body></message>"),
        ("<message to='juliet@localhost/r'><body a='", "'/></message>"),
        ("<message to='juliet@localhost/r'><body a=\"", "\"/></message>"),
        ("<message to='juliet@localhost/r'><b", "/></message>"),
        ("<message to='juliet@localhost/r'><b", "></b></message>"),
        ("<message to='juliet@localhost/r'><body b", "='1'/></message>"),
        ("<message to='juliet@localhost/r'><p", ":a xmlns:p='u'/></message>"),
        ("<message to='juliet@localhost/r'><x xmlns='u", "'/></message>"),
        ("<message to='juliet@localhost/r'><x><![CDATA[", "]]></x></message>"),
    ] {
        for bytes in bad {
            let mut attacker = world.login("romeo", "x").await;
            attacker.send([before.as_bytes(), bytes, after.as_bytes()].concat()).await.unwrap();
            let got = stream_error(attacker.raw()).await;
            assert!(["not-well-formed", "bad-format"].contains(&got.as_str()), "{before} {bytes:x?}: {got}");
        }
    }
    assert!(juliet.drain().await.unwrap().is_empty(), "nothing of it was relayed");
    drop(juliet);
    world.end();
}

#[tokio::test]
async fn x13_what_does_not_belong_on_a_stream() {
    let world = world();
    let mut juliet = world.login("juliet", "r").await;
    for (xml, expected) in [
        ("<message to='juliet@localhost/r'></stream:stream>", &["not-well-formed"][..]),
        ("<message to='juliet@localhost/r'><body></message></body>", &["not-well-formed"]),
        ("text<message to='juliet@localhost/r'/>", &["not-well-formed", "bad-format"]),
        ("</message>", &["not-well-formed", "bad-format"]),
        (
            "<stream:stream to='localhost' version='1.0'></stream:stream>",
            &["not-well-formed", "invalid-xml", "bad-format", "unsupported-stanza-type"],
        ),
        ("<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>", &[]),
        ("<message to='juliet@localhost/r'", &[]),
        ("<message to='juliet@localhost/r'><body>x</body></message", &[]),
        ("<message to='juliet@localhost/r'/", &[]),
    ] {
        let mut romeo = world.login("romeo", "x").await;
        romeo.send(xml).await.unwrap();
        if xml.starts_with("<stream:error>") {
            // The client has ended the stream by this; there is nothing to complain of.
            assert_eq!(romeo.raw().read_to_end().await.unwrap(), "</stream:stream>");
            continue;
        }
        if expected.is_empty() {
            // It breaks off: the end of the connection is no end of the stanza.
            romeo.raw().wire().shutdown().await.unwrap();
            let rest = romeo.raw().read_to_end().await.unwrap();
            assert!(!rest.contains("type='error'"), "{xml}: {rest}");
            continue;
        }
        let got = stream_error(romeo.raw()).await;
        assert!(expected.contains(&got.as_str()), "{xml}: {got}");
    }
    assert!(juliet.drain().await.unwrap().is_empty(), "nothing of it was relayed");
    drop(juliet);
    world.end();
}

#[tokio::test]
async fn x16_languages_are_bounded() {
    let world = world();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    for (lang, is_relayed) in [
        ("de", true),
        ("", true),
        (&*"x".repeat(64), true),
        (&"x".repeat(65), false),
        (&"x".repeat(64 << 10), false),
    ] {
        romeo.send(format!("<message to='juliet@localhost/r' xml:lang='{lang}'/>")).await.unwrap();
        let got = juliet.next("the message").await.unwrap().to_string();
        let expected = format!("xml:lang='{lang}'");
        assert_eq!(got.contains(&expected), is_relayed, "{} bytes: {got}", lang.len());
        // The stream's own takes the place of one that is dropped.
        assert!(is_relayed || got.contains("xml:lang='en'"), "{got}");
    }
    // What is no language at all stays within its attribute.
    romeo.send("<message to='juliet@localhost/r' xml:lang='&apos;/>&lt;x a=&quot;&#10;'/>").await.unwrap();
    let got = juliet.next("the message").await.unwrap();
    assert_eq!((got.local(), got.children().count()), ("message", 1), "{got}");
    assert_eq!(condition(&got), format!("no error: {got}"));
    drop((romeo, juliet));
    world.end();
}

//! SECURITY.md section 1 over TCP: what the framer's own tests show for bytes, shown for the server.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use waystation_harness::{Config, RawClient};
use waystation_security::{HEADER, World, condition};

/// Sends bytes on a new connection and expects the stream error.
async fn refused_at_once(world: &World, bytes: &[u8], expected: &str) {
    let mut raw = world.connect().await;
    raw.send(bytes).await.unwrap();
    // What was in order before the fault is answered first.
    raw.read_until("<stream:error><").await.unwrap();
    let rest = raw.read_to_end().await.unwrap();
    assert!(
        rest.starts_with(expected),
        "{}: {rest}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(200)])
    );
}

/// Sends bytes on romeo's session and expects the stream error.
async fn refused_in_session(world: &World, bytes: &[u8], expected: &str) {
    let mut romeo = world.login("romeo", "x").await;
    romeo.send(bytes).await.unwrap();
    let outcome = romeo.raw().expect_stream_error(expected).await;
    assert!(outcome.is_ok(), "{}: {outcome:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
}

#[tokio::test]
async fn x1_billion_laughs() {
    let world = World::new();
    let doctype = "<!DOCTYPE s [<!ENTITY a \"x\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>";
    refused_at_once(&world, format!("<?xml version='1.0'?>{doctype}{HEADER}").as_bytes(), "restricted-xml")
        .await;
    refused_at_once(&world, format!("{HEADER}{doctype}").as_bytes(), "restricted-xml").await;
    refused_in_session(&world, doctype.as_bytes(), "restricted-xml").await;
    world.end();
}

#[tokio::test]
async fn x2_x3_x4_x6_restricted_and_malformed_xml() {
    let world = World::new();
    for (xml, expected) in [
        ("<message to='juliet@localhost'><body>&#0;</body></message>", "not-well-formed"),
        ("<message to='juliet@localhost'><body>&#xD800;</body></message>", "not-well-formed"),
        ("<message to='juliet@localhost'><body>\u{1}</body></message>", "not-well-formed"),
        ("<message><!-- x --></message>", "restricted-xml"),
        ("<!-- x -->", "restricted-xml"),
        ("<?php ?>", "restricted-xml"),
        ("<message><?x y?></message>", "restricted-xml"),
        ("<message><?xml version='1.0'?></message>", "not-well-formed"),
        ("<message></iq>", "not-well-formed"),
        ("<message><a:b/></message>", "not-well-formed"),
        ("<message a='1' a='2'/>", "not-well-formed"),
    ] {
        let mut romeo = world.login("romeo", "x").await;
        romeo.send(xml).await.unwrap();
        let outcome = romeo.raw().expect_stream_error(expected).await;
        assert!(outcome.is_ok(), "{xml}: {outcome:?}");
    }
    refused_at_once(&world, b"<?xml version='1.0' encoding='UTF-16'?>", "unsupported-encoding").await;
    let mut raw = world.connect().await;
    raw.send(format!("\u{feff}{HEADER}")).await.unwrap();
    raw.read_until("</stream:features>").await.unwrap();
    drop(raw);
    world.end();
}

#[tokio::test]
async fn x3_cdata_arrives_escaped() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    romeo
        .send("<message to='juliet@localhost/r'><body><![CDATA[</body><x/>]]></body></message>")
        .await
        .unwrap();
    let raw = juliet.raw().read_until("</message>").await.unwrap();
    assert!(raw.contains("<body>&lt;/body&gt;&lt;x/&gt;</body>"), "{raw}");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn x5_invalid_utf8_split_anywhere() {
    let world = World::new();
    for bad in
        [&b"\xC0\xAF"[..], b"\xE0\x80\xBC", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"\xFF", b"\xE2\x82<"]
    {
        let mut stanza = b"<message to='juliet@localhost'><body>".to_vec();
        let at = stanza.len();
        stanza.extend_from_slice(bad);
        stanza.extend_from_slice(b"</body></message>");
        for split in at..at + bad.len() {
            let mut romeo = world.login("romeo", "x").await;
            romeo.send(&stanza[..split]).await.unwrap();
            romeo.send(&stanza[split..]).await.unwrap();
            romeo.raw().read_until("<stream:error><").await.unwrap();
            let rest = romeo.raw().read_to_end().await.unwrap();
            assert!(rest.starts_with("not-well-formed") || rest.starts_with("bad-format"), "{bad:?}: {rest}");
        }
    }
    world.end();
}

#[tokio::test]
async fn x7_smuggling_through_prefixes() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    for xml in [
        "<a:message xmlns:a='jabber:client' to='juliet@localhost/r'><a:body>x</a:body></a:message>",
        "<message to='juliet@localhost/r' id='a&quot;&apos;&#10;b'><body x='&gt;&#9;'>x</body></message>",
        "<message to='juliet@localhost/r'><x xmlns='urn:x'><stream xmlns='http://etherx.jabber.org/streams'/></x></message>",
        "<message to='juliet@localhost/r'><body xmlns='jabber:client'>x</body></message>",
    ] {
        romeo.send(xml).await.unwrap();
        let got = juliet.next("the message").await.unwrap();
        assert_eq!((got.local(), got.ns()), ("message", "jabber:client"), "{xml}");
        assert_eq!(got.attr("from"), Some("romeo@localhost/r"));
    }
    for (xml, expected) in [
        ("<message xmlns='urn:evil' to='juliet@localhost/r'/>", "unsupported-stanza-type"),
        ("<message xmlns:xml='urn:x'/>", "not-well-formed"),
        ("<message xmlns:xmlns='urn:x'/>", "not-well-formed"),
        ("<message xmlns:a='u' xmlns:b='u' a:x='1' b:x='2'/>", "not-well-formed"),
    ] {
        let mut attacker = world.login("romeo", "attacker").await;
        attacker.send(xml).await.unwrap();
        attacker.raw().read_until("<stream:error><").await.unwrap();
        let rest = attacker.raw().read_to_end().await.unwrap();
        assert!(rest.starts_with(expected) || rest.starts_with("bad-namespace-prefix"), "{xml}: {rest}");
    }
    assert!(juliet.drain().await.unwrap().is_empty(), "nothing was smuggled");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn x8_x9_x10_x11_sizes() {
    let world = World::with(
        Config::default().with("limits.inbound_rate", "'1 GiB'").with("limits.inbound_burst", "'1 GiB'"),
    );
    let mut raw = world.open().await;
    raw.send(format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{}</auth>", "A".repeat(8193)))
        .await
        .unwrap();
    raw.expect_stream_error("policy-violation").await.unwrap();
    drop(raw);
    let cases = [
        format!("<message to='juliet@localhost'><body>{}</body></message>", "x".repeat(262_145)),
        format!("<message to='juliet@localhost' x='{}'/>", "x".repeat(262_145)),
        format!("<message to='juliet@localhost'>{}</message>", "<a/>".repeat(10_000)),
        format!("<message{}/>", (0..5_000).map(|i| format!(" a{i}=''")).collect::<String>()),
        format!("<message>{}", "<a>".repeat(65_536)),
        format!("<iq type='set' id='1'>{}{}</iq>", "<a>".repeat(200), "</a>".repeat(200)),
    ];
    for case in &cases {
        let mut romeo = world.login("romeo", "x").await;
        // The server may close before it has read everything.
        let _ = romeo.send(case).await;
        romeo
            .raw()
            .read_until("<policy-violation")
            .await
            .unwrap_or_else(|e| panic!("{}...: {e}", &case[..60]));
    }
    let mut romeo = world.login("romeo", "x").await;
    let stanza = format!("<message to='juliet@localhost'><body>{}</body></message>", "x".repeat(20_000));
    romeo.raw().send_in_pieces(&stanza, 1).await.unwrap();
    assert!(romeo.drain().await.unwrap().is_empty(), "a stanza in pieces is a stanza");
    drop(romeo);
    world.end();
}

#[tokio::test]
async fn x14_stream_headers() {
    let world =
        World::with(Config { hosts: vec!["localhost".into(), "other.example".into()], ..Config::default() });
    let good = "xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'";
    for (attributes, expected) in [
        ("xmlns='jabber:client' xmlns:stream='urn:x' to='localhost' version='1.0'", "invalid-namespace"),
        (
            "xmlns='urn:x' xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'",
            "invalid-namespace",
        ),
        (&format!("{good} to='localhost' version='-1'"), "unsupported-version"),
        (&format!("{good} to='localhost' version='99999999999'"), "unsupported-version"),
        (&format!("{good} to='localhost'"), "unsupported-version"),
        (&format!("{good} version='1.0'"), "improper-addressing"),
        (&format!("{good} to='' version='1.0'"), "improper-addressing"),
        (&format!("{good} to='romeo@localhost' version='1.0'"), "improper-addressing"),
        (&format!("{good} to='elsewhere' version='1.0'"), "host-unknown"),
        (&format!("{good} to='@@' version='1.0'"), "host-unknown"),
    ] {
        let mut raw = world.connect().await;
        raw.send(format!("<stream:stream {attributes}>")).await.unwrap();
        let outcome = raw.expect_stream_error(expected).await;
        assert!(outcome.is_ok(), "{attributes}: {outcome:?}");
    }
    // A user of one host does not become a user of another by the restart (CVE-2018-10847).
    let mut raw = world.open_tls().await;
    let account = world.server.account("romeo");
    raw.authenticate(waystation_harness::Mechanism::Plain, &account.user, &account.password, &[])
        .await
        .unwrap();
    raw.send(HEADER.replace("localhost", "other.example")).await.unwrap();
    raw.read_until("<not-authorized").await.unwrap();
    raw.read_to_end().await.unwrap();
    drop(raw);
    world.end();
}

#[tokio::test]
async fn x13_x17_x18_stanzas_that_are_none() {
    let world = World::new();
    for (xml, expected) in [
        ("<foo/>", "unsupported-stanza-type"),
        ("<foo xmlns='urn:x'/>", "unsupported-stanza-type"),
        ("text", "not-well-formed"),
        ("<stream:features/>", "unsupported-stanza-type"),
    ] {
        let mut romeo = world.login("romeo", "x").await;
        romeo.send(xml).await.unwrap();
        romeo.raw().read_until("<stream:error><").await.unwrap();
        let rest = romeo.raw().read_to_end().await.unwrap();
        assert!(
            rest.starts_with(expected) || (xml == "text" && rest.starts_with("bad-format")),
            "{xml}: {rest}"
        );
    }
    let mut romeo = world.login("romeo", "r").await;
    for xml in [
        "<iq id='1' type='get'/>",
        "<iq id='1' type='bogus'><x xmlns='u'/></iq>",
        "<iq id='1' type='get'><x xmlns='u'/><y xmlns='u'/></iq>",
        "<iq id='1' type='set' to='localhost'/>",
        "<presence id='1' type='bogus'/>",
    ] {
        romeo.send(xml).await.unwrap();
        let answer = romeo.next("an error").await.unwrap();
        assert_eq!(condition(&answer), "bad-request", "{xml}");
    }
    // X18: errors and results are never answered.
    romeo
        .send(
            "<message type='error' to='nobody@localhost'/><iq type='result' id='u' to='nobody@localhost'/>\
             <iq type='error' id='v' to='localhost'/><presence type='error' to='nobody@localhost'/>",
        )
        .await
        .unwrap();
    assert!(romeo.drain().await.unwrap().is_empty());
    // X13: what breaks off is not processed.
    let mut juliet = world.login("juliet", "r").await;
    romeo.send("<message to='juliet@localhost/r'><body>half</body>").await.unwrap();
    drop(romeo);
    assert!(juliet.drain().await.unwrap().is_empty());
    drop(juliet);
    world.end();
}

#[tokio::test]
async fn x15_whitespace_flood() {
    let world = World::alone(Config::default());
    let mut romeo = world.login("romeo", "r").await;
    // 40 KiB above the burst: slowed down to the rate of 16 KiB a second, never refused.
    let began = Instant::now();
    romeo.send(" ".repeat(296 * 1024)).await.unwrap();
    assert!(romeo.drain().await.unwrap().is_empty());
    assert!(began.elapsed() > Duration::from_secs(1), "white space is not counted");
    drop(romeo);
    let mut raw = world.open().await;
    raw.send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='SCRAM-SHA-1'> biws </auth>")
        .await
        .unwrap();
    raw.read_until("<incorrect-encoding/>").await.unwrap();
    drop(raw);
    world.end();
}

#[tokio::test]
async fn x16_languages() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    let long = "x".repeat(10_000);
    romeo.send(format!("<message to='juliet@localhost/r' xml:lang='{long}'/>")).await.unwrap();
    let got = juliet.raw().read_until("/>").await.unwrap();
    assert!(!got.contains("xxxx"), "a language of 10,000 bytes was relayed");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn x19_slow_and_silent_connections() {
    let world = World::with(
        Config::default()
            .with("limits.unauthenticated_timeout", "'1s'")
            .with("limits.connections_per_address", "0")
            .with("limits.connection_rate", "0"),
    );
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(world.connect().await);
    }
    let mut slow = world.connect().await;
    for byte in HEADER.as_bytes().chunks(1).take(20) {
        slow.send(byte).await.unwrap();
    }
    slow.expect_stream_error("connection-timeout").await.unwrap();
    for raw in &mut silent {
        raw.expect_stream_error("connection-timeout").await.unwrap();
    }
    drop((silent, slow));
    // Memory does not grow with connections that come and go.
    for _ in 0..2_000 {
        drop(world.connect().await);
    }
    let mut last: RawClient = world.connect().await;
    last.open("localhost").await.unwrap();
    drop(last);
    world.end();
}

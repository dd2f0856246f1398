//! Peers that mean no XMPP at all: XML that must not be read, bytes without end, time without end (SECURITY X
//! rows, before authentication and after it).

use std::time::Duration;

use crate::authority::Authority;
use crate::common::*;

/// What a server sends on a stream that nothing is proven on, and on one where it has proven a.org.
async fn each(world: &World) -> [(&'static str, Peer); 3] {
    let mut plain = Peer::connect(world.starttls).await;
    plain.open("a.org", "us.example").await;
    plain.features().await;
    let mut secured = world.secured("a.org", None).await;
    secured.features().await;
    let mut proven = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
    proven.features().await;
    proven.claim("a.org", "us.example", "key").await;
    assert_eq!(proven.answer().await, "valid");
    [("plain", plain), ("secured", secured), ("proven", proven)]
}

/// Sends what ends each of the streams with one of these conditions.
async fn ends(world: &World, bytes: &[u8], expected: &[&str]) {
    for (state, mut peer) in each(world).await {
        // A server that has seen enough closes before all is written.
        let _ = peer.send_bytes(bytes).await;
        let rest = peer.until_end().await;
        let is_there = |condition: &&str| rest.contains(&format!("<stream:error><{condition} "));
        assert!(expected.iter().any(is_there), "{state}: {} {rest}", String::from_utf8_lossy(bytes));
        assert!(rest.ends_with("</stream:stream>"), "{rest}");
    }
}

#[actix_rt::test]
async fn x1_document_types_and_entities() {
    let mut world = World::start(|_| ()).await;
    let bomb = "<!DOCTYPE s [<!ENTITY a \"x\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>";
    let mut peer = Peer::connect(world.starttls).await;
    peer.send(&format!("<?xml version='1.0'?>{bomb}<stream:stream xmlns='jabber:server'>")).await;
    let rest = peer.until_end().await;
    assert!(rest.contains("<restricted-xml "), "{rest}");
    let external = "<!DOCTYPE s SYSTEM 'file:///etc/passwd'>";
    for text in [bomb, external, "<message from='u@a.org' to='us.example'><!DOCTYPE a []></message>"] {
        ends(&world, text.as_bytes(), &["restricted-xml"]).await;
    }
    let entity = "<message from='u@a.org' to='us.example'><body>&b;</body></message>";
    ends(&world, entity.as_bytes(), &["restricted-xml", "not-well-formed"]).await;
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn x3_comments_and_processing_instructions() {
    let world = World::start(|_| ()).await;
    for text in ["<!-- x -->", "<?php ?>", "<message from='u@a.org' to='us.example'><!-- x --></message>"] {
        ends(&world, text.as_bytes(), &["restricted-xml"]).await;
    }
}

#[actix_rt::test]
async fn x5_bytes_that_are_no_utf_8() {
    let mut world = World::start(|_| ()).await;
    let wrong: [&[u8]; 9] = [
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
    for wrong in wrong {
        // In text, in an attribute, in a name: a closing character follows and must not be taken along.
        for (before, after) in [
            ("<iq type='get' id='i' from='u@a.org' to='us.example'><seen xmlns='urn:test'>", "</seen></iq>"),
            ("<iq type='get' id='", "' from='u@a.org' to='us.example'><seen xmlns='urn:test'/></iq>"),
            ("<iq", " type='get' id='i' from='u@a.org' to='us.example'><seen xmlns='urn:test'/></iq>"),
        ] {
            let bytes = [before.as_bytes(), wrong, after.as_bytes()].concat();
            let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
            peer.features().await;
            peer.claim("a.org", "us.example", "key").await;
            assert_eq!(peer.answer().await, "valid");
            let _ = peer.send_bytes(&bytes).await;
            let rest = peer.until_end().await;
            assert!(rest.contains("<bad-format ") || rest.contains("<not-well-formed "), "{wrong:?}: {rest}");
        }
    }
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn x9_elements_that_are_too_large() {
    let mut world = World::start(|s| s.limits.max_stanza_bytes = 20_000).await;
    let sized = |size: usize| {
        let frame = |body: &str| {
            format!(
                "<iq type='get' id='i' from='u@a.org' to='us.example'><seen xmlns='urn:test'>{body}</seen></iq>"
            )
        };
        frame(&"x".repeat(size - frame("").len()))
    };
    for (state, mut peer) in each(&world).await {
        let limit = if state == "proven" { 20_000 } else { 8_192 };
        if state == "proven" {
            peer.send(&sized(limit)).await;
            world.taken().await;
        }
        let _ = peer.send_bytes(sized(limit + 1).as_bytes()).await;
        let rest = peer.until_end().await;
        assert!(rest.contains("<policy-violation "), "{state}: {rest}");
    }
    // Many small ones make a large one too, and so do a header's attributes.
    ends(&world, format!("<message>{}", "<a/>".repeat(5_000)).as_bytes(), &["policy-violation"]).await;
    ends(&world, format!("<message>{}", "<a>".repeat(200)).as_bytes(), &["policy-violation"]).await;
    let mut peer = Peer::connect(world.starttls).await;
    let _ = peer.send_bytes(header(&format!("to='us.example' x='{}'", "x".repeat(9_000))).as_bytes()).await;
    assert!(peer.until_end().await.contains("<policy-violation "));
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn x15_white_space_and_elements_without_end_before_a_proof() {
    let world = World::start(|_| ()).await;
    let verify = format!("<db:verify from='a.org' to='us.example' id='i'>{}</db:verify>", "0".repeat(64));
    for flood in [" ".repeat(4096), verify.repeat(40)] {
        let mut peer = world.secured("a.org", None).await;
        peer.features().await;
        let mut sent = 0;
        // It does not take much more than it says; what is on its way counts as well.
        while sent < 64 << 20 && peer.send_bytes(flood.as_bytes()).await.is_ok() {
            sent += flood.len();
        }
        assert!(sent < 16 << 20, "{sent} bytes were taken");
    }
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    peer.send(&" ".repeat(257 * 1024)).await;
    assert!(peer.until_end().await.contains("<policy-violation "));
}

#[actix_rt::test]
async fn x19_a_negotiation_that_gets_nowhere() {
    let world = World::start(|s| s.negotiation_timeout = Duration::from_secs(2)).await;
    let authority = Authority::start(|_| None).await;
    let waiting = World::start(|s| {
        s.negotiation_timeout = Duration::from_secs(2);
        s.domains = vec![server_at("a.org", authority.port)];
    })
    .await;
    // Nothing at all, a byte now and then, a handshake that stalls, a claim that is not decided in time.
    let mut silent = Peer::connect(world.starttls).await;
    let mut slow = Peer::connect(world.starttls).await;
    let mut stalled = Peer::connect(world.direct).await;
    stalled.send_bytes(b"\x16\x03\x01").await.unwrap();
    let mut claiming = waiting.secured("a.org", None).await;
    claiming.features().await;
    claiming.claim("a.org", "us.example", "key").await;
    let dripping = async {
        for byte in header("from='a.org' to='us.example' version='1.0'").bytes().cycle() {
            if slow.send_bytes(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, dripping).await.expect("a slow peer is waited for");
    assert!(silent.until_end().await.contains("<connection-timeout "));
    assert!(claiming.until_end().await.contains("<connection-timeout "));
    assert!(!stalled.until_end_lossy().await.contains("features"));
}

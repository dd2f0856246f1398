//! Stream headers (RFC 6120 4.7 and 4.8), TLS from the first byte (XEP-0368, SECURITY T6, T7), and what else a
//! stream may be refused for before anything is proven.

use crate::common::*;

async fn refused(world: &World, header: &str) -> String {
    let mut peer = Peer::connect(world.starttls).await;
    peer.send(header).await;
    let rest = peer.until_end().await;
    assert!(rest.starts_with("<?xml version='1.0'?><stream:stream "), "an open stream for the error: {rest}");
    assert!(rest.ends_with("</stream:stream>"), "{rest}");
    assert!(!rest.contains("stream:features"), "{rest}");
    let condition = rest.split_once("<stream:error><").unwrap_or_else(|| panic!("no error: {rest}")).1;
    condition.split(' ').next().unwrap().to_owned()
}

#[actix_rt::test]
async fn x14_headers_that_are_refused() {
    let world = World::start(|s| s.deny = vec!["denied.org".into()]).await;
    for (attributes, expected) in [
        ("from='a.org' version='1.0'", "improper-addressing"),
        ("from='a.org' to='' version='1.0'", "improper-addressing"),
        ("from='a.org' to='u@us.example' version='1.0'", "improper-addressing"),
        ("from='a.org' to='us.example/r' version='1.0'", "improper-addressing"),
        ("from='a.org' to='nobody.example' version='1.0'", "host-unknown"),
        ("from='a.org' to='sub.us.example' version='1.0'", "host-unknown"),
        ("from='a.org' to='a b' version='1.0'", "host-unknown"),
        ("from='u@a.org' to='us.example' version='1.0'", "improper-addressing"),
        ("from='' to='us.example' version='1.0'", "improper-addressing"),
        ("from='a.org/r' to='us.example' version='1.0'", "improper-addressing"),
        ("from='us.example' to='us.example' version='1.0'", "invalid-from"),
        ("from='chat.us.example' to='us.example' version='1.0'", "invalid-from"),
        ("from='denied.org' to='us.example' version='1.0'", "policy-violation"),
        ("from='a.org' to='us.example'", "unsupported-version"),
        ("from='a.org' to='us.example' version='0.9'", "unsupported-version"),
        ("from='a.org' to='us.example' version='-1'", "unsupported-version"),
        ("from='a.org' to='us.example' version='99999999999'", "unsupported-version"),
    ] {
        assert_eq!(refused(&world, &header(attributes)).await, expected, "{attributes}");
    }
    let good = header("from='a.org' to='us.example' version='1.0'");
    for (from, to, expected) in [
        ("'jabber:server'", "'jabber:client'", "invalid-namespace"),
        ("xmlns='jabber:server' ", "", "invalid-namespace"),
        ("http://etherx.jabber.org/streams", "http://etherx.jabber.org/", "invalid-namespace"),
        (
            "stream:stream xmlns",
            "x:stream xmlns:x='http://etherx.jabber.org/streams' xmlns",
            "bad-namespace-prefix",
        ),
    ] {
        assert_eq!(refused(&world, &good.replace(from, to)).await, expected, "{to}");
    }
}

#[actix_rt::test]
async fn a_header_is_answered_in_kind() {
    let world = World::start(|_| ()).await;
    for version in ["1.0", "1.1", "2.0"] {
        let mut peer = Peer::connect(world.starttls).await;
        peer.send(&header(&format!("from='A.org' to='CHAT.us.example' version='{version}'"))).await;
        let answer = peer.until("</stream:features>").await;
        assert!(
            answer.contains(" xmlns='jabber:server'")
                && answer.contains(" xmlns:db='jabber:server:dialback'")
        );
        assert_eq!(
            (attribute(&answer, "from"), attribute(&answer, "to")),
            ("chat.us.example".into(), "a.org".into())
        );
        assert!(attribute(&answer, "id").len() >= 22, "{answer}");
        assert!(answer.contains(" version='1.0' xml:lang='en'>"), "{answer}");
    }
    // Before TLS it may keep to itself who it is.
    let mut peer = Peer::connect(world.starttls).await;
    peer.send(&header("to='us.example' version='1.0'")).await;
    assert!(!peer.until("</stream:features>").await.contains(" to='"));
}

#[actix_rt::test]
async fn t6_only_the_protocol_of_servers_is_spoken_over_direct_tls() {
    let world = World::start(|_| ()).await;
    for alpn in [&[][..], &[&b"xmpp-server"[..]], &[&b"h2"[..], b"xmpp-server"]] {
        let mut peer = Peer::connect_tls(world.direct, "us.example", alpn).await.unwrap();
        peer.open("a.org", "us.example").await;
        assert!(!peer.features().await.1.contains("starttls"));
    }
    for alpn in [b"xmpp-client".as_slice(), b"h2", b"http/1.1"] {
        let Err(error) = Peer::connect_tls(world.direct, "us.example", &[alpn]).await else {
            panic!("{alpn:?} was taken")
        };
        // Or the alert was lost with the connection.
        let said = format!("{error:?}");
        assert!(said.contains("NoApplicationProtocol") || said.contains("Reset"), "{said}");
    }
    // STARTTLS on a stream that is encrypted already ends it.
    let mut peer = Peer::connect_tls(world.direct, "us.example", &[]).await.unwrap();
    peer.open("a.org", "us.example").await;
    peer.features().await;
    peer.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    assert_eq!(peer.until_end().await, "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>");
}

#[actix_rt::test]
async fn t6_other_protocols_are_closed_and_not_echoed() {
    let world = World::start(|_| ()).await;
    for request in ["GET / HTTP/1.1\r\nHost: us.example\r\n\r\n", "EHLO evil\r\n", "\u{16}\u{3}\u{1}"] {
        let mut peer = Peer::connect(world.starttls).await;
        peer.send(request).await;
        let rest = peer.until_end().await;
        assert!(rest.contains("<not-well-formed "), "{rest}");
        assert!(!rest.contains("HTTP") && !rest.contains("EHLO") && !rest.contains("evil"), "{rest}");
    }
    // And XMPP without TLS where TLS comes first.
    let mut peer = Peer::connect(world.direct).await;
    peer.send(&header("from='a.org' to='us.example' version='1.0'")).await;
    assert!(!peer.until_end_lossy().await.contains("stream"));
}

#[actix_rt::test]
async fn t7_the_streams_to_decides_whatever_name_tls_was_asked_for() {
    let mut world = World::start(|_| ()).await;
    for name in ["us.example", "chat.us.example", "unknown.example"] {
        let key = world.ca.issue(&["a.org"]);
        let mut peer = Peer::connect_tls_as(world.direct, name, &[b"xmpp-server"], key).await;
        peer.open("a.org", "us.example").await;
        peer.features().await;
        peer.claim("a.org", "us.example", "key").await;
        assert_eq!(peer.answer().await, "valid");
        peer.send(&iq("u@a.org", "us.example")).await;
        assert_eq!(world.taken().await.1, "us.example");
        peer.send(&iq("u@a.org", "chat.us.example")).await;
        assert!(peer.until_end().await.contains("<host-unknown "), "{name}");
    }
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn streams_of_one_address_are_bounded() {
    let world = World::start(|s| s.streams_per_address = 2).await;
    let mut first = Peer::connect(world.starttls).await;
    first.open("a.org", "us.example").await;
    first.features().await;
    let mut second = Peer::connect(world.direct).await;
    // Counted in the order in which they were accepted, so the third waits for the second to be.
    let third = loop {
        let mut third = Peer::connect(world.starttls).await;
        if third.send_bytes(header("from='a.org' to='us.example' version='1.0'").as_bytes()).await.is_err() {
            break String::new();
        }
        let text = third.until_end_or("</stream:features>").await;
        if !text.contains("features") {
            break text;
        }
    };
    assert_eq!(third, "", "closed without a word");
    drop(first);
    // Its place is free again once the server has seen its end.
    let freed = async {
        loop {
            let mut peer = Peer::connect(world.starttls).await;
            let sent = peer.send_bytes(header("from='a.org' to='us.example' version='1.0'").as_bytes()).await;
            if sent.is_ok() && peer.until_end_or("</stream:features>").await.contains("features") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("no place became free");
    second.send_bytes(b"x").await.unwrap();
}

#[actix_rt::test]
async fn stream_management_waits_for_a_proof() {
    let world = World::start(|_| ()).await;
    let mut peer = world.secured("a.org", None).await;
    assert!(peer.features().await.1.contains("<sm xmlns='urn:xmpp:sm:3'/>"), "for when dialback is done");
    for xml in
        ["<enable xmlns='urn:xmpp:sm:3' resume='true'/>", "<resume xmlns='urn:xmpp:sm:3' previd='x' h='0'/>"]
    {
        peer.send(xml).await;
        peer.until(
            "<failed xmlns='urn:xmpp:sm:3'><unexpected-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>",
        )
        .await;
    }
    for _ in 0..20 {
        if peer.send_bytes(b"<r xmlns='urn:xmpp:sm:3'/>").await.is_err() {
            break;
        }
    }
    assert!(peer.until_end().await.contains("<policy-violation "));
}

#[actix_rt::test]
async fn a_server_that_stops_says_so() {
    let world = World::start(|_| ()).await;
    let mut early = Peer::connect(world.starttls).await;
    early.open("a.org", "us.example").await;
    early.features().await;
    let mut late = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
    late.features().await;
    late.claim("a.org", "us.example", "key").await;
    assert_eq!(late.answer().await, "valid");
    let (drained, ()) = tokio::join!(world.drain.drain(std::time::Duration::ZERO), async {
        for peer in [&mut early, &mut late] {
            assert!(
                peer.until("<system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>").await.len() > 10
            );
        }
    });
    assert!(drained > 0, "streams hold the server until they have ended");
}

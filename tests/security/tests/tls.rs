//! SECURITY.md section 2 on streams; the transport's own tests show the rest of its rows.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Client, Config, Login, RawClient, Security, tls};
use waystation_security::{HEADER, World, auth, sasl};

fn required() -> World {
    let config = Config { tls_required: true, ..Config::default() };
    // The witness logs in without TLS, so loopback is exempt for it by its own server's rule.
    World::with(config.with("tls.loopback_exempt", "true"))
}

#[tokio::test]
async fn t1_what_comes_behind_starttls_is_not_xml() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    for injected in [
        "<message to='juliet@localhost/r'><body>inj</body></message>".to_owned(),
        auth("PLAIN", "\0romeo\0secret"),
    ] {
        for split in [false, true] {
            let mut raw = world.open().await;
            let starttls = "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
            if split {
                raw.send(starttls).await.unwrap();
                raw.send(&injected).await.unwrap();
            } else {
                raw.send(format!("{starttls}{injected}")).await.unwrap();
            }
            raw.read_until("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
            assert!(
                raw.handshake(tls::client_config(&[]), "localhost").await.is_err(),
                "TLS began over plain text"
            );
        }
    }
    assert!(juliet.drain().await.unwrap().is_empty(), "an injected stanza was delivered");
    drop(juliet);
    world.end();
}

#[tokio::test]
async fn t3_a8_nothing_before_tls_where_it_is_required() {
    let config = Config { tls_required: true, ..Config::default() }.with_users(["romeo"]);
    let server = waystation_harness::Server::start(config).unwrap();
    let mut raw = RawClient::connect(server.endpoint().c2s).await.unwrap();
    let opened = raw.open("localhost").await.unwrap();
    let features: Vec<_> = opened.features.children().map(|c| c.local().to_owned()).collect();
    assert_eq!(features, ["starttls"]);
    assert!(opened.features.child("starttls").unwrap().child("required").is_some());
    for mechanism in ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256"] {
        assert_eq!(sasl(&mut raw, &auth(mechanism, "x")).await, "encryption-required");
    }
    raw.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await.unwrap();
    raw.expect_stream_error("not-authorized").await.unwrap();
    drop(raw);
    // With TLS the same server lets the client in.
    let login = Login::resource("r").over(Security::StartTls);
    Client::login(server.endpoint(), server.account("romeo"), &login).await.unwrap().close().await.unwrap();
    server.finish();
    // Where loopback is exempt, PLAIN still needs TLS.
    let world = required();
    let mut raw = world.connect().await;
    let opened = raw.open("localhost").await.unwrap();
    assert!(!opened.mechanisms().is_empty());
    assert!(!opened.mechanisms().iter().any(|m| m == "PLAIN" || m.ends_with("-PLUS")));
    assert_eq!(sasl(&mut raw, &auth("PLAIN", "\0romeo\0secret")).await, "encryption-required");
    drop(raw);
    world.end();
}

#[tokio::test]
async fn t6_other_protocols_on_the_ports() {
    let world = World::new();
    let mut raw = world.connect().await;
    raw.send("POST / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let answer = raw.read_to_end().await.unwrap();
    assert!(!answer.contains("POST") && !answer.contains("HTTP"), "echoed: {answer}");
    let at = world.server.endpoint().c2s_tls;
    for verb in [
        "GET / HTTP/1.1\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "EHLO x\r\n",
        "\u{16}\u{3}\u{1}",
        "SSH-2.0-x\r\n",
    ] {
        let mut raw = world.connect().await;
        raw.send(verb).await.unwrap();
        raw.read_until("<stream:error><").await.unwrap();
        let rest = raw.read_to_end().await.unwrap();
        assert!(rest.starts_with("not-well-formed") || rest.starts_with("bad-format"), "{verb:?}: {rest}");
    }
    for alpn in [&b"http/1.1"[..], b"xmpp-server", b"h2", b"xmpp-clien", b"xmpp-client\0"] {
        let outcome = RawClient::connect_tls_with(at, tls::client_config(&[alpn]), "localhost").await;
        assert!(outcome.is_err(), "{alpn:?} was accepted");
    }
    let mut raw = RawClient::connect_tls_with(at, tls::client_config(&[]), "localhost").await.unwrap();
    raw.open("localhost").await.unwrap();
    drop(raw);
    world.end();
}

#[tokio::test]
async fn t7_the_streams_to_decides_the_host() {
    let world =
        World::with(Config { hosts: vec!["localhost".into(), "other.example".into()], ..Config::default() });
    let mut raw = RawClient::connect_tls(world.server.endpoint().c2s_tls, "other.example").await.unwrap();
    let opened = raw.open("localhost").await.unwrap();
    assert_eq!(opened.header.attr("from"), Some("localhost"));
    drop(raw);
    world.end();
}

#[tokio::test]
async fn t7_names_of_tls_that_are_unknown_or_missing() {
    let world =
        World::with(Config { hosts: vec!["localhost".into(), "other.example".into()], ..Config::default() });
    let at = world.server.endpoint().c2s_tls;
    let certificate = async |name: &str| {
        let mut raw = RawClient::connect_tls(at, name).await.unwrap();
        let shown = raw.wire().tls().unwrap().peer_certificates().unwrap()[0].to_vec();
        // Whatever was named to TLS, the stream's `to` decides, and an unknown one is refused.
        let opened = raw.open("other.example").await.unwrap();
        assert_eq!(opened.header.attr("from"), Some("other.example"), "{name}");
        shown
    };
    let (first, other) = (certificate("localhost").await, certificate("other.example").await);
    assert_ne!(first, other, "each host has its own certificate");
    // An address is no name: then the client sends none (RFC 6066 3).
    for name in ["127.0.0.1", "unknown.example", "sub.localhost", "localhost.evil.example"] {
        assert_eq!(certificate(name).await, first, "{name} gets the default certificate");
    }
    let mut raw = RawClient::connect_tls(at, "localhost").await.unwrap();
    raw.send(HEADER.replace("to='localhost'", "to='unknown.example'")).await.unwrap();
    raw.expect_stream_error("host-unknown").await.unwrap();
    drop(raw);
    world.end();
}

#[tokio::test]
async fn t10_an_end_without_close_notify_is_no_end_of_a_stanza() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let login = Login::resource("r").over(Security::Direct);
    for (sent, arrives) in [
        ("<message to='juliet@localhost/r'><body>cut</body></message", false),
        ("<message to='juliet@localhost/r'><body>whole</body></message></stream:stream>", true),
        ("<message to='juliet@localhost/r'><body>whole</body></message>", true),
    ] {
        let mut romeo =
            Client::login(world.server.endpoint(), world.server.account("romeo"), &login).await.unwrap();
        romeo.send(sent).await.unwrap();
        // A FIN of TCP, which anyone on the way can send, and not one of TLS.
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(romeo.raw().wire().tcp()),
            nix::sys::socket::Shutdown::Write,
        )
        .unwrap();
        let _ = romeo.raw().read_to_end().await;
        if arrives {
            juliet.next("what was sent whole").await.unwrap();
        }
        assert!(juliet.drain().await.unwrap().is_empty(), "{sent}");
    }
    drop(juliet);
    world.end();
}

#[tokio::test]
async fn t10_a_stanza_that_tls_cuts_off_is_not_processed() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let login = Login::resource("r").over(Security::Direct);
    let mut romeo =
        Client::login(world.server.endpoint(), world.server.account("romeo"), &login).await.unwrap();
    romeo.send("<message to='juliet@localhost/r'><body>cut").await.unwrap();
    romeo.reset().unwrap();
    assert!(juliet.drain().await.unwrap().is_empty());
    drop(juliet);
    world.end();
}

#[tokio::test]
async fn a_line_feed_behind_elements_that_restart_the_stream_is_skipped() {
    let world = World::new();
    let mut raw = world.open().await;
    raw.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>\n").await.unwrap();
    raw.read_until("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
    raw.handshake(tls::client_config(&[]), "localhost").await.unwrap();
    raw.send("\n").await.unwrap();
    raw.open("localhost").await.unwrap();
    let message = format!("\0romeo\0{}", world.server.account("romeo").password);
    assert_eq!(sasl(&mut raw, &format!("{}\n", auth("PLAIN", message))).await, "success");
    raw.open("localhost").await.unwrap();
    drop(raw);
    world.end();
}

#[tokio::test]
async fn x15_white_space_between_proceed_and_client_hello() {
    let world = World::new();
    let mut raw = world.connect().await;
    raw.send(HEADER).await.unwrap();
    raw.read_until("</stream:features>").await.unwrap();
    raw.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
    raw.read_until("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
    raw.send("     ").await.unwrap();
    assert!(raw.handshake(tls::client_config(&[]), "localhost").await.is_err());
    drop(raw);
    world.end();
}

//! The way to a stream on which stanzas may be sent.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waystation_route::remote::{Authenticated, EndCause};

use crate::common::*;

#[actix_rt::test]
async fn a_whole_stream_by_dialback_without_tls() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| settings.require_tls = false).await;
    let route = us.open(None);
    route.send(1);
    let mut conn = peer.accept().await;
    let header = conn.greet("").await;
    for part in
        ["xmlns='jabber:server'", "xmlns:db='jabber:server:dialback'", "from='here.test'", "to='there.test'"]
    {
        assert!(header.contains(part), "{header}");
    }
    let asked = conn.dialback("valid").await;
    assert!(asked.starts_with("<db:result from='here.test' to='there.test'>"), "{asked}");
    let info = route.up().await;
    assert_eq!((info.security, info.authenticated), ("none", Authenticated::Dialback));
    assert!(!info.acknowledges && !info.bidirectional && info.resumed.is_none());
    let sent = conn.until("</message>").await;
    assert_eq!(
        sent,
        "<message from='romeo@here.test/r' to='juliet@there.test' type='chat' id='m1'><body>1</body></message>"
    );
    route.close();
    conn.end().await;
    assert_eq!(route.handed().await, 1, "the end in order hands over what was written");
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Ended, "{}", end.text);
    assert!(end.resume.is_none());
}

#[actix_rt::test]
async fn external_over_starttls_proves_both_sides() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| settings.require_certificate = true).await;
    let route = us.open(None);
    let mut conn = peer.accept_starttls(EXTERNAL).await;
    let auth = conn.until("</auth>").await;
    // XEP-0178: the domain is named, for older servers.
    assert_eq!(
        auth,
        "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>aGVyZS50ZXN0</auth>"
    );
    conn.send("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").await;
    conn.greet("").await;
    let info = route.up().await;
    assert_eq!((info.security, info.authenticated), ("TLSv1.3", Authenticated::Certificate));
    assert!(info.certificate.is_some());
}

#[actix_rt::test]
async fn external_that_fails_falls_back_to_dialback() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let route = us.open(None);
    let mut conn = peer.accept_starttls(EXTERNAL).await;
    conn.until("</auth>").await;
    conn.send("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>").await;
    conn.dialback("valid").await;
    assert_eq!(route.up().await.authenticated, Authenticated::Certificate, "the peer's own proof");
}

#[actix_rt::test]
async fn a_server_that_goes_because_of_our_certificate_is_asked_again_for_dialback() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let route = us.open(None);
    let mut conn = peer.accept_starttls(EXTERNAL).await;
    conn.until("</auth>").await;
    conn.send(
        "<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure></stream:stream>",
    )
    .await;
    conn.until_end().await;
    let mut conn = peer.accept_starttls(EXTERNAL).await;
    conn.dialback("valid").await;
    route.up().await;
    // Once, and not when it is dialback that is refused.
    let route = us.open(None);
    for _ in 0..2 {
        let mut conn = peer.accept_starttls(EXTERNAL).await;
        let said = conn.until("</").await;
        if said.contains("<auth") {
            conn.send("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>").await;
            conn.send("</stream:stream>").await;
            continue;
        }
        conn.send(&format!("<db:result from='{THEM}' to='{US}' type='invalid'/>")).await;
    }
    assert!(route.down().await.text.contains("invalid"));
}

#[actix_rt::test]
async fn direct_tls_says_which_protocol_it_is_for() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| settings.domains[0].direct_tls = true).await;
    let route = us.open(None);
    let (mut conn, alpn) = peer.accept_tls().await;
    assert_eq!(alpn.as_deref(), Some(&b"xmpp-server"[..]));
    // STARTTLS makes no sense there and is not looked at.
    conn.greet(STARTTLS).await;
    conn.dialback("valid").await;
    route.up().await;
}

#[actix_rt::test]
async fn without_tls_where_it_is_required_nothing_is_sent() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let route = us.open(None);
    route.send(1);
    let mut conn = peer.accept().await;
    conn.greet("").await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Refused, "{}", end.text);
    assert!(end.text.contains("TLS is required"), "{}", end.text);
    let rest = conn.until_end().await;
    assert_eq!(rest, "</stream:stream>");
}

#[actix_rt::test]
async fn a_certificate_that_is_required_must_prove_the_domain() {
    let authority = Authority::new();
    let peer = Peer::self_signed(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| settings.require_certificate = true).await;
    let route = us.open(None);
    route.send(1);
    let mut conn = peer.accept_starttls(EXTERNAL).await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Refused, "{}", end.text);
    assert!(end.text.contains("certificate"), "{}", end.text);
    let rest = conn.until_end().await;
    assert!(!rest.contains("<auth") && !rest.contains("<message"), "{rest}");
}

#[actix_rt::test]
async fn t2_what_comes_behind_proceed_ends_the_attempt() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    for behind in [
        "<stream:features/>".to_owned(),
        format!("{}<stream:features>{EXTERNAL}</stream:features>", "<?xml version='1.0'?>"),
        format!("<db:result from='{THEM}' to='{US}' type='valid'/>"),
        "x".to_owned(),
    ] {
        let route = us.open(None);
        route.send(1);
        let mut conn = peer.accept().await;
        conn.greet(STARTTLS).await;
        conn.until("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        conn.send(&format!("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>{behind}")).await;
        let end = route.down().await;
        assert_eq!(end.cause, EndCause::Failed, "{behind}: {}", end.text);
        let rest = conn.until_end().await;
        assert!(!rest.contains('<'), "{behind}: {rest}");
    }
}

#[actix_rt::test]
async fn t2_nothing_of_the_stream_before_tls_counts_after_it() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let route = us.open(None);
    let mut conn = peer.accept().await;
    // All of this is offered by whoever is on the way; the line feed says nothing.
    conn.greet(&format!("{STARTTLS}{EXTERNAL}{SM}{BIDI}")).await;
    let mut conn = conn.start_tls("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
    let header = conn.until("version='1.0' xml:lang='en'>").await;
    assert!(header.starts_with("<?xml version='1.0'?>"), "{header}");
    conn.send(&conn.header(THEM).replace("id='s1'", "id='other'")).await;
    conn.send("<stream:features/>").await;
    let first = conn.dialback("valid").await;
    assert!(first.starts_with("<db:result"), "no bidi, no EXTERNAL: {first}");
    let info = route.up().await;
    assert!(!info.acknowledges && !info.bidirectional);
    // The key is for the id of the new stream.
    let again = us.open(None);
    let mut second = peer.accept_starttls("").await;
    assert_ne!(second.dialback("valid").await, first);
    again.up().await;
}

#[actix_rt::test]
async fn m11_a_peer_that_never_answers_costs_its_time_and_the_next_is_tried() {
    let authority = Authority::new();
    let (silent, good) = (Peer::listen(&authority).await, Peer::listen(&authority).await);
    let us = Us::start(&authority, &[silent.port, good.port], |settings| {
        settings.negotiation_timeout = Duration::from_secs(2);
    })
    .await;
    let route = us.open(None);
    let started = Instant::now();
    let mut never = silent.accept().await;
    let mut conn = good.accept_starttls("").await;
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
    conn.dialback("valid").await;
    route.up().await;
    never.until_end().await;
    // Of two that do not answer, the last is told of.
    let us = Us::start(&authority, &[silent.port], |settings| {
        settings.negotiation_timeout = Duration::from_secs(1);
    })
    .await;
    let route = us.open(None);
    let _never = silent.accept().await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed);
    assert!(end.text.contains("in time"), "{}", end.text);
}

#[actix_rt::test]
async fn m11_a_header_without_end_is_cut_off() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    for start in
        ["<stream:stream id='", "<", "<?xml version='1.0' ", "<stream:stream xmlns='jabber:server' a='"]
    {
        let route = us.open(None);
        let (mut raw, _) = into_raw(&peer).accept().await.unwrap();
        raw.write_all(start.as_bytes()).await.unwrap();
        let flood = vec![b'a'; 64 * 1024];
        let mut taken = 0u64;
        // 1 GiB, or as much of it as is taken.
        while taken < 1 << 30 {
            match raw.write(&flood).await {
                Ok(n) => taken += n as u64,
                Err(_) => break,
            }
            if route.pending() > 0 {
                break;
            }
        }
        assert!(taken < 64 << 20, "{taken} bytes were taken");
        let end = route.down().await;
        assert_eq!(end.cause, EndCause::Failed, "{}", end.text);
        let mut rest = Vec::new();
        // It may be reset.
        let _ = raw.read_to_end(&mut rest).await;
    }
}

#[actix_rt::test]
async fn a_stream_error_is_the_reason_that_is_told() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    for condition in ["host-unknown", "policy-violation", "remote-connection-failed"] {
        let route = us.open(None);
        let mut conn = peer.accept().await;
        conn.until("version='1.0' xml:lang='en'>").await;
        let error = format!(
            "{}<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>",
            conn.header(THEM)
        );
        conn.send(&error).await;
        let end = route.down().await;
        assert_eq!(end.cause, EndCause::Failed);
        assert!(end.text.contains(condition), "{}", end.text);
    }
}

#[actix_rt::test]
async fn a_header_that_is_not_the_domains_is_refused() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let header = |change: fn(String) -> String| {
        change(format!(
            "<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' id='1' \
             from='{THEM}' version='1.0'>"
        ))
    };
    for (header, condition) in [
        (header(|h| h.replace("from='there.test'", "from='other.test'")), "invalid-from"),
        (header(|h| h.replace("jabber:server", "jabber:client")), "invalid-namespace"),
        (header(|h| h.replace(" version='1.0'", "")), "unsupported-version"),
        (header(|_| "HTTP/1.1 400 Bad Request\r\n".into()), "not-well-formed"),
    ] {
        let route = us.open(None);
        let mut conn = peer.accept().await;
        conn.until("version='1.0' xml:lang='en'>").await;
        conn.send(&header).await;
        let end = route.down().await;
        assert_eq!(end.cause, EndCause::Failed, "{header}: {}", end.text);
        let said = conn.until_end().await;
        assert!(
            said.contains(&format!("<{condition} ")) && said.ends_with("</stream:stream>"),
            "{header}: {said}"
        );
    }
}

#[actix_rt::test]
async fn m10_only_the_answer_to_our_question_lets_us_in() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let route = us.open(None);
    route.send(1);
    let mut conn = peer.accept_starttls("").await;
    conn.until("</db:result>").await;
    for (from, to) in [("victim.test", US), (THEM, "other.test"), (US, THEM)] {
        conn.send(&format!("<db:result from='{from}' to='{to}' type='valid'/>")).await;
    }
    conn.send(&format!("<db:verify from='{THEM}' to='{US}' id='s1' type='valid'/>")).await;
    conn.send(&format!("<db:result from='{THEM}' to='{US}' type='invalid'/>")).await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed);
    assert!(end.text.contains("invalid"), "{}", end.text);
    assert!(!conn.until_end().await.contains("<message"));
}

#[actix_rt::test]
async fn an_error_of_dialback_is_told_by_name() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let route = us.open(None);
    let mut conn = peer.accept_starttls("").await;
    conn.until("</db:result>").await;
    conn.send(&format!(
        "<db:result from='{THEM}' to='{US}' type='error'><error type='cancel'>\
         <item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></db:result>"
    ))
    .await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed);
    assert!(end.text.contains("item-not-found"), "{}", end.text);
}

#[actix_rt::test]
async fn f9_a_domain_of_ours_is_never_dialled() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| {
        for domain in &mut settings.domains {
            domain.domain = US.into();
        }
    })
    .await;
    let end = us.open_for(US, None).down().await;
    assert_eq!(end.cause, EndCause::Refused, "{}", end.text);
    let dialled = tokio::time::timeout(Duration::from_millis(300), into_raw(&peer).accept()).await;
    assert!(dialled.is_err(), "our own domain was dialled");
}

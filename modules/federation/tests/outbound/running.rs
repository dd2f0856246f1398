//! Streams on which stanzas flow: what is handed over and when, stream management, both directions.

use std::time::Duration;

use waystation_core::Kind;
use waystation_route::SessionMail;
use waystation_route::remote::{EndCause, StreamEvent};

use crate::common::*;

/// A stream by dialback to a peer with features, after TLS.
async fn plain(us: &Us, peer: &Peer, features: &str) -> (Route, Conn) {
    let route = us.open(None);
    let mut conn = peer.accept_starttls(features).await;
    conn.dialback("valid").await;
    if !features.contains(SM) {
        route.up().await;
    }
    (route, conn)
}

/// A stream with stream management that can be resumed.
async fn managed(us: &Us, peer: &Peer) -> (Route, Conn) {
    let route = us.open(None);
    let mut conn = peer.accept_external("", SM).await;
    conn.until("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    conn.send("<enabled xmlns='urn:xmpp:sm:3' id='abc' resume='true'/>").await;
    assert!(route.up().await.acknowledges);
    (route, conn)
}

fn ping_id(ping: &str) -> String {
    let start = ping.find("id='").unwrap() + 4;
    ping[start..].split('\'').next().unwrap().to_owned()
}

#[actix_rt::test]
async fn without_acknowledgements_a_ping_that_is_answered_hands_over_what_went_before() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = plain(&us, &peer, "").await;
    for number in 1..=3 {
        route.send(number);
    }
    conn.until("id='m3'><body>3</body></message>").await;
    let ping = conn.until("</iq>").await;
    assert!(ping.contains("from='here.test' to='there.test' type='get'"), "{ping}");
    assert!(ping.contains("<ping xmlns='urn:xmpp:ping'/>"), "{ping}");
    assert_eq!(route.pending(), 0, "nothing is known before the answer");
    // The answer comes on another stream of the domain: here one that goes both ways.
    let (other, mut back) = plain(&us, &peer, BIDI).await;
    let id = ping_id(&ping);
    back.send(&format!("<iq from='{THEM}' to='{US}' type='error' id='{id}'/>")).await;
    assert_eq!(route.handed().await, 3);
    // Of what came since nothing is known.
    route.send(4);
    conn.until("id='m4'><body>4</body></message>").await;
    conn.until("</iq>").await;
    assert_eq!(route.pending() + other.pending(), 0);
}

#[actix_rt::test]
async fn a_connection_that_breaks_hands_nothing_over() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = plain(&us, &peer, "").await;
    route.send(1);
    conn.until("</message>").await;
    drop(conn);
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed, "{}", end.text);
    assert!(end.resume.is_none());
}

#[actix_rt::test]
async fn a_stream_error_hands_nothing_over_and_is_told() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = plain(&us, &peer, "").await;
    route.send(1);
    conn.until("</message>").await;
    conn.send(
        "<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>\
         </stream:stream>",
    )
    .await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed);
    assert!(end.text.contains("system-shutdown"), "{}", end.text);
    assert!(conn.until_end().await.ends_with("</stream:stream>"));
}

#[actix_rt::test]
async fn the_peers_end_of_the_stream_is_answered_and_hands_over_when_it_reads_to_ours() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = plain(&us, &peer, "").await;
    route.send(1);
    conn.until("</message>").await;
    conn.send("</stream:stream>").await;
    conn.until("</stream:stream>").await;
    conn.shutdown().await;
    assert_eq!(route.handed().await, 1);
    assert_eq!(route.down().await.cause, EndCause::Ended);
    // One that goes away behind its end tag has not shown that it read.
    let (route, mut conn) = plain(&us, &peer, "").await;
    route.send(1);
    conn.until("</message>").await;
    conn.send("</stream:stream>").await;
    conn.until("</stream:stream>").await;
    conn.cut();
    assert_eq!(route.down().await.cause, EndCause::Failed);
}

#[actix_rt::test]
async fn acknowledgements_hand_over_one_by_one() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = managed(&us, &peer).await;
    for number in 1..=3 {
        route.send(number);
    }
    let sent = conn.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert!(!sent.contains("urn:xmpp:ping"), "{sent}");
    conn.send("<a xmlns='urn:xmpp:sm:3' h='2'/>").await;
    assert_eq!(route.handed().await, 2);
    conn.send("<a xmlns='urn:xmpp:sm:3' h='3'/>").await;
    assert_eq!(route.handed().await, 3);
    // Our number is asked for.
    conn.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    conn.until("<a xmlns='urn:xmpp:sm:3' h='0'/>").await;
    route.close();
    conn.end().await;
    assert_eq!(route.down().await.cause, EndCause::Ended);
}

#[actix_rt::test]
async fn an_end_in_order_without_acknowledgement_is_no_delivery_where_there_are_some() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = managed(&us, &peer).await;
    route.send(1);
    conn.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    conn.send("</stream:stream>").await;
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed);
    assert!(end.resume.is_none(), "the peer has ended it");
}

#[actix_rt::test]
async fn more_acknowledged_than_sent_ends_the_stream() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = managed(&us, &peer).await;
    conn.send("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    assert_eq!(route.down().await.cause, EndCause::Failed);
    let said = conn.until_end().await;
    assert!(said.contains("<handled-count-too-high") && said.contains("<undefined-condition"), "{said}");
}

#[actix_rt::test]
async fn a_stream_that_broke_goes_on_on_the_next_connection() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = managed(&us, &peer).await;
    for number in 1..=5 {
        route.send(number);
    }
    conn.until("id='m5'><body>5</body></message>").await;
    conn.send("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    assert_eq!(route.handed().await, 1);
    drop(conn);
    let end = route.down().await;
    assert_eq!(end.cause, EndCause::Failed);
    let route = us.open(Some(end.resume.expect("nothing to resume with")));
    // What breaks again before the answer leaves the same.
    let mut conn = peer.accept_external("", SM).await;
    conn.until("<resume xmlns='urn:xmpp:sm:3' h='0' previd='abc'/>").await;
    drop(conn);
    let end = route.down().await;
    let route = us.open(Some(end.resume.expect("lost on the way")));
    route.send(4);
    let mut conn = peer.accept_external("", SM).await;
    conn.until("<resume xmlns='urn:xmpp:sm:3' h='0' previd='abc'/>").await;
    conn.send("<resumed xmlns='urn:xmpp:sm:3' h='3' previd='abc'/>").await;
    let info = route.up().await;
    assert_eq!((info.resumed, info.acknowledges), (Some(3), true));
    let sent = conn.until("<r xmlns='urn:xmpp:sm:3'/>").await;
    assert_eq!(sent.matches("<message").count(), 1, "{sent}");
    conn.send("<a xmlns='urn:xmpp:sm:3' h='4'/>").await;
    assert_eq!(route.handed().await, 4, "the count goes on");
}

#[actix_rt::test]
async fn a_stream_that_cannot_be_resumed_begins_anew() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, conn) = managed(&us, &peer).await;
    drop(conn);
    let end = route.down().await;
    let route = us.open(end.resume);
    let mut conn = peer.accept_external("", SM).await;
    conn.until("previd='abc'/>").await;
    conn.send("<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>")
        .await;
    conn.until("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    conn.send("<failed xmlns='urn:xmpp:sm:3'/>").await;
    let info = route.up().await;
    assert_eq!((info.resumed, info.acknowledges), (None, false));
    // Without it, as with any peer that has none.
    route.send(1);
    conn.until("</message>").await;
    route.close();
    conn.end().await;
    assert_eq!(route.handed().await, 1);
}

#[actix_rt::test]
async fn m10_what_comes_back_counts_only_on_a_stream_that_goes_both_ways() {
    let authority = Authority::new();
    let (peer, nobody) = (Peer::listen(&authority).await, Peer::self_signed(&authority).await);
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let stanza =
        format!("<message from='juliet@{THEM}' to='romeo@{US}/r' type='headline'><body>1</body></message>");
    // Not asked for.
    let (route, mut conn) = plain(&us, &peer, "").await;
    conn.send(&stanza).await;
    assert!(route.down().await.text.contains("invalid-from"));
    assert!(conn.until_end().await.contains("<invalid-from "));
    // Before the proof.
    let route = us.open(None);
    let mut conn = peer.accept_starttls(BIDI).await;
    let asked = conn.until("<db:result").await;
    assert!(asked.starts_with("<bidi xmlns='urn:xmpp:bidi'/>"), "{asked}");
    conn.send(&stanza).await;
    route.down().await;
    // Of a server whose certificate does not prove the domain it is not asked for.
    let us = Us::start(&authority, &[nobody.port], |_| {}).await;
    let (route, mut conn) = plain(&us, &nobody, BIDI).await;
    conn.send(&stanza).await;
    assert!(route.down().await.text.contains("invalid-from"));
}

#[actix_rt::test]
async fn stanzas_come_back_on_a_stream_that_goes_both_ways() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (binding, _) = us.bind(&format!("romeo@{US}/r")).await;
    let (_, jid, mut inlet) = binding.start();
    let route = us.open(None);
    let mut conn = peer.accept_external(BIDI, &format!("{BIDI}{SM}")).await;
    conn.until("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    conn.send("<enabled xmlns='urn:xmpp:sm:3'/>").await;
    let info = route.up().await;
    assert!(info.bidirectional && info.acknowledges);
    conn.send(&format!(
        "<message from='juliet@{THEM}/x' to='{jid}' type='chat' id='1'><body>hi</body>\
         <stanza-id xmlns='urn:xmpp:sid:0' by='{US}' id='forged'/></message>\
         <iq from='juliet@{THEM}' to='{US}' type='get' id='2'/><r xmlns='urn:xmpp:sm:3'/>"
    ))
    .await;
    let mails = soon("the message", std::future::poll_fn(|cx| inlet.poll_take(cx))).await;
    let Some(SessionMail::Stanza(got) | SessionMail::Record(got, _)) = mails.into_iter().next() else {
        panic!("no stanza")
    };
    assert_eq!(got.kind(), Kind::Message);
    let text = String::from_utf8(got.to_bytes().to_vec()).unwrap();
    assert!(text.contains("<body>hi</body>") && !text.contains("forged"), "{text}");
    // Both count, the one that is answered with an error as well.
    conn.until("<a xmlns='urn:xmpp:sm:3' h='2'/>").await;
}

#[actix_rt::test]
async fn f3_a_stanza_that_is_not_the_pairs_ends_the_stream() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    for (attributes, condition) in [
        ("from='u@other.test' to='romeo@here.test'", "invalid-from"),
        ("from='u@sub.there.test' to='romeo@here.test'", "invalid-from"),
        ("to='romeo@here.test'", "improper-addressing"),
        ("from='u@there.test'", "improper-addressing"),
        ("from='u@there.test' to='romeo@elsewhere.test'", "host-unknown"),
        ("from='u@there.test' to='u@there.test'", "host-unknown"),
    ] {
        let (route, mut conn) = plain(&us, &peer, BIDI).await;
        conn.send(&format!("<message {attributes}><body>1</body></message>")).await;
        let end = route.down().await;
        assert!(end.text.contains(condition), "{attributes}: {}", end.text);
        let said = conn.until_end().await;
        assert!(said.contains(&format!("<{condition} ")), "{attributes}: {said}");
    }
}

#[actix_rt::test]
async fn the_xml_of_a_peer_is_held_to_the_same_limits() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| settings.limits.max_stanza_bytes = 10_000).await;
    for (xml, condition) in [
        ("<!DOCTYPE x>".to_owned(), "restricted-xml"),
        ("<message><body></message>".to_owned(), "not-well-formed"),
        ("<message><body>\u{1}".to_owned(), "not-well-formed"),
        (format!("<message><body>{}", "x".repeat(11_000)), "policy-violation"),
        ("<foo xmlns='jabber:server'/>".to_owned(), "improper-addressing"),
        (
            "<message xmlns='jabber:client' from='u@there.test' to='here.test'/>".to_owned(),
            "unsupported-stanza-type",
        ),
        ("<foo xmlns='urn:x'/>".to_owned(), "unsupported-stanza-type"),
    ] {
        let (route, mut conn) = plain(&us, &peer, BIDI).await;
        conn.send(&xml).await;
        let end = route.down().await;
        assert!(end.text.contains(condition), "{xml}: {}", end.text);
        let said = conn.until_end().await;
        assert!(said.contains(&format!("<{condition} ")), "{xml}: {said}");
    }
}

#[actix_rt::test]
async fn a_stream_that_carries_nothing_is_closed() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| settings.idle = Duration::from_secs(1)).await;
    let (route, mut conn) = plain(&us, &peer, "").await;
    conn.end().await;
    assert_eq!(route.down().await.cause, EndCause::Ended);
}

#[actix_rt::test]
async fn the_server_stops_in_order() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = plain(&us, &peer, "").await;
    route.send(1);
    conn.until("</message>").await;
    let federation = us.federation.clone();
    let draining = actix_rt::spawn(async move { us.drain.drain(PATIENCE).await });
    let said = conn.until("</stream:stream>").await;
    assert!(said.contains("<system-shutdown "), "{said}");
    conn.send("</stream:stream>").await;
    assert_eq!(route.handed().await, 1);
    let StreamEvent::Down(end) = route.event().await else { panic!("no end") };
    assert_eq!(end.cause, EndCause::Ended);
    drop(federation);
    drop(draining);
}

#[actix_rt::test]
async fn ten_thousand_stanzas_go_out_in_order_and_memory_is_the_inlets() {
    const COUNT: usize = 10_000;
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, mut conn) = managed(&us, &peer).await;
    let reading = actix_rt::spawn(async move {
        let mut seen = 0;
        while seen < COUNT {
            let message = conn.until("</message>").await;
            seen += 1;
            assert!(message.ends_with(&format!("id='m{seen}'><body>{seen}</body></message>")), "{message}");
            if seen % 100 == 0 {
                conn.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{seen}'/>")).await;
            }
        }
        conn
    });
    let mut next = 1;
    let mut handed = 0;
    while handed < COUNT as u64 {
        // A route that offers until there is no room, and again when there is.
        while next <= COUNT && route.offer(next) {
            next += 1;
        }
        if route.pending() > 0 {
            handed = route.handed().await;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    reading.await.unwrap();
}

#[actix_rt::test]
async fn a_peer_that_does_not_read_costs_its_credit_and_no_more() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |_| {}).await;
    let (route, conn) = plain(&us, &peer, "").await;
    let body = "x".repeat(60_000);
    let mut given = 0;
    // Until there is no room for a while: the socket's buffers take their share first.
    let mut full_since = std::time::Instant::now();
    while full_since.elapsed() < Duration::from_secs(2) {
        if route.offer_body(&body) {
            given += body.len();
            full_since = std::time::Instant::now();
        } else {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(given < 64 << 20, "{given} bytes were taken");
    }
    assert!(given > 1 << 20, "{given}");
    drop(conn);
    assert_eq!(route.down().await.cause, EndCause::Failed);
}

#[actix_rt::test]
async fn m3_a_domain_above_its_rate_is_read_more_slowly() {
    let authority = Authority::new();
    let peer = Peer::listen(&authority).await;
    let us = Us::start(&authority, &[peer.port], |settings| {
        (settings.inbound_rate, settings.inbound_burst) = (200_000, 100_000);
    })
    .await;
    let started = std::time::Instant::now();
    // Two streams of it share what it has: a megabyte, of which a tenth may come at once, and what is read in
    // one turn.
    let (_one, mut first) = plain(&us, &peer, &format!("{BIDI}{SM}")).await;
    let (_two, mut second) = plain(&us, &peer, &format!("{BIDI}{SM}")).await;
    for conn in [&mut first, &mut second] {
        conn.until("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
        conn.send("<enabled xmlns='urn:xmpp:sm:3'/>").await;
        for _ in 0..50 {
            conn.send(&format!(
                "<message from='juliet@{THEM}' to='romeo@{US}' type='headline'><body>{}</body></message>",
                "x".repeat(10_000)
            ))
            .await;
        }
        conn.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    }
    first.until("h='50'/>").await;
    second.until("h='50'/>").await;
    assert!(started.elapsed() >= Duration::from_millis(2_500), "{:?}", started.elapsed());
}

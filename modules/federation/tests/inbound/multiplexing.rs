//! Several pairs of domains on one stream (XEP-0220 2.6), which stanzas they let in (SECURITY F3), and stanzas
//! that go back (XEP-0288).

use std::sync::{Arc, Mutex};

use waystation_route::remote::{Pair, RemoteStreams, StreamEvent, StreamEvents, StreamMail, StreamRequest};
use waystation_runtime::{Outlet, outlet};

use crate::authority::Authority;
use crate::common::*;

/// A server that has proven a.org to us.example by dialback.
async fn proven(world: &World) -> Peer {
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid");
    peer
}

async fn world(authority: &Authority) -> World {
    World::start(|s| {
        s.domains = ["*.a.org", "a.org", "b.org"].map(|domain| server_at(domain, authority.port)).to_vec();
    })
    .await
}

#[actix_rt::test]
async fn m10_further_pairs_need_a_proof_of_their_own() {
    let mut authority = Authority::agreeing().await;
    let mut world = world(&authority).await;
    // Of a sender that is not proven, of one that is for another domain of ours, and of its subdomain.
    for (from, to, expected) in [
        ("u@b.org", "us.example", "invalid-from"),
        ("u@sub.a.org", "us.example", "invalid-from"),
        ("u@a.org", "chat.us.example", "host-unknown"),
    ] {
        let mut peer = proven(&world).await;
        peer.send(&iq(from, to)).await;
        let rest = peer.until_end().await;
        assert!(
            rest.contains(&format!("<{expected} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>")),
            "{rest}"
        );
        // What is proven for one stream is so for no other.
        let mut peer = proven(&world).await;
        let claimed = from.strip_prefix("u@").unwrap();
        peer.claim(claimed, to, "key").await;
        assert_eq!(peer.answer().await, "valid");
        peer.send(&iq(from, to)).await;
        assert_eq!(world.taken().await, (from.to_owned(), to.to_owned()));
        peer.send(&iq("u@a.org", "us.example")).await;
        assert_eq!(world.taken().await.0, "u@a.org");
    }
    world.assert_nothing_taken();
    for _ in 0..9 {
        authority.asked().await;
    }
    authority.assert_not_asked();
}

#[actix_rt::test]
async fn m10_a_further_pair_that_is_refused_costs_the_others_nothing() {
    let authority = Authority::start(|question| {
        Some(question.answered(if question.to == "a.org" { "valid" } else { "invalid" }))
    })
    .await;
    let mut world = world(&authority).await;
    let mut peer = proven(&world).await;
    peer.claim("b.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "forbidden");
    peer.send("<db:result type='valid' from='b.org' to='us.example'/>").await;
    peer.send("<db:verify type='valid' from='b.org' to='us.example' id='x'/>").await;
    peer.send(&iq("u@a.org", "us.example")).await;
    assert_eq!(world.taken().await.0, "u@a.org");
    peer.send(&iq("u@b.org", "us.example")).await;
    assert!(peer.until_end().await.contains("<invalid-from "));
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn m10_the_pairs_of_a_stream_are_bounded() {
    let authority = Authority::agreeing().await;
    let world = World::start(|s| {
        s.domains = ["*.a.org", "a.org"].map(|domain| server_at(domain, authority.port)).to_vec();
        s.pairs_per_stream = 3;
    })
    .await;
    let mut peer = proven(&world).await;
    for (n, expected) in ["valid", "valid", "resource-constraint", "resource-constraint"].iter().enumerate() {
        peer.claim(&format!("{n}.a.org"), "us.example", "key").await;
        assert_eq!(peer.answer().await, *expected, "{n}");
    }
}

#[actix_rt::test]
async fn m10_verifications_are_answered_while_stanzas_flow() {
    let authority = Authority::agreeing().await;
    let mut world = world(&authority).await;
    let mut peer = proven(&world).await;
    peer.send("<db:verify from='c.org' to='us.example' id='x'>key</db:verify>").await;
    assert_eq!(verdict(&peer.until("</db:verify>").await), "invalid");
    peer.send(&iq("u@a.org", "us.example")).await;
    world.taken().await;
}

#[actix_rt::test]
async fn f3_addresses_that_are_missing_or_wrong() {
    let authority = Authority::agreeing().await;
    let mut world = world(&authority).await;
    for (stanza, expected) in [
        ("<message to='v@us.example'/>", "improper-addressing"),
        ("<message from='u@a.org'/>", "improper-addressing"),
        ("<presence/>", "improper-addressing"),
        ("<message from='' to='v@us.example'/>", "improper-addressing"),
        ("<message from='@a.org' to='v@us.example'/>", "improper-addressing"),
        ("<iq type='get' id='1' from='u@a.org' to=''><seen xmlns='urn:test'/></iq>", "improper-addressing"),
        ("<message from='u@us.example' to='v@us.example'/>", "invalid-from"),
        ("<message from='u@sub.a.org' to='v@us.example'/>", "invalid-from"),
        ("<message from='u@a.org' to='localhost'/>", "host-unknown"),
        ("<message from='u@a.org' to='v@other.example'/>", "host-unknown"),
        ("<message from='u@a.org' to='u@a.org'/>", "host-unknown"),
        ("<other from='u@a.org' to='us.example'/>", "unsupported-stanza-type"),
        ("<message xmlns='jabber:client' from='u@a.org' to='us.example'/>", "unsupported-stanza-type"),
    ] {
        let mut peer = proven(&world).await;
        peer.send(stanza).await;
        let rest = peer.until_end().await;
        assert!(
            rest.contains(&format!("<{expected} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>")),
            "{stanza} {rest}"
        );
    }
    world.assert_nothing_taken();
}

type Told = Arc<Mutex<Vec<String>>>;

/// Asks for a stream for the pair as its route does.
fn request(remote: &str) -> (StreamRequest, Outlet<StreamMail>, Told) {
    let (mail, inlet) = outlet(1 << 20, 100);
    let told = Told::default();
    let events = StreamEvents::new({
        let told = told.clone();
        move |event| {
            told.lock().unwrap().push(match event {
                StreamEvent::Up(info) => format!("up {}", info.bidirectional),
                StreamEvent::Handed(count) => format!("handed {count}"),
                StreamEvent::Down(end) => format!("down {:?}", end.cause),
            });
        }
    });
    let pair = Arc::new(Pair::new("us.example", remote));
    (StreamRequest { pair, inlet, events, resume: None }, mail, told)
}

async fn wait_for(told: &Told, expected: &str) {
    let found = async {
        while !told.lock().unwrap().iter().any(|event| event.starts_with(expected)) {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, found).await;
    found.unwrap_or_else(|_| panic!("{expected}: {:?}", told.lock().unwrap()));
}

#[actix_rt::test]
async fn m10_stanzas_go_back_only_for_pairs_that_are_proven_and_wanted() {
    let authority = Authority::agreeing().await;
    let world = world(&authority).await;
    // Not asked for: nothing comes back, and the domain's server is dialled instead.
    let mut peer = proven(&world).await;
    let (asked, _mail, told) = request("a.org");
    world.federation.open(asked);
    wait_for(&told, "down").await;
    peer.send(&iq("u@a.org", "us.example")).await;

    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    peer.send("<bidi xmlns='urn:xmpp:bidi'/>").await;
    // Asked for, and not proven yet.
    let (asked, _mail, told) = request("a.org");
    world.federation.open(asked);
    wait_for(&told, "down").await;
    peer.claim("a.org", "us.example", "key").await;
    let answer = peer.until("</db:result>").await;
    assert!(!answer.contains("<message"), "{answer}");
    assert_eq!(verdict(&answer), "valid");
    // Proven: for that domain.
    let (asked, mail, told) = request("a.org");
    world.federation.open(asked);
    wait_for(&told, "up true").await;
    assert!(mail.offer(StreamMail::Stanza(message("u@a.org"))).is_accepted());
    let text = peer.until("</message>").await;
    assert!(text.contains("to='u@a.org'") && text.contains("<body>back</body>"), "{text}");
    // And for no other.
    let (asked, _other, other) = request("b.org");
    world.federation.open(asked);
    wait_for(&other, "down").await;
    // Until that one is proven too.
    peer.claim("b.org", "us.example", "key").await;
    let answer = peer.until("</db:result>").await;
    assert_eq!(verdict(&answer), "valid");
    let (asked, mail, other) = request("b.org");
    world.federation.open(asked);
    wait_for(&other, "up true").await;
    assert!(mail.offer(StreamMail::Stanza(message("u@b.org"))).is_accepted());
    assert!(peer.until("</message>").await.contains("to='u@b.org'"));
    drop(peer);
    wait_for(&told, "down").await;
    wait_for(&other, "down").await;
}

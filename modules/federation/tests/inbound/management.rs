//! Stream management on streams that other servers open (XEP-0198, SECURITY M9), and what routes learn of such
//! streams.

use std::time::{Duration, SystemTime};

use crate::authority::Authority;
use crate::common::*;

const ENABLE: &str = "<enable xmlns='urn:xmpp:sm:3' resume='true'/>";

/// A server that has proven its domain by certificate.
async fn proven(world: &World, domain: &str) -> Peer {
    let mut peer = world.secured(domain, Some(world.ca.issue(&[domain]))).await;
    peer.features().await;
    peer.claim(domain, "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid");
    peer
}

/// The same with acknowledgements, and the id to resume it with.
async fn managed(world: &World, domain: &str) -> (Peer, String) {
    let mut peer = proven(world, domain).await;
    peer.send(ENABLE).await;
    let enabled = peer.until("/>").await;
    assert!(enabled.starts_with("<enabled xmlns='urn:xmpp:sm:3'"), "{enabled}");
    assert_eq!((attribute(&enabled, "resume"), attribute(&enabled, "max")), ("true".into(), "600".into()));
    let id = attribute(&enabled, "id");
    assert!(id.len() >= 22, "at least 128 bits: {id}");
    (peer, id)
}

/// Sends iqs, and waits until they are acknowledged as that many in all.
async fn exchange(world: &mut World, peer: &mut Peer, from: &str, count: usize, h: u32) {
    for _ in 0..count {
        peer.send(&iq(from, "us.example")).await;
        world.taken().await;
    }
    peer.send("<r xmlns='urn:xmpp:sm:3'/>").await;
    peer.until(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>")).await;
}

fn resume(id: &str, h: u32) -> String {
    format!("<resume xmlns='urn:xmpp:sm:3' previd='{id}' h='{h}'/>")
}

const NOT_FOUND: &str = "<failed xmlns='urn:xmpp:sm:3'>\
     <item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";

#[actix_rt::test]
async fn m9_a_stream_that_broke_goes_on_where_it_was() {
    let mut world = World::start(|_| ()).await;
    let (mut peer, id) = managed(&world, "a.org").await;
    exchange(&mut world, &mut peer, "u@a.org", 3, 3).await;
    drop(peer);
    let mut peer = proven(&world, "a.org").await;
    peer.send(&resume(&id, 0)).await;
    let resumed = peer.until("/>").await;
    assert!(resumed.starts_with("<resumed xmlns='urn:xmpp:sm:3'"), "{resumed}");
    assert_eq!((attribute(&resumed, "previd"), attribute(&resumed, "h")), (id.clone(), "3".into()));
    exchange(&mut world, &mut peer, "u@a.org", 2, 5).await;
    // And once more.
    drop(peer);
    let mut peer = proven(&world, "a.org").await;
    peer.send(&resume(&id, 0)).await;
    assert_eq!(attribute(&peer.until("/>").await, "h"), "5");
}

#[actix_rt::test]
async fn m9_resume_by_another_domain_is_item_not_found() {
    let mut world = World::start(|_| ()).await;
    let (mut victim, alive) = managed(&world, "a.org").await;
    let (mut broken, kept) = managed(&world, "a.org").await;
    exchange(&mut world, &mut broken, "u@a.org", 1, 1).await;
    drop(broken);
    let mut evil = proven(&world, "b.org").await;
    // To another of ours it is another pair.
    let mut other = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
    other.features().await;
    other.claim("a.org", "chat.us.example", "key").await;
    assert_eq!(other.answer().await, "valid");
    for peer in [&mut evil, &mut other] {
        for id in [&*alive, &*kept, "unknown", ""] {
            peer.send(&resume(id, 0)).await;
            peer.until(NOT_FOUND).await;
        }
    }
    exchange(&mut world, &mut victim, "u@a.org", 1, 1).await;
    let mut peer = proven(&world, "a.org").await;
    peer.send(&resume(&kept, 0)).await;
    assert_eq!(attribute(&peer.until("/>").await, "h"), "1", "it is still there for its owner");
}

#[actix_rt::test]
async fn m9_a_stream_that_is_still_there_makes_way_and_one_of_two_wins() {
    let mut world = World::start(|_| ()).await;
    let (mut old, id) = managed(&world, "a.org").await;
    exchange(&mut world, &mut old, "u@a.org", 2, 2).await;
    let (mut one, mut two) = (proven(&world, "a.org").await, proven(&world, "a.org").await);
    one.send(&resume(&id, 0)).await;
    two.send(&resume(&id, 0)).await;
    assert!(old.until_end().await.contains("<conflict "));
    let answers = [one.until(">").await, two.until(">").await];
    let resumed = answers.iter().filter(|answer| answer.starts_with("<resumed ")).count();
    // Whoever comes second may take it from the first, which then is told as the old one was.
    assert!(resumed >= 1, "{answers:?}");
    for answer in answers {
        assert!(
            answer.starts_with("<resumed ") && attribute(&answer, "h") == "2"
                || answer.starts_with("<failed ")
        );
    }
}

#[actix_rt::test]
async fn m9_what_is_asked_out_of_turn_or_counted_wrong() {
    let mut world = World::start(|_| ()).await;
    let unexpected = "<failed xmlns='urn:xmpp:sm:3'>\
         <unexpected-request xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>";
    let mut peer = proven(&world, "a.org").await;
    for xml in ["<a xmlns='urn:xmpp:sm:3' h='0'/>", "<r xmlns='urn:xmpp:sm:3'/>"] {
        peer.send(xml).await;
        peer.until(unexpected).await;
    }
    let (mut peer, id) = managed(&world, "a.org").await;
    for xml in [ENABLE, &resume(&id, 0)] {
        peer.send(xml).await;
        peer.until(unexpected).await;
    }
    exchange(&mut world, &mut peer, "u@a.org", 1, 1).await;
    for (h, expected) in [
        ("1", "<handled-count-too-high xmlns='urn:xmpp:sm:3' h='1' send-count='0'/>"),
        ("4294967295", "<handled-count-too-high xmlns='urn:xmpp:sm:3' h='4294967295' send-count='0'/>"),
        ("-1", "<bad-format "),
        ("1e3", "<bad-format "),
        ("", "<bad-format "),
        ("4294967296", "<bad-format "),
    ] {
        let (mut peer, _) = managed(&world, "a.org").await;
        peer.send(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>")).await;
        let rest = peer.until_end().await;
        assert!(rest.contains(expected), "{h}: {rest}");
    }
}

/// Dialback proves as much as a certificate; a stream that ended in order leaves nothing.
#[actix_rt::test]
async fn m9_after_dialback_and_after_an_end_in_order() {
    let authority = Authority::agreeing().await;
    let mut world = World::start(|s| s.domains = vec![server_at("a.org", authority.port)]).await;
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid");
    peer.send(ENABLE).await;
    let id = attribute(&peer.until("/>").await, "id");
    exchange(&mut world, &mut peer, "u@a.org", 1, 1).await;
    peer.send("</stream:stream>").await;
    assert!(peer.until_end().await.ends_with("</stream:stream>"));
    let mut peer = proven(&world, "a.org").await;
    peer.send(&resume(&id, 0)).await;
    peer.until(NOT_FOUND).await;
}

/// What waits for a domain goes out as soon as the domain's server comes to us, on the very stream if it may.
#[actix_rt::test]
async fn a_domain_that_proves_itself_gets_what_waits_for_it() {
    // Nobody listens there.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let world = World::start(|s| s.domains = vec![server_at("a.org", closed)]).await;
    world.router.set_remote_streams(world.federation.clone());
    world.router.route_own(message("u@a.org"));
    // After some attempts the next one is far away.
    let waits = async {
        loop {
            let known = world.router.domain_info("a.org").await;
            let next = known.iter().find_map(|domain| domain.next_try);
            if let Some(next) = next.filter(|next| *next > SystemTime::now() + Duration::from_secs(12)) {
                return next;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let next = tokio::time::timeout(PATIENCE, waits).await.expect("the route does not wait");
    let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
    peer.features().await;
    peer.send("<bidi xmlns='urn:xmpp:bidi'/>").await;
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid");
    let text = peer.until("</message>").await;
    assert!(text.contains("to='u@a.org'") && text.contains("<body>back</body>"), "{text}");
    assert!(SystemTime::now() < next, "it went out when it would have gone anyway");
}

//! Proof by certificate: SASL EXTERNAL (XEP-0178 3) and dialback that does not dial back (XEP-0344).

use std::time::Duration;

use base64::Engine;
use waystation_federation::DomainPolicy;

use crate::authority::Authority;
use crate::common::*;

fn auth(identity: &str) -> String {
    let identity = match identity {
        "=" => "=".to_owned(),
        identity => base64::engine::general_purpose::STANDARD.encode(identity),
    };
    format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'>{identity}</auth>")
}

const OFFER: &str =
    "<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>EXTERNAL</mechanism></mechanisms>";
const SUCCESS: &str = "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";

#[actix_rt::test]
async fn a_certificate_for_the_domain_lets_its_stanzas_in() {
    let mut world = World::start(|_| ()).await;
    for identity in ["=", "a.org", "A.ORG"] {
        let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
        let (id, features) = peer.features().await;
        assert!(features.contains(OFFER), "{features}");
        assert!(features.contains("<bidi xmlns='urn:xmpp:features:bidi'/>"), "{features}");
        peer.send(&auth(identity)).await;
        peer.until(SUCCESS).await;
        peer.open("a.org", "us.example").await;
        let (again, features) = peer.features().await;
        assert_ne!(id, again, "a new stream has a new id");
        assert!(!features.contains("EXTERNAL") && !features.contains("starttls"), "{features}");
        assert!(
            features.contains("<sm xmlns='urn:xmpp:sm:3'/>") && features.contains("<errors/>"),
            "{features}"
        );
        peer.send(&iq("u@a.org", "us.example")).await;
        assert_eq!(world.taken().await, ("u@a.org".into(), "us.example".into()));
    }
}

#[actix_rt::test]
async fn the_same_over_direct_tls_and_with_the_identity_asked_for() {
    let mut world = World::start(|_| ()).await;
    let key = world.ca.issue(&["a.org"]);
    let mut peer = Peer::connect_tls_as(world.direct, "us.example", &[b"xmpp-server"], key).await;
    peer.open("a.org", "us.example").await;
    let (_, features) = peer.features().await;
    assert!(features.contains(OFFER) && !features.contains("starttls"), "{features}");
    peer.send("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='EXTERNAL'/>").await;
    peer.until("<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").await;
    peer.send("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>YS5vcmc=</response>").await;
    peer.until(SUCCESS).await;
    peer.open("a.org", "us.example").await;
    peer.features().await;
    peer.send(&iq("u@a.org", "us.example")).await;
    world.taken().await;
}

#[actix_rt::test]
async fn m10_external_as_another_domain() {
    let mut world = World::start(|_| ()).await;
    // The header names a domain that the certificate does not.
    let mut peer = world.secured("victim.org", Some(world.ca.issue(&["a.org"]))).await;
    let (_, features) = peer.features().await;
    assert!(!features.contains("EXTERNAL"), "{features}");
    for identity in ["=", "victim.org", "a.org"] {
        peer.send(&auth(identity)).await;
        peer.until("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><not-authorized/></failure>").await;
    }
    peer.send(&auth("=")).await;
    assert!(peer.until_end().await.contains("<policy-violation "), "too many attempts");
    // The certificate proves the header's domain, and the identity is another.
    let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
    peer.features().await;
    peer.send(&auth("victim.org")).await;
    peer.until("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><invalid-authzid/></failure>").await;
    peer.send(&iq("u@a.org", "us.example")).await;
    assert!(peer.until_end().await.contains("<not-authorized "));
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn m10_certificates_that_prove_nothing() {
    let world = World::start(|_| ()).await;
    let stranger = Ca::new();
    for (from, key) in [
        ("a.org", None),
        ("a.org", Some(stranger.issue(&["a.org"]))),
        ("a.org", Some(world.ca.issue(&["b.org"]))),
        ("sub.a.org", Some(world.ca.issue(&["a.org"]))),
        ("a.b.a.org", Some(world.ca.issue(&["*.a.org"]))),
    ] {
        let named = key.is_some();
        let mut peer = world.secured(from, key).await;
        let (_, features) = peer.features().await;
        assert!(!features.contains("EXTERNAL"), "{from} {named}: {features}");
        peer.send(&auth("=")).await;
        peer.until("<not-authorized/></failure>").await;
    }
    // Nobody is who does not say so.
    let mut peer = Peer::connect(world.starttls).await;
    peer.send(&header("to='us.example' version='1.0'")).await;
    peer.features().await;
    let mut peer = peer.start_tls("us.example", Some(world.ca.issue(&["a.org"]))).await;
    peer.send(&header("to='us.example' version='1.0'")).await;
    assert!(!peer.features().await.1.contains("EXTERNAL"));
    peer.send(&auth("a.org")).await;
    peer.until("<not-authorized/></failure>").await;
    // Without TLS there is no certificate.
    let mut peer = Peer::connect(world.starttls).await;
    peer.open("a.org", "us.example").await;
    peer.features().await;
    peer.send(&auth("=")).await;
    peer.until("<encryption-required/></failure>").await;
}

/// SECURITY X14.
#[actix_rt::test]
async fn x14_the_domains_stay_after_authentication() {
    let mut world = World::start(|_| ()).await;
    for (from, to) in [
        ("b.org", "us.example"),
        ("a.org", "chat.us.example"),
        ("sub.a.org", "us.example"),
        ("us.example", "us.example"),
    ] {
        let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org", "b.org", "sub.a.org"]))).await;
        peer.features().await;
        peer.send(&auth("=")).await;
        peer.until(SUCCESS).await;
        peer.open(from, to).await;
        let rest = peer.until_end().await;
        assert!(rest.contains("<not-authorized "), "{from} {to}: {rest}");
    }
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn dialback_without_dialling_back() {
    let mut authority = Authority::start(|question| Some(question.answered("invalid"))).await;
    let mut world = World::start(|s| {
        s.domains = vec![
            DomainPolicy { require_certificate: Some(true), ..server_at("a.org", authority.port) },
            server_at("b.org", authority.port),
        ];
    })
    .await;
    let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org", "*.a.org"]))).await;
    peer.features().await;
    peer.claim("a.org", "us.example", "whatever").await;
    assert_eq!(peer.answer().await, "valid");
    peer.claim("sub.a.org", "chat.us.example", "whatever").await;
    assert_eq!(peer.answer().await, "valid");
    authority.assert_not_asked();
    peer.send(&iq("u@sub.a.org", "chat.us.example")).await;
    assert_eq!(world.taken().await.0, "u@sub.a.org");
    // What the certificate does not name has to be asked for, and costs the others nothing.
    peer.claim("b.org", "us.example", "whatever").await;
    assert_eq!(peer.answer().await, "forbidden");
    authority.asked().await;
    peer.send(&iq("u@a.org", "us.example")).await;
    world.taken().await;
}

/// What was asked on the stream before authentication is not answered on the one after it.
#[actix_rt::test]
async fn m10_claims_end_with_their_stream() {
    let (release, gate) = std::sync::mpsc::sync_channel::<()>(1);
    let gate = std::rc::Rc::new(gate);
    let mut authority = Authority::start(move |question| {
        // Answers only once the stream has begun anew.
        gate.try_recv().is_ok().then(|| question.answered("valid"))
    })
    .await;
    let mut world = World::start(|s| {
        s.domains = vec![server_at("b.org", authority.port)];
        s.dialback_timeout = Duration::from_secs(2);
    })
    .await;
    let mut peer = world.secured("a.org", Some(world.ca.issue(&["a.org"]))).await;
    peer.features().await;
    peer.claim("b.org", "us.example", "key").await;
    authority.asked().await;
    peer.send(&auth("=")).await;
    let text = peer.until(SUCCESS).await;
    assert!(!text.contains("db:result"), "{text}");
    peer.open("a.org", "us.example").await;
    peer.features().await;
    release.send(()).unwrap();
    peer.claim("b.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid", "the question of this stream, and the only answer");
    let asked = authority.asked().await;
    assert!(!asked.id.is_empty());
    peer.send(&iq("u@b.org", "us.example")).await;
    world.taken().await;
}

#[actix_rt::test]
async fn t1_what_comes_behind_starttls_is_never_read_as_xmpp() {
    let authority = Authority::agreeing().await;
    let mut world = World::start(|s| s.domains = vec![server_at("a.org", authority.port)]).await;
    let mut peer = Peer::connect(world.starttls).await;
    peer.open("a.org", "us.example").await;
    peer.features().await;
    peer.send(&format!(
        "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><db:result from='a.org' to='us.example'>key\
         </db:result>{}",
        iq("u@a.org", "us.example")
    ))
    .await;
    let rest = peer.until_end_lossy().await;
    assert!(!rest.contains("db:result") && !rest.contains("stream:error"), "{rest}");
    world.assert_nothing_taken();
}

/// A restart forgets what was asked for before TLS (SECURITY T2, seen from the other side).
#[actix_rt::test]
async fn m10_a_claim_before_tls_is_not_answered_after_it() {
    let mut authority = Authority::start(|_| None).await;
    let world = World::start(|s| {
        s.require_tls = false;
        s.domains = vec![server_at("a.org", authority.port)];
        s.dialback_timeout = Duration::from_secs(1);
    })
    .await;
    let mut peer = Peer::connect(world.starttls).await;
    peer.open("a.org", "us.example").await;
    let (before, _) = peer.features().await;
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(authority.asked().await.id, before);
    let mut peer = peer.start_tls("us.example", None).await;
    peer.open("a.org", "us.example").await;
    let (after, _) = peer.features().await;
    assert_ne!(before, after);
    peer.claim("a.org", "us.example", "key").await;
    // Not refused as one that waits already.
    assert_eq!(peer.answer().await, "remote-server-timeout");
    assert_eq!(authority.asked().await.id, after);
}

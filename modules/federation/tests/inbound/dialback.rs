//! Dialback on one stream (XEP-0220, SECURITY M10), with the server as the receiving and as the authoritative
//! one.

use std::time::Duration;

use waystation_federation::{DomainPolicy, Settings};

use crate::authority::Authority;
use crate::common::*;

#[actix_rt::test]
async fn a_key_that_the_domain_has_made_lets_its_stanzas_in() {
    let mut authority = Authority::agreeing().await;
    let mut world = World::start(|s| s.domains = vec![server_at("a.org", authority.port)]).await;
    let mut peer = world.secured("a.org", None).await;
    let (id, features) = peer.features().await;
    assert!(
        features.contains("<dialback xmlns='urn:xmpp:features:dialback'><errors/></dialback>"),
        "{features}"
    );
    assert!(!features.contains("EXTERNAL"), "{features}");
    // As XEP-0220 prints it, with white space around the key.
    peer.claim("A.org", "us.example", "\n  0123456789abcdef\n").await;
    assert_eq!(peer.answer().await, "valid");
    let asked = authority.asked().await;
    assert_eq!((asked.from.as_str(), asked.to.as_str()), ("us.example", "a.org"));
    assert_eq!((asked.id, asked.key.as_str()), (id, "0123456789abcdef"));
    peer.send(&iq("u@a.org", "us.example")).await;
    assert_eq!(world.taken().await, ("u@a.org".into(), "us.example".into()));
    // It is not verified anew.
    peer.claim("a.org", "us.example", "another").await;
    assert_eq!(peer.answer().await, "valid");
    authority.assert_not_asked();
}

#[actix_rt::test]
async fn m10_a_key_that_the_domain_has_not_made_ends_the_stream() {
    let authority = Authority::start(|question| Some(question.answered("invalid"))).await;
    let mut world = World::start(|s| s.domains = vec![server_at("a.org", authority.port)]).await;
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    peer.claim("a.org", "us.example", "wrong").await;
    peer.send(&iq("u@a.org", "us.example")).await;
    // Sent before the answer: it is over anyway.
    let rest = peer.until_end().await;
    assert!(rest.contains("not-authorized") || rest.contains("type='invalid'"), "{rest}");
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    peer.claim("a.org", "us.example", "wrong").await;
    assert_eq!(peer.answer().await, "invalid");
    assert_eq!(peer.until_end().await, "</stream:stream>");
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn m10_a_stanza_before_the_proof_ends_the_stream() {
    let authority = Authority::start(|_| None).await;
    let mut world = World::start(|s| s.domains = vec![server_at("a.org", authority.port)]).await;
    for early in [
        iq("u@a.org", "us.example"),
        "<message from='u@a.org' to='v@us.example'/>".into(),
        "<presence from='u@a.org' to='v@us.example'/>".into(),
    ] {
        let mut peer = world.secured("a.org", None).await;
        peer.features().await;
        peer.claim("a.org", "us.example", "key").await;
        peer.send(&early).await;
        let rest = peer.until_end().await;
        assert!(rest.contains("<not-authorized xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>"), "{rest}");
    }
    world.assert_nothing_taken();
}

/// CVE-2012-3525.
#[actix_rt::test]
async fn m10_answers_that_nobody_asked_for_change_nothing() {
    let mut authority = Authority::start(|_| None).await;
    let mut world = World::start(|s| s.domains = vec![server_at("victim.org", authority.port)]).await;
    let mut peer = world.secured("victim.org", None).await;
    let (id, _) = peer.features().await;
    let answers = [
        "<db:result type='valid' from='victim.org' to='us.example'/>".to_owned(),
        "<db:result type='valid' from='us.example' to='victim.org'/>".to_owned(),
        format!("<db:verify type='valid' from='victim.org' to='us.example' id='{id}'/>"),
        format!("<db:verify type='valid' from='us.example' to='victim.org' id='{id}'/>"),
    ];
    for answer in &answers {
        peer.send(answer).await;
    }
    // Nor while there is a claim that waits, which they would fit.
    peer.claim("victim.org", "us.example", "key").await;
    assert_eq!(authority.asked().await.id, id);
    for answer in &answers {
        peer.send(answer).await;
    }
    peer.send(&iq("u@victim.org", "us.example")).await;
    let rest = peer.until_end().await;
    assert!(rest.contains("<not-authorized "), "{rest}");
    assert!(!rest.contains("type='valid'"), "{rest}");
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn m10_an_answer_to_another_question_is_none() {
    for wrong in [
        "<db:verify from='victim.org' to='us.example' id='other' type='valid'/>",
        "<db:verify from='evil.org' to='us.example' id='ID' type='valid'/>",
        "<db:verify from='victim.org' to='chat.us.example' id='ID' type='valid'/>",
        "<db:verify from='us.example' to='victim.org' id='ID' type='valid'/>",
        "<db:result from='victim.org' to='us.example' type='valid'/>",
        "<db:verify from='victim.org' to='us.example' id='ID'>key</db:verify>",
    ] {
        let authority = Authority::start(move |question| Some(wrong.replace("ID", &question.id))).await;
        let world = World::start(|s| {
            s.domains = vec![server_at("victim.org", authority.port)];
            s.dialback_timeout = Duration::from_secs(2);
        })
        .await;
        let mut peer = world.secured("victim.org", None).await;
        peer.features().await;
        peer.claim("victim.org", "us.example", "key").await;
        assert_eq!(peer.answer().await, "remote-server-timeout", "{wrong}");
    }
}

#[actix_rt::test]
async fn m10_an_authoritative_server_that_hangs_is_waited_for_only_so_long() {
    assert_eq!(Settings::default().dialback_timeout, Duration::from_secs(10));
    let authority = Authority::start(|_| None).await;
    // One that does not even speak.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let world = World::start(|s| {
        s.domains =
            vec![server_at("a.org", authority.port), server_at("b.org", mute.local_addr().unwrap().port())];
        s.dialback_timeout = Duration::from_secs(1);
    })
    .await;
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    for domain in ["a.org", "b.org"] {
        peer.claim(domain, "us.example", "key").await;
        let answer = peer.until("</db:result>").await;
        assert_eq!(verdict(&answer), "remote-server-timeout");
        assert_eq!(
            (attribute(&answer, "from"), attribute(&answer, "to")),
            ("us.example".into(), domain.into())
        );
        assert!(answer.contains("<error type='wait'>"), "{answer}");
    }
}

#[actix_rt::test]
async fn what_is_wrong_with_a_claim_is_said_and_does_not_end_the_stream() {
    let gone = Authority::start(|question| Some(question.refused("item-not-found"))).await;
    let unwilling = Authority::start(|question| Some(question.refused("policy-violation"))).await;
    let unknown = Authority::start(|_| {
        Some(
            "<stream:error><host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>".into(),
        )
    })
    .await;
    let closing = Authority::start(|_| Some("</stream:stream>".into())).await;
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let good = Authority::agreeing().await;
    let mut world = World::start(|s| {
        s.domains = vec![
            server_at("gone.org", gone.port),
            server_at("unwilling.org", unwilling.port),
            server_at("unknown.org", unknown.port),
            server_at("closing.org", closing.port),
            server_at("closed.org", closed),
            server_at("a.org", good.port),
            DomainPolicy { require_certificate: Some(true), ..server_at("strict.org", good.port) },
        ];
        s.deny = vec!["denied.org".into()];
    })
    .await;
    let mut peer = world.secured("a.org", None).await;
    peer.features().await;
    for (from, to, expected) in [
        ("a.org", "nobody.example", "item-not-found"),
        ("us.example", "us.example", "not-acceptable"),
        ("chat.us.example", "us.example", "not-acceptable"),
        ("denied.org", "us.example", "policy-violation"),
        ("strict.org", "us.example", "not-authorized"),
        ("gone.org", "us.example", "remote-server-not-found"),
        ("unknown.org", "us.example", "remote-server-not-found"),
        ("unwilling.org", "us.example", "remote-server-timeout"),
        ("closing.org", "us.example", "remote-server-timeout"),
        ("closed.org", "us.example", "remote-server-timeout"),
    ] {
        peer.claim(from, to, "key").await;
        let answer = peer.until("</db:result>").await;
        assert_eq!(verdict(&answer), expected, "{from} {to}");
        assert_eq!((attribute(&answer, "from"), attribute(&answer, "to")), (to.to_owned(), from.to_owned()));
    }
    // The stream is as good as before.
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid");
    peer.send(&iq("u@a.org", "us.example")).await;
    world.taken().await;
}

#[actix_rt::test]
async fn m10_dialback_waits_for_tls_where_that_is_required() {
    let mut authority = Authority::agreeing().await;
    let mut world = World::start(|s| s.domains = vec![server_at("a.org", authority.port)]).await;
    let mut peer = Peer::connect(world.starttls).await;
    peer.open("a.org", "us.example").await;
    let (_, features) = peer.features().await;
    let only = "<stream:features><starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
                </stream:features>";
    assert_eq!(features, only);
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "policy-violation");
    peer.send("<db:verify from='a.org' to='us.example' id='x'>key</db:verify>").await;
    assert_eq!(verdict(&peer.until("</db:verify>").await), "policy-violation");
    // Nor does naming another domain in the header help.
    peer.send(&iq("u@a.org", "us.example")).await;
    assert!(peer.until_end().await.contains("<not-authorized "));
    authority.assert_not_asked();
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn without_tls_where_that_is_allowed() {
    let authority = Authority::agreeing().await;
    let mut world = World::start(|s| {
        s.domains = vec![
            DomainPolicy { require_tls: Some(false), ..server_at("plain.org", authority.port) },
            server_at("a.org", authority.port),
        ];
    })
    .await;
    let mut peer = Peer::connect(world.starttls).await;
    peer.open("plain.org", "us.example").await;
    let (_, features) = peer.features().await;
    assert!(features.contains("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'></starttls>"), "{features}");
    assert!(features.contains("<errors/>"), "{features}");
    peer.claim("a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "policy-violation", "that domain's own policy counts");
    peer.claim("plain.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "valid");
    peer.send(&iq("u@plain.org", "us.example")).await;
    world.taken().await;
}

#[actix_rt::test]
async fn m10_at_most_ten_claims_wait_on_a_stream() {
    let mut authority = Authority::start(|_| None).await;
    let world = World::start(|s| s.domains = vec![server_at("*.a.org", authority.port)]).await;
    let mut peer = world.secured("0.a.org", None).await;
    peer.features().await;
    for n in 0..1_000 {
        peer.claim(&format!("{n}.a.org"), "us.example", "key").await;
    }
    for n in 10..1_000 {
        let answer = peer.until("</db:result>").await;
        assert_eq!(verdict(&answer), "resource-constraint");
        assert_eq!(attribute(&answer, "to"), format!("{n}.a.org"));
    }
    for _ in 0..10 {
        authority.asked().await;
    }
    authority.assert_not_asked();
    // One that is there already is not asked twice.
    peer.claim("0.a.org", "us.example", "key").await;
    assert_eq!(peer.answer().await, "resource-constraint");
}

#[actix_rt::test]
async fn as_the_authoritative_server_it_answers_anyone_from_the_key_alone() {
    let mut world = World::start(|_| ()).await;
    // From a server that says nothing of who it is.
    let mut peer = Peer::connect(world.starttls).await;
    peer.send(&header("to='us.example' version='1.0'")).await;
    peer.until("</stream:features>").await;
    let mut peer = peer.start_tls("us.example", None).await;
    peer.send(&header("to='us.example' version='1.0'")).await;
    peer.features().await;
    for (to, expected) in
        [("us.example", "invalid"), ("chat.us.example", "invalid"), ("nobody.example", "item-not-found")]
    {
        peer.send(&format!("<db:verify from='a.org' to='{to}' id='417GAF25'>{}</db:verify>", "0".repeat(64)))
            .await;
        let answer = peer.until("</db:verify>").await;
        assert_eq!(verdict(&answer), expected);
        assert_eq!(
            [attribute(&answer, "from"), attribute(&answer, "to"), attribute(&answer, "id")],
            [to, "a.org", "417GAF25"]
        );
    }
    peer.send(&iq("u@a.org", "us.example")).await;
    assert!(peer.until_end().await.contains("<not-authorized "));
    world.assert_nothing_taken();
}

#[actix_rt::test]
async fn what_is_no_dialback_ends_the_stream() {
    let world = World::start(|_| ()).await;
    for (xml, expected) in [
        ("<db:result to='us.example'>key</db:result>", "improper-addressing"),
        ("<db:result from='a.org'>key</db:result>", "improper-addressing"),
        ("<db:result from='u@a.org' to='us.example'>key</db:result>", "improper-addressing"),
        ("<db:result from='a.org' to='us.example'/>", "bad-format"),
        ("<db:verify from='a.org' to='us.example'>key</db:verify>", "bad-format"),
        ("<db:other from='a.org' to='us.example'>key</db:other>", "unsupported-stanza-type"),
        ("<other xmlns='urn:other'/>", "unsupported-stanza-type"),
    ] {
        let mut peer = world.secured("a.org", None).await;
        peer.features().await;
        peer.send(xml).await;
        let rest = peer.until_end().await;
        assert!(
            rest.contains(&format!("<{expected} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>")),
            "{xml} {rest}"
        );
        assert!(rest.ends_with("</stream:stream>"), "{rest}");
    }
}

//! SECURITY.md section 4 and M13, M16 for client streams.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Client, Login};
use waystation_security::{World, condition};

#[tokio::test]
async fn f1_the_sender_is_the_session() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    for from in ["juliet@localhost/x", "localhost", "admin@localhost", "", "@", "romeo@elsewhere"] {
        let mut romeo = world.login("romeo", "r").await;
        romeo
            .send(format!("<message from='{from}' to='juliet@localhost/r'><body>x</body></message>"))
            .await
            .unwrap();
        let outcome = romeo.raw().expect_stream_error("invalid-from").await;
        assert!(outcome.is_ok(), "{from}: {outcome:?}");
    }
    let mut romeo = world.login("romeo", "r").await;
    for from in ["romeo@localhost", "romeo@localhost/r", "romeo@localhost/other", "ROMEO@localhost"] {
        romeo
            .send(format!("<message from='{from}' to='juliet@localhost/r'><body>x</body></message>"))
            .await
            .unwrap();
        let got = juliet.next("the message").await.unwrap();
        assert_eq!(got.attr("from"), Some("romeo@localhost/r"), "{from}");
    }
    assert!(juliet.drain().await.unwrap().is_empty());
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn f4_nobody_pushes_rosters_at_others() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    for to in ["juliet@localhost/r", "juliet@localhost"] {
        let push = format!(
            "<iq type='set' id='p' to='{to}'><query xmlns='jabber:iq:roster'><item jid='evil@x'/></query></iq>"
        );
        romeo.send(push).await.unwrap();
        assert_eq!(condition(&romeo.reply("p").await.unwrap()), "service-unavailable", "{to}");
    }
    assert!(juliet.drain().await.unwrap().is_empty());
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn f5_a_forged_carbon_names_its_sender() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    romeo
        .send(
            "<message to='juliet@localhost/r'><received xmlns='urn:xmpp:carbons:2'><forwarded \
             xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' from='nurse@localhost'/></forwarded>\
             </received></message>",
        )
        .await
        .unwrap();
    assert_eq!(juliet.next("the message").await.unwrap().attr("from"), Some("romeo@localhost/r"));
    drop((romeo, juliet));
    world.end();
}

/// How many stanza ids the server itself has put into a message for Juliet.
fn ours(message: &waystation_harness::xml::Element) -> usize {
    let of_juliet = |c: &&waystation_harness::xml::Element| {
        c.local() == "stanza-id"
            && c.attr("by") == Some("juliet@localhost")
            && c.attr("id").is_some_and(|id| id.len() == 13)
    };
    message.children().filter(of_juliet).count()
}

#[tokio::test]
async fn f6_what_only_a_server_may_say_is_removed() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    romeo
        .send(
            "<message to='juliet@localhost/r'><body>x</body>\
             <stanza-id xmlns='urn:xmpp:sid:0' id='1' by='juliet@localhost'/>\
             <stanza-id xmlns='urn:xmpp:sid:0' id='2' by='JULIET@localhost'/>\
             <stanza-id xmlns='urn:xmpp:sid:0' id='3' by='room@elsewhere.example'/>\
             <delay xmlns='urn:xmpp:delay' from='localhost' stamp='2020-01-01T00:00:00Z'/></message>",
        )
        .await
        .unwrap();
    let got = juliet.next("the message").await.unwrap();
    let ids: Vec<_> =
        got.children().filter(|c| c.local() == "stanza-id").filter_map(|c| c.attr("id")).collect();
    // The one of elsewhere, and ours.
    assert!(ids.len() == 2 && ids[0] == "3" && !["1", "2"].contains(&ids[1]), "{got}");
    assert_eq!(ours(&got), 1, "{got}");
    assert!(got.child("delay").is_none() && got.child("body").is_some(), "{got}");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn f6_however_it_is_written() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    for claim in [
        "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='Juliet@LocalHost'/>",
        "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='juliet@localhost.'/>",
        "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='\u{ff2a}uliet@localhost'/>",
        "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='juliet&#64;local&#x68;ost'/>",
        "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='localhost'/>",
        "<stanza-id xmlns='urn:xmpp:sid:0' id='1' by='romeo@localhost'/>",
        "<stanza-id xmlns='&#x75;rn:xmpp&#58;sid:0' id='1' by='juliet@localhost'/>",
        "<s:stanza-id xmlns:s='urn:xmpp:sid:0' id='1' by='juliet@localhost'></s:stanza-id>",
        "<delay xmlns='urn:xmpp:delay' from='LOCALHOST' stamp='2020-01-01T00:00:00Z'/>",
        "<delay xmlns='urn:xmpp:delay' from='juliet@localhost/r' stamp='2020-01-01T00:00:00Z'>late</delay>",
    ] {
        let three = claim.repeat(3);
        romeo
            .send(format!("<message to='juliet@localhost/r'>{claim}<body>x</body>{three}</message>"))
            .await
            .unwrap();
        let got = juliet.next("the message").await.unwrap();
        assert_eq!(
            got.children().map(|c| c.local()).collect::<Vec<_>>(),
            ["body", "stanza-id"],
            "{claim}: {got}"
        );
        assert_eq!(ours(&got), 1, "{claim}: {got}");
    }
    // The prefix may come from the stanza, and stand for the other namespace in between.
    romeo
        .send(
            "<message xmlns:s='urn:xmpp:sid:0' xmlns:d='urn:xmpp:delay' to='juliet@localhost/r'><body>x</body>\
             <s:stanza-id id='1' by='juliet@localhost'/><d:delay from='localhost' stamp='2020-01-01T00:00:00Z'/>\
             <s:other xmlns:s='urn:x'/></message>",
        )
        .await
        .unwrap();
    let got = juliet.next("the message").await.unwrap();
    assert_eq!(
        got.children().map(|c| c.local()).collect::<Vec<_>>(),
        ["body", "other", "stanza-id"],
        "{got}"
    );
    drop((romeo, juliet));
    // And from the header of the stream.
    let header =
        waystation_security::HEADER.replace("<stream:stream", "<stream:stream xmlns:s='urn:xmpp:sid:0'");
    let mut juliet = world.login("juliet", "r").await;
    let mut raw = world.open_tls().await;
    let account = world.server.account("romeo");
    raw.authenticate(waystation_harness::Mechanism::Plain, &account.user, &account.password, &[])
        .await
        .unwrap();
    raw.send(header).await.unwrap();
    raw.read_until("</stream:features>").await.unwrap();
    raw.send(
        "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>\
         <message to='juliet@localhost/r'><body>x</body><s:stanza-id id='1' by='juliet@localhost'/></message>",
    )
    .await
    .unwrap();
    let got = juliet.next("the message").await.unwrap();
    assert_eq!(got.children().map(|c| c.local()).collect::<Vec<_>>(), ["body", "stanza-id"], "{got}");
    drop((raw, juliet));
    world.end();
}

#[tokio::test]
async fn f7_answers_that_nobody_asked_for() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    romeo
        .send(
            "<iq type='result' id='waystation-ping-1' to='localhost'/><iq type='result' id='x' to='juliet@localhost'/>\
             <iq type='error' id='x' to='nobody@localhost/r'/>",
        )
        .await
        .unwrap();
    assert!(romeo.drain().await.unwrap().is_empty());
    assert!(juliet.drain().await.unwrap().is_empty());
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn f8_addresses_that_are_none() {
    let world = World::new();
    let mut romeo = world.login("romeo", "r").await;
    let long = "a".repeat(1_024);
    for to in [
        "a@b@c",
        "@localhost",
        "juliet@",
        "juliet@localhost/",
        "a b@localhost",
        &format!("{long}@localhost"),
        "j\u{200d}x@localhost",
    ] {
        romeo
            .send(format!("<iq type='get' id='j' to='{to}'><ping xmlns='urn:xmpp:ping'/></iq>"))
            .await
            .unwrap();
        assert_eq!(condition(&romeo.reply("j").await.unwrap()), "jid-malformed", "{to}");
    }
    // One canonical form, so these reach the same account.
    let mut juliet = world.login("juliet", "r").await;
    for to in ["JULIET@LOCALHOST/r", "juliet@localhost./r", "\u{ff2a}uliet@localhost/r"] {
        romeo.send(format!("<message to='{to}'><body>x</body></message>")).await.unwrap();
        let got = juliet.next("the message").await;
        assert!(got.is_ok(), "{to}: {got:?}");
    }
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn a5_f8_strangers_learn_nothing_about_accounts() {
    let world = World::new();
    let juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    let payloads = [
        ("get", "<ping xmlns='urn:xmpp:ping'/>"),
        ("get", "<query xmlns='jabber:iq:last'/>"),
        ("get", "<query xmlns='http://jabber.org/protocol/disco#info'/>"),
        ("get", "<vCard xmlns='vcard-temp'/>"),
        ("set", "<query xmlns='jabber:iq:roster'/>"),
    ];
    for (kind, payload) in payloads {
        for suffix in ["", "/r", "/unknown"] {
            let mut answers = Vec::new();
            for user in ["juliet", "nobody"] {
                romeo
                    .send(format!("<iq type='{kind}' id='q' to='{user}@localhost{suffix}'>{payload}</iq>"))
                    .await
                    .unwrap();
                let answer = romeo.reply("q").await.unwrap();
                let kind = answer.child("error").and_then(|e| e.attr("type")).unwrap_or("").to_owned();
                answers.push((condition(&answer), kind));
            }
            assert_eq!(answers[0], answers[1], "{payload} to {suffix:?} tells whether an account exists");
        }
    }
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn m4_probes_of_strangers_get_one_answer() {
    let world = World::new();
    let mut juliet = world.login("juliet", "r").await;
    juliet.become_available().await.unwrap();
    let mut romeo = world.login("romeo", "r").await;
    let mut answers = Vec::new();
    for user in ["juliet", "nobody"] {
        romeo.send(format!("<presence type='probe' to='{user}@localhost'/>")).await.unwrap();
        let got = romeo.drain().await.unwrap();
        answers.push(got.iter().map(|p| p.attr("type").map(str::to_owned)).collect::<Vec<_>>());
    }
    assert_eq!(answers[0], answers[1], "a probe tells whether an account exists");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn m13_binding() {
    let world = World::new();
    let mut first = world.login("romeo", "r").await;
    let mut second = world.login("romeo", "r").await;
    first.raw().expect_stream_error("conflict").await.unwrap();
    drop(first);
    assert!(second.drain().await.unwrap().is_empty(), "the newer session lives");
    second.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await.unwrap();
    assert_eq!(condition(&second.reply("b").await.unwrap()), "not-allowed");
    let account = world.server.account("juliet");
    for resource in ["x".repeat(1_024), "a\nb".to_owned()] {
        let refused = Client::login(world.server.endpoint(), account, &Login::resource(&resource)).await;
        assert!(refused.is_err_and(|e| e.to_string().contains("bad-request")), "{} bytes", resource.len());
    }
    let mut sessions = Vec::new();
    let full = loop {
        assert!(sessions.len() < 101, "an account binds resources without end");
        match Client::login(world.server.endpoint(), account, &Login::default()).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error.to_string(),
        }
    };
    assert!(full.contains("resource-constraint"), "{full}");
    drop((sessions, second));
    world.end();
}

#[tokio::test]
async fn m16_the_log_holds_no_raw_input() {
    let world = World::new();
    let resource = "r\u{202e}x\u{85}\u{2028}y";
    // Whether such a resource is accepted or not, it must not reach the log as it is.
    let _ = Client::login(world.server.endpoint(), world.server.account("romeo"), &Login::resource(resource))
        .await;
    let mut raw = world.open_tls().await;
    let message = waystation_security::auth("PLAIN", "\0ro\u{1b}[2Jmeo\nx\0CANARY-password");
    waystation_security::sasl(&mut raw, &message).await;
    drop(raw);
    let log = world.server.log();
    assert!(!log.contains('\u{202e}') && !log.contains('\u{1b}') && !log.contains("CANARY"), "{log}");
    world.end();
}

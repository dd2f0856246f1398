//! XEP-0198 sections 3 to 6, rule by rule, and SECURITY.md row M9.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::xml::Element;
use waystation_harness::{Config, Login, RawClient, Server};
use waystation_security::managed::{Managed, SM, authenticated, message, messages, numbers, outcome};
use waystation_security::{HEADER, World};

fn server(settings: &[(&str, &str)]) -> Server {
    let config = Config::default().with_users(["romeo", "juliet"]).with("limits.connection_rate", "0");
    Server::start(settings.iter().fold(config, |config, (key, value)| config.with(key, value))).unwrap()
}

/// The stream error that a session ends with.
async fn end(managed: &mut Managed) -> String {
    managed.raw.read_until("<stream:error>").await.unwrap();
    managed.raw.read_to_end().await.unwrap()
}

async fn answer(raw: &mut RawClient, xml: &str) -> Element {
    raw.send(xml).await.unwrap();
    raw.next_element("an answer").await.unwrap()
}

/// Sections 2 and 3: when the feature is offered, and when it may be asked for.
#[tokio::test]
async fn xep_0198_3_enabling() {
    let world = World::new();
    let server = &world.server;
    // Offered once the client is authenticated, not before.
    let mut raw = world.connect().await;
    raw.send(HEADER).await.unwrap();
    assert!(!raw.read_until("</stream:features>").await.unwrap().contains(SM));
    // M9: before authentication nothing is enabled.
    raw.send(format!("<enable xmlns='{SM}' resume='true'/>")).await.unwrap();
    raw.read_until("<failed ").await.unwrap();
    let refusal = raw.read_until("</failed>").await.unwrap();
    assert!(refusal.contains("<unexpected-request "), "{refusal}");
    drop(raw);
    let login = Login::default();
    let (mut raw, opened) =
        waystation_harness::Client::authenticate(server.endpoint(), server.account("romeo"), &login)
            .await
            .unwrap();
    assert!(opened.features.child_in(SM).is_some(), "{}", opened.features);
    // Section 3: not before a resource is bound; and the stream goes on.
    for nonza in ["enable", "r", "a h='0'"] {
        let got = answer(&mut raw, &format!("<{nonza} xmlns='{SM}'/>")).await;
        assert_eq!(outcome(&got), "failed unexpected-request", "{nonza}");
    }
    raw.bind(Some("r")).await.unwrap();
    // M13: acknowledgements before it is enabled.
    let got = answer(&mut raw, &format!("<r xmlns='{SM}'/>")).await;
    assert_eq!(outcome(&got), "failed unexpected-request");
    // Without resumption.
    let got = answer(&mut raw, &format!("<enable xmlns='{SM}'/>")).await;
    assert_eq!((got.local(), got.attr("id"), got.attr("resume")), ("enabled", None, None), "{got}");
    // M9: twice. What was enabled stays so.
    for attributes in ["", "resume='true'"] {
        let got = answer(&mut raw, &format!("<enable xmlns='{SM}' {attributes}/>")).await;
        assert_eq!(outcome(&got), "failed unexpected-request");
    }
    let got = answer(&mut raw, &format!("<r xmlns='{SM}'/>")).await;
    assert_eq!((got.local(), got.attr("h")), ("a", Some("0")));
    drop(raw);
    // With it: how long is asked for, and what is granted of it (M9: never more than the limit).
    let mut ids = Vec::new();
    for (attributes, max) in [
        ("resume='true'", "600"),
        ("resume='1'", "600"),
        ("resume='true' max='5'", "5"),
        ("resume='true' max='600'", "600"),
        ("resume='true' max='999999999'", "600"),
        ("resume='true' max='99999999999999999999999'", "600"),
        ("resume='true' max='-1'", "600"),
        ("resume='true' max=''", "600"),
        ("resume='true' location='evil.example' id='mine'", "600"),
    ] {
        let mut managed = Managed::bound(server, "romeo", "r").await;
        let got = managed.enable(attributes).await;
        assert_eq!((got.attr("resume"), got.attr("max")), (Some("true"), Some(max)), "{attributes}: {got}");
        assert_eq!(got.attr("location"), None);
        let id = got.attr("id").unwrap().to_owned();
        // 128 bits in hexadecimal.
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
        ids.push(id);
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 9, "an identifier is never used again");
    for attributes in ["resume='false'", "resume='0'", "resume='yes'"] {
        let mut managed = Managed::bound(server, "romeo", "r").await;
        let got = managed.enable(attributes).await;
        assert_eq!((got.local(), got.attr("id")), ("enabled", None), "{attributes}: {got}");
    }
    world.end();
}

/// Section 4: what is counted, and how it is asked for.
#[tokio::test]
async fn xep_0198_4_counting() {
    let server = server(&[]);
    let mut romeo = Managed::bound(&server, "romeo", "r").await;
    // What came before is not counted.
    romeo.send("<presence/><iq type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>").await;
    romeo.stanza("the own presence or the pong").await;
    romeo.stanza("the other").await;
    assert_eq!(romeo.enable("").await.local(), "enabled");
    romeo.received = 0;
    romeo.settled(0).await;
    let ping = "<iq type='get' id='p' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>";
    let mut sent = 0;
    for (stanza, counts, replies) in [
        (ping.to_owned(), 1, 1),
        (message("juliet@localhost", 1), 1, 0),
        (message("romeo@localhost/r", 1), 1, 1),
        ("<presence><show>away</show></presence>".to_owned(), 1, 1),
        // Refused ones are handled as well.
        ("<message to='@@@' id='x'><body>x</body></message>".to_owned(), 1, 1),
        ("<message to='nobody@localhost' id='x'><body>x</body></message>".to_owned(), 1, 1),
        ("<iq type='get' id='x' to='localhost'><x xmlns='urn:x'/></iq>".to_owned(), 1, 1),
        // Not stored, so never lost by counting it: it counts too.
        ("<message to='juliet@localhost' type='headline'><body>x</body></message>".to_owned(), 1, 0),
        // These are no stanzas.
        (format!("<r xmlns='{SM}'/>"), 0, 0),
        (format!("<enable xmlns='{SM}'/>"), 0, 0),
        (" \n ".to_owned(), 0, 0),
    ] {
        romeo.send(&stanza).await;
        sent += counts;
        for _ in 0..replies {
            romeo.stanza(&stanza).await;
        }
        romeo.settled(sent).await;
    }
    assert_eq!(romeo.received, 6);
    // An acknowledgement is no stanza either.
    romeo.acknowledge().await;
    romeo.settled(sent).await;
    // Unasked: after a second at the latest (DELIVERY P1).
    romeo.send(message("juliet@localhost", 2)).await;
    while romeo.number().await != sent + 1 {}
    // The server asks for what it sent.
    romeo.send(ping).await;
    let mut asked = false;
    while !asked {
        let element = romeo.raw.next_element("<r/>").await.unwrap();
        asked = element.ns() == SM && element.local() == "r";
    }
    drop(romeo);
    server.finish();
}

/// Sections 4 and 6, M9: numbers that no client can have reached.
#[tokio::test]
async fn m9_acknowledgements_out_of_range() {
    let server = server(&[]);
    for (h, expected) in [
        ("4294967295", "handled-count-too-high"),
        ("2147483648", "handled-count-too-high"),
        ("3", "handled-count-too-high"),
        ("-1", "<bad-format"),
        ("1e3", "<bad-format"),
        ("", "<bad-format"),
        ("4294967296", "<bad-format"),
        ("1.0", "<bad-format"),
        ("0x1", "<bad-format"),
        ("١", "<bad-format"),
    ] {
        let mut romeo = Managed::available(&server, "romeo", "r").await;
        assert_eq!(romeo.rest().await, [""; 0]);
        assert_eq!(romeo.received, 2);
        romeo.send(format!("<a xmlns='{SM}' h='{h}'/>")).await;
        let got = end(&mut romeo).await;
        assert!(got.contains(expected) && got.ends_with("</stream:stream>"), "{h}: {got}");
        if expected == "handled-count-too-high" {
            assert!(got.contains("undefined-condition"), "{got}");
            assert!(got.contains(&format!("h='{h}'")) && got.contains("send-count='2'"), "{got}");
        }
        // It ended with an error of the client: there is nothing to resume.
        let refused = Managed::resume(&server, "romeo", &romeo.id, 2).await.err().unwrap();
        assert_eq!(outcome(&refused), "failed item-not-found");
    }
    // No number at all.
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    romeo.send(format!("<a xmlns='{SM}'/>")).await;
    assert!(end(&mut romeo).await.contains("<bad-format"));
    // Backwards: what was acknowledged stays so, and is not sent again.
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    romeo.send(messages("juliet@localhost", 1..=5)).await;
    assert_eq!(juliet.bodies(5).await, numbers(1..=5));
    juliet.acknowledge().await;
    for h in [3, 0, 5] {
        juliet.send(format!("<a xmlns='{SM}' h='{h}'/>")).await;
    }
    assert_eq!(juliet.rest().await, [""; 0]);
    let (id, h) = (juliet.id.clone(), juliet.received);
    juliet.raw.reset().unwrap();
    let (mut juliet, _) = Managed::resume(&server, "juliet", &id, h).await.unwrap();
    assert_eq!(juliet.rest().await, [""; 0]);
    drop((romeo, juliet));
    server.finish();
}

/// Section 5: what comes back, and what is said of it.
#[tokio::test]
async fn xep_0198_5_resumption() {
    let server = server(&[]);
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    let mut romeo = Managed::available(&server, "romeo", "r").await;
    romeo.send(messages("juliet@localhost", 1..=5)).await;
    assert_eq!(juliet.bodies(3).await, numbers(1..=3));
    let (h, id) = (juliet.received, juliet.id.clone());
    juliet.send(message("romeo@localhost", 10)).await;
    assert_eq!(romeo.bodies(1).await, ["10"]);
    juliet.raw.reset().unwrap();
    // It is still a session: what is sent to it waits for it.
    romeo.send(message("juliet@localhost/r", 6)).await;
    romeo.send(message("juliet@localhost", 7)).await;
    romeo.settled(8).await;
    // Presence and one message of the client were handled.
    let (mut juliet, handled) = Managed::resume(&server, "juliet", &id, h).await.unwrap();
    assert_eq!(handled, 2);
    // What was not acknowledged comes again, then what came since; in order and once.
    assert_eq!(juliet.bodies(4).await, numbers(4..=7));
    // The counters go on from where they were, both ways.
    juliet.send(message("romeo@localhost", 11)).await;
    juliet.settled(3).await;
    juliet.acknowledge().await;
    assert_eq!(romeo.bodies(1).await, ["11"]);
    assert_eq!(juliet.rest().await, [""; 0]);
    // The same resource is bound, and it is still available.
    romeo.send(message("juliet@localhost/r", 8)).await;
    assert_eq!(juliet.bodies(1).await, ["8"]);
    // It can be resumed again and again.
    for n in 20..40 {
        let (id, h) = (juliet.id.clone(), juliet.received);
        juliet.raw.reset().unwrap();
        romeo.send(message("juliet@localhost", n)).await;
        juliet = Managed::resume(&server, "juliet", &id, h).await.unwrap().0;
        assert_eq!(juliet.bodies(1).await, [n.to_string()]);
    }
    // Section 7: a stream that was closed is over, and the number of its stanzas is still told.
    let id = juliet.id.clone();
    juliet.raw.close().await.unwrap();
    let refused = Managed::resume(&server, "juliet", &id, 0).await.err().unwrap();
    assert_eq!((outcome(&refused).as_str(), refused.attr("h")), ("failed item-not-found", Some("4")));
    drop(romeo);
    server.finish();
}

/// Section 5 and M9: requests that do not lead to a session.
#[tokio::test]
async fn m9_resumption_refused() {
    let server = server(&[]);
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    let mut raw = authenticated(&server, "romeo").await;
    // A few attempts are allowed on one stream.
    let unknown = format!("<resume xmlns='{SM}' previd='{}' h='0'/>", "0".repeat(32));
    let unknown = answer(&mut raw, &unknown).await;
    assert_eq!((outcome(&unknown).as_str(), unknown.attr("h")), ("failed item-not-found", None));
    // Another user's looks the same, and does nothing to it.
    let theirs = answer(&mut raw, &format!("<resume xmlns='{SM}' previd='{}' h='0'/>", juliet.id)).await;
    assert_eq!(theirs.to_string(), unknown.to_string());
    for (attributes, expected) in [
        ("previd='' h='0'", "failed item-not-found"),
        ("h='0'", "failed item-not-found"),
        ("previd='x&apos; or 1=1' h='0'", "failed item-not-found"),
        (&*format!("previd='{}' h='0'", "f".repeat(100_000).get(..4_000).unwrap()), "failed item-not-found"),
        (&*format!("previd='{}'", juliet.id), "failed bad-request"),
        (&*format!("previd='{}' h='-1'", juliet.id), "failed bad-request"),
        (&*format!("previd='{}' h='4294967296'", juliet.id), "failed bad-request"),
    ] {
        let mut raw = authenticated(&server, "romeo").await;
        let got = answer(&mut raw, &format!("<resume xmlns='{SM}' {attributes}/>")).await;
        assert_eq!(outcome(&got), expected, "{attributes}");
    }
    // After a failure a resource can be bound on the same stream (section 5).
    raw.bind(Some("r")).await.unwrap();
    // And then nothing can be resumed.
    let got = answer(&mut raw, &format!("<resume xmlns='{SM}' previd='{}' h='0'/>", juliet.id)).await;
    assert_eq!(outcome(&got), "failed unexpected-request");
    raw.send(message("juliet@localhost", 1)).await.unwrap();
    assert_eq!(juliet.bodies(1).await, ["1"]);
    // Her own, with more than she was sent: the stream ends (section 6), the session does not.
    assert_eq!(juliet.rest().await, [""; 0]);
    juliet.acknowledge().await;
    // Nothing is on its way, as `send-count` must tell all the same.
    juliet.settled(2).await;
    let (h, id) = (juliet.received, juliet.id.clone());
    juliet.raw.reset().unwrap();
    for wrong in [h + 1, h + 1_000, u32::MAX] {
        let mut other = authenticated(&server, "juliet").await;
        other.send(format!("<resume xmlns='{SM}' previd='{id}' h='{wrong}'/>")).await.unwrap();
        let got = other.read_to_end().await.unwrap();
        assert!(
            got.contains("handled-count-too-high") && got.contains("undefined-condition"),
            "{wrong}: {got}"
        );
        assert!(got.contains(&format!("send-count='{h}'")), "{got}");
    }
    let (mut juliet, _) = Managed::resume(&server, "juliet", &id, h).await.unwrap();
    assert_eq!(juliet.rest().await, [""; 0]);
    drop((juliet, raw));
    server.finish();
}

/// Section 5 and M9: one connection owns a session at a time.
#[tokio::test]
async fn m9_one_owner_at_a_time() {
    let server = server(&[]);
    let mut romeo = Managed::available(&server, "romeo", "r").await;
    // While the old socket lives: the old one is told, the new one has the session.
    let mut old = Managed::available(&server, "juliet", "r").await;
    let (id, h) = (old.id.clone(), old.received);
    let (mut juliet, handled) = Managed::resume(&server, "juliet", &id, h).await.unwrap();
    assert_eq!(handled, 1);
    let got = end(&mut old).await;
    assert!(got.starts_with("<conflict") && got.ends_with("</stream:stream>"), "{got}");
    romeo.send(message("juliet@localhost", 1)).await;
    assert_eq!(juliet.bodies(1).await, ["1"]);
    // Two at once: one of them has it in the end, and gets what is sent.
    for round in 2..12 {
        let (id, h) = (juliet.id.clone(), juliet.received);
        juliet.raw.reset().unwrap();
        let (a, b) = (authenticated(&server, "juliet").await, authenticated(&server, "juliet").await);
        let resume = format!("<resume xmlns='{SM}' previd='{id}' h='{h}'/>");
        let mut both = [a, b];
        for raw in &mut both {
            raw.send(&resume).await.unwrap();
        }
        romeo.send(message("juliet@localhost", round)).await;
        let mut winners = Vec::new();
        for raw in both {
            let mut candidate = Managed { raw, jid: String::new(), id: id.clone(), received: h };
            let first = candidate.raw.next_element("an answer").await;
            let resumed = first.as_ref().is_ok_and(|answer| answer.local() == "resumed");
            if resumed && candidate.try_stanza("the message, or the end").await.is_ok() {
                // One that got it and lost the session afterwards is told so.
                winners.push(candidate);
            }
        }
        let mut alive = Vec::new();
        for mut winner in winners {
            winner.send("<iq type='get' id='x' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>").await;
            loop {
                match winner.try_stanza("the pong, or the end").await {
                    Ok(stanza) if stanza.attr("id") == Some("x") => {
                        alive.push(winner);
                        break;
                    }
                    Ok(_) => {}
                    Err(error) => {
                        assert!(error.to_string().contains("conflict"), "{error}");
                        break;
                    }
                }
            }
        }
        assert_eq!(alive.len(), 1, "round {round}");
        juliet = alive.remove(0);
    }
    // M9: a loop of it.
    for _ in 0..200 {
        let (id, h) = (juliet.id.clone(), juliet.received);
        juliet = Managed::resume(&server, "juliet", &id, h).await.unwrap().0;
    }
    romeo.send(message("juliet@localhost", 99)).await;
    assert_eq!(juliet.bodies(1).await, ["99"]);
    drop((romeo, juliet));
    server.finish();
}

/// Section 5: a session whose time is over, also over a restart, and what is told of it.
#[tokio::test]
async fn xep_0198_5_expiry_tells_the_number() {
    for restart in [false, true] {
        let mut server = server(&[("limits.resume_timeout", "\"1s\"")]);
        let mut romeo = Managed::login(&server, "romeo", "r").await;
        let mut juliet = Managed::available(&server, "juliet", "r").await;
        let id = juliet.id.clone();
        juliet.send(messages("romeo@localhost/r", 1..=3)).await;
        juliet.settled(4).await;
        romeo.send(messages("juliet@localhost", 1..=2)).await;
        romeo.settled(2).await;
        juliet.raw.reset().unwrap();
        if restart {
            server.kill().unwrap();
            server.start_again().unwrap();
        }
        // The time begins with the loss of the connection, or with the start of the server.
        tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
        let refused = Managed::resume(&server, "juliet", &id, 0).await.err();
        let refused = refused.unwrap_or_else(|| panic!("resumed after its time (restart: {restart})"));
        assert_eq!((outcome(&refused).as_str(), refused.attr("h")), ("failed item-not-found", Some("4")));
        // What it had not acknowledged waits for the next one.
        let mut juliet = Managed::login(&server, "juliet", "r2").await;
        juliet.send("<presence/>").await;
        assert_eq!(juliet.bodies(2).await, numbers(1..=2));
        // The number is told as often as it is asked for.
        let again = Managed::resume(&server, "juliet", &id, 0).await.err().unwrap();
        assert_eq!(again.attr("h"), Some("4"));
        // And to nobody else.
        let theirs = Managed::resume(&server, "romeo", &id, 0).await.err().unwrap();
        assert_eq!(theirs.attr("h"), None);
        drop((romeo, juliet));
        server.finish();
    }
}

/// A session that is bound anew takes the place of one that waits to be resumed (RFC 6120 7.7.2.2).
#[tokio::test]
async fn a_new_session_replaces_one_that_waits() {
    let server = server(&[]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    juliet.send(message("romeo@localhost/r", 5)).await;
    assert_eq!(romeo.bodies(1).await, ["5"]);
    let id = juliet.id.clone();
    juliet.raw.reset().unwrap();
    romeo.send(message("juliet@localhost", 1)).await;
    romeo.settled(1).await;
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    assert_eq!(juliet.bodies(1).await, ["1"]);
    let refused = Managed::resume(&server, "juliet", &id, 0).await.err().unwrap();
    assert_eq!((outcome(&refused).as_str(), refused.attr("h")), ("failed item-not-found", Some("2")));
    romeo.send(message("juliet@localhost/r", 2)).await;
    assert_eq!(juliet.bodies(1).await, ["2"]);
    drop((romeo, juliet));
    server.finish();
}

//! SECURITY.md row M4: floods of presence. Whoever is above a rate is read more slowly and loses
//! nothing; presence to too many addresses is refused by name; others notice nothing.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::ops::Range;
use std::time::{Duration, Instant};

use waystation_harness::xml::Element;
use waystation_harness::{Client, Config};
use waystation_security::{World, condition};

/// Presence that may go at once where a rate is low, and how much is sent then.
const BURST: u32 = 20;
const SENT: u32 = 60;
const RATE: u32 = 20;
/// What the rate makes of it, less a little for the ends.
const AT_LEAST: Duration = Duration::from_millis((SENT - BURST) as u64 * 1_000 / RATE as u64 - 200);

fn slow(kind: &str) -> Config {
    Config::default()
        .with(&format!("limits.{kind}_rate"), &RATE.to_string())
        .with(&format!("limits.{kind}_burst"), &BURST.to_string())
}

/// The errors among what came, by the ids of what they answer.
fn refused(got: &[Element]) -> Vec<String> {
    let errors = got.iter().filter(|stanza| stanza.attr("type") == Some("error"));
    errors
        .map(|stanza| {
            assert_eq!(condition(stanza), "policy-violation", "{stanza}");
            let error = stanza.child("error").unwrap();
            assert_eq!(error.attr("type"), Some("wait"), "{stanza}");
            assert!(error.child_in("urn:xmpp:errors").is_some_and(|e| e.local() == "too-many-stanzas"));
            stanza.attr("id").unwrap().to_owned()
        })
        .collect()
}

async fn ask(client: &mut Client, xml: impl AsRef<[u8]>) -> Vec<String> {
    client.send(xml).await.unwrap();
    refused(&client.drain().await.unwrap())
}

/// Presence of a type to many addresses.
fn to_many(kind: &str, numbers: Range<usize>) -> String {
    numbers.map(|n| format!("<presence type='{kind}' id='{kind}{n}' to='{kind}{n}@localhost/x'/>")).collect()
}

#[tokio::test]
async fn m4_presence_to_ten_thousand_addresses() {
    const COUNT: usize = 10_000;
    let config = Config::default()
        .with("limits.presence_recipients", "50")
        .with("limits.presence_rate", "0")
        .with("limits.inbound_rate", "'1 GiB'")
        .with("limits.inbound_burst", "'1 GiB'");
    let world = World::alone(config);
    let mut juliet = world.login("juliet", "r").await;
    juliet.become_available().await.unwrap();
    let mut romeo = world.login("romeo", "r").await;
    for first in (0..COUNT).step_by(200) {
        let expected: Vec<_> = (first.max(50)..first + 200).map(|n| format!("subscribe{n}")).collect();
        assert_eq!(ask(&mut romeo, to_many("subscribe", first..first + 200)).await, expected);
    }
    // The other kinds that reach strangers; a new session has no more than the account.
    let mut other = world.login("romeo", "other").await;
    assert_eq!(ask(&mut other, to_many("probe", 0..3)).await, ["probe0", "probe1", "probe2"]);
    assert_eq!(ask(&mut other, "<presence id='a' to='stranger@localhost'/>").await, ["a"]);
    // To whom presence was sent before, it may be sent again, and it may always end.
    let known = "<presence type='subscribe' to='subscribe0@localhost'/><presence to='subscribe1@localhost/x'/>\
                 <presence type='unavailable' to='stranger@localhost'/><presence to='romeo@localhost/r'/>";
    assert_eq!(ask(&mut other, known).await, [""; 0]);
    // Nothing else of the account suffers, and no other account.
    romeo.send("<message to='juliet@localhost/r'><body>still here</body></message>").await.unwrap();
    let message = juliet.next("the message").await.unwrap();
    assert_eq!(message.child("body").map(Element::text).as_deref(), Some("still here"), "{message}");
    assert_eq!(ask(&mut juliet, "<presence id='j' to='stranger@localhost'/>").await, [""; 0]);
    drop((romeo, other, juliet));
    world.end();
}

/// Sends numbered presence and reads it where it arrives; how long that takes.
async fn time(from: &mut Client, to: Option<&mut Client>, attributes: &str) -> Duration {
    let start = Instant::now();
    let presence = |n| format!("<presence {attributes}><status>{n}</status></presence>");
    from.send((0..SENT).map(presence).collect::<String>()).await.unwrap();
    let receiver = to.unwrap_or(from);
    for number in 0..SENT {
        let presence = receiver.next("the next presence").await.unwrap();
        assert_eq!(presence.local(), "presence", "{presence}");
        assert_eq!(presence.child("status").unwrap().text(), number.to_string(), "in order, none lost");
    }
    start.elapsed()
}

#[tokio::test]
async fn m4_broadcasts_in_a_loop() {
    let world = World::alone(slow("presence_broadcast"));
    let mut romeo = world.login("romeo", "r").await;
    let took = time(&mut romeo, None, "").await;
    assert!(took >= AT_LEAST, "{SENT} broadcasts took {took:?}");
    drop(romeo);
    world.end();
}

#[tokio::test]
async fn m4_directed_presence_in_a_loop() {
    let world = World::alone(slow("presence"));
    let mut romeo = world.login("romeo", "r").await;
    let mut juliet = world.login("juliet", "r").await;
    let took = time(&mut romeo, Some(&mut juliet), "to='juliet@localhost/r'").await;
    assert!(took >= AT_LEAST, "{SENT} presence stanzas took {took:?}");
    drop((romeo, juliet));
    world.end();
}

/// To subscribe and to end that again and again: each request arrives, and what is behind the
/// flood, a message of class D included, is late but not lost.
#[tokio::test]
async fn m4_subscriptions_in_a_loop() {
    let world = World::alone(slow("presence"));
    let mut romeo = world.login("romeo", "r").await;
    let mut juliet = world.login("juliet", "r").await;
    juliet.become_available().await.unwrap();
    let mut other = world.login("romeo", "other").await;
    let turn = "<presence type='subscribe' to='juliet@localhost'/>\
                <presence type='unsubscribe' to='juliet@localhost'/>";
    let start = Instant::now();
    romeo.send(turn.repeat(SENT as usize / 2)).await.unwrap();
    romeo.send("<message type='chat' to='juliet@localhost/r'><body>last</body></message>").await.unwrap();
    // Another session of the account is as fast as ever.
    other.send("<message type='chat' to='juliet@localhost/r'><body>first</body></message>").await.unwrap();
    let mut bodies = Vec::new();
    let mut asked = 0;
    while bodies.len() < 2 {
        let stanza = juliet.next("requests and two messages").await.unwrap();
        match stanza.attr("type") {
            Some("subscribe") => asked += 1,
            _ => bodies.extend(stanza.child("body").map(Element::text)),
        }
    }
    let took = start.elapsed();
    assert_eq!(bodies, ["first", "last"]);
    assert_eq!(asked, SENT / 2);
    assert!(took >= AT_LEAST, "{SENT} requests took {took:?}");
    drop((romeo, other, juliet));
    world.end();
}

/// One presence can make as many as there are contacts: a long one is refused.
#[tokio::test]
async fn m4_a_long_presence() {
    let world = World::with(Config::default().with("limits.presence_size", "'2 KiB'"));
    let mut romeo = world.login("romeo", "r").await;
    romeo.become_available().await.unwrap();
    romeo.send(format!("<presence id='p'><status>{}</status></presence>", "x".repeat(2_048))).await.unwrap();
    let error = romeo.next("the refusal").await.unwrap();
    assert_eq!(error.attr("id"), Some("p"), "{error}");
    assert_eq!(condition(&error), "policy-violation");
    drop(romeo);
    world.end();
}

/// Requests that wait for an account: those beyond the limit are as if they had not arrived.
#[tokio::test]
async fn m4_requests_that_wait() {
    let users = ["a", "b", "c", "d"];
    let world = World::with(Config::default().with_users(users).with("limits.subscription_requests", "2"));
    for user in users {
        let mut client = world.login(user, "r").await;
        client.send("<presence type='subscribe' to='juliet@localhost'/>").await.unwrap();
        client.drain().await.unwrap();
        client.close().await.unwrap();
    }
    let mut juliet = world.login("juliet", "r").await;
    juliet.send("<presence/>").await.unwrap();
    let got = juliet.drain().await.unwrap();
    let requests: Vec<_> =
        got.iter().filter(|p| p.attr("type") == Some("subscribe")).filter_map(|p| p.attr("from")).collect();
    assert_eq!(requests, ["a@localhost", "b@localhost"]);
    drop(juliet);
    world.end();
}

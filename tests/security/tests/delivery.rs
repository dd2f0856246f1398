//! What is promised of a message that was acknowledged to its sender, whatever happens next to
//! the server and to the recipient's connection (DELIVERY P1, P2, P5 to P7).
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use nix::sys::signal::Signal;
use waystation_harness::stream::PATIENCE;
use waystation_harness::xml::{Element, StreamEvent};
use waystation_harness::{Client, Config, Login, Server};
use waystation_security::managed::{Managed, body, message, messages, numbers};

const JULIET: &str = "juliet@localhost";

fn server() -> Server {
    let config = Config::default().with_users(["romeo", "juliet"]).with("limits.connection_rate", "0");
    // Enough for a thousand messages at once.
    Server::start(config.with("limits.inbound_burst", "\"1 MiB\"")).unwrap()
}

async fn login(server: &Server, user: &str, resource: &str) -> Client {
    Client::login(server.endpoint(), server.account(user), &Login::resource(resource)).await.unwrap()
}

/// The messages that a client without stream management is given, so many; pings are not answered.
async fn unanswered(client: &mut Client, count: usize) -> Vec<String> {
    let mut bodies = Vec::new();
    while bodies.len() < count {
        let what = format!("message {} of {count}", bodies.len() + 1);
        bodies.extend(body(&client.raw().next_element(&what).await.unwrap()));
    }
    bodies
}

/// The server's question whether the client has received what came before.
fn is_ping(stanza: &Element) -> bool {
    stanza.local() == "iq"
        && stanza.attr("type") == Some("get")
        && stanza.child_in("http://jabber.org/protocol/disco#info").is_some()
}

fn crash(server: &mut Server) {
    server.kill().unwrap();
    server.start_again().unwrap();
}

fn restart(server: &mut Server) {
    server.signal(Signal::SIGTERM).unwrap();
    assert!(server.wait_for_exit(PATIENCE).unwrap().success());
    server.start_again().unwrap();
}

/// P1 and P2: a thousand messages survive the server's death, wherever the recipient was.
#[tokio::test]
async fn p2_nothing_acknowledged_is_lost_by_a_crash() {
    const COUNT: usize = 1_000;
    enum Recipient {
        Offline,
        /// Connected and not reading, until after the crash.
        Plain,
        Managed,
    }
    for recipient in [Recipient::Offline, Recipient::Plain, Recipient::Managed] {
        let mut server = server();
        let mut romeo = Managed::login(&server, "romeo", "r").await;
        // Kept until the end: it never closes its connection, as if its machine had lost power.
        let half_dead = match recipient {
            Recipient::Offline => None,
            Recipient::Plain => {
                let mut juliet = login(&server, "juliet", "old").await;
                juliet.become_available().await.unwrap();
                Some(juliet.into_wire())
            }
            Recipient::Managed => Some(Managed::available(&server, "juliet", "old").await.raw.into_wire().0),
        };
        romeo.send(messages(JULIET, 0..COUNT)).await;
        romeo.settled(COUNT as u32).await;
        crash(&mut server);
        // The one that may still be resumed holds them; the same resource takes its place.
        let mut juliet = Managed::login(&server, "juliet", "old").await;
        juliet.send("<presence/>").await;
        assert_eq!(juliet.bodies(COUNT).await, numbers(0..COUNT));
        juliet.acknowledge().await;
        assert_eq!(juliet.rest().await, [""; 0]);
        drop((juliet, romeo, half_dead));
        server.finish();
    }
}

/// P6: a session goes on after a crash and after a restart in order, with all that was sent to it.
#[tokio::test]
async fn p6_a_session_is_resumed_by_the_next_server() {
    for graceful in [false, true] {
        let mut server = server();
        let mut romeo = Managed::login(&server, "romeo", "r").await;
        let mut juliet = Managed::available(&server, "juliet", "r").await;
        romeo.send(messages(JULIET, 0..50)).await;
        assert_eq!(juliet.bodies(50).await, numbers(0..50));
        juliet.acknowledge().await;
        juliet.send(messages("romeo@localhost/r", 0..5)).await;
        juliet.settled(6).await;
        assert_eq!(romeo.bodies(5).await, numbers(0..5));
        romeo.acknowledge().await;
        let (id, h) = (juliet.id.clone(), juliet.received);
        juliet.raw.reset().unwrap();
        // While nobody is there to read them.
        romeo.send(messages(JULIET, 50..150)).await;
        romeo.send(messages("juliet@localhost/r", 150..200)).await;
        romeo.settled(200).await;
        let (his, his_h) = (romeo.id.clone(), romeo.received);
        if graceful {
            restart(&mut server)
        } else {
            crash(&mut server)
        }
        // After the restart as well.
        let (mut romeo, handled) = Managed::resume(&server, "romeo", &his, his_h).await.unwrap();
        assert_eq!(handled, 200, "graceful: {graceful}");
        romeo.send(messages(JULIET, 200..250)).await;
        romeo.settled(250).await;
        let (mut juliet, handled) = Managed::resume(&server, "juliet", &id, h).await.unwrap();
        assert_eq!(handled, 6, "graceful: {graceful}");
        assert_eq!(juliet.bodies(200).await, numbers(50..250), "graceful: {graceful}");
        juliet.acknowledge().await;
        assert_eq!(juliet.rest().await, [""; 0]);
        // And once more: nothing of it comes again.
        juliet.acknowledge().await;
        juliet.settled(7).await;
        let (id, h) = (juliet.id.clone(), juliet.received);
        if graceful {
            restart(&mut server)
        } else {
            crash(&mut server)
        }
        let (mut juliet, handled) = Managed::resume(&server, "juliet", &id, h).await.unwrap();
        assert_eq!(handled, 7, "graceful: {graceful}");
        assert_eq!(juliet.rest().await, [""; 0]);
        drop((romeo, juliet));
        server.finish();
    }
}

/// P2: presence alone takes nothing out of the spool.
#[tokio::test]
async fn p2_stored_messages_wait_for_a_client_that_confirms_them() {
    let server = server();
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    romeo.send(messages(JULIET, 0..10)).await;
    romeo.settled(10).await;
    // Cut before it answers the ping, or before it acknowledges: it gets them again.
    for round in 0..3 {
        let mut juliet = login(&server, "juliet", "plain").await;
        juliet.send("<presence/>").await.unwrap();
        assert_eq!(unanswered(&mut juliet, 10).await, numbers(0..10), "round {round}");
        while !is_ping(&juliet.raw().next_element("the server's ping").await.unwrap()) {}
        juliet.reset().unwrap();
        let mut juliet = Managed::login(&server, "juliet", "managed").await;
        juliet.send("<presence/>").await;
        // The session before this one may not have been missed yet; it holds them until then.
        assert_eq!(juliet.bodies(10).await, numbers(0..10), "round {round}");
        juliet.raw.send("<presence type='unavailable'/>").await.unwrap();
        juliet.settled(2).await;
        // Bound anew below, it is not resumed.
        juliet.raw.reset().unwrap();
        drop(Managed::login(&server, "juliet", "managed").await);
    }
    // One that answers the ping has them, and keeps them when it is cut.
    let mut juliet = login(&server, "juliet", "answers").await;
    juliet.send("<presence/>").await.unwrap();
    assert_eq!(unanswered(&mut juliet, 10).await, numbers(0..10));
    loop {
        let stanza = juliet.raw().next_element("the server's ping").await.unwrap();
        if is_ping(&stanza) {
            let id = stanza.attr("id").unwrap();
            juliet.send(format!("<iq type='result' to='localhost' id='{id}'/>")).await.unwrap();
            break;
        }
    }
    juliet.drain().await.unwrap();
    juliet.reset().unwrap();
    // One that closes its stream properly without having answered.
    romeo.send(messages(JULIET, 10..20)).await;
    romeo.settled(20).await;
    let mut juliet = login(&server, "juliet", "closes").await;
    juliet.send("<presence/>").await.unwrap();
    assert_eq!(unanswered(&mut juliet, 10).await, numbers(10..20));
    juliet.close().await.unwrap();
    let mut juliet = Managed::available(&server, "juliet", "last").await;
    assert_eq!(juliet.rest().await, [""; 0]);
    drop((romeo, juliet));
    server.finish();
}

/// P7: the server's `</stream:stream>` says that everything before the client's is stored.
#[tokio::test]
async fn p7_the_end_of_the_stream_confirms_what_came_before() {
    let mut server = server();
    for round in 0..5 {
        let mut romeo = login(&server, "romeo", "r").await;
        let range = round * 200..(round + 1) * 200;
        romeo.send(messages(JULIET, range)).await.unwrap();
        romeo.send("</stream:stream>").await.unwrap();
        while !matches!(romeo.raw().next_event("</stream:stream>").await.unwrap(), StreamEvent::End) {}
        crash(&mut server);
    }
    let mut juliet = Managed::login(&server, "juliet", "r").await;
    juliet.send("<presence/>").await;
    assert_eq!(juliet.bodies(1_000).await, numbers(0..1_000));
    drop(juliet);
    server.finish();
}

/// P1: while the disk cannot be written to nothing is acknowledged, and nothing acknowledged is
/// ever less after a crash in the middle of a burst. P4: what is resent after `h` comes once.
#[tokio::test]
async fn p4_a_burst_cut_by_a_crash_arrives_once() {
    const COUNT: usize = 1_000;
    let mut server = server();
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    let mut next = 0;
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut seen = Vec::new();
    for round in 0..4 {
        romeo.send(messages(JULIET, next..next + COUNT / 4)).await;
        // Somewhere in the middle: some were acknowledged, most not yet.
        if round % 2 == 0 {
            romeo.send("<r xmlns='urn:xmpp:sm:3'/>").await;
            romeo.number().await;
        }
        server.kill().unwrap();
        // What had come to the client's socket before.
        while let Ok(stanza) = juliet.try_stanza("what came").await {
            seen.extend(body(&stanza));
        }
        server.start_again().unwrap();
        let (resumed, handled) = Managed::resume(&server, "romeo", &romeo.id, romeo.received).await.unwrap();
        romeo = resumed;
        let sent = next + COUNT / 4;
        romeo.send(messages(JULIET, handled as usize..sent)).await;
        romeo.settled(sent as u32).await;
        next = sent;
        let (id, h) = (juliet.id.clone(), juliet.received);
        juliet = Managed::resume(&server, "juliet", &id, h).await.unwrap().0;
        // A break lets a message come again; its place in the order stays what it was first.
        seen.extend(juliet.rest().await);
        while !seen.iter().any(|number| *number == (sent - 1).to_string()) {
            seen.extend(juliet.bodies(1).await);
        }
        juliet.acknowledge().await;
    }
    let mut first = Vec::new();
    let mut known = std::collections::HashSet::new();
    for number in seen {
        if known.insert(number.clone()) {
            first.push(number);
        }
    }
    assert_eq!(first, numbers(0..COUNT));
    drop((romeo, juliet));
    server.finish();
}

/// P3: the copies of a message that came twice name the same archive entry, and the later one
/// says since when it waits.
#[tokio::test]
async fn p3_redelivery_is_marked() {
    let server = server();
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut juliet = login(&server, "juliet", "r").await;
    juliet.become_available().await.unwrap();
    romeo.send(message(JULIET, 1)).await;
    let first = juliet.next("the message").await.unwrap();
    juliet.reset().unwrap();
    let mut juliet = Managed::login(&server, "juliet", "r").await;
    juliet.send("<presence/>").await;
    let again = loop {
        let stanza = juliet.stanza("the message again").await;
        if stanza.local() == "message" {
            break stanza;
        }
    };
    let id = |stanza: &Element| {
        let id = stanza.child_in("urn:xmpp:sid:0").unwrap_or_else(|| panic!("{stanza}"));
        assert_eq!(id.attr("by"), Some(JULIET));
        id.attr("id").unwrap().to_owned()
    };
    assert_eq!(id(&first), id(&again));
    assert!(first.child_in("urn:xmpp:delay").is_none(), "{first}");
    assert!(again.child_in("urn:xmpp:delay").is_some(), "{again}");
    drop((romeo, juliet));
    server.finish();
}

//! DELIVERY 4 and SECURITY.md row M9: each limit is reached, and what then happens is what is said
//! there. Nothing that was acknowledged is lost by any of them.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Client, Config, Login, Server};
use waystation_security::condition;
use waystation_security::managed::{Managed, SM, eventually, message, messages, numbers, outcome};

const JULIET: &str = "juliet@localhost";

fn server(settings: &[(&str, &str)]) -> Server {
    let config = Config::default()
        .with_users(["romeo", "juliet"])
        .with("limits.connection_rate", "0")
        .with("limits.inbound_rate", "\"1 GiB\"")
        .with("limits.inbound_burst", "\"1 GiB\"");
    Server::start(settings.iter().fold(config, |config, (key, value)| config.with(key, value))).unwrap()
}

/// Logs in anew and takes all that waits.
async fn collect(server: &Server, resource: &str, count: usize) -> Vec<String> {
    let mut juliet = Managed::login(server, "juliet", resource).await;
    juliet.send("<presence/>").await;
    let bodies = juliet.bodies(count).await;
    juliet.acknowledge().await;
    assert_eq!(juliet.rest().await, [""; 0]);
    juliet.raw.close().await.unwrap();
    bodies
}

/// Offline messages: exactly so many, then `resource-constraint` of type wait; none is removed.
#[tokio::test]
async fn offline_messages() {
    let server = server(&[("limits.offline_messages", "50")]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    romeo.send(messages(JULIET, 0..53)).await;
    for number in 50..53 {
        let error = romeo.stanza("the refusal").await;
        assert_eq!(error.attr("id"), Some(&*format!("m{number}")), "{error}");
        assert_eq!(condition(&error), "resource-constraint");
        assert_eq!(error.child("error").unwrap().attr("type"), Some("wait"));
    }
    romeo.settled(53).await;
    assert_eq!(collect(&server, "r", 50).await, numbers(0..50));
    // There is room again.
    romeo.send(message(JULIET, 60)).await;
    romeo.settled(54).await;
    assert_eq!(collect(&server, "r", 1).await, ["60"]);
    drop(romeo);
    server.finish();
}

/// The same by their bytes.
#[tokio::test]
async fn offline_bytes() {
    let server = server(&[("limits.offline_bytes", "\"64 KiB\"")]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let long = "x".repeat(10_000);
    for number in 0..10 {
        romeo
            .send(format!("<message to='{JULIET}' type='chat' id='{number}'><body>{long}</body></message>"))
            .await;
    }
    for number in 6..10 {
        let error = romeo.stanza("the refusal").await;
        assert_eq!(error.attr("id"), Some(&*number.to_string()));
        assert_eq!(condition(&error), "resource-constraint");
    }
    assert_eq!(collect(&server, "r", 6).await.len(), 6);
    drop(romeo);
    server.finish();
}

/// M9: 5,000 stanzas to a client that never acknowledges. Its session is closed with
/// `policy-violation` and cannot be resumed; all of them wait for the next one.
#[tokio::test]
async fn m9_a_client_that_never_acknowledges() {
    let server = server(&[]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    for batch in 0..10 {
        romeo.send(messages(JULIET, batch * 500..(batch + 1) * 500)).await;
    }
    let mut got = 0;
    let error = loop {
        match juliet.try_stanza("the next one, or the end").await {
            Ok(_) => got += 1,
            Err(error) => break error.to_string(),
        }
    };
    assert!(error.contains("policy-violation"), "after {got}: {error}");
    assert!(got <= 1_001, "{got}");
    romeo.settled(5_000).await;
    let refused = Managed::resume(&server, "juliet", &juliet.id, 0).await.err().unwrap();
    assert_eq!(outcome(&refused), "failed item-not-found");
    assert_eq!(collect(&server, "r", 5_000).await, numbers(0..5_000));
    drop((romeo, juliet));
    server.assert_log_is_clean();
}

/// The same client, resuming again and again: what is kept for it has a bound over all of its
/// connections.
#[tokio::test]
async fn m9_a_client_that_resumes_and_never_acknowledges() {
    let server = server(&[("limits.outbound_stanzas", "100")]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut juliet = Managed::available(&server, "juliet", "r").await;
    let (mut sent, mut rounds) = (0, 0);
    let refused = loop {
        romeo.send(messages(JULIET, sent..sent + 90)).await;
        sent += 90;
        romeo.settled(sent as u32).await;
        let id = juliet.id.clone();
        match Managed::resume(&server, "juliet", &id, 0).await {
            Ok((next, _)) => juliet = next,
            Err(refused) => break refused,
        }
        rounds += 1;
        assert!(rounds < 10, "resumed {rounds} times with all that came since");
    };
    assert_eq!(outcome(&refused), "failed item-not-found");
    drop(juliet);
    assert_eq!(collect(&server, "r", sent).await, numbers(0..sent));
    drop(romeo);
    server.finish();
}

/// M9: requests for the number, as many as a client likes, with nothing read.
#[tokio::test]
async fn m9_a_flood_of_requests() {
    let mut server = server(&[]);
    let mut juliet = Managed::login(&server, "juliet", "r").await;
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    server.rebase().unwrap();
    let flood = format!("<r xmlns='{SM}'/>").repeat(20_000);
    for _ in 0..5 {
        romeo.send(&flood).await;
    }
    // Others are served meanwhile, and so is it.
    juliet.send(message("romeo@localhost/r", 1)).await;
    juliet.settled(1).await;
    assert_eq!(romeo.bodies(1).await, ["1"]);
    let grown = server.sample().unwrap().rss.saturating_sub(server.baseline().rss);
    assert!(grown < 32 << 20, "{grown} bytes");
    drop((romeo, juliet));
    server.assert_log_is_clean();
}

/// M9: 10,000 stanzas for a session that waits for its client: its state is dropped, memory stays
/// bounded, the messages wait for the next login.
#[tokio::test]
async fn m9_a_detached_session_and_ten_thousand_messages() {
    const COUNT: usize = 10_000;
    let mut server = server(&[]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let juliet = Managed::available(&server, "juliet", "r").await;
    let id = juliet.id.clone();
    juliet.raw.reset().unwrap();
    server.rebase().unwrap();
    for batch in 0..20 {
        romeo.send(messages(JULIET, batch * 500..(batch + 1) * 500)).await;
    }
    romeo.settled(COUNT as u32).await;
    let grown = server.sample().unwrap().rss.saturating_sub(server.baseline().rss);
    // The write buffers of the store are part of it, with all of their limit, and pages of the
    // queue.
    assert!(grown < 64 << 20, "{grown} bytes");
    let refused = Managed::resume(&server, "juliet", &id, 0).await.err().unwrap();
    assert_eq!(outcome(&refused), "failed item-not-found");
    assert_eq!(collect(&server, "r", COUNT).await, numbers(0..COUNT));
    drop(romeo);
    server.assert_log_is_clean();
}

/// Detached sessions of an account: the oldest gives way, and what it held waits.
#[tokio::test]
async fn detached_sessions() {
    let server = server(&[("limits.detached_sessions", "3")]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let mut juliet = Managed::login(&server, "juliet", &format!("r{number}")).await;
        romeo.send(message(&format!("{JULIET}/r{number}"), number)).await;
        assert_eq!(juliet.bodies(1).await, [number.to_string()]);
        ids.push(juliet.id.clone());
        juliet.raw.reset().unwrap();
        let ended = format!("session ended session={JULIET}/r{number}");
        eventually("the connection is missed", async || server.log().contains(&ended).then_some(())).await;
    }
    for (number, id) in ids.iter().enumerate() {
        match Managed::resume(&server, "juliet", id, 0).await {
            Ok((mut juliet, _)) => {
                assert!(number >= 2, "{number} was to give way");
                assert_eq!(juliet.bodies(1).await, [number.to_string()]);
                juliet.acknowledge().await;
                assert_eq!(juliet.rest().await, [""; 0]);
                juliet.raw.close().await.unwrap();
            }
            Err(refused) => {
                assert!(number < 2, "{number}: {refused}");
                assert_eq!(outcome(&refused), "failed item-not-found");
            }
        }
    }
    assert_eq!(collect(&server, "new", 2).await, numbers(0..2));
    drop(romeo);
    server.finish();
}

/// Presence for a session that does not read: the last one of each sender waits, and comes once
/// it reads; the session is not closed over it.
#[tokio::test]
async fn presence_for_a_session_that_does_not_read() {
    let server = server(&[("limits.outbound_stanzas", "16"), ("limits.presence_rate", "0")]);
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let login = Login::resource("slow");
    let mut juliet = Client::login(server.endpoint(), server.account("juliet"), &login).await.unwrap();
    juliet.become_available().await.unwrap();
    // Large enough that the network's own buffers fill up.
    let filler = "x".repeat(12_000);
    const COUNT: usize = 2_000;
    for number in 0..COUNT {
        romeo
            .send(format!(
                "<presence to='{JULIET}/slow'><status>{number}</status><x xmlns='u'>{filler}</x></presence>"
            ))
            .await;
    }
    romeo.settled(COUNT as u32).await;
    let (mut got, mut last) = (0, String::new());
    while last != (COUNT - 1).to_string() {
        let stanza = juliet.next("presence").await.unwrap();
        if stanza.local() == "presence" {
            let status = stanza.child("status").unwrap().text();
            assert!(last.is_empty() || last.parse::<usize>().unwrap() < status.parse().unwrap(), "in order");
            (got, last) = (got + 1, status);
        }
    }
    assert!(got < COUNT, "all {got} of them had room");
    drop((romeo, juliet));
    server.finish();
}

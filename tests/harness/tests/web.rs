//! This project's server from the web: what it shares with its peers, and sessions that outlive it.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Client, Config, Kind, Link, Login, Server, Transport};

mod on_the_web;

#[tokio::test]
async fn websocket() {
    on_the_web::every_step(Kind::Waystation, Transport::WebSocket).await;
}

#[tokio::test]
async fn bosh() {
    on_the_web::every_step(Kind::Waystation, Transport::Bosh).await;
}

/// The session goes on after the server was killed, and what it sent comes once.
#[tokio::test]
async fn bosh_outlives_the_server() {
    let config = Config { kind: Kind::Waystation, web: true, ..Config::default() };
    let mut server = Server::start(config.with_users(["romeo", "juliet"])).unwrap();
    let at = server.endpoint().clone();
    let (romeo, juliet) = (server.account("romeo").clone(), server.account("juliet").clone());
    let (mut link, _) = Link::authenticate(Transport::Bosh, &at, &romeo, &Login::default()).await.unwrap();
    let jid = link.bind(Some("orchard")).await.unwrap();
    link.send("<presence/>").await.unwrap();
    link.next_element("the own presence").await.unwrap();
    let Link::Bosh(mut bosh) = link else { panic!("another transport") };
    let sid = bosh.exchange().sid().to_owned();

    // One with each of the two requests that may be open, and more that wait.
    for n in 0..4 {
        if n == 2 {
            server.kill().unwrap();
        }
        let message =
            format!("<message to='juliet@localhost' type='chat' id='{n}'><body>{n}</body></message>");
        // That the server is gone shows when it is spoken to: both requests are open.
        bosh.send(&message).await.unwrap();
    }
    server.start_again().unwrap();
    bosh.reset();

    let mut juliet = Client::login(&at, &juliet, &Login::resource("balcony")).await.unwrap();
    let mut got: Vec<String> = Vec::new();
    let text = |e: &waystation_harness::xml::Element| e.child("body").map(|body| body.text());
    got.extend(juliet.become_available().await.unwrap().iter().filter_map(text));
    juliet.send(format!("<message to='{jid}' type='chat'><body>back</body></message>")).await.unwrap();
    let mut link = Link::Bosh(bosh);
    assert_eq!(on_the_web::body(&mut link).await, "back");
    while got.len() < 4 {
        tokio::select! {
            stanza = juliet.next("the messages") => got.extend(text(&stanza.unwrap())),
            // What waits goes with the requests that are made while someone waits.
            event = link.next_event("nothing") => drop(event.unwrap()),
        }
    }
    got.extend(juliet.drain().await.unwrap().iter().filter_map(text));
    assert_eq!(got, ["0", "1", "2", "3"]);
    let Link::Bosh(mut bosh) = link else { panic!("another transport") };
    assert_eq!(bosh.exchange().sid(), sid);
    Link::Bosh(bosh).close().await.unwrap();
    juliet.close().await.unwrap();
    server.finish();
}

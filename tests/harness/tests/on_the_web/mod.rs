//! What a client over BOSH or a WebSocket does, on whatever server.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::xml::StreamEvent;
use waystation_harness::{Client, Config, Kind, Link, Login, Mechanism, Server, Transport};

const SM: &str = "urn:xmpp:sm:3";

/// The next message with a body, which is returned.
pub(crate) async fn body(link: &mut Link) -> String {
    loop {
        let element = link.next_element("a message").await.unwrap();
        if let Some(body) = element.child("body") {
            return body.text();
        }
    }
}

/// A login by each mechanism, messages both ways, a close; then what breaks on each transport.
pub(crate) async fn every_step(kind: Kind, over: Transport) {
    let modules = match kind {
        Kind::Waystation => Vec::new(),
        Kind::Prosody => vec!["smacks".to_owned()],
        Kind::Ejabberd => vec!["mod_stream_mgmt: {}".to_owned()],
    };
    let config = Config { kind, web: true, unlimited: true, modules, ..Config::default() }
        .with_users(["romeo", "juliet"]);
    let server = Server::start(config).unwrap();
    let at = server.endpoint().clone();
    let mut juliet = Client::login(&at, server.account("juliet"), &Login::resource("balcony")).await.unwrap();
    juliet.become_available().await.unwrap();
    for mechanism in [Mechanism::ScramSha1, Mechanism::Plain] {
        let login = Login { mechanism: Some(mechanism), ..Login::default() };
        let account = server.account("romeo");
        let (mut romeo, _) = Link::authenticate(over, &at, account, &login).await.unwrap();
        let jid = romeo.bind(Some("orchard")).await.unwrap();
        assert_eq!(jid, "romeo@localhost/orchard");
        romeo.send("<presence/>").await.unwrap();
        let text = "O".repeat(100_000);
        for n in 0..20 {
            let message =
                format!("<message to='juliet@localhost' type='chat'><body>{n} {text}</body></message>");
            romeo.send(&message).await.unwrap();
            // One at a time: where requests overtake each other on their two connections, ejabberd was seen to
            // leave both unanswered for a minute.
            let message = loop {
                let received = tokio::select! {
                    received = juliet.next("the message") => received.unwrap(),
                    // Over BOSH what is queued goes only while someone waits.
                    event = romeo.next_event("nothing") => {
                        assert!(!matches!(event.unwrap(), StreamEvent::End));
                        continue;
                    }
                };
                if received.local() == "message" {
                    break received;
                }
            };
            assert_eq!(message.attr("from"), Some("romeo@localhost/orchard"));
            assert_eq!(message.child("body").unwrap().text(), format!("{n} {text}"));
        }
        juliet.send(format!("<message to='{jid}' type='chat'><body>{text}</body></message>")).await.unwrap();
        assert_eq!(body(&mut romeo).await, text);
        romeo.close().await.unwrap();
    }
    match over {
        Transport::Bosh => broken_requests(&server, &mut juliet).await,
        _ => resumption(&server, over, &mut juliet).await,
    }
    juliet.close().await.unwrap();
    server.finish();
}

/// A BOSH session goes on over new connections, and says the same to the same request.
async fn broken_requests(server: &Server, juliet: &mut Client) {
    let at = server.endpoint();
    let login = Login { mechanism: Some(Mechanism::ScramSha1), ..Login::default() };
    let (mut link, _) =
        Link::authenticate(Transport::Bosh, at, server.account("romeo"), &login).await.unwrap();
    let jid = link.bind(Some("orchard")).await.unwrap();
    link.send("<presence/>").await.unwrap();
    juliet.send(format!("<message to='{jid}' type='chat'><body>one</body></message>")).await.unwrap();
    assert_eq!(body(&mut link).await, "one");
    let Link::Bosh(mut romeo) = link else { panic!("another transport") };
    romeo.hold().await.unwrap();
    let open = romeo.exchange().unanswered().next().unwrap();
    let again = romeo.exchange().repeat(open - 1).await.unwrap();
    assert!(String::from_utf8_lossy(&again).contains("<body>one</body>"), "{again:?}");
    romeo.reset();
    juliet.send(format!("<message to='{jid}' type='chat'><body>two</body></message>")).await.unwrap();
    let mut link = Link::Bosh(romeo);
    assert_eq!(body(&mut link).await, "two");
    link.close().await.unwrap();
}

/// What was sent to a broken stream comes after its resumption (XEP-0198).
async fn resumption(server: &Server, over: Transport, juliet: &mut Client) {
    let (at, account) = (server.endpoint(), server.account("romeo"));
    let login = Login { mechanism: Some(Mechanism::ScramSha1), ..Login::default() };
    let (mut romeo, _) = Link::authenticate(over, at, account, &login).await.unwrap();
    let jid = romeo.bind(Some("orchard")).await.unwrap();
    romeo.send(&format!("<enable xmlns='{SM}' resume='true'/>")).await.unwrap();
    let enabled = romeo.next_element("<enabled/>").await.unwrap();
    let id = enabled.attr("id").unwrap().to_owned();
    romeo.reset().unwrap();
    juliet.send(format!("<message to='{jid}' type='chat'><body>two</body></message>")).await.unwrap();
    juliet.drain().await.unwrap();
    let (mut romeo, _) = Link::authenticate(over, at, account, &login).await.unwrap();
    romeo.send(&format!("<resume xmlns='{SM}' previd='{id}' h='0'/>")).await.unwrap();
    assert_eq!(romeo.next_element("<resumed/>").await.unwrap().local(), "resumed");
    assert_eq!(body(&mut romeo).await, "two");
    romeo.close().await.unwrap();
}

//! Clients of web transports: what differs from TCP (no STARTTLS, no channel binding, encryption is
//! the transport's), and what must not (limits, deadlines, the frozen account, resumption).
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;

use std::time::Duration;

use common::{RIGHT, Server};

#[actix_rt::test]
async fn a_secure_client_logs_in_with_plain_and_is_offered_neither_starttls_nor_channel_binding() {
    let server = Server::start(|_| {}).await;
    let mut client = server.connect(true);
    client.open("localhost").await;
    let features = client.until("</stream:features>").await;
    assert!(features.contains("<mechanism>PLAIN</mechanism>"), "{features}");
    assert!(features.contains("<mechanism>SCRAM-SHA-256</mechanism>"), "{features}");
    for absent in ["starttls", "-PLUS", "channel-binding"] {
        assert!(!features.contains(absent), "{absent}: {features}");
    }
    client
        .send(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{RIGHT}</auth>"))
        .await;
    client.until("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").await;
    client.open("localhost").await;
    client.until("</stream:features>").await;
    assert!(client.bind("web").await.contains("<jid>romeo@localhost/web</jid>"));
    client.send("<iq type='get' id='q'><query xmlns='jabber:iq:roster'/></iq>").await;
    let roster = client.until("</iq>").await;
    assert!(roster.contains("id='q'") && roster.contains("type='result'"), "{roster}");
    client.send("</stream:stream>").await;
    assert!(client.until_end().await.ends_with("</stream:stream>"));
    assert!(!client.end.is_lost(), "an orderly end");
}

#[actix_rt::test]
async fn an_insecure_client_is_sent_away_where_tls_is_required() {
    let server = Server::start(|_| {}).await;
    for authenticated in [false, true] {
        let mut client =
            if authenticated { server.connect_as("romeo@localhost", false) } else { server.connect(false) };
        client.open("localhost").await;
        let answer = client.until_end().await;
        assert!(answer.contains("<policy-violation") && answer.contains("TLS is required"), "{answer}");
        assert!(!answer.contains("features"), "{answer}");
    }
}

#[actix_rt::test]
async fn an_insecure_client_where_tls_is_not_required_gets_no_plain() {
    let server = Server::start(|c2s| c2s.tls_required = false).await;
    let mut client = server.connect(false);
    client.open("localhost").await;
    let features = client.until("</stream:features>").await;
    assert!(features.contains("SCRAM-SHA-256<"), "{features}");
    assert!(!features.contains("PLAIN") && !features.contains("starttls"), "{features}");
    client
        .send(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{RIGHT}</auth>"))
        .await;
    assert!(client.until("</failure>").await.contains("<encryption-required/>"));
}

#[actix_rt::test]
async fn starttls_is_refused_and_ends_the_stream() {
    let server = Server::start(|c2s| c2s.tls_required = false).await;
    for secure in [true, false] {
        let mut client = server.connect(secure);
        client.open("localhost").await;
        client.until("</stream:features>").await;
        client.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await;
        let answer = client.until_end().await;
        assert_eq!(answer, "<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/></stream:stream>");
    }
}

#[actix_rt::test]
async fn an_authenticated_client_begins_with_bind() {
    let server = Server::start(|_| {}).await;
    // A full JID stands for its account.
    for account in ["romeo@localhost", "romeo@localhost/x"] {
        let mut client = server.connect_as(account, true);
        client.open("localhost").await;
        let features = client.until("</stream:features>").await;
        assert!(features.contains("xmpp-bind") && !features.contains("mechanism"), "{features}");
        assert!(client.bind("known").await.contains("<jid>romeo@localhost/known</jid>"));
        client
            .send("<iq type='get' id='q' to='romeo@localhost'><query xmlns='jabber:iq:roster'/></iq>")
            .await;
        let roster = client.until("</iq>").await;
        assert!(roster.contains("type='result'"), "the roster is the account's own: {roster}");
    }
}

#[actix_rt::test]
async fn x14_an_authenticated_client_cannot_change_its_host() {
    let server = Server::start(|_| {}).await;
    for (to, condition) in [("other.test", "not-authorized"), ("nowhere.test", "host-unknown")] {
        let mut client = server.connect_as("romeo@localhost", true);
        client.open(to).await;
        let answer = client.until_end().await;
        assert!(answer.contains(condition) && !answer.contains("features"), "{answer}");
    }
}

#[actix_rt::test]
async fn an_authenticated_client_without_an_account_is_refused() {
    let server = Server::start(|_| {}).await;
    let mut client = server.connect_as("nobody@localhost", true);
    client.open("localhost").await;
    client.until("</stream:features>").await;
    client.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
    assert!(client.until_end().await.contains("<not-authorized"));
}

#[actix_rt::test]
async fn x19_both_kinds_of_clients_have_the_time_that_others_have() {
    let server = Server::start(|c2s| c2s.limits.unauthenticated = Duration::from_millis(300)).await;
    for mut client in [server.connect(true), server.connect_as("romeo@localhost", true)] {
        let answer = client.until_end().await;
        assert!(answer.contains("<connection-timeout"), "{answer}");
    }
}

#[actix_rt::test]
async fn x9_limits_before_and_after_authentication_are_those_of_other_clients() {
    let server = Server::start(|_| {}).await;
    let mut client = server.connect(true);
    client.open("localhost").await;
    client.until("</stream:features>").await;
    client.send(&format!("<auth xmlns='urn:x' a='{}", "x".repeat(9000))).await;
    assert!(client.until_end().await.contains("<policy-violation"));

    let mut client = server.connect_as("romeo@localhost", true);
    client.open("localhost").await;
    client.until("</stream:features>").await;
    client.bind("big").await;
    let body = "x".repeat(200_000);
    client.send(&format!("<iq type='get' id='big'><query xmlns='urn:x'>{body}</query></iq>")).await;
    assert!(client.until("</iq>").await.contains("id='big'"));
}

#[actix_rt::test]
async fn a_lost_connection_is_resumed_over_another_and_an_ended_stream_is_not() {
    let server = Server::start(|_| {}).await;
    for lost in [true, false] {
        let mut client = server.connect(true);
        client.log_in().await;
        client.bind("phone").await;
        client.send("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
        let enabled = client.until("/>").await;
        let key = enabled.split("id='").nth(1).unwrap().split('\'').next().unwrap().to_owned();
        if lost {
            drop(client);
        } else {
            client.send("</stream:stream>").await;
            client.until_end().await;
        }
        let mut client = server.connect_as("romeo@localhost", true);
        client.open("localhost").await;
        client.until("</stream:features>").await;
        client.send(&format!("<resume xmlns='urn:xmpp:sm:3' h='0' previd='{key}'/>")).await;
        if lost {
            assert!(client.until("/>").await.contains("<resumed"));
        } else {
            assert!(client.until("</failed>").await.contains("item-not-found"));
        }
    }
}

#[actix_rt::test]
async fn a_stop_of_the_server_tells_web_clients() {
    let server = Server::start(|_| {}).await;
    let mut client = server.connect(true);
    client.open("localhost").await;
    client.until("</stream:features>").await;
    let stop = server.drain.drain(Duration::ZERO);
    tokio::join!(stop, async { assert!(client.until_end().await.contains("<system-shutdown")) });
}

#[actix_rt::test]
async fn a_client_that_has_nothing_new_to_acknowledge_is_asked_again_only_after_a_while() {
    const ASKED: &str = "<r xmlns='urn:xmpp:sm:3'/>";
    let server = Server::start(|_| {}).await;
    let mut client = server.connect_as("romeo@localhost", true);
    client.open("localhost").await;
    client.until("</stream:features>").await;
    client.bind("slow").await;
    client.send("<enable xmlns='urn:xmpp:sm:3'/>").await;
    client.until("<enabled xmlns='urn:xmpp:sm:3'/>").await;
    let query = |id| format!("<iq type='get' id='{id}'><query xmlns='jabber:iq:roster'/></iq>");
    client.send(&query("q")).await;
    client.until("</iq>").await;
    client.until(ASKED).await;
    for seconds in [1, 2] {
        let began = std::time::Instant::now();
        client.send("<a xmlns='urn:xmpp:sm:3' h='0'/>").await;
        client.until(ASKED).await;
        assert!(began.elapsed() >= Duration::from_secs(seconds), "asked again after {:?}", began.elapsed());
    }
    client.send("<a xmlns='urn:xmpp:sm:3' h='0'/>").await;
    // What is sent next is asked about at once, and what is new brings the next question.
    client.send(&query("next")).await;
    client.until("id='next'").await;
    client.until(ASKED).await;
    client.send("<a xmlns='urn:xmpp:sm:3' h='1'/>").await;
    client.until(ASKED).await;
}

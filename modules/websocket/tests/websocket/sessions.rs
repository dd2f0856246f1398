//! Streams over WebSocket, from `<open/>` to `<close/>` and beyond.

use std::time::Duration;

use waystation_websocket::Settings;

use crate::client::{CLOSE, Client, Frame, OPEN, Site, masked};
use crate::common::RIGHT;

const FEATURES: &str = "<stream:features xmlns:stream='http://etherx.jabber.org/streams'>";

#[actix_rt::test]
async fn a_client_logs_in_binds_asks_and_closes() {
    let site = Site::start().await;
    let mut client = site.connect().await;
    client.text(OPEN).await;
    let open = client.next_text().await;
    assert!(
        open.starts_with("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='localhost' id='"),
        "{open}"
    );
    assert!(open.ends_with(" version='1.0' xml:lang='en'/>"), "{open}");
    let features = client.next_text().await;
    assert!(features.starts_with(FEATURES) && features.contains(">PLAIN<"), "{features}");
    // RFC 7395 3.9.
    assert!(!features.contains("starttls"), "{features}");
    client
        .text(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{RIGHT}</auth>"))
        .await;
    assert_eq!(client.next_text().await, "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
    client.text(OPEN).await;
    let again = client.next_text().await;
    assert!(again.starts_with("<open ") && again != open, "a new stream has a new id: {again}");
    assert!(client.next_text().await.contains("<bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/>"));
    client.text("<iq xmlns='jabber:client' type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>").await;
    let bound = client.next_text().await;
    assert!(bound.starts_with("<iq xmlns='jabber:client' ") && bound.contains("romeo@localhost/"), "{bound}");
    client.ask("r").await;
    client.text(CLOSE).await;
    assert_eq!(client.next_text().await, CLOSE);
    client.expect_close(1000).await;
}

#[actix_rt::test]
async fn what_a_client_sends_ahead_is_kept_for_its_turn() {
    let site = Site::start().await;
    let mut client = site.connect().await;
    let auth = format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{RIGHT}</auth>");
    let bind = "<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";
    let before = [OPEN, &auth].map(|text| masked(0x81, text.as_bytes())).concat();
    let after = [OPEN, bind, CLOSE].map(|text| masked(0x81, text.as_bytes())).concat();
    let answers = [&["<open ", FEATURES, "<success "][..], &["<open ", FEATURES, "<iq ", CLOSE]];
    for (sent, answers) in [before, after].iter().zip(answers) {
        // In the smallest pieces that TCP may make of it.
        for piece in sent.chunks(1) {
            client.raw(piece).await;
        }
        for start in answers {
            let text = client.next_text().await;
            assert!(text.starts_with(start), "{text} does not start with {start}");
        }
    }
    client.expect_close(1000).await;
}

#[actix_rt::test]
async fn a_client_without_tls_is_sent_away_where_it_is_required() {
    let site = Site::with(Settings::default(), false, |_| {}).await;
    let mut client = site.connect().await;
    client.text(OPEN).await;
    assert!(client.next_text().await.starts_with("<open "));
    client.expect_error("policy-violation").await;
}

#[actix_rt::test]
async fn an_unknown_host_is_an_error_after_an_open() {
    let site = Site::start().await;
    let mut client = site.connect().await;
    client.text(&OPEN.replace("localhost", "nowhere.test")).await;
    assert!(client.next_text().await.starts_with("<open "));
    client.expect_error("host-unknown").await;
}

async fn enable(client: &mut Client) -> String {
    client.text("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").await;
    let enabled = client.next_text().await;
    enabled.split(" id='").nth(1).unwrap().split('\'').next().unwrap().to_owned()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Dropped,
    WebSocketClosed,
    FramesBroken,
    StreamClosed,
    StreamClosedAndDropped,
}

#[actix_rt::test]
async fn a_lost_connection_can_be_resumed_and_a_closed_stream_cannot() {
    let site = Site::start().await;
    for end in [
        End::Dropped,
        End::WebSocketClosed,
        End::FramesBroken,
        End::StreamClosed,
        End::StreamClosedAndDropped,
    ] {
        let mut client = site.log_in("web").await;
        let key = enable(&mut client).await;
        match end {
            End::Dropped => {}
            End::WebSocketClosed => {
                client.raw(&masked(0x88, &1001u16.to_be_bytes())).await;
                assert_eq!(client.next().await, Frame::Close(Some(1001)));
                assert_eq!(client.next().await, Frame::End);
            }
            End::FramesBroken => {
                client.raw(&[0xFF]).await;
                client.expect_close(1002).await;
            }
            End::StreamClosed => {
                client.text(CLOSE).await;
                assert_eq!(client.next_text().await, CLOSE);
                client.expect_close(1000).await;
            }
            End::StreamClosedAndDropped => {
                client.text(CLOSE).await;
                client.raw(&masked(0x88, &[])).await;
                while client.next().await != Frame::End {}
            }
        }
        drop(client);
        let mut client = site.authenticated().await;
        client.text(&format!("<resume xmlns='urn:xmpp:sm:3' h='0' previd='{key}'/>")).await;
        let answer = client.next_text().await;
        if matches!(end, End::StreamClosed | End::StreamClosedAndDropped) {
            assert!(answer.starts_with("<failed "), "{end:?}: {answer}");
        } else {
            assert!(answer.starts_with("<resumed "), "{end:?}: {answer}");
            client.text(CLOSE).await;
            assert_eq!(client.next_text().await, CLOSE);
        }
    }
}

#[actix_rt::test]
async fn pings_are_answered_between_stanzas_and_within_them() {
    let site = Site::start().await;
    let mut client = site.open().await;
    client.raw(&masked(0x89, b"")).await;
    assert_eq!(client.next().await, Frame::Pong(Vec::new()));
    client.raw(&masked(0x01, b"<auth xmlns='urn:ietf:params:xml:ns:")).await;
    let payload = [7; 125];
    client.raw(&masked(0x89, &payload)).await;
    assert_eq!(client.next().await, Frame::Pong(payload.to_vec()));
    client.raw(&masked(0x8A, b"unasked")).await;
    client.raw(&masked(0x80, b"xmpp-sasl' mechanism='NONE'/>")).await;
    assert!(client.next_text().await.contains("invalid-mechanism"));
}

#[actix_rt::test]
async fn a_client_that_does_not_read_is_not_read_from_and_loses_nothing() {
    // What is on its way from the account's route to the session is not what this is about.
    let site = Site::with(Settings::default(), true, |c2s| {
        c2s.limits.outbound_bytes = 1 << 30;
        c2s.limits.outbound_stanzas = 1 << 20;
    })
    .await;
    let mut client = site.log_in("slow").await;
    let padding = "x".repeat(20_000);
    let request =
        format!("<iq xmlns='jabber:client' type='get' id='{padding}'><query xmlns='jabber:iq:roster'/></iq>");
    let frame = masked(0x81, request.as_bytes());
    // What is taken lies in the buffers of the sockets, in both directions.
    let most = 200_000_000 / frame.len();
    let written = client.write_until_blocked(&frame, most).await;
    assert!(written < most, "all of it was taken");
    for n in 0..written {
        let answer = client.next_text().await;
        assert!(
            answer.contains("type='result'"),
            "answer {n} of {written}: {}",
            &answer[..answer.len().min(500)]
        );
    }
}

#[actix_rt::test]
async fn x19_a_client_that_says_nothing_is_told_that_its_time_is_over() {
    let site = Site::with(Settings::default(), true, |c2s| {
        c2s.limits.unauthenticated = Duration::from_millis(300);
    })
    .await;
    let mut client = site.connect().await;
    assert!(client.next_text().await.starts_with("<open "));
    client.expect_error("connection-timeout").await;
}

#[actix_rt::test]
async fn a_stop_of_the_server_is_an_error_and_a_close() {
    let site = Site::start().await;
    let mut client = site.open().await;
    let stop = site.server.drain.drain(Duration::ZERO);
    tokio::join!(stop, client.expect_error("system-shutdown"));
}

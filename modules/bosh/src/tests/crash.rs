//! Sessions that go on after their server died, wherever it was when it did.

use super::*;

/// Polls answered as soon as there is anything, and otherwise soon.
const QUICK: &str = "wait='1' hold='1'";

async fn settled(fake: &Fake, client: &mut Client, server: &Server) {
    // Enabling stream management is stored by the time the next response comes.
    assert_eq!(messages(&client.post(server, "", &stanzas(&["first"])).await), [""; 0]);
    assert_eq!(accepted(fake), ["first"]);
}

#[test]
fn a_session_goes_on_after_a_crash_between_two_requests() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        server.kill().await;
        fake.until("the stream is lost", |state| state.lost == 1).await;
        let server = Server::start(&fake, &store, Settings::default());
        client.post(&server, "", &stanzas(&["second"])).await;
        assert_eq!(accepted(&fake), ["first", "second"]);
        assert_eq!(fake.state().resumed, 1);
        // And once more.
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        fake.state().silent = false;
        let held = client.next();
        let poll = server.post(&held, "");
        let deliver = async {
            fake.until("resumed", |state| state.resumed == 2).await;
            fake.send("m1").await;
        };
        let (response, ()) = tokio::join!(poll, deliver);
        assert_eq!(messages(&response), ["m1"]);
        // The end is the end, also of the record.
        let last = client.post(&server, "type='terminate'", "<presence type='unavailable'/>").await;
        assert_eq!(read(&last).attr("type"), Some("terminate"));
        fake.until("the stream is closed", |state| state.ended_in_order == 1).await;
        while store.rows().await > 0 {
            tokio::task::yield_now().await;
        }
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        let gone = client.post(&server, "", "").await;
        assert_eq!(read(&gone).attr("condition"), Some("item-not-found"));
        server.kill().await;
    });
}

#[test]
fn a_bind_result_waits_until_the_session_is_stored() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::authenticate(&server, QUICK).await;
        // Until the stream can be resumed there is nothing to be stored.
        fake.state().slow_to_enable = true;
        let bind = client.next();
        let vain = server.post_in_vain(&bind, BIND);
        fake.until("it is bound", |state| state.enabling.is_some()).await;
        // Longer than the request may be held.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(!vain.is_finished());
        assert_eq!(store.rows().await, 0);
        // The store takes its time as well.
        store.dead.store(true, Ordering::SeqCst);
        fake.enable().await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!vain.is_finished());
        server.kill().await;
        vain.await.unwrap();
        // Whoever has got the response has a session.
        store.dead.store(false, Ordering::SeqCst);
        fake.state().slow_to_enable = false;
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::authenticate(&server, QUICK).await;
        let bind = client.next();
        let bound = server.post(&bind, BIND).await;
        assert!(bound.contains("juliet@example.org/b"), "{bound}");
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        assert_eq!(server.post(&bind, BIND).await, bound);
        client.post(&server, "", &stanzas(&["first"])).await;
        assert_eq!(accepted(&fake), ["first"]);
        server.kill().await;
    });
}

#[test]
fn a_crash_before_stanzas_are_accepted_loses_none() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        fake.state().dies_after = Some(2);
        let request = client.next();
        let vain = server.post_in_vain(&request, &stanzas(&["a", "b"]));
        fake.until("the stream works", |state| state.lost == 0).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.kill().await;
        vain.await.unwrap();
        assert_eq!(accepted(&fake), ["first"]);
        fake.state().dies_after = None;
        let server = Server::start(&fake, &store, Settings::default());
        server.post(&request, &stanzas(&["a", "b"])).await;
        assert_eq!(accepted(&fake), ["first", "a", "b"]);
        server.kill().await;
    });
}

#[test]
fn a_crash_in_the_middle_of_a_request_sends_only_the_rest() {
    for alive in 1..=3 {
        run(move |fake, store| async move {
            let server = Server::start(&fake, &store, Settings::default());
            let mut client = Client::log_in(&server, QUICK).await;
            settled(&fake, &mut client, &server).await;
            // The bind request was the first one.
            fake.state().dies_after = Some(2 + alive);
            fake.state().silent = true;
            let (first, second) = (client.next(), client.next());
            let vain = [
                server.post_in_vain(&first, &stanzas(&["a", "b"])),
                server.post_in_vain(&second, &stanzas(&["c"])),
            ];
            fake.until("some are accepted", |state| state.accepted.len() == 2 + alive).await;
            server.kill().await;
            for vain in vain {
                vain.await.unwrap();
            }
            fake.state().dies_after = None;
            fake.state().silent = false;
            let server = Server::start(&fake, &store, Settings::default());
            // On two connections, in any order.
            let (a, b) = (server.post(&second, stanzas(&["c"])), server.post(&first, stanzas(&["a", "b"])));
            tokio::join!(a, b);
            assert_eq!(accepted(&fake), ["first", "a", "b", "c"], "{alive} had been accepted");
            server.kill().await;
        });
    }
}

#[test]
fn a_crash_before_the_response_is_stored_carries_nothing_out_twice() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        store.dead.store(true, Ordering::SeqCst);
        let request = client.next();
        let vain = server.post_in_vain(&request, &stanzas(&["a"]));
        fake.until("it is accepted", |state| state.accepted.iter().any(|id| id == "a")).await;
        fake.send("m1").await;
        // It is the stored response that the client waits for.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert!(!vain.is_finished());
        server.kill().await;
        vain.await.unwrap();
        store.dead.store(false, Ordering::SeqCst);
        let server = Server::start(&fake, &store, Settings::default());
        let response = server.post(&request, &stanzas(&["a"])).await;
        assert_eq!(messages(&response), ["m1"], "it was in no response that was sent");
        assert_eq!(accepted(&fake), ["first", "a"]);
        server.kill().await;
    });
}

#[test]
fn m7_a_crash_after_the_response_is_stored_gives_the_same_response() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        fake.send("<presence from='romeo@example.org/a'/>").await;
        fake.send("m1").await;
        let request = client.next();
        let first = server.post(&request, &stanzas(&["a"])).await;
        let mut got = messages(&first);
        if got.is_empty() {
            got = messages(&client.post(&server, "", "").await);
        }
        assert_eq!(got, ["m1"]);
        let last = client.attributes(client.rid);
        let before = server.post(&last, "").await;
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        assert_eq!(server.post(&last, "").await, before);
        assert_eq!(server.post(&request, &stanzas(&["a"])).await, first);
        assert_eq!(accepted(&fake), ["first", "a"]);
        // It is not given again, although the server still has it, and new ones are.
        fake.until("resumed", |state| state.resumed == 1).await;
        assert_eq!(fake.state().kept["key1"].unacked.len(), 1);
        fake.send("m2").await;
        assert_eq!(messages(&client.post(&server, "", "").await), ["m2"]);
        // Later requests say that both have arrived.
        client.post(&server, "", &stanzas(&["b"])).await;
        client.post(&server, "", &stanzas(&["c"])).await;
        fake.until("all is acknowledged", |state| state.kept["key1"].unacked.is_empty()).await;
        server.kill().await;
    });
}

#[test]
fn messages_are_kept_until_a_later_request_says_that_they_arrived() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        let request = client.next();
        let (response, ()) = tokio::join!(server.post(&request, ""), fake.send("m1"));
        assert_eq!(messages(&response), ["m1"]);
        client.post(&server, "", &stanzas(&["a"])).await;
        assert_eq!(fake.state().kept["key1"].unacked.len(), 1, "its response may still be under way");
        client.post(&server, "", &stanzas(&["b"])).await;
        fake.until("it is acknowledged", |state| state.kept["key1"].unacked.is_empty()).await;
        server.kill().await;
    });
}

#[test]
fn a_session_whose_stream_is_gone_is_gone() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        server.kill().await;
        fake.state().kept.clear();
        let server = Server::start(&fake, &store, Settings::default());
        // Two at once: one session, one answer.
        let (a, b) = (client.next(), client.next());
        let (a, b) = tokio::join!(server.post(&a, ""), server.post(&b, ""));
        for response in [a, b] {
            assert_eq!(read(&response).attr("condition"), Some("item-not-found"));
        }
        assert_eq!(store.rows().await, 0);
        server.kill().await;
    });
}

#[test]
fn a_session_goes_on_after_the_server_was_stopped() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, "wait='60' hold='1'").await;
        client.post(&server, "pause='60'", &stanzas(&["first"])).await;
        let request = client.next();
        let stop = async {
            // It is held.
            tokio::time::sleep(Duration::from_millis(300)).await;
            fake.send("<stream:error><system-shutdown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>").await;
        };
        let body = wrapper(&request, "");
        let ((status, head, content), ()) = tokio::join!(server.post_with("", &body), stop);
        assert_eq!((status, content.as_str()), (503, ""));
        assert!(head.contains("retry-after"));
        // Nothing is begun or taken up meanwhile.
        assert_eq!(server.post_with("", &body).await.0, 503);
        let refused = server.post("rid='1' to='example.org' ver='1.6'", "").await;
        assert_eq!(read(&refused).attr("condition"), Some("system-shutdown"));
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        let (response, ()) = tokio::join!(server.post(&request, ""), async {
            fake.until("resumed", |state| state.resumed == 1).await;
            fake.send("m1").await;
        });
        assert_eq!(messages(&response), ["m1"]);
        server.kill().await;
    });
}

#[test]
fn keys_and_the_clients_own_stream_management_outlive_a_crash() {
    run(|fake, store| async move {
        use sha1::{Digest, Sha1};
        let key = |times: usize| {
            let hash = |text: String| Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
            (0..times).fold("seed".to_owned(), |text, _| hash(text))
        };
        let server = Server::start(&fake, &store, Settings::default());
        let mut left = 50;
        let mut keyed = |client: &mut Client| {
            left -= 1;
            format!("{} key='{}'", client.next(), key(left))
        };
        let created = server
            .post(&format!("rid='1' to='example.org' ver='1.11' newkey='{}' {QUICK}", key(50)), "")
            .await;
        let mut client = Client { sid: read(&created).attr("sid").unwrap().to_owned(), rid: 1 };
        for (attributes, content) in [
            ("", "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'/>"),
            ("xmpp:restart='true'", ""),
            ("", "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>"),
        ] {
            server.post(&format!("{} {attributes}", keyed(&mut client)), content).await;
        }
        let sm = |name| format!("<{name} xmlns='urn:xmpp:sm:3'/>");
        let response = server
            .post(&keyed(&mut client), &format!("{}{}{}", sm("enable"), stanzas(&["a"]), sm("r")))
            .await;
        let later = if response.contains("<a ") {
            response
        } else {
            response + &server.post(&keyed(&mut client), "").await
        };
        assert!(later.contains("<enabled") && later.contains("h='1'"), "{later}");
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        let response = server.post(&keyed(&mut client), &format!("{}{}", stanzas(&["b"]), sm("r"))).await;
        let response =
            if response.contains("<a ") { response } else { server.post(&keyed(&mut client), "").await };
        assert!(response.contains("h='2'"), "{response}");
        server.kill().await;
        let server = Server::start(&fake, &store, Settings::default());
        let injected = server.post(&client.next(), &stanzas(&["evil"])).await;
        assert_eq!(read(&injected).attr("condition"), Some("item-not-found"));
        assert_eq!(accepted(&fake), ["a", "b"]);
        server.kill().await;
    });
}

#[test]
fn numbers_stay_right_over_several_crashes_that_lose_presence() {
    run(|fake, store| async move {
        let mut server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, QUICK).await;
        settled(&fake, &mut client, &server).await;
        let mut got = Vec::new();
        for round in 0..4 {
            fake.send("<presence from='romeo@example.org/a'/>").await;
            fake.send("<presence from='romeo@example.org/b'/>").await;
            for i in 0..3 {
                fake.send(&format!("m{round}{i}")).await;
            }
            // Some of it arrives before the crash.
            got.extend(messages(&client.post(&server, "", "").await));
            server.kill().await;
            server = Server::start(&fake, &store, Settings::default());
            got.extend(messages(&client.post(&server, "", &stanzas(&[&format!("a{round}")])).await));
        }
        let started = std::time::Instant::now();
        while !fake.state().kept["key1"].unacked.is_empty() {
            assert!(
                started.elapsed() < DEADLINE,
                "not acknowledged: {:?}",
                fake.state().kept["key1"].unacked
            );
            got.extend(messages(&client.post(&server, "", "").await));
        }
        let sent: Vec<String> =
            (0..4).flat_map(|round| (0..3).map(move |i| format!("m{round}{i}"))).collect();
        assert_eq!(got, sent, "each once, in order");
        assert_eq!(accepted(&fake), ["first", "a0", "a1", "a2", "a3"]);
        server.kill().await;
    });
}

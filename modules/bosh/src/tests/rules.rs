//! The rules of XEP-0124 and XEP-0206 that HTTP has a part in.

use super::*;

/// A server with nothing else.
fn served<F: Future<Output = ()> + 'static>(test: impl FnOnce(Server, Arc<Fake>, Arc<Store>) -> F + 'static) {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let handle = server.handle.clone();
        test(server, fake, store).await;
        handle.stop(false).await;
    });
}

async fn create(server: &Server, attributes: &str) -> Element {
    read(&server.post(&format!("rid='1' {attributes}"), "").await)
}

#[test]
fn xep_0206_a_client_logs_in_talks_and_leaves() {
    served(|server, fake, _| async move {
        let mut client = Client::log_in(&server, "wait='60' hold='1' xml:lang='en'").await;
        let request = client.next();
        let (response, ()) = tokio::join!(server.post(&request, stanzas(&["a"])), async {
            fake.until("it is accepted", |state| state.accepted.iter().any(|id| id == "a")).await;
            fake.send("m1").await;
        });
        assert_eq!(messages(&response), ["m1"]);
        let last = client.post(&server, "type='terminate'", "<presence type='unavailable' id='bye'/>").await;
        assert_eq!(read(&last).attr("type"), Some("terminate"));
        assert_eq!(accepted(&fake), ["a", "bye"]);
        fake.until("the stream is closed", |state| state.ended_in_order == 1).await;
        // What was in a response before the end has arrived.
        assert_eq!(fake.state().left_over, 0);
        // 4: the header of the stream, and of the new one.
        let header = (Some("example.org".to_owned()), Some("en".to_owned()));
        assert_eq!(fake.state().headers, [header.clone(), header]);
        let gone = client.post(&server, "", "").await;
        assert_eq!(read(&gone).attr("condition"), Some("item-not-found"));
    });
}

#[test]
fn m7_xep_0124_7_1_wishes_are_cut_to_the_limits() {
    served(|server, _, _| async move {
        let body =
            create(&server, "to='example.org' ver='1.99' wait='1000000000' hold='1000' requests='1000000'")
                .await;
        for (name, value) in
            [("wait", "120"), ("hold", "2"), ("requests", "3"), ("ver", "1.11"), ("inactivity", "60")]
        {
            assert_eq!(body.attr(name), Some(value), "{name}");
        }
        let body = create(&server, "to='example.org' ver='1.6' wait='10' hold='1'").await;
        for (name, value) in [("wait", "10"), ("hold", "1"), ("requests", "2"), ("ver", "1.6")] {
            assert_eq!(body.attr(name), Some(value), "{name}");
        }
        // 12: polling sessions may be silent for longer.
        for polling in ["wait='0'", "hold='0'"] {
            let body = create(&server, &format!("to='example.org' ver='1.6' {polling}")).await;
            assert_eq!(body.attr("inactivity"), Some("70"));
        }
        let body = create(&server, "to='example.org' ver='1.6'").await;
        assert_eq!((body.attr("wait"), body.attr("hold")), (Some("60"), Some("1")));
    });
}

#[test]
fn m7_xep_0124_7_2_identifiers_have_256_bits_and_none_comes_twice() {
    served(|server, _, _| async move {
        let mut seen = HashSet::new();
        for _ in 0..20 {
            let sid = create(&server, "to='example.org' ver='1.6'").await.attr("sid").unwrap().to_owned();
            assert_eq!(sid.len(), 43);
            assert!(seen.insert(sid));
        }
        for guess in ["", "x", &"A".repeat(43), &seen.iter().next().unwrap()[..42]] {
            let body = read(&server.post(&format!("rid='2' sid='{guess}'"), "").await);
            assert_eq!(
                (body.attr("type"), body.attr("condition")),
                (Some("terminate"), Some("item-not-found"))
            );
        }
    });
}

#[test]
fn xep_0124_17_2_sessions_that_cannot_be_created() {
    served(|server, fake, _| async move {
        for (attributes, condition) in [
            ("to='example.com' ver='1.6'", "host-unknown"),
            ("to='not a host' ver='1.6'", "host-unknown"),
            ("ver='1.6'", "improper-addressing"),
            ("to='' ver='1.6'", "improper-addressing"),
            ("to='juliet@example.org' ver='1.6'", "improper-addressing"),
            ("to='example.org' ver='x'", "bad-request"),
            ("to='example.org' ver='1.6' wait='x'", "bad-request"),
            ("to='example.org' ver='1.6' content='a'", "bad-request"),
            ("to='example.org' ver='1.6' newkey='zz'", "item-not-found"),
            // Legacy clients get HTTP errors for some only.
            ("to='example.com'", "host-unknown"),
        ] {
            let body = create(&server, attributes).await;
            assert_eq!(
                (body.attr("type"), body.attr("condition")),
                (Some("terminate"), Some(condition)),
                "{attributes}"
            );
        }
        for (body, status) in [
            (wrapper("to='example.org' rid='x'", ""), 400),
            (wrapper("to='example.org' rid='1' wait='x'", ""), 400),
            (wrapper("to='example.org' rid='1' key='x'", ""), 404),
        ] {
            assert_eq!(server.post_with("", &body).await.0, status, "{body}");
        }
        assert!(fake.state().headers.is_empty(), "no stream was begun");
    });
}

#[test]
fn m7_xep_0124_7_1_route_is_ignored() {
    served(|server, fake, _| async move {
        let target = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let route = format!("xmpp:127.0.0.1:{}", target.local_addr().unwrap().port());
        let body = create(&server, &format!("to='example.org' ver='1.6' route='{route}'")).await;
        assert!(body.child("features", body::NS_STREAMS).is_some());
        let connected = tokio::time::timeout(Duration::from_millis(200), target.accept()).await;
        assert!(connected.is_err());
        assert_eq!(fake.state().headers.len(), 1);
    });
}

#[test]
fn xep_0124_7_1_all_responses_have_the_content_type_that_the_client_wants() {
    served(|server, _, _| async move {
        for (content, expected) in [
            ("", "text/xml; charset=utf-8"),
            ("content='text/html; charset=utf-8'", "text/html; charset=utf-8"),
        ] {
            let body = wrapper(&format!("rid='1' to='example.org' ver='1.6' wait='0' {content}"), "");
            let (_, head, response) = server.post_with("", &body).await;
            assert!(head.contains(&format!("content-type: {expected}")), "{head}");
            let sid = read(&response).attr("sid").unwrap().to_owned();
            // 5: the type of the request says nothing.
            let body = wrapper(&format!("rid='2' sid='{sid}'"), "");
            let (status, head, _) =
                server.post_with("Content-Type: application/x-www-form-urlencoded\r\n", &body).await;
            assert_eq!(status, 200);
            for header in [
                &format!("content-type: {expected}"),
                "x-content-type-options: nosniff",
                "cache-control: no-store",
                "sandbox",
            ] {
                assert!(head.contains(header), "{header} in {head}");
            }
            assert!(!head.contains("chunked"), "5: not in pieces");
        }
    });
}

#[test]
fn m7_xep_0124_6_bodies_that_are_no_bodies() {
    served(|server, _, _| async move {
        for content in [
            "",
            "text",
            "<body/>",
            &wrapper("rid='1'", "<!-- x -->"),
            "<!DOCTYPE x><x/>",
            &wrapper("rid='1'", "&x;"),
            &format!("<body xmlns='{NS_HTTPBIND}' rid='1'"),
            &format!("<body xmlns='{NS_HTTPBIND}' rid='1'>"),
        ] {
            let (status, _, response) = server.post_with("", content).await;
            assert_eq!(status, 400, "{content}");
            let body = read(&response);
            assert_eq!((body.attr("type"), body.attr("condition")), (Some("terminate"), Some("bad-request")));
        }
        let large = wrapper("rid='1'", &format!("<message><body>{}</body></message>", "x".repeat(300_000)));
        let (status, _, response) = server.post_with("", &large).await;
        assert_eq!((status, read(&response).attr("condition")), (413, Some("policy-violation")));
        let deep = wrapper("rid='1'", &"<a>".repeat(200));
        let (status, _, response) = server.post_with("", &deep).await;
        assert_eq!((status, read(&response).attr("condition")), (400, Some("policy-violation")));
        let encoded = wrapper("rid='1' to='example.org' ver='1.6'", "");
        assert_eq!(server.post_with("Content-Encoding: gzip\r\n", &encoded).await.0, 415);
        assert_eq!(server.post_with("Content-Encoding: identity\r\n", &encoded).await.0, 200);
        // In pieces, which is no reason to refuse it.
        let chunked = format!(
            "POST /http-bind HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{encoded}\r\n0\r\n\r\n",
            encoded.len()
        );
        assert_eq!(server.raw(chunked.as_bytes()).await.0, 200);
    });
}

#[test]
fn xep_0124_5_other_methods() {
    served(|server, _, _| async move {
        let of =
            |method: &str| format!("{method} /http-bind HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let (status, head, page) = server.raw(of("GET").as_bytes()).await;
        assert!(status == 200 && head.contains("text/html") && page.contains("BOSH"));
        let (status, head, page) = server.raw(of("OPTIONS").as_bytes()).await;
        assert!(status == 204 && head.contains("allow: get, head, options, post") && page.is_empty());
        assert_eq!(server.raw(of("PUT").as_bytes()).await.0, 405);
        // JSONP: no script is ever made of a response.
        let jsonp = "GET /http-bind?callback=alert HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert_eq!(server.raw(jsonp.as_bytes()).await.2, server.raw(of("GET").as_bytes()).await.2);
    });
}

#[test]
fn xep_0124_19_1_a_secure_session_takes_no_insecure_request_and_does_not_suffer() {
    served(|server, _, _| async move {
        let mut client = Client::log_in(&server, "wait='1' hold='1'").await;
        let body = wrapper(&client.attributes(client.rid + 1), "");
        let (status, _, _) = server.post_with("X-Insecure: 1\r\n", &body).await;
        assert_eq!(status, 403);
        assert_eq!(read(&client.post(&server, "", &stanzas(&["a"])).await).attr("type"), None);
    });
}

#[test]
fn m7_xep_0124_14_3_a_response_that_was_lost_is_given_again_over_http() {
    served(|server, fake, _| async move {
        let mut client = Client::log_in(&server, "wait='60' hold='1'").await;
        let request = client.next();
        // The connection breaks before the response.
        let body = wrapper(&request, &stanzas(&["a"]));
        let mut stream = TcpStream::connect(("127.0.0.1", server.port)).await.unwrap();
        let raw =
            format!("POST /http-bind HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(raw.as_bytes()).await.unwrap();
        fake.until("it is accepted", |state| state.accepted.iter().any(|id| id == "a")).await;
        drop(stream);
        fake.send("m1").await;
        let again = server.post(&request, &stanzas(&["a"])).await;
        assert_eq!(messages(&again), ["m1"]);
        assert_eq!(server.post(&request, &stanzas(&["a"])).await, again);
        assert_eq!(accepted(&fake), ["a"]);
    });
}

#[test]
fn m7_xep_0124_14_2_requests_out_of_order_and_beyond_the_window_over_http() {
    served(|server, fake, _| async move {
        let mut client = Client::log_in(&server, "wait='60' hold='1'").await;
        let (first, second) = (client.next(), client.next());
        let (a, b) = tokio::join!(server.post(&second, stanzas(&["b"])), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let first = server.post(&first, &stanzas(&["a"])).await;
            fake.until("both are accepted", |state| state.accepted.len() == 3).await;
            fake.send("m1").await;
            first
        });
        assert_eq!((messages(&b).len(), messages(&a)), (0, vec!["m1".to_owned()]));
        assert_eq!(accepted(&fake), ["a", "b"]);
        let beyond = client.attributes(client.rid + 3);
        let body = read(&server.post(&beyond, &stanzas(&["c"])).await);
        assert_eq!((body.attr("type"), body.attr("condition")), (Some("terminate"), Some("item-not-found")));
        fake.until("the stream is closed", |state| state.ended_in_order == 1).await;
        assert_eq!(accepted(&fake), ["a", "b"]);
    });
}

#[test]
fn xep_0124_10_a_client_that_is_silent_has_lost_its_connection() {
    run(|fake, store| async move {
        let settings = Settings { inactivity: Duration::from_secs(10), ..Settings::default() };
        let server = Server::start(&fake, &store, settings);
        let mut client = Client::log_in(&server, "wait='1' hold='1'").await;
        client.post(&server, "", &stanzas(&["a"])).await;
        fake.until("the stream is lost", |state| state.lost == 1).await;
        assert_eq!(fake.state().ended_in_order, 0);
        let gone = client.post(&server, "", "").await;
        assert_eq!(read(&gone).attr("condition"), Some("item-not-found"));
        assert_eq!(store.rows().await, 0);
        server.kill().await;
    });
}

#[test]
fn xep_0206_6_a_stream_error_is_handed_on_whole() {
    served(|server, fake, store| async move {
        let mut client = Client::log_in(&server, "wait='60' hold='1'").await;
        let error = "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/><text \
            xmlns='urn:ietf:params:xml:ns:xmpp-streams'>why</text></stream:error>";
        let request = client.next();
        let last = format!("{error}</stream:stream>");
        let (response, ()) = tokio::join!(server.post(&request, ""), fake.send(&last));
        let body = read(&response);
        assert_eq!(
            (body.attr("type"), body.attr("condition")),
            (Some("terminate"), Some("remote-stream-error"))
        );
        let inner = body.child("error", body::NS_STREAMS).unwrap();
        assert!(inner.child("conflict", "urn:ietf:params:xml:ns:xmpp-streams").is_some());
        assert_eq!(inner.children().count(), 2);
        while store.rows().await > 0 {
            tokio::task::yield_now().await;
        }
    });
}

#[test]
fn m7_sessions_have_limits_in_all_and_by_address() {
    run(|fake, store| async move {
        for (settings, condition) in [
            (Settings { sessions_per_address: 3, ..Settings::default() }, "policy-violation"),
            (Settings { max_sessions: 3, ..Settings::default() }, "internal-server-error"),
        ] {
            let server = Server::start(&fake, &store, settings);
            let mut sids = Vec::new();
            for _ in 0..3 {
                let body = create(&server, "to='example.org' ver='1.6' hold='1'").await;
                sids.push(body.attr("sid").unwrap().to_owned());
            }
            let body = create(&server, "to='example.org' ver='1.6'").await;
            assert_eq!((body.attr("type"), body.attr("condition")), (Some("terminate"), Some(condition)));
            // The end of one makes room.
            server.post(&format!("rid='2' sid='{}' type='terminate'", sids[0]), "").await;
            let started = std::time::Instant::now();
            while create(&server, "to='example.org' ver='1.6'").await.attr("sid").is_none() {
                assert!(started.elapsed() < DEADLINE, "no room was made");
            }
            server.kill().await;
        }
    });
}

#[test]
fn what_cannot_be_stored_is_not_acknowledged() {
    run(|fake, store| async move {
        let server = Server::start(&fake, &store, Settings::default());
        let mut client = Client::log_in(&server, "wait='1' hold='1'").await;
        client.post(&server, "", &stanzas(&["a"])).await;
        store.broken.store(true, Ordering::SeqCst);
        let response = client.post(&server, "", &stanzas(&["b"])).await;
        let body = read(&response);
        assert_eq!(
            (body.attr("type"), body.attr("condition")),
            (Some("terminate"), Some("internal-server-error"))
        );
        server.kill().await;
    });
}

#[test]
fn m7_a_stream_that_does_not_take_what_it_is_sent_holds_requests_back() {
    served(|server, fake, _| async move {
        let mut client = Client::log_in(&server, "wait='1' hold='1'").await;
        fake.state().deaf = true;
        // No stanza, so nothing acknowledges it.
        let large = format!("<x xmlns='urn:x' id='x'>{}</x>", "x".repeat(100_000));
        let mut taken = 0;
        loop {
            let request = client.post(&server, "", &large);
            match tokio::time::timeout(Duration::from_secs(15), request).await {
                Ok(response) => assert_eq!(read(&response).attr("type"), None),
                Err(_) => break,
            }
            taken += 1;
            assert!(taken < 30, "there is no end");
        }
        assert!(taken >= 10);
        fake.listen();
        let again = client.attributes(client.rid);
        assert_eq!(read(&server.post(&again, &large).await).attr("type"), None);
    });
}

#[test]
fn specs_name_both_texts() {
    let specs: Vec<(&str, &str)> = SPECS.iter().map(|spec| (spec.id, spec.version)).collect();
    assert_eq!(specs, [("XEP-0124", "1.11"), ("XEP-0206", "1.4")]);
}

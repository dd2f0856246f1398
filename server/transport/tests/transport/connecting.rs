//! Connections to other servers, and from them: both sides of TLS, their certificates, and the end.

use std::time::{Duration, Instant};

use rustls::HandshakeKind;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use waystation_transport::{
    Connection, Flow, ReadOutcome, TlsAcceptor, TlsConnector, TlsVersion, TransportError,
};

use crate::common::*;
use crate::servers::*;
use crate::transfer::{exchange, pattern, small_send_buffer};

#[test]
fn both_sides_see_each_others_certificate() {
    let certificates = Certificates::new(&["one.example", "two.example"]);
    run(async {
        let acceptor = certificates.acceptor().for_servers();
        let connector = TlsConnector::new(&acceptor);
        for (local, presented) in
            [("one.example", Some(0)), ("TWO.example", Some(1)), ("sub.one.example", None)]
        {
            let ((mut server, accepted), (mut client, connected)) =
                ours(&acceptor, &connector, local, "two.example", false).await;
            accepted.unwrap();
            connected.unwrap();
            let expected: Vec<_> =
                presented.map(|n: usize| certificate(&certificates.hosts[n])).into_iter().collect();
            assert_eq!(server.peer_certificates(), expected, "{local}");
            assert_eq!(client.peer_certificates(), [certificate(&certificates.hosts[1])]);
            assert_eq!(server.tls_info().unwrap().server_name(), Some("two.example"));
            assert_eq!(client.tls_info().unwrap().version(), TlsVersion::Tls13);
            assert!(server.tls_info().unwrap().tls_exporter().is_some());
            assert!(!client.can_start_tls() && client.is_encrypted());
            client.queue_slice(b"<stream>");
            server.queue_slice(b"<features/>");
            client.flush().await.unwrap();
            server.flush().await.unwrap();
            assert_eq!(read_until(&mut server, |got| got.len() >= 8).await.unwrap().0, b"<stream>");
            assert_eq!(read_until(&mut client, |got| got.len() >= 11).await.unwrap().0, b"<features/>");
        }
    });
}

#[test]
fn a_host_without_a_certificate_uses_the_default_ones_if_that_names_it() {
    let mut certificates = Certificates::new(&["one.example"]);
    let wild = make(certificates.folder.path(), "*.one.example", &rcgen::PKCS_ECDSA_P256_SHA256);
    certificates.hosts[0].chain.clone_from(&wild.chain);
    certificates.hosts[0].key.clone_from(&wild.key);
    run(async {
        let acceptor = certificates.acceptor().for_servers();
        let connector = TlsConnector::new(&acceptor);
        for (local, presented) in [("sub.one.example", true), ("other.example", false)] {
            let ((server, _), _) = ours(&acceptor, &connector, local, "one.example", false).await;
            assert_eq!(!server.peer_certificates().is_empty(), presented, "{local}");
        }
    });
}

#[test]
fn our_client_speaks_both_versions_and_never_resumes() {
    let certificates = Certificates::new(&["one.example", "peer.example"]);
    let key = certified(&certificates.hosts[1], &certificates.hosts[1]);
    for (version, expected) in [(&TLS13, TlsVersion::Tls13), (&TLS12, TlsVersion::Tls12)] {
        run(async {
            let connector = TlsConnector::new(&certificates.acceptor());
            let mut config = server_config(version, key.clone());
            config.ticketer = rustls::crypto::ring::Ticketer::new().unwrap();
            for _ in 0..2 {
                let (accepted, (mut client, connected)) =
                    to_rustls(&connector, "one.example", config.clone()).await;
                connected.unwrap();
                let mut server = accepted.unwrap();
                assert_eq!(client.tls_info().unwrap().version(), expected);
                let theirs = server.get_ref().1;
                assert_eq!(theirs.server_name(), Some("peer.example"));
                // Although the server named another authority.
                assert_eq!(theirs.peer_certificates().unwrap(), [certificate(&certificates.hosts[0])]);
                assert!(matches!(theirs.handshake_kind(), Some(HandshakeKind::Full)));
                assert!(!client.tls_info().unwrap().resumed());
                // With TLS 1.3 the tickets come first.
                server.write_all(b"hello").await.unwrap();
                assert_eq!(read_until(&mut client, |got| got.len() >= 5).await.unwrap().0, b"hello");
                client.queue_slice(b"answer");
                client.flush().await.unwrap();
                let mut answer = [0; 6];
                server.read_exact(&mut answer).await.unwrap();
                assert_eq!(&answer, b"answer");
            }
        });
    }
}

#[test]
fn our_server_asks_for_certificates_in_both_versions_and_never_resumes() {
    let certificates = Certificates::new(&["localhost", "peer.example"]);
    let key = certified(&certificates.hosts[1], &certificates.hosts[1]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let acceptor = certificates.acceptor().for_servers();
            let config = presenting(version, key.clone());
            for _ in 0..2 {
                let (mut server, mut client) = tls_pair(&acceptor, config.clone()).await;
                assert_eq!(server.peer_certificates(), [certificate(&certificates.hosts[1])]);
                server.queue_slice(b"x");
                server.flush().await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), b'x');
                assert!(!server.tls_info().unwrap().resumed());
            }
            let (server, _) = tls_pair(&acceptor, client_config(&[version])).await;
            assert!(server.peer_certificates().is_empty());
            // Clients are not asked.
            let (server, _) = tls_pair(&certificates.acceptor(), config).await;
            assert!(server.peer_certificates().is_empty());
        });
    }
}

#[test]
fn t6_alpn_between_servers() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let connector = TlsConnector::new(&acceptor);
        let direct = acceptor.for_servers().with_alpn(&[b"xmpp-server"]);
        for (acceptor, alpn, agreed) in [
            (&direct, true, Some(&b"xmpp-server"[..])),
            (&direct, false, None),
            (&acceptor.for_servers(), true, None),
        ] {
            let ((server, accepted), (client, connected)) =
                ours(acceptor, &connector, "localhost", "localhost", alpn).await;
            accepted.unwrap();
            connected.unwrap();
            assert_eq!((server.alpn(), client.alpn()), (agreed, agreed));
            assert_eq!(server.peer_certificates().len(), 1, "the order of the two does not matter");
        }
        let for_clients = acceptor.with_alpn(&[b"xmpp-client"]).for_servers();
        let ((_, accepted), (_, connected)) =
            ours(&for_clients, &connector, "localhost", "localhost", true).await;
        assert!(matches!(accepted, Err(TransportError::Tls(rustls::Error::NoApplicationProtocol))));
        assert!(matches!(connected, Err(TransportError::Tls(rustls::Error::AlertReceived(_)))));

        let (server, client) = socket_pair().await;
        let mut config = any_version();
        config.alpn_protocols = vec![b"xmpp-client".to_vec()];
        let mut server = connection(server);
        let (accepted, refused) =
            tokio::join!(server.handshake(&direct, None, b""), tls_client(client, config, "localhost"));
        assert!(matches!(accepted, Err(TransportError::Tls(rustls::Error::NoApplicationProtocol))));
        assert!(refused.is_err());
    });
}

#[test]
fn the_server_name_goes_out_as_an_a_label_and_an_address_does_not() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor().for_servers();
        let connector = TlsConnector::new(&acceptor);
        for (name, sent) in [
            ("Ü.example.", Some("xn--tda.example")),
            ("peer.example", Some("peer.example")),
            ("192.0.2.1", None),
            ("[2001:db8::1]", None),
        ] {
            let ((server, accepted), (_, connected)) =
                ours(&acceptor, &connector, "localhost", name, false).await;
            accepted.unwrap();
            connected.unwrap();
            assert_eq!(server.tls_info().unwrap().server_name(), sent, "{name}");
        }
        for name in ["", "a b", "..", &"x".repeat(300)] {
            let (_server, client) = socket_pair().await;
            let outcome = connection(client).connect_tls(&connector, "localhost", name, false, b"").await;
            assert!(matches!(outcome, Err(TransportError::InvalidServerName)), "{name}: {outcome:?}");
        }
    });
}

#[test]
fn a_reload_reaches_both_directions() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let (incoming, connector) = (acceptor.for_servers(), TlsConnector::new(&acceptor));
        let before = certificate(&certificates.hosts[0]);
        make(certificates.folder.path(), "localhost", &rcgen::PKCS_ED25519);
        acceptor.reload().unwrap();
        let ((server, _), (client, _)) = ours(&incoming, &connector, "localhost", "localhost", false).await;
        assert_eq!(server.peer_certificates(), [certificate(&certificates.hosts[0])]);
        assert_eq!(server.peer_certificates(), client.peer_certificates());
        assert_ne!(server.peer_certificates(), [before]);
    });
}

#[test]
fn a_peer_without_the_key_of_its_certificate_is_refused() {
    let certificates = Certificates::new(&["localhost", "victim.example", "attacker.example"]);
    let stolen = certified(&certificates.hosts[1], &certificates.hosts[2]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let acceptor = certificates.acceptor();
            let (_, (client, connected)) =
                to_rustls(&TlsConnector::new(&acceptor), "localhost", server_config(version, stolen.clone()))
                    .await;
            let Err(TransportError::Tls(rustls::Error::InvalidCertificate(reason))) = connected else {
                panic!("{connected:?}");
            };
            assert_eq!(reason, rustls::CertificateError::BadSignature);
            assert!(client.tls_info().is_none());

            let (server, client) = socket_pair().await;
            let mut server = connection(server);
            let acceptor = acceptor.for_servers();
            let client = async {
                // With TLS 1.3 the client learns of it when it reads.
                let mut client = tls_client(client, presenting(version, stolen.clone()), "localhost").await?;
                client.read_u8().await
            };
            let (accepted, refused) = tokio::join!(
                async {
                    let accepted = server.handshake(&acceptor, None, b"").await;
                    let read = server.read_some(100, &mut |_| Flow::Continue).await;
                    assert!(read.is_err());
                    server.close(PATIENCE).await;
                    accepted
                },
                client
            );
            assert!(
                matches!(&accepted, Err(TransportError::Tls(rustls::Error::InvalidCertificate(reason)))
                    if *reason == rustls::CertificateError::BadSignature),
                "{accepted:?}"
            );
            assert!(refused.is_err());
        });
    }
}

#[test]
fn t2_bytes_behind_proceed_are_refused() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let connector = TlsConnector::new(&certificates.acceptor());
        let (mut server, client) = socket_pair().await;
        let mut client = connection(client);
        let injected = b"<stream:features><dialback xmlns='urn:xmpp:features:dialback'/></stream:features>";
        let outcome = client.connect_tls(&connector, "localhost", "localhost", false, injected).await;
        assert!(matches!(outcome, Err(TransportError::DataBeforeTls)), "{outcome:?}");
        server.write_all(b"<more/>").await.unwrap();
        let read = client.read_some(100, &mut |_| panic!("read without TLS")).await;
        assert!(matches!(read, Err(TransportError::Closed)), "{read:?}");
        let mut sent = Vec::new();
        tokio::join!(client.close(PATIENCE), async {
            server.read_to_end(&mut sent).await.unwrap();
            drop(server);
        });
        assert!(sent.is_empty(), "nothing goes to a peer that cannot be trusted");
    });
}

#[test]
fn t2_bytes_that_come_after_the_hello_fail_in_tls() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let connector = TlsConnector::new(&certificates.acceptor());
        let (mut server, client) = socket_pair().await;
        server.write_all(b"<stream:features/><message/>").await.unwrap();
        let mut client = connection(client);
        let outcome = client.connect_tls(&connector, "localhost", "localhost", false, b"").await;
        assert!(matches!(outcome, Err(TransportError::Tls(_))), "{outcome:?}");
        let read = client.read_some(100, &mut |_| panic!("read without TLS")).await;
        assert!(matches!(read, Err(TransportError::Closed)), "{read:?}");
    });
}

#[test]
fn large_transfers_both_ways_between_our_sides() {
    const SIZE: usize = 2_000_000;
    let certificates = Certificates::new(&["localhost"]);
    let data = pattern(SIZE);
    run(async {
        let acceptor = certificates.acceptor().for_servers();
        let (server, client) = socket_pair().await;
        small_send_buffer(&server);
        small_send_buffer(&client);
        let (mut server, mut client) = (connection(server), connection(client));
        let connector = TlsConnector::new(&acceptor);
        let (accepted, connected) = tokio::join!(
            server.handshake(&acceptor, None, b""),
            client.connect_tls(&connector, "localhost", "localhost", false, b"")
        );
        accepted.unwrap();
        connected.unwrap();
        for piece in data.chunks(30_000) {
            server.queue(&bytes::Bytes::copy_from_slice(piece));
            client.queue_slice(piece);
        }
        let (to_server, to_client) = tokio::join!(exchange(&mut server, SIZE), exchange(&mut client, SIZE));
        assert!(to_server == data && to_client == data);
        assert_eq!((server.queued_bytes(), client.queued_bytes()), (0, 0));
    });
}

#[test]
fn t10_an_end_without_close_notify_is_told_from_one_with() {
    let certificates = Certificates::new(&["localhost", "peer.example"]);
    let key = certified(&certificates.hosts[1], &certificates.hosts[1]);
    for version in [&TLS13, &TLS12] {
        for orderly in [true, false] {
            run(async {
                let connector = TlsConnector::new(&certificates.acceptor());
                let (accepted, (mut client, connected)) =
                    to_rustls(&connector, "localhost", server_config(version, key.clone())).await;
                connected.unwrap();
                let mut server = accepted.unwrap();
                server.write_all(b"<message>half").await.unwrap();
                if orderly {
                    server.shutdown().await.unwrap();
                } else {
                    server.flush().await.unwrap();
                    server.get_mut().0.shutdown().await.unwrap();
                }
                let (got, end) = read_until(&mut client, |_| false).await.unwrap();
                assert_eq!(got, b"<message>half");
                let expected = if orderly { ReadOutcome::Closed } else { ReadOutcome::Truncated };
                assert_eq!(end, Some(expected));
            });
        }
    }
    run(async {
        let (mut server, client) = our_pair(&certificates).await;
        let (_, end) = tokio::join!(client.close(PATIENCE), async {
            let end = read_until(&mut server, |_| false).await.unwrap().1;
            drop(server);
            end
        });
        assert_eq!(end, Some(ReadOutcome::Closed), "our client says its end");
        let (mut server, client) = our_pair(&certificates).await;
        drop(client);
        assert_eq!(read_until(&mut server, |_| false).await.unwrap().1, Some(ReadOutcome::Truncated));
    });
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let certificates = Certificates::new(&["localhost"]);
    let mut settings = certificates.settings();
    settings.handshake_deadline = Duration::from_millis(200);
    let connector = TlsConnector::new(&TlsAcceptor::new(settings).unwrap().0);
    run(async {
        let (_silent, client) = socket_pair().await;
        let mut client = connection(client);
        let began = Instant::now();
        let outcome = client.connect_tls(&connector, "localhost", "localhost", false, b"").await;
        assert!(matches!(outcome, Err(TransportError::HandshakeTimeout)), "{outcome:?}");
        assert!(began.elapsed() >= Duration::from_millis(200));

        let (mut server, client) = socket_pair().await;
        let mut client = connection(client);
        let connector = TlsConnector::new(&certificates.acceptor());
        let (outcome, ()) =
            tokio::join!(client.connect_tls(&connector, "localhost", "localhost", false, b""), async {
                let mut hello = [0; 100];
                server.read_exact(&mut hello).await.unwrap();
                server.shutdown().await.unwrap();
            });
        assert!(matches!(outcome, Err(TransportError::HandshakeTruncated)), "{outcome:?}");
    });
}

#[test]
fn a_server_that_does_not_answer_takes_no_turn() {
    let certificates = Certificates::new(&["localhost"]);
    let mut settings = certificates.settings();
    settings.concurrent_handshakes = 1;
    let connector = TlsConnector::new(&TlsAcceptor::new(settings).unwrap().0);
    run(async {
        // A turn is held for a second. Several tries: one may fall into a stall of the machine.
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let (_silent, client) = socket_pair().await;
            let waiting_connector = connector.clone();
            let waiting = tokio::task::spawn_local(async move {
                let mut client = connection(client);
                client.connect_tls(&waiting_connector, "localhost", "localhost", false, b"").await
            });
            tokio::task::yield_now().await;
            let began = Instant::now();
            // The other side has turns of its own.
            let acceptor = certificates.acceptor().for_servers();
            let (_, (_, connected)) = ours(&acceptor, &connector, "localhost", "localhost", false).await;
            connected.unwrap();
            quickest = quickest.min(began.elapsed());
            waiting.abort();
            if quickest < Duration::from_millis(900) {
                return;
            }
        }
        panic!("{quickest:?}");
    });
}

#[test]
fn a_key_update_is_followed() {
    let certificates = Certificates::new(&["localhost", "peer.example"]);
    let key = certified(&certificates.hosts[1], &certificates.hosts[1]);
    run(async {
        let connector = TlsConnector::new(&certificates.acceptor());
        let (accepted, (mut client, connected)) =
            to_rustls(&connector, "localhost", server_config(&TLS13, key)).await;
        connected.unwrap();
        let mut server = accepted.unwrap();
        for round in 0..5u8 {
            server.get_mut().1.refresh_traffic_keys().unwrap();
            server.write_all(&[round; 9]).await.unwrap();
            server.flush().await.unwrap();
            assert_eq!(read_until(&mut client, |got| got.len() >= 9).await.unwrap().0, [round; 9]);
            client.queue_slice(&[round]);
            client.flush().await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), round);
        }
    });
}

#[test]
fn a_connection_that_was_made_here_moves_to_another_thread() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (mut server, mut client) = our_pair(&certificates).await;
        client.queue_slice(b"queued before");
        let presented = client.peer_certificates().to_vec();
        let detached = client.detach().unwrap();
        let moved = std::thread::spawn(move || {
            run(async move {
                let mut client = detached.attach().unwrap();
                assert_eq!(client.peer_certificates(), presented);
                client.flush().await.unwrap();
                read_until(&mut client, |got| got.len() >= 6).await.unwrap().0
            })
        });
        assert_eq!(read_until(&mut server, |got| got.len() >= 13).await.unwrap().0, b"queued before");
        server.queue_slice(b"answer");
        server.flush().await.unwrap();
        let joined = tokio::task::spawn_blocking(move || moved.join().unwrap()).await.unwrap();
        assert_eq!(joined, b"answer");
    });
}

#[test]
fn connecting_says_what_the_network_says() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connected, accepted) = tokio::join!(Connection::connect(address, PATIENCE), listener.accept());
        let connected = connected.unwrap();
        assert_eq!(connected.peer(), address);
        assert_eq!(connected.local_addr().unwrap(), accepted.unwrap().1);
        drop(listener);
        let refused = Connection::connect(address, PATIENCE).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        let late = Connection::connect(address, Duration::ZERO).await.unwrap_err();
        assert!(matches!(late.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::ConnectionRefused));
    });
}

//! Rows of SECURITY.md section 2 that concern the transport.

use std::time::{Duration, Instant};

use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waystation_transport::{Connection, Flow, ReadOutcome, TlsAcceptor, TransportError};

use crate::common::*;

const STARTTLS: &[u8] = b"<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const PROCEED: &[u8] = b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>";
const INJECTED: &[u8] = b"<message to='victim@localhost'><body>inj</body></message>";

/// Plays the server's part of STARTTLS. Whatever comes behind `<starttls/>` goes to TLS. Returns the outcome
/// of the handshake and everything that was handed out as data afterwards.
async fn starttls_server(
    mut server: Connection,
    acceptor: &TlsAcceptor,
) -> (Result<(), TransportError>, Vec<u8>) {
    let (got, _) = read_until(&mut server, |got| got.len() >= STARTTLS.len()).await.unwrap();
    assert_eq!(&got[..STARTTLS.len()], STARTTLS);
    server.queue_slice(PROCEED);
    let outcome = server.handshake(acceptor, Some("localhost"), &got[STARTTLS.len()..]).await;
    let mut data = Vec::new();
    if outcome.is_ok() {
        data = read_until(&mut server, |_| false).await.unwrap().0;
    } else {
        let after = server
            .read_some(1000, &mut |bytes| {
                data.extend_from_slice(bytes);
                Flow::Continue
            })
            .await;
        assert!(after.is_err(), "a failed connection can be read: {after:?}");
        server.close(PATIENCE).await;
    }
    (outcome, data)
}

async fn read_exactly(client: &mut TcpStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    client.read_exact(&mut got).await.unwrap();
    assert_eq!(got, expected);
}

#[test]
fn t1_bytes_behind_starttls_go_to_tls_and_fail_there() {
    let certificates = Certificates::new(&["localhost"]);
    for in_one_segment in [true, false] {
        run(async {
            let acceptor = certificates.acceptor();
            let (server, mut client) = socket_pair().await;
            let attack = async move {
                if in_one_segment {
                    client.write_all(&[STARTTLS, INJECTED].concat()).await.unwrap();
                } else {
                    // The tail is in the socket before `<proceed/>` is read, perhaps before it is written.
                    client.write_all(STARTTLS).await.unwrap();
                    client.write_all(INJECTED).await.unwrap();
                }
                read_exactly(&mut client, PROCEED).await;
                let mut rest = Vec::new();
                client.read_to_end(&mut rest).await.unwrap();
                rest
            };
            let ((outcome, data), rest) =
                tokio::join!(starttls_server(connection(server), &acceptor), attack);
            assert!(matches!(outcome, Err(TransportError::Tls(_))), "{outcome:?}");
            assert!(data.is_empty());
            // A TLS alert (content type 21), and nothing else.
            assert_eq!((rest.len(), rest[0]), (7, 21), "{rest:?}");
        });
    }
}

#[test]
fn t1_injection_before_a_proper_handshake_does_not_reach_it() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let (server, mut client) = socket_pair().await;
        let attack = async move {
            client.write_all(&[STARTTLS, INJECTED].concat()).await.unwrap();
            read_exactly(&mut client, PROCEED).await;
            tls_client(client, any_version(), "localhost").await
        };
        let ((outcome, data), connected) =
            tokio::join!(starttls_server(connection(server), &acceptor), attack);
        assert!(outcome.is_err() && data.is_empty());
        assert!(connected.is_err());
    });
}

#[test]
fn t1_a_client_hello_behind_starttls_is_tls_input() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let (server, mut client) = socket_pair().await;
        // A client that does not wait for `<proceed/>` sends nothing but TLS, so nothing is injected.
        let mut tls = rustls::ClientConnection::new(
            std::sync::Arc::new(any_version()),
            "localhost".try_into().unwrap(),
        )
        .unwrap();
        let mut first = STARTTLS.to_vec();
        tls.write_tls(&mut first).unwrap();
        let eager = async {
            client.write_all(&first).await.unwrap();
            read_exactly(&mut client, PROCEED).await;
            let mut handshaken = drive_client(&mut tls, &mut client).await;
            handshaken = handshaken && {
                std::io::Write::write_all(&mut tls.writer(), b"secure").unwrap();
                tls.send_close_notify();
                flush_client(&mut tls, &mut client).await;
                true
            };
            handshaken
        };
        let ((outcome, data), handshaken) =
            tokio::join!(starttls_server(connection(server), &acceptor), eager);
        assert!(handshaken);
        outcome.unwrap();
        assert_eq!(data, b"secure");
    });
}

async fn flush_client(tls: &mut rustls::ClientConnection, client: &mut TcpStream) {
    let mut out = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut out).unwrap();
    }
    client.write_all(&out).await.unwrap();
}

/// Completes a handshake by hand; false if the server refused.
async fn drive_client(tls: &mut rustls::ClientConnection, client: &mut TcpStream) -> bool {
    let mut buffer = vec![0; 16 * 1024];
    while tls.is_handshaking() {
        flush_client(tls, client).await;
        let n = client.read(&mut buffer).await.unwrap();
        if n == 0 {
            return false;
        }
        let mut input = &buffer[..n];
        while !input.is_empty() {
            tls.read_tls(&mut input).unwrap();
            if tls.process_new_packets().is_err() {
                return false;
            }
        }
    }
    flush_client(tls, client).await;
    true
}

#[test]
fn t4_old_versions_and_weak_ciphers_are_refused() {
    let certificates = Certificates::new(&["localhost"]);
    let all = "ALL:COMPLEMENTOFALL:@SECLEVEL=0";
    let refused: [&[&str]; 6] = [
        &["-tls1", "-cipher", all],
        &["-tls1_1", "-cipher", all],
        &["-tls1_2", "-cipher", "NULL:eNULL:aNULL:@SECLEVEL=0"],
        // 3DES and RC4 are not in every build of OpenSSL; CBC and static RSA are.
        &["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA:3DES:RC4:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "ECDHE-ECDSA-AES128-SHA:ECDHE-RSA-AES128-SHA:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "DHE:ADH:@SECLEVEL=0"],
    ];
    for arguments in refused {
        run(async {
            let acceptor = certificates.acceptor();
            let (outcome, client) = openssl(arguments, b"", async |mut server: Connection| {
                let outcome = server.handshake(&acceptor, None, b"").await;
                server.close(PATIENCE).await;
                outcome
            })
            .await;
            assert!(matches!(outcome, Err(TransportError::Tls(_))), "{arguments:?}: {outcome:?}");
            assert!(!client.success && client.text.contains("alert"), "{arguments:?}: {}", client.text);
        });
    }
    for arguments in [["-tls1_2"], ["-tls1_3"]] {
        run(async {
            let acceptor = certificates.acceptor();
            let (outcome, client) = openssl(&arguments, b"", async |mut server: Connection| {
                let outcome = server.handshake(&acceptor, None, b"").await;
                server.close(PATIENCE).await;
                outcome
            })
            .await;
            outcome.unwrap();
            assert!(client.success, "{}", client.text);
        });
    }
}

#[test]
fn t5_renegotiation_is_refused() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        // A line that begins with R makes s_client renegotiate.
        let input = b"R\n".repeat(1000);
        let arguments = ["-tls1_2", "-legacy_renegotiation"];
        let (outcome, client) = openssl(&arguments, &input, async |mut server: Connection| {
            server.handshake(&acceptor, None, b"").await.unwrap();
            let outcome = read_until(&mut server, |_| false).await;
            server.close(PATIENCE).await;
            outcome
        })
        .await;
        // The client gives up on the first warning, or insists and is thrown out.
        if let Ok((data, _)) = outcome {
            assert!(data.is_empty(), "{data:?}");
        }
        assert!(client.text.contains("RENEGOTIATING"), "{}", client.text);
        assert!(!client.success || client.text.contains("no renegotiation"), "{}", client.text);
    });
}

#[test]
fn t5_a_key_update_flood_ends_the_connection() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (mut server, client) = tls_pair(&certificates.acceptor(), client_config(&[&TLS13])).await;
        let (mut client, mut tls) = client.into_inner();
        let flood = async {
            let mut out = Vec::new();
            for _ in 0..100_000 {
                tls.refresh_traffic_keys().unwrap();
                tls.write_tls(&mut out).unwrap();
                if out.len() > 16_000 {
                    // The server may be gone.
                    if client.write_all(&out).await.is_err() {
                        return;
                    }
                    out.clear();
                }
            }
        };
        let defence = async {
            let outcome = read_until(&mut server, |_| false).await;
            let held = server.queued_bytes();
            drop(server);
            (outcome, held)
        };
        let ((outcome, held), ()) = tokio::join!(defence, flood);
        let Err(TransportError::Tls(error)) = outcome else { panic!("{outcome:?}") };
        assert_eq!(error, rustls::Error::PeerMisbehaved(rustls::PeerMisbehaved::TooManyKeyUpdateRequests));
        assert!(held < 200, "{held} bytes wait for a peer that floods");
    });
}

#[test]
fn t5_records_without_data_count_as_traffic() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (mut server, client) = tls_pair(&certificates.acceptor(), client_config(&[&TLS13])).await;
        let (mut client, mut tls) = client.into_inner();
        let mut out = Vec::new();
        for _ in 0..20 {
            for _ in 0..30 {
                tls.refresh_traffic_keys().unwrap();
            }
            std::io::Write::write_all(&mut tls.writer(), b"x").unwrap();
        }
        while tls.wants_write() {
            tls.write_tls(&mut out).unwrap();
        }
        client.write_all(&out).await.unwrap();
        let (mut plain, mut counted) = (0, 0);
        while plain < 20 {
            let read = server.read_some(100_000, &mut |_| Flow::Continue).await.unwrap();
            let ReadOutcome::Data { bytes, wire, .. } = read else { panic!("{read:?}") };
            plain += bytes;
            counted += wire;
        }
        assert_eq!(counted, out.len());
    });
}

#[test]
fn t9_a_client_hello_in_single_bytes_is_accepted() {
    let certificates = Certificates::new(&["localhost"]);
    for (version, fragment) in [(&TLS13, None), (&TLS12, None), (&TLS13, Some(32)), (&TLS12, Some(32))] {
        run(async {
            let acceptor = certificates.acceptor();
            let (server, mut client) = socket_pair().await;
            let mut server = connection(server);
            let mut config = client_config(&[version]);
            // Handshake messages over many records, too.
            config.max_fragment_size = fragment;
            let mut tls =
                rustls::ClientConnection::new(std::sync::Arc::new(config), "localhost".try_into().unwrap())
                    .unwrap();
            let slow = async {
                let mut hello = Vec::new();
                while tls.wants_write() {
                    tls.write_tls(&mut hello).unwrap();
                }
                for byte in hello {
                    client.write_all(&[byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
                drive_client(&mut tls, &mut client).await
            };
            let (outcome, done) = tokio::join!(server.handshake(&acceptor, None, b""), slow);
            outcome.unwrap();
            assert!(done);
        });
    }
}

#[test]
fn t9_garbage_ends_the_handshake_at_once() {
    let certificates = Certificates::new(&["localhost"]);
    let cases: [(&str, Vec<u8>); 6] = [
        ("64 KiB of 16 03 01", [0x16, 0x03, 0x01].repeat(22_000)),
        ("zeros", vec![0; 65_536]),
        ("HTTP", b"POST / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100)),
        ("SSLv2", b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10".repeat(100)),
        ("a huge ClientHello", [&b"\x16\x03\x01\x40\x00\x01\x00\xff\x00\x03\x03"[..], &[0; 16_500]].concat()),
        ("application data first", b"\x17\x03\x03\x00\x20".repeat(50)),
    ];
    for (what, bytes) in cases {
        run(async {
            let acceptor = certificates.acceptor();
            let (server, mut client) = socket_pair().await;
            let attack = async move {
                // The server may close before it has taken everything.
                let _ = client.write_all(&bytes).await;
                let mut answer = Vec::new();
                let _ = client.read_to_end(&mut answer).await;
                answer
            };
            let defence = async {
                let mut server = connection(server);
                let outcome = server.handshake(&acceptor, None, b"").await;
                server.close(PATIENCE).await;
                outcome
            };
            let (outcome, answer) = tokio::join!(defence, attack);
            if matches!(what, "a huge ClientHello" | "64 KiB of 16 03 01") {
                // rustls has no alert for a message that is too large.
                assert!(outcome.is_err(), "{what}: {outcome:?}");
            } else {
                assert!(matches!(outcome, Err(TransportError::Tls(_))), "{what}: {outcome:?}");
                assert_eq!(answer.first(), Some(&21), "{what}: no alert");
            }
        });
    }
}

#[test]
fn t9_a_hello_that_never_ends_is_bounded() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let (server, mut client) = socket_pair().await;
        let mut server = connection(server);
        // A ClientHello said to be 65,000 bytes long, one byte of it per record.
        let attack = async move {
            let mut sent = 0;
            let mut first = b"\x16\x03\x01\x00\x04\x01\x00\xfd\xe8".to_vec();
            loop {
                if client.write_all(&first).await.is_err() {
                    return sent;
                }
                sent += first.len();
                first = b"\x16\x03\x01\x00\x01\x03".repeat(100);
            }
        };
        let defence = async {
            let outcome = server.handshake(&acceptor, None, b"").await;
            drop(server);
            outcome
        };
        let (outcome, _sent) = tokio::join!(defence, attack);
        assert!(
            matches!(outcome, Err(TransportError::HandshakeTooLarge | TransportError::FragmentsTooLarge)),
            "{outcome:?}"
        );
    });
}

#[test]
fn t9_closing_during_the_handshake() {
    let certificates = Certificates::new(&["localhost"]);
    let close_notify = b"\x15\x03\x01\x00\x02\x01\x00";
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("part of a hello", b"\x16\x03\x01\x02\x00\x01"),
        ("close_notify", close_notify),
    ] {
        run(async {
            let acceptor = certificates.acceptor();
            let (server, mut client) = socket_pair().await;
            let mut server = connection(server);
            client.write_all(bytes).await.unwrap();
            client.shutdown().await.unwrap();
            let outcome = server.handshake(&acceptor, None, b"").await;
            assert!(
                matches!(outcome, Err(TransportError::HandshakeTruncated | TransportError::Tls(_))),
                "{what}: {outcome:?}"
            );
        });
    }
}

#[test]
fn t9_a_stalled_handshake_meets_its_deadline() {
    let certificates = Certificates::new(&["localhost"]);
    let mut settings = certificates.settings();
    assert_eq!(settings.handshake_deadline, Duration::from_secs(10));
    settings.handshake_deadline = Duration::from_millis(200);
    let acceptor = TlsAcceptor::new(settings).unwrap().0;
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"] {
        run(async {
            let (server, mut client) = socket_pair().await;
            let mut server = connection(server);
            client.write_all(bytes).await.unwrap();
            let began = Instant::now();
            let outcome = server.handshake(&acceptor, None, b"").await;
            assert!(matches!(outcome, Err(TransportError::HandshakeTimeout)), "{outcome:?}");
            assert!(began.elapsed() >= Duration::from_millis(200));
            server.close(Duration::from_millis(50)).await;
        });
    }
}

#[test]
fn t10_an_end_without_close_notify_is_told_apart() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        for orderly in [true, false] {
            run(async {
                let (mut server, mut client) =
                    tls_pair(&certificates.acceptor(), client_config(&[version])).await;
                client.write_all(b"<message><body>half").await.unwrap();
                client.flush().await.unwrap();
                if orderly {
                    client.shutdown().await.unwrap();
                } else {
                    client.into_inner().0.shutdown().await.unwrap();
                }
                let (data, end) = read_until(&mut server, |_| false).await.unwrap();
                assert_eq!(data, b"<message><body>half");
                let expected = if orderly { ReadOutcome::Closed } else { ReadOutcome::Truncated };
                assert_eq!(end, Some(expected));
                // The end stays the end.
                let again = server.read_some(100, &mut |_| panic!("no more data")).await.unwrap();
                assert_eq!(again, expected);
            });
        }
    }
}

#[test]
fn t10_an_end_in_the_middle_of_a_record_is_a_truncation() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (mut server, client) = tls_pair(&certificates.acceptor(), any_version()).await;
        let (mut client, mut tls) = client.into_inner();
        std::io::Write::write_all(&mut tls.writer(), b"<presence/>").unwrap();
        let mut record = Vec::new();
        tls.write_tls(&mut record).unwrap();
        client.write_all(&record[..record.len() - 1]).await.unwrap();
        client.shutdown().await.unwrap();
        let (data, end) = read_until(&mut server, |_| false).await.unwrap();
        assert!(data.is_empty());
        assert_eq!(end, Some(ReadOutcome::Truncated));
    });
}

#[test]
fn t11_certificates_are_replaced_under_live_sessions() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let presented = |client: &tokio_rustls::client::TlsStream<TcpStream>| {
            client.get_ref().1.peer_certificates().unwrap()[0].clone()
        };
        let mut live = Vec::new();
        for n in 0..100 {
            let version = if n % 2 == 0 { &TLS13 } else { &TLS12 };
            live.push(tls_pair(&acceptor, client_config(&[version])).await);
        }
        let old = presented(&live[0].1);

        make(certificates.folder.path(), "localhost", &rcgen::PKCS_ECDSA_P384_SHA384);
        let (_, client) = tls_pair(&acceptor, any_version()).await;
        assert_eq!(presented(&client), old, "nothing changes before the reload");
        assert!(acceptor.reload().unwrap().is_empty());
        let (_, client) = tls_pair(&acceptor, any_version()).await;
        let new = presented(&client);
        assert_ne!(new, old);

        let key = &certificates.hosts[0].key;
        let good = std::fs::read(key).unwrap();
        std::fs::write(key, "not a key").unwrap();
        let error = acceptor.reload().unwrap_err().to_string();
        assert!(error.contains("localhost.key"), "{error}");
        let (_, client) = tls_pair(&acceptor, any_version()).await;
        assert_eq!(presented(&client), new, "a failed reload changes nothing");
        std::fs::write(key, good).unwrap();

        for (server, client) in &mut live {
            client.write_all(b"still here?").await.unwrap();
            let (got, _) = read_until(server, |got| got.len() >= 11).await.unwrap();
            assert_eq!(got, b"still here?");
            server.queue_slice(b"yes");
            server.flush().await.unwrap();
            let mut answer = [0; 3];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"yes");
        }
    });
}

//! Handshakes: versions, names, ALPN, channel bindings, resumption, and data around them.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256, Sha384, Sha512};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use waystation_transport::{Connection, Flow, HostCertificate, ReadOutcome, TlsVersion, TransportError};

use crate::common::*;

const EXPORTER_LABEL: &[u8] = b"EXPORTER-Channel-Binding";

#[test]
fn both_versions_carry_data_both_ways() {
    let certificates = Certificates::new(&["localhost"]);
    for (version, expected) in [(&TLS13, TlsVersion::Tls13), (&TLS12, TlsVersion::Tls12)] {
        run(async {
            let (mut server, mut client) =
                tls_pair(&certificates.acceptor(), client_config(&[version])).await;
            let info = server.tls_info().unwrap();
            assert_eq!(info.version(), expected);
            assert_eq!(info.server_name(), Some("localhost"));
            client.write_all(b"<stream>").await.unwrap();
            let (got, _) = read_until(&mut server, |got| got.len() >= 8).await.unwrap();
            assert_eq!(got, b"<stream>");
            server.queue_slice(b"<features/>");
            server.flush().await.unwrap();
            let mut answer = [0; 11];
            client.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"<features/>");
        });
    }
}

#[test]
fn tls_exporter_is_the_same_on_both_sides() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let (server, client) = tls_pair(&certificates.acceptor(), client_config(&[version])).await;
            let theirs =
                client.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, Some(b"")).unwrap();
            assert_eq!(server.tls_info().unwrap().tls_exporter(), Some(&theirs));
        });
    }
}

#[test]
fn data_right_behind_the_handshake_is_not_lost() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let (mut server, mut client) =
                tls_pair(&certificates.acceptor(), client_config(&[version])).await;
            server.queue_slice(b"first");
            client.write_all(b"one").await.unwrap();
            server.flush().await.unwrap();
            let mut got = Vec::new();
            let outcome = server
                .read_some(1000, &mut |bytes| {
                    got.extend_from_slice(bytes);
                    Flow::Stop
                })
                .await
                .unwrap();
            assert!(matches!(outcome, ReadOutcome::Data { bytes: 3, .. }));
            assert_eq!(got, b"one");
        });
    }
}

#[test]
fn reading_during_the_handshake_is_refused() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (server, _client) = socket_pair().await;
        let mut server = connection(server);
        server.start_tls(&certificates.acceptor(), None, b"").unwrap();
        let read = server.read_some(100, &mut |_| panic!("nothing to hand out")).await;
        assert!(matches!(read, Err(TransportError::HandshakeIncomplete)));
    });
}

/// Sends a line so that the client has something to read, then closes in order.
async fn greet_and_close(mut server: Connection) {
    server.queue_slice(b"hello from the server\n");
    server.flush().await.unwrap();
    server.close(PATIENCE).await;
}

#[test]
fn tls_exporter_is_the_same_as_in_openssl() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let acceptor = certificates.acceptor();
        let label = std::str::from_utf8(EXPORTER_LABEL).unwrap();
        let arguments = ["-tls1_3", "-keymatexport", label, "-keymatexportlen", "32"];
        let (ours, client) = openssl(&arguments, b"", async |mut server: Connection| {
            server.handshake(&acceptor, None, b"").await.unwrap();
            let exporter = *server.tls_info().unwrap().tls_exporter().unwrap();
            greet_and_close(server).await;
            exporter
        })
        .await;
        let hex: String = ours.iter().map(|byte| format!("{byte:02X}")).collect();
        assert!(client.text.contains(&format!("Keying material: {hex}")), "{}", client.text);
    });
}

#[test]
fn tls12_without_extended_master_secret_has_no_exporter() {
    let certificates = Certificates::new(&["localhost"]);
    let config = certificates.folder.path().join("openssl.cnf");
    let without_it = "openssl_conf = all\n[all]\nssl_conf = ssl\n[ssl]\nsystem_default = default\n[default]\n\
                      Options = -ExtendedMasterSecret\n";
    std::fs::write(&config, without_it).unwrap();
    for (config, expected) in [(None, true), (Some(&config), false)] {
        run(async {
            let acceptor = certificates.acceptor();
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let mut command = std::process::Command::new("openssl");
            command.args(["s_client", "-tls1_2", "-connect", &address]);
            if let Some(config) = config {
                command.env("OPENSSL_CONF", config);
            }
            let server = async {
                let mut server = connection(listener.accept().await.unwrap().0);
                server.handshake(&acceptor, None, b"").await.unwrap();
                let info = server.tls_info().unwrap();
                assert_eq!(info.version(), TlsVersion::Tls12);
                assert_eq!(info.tls_exporter().is_some(), expected);
                assert!(info.tls_server_end_point().is_some());
                greet_and_close(server).await;
            };
            let ((), client) = tokio::join!(server, run_process(command, Vec::new()));
            let said = format!("Extended master secret: {}", if expected { "yes" } else { "no" });
            assert!(client.text.contains(&said), "{}", client.text);
        });
    }
}

#[test]
fn tls_server_end_point_hashes_as_the_certificate_was_signed() {
    let certificates = Certificates::new(&["localhost"]);
    let sha256 = |der: &[u8]| Some(Sha256::digest(der).to_vec());
    let sha384 = |der: &[u8]| Some(Sha384::digest(der).to_vec());
    let sha512 = |der: &[u8]| Some(Sha512::digest(der).to_vec());
    let none = |_: &[u8]| None;
    let rsa_key = certificates.folder.path().join("rsa.key");
    openssl_make(&["genrsa", "-out", rsa_key.to_str().unwrap(), "2048"]);
    let rsa: &[&str] = &["-key", rsa_key.to_str().unwrap()];
    const P256: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    const P384: &[&str] = &["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384"];
    let pss = [rsa, &["-sigopt", "rsa_padding_mode:pss"]].concat();
    let pss = pss.as_slice();
    const ED25519: &[&str] = &["-newkey", "ed25519"];
    type Binding<'a> = &'a dyn Fn(&[u8]) -> Option<Vec<u8>>;
    let cases: [(&[&str], &str, Binding<'_>); 10] = [
        (rsa, "-sha256", &sha256),
        (rsa, "-sha384", &sha384),
        (rsa, "-sha512", &sha512),
        // RFC 5929 section 4.1: MD5 and SHA-1 are replaced by SHA-256.
        (rsa, "-sha1", &sha256),
        (P256, "-sha256", &sha256),
        (P256, "-sha384", &sha384),
        (P384, "-sha384", &sha384),
        (pss, "-sha256", &sha256),
        (pss, "-sha384", &sha384),
        (ED25519, "-sha256", &none),
    ];
    for (n, (key_type, digest, expected)) in cases.into_iter().enumerate() {
        let path = |ending: &str| certificates.folder.path().join(format!("{n}.{ending}"));
        let given = key_type.contains(&"-key");
        let (chain, key) = (path("pem"), if given { rsa_key.clone() } else { path("key") });
        let mut arguments = vec!["req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=localhost", digest];
        arguments.extend(key_type);
        arguments.extend(["-out", chain.to_str().unwrap()]);
        if !given {
            arguments.extend(["-keyout", key.to_str().unwrap()]);
        }
        openssl_make(&arguments);
        let files = HostCertificate { host: "localhost".into(), chain, key };
        let certificates = Certificates { folder: tempfile::tempdir().unwrap(), hosts: vec![files] };
        for version in [&TLS13, &TLS12] {
            run(async {
                let (server, client) = tls_pair(&certificates.acceptor(), client_config(&[version])).await;
                let presented = &client.get_ref().1.peer_certificates().unwrap()[0];
                let ours = server.tls_info().unwrap().tls_server_end_point();
                assert_eq!(ours, expected(presented).as_deref(), "{key_type:?} {digest}");
            });
        }
    }
}

#[test]
fn the_ticket_leaves_in_one_write_with_the_first_data() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (mut server, mut client) = tls_pair(&certificates.acceptor(), client_config(&[&TLS13])).await;
        // What is sent over loopback is there when the call returns.
        let arrived = |client: &TlsStream<TcpStream>| {
            let mut buffer = [MaybeUninit::uninit(); 4096];
            SockRef::from(client.get_ref().0).peek(&mut buffer).map_err(|error| error.kind())
        };
        assert_eq!(arrived(&client), Err(ErrorKind::WouldBlock));
        assert_eq!(server.queued_bytes(), 0, "nothing waits for the socket");
        server.queue_slice(b"x");
        server.flush().await.unwrap();
        let both = arrived(&client).unwrap();
        assert!(both > 100, "{both} bytes are no ticket and data");
        assert_eq!(client.read_u8().await.unwrap(), b'x');
    });
}

/// AES-128-GCM is chosen however the client orders its suites, and nothing is refused that it has instead.
#[test]
fn suites_are_in_the_servers_order() {
    use rustls::CipherSuite::*;
    let certificates = Certificates::new(&["localhost"]);
    for (version, only, chosen) in [
        (&TLS13, None, TLS13_AES_128_GCM_SHA256),
        (&TLS13, Some(TLS13_CHACHA20_POLY1305_SHA256), TLS13_CHACHA20_POLY1305_SHA256),
        (&TLS12, None, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        (&TLS12, Some(TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384), TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ] {
        run(async {
            let mut provider = rustls::crypto::ring::default_provider();
            provider.cipher_suites.retain(|suite| only.is_none_or(|only| suite.suite() == only));
            let config = ClientConfig::builder_with_provider(Arc::new(provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(TrustAll))
                .with_no_client_auth();
            let (server, _client) = tls_pair(&certificates.acceptor(), config).await;
            assert_eq!(Some(server.tls_info().unwrap().cipher_suite()), chosen.as_str());
        });
    }
}

#[test]
fn resumed_sessions_have_bindings_of_their_own() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let acceptor = certificates.acceptor();
            let config = client_config(&[version]);
            let mut exporters = Vec::new();
            for round in 0..2 {
                let (mut server, mut client) = tls_pair(&acceptor, config.clone()).await;
                server.queue_slice(b"x");
                server.flush().await.unwrap();
                // With TLS 1.3 the ticket arrives with the first data.
                assert_eq!(client.read_u8().await.unwrap(), b'x');
                let theirs =
                    client.get_ref().1.export_keying_material([0; 32], EXPORTER_LABEL, Some(b"")).unwrap();
                let info = server.tls_info().unwrap();
                assert_eq!(info.resumed(), round == 1, "{:?}", version.version);
                assert_eq!(info.tls_exporter(), Some(&theirs));
                assert!(info.tls_server_end_point().is_some());
                exporters.push(theirs);
            }
            assert_ne!(exporters[0], exporters[1]);

            // A ticket is no good for other certificates: the client would bind to the ones it saw first.
            acceptor.reload().unwrap();
            let (server, _client) = tls_pair(&acceptor, config.clone()).await;
            assert!(!server.tls_info().unwrap().resumed());
        });
    }
}

#[test]
fn t6_alpn() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        for (offered, agreed) in [
            (&["xmpp-client"][..], Some("xmpp-client")),
            (&["h2", "xmpp-client"], Some("xmpp-client")),
            (&[], None),
        ] {
            run(async {
                let acceptor = certificates.acceptor().with_alpn(&[b"xmpp-client"]);
                let mut config = client_config(&[version]);
                config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
                let (server, client) = tls_pair(&acceptor, config).await;
                assert_eq!(server.alpn(), agreed.map(str::as_bytes));
                assert_eq!(client.get_ref().1.alpn_protocol(), agreed.map(str::as_bytes));
            });
        }
        for wrong in ["xmpp-server", "h2", "http/1.1"] {
            run(async {
                let acceptor = certificates.acceptor().with_alpn(&[b"xmpp-client"]);
                let (server, client) = socket_pair().await;
                let mut server = connection(server);
                let mut config = client_config(&[version]);
                config.alpn_protocols = vec![wrong.into()];
                let (accepted, connected) = tokio::join!(
                    server.handshake(&acceptor, None, b""),
                    tls_client(client, config, "localhost")
                );
                assert!(matches!(accepted, Err(TransportError::Tls(rustls::Error::NoApplicationProtocol))));
                let refused = connected.unwrap_err().to_string();
                assert!(refused.contains("NoApplicationProtocol"), "{wrong}: {refused}");
            });
        }
    }
}

#[test]
fn t7_server_name_chooses_the_certificate_then_the_stream_then_the_default() {
    let certificates = Certificates::new(&["default.example", "one.example", "two.example", "ü.example"]);
    let cases = [
        // SNI, the stream's `to`, whose certificate, the name reported
        (Some("one.example"), None, "one.example"),
        (Some("ONE.example"), None, "one.example"),
        (Some("one.example"), Some("two.example"), "one.example"),
        (None, Some("two.example"), "two.example"),
        (None, Some("Ü.example"), "ü.example"),
        (Some("xn--tda.example"), None, "ü.example"),
        (None, None, "default.example"),
        (None, Some("unknown.example"), "default.example"),
        (Some("unknown.example"), Some("two.example"), "two.example"),
        (Some("unknown.example"), None, "default.example"),
    ];
    for version in [&TLS13, &TLS12] {
        for (name, to, expected) in cases {
            run(async {
                let acceptor = certificates.acceptor();
                let (server, client) = socket_pair().await;
                let mut server = connection(server);
                let mut config = client_config(&[version]);
                config.enable_sni = name.is_some();
                let (accepted, client) = tokio::join!(
                    server.handshake(&acceptor, to, b""),
                    tls_client(client, config, name.unwrap_or("not.sent.example"))
                );
                accepted.unwrap();
                let client = client.unwrap();
                let presented = &client.get_ref().1.peer_certificates().unwrap()[0];
                let files = certificates.hosts.iter().find(|files| files.host == expected).unwrap();
                let pem = std::fs::read(&files.chain).unwrap();
                let wanted: rustls::pki_types::CertificateDer<'_> =
                    rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
                assert_eq!(presented, &wanted, "SNI {name:?}, to {to:?}");
                let reported = server.tls_info().unwrap().server_name().map(str::to_ascii_lowercase);
                assert_eq!(reported.as_deref(), name.map(str::to_ascii_lowercase).as_deref());
            });
        }
    }
}

#[test]
fn a_ticket_of_one_host_does_not_open_another() {
    let certificates = Certificates::new(&["one.example", "two.example"]);
    run(async {
        let acceptor = certificates.acceptor();
        let mut config = client_config(&[&TLS13]);
        config.enable_sni = false;
        let config = Arc::new(config);
        for (to, resumed) in
            [("one.example", false), ("two.example", false), ("two.example", true), ("two.example", true)]
        {
            let (server, client) = socket_pair().await;
            let mut server = connection(server);
            let connect = tls_client(client, (*config).clone(), "same.example");
            let (accepted, client) = tokio::join!(server.handshake(&acceptor, Some(to), b""), connect);
            accepted.unwrap();
            server.queue_slice(b"x");
            server.flush().await.unwrap();
            client.unwrap().read_u8().await.unwrap();
            assert_eq!(server.tls_info().unwrap().resumed(), resumed, "{to}");
        }
    });
}

#[test]
fn a_turn_at_handshaking_is_not_taken_by_silence_nor_held_by_slowness() {
    let certificates = Certificates::new(&["localhost"]);
    let mut settings = certificates.settings();
    settings.concurrent_handshakes = 1;
    let acceptor = waystation_transport::TlsAcceptor::new(settings).unwrap().0;
    run(async {
        let silent_and_slow = [&b""[..], &b"\x16\x03\x01\x00\xc8\x01\x00"[..]];
        for (sent, least, most) in [(silent_and_slow[0], 0, 900), (silent_and_slow[1], 500, 5000)] {
            let (stuck, mut stuck_client) = socket_pair().await;
            stuck_client.write_all(sent).await.unwrap();
            if !sent.is_empty() {
                stuck.readable().await.unwrap();
            }
            let acceptor_of_stuck = acceptor.clone();
            let task = tokio::task::spawn_local(async move {
                connection(stuck).handshake(&acceptor_of_stuck, None, b"").await
            });
            tokio::task::yield_now().await;
            let began = std::time::Instant::now();
            let (_server, _client) = tls_pair(&acceptor, any_version()).await;
            let took = began.elapsed().as_millis();
            assert!(took >= least && took < most, "{took} ms");
            task.abort();
        }
    });
}

#[test]
fn a_thousand_handshakes_at_once_all_complete() {
    // Both ends of a thousand connections are more than the usual soft limit.
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(8192)), hard).unwrap();
    let certificates = Certificates::new(&["localhost"]);
    let mut settings = certificates.settings();
    settings.concurrent_handshakes = 8;
    let acceptor = waystation_transport::TlsAcceptor::new(settings).unwrap().0;
    run(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..1000 {
            let acceptor = acceptor.clone();
            let (server, client) = socket_pair().await;
            tasks.spawn_local(async move {
                let mut server = connection(server);
                let client = tls_client(client, client_config(&[&TLS13]), "localhost");
                let (accepted, connected) = tokio::join!(server.handshake(&acceptor, None, b""), client);
                accepted.unwrap();
                connected.unwrap();
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}

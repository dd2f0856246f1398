//! Handshakes: versions, names, ALPN, channel bindings, resumption, and data around them.

use crate::common::*;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use waystation_transport::{Flow, ReadOutcome, TlsVersion, TransportError};

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

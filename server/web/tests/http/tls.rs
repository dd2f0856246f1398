//! HTTPS: certificates, ALPN and what browsers are told.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use waystation_transport::{TlsAcceptor, TlsSettings, ensure_development_certificate};
use waystation_web::Settings;

use crate::common::*;

fn acceptor(folder: &Path, change: impl FnOnce(&mut TlsSettings)) -> TlsAcceptor {
    let made = ensure_development_certificate(folder, "localhost").unwrap();
    let mut settings = TlsSettings::new(vec![made.files], "localhost");
    change(&mut settings);
    TlsAcceptor::new(settings).unwrap().0
}

async fn connect(server: &Server, folder: &Path, alpn: &[&[u8]]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("localhost.pem")).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, server.connect().await).await
}

#[actix_rt::test]
async fn https_is_served_and_certificates_are_read_anew() {
    let folder = tempfile::tempdir().unwrap();
    let tls = acceptor(folder.path(), |_| {});
    let server = Wanted { tls: Some(tls.clone()), ..Wanted::default() }.start();
    let mut stream = connect(&server, folder.path(), &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let response = ask(&mut stream, "/info").await;
    assert!(body(&response).ends_with(" true https://localhost"), "{response}");
    // A development certificate is no promise that HTTPS will work tomorrow.
    assert_eq!(header(&response, "strict-transport-security"), None);

    for name in ["localhost.pem", "localhost.key"] {
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    ensure_development_certificate(folder.path(), "localhost").unwrap();
    assert!(connect(&server, folder.path(), &[]).await.is_err(), "the new certificate is in use already");
    tls.reload().unwrap();
    let mut renewed = connect(&server, folder.path(), &[]).await.unwrap();
    assert_eq!(status(&ask(&mut renewed, "/info").await), 200);
    assert_eq!(status(&ask(&mut stream, "/info").await), 200, "the session before goes on");
}

#[actix_rt::test]
async fn m15_http2_cannot_be_agreed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Wanted { tls: Some(acceptor(folder.path(), |_| {})), ..Wanted::default() }.start();
    assert!(connect(&server, folder.path(), &[b"h2"]).await.is_err());
}

#[actix_rt::test]
async fn trusted_hosts_are_to_be_reached_by_https_from_now_on() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { strict_hosts: vec!["localhost".to_owned()], ..Settings::default() };
    let tls = Some(acceptor(folder.path(), |_| {}));
    let server = Wanted { tls, settings, ..Wanted::default() }.start();
    let mut stream = connect(&server, folder.path(), &[]).await.unwrap();
    let response = ask(&mut stream, "/info").await;
    assert_eq!(header(&response, "strict-transport-security"), Some("max-age=2592000"));
}

#[actix_rt::test]
async fn x19_m15_a_handshake_that_is_not_done_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let tls = acceptor(folder.path(), |settings| {
        settings.handshake_deadline = Duration::from_millis(500);
        settings.concurrent_handshakes = 1;
    });
    let server = Wanted { tls: Some(tls), ..Wanted::default() }.start();
    let began = Instant::now();
    assert_eq!(server.exchange("").await, "");
    assert_eq!(server.exchange(b"\x16\x03\x01").await, "");
    assert!(began.elapsed() < Duration::from_secs(30));
    let mut plain = server.connect().await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    // What comes is at most an alert.
    let mut answer = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut plain, &mut answer);
    let _ = tokio::time::timeout(DEADLINE, end).await.unwrap();
    assert!(!answer.starts_with(b"HTTP"));
}

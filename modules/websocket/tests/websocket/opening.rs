//! Who gets a connection, and with what agreed.

use waystation_websocket::Settings;

use crate::client::{Client, OWN_ORIGIN, Site};
use crate::common::PATIENCE;

const XMPP: &str = "Sec-WebSocket-Protocol: xmpp\r\n";

async fn status(site: &Site, method: &str, headers: &str) -> u16 {
    let (head, _) = Client::handshake(site.at, method, headers).await;
    head[9..12].parse().unwrap()
}

#[actix_rt::test]
async fn the_handshake_agrees_to_xmpp_and_to_nothing_else() {
    let site = Site::start().await;
    for headers in [
        XMPP,
        "Sec-WebSocket-Protocol: chat, xmpp\r\n",
        "Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Protocol: xmpp\r\n",
        "Sec-WebSocket-Protocol: xmpp\r\nSec-WebSocket-Extensions: permessage-deflate\r\n",
    ] {
        let (head, _) = Client::handshake(site.at, "GET", headers).await;
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        // RFC 6455 1.3.
        assert!(head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
        assert!(head.contains("\r\nsec-websocket-protocol: xmpp\r\n"), "{head}");
        assert!(!head.contains("extensions"), "{head}");
    }
}

#[actix_rt::test]
async fn m8_without_the_sub_protocol_there_is_no_connection() {
    let site = Site::start().await;
    for headers in ["", "Sec-WebSocket-Protocol: chat\r\n", "Sec-WebSocket-Protocol: xmppx, XMPP\r\n"] {
        assert_eq!(status(&site, "GET", headers).await, 400, "{headers:?}");
    }
}

#[actix_rt::test]
async fn m8_pages_of_foreign_origins_are_refused() {
    let site = Site::with(
        Settings { origins: vec!["https://chat.test/".into(), "null".into()], ..Settings::default() },
        true,
        |_| {},
    )
    .await;
    let origin = |origin: &str| format!("{XMPP}Origin: {origin}\r\n");
    for allowed in [OWN_ORIGIN, "HTTP://HERE.test:5280", "https://chat.test", "null"] {
        assert_eq!(status(&site, "GET", &origin(allowed)).await, 101, "{allowed}");
    }
    assert_eq!(status(&site, "GET", XMPP).await, 101, "no browser");
    for refused in [
        "http://here.test",
        "https://here.test:5280",
        "https://chat.test:8443",
        "https://chat.test.evil.test",
        "https://evil.test",
        "*",
        "",
    ] {
        assert_eq!(status(&site, "GET", &origin(refused)).await, 403, "{refused}");
    }
    let two = format!("{}Origin: https://evil.test\r\n", origin(OWN_ORIGIN));
    assert_eq!(status(&site, "GET", &two).await, 403);

    let strict = Site::start().await;
    assert_eq!(status(&strict, "GET", &origin("null")).await, 403);
    let open = Site::with(Settings { origins: vec!["*".into()], ..Settings::default() }, true, |_| {}).await;
    assert_eq!(status(&open, "GET", &origin("https://evil.test")).await, 101);
}

#[actix_rt::test]
async fn what_is_no_handshake_is_told_so() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let site = Site::start().await;
    assert_eq!(status(&site, "POST", &format!("{XMPP}Content-Length: 0\r\n")).await, 405);
    for (headers, status) in [
        ("", "400"),
        ("Upgrade: websocket\r\n", "400"),
        ("Upgrade: h2c\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n", "400"),
        (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            "426",
        ),
        (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: short\r\n",
            "400",
        ),
    ] {
        let mut tcp = tokio::net::TcpStream::connect(site.at).await.unwrap();
        let request = format!("GET /xmpp-websocket HTTP/1.1\r\nHost: here.test\r\n{XMPP}{headers}\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        tokio::time::timeout(PATIENCE, tcp.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer[9..], status.as_bytes(), "{headers:?}");
    }
}

#[actix_rt::test]
async fn m8_eight_megabytes_of_headers_get_nowhere() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let site = Site::start().await;
    let mut tcp = tokio::net::TcpStream::connect(site.at).await.unwrap();
    tcp.write_all(format!("GET /xmpp-websocket HTTP/1.1\r\nHost: here.test\r\n{XMPP}").as_bytes())
        .await
        .unwrap();
    let line = format!("X-{}: {}\r\n", "y".repeat(100), "z".repeat(900));
    let mut sent = 0;
    while sent < 8 * 1024 * 1024 {
        if tcp.write_all(line.as_bytes()).await.is_err() {
            break;
        }
        sent += line.len();
    }
    assert!(sent < 8 * 1024 * 1024, "the server took all of them");
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await.unwrap();
    assert!(!answer.starts_with(b"HTTP/1.1 101"));
}

#[actix_rt::test]
async fn the_path_can_be_another() {
    let site = Site::with(Settings { path: "/ws".into(), ..Settings::default() }, true, |_| {}).await;
    assert_eq!(status(&site, "GET", XMPP).await, 404);
}

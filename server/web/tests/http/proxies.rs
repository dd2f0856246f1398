//! Clients behind proxies: SECURITY M15; the PROXY protocol.

use waystation_transport::AddressLimits;
use waystation_web::Settings;

use crate::common::*;

fn trusting(networks: &[&str]) -> Wanted {
    let trusted_proxies = networks.iter().map(|network| network.parse().unwrap()).collect();
    Wanted { settings: Settings { trusted_proxies, ..Settings::default() }, ..Wanted::default() }
}

const FORWARDED: [&str; 3] =
    ["X-Forwarded-For: 203.0.113.9, 192.0.2.7", "X-Forwarded-Proto: https", "X-Forwarded-Host: chat.example"];

#[actix_rt::test]
async fn m15_a_proxy_is_believed_only_if_it_is_trusted() {
    let trusted = trusting(&["127.0.0.0/8"]).start();
    let response = trusted.request("GET /info", &FORWARDED).await;
    assert_eq!(body(&response), "192.0.2.7:0 true https://chat.example");
    let untrusted = trusting(&["10.0.0.0/8"]).start();
    let response = untrusted.request("GET /info", &FORWARDED).await;
    assert!(body(&response).starts_with("127.0.0.1:"), "{response}");
    assert!(body(&response).ends_with(" false http://localhost"), "{response}");
}

#[actix_rt::test]
async fn a_client_on_this_machine_is_secure() {
    let server = Wanted::default().start();
    assert!(body(&server.request("GET /info", &[]).await).ends_with(" true http://localhost"));
}

#[actix_rt::test]
async fn a_trusted_proxy_may_have_any_number_of_connections() {
    let limits = AddressLimits { connections: 2, rate: 0.0, burst: 0, tracked: 10 };
    let server = Wanted { limits, ..trusting(&["127.0.0.1/32"]) }.start();
    let mut open = Vec::new();
    for _ in 0..5 {
        let mut stream = server.connect().await;
        assert_eq!(status(&ask(&mut stream, "/info").await), 200);
        open.push(stream);
    }
}

const REQUEST: &str = "GET /info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";

#[actix_rt::test]
async fn a_proxy_header_names_the_client() {
    let server = Wanted { proxies: vec!["127.0.0.0/8"], ..Wanted::default() }.start();
    let response = server.exchange(format!("PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n{REQUEST}")).await;
    assert_eq!(body(&response), "192.0.2.7:4711 false http://localhost");
    let v2 = [
        b"\r\n\r\n\0\r\nQUIT\n\x21\x21\0\x24".as_slice(),
        &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7],
        &[0; 16],
        &[0x12, 0x34, 0, 80],
        REQUEST.as_bytes(),
    ]
    .concat();
    assert_eq!(body(&server.exchange(v2).await), "[2001:db8::7]:4660 false http://localhost");
    let unknown = server.exchange(format!("PROXY UNKNOWN\r\n{REQUEST}")).await;
    assert!(body(&unknown).starts_with("127.0.0.1:"), "{unknown}");
}

#[actix_rt::test]
async fn without_a_proxy_header_a_proxy_is_disconnected() {
    let server = Wanted { proxies: vec!["127.0.0.0/8"], ..Wanted::default() }.start();
    assert_eq!(server.exchange(REQUEST).await, "");
    assert_eq!(server.exchange(format!("PROXY TCP4 x y 1 2\r\n{REQUEST}")).await, "");
    // It sends nothing at all.
    assert_eq!(server.exchange("").await, "");
}

#[actix_rt::test]
async fn m15_a_proxy_header_of_another_is_no_header() {
    let server = Wanted { proxies: vec!["10.0.0.0/8"], ..Wanted::default() }.start();
    let response = server.exchange(format!("PROXY TCP4 192.0.2.7 127.0.0.1 4711 80\r\n{REQUEST}")).await;
    assert_eq!(status(&response), 400);
}

#[actix_rt::test]
async fn limits_count_the_client_that_a_proxy_names() {
    let limits = AddressLimits { connections: 1, rate: 0.0, burst: 0, tracked: 10 };
    let server = Wanted { limits, proxies: vec!["127.0.0.0/8"], ..Wanted::default() }.start();
    let mut held = Vec::new();
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let mut stream = server.connect().await;
        let header = format!("PROXY TCP4 {client} 127.0.0.1 4711 80\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, header.as_bytes()).await.unwrap();
        assert_eq!(status(&ask(&mut stream, "/info").await), 200);
        held.push(stream);
    }
    assert_eq!(server.exchange(format!("PROXY TCP4 192.0.2.3 127.0.0.1 4712 80\r\n{REQUEST}")).await, "");
}

//! XEP-0156.

use waystation_web::Links;

use crate::common::*;

async fn meta(server: &Server, host: &str, suffix: &str, lines: &str) -> String {
    let head =
        format!("GET /.well-known/host-meta{suffix} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    server.exchange(format!("{head}{lines}\r\n")).await
}

#[actix_rt::test]
async fn both_forms_name_both_transports() {
    let server = Wanted::default().start();
    let response = meta(&server, "localhost:5280", "", "").await;
    assert_eq!(status(&response), 200);
    assert_eq!(header(&response, "content-type"), Some("application/xrd+xml; charset=utf-8"));
    assert_eq!(header(&response, "access-control-allow-origin"), Some("*"));
    assert_eq!(
        body(&response),
        "<?xml version='1.0' encoding='utf-8'?>\n\
         <XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>\n  \
         <Link rel='urn:xmpp:alt-connections:websocket' href='ws://localhost:5280/xmpp-websocket'/>\n  \
         <Link rel='urn:xmpp:alt-connections:xbosh' href='http://localhost:5280/http-bind'/>\n\
         </XRD>\n"
    );
    let response = meta(&server, "localhost:5280", ".json", "").await;
    assert_eq!(header(&response, "content-type"), Some("application/json"));
    assert_eq!(header(&response, "access-control-allow-origin"), Some("*"));
    let document: serde_json::Value = serde_json::from_str(body(&response)).unwrap();
    assert_eq!(
        document,
        serde_json::json!({ "links": [
            { "rel": "urn:xmpp:alt-connections:websocket", "href": "ws://localhost:5280/xmpp-websocket" },
            { "rel": "urn:xmpp:alt-connections:xbosh", "href": "http://localhost:5280/http-bind" },
        ]})
    );
    let head = server.request("HEAD /.well-known/host-meta", &[]).await;
    assert_eq!((status(&head), body(&head)), (200, ""));
}

#[actix_rt::test]
async fn only_served_hosts_are_answered_for() {
    let server = Wanted::default().start();
    assert_eq!(status(&meta(&server, "other.example", "", "").await), 404);
    assert_eq!(status(&meta(&server, "other.example", ".json", "").await), 404);
    // The domain as DNS has it.
    let response = meta(&server, "XN--bcher-kva.example", "", "").await;
    assert!(body(&response).contains("'ws://xn--bcher-kva.example/xmpp-websocket'"), "{response}");
}

#[actix_rt::test]
async fn without_encryption_there_is_nothing_to_discover() {
    let server = Wanted::default().start();
    assert_eq!(status(&meta(&server, "localhost", "", "Via: 1.1 proxy\r\n").await), 404);
    let external = Links { external: Some("https://chat.example".into()), ..Wanted::default().links };
    let server = Wanted { links: external, ..Wanted::default() }.start();
    let response = meta(&server, "localhost", "", "Via: 1.1 proxy\r\n").await;
    assert!(body(&response).contains("'wss://chat.example/xmpp-websocket'"), "{response}");
    assert!(body(&response).contains("'https://chat.example/http-bind'"), "{response}");
}

#[actix_rt::test]
async fn what_is_not_offered_is_not_named() {
    let links = Links { bosh: Some("/http-bind".into()), ..Links::default() };
    let server = Wanted { links, ..Wanted::default() }.start();
    let response = meta(&server, "localhost", ".json", "").await;
    assert!(body(&response).contains("xbosh") && !body(&response).contains("websocket"), "{response}");
}

//! The page and its files as a browser gets them. What Converse.js does with them is tested in a browser.

use std::io::Read;

use actix_web::body::MessageBody;
use actix_web::dev::ServiceResponse;
use actix_web::http::{StatusCode, header};
use actix_web::test::{TestRequest, call_service, init_service};
use actix_web::{App, HttpMessage, body};
use bytes::Bytes;
use flate2::read::GzDecoder;

use super::*;

/// Asks a page for two hosts; `headers` are names and values.
async fn ask(path: &str, base: &str, headers: &[(&str, &str)]) -> (StatusCode, header::HeaderMap, Bytes) {
    ask_as(
        ClientInfo { peer: "127.0.0.1:1".parse().unwrap(), secure: true, base: base.into() },
        path,
        headers,
    )
    .await
}

async fn ask_as(
    info: ClientInfo,
    path: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, header::HeaderMap, Bytes) {
    let settings = Settings {
        hosts: vec!["first.example".into(), "bücher.example".into()],
        registration: true,
        websocket: Some("/xmpp-websocket".into()),
        bosh: Some("/http-bind".into()),
    };
    let chat = Chat::new(settings);
    let app = init_service(App::new().configure(|config| chat.configure(config))).await;
    let mut request = TestRequest::get().uri(path);
    for header in headers {
        request = request.insert_header(*header);
    }
    let request = request.to_request();
    request.extensions_mut().insert(info);
    let response: ServiceResponse<_> = call_service(&app, request).await;
    let (_, response) = response.into_parts();
    let (head, body) = response.into_parts();
    let bytes = body::to_bytes(body.boxed()).await.unwrap();
    (head.status(), head.headers().clone(), bytes)
}

const BASE: &str = "http://localhost:5280";
const GZIP: [(&str, &str); 1] = [("accept-encoding", "br, gzip;q=0.8")];

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[actix_rt::test]
async fn every_file_is_served_compressed_and_plain() {
    for asset in ASSETS {
        let (status, headers, packed) = ask(asset.path, BASE, &GZIP).await;
        assert_eq!(status, StatusCode::OK, "{}", asset.path);
        assert_eq!(headers.get(header::CONTENT_ENCODING).unwrap(), "gzip");
        let (status, headers, plain) = ask(asset.path, BASE, &[]).await;
        assert_eq!(status, StatusCode::OK, "{}", asset.path);
        assert!(!headers.contains_key(header::CONTENT_ENCODING));
        let mut unpacked = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).unwrap();
        assert_eq!(unpacked, plain, "{}", asset.path);
        assert_eq!(plain.len(), asset.len);
    }
}

#[actix_rt::test]
async fn what_a_browser_has_is_not_sent_again() {
    let (_, headers, _) = ask("/chat/page.js", BASE, &GZIP).await;
    let tag = headers.get(header::ETAG).unwrap().to_str().unwrap().to_owned();
    let weak = format!("\"other\", W/{tag}");
    for known in [tag.as_str(), weak.as_str(), "*"] {
        let asked = [GZIP[0], ("if-none-match", known)];
        let (status, headers, body) = ask("/chat/page.js", BASE, &asked).await;
        assert_eq!((status, body.len()), (StatusCode::NOT_MODIFIED, 0), "{known}");
        assert_eq!(headers.get(header::ETAG).unwrap(), tag.as_str());
    }
    // Another coding is another representation.
    let (status, _, _) = ask("/chat/page.js", BASE, &[("if-none-match", tag.as_str())]).await;
    assert_eq!(status, StatusCode::OK);
    for refused in ["gzip;q=0", "identity", "gzip;q=0, *", ""] {
        let (_, headers, _) = ask("/chat/page.js", BASE, &[("accept-encoding", refused)]).await;
        assert!(!headers.contains_key(header::CONTENT_ENCODING), "{refused}");
    }
}

#[actix_rt::test]
async fn m15_nothing_but_the_files_is_served() {
    for path in [
        "/chat/",
        "/chat/..",
        "/chat/../chat/page.js",
        "/chat/%2e%2e/Cargo.toml",
        "/chat/page.js/",
        "/etc/passwd",
    ] {
        let (status, _, _) = ask(path, BASE, &[]).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[actix_rt::test]
async fn the_page_is_for_the_host_that_was_asked() {
    for (base, host) in [
        (BASE, "first.example"),
        ("https://first.example:5281", "first.example"),
        ("https://xn--bcher-kva.example", "bücher.example"),
    ] {
        let (status, headers, body) = ask("/", base, &[]).await;
        assert_eq!(status, StatusCode::OK);
        assert!(text(&body).contains(host), "{base}");
        let policy = headers.get(header::CONTENT_SECURITY_POLICY).unwrap().to_str().unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
        if CONVERSE.is_some() {
            let domain = format!("data-domain=\"{host}\"");
            assert!(text(&body).contains(&domain), "{base}");
            let socket = base.replacen("http", "ws", 1);
            assert!(policy.contains(&socket), "{policy}");
        } else {
            assert!(text(&body).contains("modules/chat/package.json"));
        }
    }
}

#[actix_rt::test]
async fn where_nobody_may_log_in_the_page_says_so() {
    let peer = "192.0.2.1:1".parse().unwrap();
    let info = ClientInfo { peer, secure: false, base: "http://first.example".into() };
    let (_, _, body) = ask_as(info, "/", &[]).await;
    assert!(!text(&body).contains("page.js"));
    assert!(CONVERSE.is_none() || text(&body).contains("HTTPS"), "{}", text(&body));
}

#[actix_rt::test]
async fn pages_load_nothing_from_elsewhere() {
    let (_, _, body) = ask("/", BASE, &[]).await;
    for attribute in ["src=\"", "href=\""] {
        for part in text(&body).split(attribute).skip(1) {
            assert!(part.starts_with('/') && !part.starts_with("//"), "{part}");
        }
    }
    let (status, _, body) = ask("/licences", BASE, &[]).await;
    assert_eq!(status, StatusCode::OK);
    assert!(text(&body).contains("MIT"));
}

#[actix_rt::test]
async fn what_the_licences_page_promises_is_there() {
    let Some(version) = CONVERSE else { return };
    let (_, _, page) = ask("/licences", BASE, &[]).await;
    assert!(text(&page).contains(version) && text(&page).contains("Mozilla Public License 2.0"));
    let (status, _, licences) = ask("/licences/converse.txt", BASE, &[]).await;
    assert_eq!(status, StatusCode::OK);
    for package in ["converse.js", "bootstrap", "lit", "dompurify", "lodash-es"] {
        assert!(text(&licences).contains(&format!("==== {package} ====")), "{package}");
    }
    assert!(text(&licences).contains("Mozilla Public License Version 2.0"));
    // OMEMO's library is GPL.
    assert!(!ASSETS.iter().any(|asset| asset.path.contains("omemo") || asset.path.ends_with(".wasm")));
}

#[test]
fn the_lock_file_names_no_registry() {
    let lock = include_str!("../package-lock.json");
    assert!(!lock.contains("\"resolved\": \"http") && lock.contains("\"integrity\": \"sha512-"));
    assert!(include_str!("../package.json").contains("\"converse.js\": \"14.0.0\""));
}

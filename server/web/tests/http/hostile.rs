//! Requests that are made to confuse: SECURITY M15.

use tokio::io::AsyncWriteExt;

use crate::common::*;

#[actix_rt::test]
async fn m15_host_junk_is_refused_in_words() {
    let server = Wanted::default().start();
    for junk in ["a b", "<script>", "a:b:c", "[::", "a\"", "a/../b", "u@h", "%6c", "a:99999", "ü", "", "."] {
        let response =
            server.exchange(format!("GET /info HTTP/1.1\r\nHost: {junk}\r\nConnection: close\r\n\r\n")).await;
        match junk {
            "." => assert_eq!(status(&response), 200),
            _ => {
                assert_eq!(status(&response), 400, "{junk}: {response}");
                assert_eq!(body(&response), "400 Bad Request\n", "{junk}");
            }
        }
    }
    let long = "h".repeat(10_000);
    let response =
        server.exchange(format!("GET /info HTTP/1.1\r\nHost: {long}\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(status(&response), 400);
    for hosts in ["Host: a\r\nHost: b\r\n", ""] {
        assert_eq!(status(&server.exchange(format!("GET /info HTTP/1.1\r\n{hosts}\r\n")).await), 400);
    }
}

#[actix_rt::test]
async fn m15_requests_cannot_be_smuggled() {
    let server = Wanted::default().start();
    let smuggled = "GET /info HTTP/1.1\r\nHost: localhost\r\n\r\n";
    for framing in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        "Content-Length: 5\r\nContent-Length: 6\r\n",
        "Content-Length: 5\r\nContent-Length: 5\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: 5, 5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x5\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        "X: y\r\n Transfer-Encoding: chunked\r\n",
    ] {
        let request = format!("POST /echo HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n0\r\n\r\n{smuggled}");
        let response = server.exchange(request).await;
        assert_eq!(status(&response), 400, "{framing}: {response}");
        assert!(!response.contains("127.0.0.1"), "{framing}: a second request was answered: {response}");
    }
    let old = "POST /echo HTTP/1.0\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(status(&server.exchange(format!("{old}{smuggled}")).await), 400);
}

#[actix_rt::test]
async fn m15_http2_is_not_spoken() {
    let server = Wanted::default().start();
    let response = server.exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert_eq!(status(&response), 400);
    let upgrade = ["Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"];
    assert_eq!(status(&server.request("GET /info", &upgrade).await), 200);
}

#[actix_rt::test]
async fn m8_m15_a_head_without_end_is_refused_before_it_is_large() {
    let server = Wanted::default().start();
    let mut stream = server.connect().await;
    let (mut read, mut write) = stream.split();
    let flood = async {
        let mut sent: u64 = 0;
        let _ = write.write_all(b"GET /info HTTP/1.1\r\nHost: localhost\r\nX: ").await;
        while sent < 8 << 20 && write.write_all(&[b'x'; 4096]).await.is_ok() {
            sent += 4096;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        response = until_closed(&mut read) => assert!(matches!(status(&response), 431 | 0), "{response}"),
        () = flood => {}
    }
    let many: Vec<String> = (0..200).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let response = server.request("GET /info", &many).await;
    assert!(matches!(status(&response), 400 | 431), "{response}");
}

#[actix_rt::test]
async fn m15_unknown_paths_and_methods_are_answered_in_words() {
    let server = Wanted::default().start();
    for path in
        ["/nothing", "/../etc/passwd", "/..%2f..%2fetc/passwd", "/%u002e%u002e/", "//info", "/info/", "/%00"]
    {
        let response = server.request(&format!("GET {path}"), &[]).await;
        assert_eq!(status(&response), 404, "{path}");
        assert_eq!(body(&response), "404 Not Found\n", "{path}");
        assert_eq!(header(&response, "content-type"), Some("text/plain; charset=utf-8"));
    }
    for method in ["PUT", "DELETE", "TRACE", "PATCH", "GET"] {
        let response = server.request(&format!("{method} /echo"), &[]).await;
        assert_eq!(status(&response), 405, "{method}");
        assert_eq!(body(&response), "405 Method Not Allowed\n", "{method}");
    }
    assert_eq!(status(&server.request("CONNECT example.org:443", &[]).await), 404);
    assert!(matches!(status(&server.exchange("\u{0}\u{1}\r\n\r\n").await), 400));
}

#[actix_rt::test]
async fn m15_every_response_carries_the_headers_that_protect_it() {
    let server = Wanted::default().start();
    for line in ["GET /info", "GET /nothing", "GET /.well-known/host-meta", "DELETE /echo"] {
        let response = server.request(line, &["Host-: x"]).await;
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("cross-origin-opener-policy", "same-origin"),
        ] {
            assert_eq!(header(&response, name), Some(value), "{line}");
        }
        let policy = header(&response, "content-security-policy").unwrap();
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{line}");
        assert_eq!(header(&response, "set-cookie"), None);
        assert_eq!(header(&response, "server"), None);
        assert_eq!(header(&response, "strict-transport-security"), None);
    }
}

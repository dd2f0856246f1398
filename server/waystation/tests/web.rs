//! HTTP of a server that really runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::Place;

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(60);

struct Server {
    place: Place,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(web: &str) -> Self {
        let place = Place::new();
        let listen = "c2s = [\"127.0.0.1:0\"]\nc2s_tls = []\ns2s = []\ns2s_tls = []\nhttp = [\"127.0.0.1:0\"]\nhttps = [\"127.0.0.1:0\"]\n";
        place.write("w.toml", &format!("storage.engine = \"memory\"\n[listen]\n{listen}[web]\n{web}\n"));
        let log = std::fs::File::create(place.file("log")).unwrap();
        let child = place.command(&["--config", "w.toml"]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { place, child };
        let end = Instant::now() + DEADLINE;
        while !server.log().contains(" ready ") {
            assert_eq!(server.child.try_wait().unwrap(), None, "{}", server.log());
            assert!(Instant::now() < end, "the server did not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.file("log")).unwrap()
    }

    /// The port of HTTP, or of HTTPS.
    fn port(&self, encrypted: bool) -> u16 {
        let log = self.log();
        let line = log.lines().find(|line| {
            line.contains("listening for HTTP") && line.ends_with(&format!("encrypted={encrypted}"))
        });
        let address = line.unwrap().split("address=127.0.0.1:").nth(1).unwrap();
        address.split(' ').next().unwrap().parse().unwrap()
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port(false))).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response
    }
}

#[test]
fn a_browser_finds_the_page_and_the_way_to_the_server() {
    let server = Server::start("");
    let page = server.get("/");
    assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("localhost"), "{page}");
    assert!(server.get("/licences").starts_with("HTTP/1.1 200 OK"));
    let meta = server.get("/.well-known/host-meta");
    assert!(meta.contains("<XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>"), "{meta}");
    for path in ["/xmpp-websocket", "/http-bind"] {
        assert!(meta.contains(&format!("://localhost{path}'")), "{meta}");
        assert!(page.contains(path) || page.contains("package.json"), "{page}");
        assert!(!server.get(path).starts_with("HTTP/1.1 404"), "{path}");
    }
    assert_ne!(server.port(true), server.port(false));
}

#[test]
fn the_page_can_be_switched_off() {
    let server = Server::start("chat_page = false");
    for path in ["/", "/licences", "/chat/page.js"] {
        assert!(server.get(path).starts_with("HTTP/1.1 404 Not Found"), "{path}");
    }
    assert!(server.get("/.well-known/host-meta.json").starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn idle_connections_of_browsers_do_not_hold_the_server_up() {
    let mut server = Server::start("");
    let mut idle = TcpStream::connect(("127.0.0.1", server.port(false))).unwrap();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    idle.read_exact(&mut [0; 15]).unwrap();
    let began = Instant::now();
    kill(Pid::from_raw(server.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(0), "{}", server.log());
    assert!(!server.log().contains("did not end in time"), "{}", server.log());
    assert!(began.elapsed() < DEADLINE);
}

//! The server of a test, and a WebSocket client that writes its frames by hand.

#[path = "masked.rs"]
mod masked;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::dev::{ServerHandle, Service};
use actix_web::{App, HttpMessage, HttpServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use waystation_c2s::{C2s, accept_authenticated, accept_gateway};
use waystation_core::Jid;
use waystation_transport::DetachedConnection;
use waystation_web::{ClientInfo, Streams, WebModule};
use waystation_websocket::{Settings, WebSocket};

use crate::common::{PATIENCE, PEER, RIGHT, Server};
pub(crate) use masked::masked;

/// Where the tests' pages come from.
pub(crate) const OWN_ORIGIN: &str = "http://here.test:5280";
pub(crate) const OPEN: &str =
    "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='localhost' version='1.0'/>";
pub(crate) const CLOSE: &str = "<close xmlns='urn:ietf:params:xml:ns:xmpp-framing'/>";

struct Gateway(Arc<C2s>);

impl Streams for Gateway {
    fn accept(&self, connection: DetachedConnection) {
        accept_gateway(self.0.clone(), connection);
    }
    fn accept_authenticated(&self, connection: DetachedConnection, account: &Jid) {
        accept_authenticated(self.0.clone(), connection, account);
    }
    fn serves(&self, domain: &str) -> bool {
        self.0.serves(domain)
    }
}

/// A server with the module.
pub(crate) struct Site {
    pub(crate) server: Server,
    pub(crate) at: SocketAddr,
    handle: ServerHandle,
}

impl Drop for Site {
    fn drop(&mut self) {
        // Told with the call; what is returned only waits for the end.
        drop(self.handle.stop(false));
    }
}

impl Site {
    pub(crate) async fn start() -> Self {
        Self::with(Settings::default(), true, |_| {}).await
    }

    pub(crate) async fn with(settings: Settings, secure: bool, change: impl FnOnce(&mut C2s)) -> Self {
        Self::on_thread(settings, secure, change, || {}).await
    }

    /// `begun` runs on the HTTP server's thread before it serves anyone.
    pub(crate) async fn on_thread(
        settings: Settings,
        secure: bool,
        change: impl FnOnce(&mut C2s),
        begun: impl Fn() + Clone + Send + 'static,
    ) -> Self {
        let server = Server::start(change).await;
        let module = Arc::new(WebSocket::new(Arc::new(Gateway(server.c2s.clone())), settings));
        let web = HttpServer::new(move || {
            begun();
            let module = module.clone();
            let info = ClientInfo { peer: SocketAddr::from(PEER), secure, base: OWN_ORIGIN.into() };
            App::new().configure(move |config| module.configure(config)).wrap_fn(move |request, service| {
                request.extensions_mut().insert(info.clone());
                service.call(request)
            })
        });
        let web =
            web.h1_write_buffer_size(8 * 1024).workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
        let at = web.addrs()[0];
        let running = web.run();
        let handle = running.handle();
        actix_rt::spawn(running);
        Self { server, at, handle }
    }

    /// A client that has done the handshake.
    pub(crate) async fn connect(&self) -> Client {
        let (status, client) = Client::handshake(self.at, "GET", "Sec-WebSocket-Protocol: xmpp\r\n").await;
        assert!(status.starts_with("HTTP/1.1 101 "), "{status}");
        client
    }

    /// A client whose stream is open.
    pub(crate) async fn open(&self) -> Client {
        let mut client = self.connect().await;
        client.text(OPEN).await;
        assert!(client.next_text().await.starts_with("<open "));
        assert!(client.next_text().await.starts_with("<stream:features "));
        client
    }

    /// A client of romeo, with a resource.
    pub(crate) async fn log_in(&self, resource: &str) -> Client {
        let mut client = self.authenticated().await;
        client
            .text(&format!(
                "<iq xmlns='jabber:client' type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                 <resource>{resource}</resource></bind></iq>"
            ))
            .await;
        assert!(client.next_text().await.contains(&format!("<jid>romeo@localhost/{resource}</jid>")));
        client
    }

    /// A client of romeo, without one.
    pub(crate) async fn authenticated(&self) -> Client {
        let mut client = self.open().await;
        client
            .text(&format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{RIGHT}</auth>"))
            .await;
        assert_eq!(client.next_text().await, "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
        client.text(OPEN).await;
        assert!(client.next_text().await.starts_with("<open "));
        assert!(client.next_text().await.contains("xmpp-bind"));
        client
    }
}

/// A frame of the server's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Text(String),
    Pong(Vec<u8>),
    Close(Option<u16>),
    /// The connection has ended.
    End,
}

/// The client.
pub(crate) struct Client {
    pub(crate) tcp: TcpStream,
    received: Vec<u8>,
}

impl Client {
    /// Does the handshake with `headers` added; gives the status line and the headers of the answer.
    pub(crate) async fn handshake(at: SocketAddr, method: &str, headers: &str) -> (String, Self) {
        let mut tcp = TcpStream::connect(at).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let request = format!(
            "{method} /xmpp-websocket HTTP/1.1\r\nHost: here.test:5280\r\nUpgrade: websocket\r\n\
             Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\n{headers}\r\n"
        );
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut client = Self { tcp, received: Vec::new() };
        let head = loop {
            let text = String::from_utf8_lossy(&client.received).into_owned();
            if let Some(end) = text.find("\r\n\r\n") {
                client.received.drain(..end + 4);
                break text[..end + 2].to_owned();
            }
            assert!(client.fill().await, "no answer to the handshake: {text}");
        };
        (head, client)
    }

    /// Reads something; false at the end.
    async fn fill(&mut self) -> bool {
        let read = timeout(PATIENCE, self.tcp.read_buf(&mut self.received)).await;
        // A reset is an end as well.
        read.expect("the server says nothing").unwrap_or(0) > 0
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn text(&mut self, text: &str) {
        self.raw(&masked(0x81, text.as_bytes())).await;
    }

    pub(crate) async fn next(&mut self) -> Frame {
        loop {
            if let Some((first, start, len)) = header(&self.received)
                && self.received.len() >= start + len
            {
                let payload = self.received[start..start + len].to_vec();
                self.received.drain(..start + len);
                return match first {
                    0x81 => Frame::Text(String::from_utf8(payload).unwrap()),
                    0x8A => Frame::Pong(payload),
                    0x88 => Frame::Close(payload.first_chunk().map(|code| u16::from_be_bytes(*code))),
                    _ => panic!("a frame with {first:x}"),
                };
            }
            if !self.fill().await {
                assert!(self.received.is_empty(), "the server ends in a frame");
                return Frame::End;
            }
        }
    }

    pub(crate) async fn next_text(&mut self) -> String {
        match self.next().await {
            Frame::Text(text) => text,
            other => panic!("{other:?} and no text"),
        }
    }

    /// The server ends the connection with this code, and nothing before it.
    pub(crate) async fn expect_close(&mut self, code: u16) {
        assert_eq!(self.next().await, Frame::Close(Some(code)));
        // It may be gone already.
        let _ = self.tcp.write_all(&masked(0x88, &code.to_be_bytes())).await;
        // The HTTP server lingers for a second unless the client is done as well.
        let _ = self.tcp.shutdown().await;
        assert_eq!(self.next().await, Frame::End);
    }

    /// The server ends the stream with this error, and the connection as is proper.
    pub(crate) async fn expect_error(&mut self, condition: &str) {
        let error = self.next_text().await;
        assert!(
            error.starts_with("<stream:error xmlns:stream='http://etherx.jabber.org/streams'>")
                && error.contains(&format!("<{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'")),
            "{condition} is not in {error}"
        );
        assert_eq!(self.next_text().await, CLOSE);
        self.expect_close(1000).await;
    }

    /// Sends a request that only a session answers, and gets the answer.
    pub(crate) async fn ask(&mut self, id: &str) {
        self.text(&format!(
            "<iq xmlns='jabber:client' type='get' id='{id}'><query xmlns='jabber:iq:roster'/></iq>"
        ))
        .await;
        let answer = self.next_text().await;
        assert!(answer.contains(&format!("id='{id}'")) && answer.contains("'result'"), "{answer}");
    }

    /// Writes until the server has taken nothing for a while; how many of `piece` it took.
    pub(crate) async fn write_until_blocked(&mut self, piece: &[u8], most: usize) -> usize {
        let mut written = 0;
        let mut rest = piece;
        while written < most {
            match timeout(Duration::from_secs(2), self.tcp.write(rest)).await {
                Ok(count) => rest = &rest[count.unwrap()..],
                Err(_) => break,
            }
            if rest.is_empty() {
                written += 1;
                rest = piece;
            }
        }
        // What has begun is completed by the reader of the answers, or never.
        written
    }
}

/// First byte, start of the payload and its length.
fn header(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, second) = (*bytes.first()?, *bytes.get(1)?);
    Some(match second {
        126 => (first, 4, usize::from(u16::from_be_bytes(*bytes.get(2..4)?.first_chunk()?))),
        127 => (first, 10, u64::from_be_bytes(*bytes.get(2..10)?.first_chunk()?) as usize),
        len => (first, 2, usize::from(len)),
    })
}

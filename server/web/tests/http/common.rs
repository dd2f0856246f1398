//! A listener with services that show what reached them, and a client that sends bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use actix_web::web::{self, Bytes, ReqData, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use waystation_core::Jid;
use waystation_runtime::{Arbiters, Drain};
use waystation_transport::{AddressLimits, Admission, DetachedConnection, Listener, TlsAcceptor};
use waystation_web::{ClientInfo, Deadlines, HostMeta, Links, Settings, Streams, Web, WebModule};

/// Longest that a test waits for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Serves `localhost`, `127.0.0.1` and one more; takes no streams.
pub(crate) struct Hosts;

impl Streams for Hosts {
    fn accept(&self, _: DetachedConnection) {}

    fn accept_authenticated(&self, _: DetachedConnection, _: &Jid) {}

    fn serves(&self, domain: &str) -> bool {
        matches!(domain, "localhost" | "bücher.example")
    }
}

/// `/info` shows the client, `/echo` returns a body of at most 64 KiB, `/wait` answers after two seconds, `/raw`
/// returns the bytes of an upgraded connection.
struct Probe;

impl WebModule for Probe {
    fn configure(&self, config: &mut ServiceConfig) {
        config
            .route("/info", web::get().to(info))
            .service(web::resource("/echo").route(web::post().to(echo)))
            .route("/wait", web::get().to(wait))
            .route("/raw", web::get().to(raw));
    }
}

async fn info(info: ReqData<ClientInfo>) -> String {
    format!("{} {} {}", info.peer, info.secure, info.base)
}

async fn echo(body: Bytes) -> Bytes {
    body
}

async fn wait() -> &'static str {
    tokio::time::sleep(Duration::from_secs(2)).await;
    "waited"
}

async fn raw(_: HttpRequest, body: web::Payload) -> HttpResponse {
    HttpResponse::SwitchingProtocols().upgrade("websocket").streaming(body)
}

/// A running listener.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
}

/// What a test wants of the listener.
pub(crate) struct Wanted {
    pub(crate) settings: Settings,
    pub(crate) limits: AddressLimits,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) proxies: Vec<&'static str>,
    pub(crate) links: Links,
}

impl Default for Wanted {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            limits: AddressLimits::unlimited(),
            tls: None,
            proxies: Vec::new(),
            links: Links {
                bosh: Some("/http-bind".into()),
                websocket: Some("/xmpp-websocket".into()),
                external: None,
            },
        }
    }
}

impl Wanted {
    pub(crate) fn start(self) -> Server {
        let streams = Arc::new(Hosts);
        let modules: Vec<Box<dyn WebModule>> =
            vec![Box::new(Probe), Box::new(HostMeta::new(self.links, streams.clone()))];
        let web = Web::new(self.settings, streams, modules);
        let proxies: Vec<_> = self.proxies.iter().map(|network| network.parse().unwrap()).collect();
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), Admission::new(self.limits)).unwrap();
        let listener = listener.with_proxies(&proxies);
        let (address, drain) = (listener.local_addr(), Drain::default());
        web.start(listener, self.tls.as_ref(), &Arbiters::start(1), drain.signal());
        Server { address, drain }
    }
}

/// Deadlines of half a second, as far as the test is about them.
pub(crate) fn hasty(change: impl FnOnce(&mut Deadlines, Duration)) -> Wanted {
    let mut wanted = Wanted::default();
    change(&mut wanted.settings.deadlines, Duration::from_millis(500));
    wanted
}

impl Server {
    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes, and reads until the server closes the connection.
    pub(crate) async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_ref()).await.unwrap();
        until_closed(&mut stream).await
    }

    /// A request with `Host: localhost` and `Connection: close`; `lines` are further headers.
    pub(crate) async fn request(&self, line: &str, lines: &[&str]) -> String {
        let mut text = format!("{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for line in lines {
            text.push_str(line);
            text.push_str("\r\n");
        }
        text.push_str("\r\n");
        self.exchange(text).await
    }
}

/// Everything until the end of the connection; a reset counts as one.
pub(crate) async fn until_closed<S: AsyncRead + Unpin>(stream: &mut S) -> String {
    let mut all = Vec::new();
    let read = async {
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(n) => all.extend_from_slice(&chunk[..n]),
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the server did not close the connection");
    String::from_utf8(all).unwrap()
}

/// Sends a request on a connection that stays open, and reads the response with its body.
pub(crate) async fn ask<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, path: &str) -> String {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let read = async {
        while !complete(&all) {
            let byte = stream.read_u8().await.unwrap();
            all.push(byte);
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("no response");
    String::from_utf8(all).unwrap()
}

/// True when a response with a `content-length` is there.
fn complete(bytes: &[u8]) -> bool {
    let text = std::str::from_utf8(bytes).unwrap();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = header(head, "content-length").unwrap_or("0").parse::<usize>().unwrap();
    body.len() >= length
}

/// The status of a response; 0 if there is none.
pub(crate) fn status(response: &str) -> u16 {
    response.split(' ').nth(1).map_or(0, |code| code.parse().unwrap())
}

/// A header of a response.
pub(crate) fn header<'a>(response: &'a str, name: &str) -> Option<&'a str> {
    let head = response.split("\r\n\r\n").next().unwrap();
    head.lines().skip(1).find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// What comes behind the head.
pub(crate) fn body(response: &str) -> &str {
    response.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

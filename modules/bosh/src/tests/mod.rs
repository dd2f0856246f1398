//! Sessions over real HTTP, against a server that remembers what it was sent, with servers that
//! die.

mod crash;
mod fake;
mod rules;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix_web::dev::{ServerHandle, Service};
use actix_web::{App, HttpMessage, HttpServer};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waystation_core::storage::{Batch, BoxFuture, Durability, Row, ScanRange, Space, Storage, StorageError};
use waystation_core::xml::{Element, Limits};
use waystation_storage::{DataDir, Kind, Options};
use waystation_web::ClientInfo;

use super::*;
use crate::body::NS_HTTPBIND;
use fake::Fake;

const DEADLINE: Duration = Duration::from_secs(60);
const BIND: &str =
    "<iq type='set' id='bind' xmlns='jabber:client'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>";

/// A store that can be told to stop storing, as if the server had died before.
struct Store {
    inner: Arc<dyn Storage>,
    dead: AtomicBool,
    broken: AtomicBool,
    _folder: tempfile::TempDir,
}

impl Store {
    fn new() -> Arc<Self> {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(folder.path()).unwrap();
        let options = Options { kind: Kind::Memory, ..Options::default() };
        let inner = waystation_storage::open(&data_dir, &options).unwrap();
        Arc::new(Self {
            inner,
            dead: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            _folder: folder,
        })
    }

    async fn rows(&self) -> usize {
        self.inner.scan(record::SPACE, ScanRange::prefix(Bytes::new(), 1_000)).await.unwrap().len()
    }
}

impl Storage for Store {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        self.inner.get(space, key)
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        self.inner.scan(space, range)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        if self.broken.load(Ordering::SeqCst) {
            return Box::pin(std::future::ready(Err(StorageError::Full)));
        }
        if self.dead.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        self.inner.commit(batch)
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "test"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.inner.close()
    }
}

/// A server on a port of its own.
struct Server {
    port: u16,
    handle: ServerHandle,
}

impl Server {
    fn start(fake: &Arc<Fake>, store: &Arc<Store>, settings: Settings) -> Self {
        let bosh = Arc::new(Bosh::new(fake.clone(), store.clone(), settings));
        let server = HttpServer::new(move || {
            let bosh = bosh.clone();
            App::new()
                .wrap_fn(|request, service| {
                    let secure = !request.headers().contains_key("x-insecure");
                    let peer = ([192, 0, 2, 1], 0).into();
                    request.extensions_mut().insert(ClientInfo {
                        peer,
                        secure,
                        base: "https://example.org".into(),
                    });
                    service.call(request)
                })
                .configure(move |config| bosh.configure(config))
        });
        let server = server.workers(1).disable_signals().bind(("127.0.0.1", 0)).unwrap();
        let port = server.addrs()[0].port();
        let server = server.run();
        let handle = server.handle();
        actix_rt::spawn(server);
        Self { port, handle }
    }

    /// Ends it with all its sessions, as a crash does.
    async fn kill(self) {
        self.handle.stop(false).await;
    }

    /// Sends raw HTTP on a connection of its own; the status and the content of the response.
    async fn raw(&self, request: &[u8]) -> (u16, String, String) {
        let exchange = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            stream.write_all(request).await.unwrap();
            let mut response = Vec::new();
            // A reset is an end like any other.
            let _ = stream.read_to_end(&mut response).await;
            let response = String::from_utf8(response).unwrap();
            let (head, content) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
            (status, head.to_ascii_lowercase(), content.to_owned())
        };
        tokio::time::timeout(DEADLINE, exchange).await.expect("no response in time")
    }

    async fn post_with(&self, headers: &str, content: &str) -> (u16, String, String) {
        let length = content.len();
        let request = format!(
            "POST /http-bind HTTP/1.1\r\nHost: example.org\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{content}"
        );
        self.raw(request.as_bytes()).await
    }

    /// A request and the wrapper that it is answered with, as text.
    async fn post(&self, attributes: &str, content: impl AsRef<str>) -> String {
        let body = wrapper(attributes, content.as_ref());
        let (status, _, response) = self.post_with("", &body).await;
        assert_eq!(status, 200, "{response}");
        response
    }

    /// A request that is not answered because the server dies first.
    fn post_in_vain(&self, attributes: &str, content: &str) -> tokio::task::JoinHandle<()> {
        let body = wrapper(attributes, content);
        let request =
            format!("POST /http-bind HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let port = self.port;
        tokio::task::spawn_local(async move {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut response = Vec::new();
            let _ = stream.read_to_end(&mut response).await;
            let response = String::from_utf8_lossy(&response).into_owned();
            assert!(!response.contains("<body"), "answered: {response}");
        })
    }
}

fn wrapper(attributes: &str, content: &str) -> String {
    format!("<body xmlns='{NS_HTTPBIND}' xmlns:xmpp='urn:xmpp:xbosh' {attributes}>{content}</body>")
}

fn read(response: &str) -> Element {
    body::parse(response.as_bytes(), Limits::authenticated())
        .unwrap_or_else(|error| panic!("{error}: {response}"))
}

/// The IDs of the messages in a response.
fn messages(response: &str) -> Vec<String> {
    let body = read(response);
    let id = |message: &Element| message.attr("id").unwrap_or_default().to_owned();
    body.children().filter(|child| child.name() == "message").map(id).collect()
}

/// A client that has logged in.
struct Client {
    sid: String,
    rid: u64,
}

impl Client {
    /// With `wait` and `hold` of its own.
    async fn log_in(server: &Server, attributes: &str) -> Self {
        let mut client = Self::authenticate(server, attributes).await;
        assert!(client.post(server, "", BIND).await.contains("juliet@example.org/b"));
        client
    }

    /// As far as to its resource, which is still to be bound.
    async fn authenticate(server: &Server, attributes: &str) -> Self {
        let first = 1_573_741_820;
        let created = server
            .post(&format!("rid='{first}' to='example.org' ver='1.11' xmpp:version='1.0' {attributes}"), "")
            .await;
        let created = read(&created);
        let sid = created.attr("sid").unwrap().to_owned();
        assert_eq!(created.child("features", body::NS_STREAMS).map(|f| f.children().count()), Some(1));
        let mut client = Self { sid, rid: first };
        let auth = "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>AGEAYg==</auth>";
        assert!(client.post(server, "", auth).await.contains("<success"));
        let restarted = client.post(server, "xmpp:restart='true' to='example.org'", "").await;
        assert!(restarted.contains("<stream:features"), "{restarted}");
        client
    }

    fn next(&mut self) -> String {
        self.rid += 1;
        self.attributes(self.rid)
    }

    fn attributes(&self, rid: u64) -> String {
        format!("rid='{rid}' sid='{}'", self.sid)
    }

    async fn post(&mut self, server: &Server, attributes: &str, content: impl AsRef<str>) -> String {
        let attributes = format!("{} {attributes}", self.next());
        server.post(&attributes, content).await
    }
}

/// Stanzas with these IDs.
fn stanzas(ids: &[&str]) -> String {
    ids.iter()
        .map(|id| format!("<message id='{id}' to='romeo@example.org'><body>x</body></message>"))
        .collect()
}

/// Runs a test with a server's end of streams and a store.
fn run<F: Future<Output = ()> + 'static>(test: impl FnOnce(Arc<Fake>, Arc<Store>) -> F + 'static) {
    actix_rt::System::new().block_on(async move {
        tokio::time::timeout(4 * DEADLINE, test(Fake::start(), Store::new()))
            .await
            .expect("the test takes too long");
    });
}

/// What the server accepted from the client after it had bound, each once.
fn accepted(fake: &Fake) -> Vec<String> {
    let accepted: Vec<String> = fake.state().accepted.iter().filter(|id| *id != "bind").cloned().collect();
    let distinct: HashSet<&String> = accepted.iter().collect();
    assert_eq!(distinct.len(), accepted.len(), "twice: {accepted:?}");
    accepted
}

//! How much heap an idle connection costs the server, its clients not counted.
//!
//! Allocations are counted on the server's thread only; the clients run on another one. Run with
//! `--nocapture` for the figures.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use rustls::{RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use waystation_transport::{Connection, Flow, HostCertificate, ReadOutcome, TlsAcceptor, TlsSettings};

/// Connections held at once: enough to make what all share insignificant.
const CONNECTIONS: usize = 300;

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches no memory of the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Ours(&'static SupportedProtocolVersion),
    TokioRustls(&'static SupportedProtocolVersion),
}

struct Setup {
    files: HostCertificate,
    root: rustls::pki_types::CertificateDer<'static>,
    key: rustls::pki_types::PrivateKeyDer<'static>,
    _folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap().self_signed(&key).unwrap();
    let files = HostCertificate {
        host: "localhost".into(),
        chain: folder.path().join("pem"),
        key: folder.path().join("key"),
    };
    std::fs::write(&files.chain, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let der = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
    Setup { files, root: certificate.der().clone(), key: der.into(), _folder: folder }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Connects `CONNECTIONS` clients that exchange one message each with the server and then stay.
fn clients(address: SocketAddr, tls: Option<&Arc<rustls::ClientConfig>>, end: &Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut plain = Vec::new();
        let mut secure = Vec::new();
        for _ in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let mut answer = [0; 4];
            if let Some(config) = tls {
                let connector = TlsConnector::from(config.clone());
                let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
                stream.write_all(b"ping").await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                secure.push(stream);
            } else {
                stream.write_all(b"ping").await.unwrap();
                stream.read_exact(&mut answer).await.unwrap();
                plain.push(stream);
            }
        }
        end.recv().unwrap();
    });
}

/// Bytes of heap per idle connection on the server's side.
fn measure(setup: &Setup, kind: Kind) -> isize {
    let (end, ended): (SyncSender<()>, _) = sync_channel(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap();
    let client_config = match kind {
        Kind::Plain => None,
        Kind::Ours(version) | Kind::TokioRustls(version) => {
            let mut roots = RootCertStore::empty();
            roots.add(setup.root.clone()).unwrap();
            let config = rustls::ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            Some(Arc::new(config))
        }
    };
    let clients = std::thread::spawn(move || clients(address, client_config.as_ref(), &ended));

    let (acceptor, _) = TlsAcceptor::new(TlsSettings::new(vec![setup.files.clone()], "localhost")).unwrap();
    let stock = tokio_rustls::TlsAcceptor::from(Arc::new(
        rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![setup.root.clone()], setup.key.clone_key())
            .unwrap(),
    ));
    let per_connection = runtime.block_on(async {
        let mut ours = Vec::with_capacity(CONNECTIONS);
        let mut theirs = Vec::with_capacity(CONNECTIONS);
        let mut before = 0;
        for n in 0..CONNECTIONS {
            let (stream, peer) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            if let Kind::TokioRustls(_) = kind {
                let mut stream = stock.accept(stream).await.unwrap();
                let mut ping = [0; 4];
                stream.read_exact(&mut ping).await.unwrap();
                stream.write_all(b"pong").await.unwrap();
                stream.flush().await.unwrap();
                theirs.push(stream);
            } else {
                let mut connection = Connection::plain(stream, peer);
                if let Kind::Ours(_) = kind {
                    connection.handshake(&acceptor, None, b"").await.unwrap();
                }
                let mut got = 0;
                while got < 4 {
                    let read = connection.read_some(4096, &mut |_| Flow::Continue).await.unwrap();
                    let ReadOutcome::Data { bytes, .. } = read else { panic!("{read:?}") };
                    got += bytes;
                }
                connection.queue_slice(b"pong");
                connection.flush().await.unwrap();
                ours.push(connection);
            }
            if n == 0 {
                // The first one also made what all share: scratch buffers, tables.
                before = LIVE.get();
            }
        }
        let live = LIVE.get() - before;
        live / (CONNECTIONS as isize - 1)
    });
    end.send(()).unwrap();
    clients.join().unwrap();
    runtime.shutdown_timeout(Duration::from_secs(1));
    per_connection
}

#[test]
fn an_idle_connection_holds_little_memory() {
    use rustls::version::{TLS12, TLS13};
    let setup = setup();
    let plain = measure(&setup, Kind::Plain);
    let tls13 = measure(&setup, Kind::Ours(&TLS13));
    let tls12 = measure(&setup, Kind::Ours(&TLS12));
    println!("heap per idle connection: plain {plain}, TLS 1.3 {tls13}, TLS 1.2 {tls12}");
    for version in [&TLS13, &TLS12] {
        let stock = measure(&setup, Kind::TokioRustls(version));
        println!("tokio-rustls, {:?}: {stock}", version.version);
    }
    println!("inline size of a Connection: {}", size_of::<Connection>());
    assert!(plain <= 512, "plain: {plain} bytes");
    assert!(tls13 <= 4096, "TLS 1.3: {tls13} bytes");
    assert!(tls12 <= 4096, "TLS 1.2: {tls12} bytes");
    assert!(size_of::<Connection>() <= 256);
}

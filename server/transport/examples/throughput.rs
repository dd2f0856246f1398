//! How many 200-byte messages a CPU second of the server's thread carries, in and out, with and without TLS.
//!
//! `cargo run --release -p waystation-transport --example throughput [BATCH]`: BATCH messages (default 10)
//! are queued per flush, and read as they come. The client runs on a thread of its own and is not counted.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement that cannot go on ends")]

use std::error::Error;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use waystation_transport::{
    Connection, Flow, ReadOutcome, TlsAcceptor, TlsSettings, ensure_development_certificate,
};

const MESSAGE: usize = 200;
const MESSAGES: usize = 500_000;

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

trait Stream: Read + Write {}
impl<S: Read + Write> Stream for S {}

/// Takes `MESSAGES` messages, then sends as many, `batch` at a time.
fn client(address: SocketAddr, tls: Option<Arc<ClientConfig>>, batch: usize) -> std::io::Result<()> {
    let socket = TcpStream::connect(address)?;
    socket.set_nodelay(true)?;
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(socket),
        Some(config) => {
            let connection = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
            Box::new(StreamOwned::new(connection, socket))
        }
    };
    stream.write_all(&[0; MESSAGE])?;
    let mut buffer = vec![0; 64 * 1024];
    let mut left = MESSAGES / batch * batch * MESSAGE;
    while left > 0 {
        left -= stream.read(&mut buffer)?;
    }
    for _ in 0..MESSAGES / batch {
        stream.write_all(&buffer[..batch * MESSAGE])?;
    }
    stream.flush()?;
    // Until the server closes.
    while stream.read(&mut buffer).is_ok_and(|n| n > 0) {}
    Ok(())
}

async fn measure(
    acceptor: &TlsAcceptor,
    tls: Option<Arc<ClientConfig>>,
    batch: usize,
) -> Result<[(f64, f64); 2], Box<dyn Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let secure = tls.is_some();
    let client = std::thread::spawn(move || client(address, tls, batch));
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    let mut connection = Connection::plain(stream, peer);
    if secure {
        connection.handshake(acceptor, None, b"").await?;
    }
    let mut started = 0;
    while started < MESSAGE {
        connection
            .read_some(1024, &mut |bytes| {
                started += bytes.len();
                Flow::Continue
            })
            .await?;
    }

    let rate = |began: Instant, cpu: Duration| {
        let messages = MESSAGES as f64;
        (messages / began.elapsed().as_secs_f64(), messages / (cpu_time() - cpu).as_secs_f64())
    };
    let message = [b'x'; MESSAGE];
    let (began, cpu) = (Instant::now(), cpu_time());
    for _ in 0..MESSAGES / batch {
        for _ in 0..batch {
            connection.queue_slice(&message);
        }
        connection.flush().await?;
    }
    let sending = rate(began, cpu);

    let (began, cpu) = (Instant::now(), cpu_time());
    let mut left = MESSAGES / batch * batch * MESSAGE;
    while left > 0 {
        match connection.read_some(16 * 1024, &mut |_| Flow::Continue).await? {
            ReadOutcome::Data { bytes, .. } => left -= bytes,
            end => return Err(format!("the client ended: {end:?}").into()),
        }
    }
    let receiving = rate(began, cpu);
    connection.close(Duration::from_secs(1)).await;
    client.join().map_err(|_| "the client panicked")??;
    Ok([sending, receiving])
}

fn main() -> Result<(), Box<dyn Error>> {
    let batch = std::env::args().nth(1).map_or(Ok(10), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let certificate = ensure_development_certificate(folder.path(), "localhost")?.files;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&certificate.chain)?)?;
    let client_config = |version: &'static SupportedProtocolVersion| {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .map(|builder| Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth()))
    };
    let (acceptor, _) = TlsAcceptor::new(TlsSettings::new(vec![certificate], "localhost"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{MESSAGE}-byte messages, {batch} per flush; per second / per CPU second of the server");
    for (name, config) in [
        ("plain", None),
        ("TLS 1.2", Some(client_config(&TLS12)?)),
        ("TLS 1.3", Some(client_config(&TLS13)?)),
    ] {
        let [sending, receiving] = runtime.block_on(measure(&acceptor, config, batch))?;
        println!("{name:8} sending   {:>10.0} / {:>10.0}", sending.0, sending.1);
        println!("{name:8} receiving {:>10.0} / {:>10.0}", receiving.0, receiving.1);
    }
    Ok(())
}

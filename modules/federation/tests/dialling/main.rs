//! Finding a domain's servers and connecting to them, against a name server and listeners on loopback.
//! The rows of SECURITY.md that this shows: F9 (never to ourselves) and M11 (what DNS says is not trusted).

mod connections;
mod hostile;
mod services;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::timeout;
use waystation_federation::{DialError, Dialled, Resolver, Settings};
use waystation_harness::DnsServer;

/// The machine at times stalls for seconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// A name server that knows these records, written as those of a zone.
fn dns(zone: &str) -> DnsServer {
    DnsServer::start(zone.parse().expect("a zone")).expect("a port for the name server")
}

/// Settings for the name server; addresses of loopback may be dialled.
fn settings(dns: &DnsServer) -> Settings {
    Settings {
        hosts: vec!["ours.example".to_owned()],
        nameservers: vec![dns.address],
        private_targets: true,
        ..Settings::default()
    }
}

fn resolver(dns: &DnsServer) -> Resolver {
    Resolver::new(&settings(dns)).expect("the settings name the name server")
}

/// The same, as it is by default: only public addresses are dialled.
fn closed(dns: &DnsServer) -> Resolver {
    let settings = Settings { private_targets: false, ..settings(dns) };
    Resolver::new(&settings).expect("the settings name the name server")
}

async fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    (listener, port)
}

/// A port on which nobody listens.
async fn nobody() -> u16 {
    listener().await.1
}

/// Dials once, within the patience of tests.
async fn dial(resolver: &Resolver, domain: &str) -> Result<Dialled, DialError> {
    timeout(PATIENCE, resolver.dial(domain).next()).await.expect("dialling ends")
}

/// The port that is reached.
async fn reached(resolver: &Resolver, domain: &str) -> u16 {
    let dialled = dial(resolver, domain).await.unwrap_or_else(|e| panic!("{domain}: {e}"));
    dialled.connection.peer().port()
}

/// Why nothing is reached.
async fn unreached(resolver: &Resolver, domain: &str) -> DialError {
    match dial(resolver, domain).await {
        Err(error) => error,
        Ok(dialled) => panic!("{domain}: {} was reached", dialled.connection.peer()),
    }
}

/// The kinds of [`DialError`], each with a part of its text.
fn not_found(error: &DialError, part: &str) {
    assert!(matches!(error, DialError::NotFound(text) if text.contains(part)), "{error:?}");
}

fn refused(error: &DialError, part: &str) {
    assert!(matches!(error, DialError::Refused(text) if text.contains(part)), "{error:?}");
}

fn failed(error: &DialError, part: &str) {
    assert!(matches!(error, DialError::Failed(text) if text.contains(part)), "{error:?}");
}

fn at(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

//! Connecting to a domain's servers, one after the other: where they are, and which of their addresses answers.
//!
//! What must hold: a domain that the policy forbids, ours among them, is not looked up (SECURITY F9); an
//! address or a port that DNS has given is dialled only when the policy has it (SECURITY M11); the whole takes
//! bounded time, and every way in which it can fail says what was asked and answered.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use hickory_resolver::proto::rr::Name;
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};
use waystation_route::remote::Forbidden;
use waystation_transport::Connection;

use crate::dns::{self, Dns, ResolverError, Service};
use crate::findings::{DialError, Findings};
use crate::policy::Policy;
use crate::settings::Settings;

/// Time for all questions about one domain (SECURITY M11).
const QUESTIONS: Duration = Duration::from_secs(20);
/// Time for all connections to one domain's servers, waiting for an answer of theirs alone.
const CONNECTIONS: Duration = Duration::from_secs(60);
/// The next address of a server is tried beside the ones before when these have not answered for so long
/// (RFC 8305 5).
const STAGGER: Duration = Duration::from_millis(250);

/// Finds domains' servers and connects to them. Cloning it gives the same one.
#[derive(Clone)]
pub struct Resolver {
    inner: Arc<Inner>,
}

struct Inner {
    dns: Dns,
    policy: Policy,
    connect_timeout: Duration,
}

impl Resolver {
    /// One that asks the name servers of the settings, or the system's when they name none. It keeps what
    /// these have said, so there should be one for all.
    ///
    /// # Errors
    /// When the settings name none and the system's cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, ResolverError> {
        let inner = Inner {
            dns: Dns::new(settings)?,
            policy: Policy::new(settings),
            connect_timeout: settings.connect_timeout,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Begins to connect to the servers of a domain, which is prepared as domains of JIDs are. Nothing is
    /// asked before [`Dialling::next`].
    pub fn dial(&self, domain: &str) -> Dialling {
        Dialling {
            inner: self.inner.clone(),
            domain: domain.to_owned(),
            begun: false,
            servers: VecDeque::new(),
            current: None,
            questions: QUESTIONS,
            connections: CONNECTIONS,
            findings: Findings::default(),
        }
    }
}

/// Where a domain's server is looked for, and what of it was tried.
pub struct Dialling {
    inner: Arc<Inner>,
    domain: String,
    begun: bool,
    /// The servers that are still to be tried.
    servers: VecDeque<Server>,
    /// The one whose addresses are tried now.
    current: Option<Current>,
    /// What is left of the time for questions, and for connections.
    questions: Duration,
    connections: Duration,
    findings: Findings,
}

struct Server {
    host: Host,
    port: u16,
    direct_tls: bool,
}

enum Host {
    Name(Name),
    /// What the administrators have written is dialled wherever it is.
    Address(IpAddr),
}

struct Current {
    target: String,
    direct_tls: bool,
    addresses: VecDeque<SocketAddr>,
}

/// A connection to one of a domain's servers; nothing was said on it.
pub struct Dialled {
    /// The connection, without TLS.
    pub connection: Connection,
    /// The server expects TLS from the first byte (XEP-0368), for the domain and not for the target.
    pub direct_tls: bool,
    /// The server's name or address, for people. It proves nothing: it comes from DNS.
    pub target: String,
}

impl Dialling {
    /// Connects to the best server that was not tried yet; called again, when the last one did not do, to the
    /// next. Servers are tried in the order of their SRV records; of one server's addresses the next is tried
    /// beside the others after a quarter of a second, and the first to answer is taken (RFC 8305). All
    /// questions together take 20 s at most and all connections a minute.
    ///
    /// Dropped before its end, it leaves out what it was about.
    ///
    /// # Errors
    /// [`DialError`] when there is none left, and from then on whenever it is called.
    pub async fn next(&mut self) -> Result<Dialled, DialError> {
        if !self.begun {
            self.begun = true;
            if let Err(forbidden) = self.inner.policy.permits_domain(&self.domain) {
                self.findings.refused(match forbidden {
                    Forbidden::Policy => "it is not allowed".to_owned(),
                    Forbidden::NoServer => "it is no domain of another server".to_owned(),
                });
            } else {
                self.begin().await;
            }
        }
        loop {
            if let Some(mut current) = self.current.take() {
                let connected = self.connect(&mut current).await;
                let (target, direct_tls) = (current.target.clone(), current.direct_tls);
                if !current.addresses.is_empty() {
                    self.current = Some(current);
                }
                if let Some((stream, peer)) = connected {
                    let connection = Connection::plain(stream, peer);
                    // Whoever comes again has found that this one does not do.
                    self.findings.failed(format!("{peer} ({target}) did not do"));
                    return Ok(Dialled { connection, direct_tls, target });
                }
            } else if let Some(server) = self.servers.pop_front() {
                self.current = self.locate(server).await;
            } else {
                return Err(self.findings.verdict(&self.domain));
            }
        }
    }

    /// Finds the servers.
    async fn begin(&mut self) {
        if let Some((host, port, direct_tls)) = self.inner.policy.server(&self.domain) {
            let address = host.trim_start_matches('[').trim_end_matches(']').parse();
            let host = match (address, dns::name_of(&host)) {
                (Ok(address), _) => Host::Address(address),
                (Err(_), Some(name)) => Host::Name(name),
                (Err(_), None) => return self.findings.nothing(format!("{host} is no name of a server")),
            };
            return self.servers.push_back(Server { host, port, direct_tls });
        }
        let Some(name) = dns::name_of(&self.domain) else {
            return self.findings.nothing("it is no name that DNS can have".to_owned());
        };
        let questions = self.inner.dns.services(&name, &mut self.findings);
        let Some(services) = within(&mut self.questions, questions).await else {
            return self.findings.failed(unanswered(&name));
        };
        for Service { port, target, direct_tls, .. } in services {
            if self.inner.policy.may_dial_port(port) {
                self.servers.push_back(Server { host: Host::Name(target), port, direct_tls });
            } else {
                let target = dns::show(&target);
                self.findings.refused(format!("{target} is on port {port}, which is not dialled"));
            }
        }
    }

    /// Finds the addresses of a server; `None` when there is none to be dialled.
    async fn locate(&mut self, server: Server) -> Option<Current> {
        let Server { host, port, direct_tls } = server;
        let name = match host {
            Host::Name(name) => name,
            Host::Address(address) => {
                let addresses = VecDeque::from([SocketAddr::new(address, port)]);
                return Some(Current { target: address.to_string(), direct_tls, addresses });
            }
        };
        let questions = self.inner.dns.addresses(&name, &mut self.findings);
        let Some(found) = within(&mut self.questions, questions).await else {
            self.findings.failed(unanswered(&name));
            self.servers.clear();
            return None;
        };
        let target = dns::show(&name);
        let mut addresses = VecDeque::with_capacity(found.len());
        for address in found {
            if self.inner.policy.may_dial(address) {
                addresses.push_back(SocketAddr::new(address, port));
            } else {
                self.findings.refused(format!("{address} ({target}) is no public address"));
            }
        }
        (!addresses.is_empty()).then_some(Current { target, direct_tls, addresses })
    }

    /// Connects to one of the addresses, the first to answer; those that have not failed stay in `current`.
    async fn connect(&mut self, current: &mut Current) -> Option<(TcpStream, SocketAddr)> {
        let begun = Instant::now();
        let end = tokio::time::Instant::now() + self.connections;
        let limit = self.inner.connect_timeout;
        let mut attempts = FuturesUnordered::new();
        let mut trying: VecDeque<SocketAddr> = VecDeque::new();
        let mut next = tokio::time::Instant::now();
        let connected = loop {
            if attempts.is_empty() && current.addresses.is_empty() {
                break None;
            }
            tokio::select! {
                biased;
                Some((address, result)) = attempts.next() => {
                    trying.retain(|other| *other != address);
                    match result {
                        Ok(stream) => break Some((stream, address)),
                        Err(text) => {
                            self.findings.failed(format!("{address} ({}): {text}", current.target));
                            next = tokio::time::Instant::now();
                        }
                    }
                }
                () = sleep_until(next), if !current.addresses.is_empty() => {
                    if let Some(address) = current.addresses.pop_front() {
                        trying.push_back(address);
                        attempts.push(attempt(address, limit));
                    }
                    next += STAGGER;
                }
                () = sleep_until(end) => {
                    let seconds = CONNECTIONS.as_secs();
                    self.findings.failed(format!("no more is tried after {seconds} s"));
                    self.servers.clear();
                    current.addresses.clear();
                    trying.clear();
                    break None;
                }
            }
        };
        self.connections = self.connections.saturating_sub(begun.elapsed());
        trying.append(&mut current.addresses);
        current.addresses = trying;
        connected
    }
}

async fn attempt(address: SocketAddr, limit: Duration) -> (SocketAddr, Result<TcpStream, String>) {
    let result = match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream.set_nodelay(true).map(|()| stream).map_err(|e| e.to_string()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("no answer within {limit:?}")),
    };
    (address, result)
}

/// Waits for what it is given as long as there is time left, which is less afterwards.
async fn within<T>(left: &mut Duration, what: impl Future<Output = T>) -> Option<T> {
    let begun = Instant::now();
    let done = timeout(*left, what).await.ok();
    *left = left.saturating_sub(begun.elapsed());
    done
}

fn unanswered(name: &Name) -> String {
    format!("{}: DNS has not answered all that was asked within {} s", dns::show(name), QUESTIONS.as_secs())
}

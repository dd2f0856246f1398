//! Questions to DNS: the servers of a domain (RFC 6120 3.2, XEP-0368) and the addresses of a server.
//!
//! hickory-resolver speaks to the name servers; following aliases and keeping answers is done here, because
//! what is kept is then only what is dialled, within bounds that no answer can exceed.
//!
//! What must hold: whatever is answered, a bounded number of questions is asked, so many of them at once, and
//! a bounded part of the answer is kept; "there is none" is only said when DNS has said so, and never when it
//! has not answered.

mod cache;
mod order;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, Message, Query};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig, system_conf};
use tokio::sync::Semaphore;

use crate::findings::Findings;
use crate::settings::Settings;
use cache::{Answer, Cache};
pub(crate) use order::Service;

/// Servers of a domain that are tried (SECURITY M11).
const SERVERS: usize = 16;
/// Addresses of a server that are tried.
const ADDRESSES: usize = 8;
/// Aliases that are followed from a name to the one that has the records.
const ALIASES: usize = 8;
/// Questions that wait for their answer at once, for all domains; more wait for their turn.
const AT_ONCE: usize = 64;
/// Time for one question, sent again as long as nothing comes.
const QUESTION: Duration = Duration::from_secs(5);
/// The port of servers that are found without SRV records (RFC 6120 3.2.2).
const DEFAULT_PORT: u16 = 5269;

/// Why names cannot be looked up at all.
#[derive(Debug, thiserror::Error)]
#[error("the system's name servers cannot be read: {0}")]
pub struct ResolverError(#[from] NetError);

/// The name servers, and what they have said.
pub(crate) struct Dns {
    pool: NameServerPool<TokioRuntimeProvider>,
    cache: Mutex<Cache>,
    places: Semaphore,
}

impl Dns {
    /// Asks the name servers of the settings, else those of the system.
    ///
    /// # Errors
    /// When there is none in the settings and the system's cannot be read.
    pub(crate) fn new(settings: &Settings) -> Result<Self, ResolverError> {
        let servers = match settings.nameservers.as_slice() {
            [] => system_conf::read_system_conf()?.0.name_servers().to_vec(),
            given => given.iter().map(name_server).collect(),
        };
        let mut options = ResolverOpts::default();
        options.timeout = QUESTION;
        options.max_active_requests = AT_ONCE;
        let context = Arc::new(PoolContext::new(options, TlsConfig::new()?));
        let pool = NameServerPool::from_config(servers, context, TokioRuntimeProvider::default());
        Ok(Self { pool, cache: Mutex::default(), places: Semaphore::new(AT_ONCE) })
    }

    /// The servers of a domain in the order in which they are to be tried: those of its SRV records of both
    /// kinds, mixed; where no record was found, the domain itself on port 5269. None when a record says that
    /// there is no such service, and no other record that there is. What was not answered is in the findings.
    pub(crate) async fn services(&self, domain: &Name, findings: &mut Findings) -> Vec<Service> {
        let (direct, starttls) =
            tokio::join!(self.services_of(domain, true), self.services_of(domain, false));
        let mut services = Vec::new();
        let mut unknown = 0;
        let mut nowhere = false;
        for answer in [direct, starttls] {
            match answer {
                Ok(found) => {
                    let (roots, found): (Vec<_>, Vec<_>) =
                        found.into_iter().partition(|s| s.target.is_root());
                    nowhere |= !roots.is_empty();
                    services.extend(found);
                }
                Err(text) => {
                    findings.failed(text);
                    unknown += 1;
                }
            }
        }
        if nowhere {
            // XEP-0368: SRV records are in use, so that nothing is found without them.
            if services.is_empty() {
                findings.nothing(format!("{} says that there is no XMPP server", show(domain)));
            }
        } else if services.is_empty() {
            // RFC 6120 3.2.1, rule 9: without an answer the address of the domain is tried, too.
            if unknown == 0 {
                findings.nothing(format!("{} has no SRV records", show(domain)));
            }
            return vec![Service {
                priority: 0,
                weight: 0,
                port: DEFAULT_PORT,
                target: domain.clone(),
                direct_tls: false,
            }];
        }
        order::order(services, SERVERS, order::random)
    }

    async fn services_of(&self, domain: &Name, direct_tls: bool) -> Result<Vec<Service>, String> {
        let service: &[u8] = if direct_tls { b"_xmpps-server" } else { b"_xmpp-server" };
        let name = Name::from_labels([service, b"_tcp"]).and_then(|prefix| prefix.append_domain(domain));
        let answer = match name {
            Ok(name) => self.ask(&name, RecordType::SRV).await?,
            // The domain is so long that there can be no name below it.
            Err(_) => Answer::Nothing,
        };
        Ok(match answer {
            Answer::Services(found) => found.iter().cloned().map(|s| Service { direct_tls, ..s }).collect(),
            _ => Vec::new(),
        })
    }

    /// The addresses of a server, families in turn, those of IPv6 first (RFC 8305 4).
    pub(crate) async fn addresses(&self, name: &Name, findings: &mut Findings) -> Vec<IpAddr> {
        let (six, four) = tokio::join!(self.ask(name, RecordType::AAAA), self.ask(name, RecordType::A));
        let mut failed = false;
        let [six, four] = [six, four].map(|answer| match answer {
            Ok(Answer::Addresses(found)) => found,
            Ok(_) => Arc::default(),
            Err(text) => {
                findings.failed(text);
                failed = true;
                Arc::default()
            }
        });
        let (mut six, mut four) = (six.iter().copied(), four.iter().copied());
        let mut out = Vec::with_capacity(ADDRESSES);
        while out.len() < ADDRESSES && six.len() + four.len() > 0 {
            out.extend(six.next());
            out.extend(four.next());
        }
        out.truncate(ADDRESSES);
        if out.is_empty() && !failed {
            findings.nothing(format!("{} has no address", show(name)));
        }
        out
    }

    /// One question, with its aliases followed.
    ///
    /// # Errors
    /// What went wrong, for people, when there is no answer.
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Answer, String> {
        let name = name.to_lowercase();
        let kept = self.lock().get(&name, kind, Instant::now());
        if let Some(answer) = kept {
            return Ok(answer);
        }
        let failed = |what: &dyn std::fmt::Display| format!("{} {kind}: {what}", show(&name));
        // The semaphore is never closed.
        let _place = self.places.acquire().await.map_err(|e| failed(&e))?;
        let mut ttl = u32::MAX;
        let mut at = name.clone();
        let mut aliases = 0;
        let answer = loop {
            let options = DnsRequestOptions::default();
            let answers = match self.pool.lookup(Query::query(at.clone(), kind), options).first_answer().await
            {
                Ok(response) => response.into_message(),
                Err(NetError::Dns(DnsError::NoRecordsFound(_))) => break Answer::Nothing,
                Err(e) => return Err(failed(&e)),
            };
            let before = at.clone();
            while let Some(alias) = alias(&answers, &at, &mut ttl) {
                aliases += 1;
                if aliases > ALIASES {
                    return Err(failed(&format_args!("more than {ALIASES} aliases, one after the other")));
                }
                at = alias;
            }
            match read(&answers, &at, kind, &mut ttl) {
                Some(answer) => break answer,
                // The aliases lead on, out of what this answer knows.
                None if at != before => {}
                None => break Answer::Nothing,
            }
        };
        let ttl = Duration::from_secs(ttl.into());
        self.lock().put(name, kind, answer.clone(), ttl, Instant::now());
        Ok(answer)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name server that is asked over UDP, and over TCP for what is too large for that.
fn name_server(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The name of a domain or server in DNS, of A-labels (RFC 5891 4); `None` for what cannot be one.
pub(crate) fn name_of(domain: &str) -> Option<Name> {
    let ascii = idna::domain_to_ascii(domain).ok()?;
    let mut name = Name::from_labels(ascii.trim_end_matches('.').split('.').map(str::as_bytes)).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// A name as people write it.
pub(crate) fn show(name: &Name) -> String {
    let text = name.to_ascii();
    text.strip_suffix('.').unwrap_or(&text).to_owned()
}

/// The name that `name` is another one for.
fn alias(message: &Message, name: &Name, ttl: &mut u32) -> Option<Name> {
    message.answers.iter().find_map(|record| match &record.data {
        RData::CNAME(target) if record.name == *name => {
            *ttl = record.ttl.min(*ttl);
            Some(target.0.to_lowercase())
        }
        _ => None,
    })
}

/// The records of a name, as much of them as is used; `None` when there is none.
fn read(message: &Message, name: &Name, kind: RecordType, ttl: &mut u32) -> Option<Answer> {
    let own = message.answers.iter().filter(|r| r.name == *name && r.record_type() == kind);
    *ttl = own.clone().map(|r| r.ttl).fold(*ttl, u32::min);
    if kind == RecordType::SRV {
        let services: Vec<_> = own.filter_map(service).collect();
        if services.is_empty() {
            return None;
        }
        // What is kept of too many is the choice of a moment; the next one is made when it has expired.
        return Some(Answer::Services(order::order(services, SERVERS, order::random).into()));
    }
    let addresses = own.filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    let addresses: Arc<[_]> = addresses.take(ADDRESSES).collect();
    (!addresses.is_empty()).then_some(Answer::Addresses(addresses))
}

fn service(record: &Record) -> Option<Service> {
    let RData::SRV(srv) = &record.data else { return None };
    Some(Service {
        priority: srv.priority,
        weight: srv.weight,
        port: srv.port,
        target: srv.target.to_lowercase(),
        direct_tls: false,
    })
}

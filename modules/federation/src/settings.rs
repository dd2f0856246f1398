//! What the module is told by the configuration.

use std::net::SocketAddr;
use std::time::Duration;

use waystation_core::xml::Limits;

/// What the module is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The domains served here, prepared; never dialled.
    pub hosts: Vec<String>,
    /// Streams must be encrypted, unless a [`DomainPolicy`] says otherwise.
    pub require_tls: bool,
    /// A peer must prove its domain by a certificate that is valid, and dialback does not do, unless a
    /// [`DomainPolicy`] says otherwise.
    pub require_certificate: bool,
    /// The only domains to talk to, each with its subdomains when written `*.example.org`; empty for all.
    pub allow: Vec<String>,
    /// Domains not to talk to, written likewise; wins over `allow`.
    pub deny: Vec<String>,
    /// What is different for single domains.
    pub domains: Vec<DomainPolicy>,
    /// Addresses of private networks, of this machine and of links may be dialled, and ports below 1024 other
    /// than 443; IP addresses and names without a dot may be domains: for tests and closed networks. Where a
    /// [`DomainPolicy`] says that a server is at an address, that is dialled in any case.
    pub private_targets: bool,
    /// Name servers to ask; empty for those of the system.
    pub nameservers: Vec<SocketAddr>,
    /// PEM file of authorities that are trusted; `None` for those of the system.
    pub authorities: Option<std::path::PathBuf>,
    /// Time for a connection to one address.
    pub connect_timeout: Duration,
    /// Time from the connection until a stream is ready, in either direction.
    pub negotiation_timeout: Duration,
    /// Time that the authoritative server has to confirm a dialback key (SECURITY M10).
    pub dialback_timeout: Duration,
    /// A stream that carried nothing for so long is closed; a peer that was silent for so long is asked
    /// whether it is there.
    pub idle: Duration,
    /// How long the count of an inbound stream whose connection broke is kept, to be resumed.
    pub resume: Duration,
    /// Limits of a peer's stanzas, once it has proven who it is; before that, [`Limits::pre_auth`] counts.
    pub limits: Limits,
    /// Bytes a second that are taken from one remote domain in the long run, all of its streams together;
    /// 0 for no limit.
    pub inbound_rate: u64,
    /// Bytes that may come at once before the rate counts.
    pub inbound_burst: u64,
    /// Streams from other servers at once, proven or not, from one address.
    pub streams_per_address: u32,
    /// Pairs of domains that one inbound stream may be proven for (XEP-0220 2.3, piggybacking).
    pub pairs_per_stream: u32,
}

/// What is different for one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainPolicy {
    /// The domain, or `*.example.org` for all of its subdomains.
    pub domain: String,
    /// Whether streams with it must be encrypted.
    pub require_tls: Option<bool>,
    /// Whether it must have a certificate that is valid.
    pub require_certificate: Option<bool>,
    /// Where its server is, instead of asking DNS: a name or an address, and a port.
    pub server: Option<(String, u16)>,
    /// Whether that server speaks TLS from the first byte.
    pub direct_tls: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            require_tls: true,
            require_certificate: false,
            allow: Vec::new(),
            deny: Vec::new(),
            domains: Vec::new(),
            private_targets: false,
            nameservers: Vec::new(),
            authorities: None,
            connect_timeout: Duration::from_secs(10),
            negotiation_timeout: Duration::from_secs(60),
            dialback_timeout: Duration::from_secs(10),
            idle: Duration::from_secs(600),
            resume: Duration::from_secs(600),
            limits: Limits { max_stanza_bytes: 512 * 1024, ..Limits::authenticated() },
            inbound_rate: 256 * 1024,
            inbound_burst: 4 * 1024 * 1024,
            streams_per_address: 50,
            pairs_per_stream: 100,
        }
    }
}

//! What the HTTP listeners may be told.

use std::time::Duration;

use waystation_transport::IpNet;

/// How long a client may take. A client that takes longer is disconnected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// From connecting, or from the first byte of a later request, to the end of the request's head.
    pub head: Duration,
    /// For the whole body of a request.
    pub body: Duration,
    /// After this time a body must have come at [`Deadlines::rate`] so far.
    pub grace: Duration,
    /// Bytes a second, on average, that a body must come at.
    pub rate: u32,
    /// Between a response and the next request. A request that waits for its response does not count.
    pub idle: Duration,
    /// For taking anything of what waits to be sent.
    pub write: Duration,
    /// The same on a connection that is a service's own. The service does not learn that its client is gone while
    /// this much output waits, so there is an end to that.
    pub owned_write: Duration,
    /// For taking the rest, once the connection is being closed before a request was read to its end.
    pub linger: Duration,
}

impl Default for Deadlines {
    /// Heads 10 s, bodies 30 s and 512 bytes a second after 10 s, idle 75 s, writing 30 s, or 10 minutes for
    /// a service of its own, lingering 5 s.
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            rate: 512,
            idle: Duration::from_secs(75),
            write: Duration::from_secs(30),
            owned_write: Duration::from_secs(600),
            linger: Duration::from_secs(5),
        }
    }
}

/// When a client without encryption may log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainLogin {
    /// When its connection never leaves this machine, and no proxy passed it on.
    Loopback,
    /// Never.
    Never,
    /// Always.
    Always,
}

/// Settings of all HTTP listeners together.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Proxies that are believed when they say who their clients are.
    pub trusted_proxies: Vec<IpNet>,
    /// What counts as secure without TLS.
    pub plain_login: PlainLogin,
    /// Origins of web pages that may use the services in `cross_origin`: `https://example.org`, or `*` for all.
    pub origins: Vec<String>,
    /// Paths of services that are meant for pages of other origins.
    pub cross_origin: Vec<String>,
    /// Hosts whose certificate browsers trust: there they are told to use HTTPS from now on.
    pub strict_hosts: Vec<String>,
    /// How long clients may take.
    pub deadlines: Deadlines,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trusted_proxies: Vec::new(),
            plain_login: PlainLogin::Loopback,
            origins: vec!["*".to_owned()],
            cross_origin: Vec::new(),
            strict_hosts: Vec::new(),
            deadlines: Deadlines::default(),
        }
    }
}

impl Settings {
    /// True if a page of this origin may use the services for other origins.
    pub(crate) fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
    }
}

//! What a service on the HTTP listeners gets and gives.

use std::net::SocketAddr;

use actix_web::web::ServiceConfig;

/// Adds its services to the HTTP listeners. Called once for each listener and thread.
pub trait WebModule: Send + Sync + 'static {
    /// Registers paths and their handlers.
    fn configure(&self, config: &mut ServiceConfig);
}

/// Where a request comes from, with trusted proxies taken into account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// The client's own address. Behind a trusted proxy the port is 0.
    pub peer: SocketAddr,
    /// The way from the client is encrypted, or never leaves this machine.
    pub secure: bool,
    /// The scheme and authority the client used, without a slash at the end:
    /// `https://example.org:5281`.
    pub base: String,
}

impl ClientInfo {
    /// The host that the client asked for, as DNS has it; an IPv6 address without its brackets.
    pub fn host(&self) -> &str {
        let authority = self.base.split_once("://").map_or(self.base.as_str(), |(_, authority)| authority);
        match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or(rest),
            None => authority.split(':').next().unwrap_or(authority),
        }
    }
}

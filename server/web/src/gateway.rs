//! The seam between web transports and client streams.
//!
//! What must hold: a web transport speaks to the server as a client on a byte stream does, over
//! an in-process connection; so whatever holds for clients over TCP holds for its clients.

use waystation_core::Jid;
use waystation_transport::DetachedConnection;

/// Where web transports hand over the server's side of their connections.
pub trait Streams: Send + Sync + 'static {
    /// A client's stream, from its first header on: it negotiates, authenticates and binds as a
    /// client over TCP does. There is no STARTTLS and no channel binding on it.
    fn accept(&self, connection: DetachedConnection);

    /// The stream of a client that has proven before that it is `account`: a bare JID. What comes
    /// first on it is the stream header that follows authentication, then bind or resumption.
    fn accept_authenticated(&self, connection: DetachedConnection, account: &Jid);

    /// True if the domain is served here.
    fn serves(&self, domain: &str) -> bool;
}

/// True if a host, named as DNS has it, is the domain.
pub(crate) fn is_domain(host: &str, domain: &str) -> bool {
    Jid::parse(host).is_ok_and(|host| host.domain() == domain)
}

/// True if a host, named as DNS has it, is a domain that is served.
pub(crate) fn serves_host(streams: &dyn Streams, host: &str) -> bool {
    Jid::parse(host).is_ok_and(|host| streams.serves(host.domain()))
}

//! Namespace names that the XML layer itself must know.

/// Content namespace between client and server.
pub const CLIENT: &str = "jabber:client";
/// Content namespace between servers.
pub const SERVER: &str = "jabber:server";
/// The namespace of the stream header.
pub const STREAMS: &str = "http://etherx.jabber.org/streams";
/// STARTTLS.
pub const TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// SASL.
pub const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// XEP-0198.
pub const STREAM_MANAGEMENT: &str = "urn:xmpp:sm:3";
/// What the prefix `xml` is bound to, always.
pub const XML: &str = "http://www.w3.org/XML/1998/namespace";
/// What the prefix `xmlns` is bound to, always.
pub const XMLNS: &str = "http://www.w3.org/2000/xmlns/";

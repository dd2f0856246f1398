//! The way to a session: TLS, authentication, bind (RFC 6120 4 to 7).
//!
//! What must hold: the steps come in this order and none is skipped; one deadline covers
//! everything up to authentication and another one bind, so that a connection that gets
//! nowhere costs a bounded time (X19).

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use waystation_auth::{ConnectionFailures, Offer, SaslError};
use waystation_core::stanza::escaped;
use waystation_core::xml::{Element, Framer};
use waystation_core::{
    Condition, IqType, Jid, Stanza, StanzaError, StanzaType, StreamCondition, StreamError,
};
use waystation_route::{BindError, BindRequest, Binding, Resumption};
use waystation_runtime::{DrainSignal, outlet};
use waystation_transport::{Connection, DetachedConnection};

use crate::context::C2s;
use crate::gateway;
use crate::resume::{self, Resumed};
use crate::sasl;
use crate::session::client_state::NS_CLIENT_STATE;
use crate::session::stream_management::{NS_STREAM_MANAGEMENT, failed};
use crate::session::{Session, Start};
use crate::stream::{Failure, Stream};

const NS_TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
const NS_SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const NS_BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// Iqs that a client may send before it has authenticated.
const MAX_PRE_AUTH_IQS: u32 = 10;
/// Attempts to bind on one stream.
const MAX_BINDS: u32 = 5;

/// Takes over a connection that was accepted: negotiates and, if that succeeds, starts its
/// session. Runs on the current arbiter; `direct_tls` means that TLS comes first (XEP-0368).
pub fn accept(shared: Arc<C2s>, connection: DetachedConnection, direct_tls: bool) {
    let connection = match connection.attach() {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%error, "connection lost while accepting"),
    };
    actix_rt::spawn(async move {
        let mut stream = Stream::new(connection, shared.limits.pre_auth);
        let limit = shared.limits.unauthenticated;
        let result = guarded(&shared, limit, authenticate(&mut stream, &shared, direct_tls)).await;
        match result {
            Ok(account) => {
                let Stream { conn, framer, buffer, host, .. } = stream;
                if shared.arbiters.is_here(shared.arbiters.place(account.as_str())) {
                    // Nothing has to be taken off this runtime and put on it again.
                    return bind_here(shared, Stream::resumed(conn, framer, buffer, host), account).await;
                }
                match conn.detach() {
                    Ok(conn) => bind_on_the_accounts_arbiter(shared, conn, framer, buffer, host, account),
                    Err(error) => tracing::debug!(%error, "connection lost after authentication"),
                }
            }
            Err(failure) => stream.end(&shared, failure).await,
        }
    });
}

/// Runs a part of the negotiation within its time, unless the server stops.
async fn guarded<T>(
    shared: &C2s,
    limit: Duration,
    part: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let mut drain: DrainSignal = shared.drain.clone();
    tokio::select! {
        result = timeout(limit, part) => result.unwrap_or_else(|_| {
            Err(StreamError::new(StreamCondition::ConnectionTimeout).with_text("the negotiation took too long").into())
        }),
        () = drain.started() => Err(StreamCondition::SystemShutdown.into()),
    }
}

/// Goes on with a stream whose client is known to be `account`, at the header that follows
/// authentication. May be called on any thread.
pub(crate) fn bind_on_the_accounts_arbiter(
    shared: Arc<C2s>,
    detached: DetachedConnection,
    framer: Framer,
    buffer: Vec<u8>,
    host: Option<String>,
    account: Jid,
) {
    let place = shared.arbiters.place(account.as_str());
    let arbiters = shared.arbiters.clone();
    arbiters.run_on(place, move || {
        let conn = match detached.attach() {
            Ok(conn) => conn,
            Err(error) => return tracing::debug!(%error, "connection lost after authentication"),
        };
        let stream = Stream::resumed(conn, framer, buffer, host);
        actix_rt::spawn(bind_here(shared, stream, account));
    });
}

/// Binds a resource and starts the session, on the account's arbiter.
async fn bind_here(shared: Arc<C2s>, mut stream: Stream, account: Jid) {
    let limit = shared.limits.unauthenticated;
    match guarded(&shared, limit, bind(&mut stream, &shared, &account)).await {
        Ok(bound) => start(shared, stream, bound, account),
        Err(failure) => stream.end(&shared, failure).await,
    }
}

fn start(shared: Arc<C2s>, stream: Stream, bound: Bound, account: Jid) {
    let Stream { conn, framer, buffer, .. } = stream;
    let drain = shared.drain.clone();
    let (id, jid, inlet, lang, resumed) = match bound {
        Bound::New(binding, lang) => {
            let (id, jid, inlet) = binding.start();
            (id, jid, inlet, lang, None)
        }
        Bound::Resumed(resumed, lang) => {
            let (key, resumption) = resumed.start();
            let Resumption { id, jid, inlet, max, state } = resumption;
            (id, jid, inlet, lang.or(state.lang.clone()), Some((key, max, state)))
        }
    };
    Session::start_session(Start {
        shared,
        connection: conn,
        framer,
        // An empty one may still hold the room that the negotiation needed.
        backlog: if buffer.is_empty() { Vec::new() } else { buffer },
        inlet,
        id,
        jid,
        account,
        lang,
        drain,
        resumed,
    });
}

/// From the first byte to a successful authentication.
async fn authenticate(stream: &mut Stream, shared: &C2s, direct_tls: bool) -> Result<Jid, Failure> {
    if direct_tls {
        let Some(tls) = &shared.tls else { return Err(Failure::Closed) };
        let tls = tls.with_alpn(&[b"xmpp-client"]);
        stream.conn.handshake(&tls, None, &[]).await?;
    }
    let mut failures = shared.limits.failures.connection();
    loop {
        stream.open(shared, None).await?;
        gateway::check(stream, shared)?;
        if let Some(info) = stream.conn.tls_info()
            && let (Some(name), Some(host)) = (info.server_name(), &stream.host)
            && name != host
        {
            // T7: the stream's `to` decides; a name that differs is worth knowing.
            tracing::debug!(peer = %stream.conn.peer(), "the TLS server name is not the stream's host");
        }
        match pre_auth_stream(stream, shared, failures).await? {
            PreAuth::Authenticated(account) => return Ok(account),
            PreAuth::Restart(counted) => failures = counted,
        }
    }
}

/// How a stream before authentication ends without an error.
enum PreAuth {
    Authenticated(Jid),
    /// STARTTLS: a new stream follows, the failures so far still count.
    Restart(ConnectionFailures),
}

/// True when nothing but STARTTLS may happen on a stream that is not encrypted.
pub(crate) fn tls_required(stream: &Stream, shared: &C2s) -> bool {
    let exempt = shared.tls_loopback_exempt && stream.conn.peer().ip().is_loopback();
    shared.tls_required && !exempt
}

/// One stream up to STARTTLS or authentication.
async fn pre_auth_stream(
    stream: &mut Stream,
    shared: &C2s,
    failures: ConnectionFailures,
) -> Result<PreAuth, Failure> {
    let tls_first = !stream.conn.is_encrypted() && tls_required(stream, shared);
    let host = stream.host.clone().unwrap_or_default();
    let offer = sasl::offer(stream, shared);
    stream.send(features(stream, shared, tls_first, &offer).as_bytes()).await?;
    let mut exchanges = sasl::Exchanges::new(offer, failures);
    let mut iqs = 0;
    loop {
        let element = stream.element().await?;
        match (element.name(), element.namespace()) {
            ("starttls", NS_TLS) => {
                start_tls(stream, shared, &host).await?;
                return Ok(PreAuth::Restart(exchanges.into_failures()));
            }
            ("auth", NS_SASL) if tls_first => {
                exchanges.failed(stream, SaslError::EncryptionRequired.into()).await?;
            }
            (_, NS_SASL) => {
                if let Some(account) = exchanges.element(stream, shared, &host, &element).await? {
                    stream.restart();
                    return Ok(PreAuth::Authenticated(account));
                }
            }
            ("iq", "jabber:client") => {
                iqs += 1;
                if iqs > MAX_PRE_AUTH_IQS {
                    return Err(StreamCondition::PolicyViolation.into());
                }
                pre_auth_iq(stream, shared, &host, &element, tls_first).await?;
            }
            // XEP-0198 3: the order is enforced with an answer.
            (_, NS_STREAM_MANAGEMENT) => {
                iqs += 1;
                if iqs > MAX_PRE_AUTH_IQS {
                    return Err(StreamCondition::PolicyViolation.into());
                }
                let mut refused = Vec::new();
                failed(Condition::UnexpectedRequest, None).write(&mut refused, "jabber:client");
                stream.send(&refused).await?;
            }
            // RFC 6120 4.9.3.12: stanzas before authentication.
            ("message" | "presence", "jabber:client") => return Err(StreamCondition::NotAuthorized.into()),
            ("error", "http://etherx.jabber.org/streams") => return Err(Failure::Closed),
            _ => return Err(StreamCondition::UnsupportedStanzaType.into()),
        }
    }
}

fn features(stream: &Stream, shared: &C2s, tls_first: bool, offer: &Offer) -> String {
    let mut out = String::from("<stream:features>");
    if stream.conn.can_start_tls() && shared.tls.is_some() {
        out.push_str("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'>");
        if tls_first {
            out.push_str("<required/>");
        }
        out.push_str("</starttls>");
    }
    if !tls_first {
        sasl::write_features(offer, &mut out);
        if let Some(handler) = &shared.pre_auth {
            out.push_str(handler.stream_feature());
        }
    }
    out.push_str("</stream:features>");
    out
}

async fn start_tls(stream: &mut Stream, shared: &C2s, host: &str) -> Result<(), Failure> {
    let Some(tls) = shared.tls.as_ref().filter(|_| stream.conn.can_start_tls()) else {
        // RFC 6120 5.4.2.2: nothing to negotiate; the stream ends.
        stream.send(b"<failure xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await?;
        return Err(Failure::Closed);
    };
    stream.conn.queue_slice(b"<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>");
    // What came behind `<starttls/>` is input for TLS and nothing else (T1). Clients that end
    // each element with a line feed are common; white space says nothing and is dropped.
    let leftover = std::mem::take(&mut stream.buffer);
    let leftover = leftover.trim_ascii_start();
    stream.conn.handshake(tls, Some(host), leftover).await?;
    stream.restart();
    Ok(())
}

/// Only registration has anything to say to someone who is not authenticated.
async fn pre_auth_iq(
    stream: &mut Stream,
    shared: &C2s,
    host: &str,
    iq: &Element,
    tls_first: bool,
) -> Result<(), Failure> {
    let handler = shared.pre_auth.as_ref().filter(|handler| !tls_first && handler.answers(iq));
    let (Some(handler), Ok(domain)) = (handler, Jid::parse(host)) else {
        return Err(StreamCondition::NotAuthorized.into());
    };
    let result = handler.handle(iq.clone(), domain, stream.conn.peer().ip()).await;
    let reply = answer(iq, host, result);
    stream.send(&reply.to_bytes()).await
}

fn answer(iq: &Element, host: &str, result: Result<Option<Element>, StanzaError>) -> Stanza {
    let id = iq.attr("id").map(escaped);
    let from = Jid::parse(host).ok();
    let request = Stanza::build(StanzaType::Iq(IqType::Set), None, from, id.as_deref(), "");
    match result {
        Ok(payload) => request.result(payload.as_ref()),
        // A request always has an error reply.
        Err(error) => request.error_reply(&error).unwrap_or(request),
    }
}

/// How a stream becomes a session's.
enum Bound {
    New(Binding, Option<Box<str>>),
    Resumed(Resumed, Option<Box<str>>),
}

/// From the restart after authentication to a bound resource (RFC 6120 7).
async fn bind(stream: &mut Stream, shared: &C2s, account: &Jid) -> Result<Bound, Failure> {
    stream.framer.set_limits(shared.limits.authenticated);
    let open = stream.open(shared, Some(account)).await?;
    gateway::check(stream, shared)?;
    let lang = open.lang.filter(|lang| lang.len() <= waystation_core::read::MAX_LANG);
    let lang = lang.map(|lang| escaped(&lang).into_boxed_str());
    let features = format!(
        "<stream:features><bind xmlns='{NS_BIND}'/>\
         <session xmlns='urn:ietf:params:xml:ns:xmpp-session'><optional/></session>\
         <sm xmlns='{NS_STREAM_MANAGEMENT}'/><csi xmlns='{NS_CLIENT_STATE}'/>{}</stream:features>",
        shared.stream_features
    );
    stream.send(features.as_bytes()).await?;
    for _ in 0..MAX_BINDS {
        let iq = stream.element().await?;
        if iq.namespace() == NS_STREAM_MANAGEMENT {
            match resume::element(stream, shared, account, &iq).await? {
                Some(resumed) => return Ok(Bound::Resumed(resumed, lang)),
                None => continue,
            }
        }
        let request = iq.child("bind", NS_BIND);
        let (true, Some("set"), Some(request)) = (iq.is("iq", "jabber:client"), iq.attr("type"), request)
        else {
            // RFC 6120 7.1: nothing else before a resource is bound.
            return Err(StreamCondition::NotAuthorized.into());
        };
        // An empty resource element asks for a made-up one, as ejabberd and Prosody take it.
        let resource = request.child("resource", NS_BIND).map(Element::text).filter(|r| !r.is_empty());
        let (outlet, inlet) = outlet(shared.limits.outbound_bytes, shared.limits.outbound_stanzas);
        let request = BindRequest {
            account: account.clone(),
            resource,
            outlet,
            inlet,
            peer: stream.conn.peer(),
            security: security(&stream.conn),
        };
        let id = iq.attr("id").map(escaped);
        let asked = Stanza::build(StanzaType::Iq(IqType::Set), None, None, id.as_deref(), "");
        match shared.router.bind(request).await {
            Ok(bound) => {
                let jid = Element::new("jid", NS_BIND).with_text(bound.jid().as_str());
                let payload = Element::new("bind", NS_BIND).with_child(jid);
                stream.conn.queue(&asked.result(Some(&payload)).to_bytes());
                return Ok(Bound::New(bound, lang));
            }
            Err(error) => {
                let error: StanzaError = match error {
                    BindError::Malformed => Condition::BadRequest.into(),
                    BindError::TooMany => Condition::ResourceConstraint.into(),
                    BindError::NoAccount => return Err(StreamCondition::NotAuthorized.into()),
                    BindError::Unavailable => StanzaError::new(Condition::InternalServerError)
                        .with_type(waystation_core::ErrorType::Wait),
                };
                if let Some(reply) = asked.error_reply(&error) {
                    stream.send(&reply.to_bytes()).await?;
                }
            }
        }
    }
    Err(StreamError::new(StreamCondition::PolicyViolation).with_text("too many attempts to bind").into())
}

pub(crate) fn security(conn: &Connection) -> &'static str {
    match conn.tls_info().map(|info| info.version()) {
        // The version is known to whoever listens for the web.
        None if conn.is_encrypted() => "TLS",
        None => "none",
        Some(waystation_transport::TlsVersion::Tls12) => "TLSv1.2",
        Some(waystation_transport::TlsVersion::Tls13) => "TLSv1.3",
    }
}

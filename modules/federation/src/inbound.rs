//! Streams that other servers open, up to the first pair of domains that is proven (RFC 6120 4 to 6,
//! XEP-0178, XEP-0220, XEP-0288, XEP-0368).
//!
//! What must hold: no stanza is taken before its pair is proven; nothing but STARTTLS happens on a stream that must
//! be encrypted and is not; a restart forgets all but what TLS or SASL has proven, and after SASL both
//! domains of the header stay; one deadline, the limits before authentication and a bound on all bytes cover
//! the way to the first proof (X9, X15, X19).

use std::future::poll_fn;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::timeout;
use waystation_core::xml::{Element, StreamOpen};
use waystation_core::{Condition, Jid, StanzaError, StreamCondition, StreamError};
use waystation_route::remote::{Authenticated, Forbidden, Pair};
use waystation_transport::DetachedConnection;

use crate::addressing::Proven;
use crate::external::{External, Outcome, Refusal};
use crate::federation::Federation;
use crate::identity::{self, Role};
use crate::piggybacking::Piggybacking;
use crate::receiving::{Decision, Facts, Receiving};
use crate::running::{self, Start};
use crate::stream::{
    Failure, NS_BIDI, NS_BIDI_FEATURE, NS_DIALBACK, NS_DIALBACK_FEATURE, NS_SASL, NS_SERVER,
    NS_STREAM_MANAGEMENT, NS_TLS, Stream, check_header, is_domain,
};

/// Elements that come too early and are answered, on one stream.
const MAX_EARLY: u32 = 10;

/// Takes over a connection from another server that was accepted: negotiates and, once a pair of domains is
/// proven, runs the stream. Stays on the current arbiter; `direct_tls` means that TLS comes first
/// (XEP-0368).
pub fn accept(federation: Arc<Federation>, connection: DetachedConnection, direct_tls: bool) {
    let peer = connection.peer();
    let slot = match federation.admission.admit(peer.ip()) {
        Ok(slot) => slot,
        Err(refusal) => return tracing::info!(%peer, %refusal, "a server's connection is refused"),
    };
    let connection = match connection.attach() {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%error, "connection lost while accepting"),
    };
    actix_rt::spawn(async move {
        let mut inbound = Inbound::new(&federation, Stream::new(connection));
        let limit = federation.settings.negotiation_timeout;
        let mut drain = federation.drain.clone();
        let result = tokio::select! {
            result = timeout(limit, inbound.negotiate(direct_tls)) => result.unwrap_or_else(|_| {
                Err(StreamError::new(StreamCondition::ConnectionTimeout)
                    .with_text("the negotiation took too long")
                    .into())
            }),
            () = drain.started() => Err(StreamCondition::SystemShutdown.into()),
        };
        match result {
            Ok(authenticated) => {
                drop(drain);
                running::run(inbound.start(federation.clone(), authenticated)).await;
            }
            Err(failure) => {
                let from = inbound.from.as_deref().unwrap_or("?");
                tracing::debug!(%peer, from, %failure, "a server's stream ends before anything was proven");
                let Inbound { stream, local, .. } = inbound;
                stream.end(&local, &failure).await;
            }
        }
        drop(slot);
    });
}

/// A stream that nothing is proven on.
struct Inbound<'a> {
    federation: &'a Arc<Federation>,
    stream: Stream,
    /// The domain of ours that the peer wants, or the first one while that is not known.
    local: String,
    /// The domain that the peer says it is.
    from: Option<String>,
    /// Set when SASL has proven it: from then on the headers name these.
    authenticated: Option<Arc<Pair>>,
    proven: Proven,
    receiving: Receiving,
    external: External,
    /// The peer wants stanzas back on this stream (XEP-0288).
    bidirectional: bool,
    early: u32,
}

/// What follows an element.
enum Next {
    /// Another one on the same stream.
    Element,
    /// A new stream.
    Restart,
    /// The first pair is proven.
    Proven(Authenticated),
}

impl<'a> Inbound<'a> {
    fn new(federation: &'a Arc<Federation>, stream: Stream) -> Self {
        Self {
            federation,
            stream,
            local: federation.settings.hosts.first().cloned().unwrap_or_default(),
            from: None,
            authenticated: None,
            proven: Proven::default(),
            receiving: Receiving::default(),
            external: External::default(),
            bidirectional: false,
            early: 0,
        }
    }

    fn start(self, federation: Arc<Federation>, authenticated: Authenticated) -> Start {
        let Self { mut stream, proven, receiving, bidirectional, .. } = self;
        stream.framer.set_limits(federation.settings.limits);
        let extension = Box::new(Piggybacking::new(federation.clone(), &stream, receiving));
        Start {
            federation,
            stream,
            initiated: false,
            proven,
            bidirectional,
            authenticated,
            request: None,
            joining: None,
            extension,
        }
    }

    /// From the first byte to the first proof.
    async fn negotiate(&mut self, direct_tls: bool) -> Result<Authenticated, Failure> {
        if direct_tls {
            let tls = self.federation.acceptor.with_alpn(&[b"xmpp-server"]);
            self.stream.conn.handshake(&tls, None, &[]).await?;
        }
        loop {
            let open = self.stream.header().await?;
            self.check(&open)?;
            self.stream.answer(&self.local, self.from.as_deref())?;
            if let Some(pair) = self.authenticated.take() {
                self.federation.proved(&pair, Authenticated::Certificate);
                self.proven.add(pair);
                self.stream.framer.set_limits(self.federation.settings.limits);
                self.stream.send(&self.features_when_proven()).await?;
                return Ok(Authenticated::Certificate);
            }
            self.note_server_name();
            let features = self.features();
            self.stream.send(&features).await?;
            loop {
                match self.next().await? {
                    Next::Element => {}
                    Next::Restart => break,
                    Next::Proven(how) => return Ok(how),
                }
            }
        }
    }

    /// RFC 6120 4.7: which domains are meant, or what is wrong with the header.
    fn check(&mut self, open: &StreamOpen) -> Result<(), StreamError> {
        check_header(open)?;
        let wrong = |condition, text| Err(StreamError::new(condition).with_text(text));
        let Some(to) = open.to.as_deref().filter(|to| !to.is_empty()) else {
            return wrong(StreamCondition::ImproperAddressing, "the stream header has no 'to'");
        };
        let local = match Jid::parse(to) {
            Ok(to) if to.local().is_none() && to.is_bare() => to.domain().to_owned(),
            Ok(_) => return wrong(StreamCondition::ImproperAddressing, "the 'to' must be a domain"),
            Err(_) => return wrong(StreamCondition::HostUnknown, "the 'to' is no domain"),
        };
        if !self.federation.serves(&local) {
            return Err(StreamCondition::HostUnknown.into());
        }
        let from = match open.from.as_deref() {
            None => None,
            Some(from) => match Jid::parse(from) {
                Ok(from) if is_domain(&from, from.domain()) => Some(from.domain().to_owned()),
                _ => return wrong(StreamCondition::ImproperAddressing, "the 'from' must be a domain"),
            },
        };
        if let Some(pair) = &self.authenticated {
            // X14: what was authenticated is for these two.
            let same = *pair.local == *local && from.as_deref().is_none_or(|from| *from == *pair.remote);
            if !same {
                return wrong(StreamCondition::NotAuthorized, "the domains may not change");
            }
            return Ok(());
        }
        if let Some(from) = &from {
            if self.federation.serves(from) {
                return wrong(StreamCondition::InvalidFrom, "the domain of the 'from' is served here");
            }
            match self.federation.policy.permits(&Pair::new(&local, from)) {
                Ok(()) => {}
                Err(Forbidden::Policy) => {
                    return wrong(StreamCondition::PolicyViolation, "streams of this domain are not wanted");
                }
                Err(Forbidden::NoServer) => {
                    return wrong(StreamCondition::InvalidFrom, "the 'from' is no domain of a server");
                }
            }
        }
        self.local = local;
        self.from = from;
        Ok(())
    }

    /// T7: the stream's `to` decides; a name that differs is worth knowing.
    fn note_server_name(&self) {
        let name = self.stream.conn.tls_info().and_then(|info| info.server_name());
        if let Some(name) = name.filter(|name| *name != self.local) {
            let (peer, to) = (self.stream.conn.peer(), &self.local);
            tracing::debug!(%peer, name, to, "the TLS server name is not the stream's domain");
        }
    }

    /// Nothing but STARTTLS may happen.
    fn tls_first(&self) -> bool {
        let policy = &self.federation.policy;
        let required = match &self.from {
            Some(from) => policy.requires_tls(from),
            None => self.federation.settings.require_tls,
        };
        required && !self.stream.conn.is_encrypted()
    }

    fn features(&self) -> Vec<u8> {
        let tls_first = self.tls_first();
        let mut out = String::from("<stream:features>");
        if self.stream.conn.can_start_tls() {
            let required = if tls_first { "<required/>" } else { "" };
            out.push_str(&format!("<starttls xmlns='{NS_TLS}'>{required}</starttls>"));
        }
        if !tls_first {
            let external = self.external_permitted().is_ok();
            if external {
                out.push_str(&format!(
                    "<mechanisms xmlns='{NS_SASL}'><mechanism>EXTERNAL</mechanism></mechanisms>"
                ));
            }
            out.push_str(&format!("<bidi xmlns='{NS_BIDI_FEATURE}'/>"));
            out.push_str(&dialback_feature());
            if !external {
                // No other features follow when dialback is the proof, and this one is for what comes then.
                out.push_str(&format!("<sm xmlns='{NS_STREAM_MANAGEMENT}'/>"));
            }
        }
        out.push_str("</stream:features>");
        out.into_bytes()
    }

    fn features_when_proven(&self) -> Vec<u8> {
        let dialback = dialback_feature();
        format!("<stream:features>{dialback}<sm xmlns='{NS_STREAM_MANAGEMENT}'/></stream:features>")
            .into_bytes()
    }

    /// Whether the peer's certificate proves the domain that its header names (XEP-0178 3).
    fn external_permitted(&self) -> Result<(), Refusal> {
        if !self.stream.conn.is_encrypted() {
            return Err(Refusal::EncryptionRequired);
        }
        let Some(from) = &self.from else { return Err(Refusal::NotAuthorized) };
        let certificates = self.stream.conn.peer_certificates();
        identity::proves(certificates, from, &self.federation.trust, Role::Client, SystemTime::now()).map_err(
            |unproven| {
                tracing::debug!(peer = %self.stream.conn.peer(), from, %unproven, "no proof by certificate");
                Refusal::NotAuthorized
            },
        )
    }

    /// Waits for an element, or for what becomes of a claim, and deals with it.
    async fn next(&mut self) -> Result<Next, Failure> {
        let Self { stream, receiving, proven, .. } = self;
        let element = tokio::select! {
            element = stream.element() => element?,
            decision = poll_fn(|cx| receiving.poll(cx, proven.is_empty())) => return self.decided(decision).await,
        };
        match (element.name(), element.namespace()) {
            ("starttls", NS_TLS) => self.start_tls().await,
            (_, NS_SASL) => self.sasl(&element).await,
            (_, NS_DIALBACK) => {
                let decision = self.dialback(&element)?;
                self.decided(decision).await
            }
            // XEP-0288 2.2: a stream that must be encrypted first is another one then.
            ("bidi", NS_BIDI) if !self.tls_first() => {
                self.bidirectional = true;
                Ok(Next::Element)
            }
            // XEP-0198 3: not before a proof, and said so.
            (_, NS_STREAM_MANAGEMENT) => {
                self.early += 1;
                if self.early > MAX_EARLY {
                    return Err(StreamCondition::PolicyViolation.into());
                }
                let condition = StanzaError::new(Condition::UnexpectedRequest).condition.as_str();
                let failed = format!(
                    "<failed xmlns='{NS_STREAM_MANAGEMENT}'>\
                     <{condition} xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>"
                );
                self.stream.send(failed.as_bytes()).await?;
                Ok(Next::Element)
            }
            // RFC 6120 4.9.3.12: stanzas before a proof.
            ("message" | "presence" | "iq", NS_SERVER) => Err(StreamCondition::NotAuthorized.into()),
            _ => Err(StreamCondition::UnsupportedStanzaType.into()),
        }
    }

    async fn start_tls(&mut self) -> Result<Next, Failure> {
        if !self.stream.conn.can_start_tls() {
            // RFC 6120 5.4.2.2: nothing to negotiate; the stream ends.
            self.stream.send(format!("<failure xmlns='{NS_TLS}'/>").as_bytes()).await?;
            return Err(Failure::Closed);
        }
        self.stream.conn.queue_slice(format!("<proceed xmlns='{NS_TLS}'/>").as_bytes());
        // What came behind `<starttls/>` is input for TLS and nothing else (T1), but for the line feed that
        // some send behind each element.
        let leftover = std::mem::take(&mut self.stream.buffer);
        let leftover = leftover.trim_ascii_start();
        self.stream.conn.handshake(&self.federation.acceptor, Some(&self.local), leftover).await?;
        self.stream.restart();
        // Claims, wishes and exchanges of the stream before TLS end with it.
        self.receiving = Receiving::default();
        self.external = External::default();
        self.bidirectional = false;
        Ok(Next::Restart)
    }

    async fn sasl(&mut self, element: &Element) -> Result<Next, Failure> {
        let mut external = std::mem::take(&mut self.external);
        let outcome = external.element(element, self.from.as_deref(), || self.external_permitted());
        self.external = external;
        let (Outcome::Success(xml), Some(from)) = (
            match outcome? {
                Outcome::Reply(xml) => {
                    self.stream.send(&xml).await?;
                    return Ok(Next::Element);
                }
                success => success,
            },
            &self.from,
        ) else {
            // Success is only ever for a `from`.
            return Err(StreamCondition::InternalServerError.into());
        };
        self.authenticated = Some(Arc::new(Pair::new(&self.local, from)));
        self.stream.send(&xml).await?;
        self.stream.restart();
        // What was claimed before is for the dialback of the stream before.
        self.receiving = Receiving::default();
        Ok(Next::Restart)
    }

    fn dialback(&mut self, element: &Element) -> Result<Decision, StreamError> {
        let facts = Facts {
            stream_id: self.stream.id.as_deref().unwrap_or_default(),
            encrypted: self.stream.conn.is_encrypted(),
            certificates: self.stream.conn.peer_certificates(),
        };
        self.receiving.element(self.federation, &facts, &self.proven, element)
    }

    async fn decided(&mut self, decision: Decision) -> Result<Next, Failure> {
        match decision {
            Decision::Nothing => Ok(Next::Element),
            Decision::Answer(xml) => {
                self.stream.send(&xml).await?;
                Ok(Next::Element)
            }
            Decision::Close(xml) => {
                self.stream.conn.queue_slice(&xml);
                Err(Failure::Closed)
            }
            Decision::Proven(pair, how, xml) => {
                self.federation.proved(&pair, how);
                self.proven.add(pair);
                self.stream.send(&xml).await?;
                Ok(Next::Proven(how))
            }
        }
    }
}

fn dialback_feature() -> String {
    format!("<dialback xmlns='{NS_DIALBACK_FEATURE}'><errors/></dialback>")
}

//! A stream between servers while it is negotiated, in either direction: headers, features, elements one
//! by one, restarts, the end (RFC 6120 4).
//!
//! What must hold: what is not looked at yet stays in `buffer`, bounded by the limits before
//! authentication; a restart forgets the parser, the stream's id and that a header was sent, so that
//! nothing of the stream before it counts on the new one (SECURITY T2); an error is sent on an open
//! stream, so the header goes out before it (RFC 6120 4.9.1.2).

use std::time::Duration;

use base64::Engine;
use waystation_core::xml::{Element, Event, Framer, Limits, StreamOpen, escape_attr};
use waystation_core::{Jid, StreamCondition, StreamError};
use waystation_route::remote::Pair;
use waystation_transport::{Connection, Flow, ReadOutcome, TransportError};

/// `jabber:server`
pub(crate) const NS_SERVER: &str = "jabber:server";
/// `jabber:server:dialback` (XEP-0220)
pub(crate) const NS_DIALBACK: &str = "jabber:server:dialback";
/// `http://etherx.jabber.org/streams`
pub(crate) const NS_STREAMS: &str = "http://etherx.jabber.org/streams";
/// `urn:ietf:params:xml:ns:xmpp-tls`
pub(crate) const NS_TLS: &str = "urn:ietf:params:xml:ns:xmpp-tls";
/// `urn:ietf:params:xml:ns:xmpp-sasl`
pub(crate) const NS_SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// `urn:xmpp:bidi`, of the element that asks for it (XEP-0288)
pub(crate) const NS_BIDI: &str = "urn:xmpp:bidi";
/// `urn:xmpp:features:bidi`, of the feature
pub(crate) const NS_BIDI_FEATURE: &str = "urn:xmpp:features:bidi";
/// `urn:xmpp:features:dialback`
pub(crate) const NS_DIALBACK_FEATURE: &str = "urn:xmpp:features:dialback";
/// `urn:xmpp:sm:3` (XEP-0198)
pub(crate) const NS_STREAM_MANAGEMENT: &str = "urn:xmpp:sm:3";

/// Bytes read at once before authentication.
const READ: usize = 4096;
/// Bytes that a peer may send before the stream carries stanzas, white space included (SECURITY X15, M11). A
/// thousand claims of dialback are fewer.
const MAX_NEGOTIATION: usize = 256 * 1024;
/// How long the last words may take.
pub(crate) const CLOSE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest text of a peer that is shown to people, in bytes.
const MAX_TEXT: usize = 200;

/// Why a negotiation ends without a stream for stanzas.
#[derive(Debug)]
pub(crate) enum Failure {
    /// We end it with a stream error.
    Error(StreamError),
    /// The peer ended it with a stream error: its condition, and its text if it gave one.
    Peer(String),
    /// The peer ended it, without a reason.
    Closed,
    /// We end it without a reason for the peer: it does not do what we need.
    Unwanted(&'static str),
    /// The connection broke.
    Lost(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Error(StreamError { condition, text: Some(text), .. }) => {
                write!(f, "{}: {text}", condition.as_str())
            }
            Self::Error(error) => f.write_str(error.condition.as_str()),
            Self::Peer(reason) => write!(f, "the peer said {reason}"),
            Self::Closed => f.write_str("the peer closed the stream"),
            Self::Unwanted(reason) => f.write_str(reason),
            Self::Lost(reason) => f.write_str(reason),
        }
    }
}

impl From<StreamCondition> for Failure {
    fn from(condition: StreamCondition) -> Self {
        Self::Error(condition.into())
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        Self::Error(error)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// A stream under negotiation.
pub(crate) struct Stream {
    pub(crate) conn: Connection,
    pub(crate) framer: Framer,
    /// Read and not yet looked at.
    pub(crate) buffer: Vec<u8>,
    /// Bytes that may still be read.
    left: usize,
    /// The id of the present stream, which whoever received it gave it; `None` before the header, and for
    /// a peer that gives none.
    pub(crate) id: Option<String>,
    /// Our header has been sent on the present stream.
    header_sent: bool,
    /// A stream went before the present one on this connection.
    restarted: bool,
}

/// What the peer sent.
pub(crate) enum Input {
    Open(StreamOpen),
    Element(Element),
}

impl Stream {
    /// A stream that has not begun, with the limits of [`Limits::pre_auth`].
    pub(crate) fn new(conn: Connection) -> Self {
        Self {
            conn,
            framer: Framer::new(Limits::pre_auth()),
            buffer: Vec::new(),
            left: MAX_NEGOTIATION,
            id: None,
            header_sent: false,
            restarted: false,
        }
    }

    /// The next stream header or element. White space is skipped; a stream error of the peer is the end.
    pub(crate) async fn next(&mut self) -> Result<Input, Failure> {
        loop {
            let mut rest = self.buffer.as_slice();
            let mut result = None;
            while result.is_none() {
                result = match self.framer.next(&mut rest) {
                    Ok(Event::NeedMore) => break,
                    Ok(Event::Whitespace(_)) => None,
                    Ok(Event::Open(open)) => Some(Ok(Input::Open(open))),
                    Ok(Event::Stanza(frame)) => Some(match frame.element() {
                        Ok(element) if element.is("error", NS_STREAMS) => {
                            Err(Failure::Peer(describe_error(&element)))
                        }
                        Ok(element) => Ok(Input::Element(element)),
                        Err(error) => Err(StreamError::from(error).into()),
                    }),
                    Ok(Event::Close) => Some(Err(Failure::Closed)),
                    Err(error) => Some(Err(StreamError::from(error).into())),
                };
            }
            let used = self.buffer.len() - rest.len();
            self.buffer.drain(..used);
            if let Some(result) = result {
                return result;
            }
            self.fill().await?;
        }
    }

    /// Reads what has arrived, at least something.
    async fn fill(&mut self) -> Result<(), Failure> {
        let buffer = &mut self.buffer;
        let before = buffer.len();
        let outcome = self
            .conn
            .read_some(READ, &mut |chunk| {
                buffer.extend_from_slice(chunk);
                Flow::Continue
            })
            .await?;
        match outcome {
            ReadOutcome::Data { .. } => {
                self.left = self.left.checked_sub(self.buffer.len() - before).ok_or_else(|| {
                    StreamError::new(StreamCondition::PolicyViolation)
                        .with_text("too much was sent before the stream is ready")
                })?;
                Ok(())
            }
            ReadOutcome::Closed => Err(Failure::Lost("the peer closed the connection".into())),
            ReadOutcome::Truncated => Err(Failure::Lost("the connection was cut off".into())),
        }
    }

    /// White space behind the element that restarted the stream belongs to the old one, and an XML
    /// declaration may follow it.
    async fn skip_white_space(&mut self) -> Result<(), Failure> {
        loop {
            let white = self.buffer.len() - self.buffer.trim_ascii_start().len();
            self.buffer.drain(..white);
            if !self.buffer.is_empty() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    /// The next element, on an open stream.
    pub(crate) async fn element(&mut self) -> Result<Element, Failure> {
        match self.next().await? {
            Input::Element(element) => Ok(element),
            Input::Open(_) => Err(StreamCondition::NotWellFormed.into()),
        }
    }

    /// Reads the peer's stream header. It is not checked: see [`check_header`].
    pub(crate) async fn header(&mut self) -> Result<StreamOpen, Failure> {
        if self.restarted {
            self.skip_white_space().await?;
        }
        match self.next().await? {
            Input::Open(open) => Ok(open),
            Input::Element(_) => Err(StreamCondition::NotWellFormed.into()),
        }
    }

    /// As the initiating server: opens the stream and reads the peer's header and features.
    pub(crate) async fn initiate(&mut self, pair: &Pair) -> Result<Features, Failure> {
        self.queue_header(Some(&pair.local), Some(&pair.remote), None);
        self.conn.flush().await?;
        let open = self.header().await?;
        check_header(&open)?;
        // RFC 6120 4.7.1: old servers leave it out; another domain's is not whom we asked for.
        if let Some(from) = open.from.as_deref()
            && Jid::parse(from).ok().is_none_or(|from| !is_domain(&from, &pair.remote))
        {
            return Err(StreamError::new(StreamCondition::InvalidFrom)
                .with_text("the stream header is from another domain")
                .into());
        }
        self.id = open.id.filter(|id| !id.is_empty());
        let features = self.element().await?;
        if !features.is("features", NS_STREAMS) {
            return Err(StreamError::new(StreamCondition::UnsupportedStanzaType)
                .with_text("stream features were expected")
                .into());
        }
        Ok(Features::of(&features))
    }

    /// As the receiving server: sends our header, under a new id (RFC 6120 4.7.3). `from` is a domain of
    /// ours; `to` is what the peer said that it is, if that may be repeated.
    pub(crate) fn answer(&mut self, from: &str, to: Option<&str>) -> Result<(), Failure> {
        let id = random_id()?;
        self.queue_header(Some(from), to, Some(&id));
        self.id = Some(id);
        Ok(())
    }

    fn queue_header(&mut self, from: Option<&str>, to: Option<&str>, id: Option<&str>) {
        let mut out = b"<?xml version='1.0'?><stream:stream xmlns='jabber:server' \
            xmlns:stream='http://etherx.jabber.org/streams' xmlns:db='jabber:server:dialback'"
            .to_vec();
        for (name, value) in [("id", id), ("from", from), ("to", to)] {
            let Some(value) = value else { continue };
            out.extend_from_slice(format!(" {name}='").as_bytes());
            escape_attr(value, &mut out);
            out.push(b'\'');
        }
        out.extend_from_slice(b" version='1.0' xml:lang='en'>");
        self.conn.queue_slice(&out);
        self.header_sent = true;
    }

    /// Writes and flushes.
    pub(crate) async fn send(&mut self, xml: &[u8]) -> Result<(), Failure> {
        self.conn.queue_slice(xml);
        Ok(self.conn.flush().await?)
    }

    /// The stream begins anew (after STARTTLS and after authentication). What was read of the old one
    /// and not looked at stays: before TLS, whoever starts that takes it out first.
    pub(crate) fn restart(&mut self) {
        self.framer.restart();
        self.id = None;
        self.header_sent = false;
        self.restarted = true;
    }

    /// Ends the stream, with last words where there is someone to hear them. `local` is a domain of ours,
    /// for the header of a receiving server that has sent none.
    pub(crate) async fn end(mut self, local: &str, failure: &Failure) {
        let error = match failure {
            Failure::Lost(_) => return,
            Failure::Closed | Failure::Unwanted(_) | Failure::Peer(_) => None,
            Failure::Error(error) => Some(error),
        };
        let mut out = Vec::new();
        if let Some(error) = error {
            if !self.header_sent && self.answer(local, None).is_err() {
                return;
            }
            error.write(&mut out);
        }
        if self.header_sent {
            out.extend_from_slice(b"</stream:stream>");
        }
        self.conn.queue_slice(&out);
        self.conn.close(CLOSE_DEADLINE).await;
    }
}

/// What a receiving server offers (RFC 6120 4.3.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    pub(crate) starttls: bool,
    /// TLS comes before all else.
    pub(crate) tls_required: bool,
    /// SASL EXTERNAL.
    pub(crate) external: bool,
    /// Dialback that answers with errors (XEP-0220 2.4).
    pub(crate) dialback_errors: bool,
    pub(crate) bidi: bool,
    /// Stream management of the version that is spoken here.
    pub(crate) management: bool,
}

impl Features {
    fn of(features: &Element) -> Self {
        let starttls = features.child("starttls", NS_TLS);
        let mechanisms = features.child("mechanisms", NS_SASL);
        let dialback = features.child("dialback", NS_DIALBACK_FEATURE);
        Self {
            starttls: starttls.is_some(),
            tls_required: starttls.is_some_and(|tls| tls.child("required", NS_TLS).is_some()),
            external: mechanisms.is_some_and(|all| {
                all.children().any(|one| one.is("mechanism", NS_SASL) && one.text().trim() == "EXTERNAL")
            }),
            dialback_errors: dialback
                .is_some_and(|dialback| dialback.child("errors", NS_DIALBACK_FEATURE).is_some()),
            bidi: features.child("bidi", NS_BIDI_FEATURE).is_some(),
            management: features.child("sm", NS_STREAM_MANAGEMENT).is_some(),
        }
    }
}

/// What is wrong with a header of either side, but for its addresses (RFC 6120 4.7.5, 4.8).
pub(crate) fn check_header(open: &StreamOpen) -> Result<(), StreamError> {
    if !open.stream_prefix_ok {
        return Err(StreamCondition::BadNamespacePrefix.into());
    }
    if open.content_namespace != NS_SERVER {
        return Err(StreamCondition::InvalidNamespace.into());
    }
    if !open.is_version_1() {
        return Err(StreamCondition::UnsupportedVersion.into());
    }
    Ok(())
}

/// Whether an address is this domain and nothing else.
pub(crate) fn is_domain(jid: &Jid, domain: &str) -> bool {
    jid.local().is_none() && jid.is_bare() && jid.domain() == domain
}

/// A stream error of the peer, for people: the condition, and its text.
pub(crate) fn describe_error(error: &Element) -> String {
    const NS: &str = waystation_core::error::NS_STREAM_ERROR;
    let mut condition = "a stream error without a condition".to_owned();
    let mut text = None;
    for child in error.children().filter(|child| child.namespace() == NS) {
        match child.name() {
            "text" => text = Some(child.text()),
            name => condition = shortened(name),
        }
    }
    match text.as_deref().map(str::trim) {
        Some(text) if !text.is_empty() => format!("{condition}: {}", shortened(text)),
        _ => condition,
    }
}

/// A peer's text for people: on one line, and not without end.
pub(crate) fn shortened(text: &str) -> String {
    let mut short: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_TEXT).collect();
    short.truncate(short.floor_char_boundary(MAX_TEXT));
    short
}

/// 144 random bits (RFC 6120 4.7.3: unpredictable, for dialback stands on it).
pub(crate) fn random_id() -> Result<String, Failure> {
    let mut bytes = [0; 18];
    getrandom::fill(&mut bytes).map_err(|error| {
        tracing::error!(%error, "the system gives no random bytes");
        Failure::from(StreamCondition::InternalServerError)
    })?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_told_apart_by_name_and_namespace() {
        let parse = |inner: &str| {
            let xml = format!("<features xmlns='http://etherx.jabber.org/streams'>{inner}</features>");
            Features::of(&Element::parse(xml.as_bytes(), "").unwrap())
        };
        assert_eq!(parse(""), Features::default());
        let all = parse(
            "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'><required/></starttls>\
             <mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><mechanism>PLAIN</mechanism>\
             <mechanism> EXTERNAL\n</mechanism></mechanisms><bidi xmlns='urn:xmpp:features:bidi'/>\
             <dialback xmlns='urn:xmpp:features:dialback'><errors/></dialback><sm xmlns='urn:xmpp:sm:3'/>",
        );
        let expected = Features {
            starttls: true,
            tls_required: true,
            external: true,
            dialback_errors: true,
            bidi: true,
            management: true,
        };
        assert_eq!(all, expected);
        // The element that asks for it is no offer, and neither is an older version.
        let other = parse(
            "<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/><bidi xmlns='urn:xmpp:bidi'/>\
             <sm xmlns='urn:xmpp:sm:2'/><dialback xmlns='urn:xmpp:features:dialback'/>",
        );
        assert_eq!(other, Features { starttls: true, ..Features::default() });
    }

    #[test]
    fn a_header_is_of_version_1_and_of_servers() {
        let good = StreamOpen {
            version: Some("1.0".into()),
            content_namespace: NS_SERVER.into(),
            stream_prefix_ok: true,
            ..StreamOpen::default()
        };
        assert_eq!(check_header(&good), Ok(()));
        let wrong = |change: fn(&mut StreamOpen)| {
            let mut open = good.clone();
            change(&mut open);
            check_header(&open).unwrap_err().condition
        };
        assert_eq!(
            wrong(|open| open.content_namespace = "jabber:client".into()),
            StreamCondition::InvalidNamespace
        );
        assert_eq!(wrong(|open| open.stream_prefix_ok = false), StreamCondition::BadNamespacePrefix);
        assert_eq!(wrong(|open| open.version = None), StreamCondition::UnsupportedVersion);
        assert_eq!(wrong(|open| open.version = Some("0.9".into())), StreamCondition::UnsupportedVersion);
    }

    #[test]
    fn a_peers_words_are_short_and_on_one_line() {
        let error = |inner: &str| {
            let xml = format!("<error xmlns='{NS_STREAMS}'>{inner}</error>");
            describe_error(&Element::parse(xml.as_bytes(), "").unwrap())
        };
        assert_eq!(error("<host-unknown xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>"), "host-unknown");
        let long = "ü\n".repeat(1000);
        let said = error(&format!(
            "<text xmlns='urn:ietf:params:xml:ns:xmpp-streams'>{long}</text>\
             <reset xmlns='urn:ietf:params:xml:ns:xmpp-streams'/>"
        ));
        assert!(
            said.starts_with("reset: ü ü") && said.len() <= MAX_TEXT + 7 && !said.contains('\n'),
            "{said}"
        );
        assert_eq!(error(""), "a stream error without a condition");
    }
}

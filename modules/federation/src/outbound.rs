//! Streams to other servers, up to the first stanza: dialling, TLS, proof of both sides (RFC 6120 4 to 6, XEP-0178,
//! XEP-0220, XEP-0288, XEP-0368).
//!
//! What must hold: a domain served here is never dialled (SECURITY F9); nothing that came before TLS counts
//! after it (T2); no stanza is given to a server that did not prove the domain as the policy demands, nor taken
//! from one that has no certificate for it; each server that is tried has a bounded time, whatever it does or
//! does not say (M11).

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine;
use tokio::time::{Instant, timeout_at};
use waystation_core::StreamCondition;
use waystation_core::xml::Element;
use waystation_route::remote::{Authenticated, EndCause, Forbidden, Pair, StreamEnd, StreamRequest};

use crate::addressing::Proven;
use crate::dial::Dialled;
use crate::dialback::{Answer, Packet, Questions};
use crate::federation::Federation;
use crate::identity::{self, Role};
use crate::initiating::Initiating;
use crate::piggybacking::Piggybacking;
use crate::receiving::Receiving;
use crate::running::{self, Extension, Joining, Start};
use crate::stream::{Failure, Features, NS_BIDI, NS_DIALBACK, NS_SASL, NS_TLS, Stream, shortened};

/// Elements that a server may send before the one that is waited for.
const MAX_BESIDES: usize = 20;

/// A server of a domain, ready for what it offers.
pub(crate) struct Reached {
    pub(crate) stream: Stream,
    /// What it offers on the stream as it is, with TLS if that was to be had.
    pub(crate) features: Features,
    /// Whether its certificate proves the domain; if not, why.
    pub(crate) certificate: Result<(), String>,
    /// The end of the time for negotiation.
    deadline: Instant,
    /// For people.
    target: String,
}

/// Why there is no stream.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) cause: EndCause,
    /// In words for people.
    pub(crate) text: String,
}

impl End {
    fn refused(text: impl Into<String>) -> Self {
        Self { cause: EndCause::Refused, text: text.into() }
    }

    fn failed(text: impl Into<String>) -> Self {
        Self { cause: EndCause::Failed, text: text.into() }
    }

    /// With the name of the server that it is about.
    fn of(self, target: &str) -> Self {
        Self { text: format!("{target}: {}", self.text), ..self }
    }
}

/// Opens a stream for a request, on the current arbiter, where it stays. What becomes of it is told to the
/// request's events.
pub(crate) fn open(federation: Arc<Federation>, request: StreamRequest) {
    actix_rt::spawn(async move {
        let mut drain = federation.drain.clone();
        let connected = tokio::select! {
            connected = connect(&federation, &request.pair) => connected,
            () = drain.started() => Err(End::failed("the server stops")),
        };
        drop(drain);
        match connected {
            Ok(connected) => running::run(connected.start(federation, request)).await,
            Err(End { cause, text }) => {
                tracing::debug!(pair = %request.pair, ?cause, text, "no stream to another server");
                request.events.down(StreamEnd { cause, text, resume: request.resume });
            }
        }
    });
}

/// Connects to a server of the pair's remote domain, up to its features, over TLS if that is to be had. The
/// servers are tried one after the other until one does.
///
/// # Errors
/// Why none did.
pub(crate) async fn reach(federation: &Arc<Federation>, pair: &Arc<Pair>) -> Result<Reached, End> {
    if federation.serves(&pair.remote) {
        return Err(End::refused("the domain is served here"));
    }
    match federation.policy.permits(pair) {
        Ok(()) => {}
        Err(Forbidden::Policy) => return Err(End::refused("the domain is not allowed")),
        Err(Forbidden::NoServer) => return Err(End::refused("it is no domain of another server")),
    }
    let mut dialling = federation.resolver.dial(&pair.remote);
    let mut last = None;
    loop {
        let dialled = match dialling.next().await {
            Ok(dialled) => dialled,
            // What a server said that was reached tells more than that there are no others.
            Err(error) => {
                let end = End { cause: error.cause(), text: error.to_string() };
                return Err(last.unwrap_or(end));
            }
        };
        let deadline = Instant::now() + federation.settings.negotiation_timeout;
        let target = dialled.target.clone();
        let greeted = timeout_at(deadline, greet(federation, pair, dialled, deadline)).await;
        match greeted.unwrap_or_else(|_| Err(End::failed("the server did not answer in time"))) {
            Ok(reached) => return Ok(reached),
            Err(end) => {
                tracing::debug!(%pair, target, reason = end.text, "a server of the domain does not do");
                last = Some(end.of(&target));
            }
        }
    }
}

/// From the connection to the features that count.
async fn greet(
    federation: &Arc<Federation>,
    pair: &Arc<Pair>,
    dialled: Dialled,
    deadline: Instant,
) -> Result<Reached, End> {
    let Dialled { connection, direct_tls, target } = dialled;
    let mut stream = Stream::new(connection);
    match negotiate_tls(federation, pair, &mut stream, direct_tls).await {
        Ok(features) => {
            let certificate = certificate(federation, pair, &stream);
            if let Err(unproven) = &certificate
                && federation.policy.requires_certificate(&pair.remote)
            {
                let end = End::refused(format!("a valid certificate is required: {unproven}"));
                end_it(stream, pair, Failure::Closed);
                return Err(end);
            }
            Ok(Reached { stream, features, certificate, deadline, target })
        }
        Err((failure, refused)) => {
            let end =
                if refused { End::refused(failure.to_string()) } else { End::failed(failure.to_string()) };
            end_it(stream, pair, failure);
            Err(end)
        }
    }
}

/// Says the last words on a stream; nobody waits for that.
fn end_it(stream: Stream, pair: &Arc<Pair>, failure: Failure) {
    let local = pair.local.clone();
    actix_rt::spawn(async move { stream.end(&local, &failure).await });
}

/// TLS from the first byte, or when the server offers it. An error says whether it is certain that the server
/// will not do.
async fn negotiate_tls(
    federation: &Federation,
    pair: &Pair,
    stream: &mut Stream,
    direct_tls: bool,
) -> Result<Features, (Failure, bool)> {
    let failed = |failure| (failure, false);
    if direct_tls {
        start_tls(federation, pair, stream, true, &[]).await.map_err(failed)?;
    }
    let features = stream.initiate(pair).await.map_err(failed)?;
    if stream.conn.is_tls() {
        return Ok(features);
    }
    if features.starttls {
        ask_for_tls(federation, pair, stream).await.map_err(failed)?;
        return stream.initiate(pair).await.map_err(failed);
    }
    if federation.policy.requires_tls(&pair.remote) {
        return Err((Failure::Unwanted("TLS is required, and the server does not offer it"), true));
    }
    Ok(features)
}

async fn start_tls(
    federation: &Federation,
    pair: &Pair,
    stream: &mut Stream,
    direct: bool,
    leftover: &[u8],
) -> Result<(), Failure> {
    let connector = &federation.connector;
    Ok(stream.conn.connect_tls(connector, &pair.local, &pair.remote, direct, leftover).await?)
}

/// RFC 6120 5.4.
async fn ask_for_tls(federation: &Federation, pair: &Pair, stream: &mut Stream) -> Result<(), Failure> {
    stream.send(format!("<starttls xmlns='{NS_TLS}'/>").as_bytes()).await?;
    let answer = stream.element().await?;
    if answer.is("failure", NS_TLS) {
        return Err(Failure::Unwanted("the server refused STARTTLS, which it offers"));
    }
    if !answer.is("proceed", NS_TLS) {
        return Err(StreamCondition::UnsupportedStanzaType.into());
    }
    // What came behind it was not protected, and may be from anyone (T2). A line feed behind each element
    // says nothing.
    let leftover = std::mem::take(&mut stream.buffer);
    start_tls(federation, pair, stream, false, leftover.trim_ascii_start()).await?;
    stream.restart();
    Ok(())
}

fn certificate(federation: &Federation, pair: &Pair, stream: &Stream) -> Result<(), String> {
    if !stream.conn.is_tls() {
        return Err("there is none without TLS".into());
    }
    let chain = stream.conn.peer_certificates();
    identity::proves(chain, &pair.remote, &federation.trust, Role::Server, SystemTime::now())
        .map_err(|unproven| unproven.to_string())
}

/// A stream on which the pair may send.
struct Connected {
    stream: Stream,
    pair: Arc<Pair>,
    /// What the peer offers for what follows.
    features: Features,
    authenticated: Authenticated,
    /// Stanzas may come back.
    bidirectional: bool,
}

impl Connected {
    fn start(self, federation: Arc<Federation>, mut request: StreamRequest) -> Start {
        let Self { mut stream, pair, features, authenticated, bidirectional } = self;
        stream.framer.set_limits(federation.settings.limits);
        let mut proven = Proven::default();
        let extension: Box<dyn Extension> = if bidirectional {
            proven.add(pair);
            Box::new(Piggybacking::new(federation.clone(), &stream, Receiving::default()))
        } else {
            Box::new(Initiating)
        };
        let resume = request.resume.take();
        Start {
            federation,
            stream,
            initiated: true,
            proven,
            bidirectional,
            authenticated,
            request: Some(request),
            joining: features.management.then(|| Joining::new(resume)),
            extension,
        }
    }
}

/// Reaches a server and proves to it that we are the pair's local domain. A server that does not take our
/// certificate, and ends the stream for that, is reached once more, for dialback.
async fn connect(federation: &Arc<Federation>, pair: &Arc<Pair>) -> Result<Connected, End> {
    match connect_once(federation, pair, true).await {
        Err(Unconnected { certificate_refused: true, end }) => {
            tracing::debug!(%pair, reason = end.text, "our certificate was refused: dialback instead");
            connect_once(federation, pair, false).await.map_err(|unconnected| unconnected.end)
        }
        connected => connected.map_err(|unconnected| unconnected.end),
    }
}

struct Unconnected {
    /// The server refused our certificate, and then ended the stream.
    certificate_refused: bool,
    end: End,
}

async fn connect_once(
    federation: &Arc<Federation>,
    pair: &Arc<Pair>,
    by_certificate: bool,
) -> Result<Connected, Unconnected> {
    let reached = reach(federation, pair).await;
    let reached = reached.map_err(|end| Unconnected { certificate_refused: false, end })?;
    let Reached { mut stream, mut features, certificate, deadline, target } = reached;
    features.external &= by_certificate;
    // What comes back can be believed only of a server that has proven its domain itself.
    let bidirectional = features.bidi && certificate.is_ok();
    if bidirectional {
        stream.conn.queue_slice(format!("<bidi xmlns='{NS_BIDI}'/>").as_bytes());
    }
    let mut refused = false;
    let proof = timeout_at(deadline, prove(federation, pair, &mut stream, features, &mut refused)).await;
    match proof.unwrap_or(Err(Failure::Unwanted("the server did not let us in in time"))) {
        Ok(features) => {
            let authenticated = match certificate {
                Ok(()) => Authenticated::Certificate,
                Err(_) => Authenticated::Dialback,
            };
            Ok(Connected { stream, pair: pair.clone(), features, authenticated, bidirectional })
        }
        Err(failure) => {
            let ended = matches!(failure, Failure::Closed | Failure::Peer(_) | Failure::Lost(_));
            let end = End::failed(failure.to_string()).of(&target);
            end_it(stream, pair, failure);
            Err(Unconnected { certificate_refused: refused && ended, end })
        }
    }
}

/// By our certificate if the peer takes it, or by dialback. What the peer offers afterwards. `refused` is set
/// when it did not take the certificate.
async fn prove(
    federation: &Federation,
    pair: &Arc<Pair>,
    stream: &mut Stream,
    features: Features,
    refused: &mut bool,
) -> Result<Features, Failure> {
    if features.external && stream.conn.is_tls() {
        if external(pair, stream).await? {
            stream.restart();
            return stream.initiate(pair).await;
        }
        *refused = true;
    }
    let Some(id) = stream.id.clone() else {
        return Err(Failure::Unwanted("the server gave the stream no id, which dialback needs"));
    };
    let mut questions = Questions::default();
    let question = questions.ask_in(&federation.keys, pair.clone(), &id);
    stream.send(&question).await?;
    for _ in 0..MAX_BESIDES {
        let element = stream.element().await?;
        if element.namespace() != NS_DIALBACK {
            return Err(StreamCondition::UnsupportedStanzaType.into());
        }
        // Answers to what was not asked change nothing (SECURITY M10). One that refuses us is no reason to
        // come back without a certificate.
        match questions.take(&Packet::read(&element)?) {
            None => {}
            Some((_, Answer::Valid)) => return Ok(features),
            Some((_, Answer::Invalid)) => {
                *refused = false;
                return Err(Failure::Peer("that our key of dialback is invalid".into()));
            }
            Some((_, Answer::Error(condition))) => {
                *refused = false;
                return Err(Failure::Peer(format!("to our dialback: {}", shortened(&condition))));
            }
        }
    }
    Err(StreamCondition::PolicyViolation.into())
}

/// SASL EXTERNAL (XEP-0178 3). False when the peer does not take it, and the stream may go on.
async fn external(pair: &Pair, stream: &mut Stream) -> Result<bool, Failure> {
    // XEP-0178: older servers rely on the domain being named, and all others look at the header.
    let identity = base64::engine::general_purpose::STANDARD.encode(pair.local.as_bytes());
    stream.send(format!("<auth xmlns='{NS_SASL}' mechanism='EXTERNAL'>{identity}</auth>").as_bytes()).await?;
    let mut answer: Element = stream.element().await?;
    if answer.is("challenge", NS_SASL) {
        // There is nothing more to say (RFC 4422 A.1).
        stream.send(format!("<abort xmlns='{NS_SASL}'/>").as_bytes()).await?;
        answer = stream.element().await?;
    }
    match answer.name() {
        "success" if answer.namespace() == NS_SASL => Ok(true),
        "failure" if answer.namespace() == NS_SASL => Ok(false),
        _ => Err(StreamCondition::UnsupportedStanzaType.into()),
    }
}

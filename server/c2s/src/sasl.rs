//! SASL on a client stream (RFC 6120 6): the XML around [`SaslServer`], limits, and the log.
//!
//! What must hold: a failed attempt counts against the connection, the address and the
//! (account, address), whatever way it fails; after success nothing more is read here; no
//! secret and no raw input reaches the log.

use std::net::IpAddr;
use std::time::Instant;

use waystation_auth::{
    Attempt, ChannelBindings, ConnectionFailures, Offer, SaslError, SaslFailure, SaslServer, Step,
    decode_base64, decode_initial_response, encode_base64,
};
use waystation_core::xml::{Element, escape_text};
use waystation_core::{Jid, StreamCondition, StreamError};

use crate::context::C2s;
use crate::stream::{Failure, Stream};

const NS_SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// What is offered on a stream.
pub(crate) fn offer(stream: &Stream, shared: &C2s) -> Offer {
    let info = stream.conn.tls_info();
    let bindings = ChannelBindings {
        tls_exporter: info.and_then(|i| i.tls_exporter()).map(|b| b.to_vec()),
        tls_server_end_point: info.and_then(|i| i.tls_server_end_point()).map(<[u8]>::to_vec),
    };
    let mut policy = shared.sasl.clone();
    policy.require_encryption = crate::negotiate::tls_required(stream, shared);
    Offer::new(&policy, stream.conn.is_encrypted(), bindings)
}

/// Writes the stream features of an offer.
pub(crate) fn write_features(offer: &Offer, out: &mut String) {
    if offer.mechanisms().is_empty() {
        return;
    }
    out.push_str("<mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>");
    for mechanism in offer.mechanisms() {
        out.push_str("<mechanism>");
        out.push_str(mechanism.name());
        out.push_str("</mechanism>");
    }
    out.push_str("</mechanisms>");
    let mut types = offer.channel_binding_types().peekable();
    if types.peek().is_some() {
        out.push_str("<sasl-channel-binding xmlns='urn:xmpp:sasl-cb:0'>");
        for name in types {
            out.push_str("<channel-binding type='");
            out.push_str(name);
            out.push_str("'/>");
        }
        out.push_str("</sasl-channel-binding>");
    }
}

/// The exchanges of one stream, of which one may be under way.
pub(crate) struct Exchanges {
    offer: Offer,
    failures: ConnectionFailures,
    current: Option<(SaslServer, Option<Attempt>)>,
}

impl Exchanges {
    pub(crate) fn new(offer: Offer, failures: ConnectionFailures) -> Self {
        Self { offer, failures, current: None }
    }

    /// The counter of failures, to be carried over to the stream after STARTTLS.
    pub(crate) fn into_failures(self) -> ConnectionFailures {
        self.failures
    }

    /// Handles an element in the SASL namespace; the account once authenticated.
    pub(crate) async fn element(
        &mut self,
        stream: &mut Stream,
        shared: &C2s,
        host: &str,
        element: &Element,
    ) -> Result<Option<Jid>, Failure> {
        let text = element.text();
        let step = match element.name() {
            "auth" => self.auth(stream.conn.peer().ip(), shared, host, element, &text),
            "response" => match (&mut self.current, decode_base64(&text)) {
                (None, _) => Err(SaslError::MalformedRequest.into()),
                (Some(_), Err(error)) => Err(error.into()),
                (Some((server, _)), Ok(data)) => Ok(server.respond(&data)),
            },
            "abort" => Err(SaslError::Aborted.into()),
            _ => return Err(StreamCondition::UnsupportedStanzaType.into()),
        };
        let step = match step {
            Ok(step) => step,
            Err(failure) => Step::Failure(failure),
        };
        self.carry_out(stream, shared, host, step).await
    }

    fn auth(
        &mut self,
        peer: IpAddr,
        shared: &C2s,
        host: &str,
        element: &Element,
        text: &str,
    ) -> Result<Step, SaslFailure> {
        if self.current.is_some() {
            // A3: one exchange at a time; the one under way ends with this.
            return Err(SaslError::MalformedRequest.into());
        }
        // A7: an address that has failed too often is not listened to for a while.
        shared.failures.check_address(peer, Instant::now()).map_err(|_| SaslError::TemporaryAuthFailure)?;
        let mechanism = self.offer.select(element.attr("mechanism").unwrap_or_default())?;
        let initial = decode_initial_response(text)?;
        let mut server = SaslServer::new(mechanism, &self.offer, host);
        let step = server.start(initial.as_deref());
        self.current = Some((server, None));
        Ok(step)
    }

    async fn carry_out(
        &mut self,
        stream: &mut Stream,
        shared: &C2s,
        host: &str,
        mut step: Step,
    ) -> Result<Option<Jid>, Failure> {
        loop {
            step = match step {
                Step::Challenge(data) => {
                    let xml = wrapped("challenge", Some(&data));
                    stream.send(&xml).await?;
                    return Ok(None);
                }
                Step::NeedCredentials { username } => self.look_up(stream, shared, host, &username).await,
                Step::NeedPasswordCheck(check) => {
                    let verdict = shared.accounts.workers().run(move || check.run()).await;
                    match (verdict, &mut self.current) {
                        (Ok(verdict), Some((server, _))) => server.password_checked(verdict),
                        _ => Step::Failure(SaslError::TemporaryAuthFailure.into()),
                    }
                }
                Step::Success { username, additional } => {
                    let Ok(account) = Jid::new(Some(&username), host, None) else {
                        step = Step::Failure(SaslError::NotAuthorized.into());
                        continue;
                    };
                    if let Some((_, Some(attempt))) = self.current.take() {
                        attempt.succeeded();
                    }
                    stream.send(&wrapped("success", additional.as_deref())).await?;
                    return Ok(Some(account));
                }
                Step::Failure(failure) => {
                    self.failed(stream, failure).await?;
                    return Ok(None);
                }
            };
        }
    }

    async fn look_up(&mut self, stream: &Stream, shared: &C2s, host: &str, username: &str) -> Step {
        let Some((server, attempt)) = &mut self.current else {
            return Step::Failure(SaslError::MalformedRequest.into());
        };
        match shared.failures.begin(stream.conn.peer().ip(), host, username, Instant::now()) {
            Ok(begun) => *attempt = Some(begun),
            Err(refused) => {
                tracing::info!(peer = %stream.conn.peer(), %refused, "login refused");
                return Step::Failure(SaslError::TemporaryAuthFailure.into());
            }
        }
        match shared.accounts.candidate(host, username).await {
            Ok(candidate) => server.credentials(candidate),
            Err(error) => {
                tracing::error!(%error, "an account could not be read");
                Step::Failure(SaslError::TemporaryAuthFailure.into())
            }
        }
    }

    /// Answers a failed attempt; ends the stream when there were too many.
    pub(crate) async fn failed(&mut self, stream: &mut Stream, failure: SaslFailure) -> Result<(), Failure> {
        if let Some((_, Some(attempt))) = self.current.take() {
            if failure.condition.counts() { attempt.failed() } else { attempt.abandoned() }
        }
        tracing::info!(peer = %stream.conn.peer(), condition = %failure.condition, "authentication failed");
        let mut xml = b"<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><".to_vec();
        xml.extend_from_slice(failure.condition.as_str().as_bytes());
        xml.extend_from_slice(b"/>");
        if let Some(text) = failure.text {
            xml.extend_from_slice(b"<text xml:lang='en'>");
            escape_text(text, &mut xml);
            xml.extend_from_slice(b"</text>");
        }
        xml.extend_from_slice(b"</failure>");
        stream.send(&xml).await?;
        if failure.condition.counts() && self.failures.failed() {
            let error = StreamError::new(StreamCondition::PolicyViolation)
                .with_text("too many failed authentications");
            return Err(error.into());
        }
        Ok(())
    }
}

/// `data` as base64, `=` when it is empty (RFC 6120 6.4.2).
fn wrapped(name: &str, data: Option<&[u8]>) -> Vec<u8> {
    let text = match data {
        None => return format!("<{name} xmlns='{NS_SASL}'/>").into_bytes(),
        Some([]) if name == "challenge" => String::new(),
        Some([]) => "=".to_owned(),
        Some(data) => encode_base64(data),
    };
    format!("<{name} xmlns='{NS_SASL}'>{text}</{name}>").into_bytes()
}

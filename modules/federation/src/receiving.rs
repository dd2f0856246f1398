//! The receiving server's part in dialback (XEP-0220 2.1.2, 2.2.1): what peers claim on a stream of theirs,
//! until it is decided.
//!
//! What must hold: a claim is decided by the peer's certificate, or by the authoritative server of the domain, asked
//! on a stream that we opened for it alone, never on the stream of the claim; at most [`MAX_PENDING`] claims
//! wait on one stream and [`MAX_ASKING`] in all, and each of them for a bounded time; a stream that ends takes
//! its claims with it.

use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use tokio::task::{Id, JoinSet};
use waystation_core::xml::Element;
use waystation_core::{Condition, StreamError};
use waystation_route::remote::{Authenticated, EndCause, Forbidden, Pair};

use crate::addressing::Proven;
use crate::dialback::{Answer, Content, Name, Packet, Questions, Reply, authoritative, error};
use crate::federation::Federation;
use crate::identity::{self, Role};
use crate::outbound;
use crate::stream::Failure;

/// Most claims that wait on one stream (SECURITY M10).
const MAX_PENDING: usize = 10;
/// Most claims that wait on all streams together: each holds a connection.
pub(crate) const MAX_ASKING: usize = 500;
/// Elements that an authoritative server may send before its answer.
const MAX_BESIDES: usize = 20;

/// What is known of the peer of a stream, whatever it claims.
pub(crate) struct Facts<'a> {
    /// The id that the stream was given by its receiver.
    pub(crate) stream_id: &'a str,
    pub(crate) encrypted: bool,
    /// The peer's own first; empty if it has none.
    pub(crate) certificates: &'a [CertificateDer<'static>],
}

/// The claims on one stream that are not decided yet.
#[derive(Default)]
pub(crate) struct Receiving {
    asking: JoinSet<Reply>,
    pending: Vec<(Id, Packet)>,
}

/// What an element of dialback comes to.
#[derive(Debug)]
pub(crate) enum Decision {
    /// Nothing to say now.
    Nothing,
    /// To be answered; all else stays as it is.
    Answer(Vec<u8>),
    /// The pair is proven. The answer tells the peer.
    Proven(Arc<Pair>, Authenticated, Vec<u8>),
    /// The key was not the domain's, and nothing else is proven on the stream: it ends after the answer.
    Close(Vec<u8>),
}

impl Receiving {
    /// Handles an element in the namespace of dialback on a stream on which a peer makes claims. Answers to
    /// questions of ours are none of this: whoever asks on the stream looks there first, and all others
    /// change nothing.
    ///
    /// # Errors
    /// What the stream must be closed with.
    pub(crate) fn element(
        &mut self,
        federation: &Arc<Federation>,
        facts: &Facts<'_>,
        proven: &Proven,
        element: &Element,
    ) -> Result<Decision, StreamError> {
        let packet = Packet::read(element)?;
        let Content::Key(key) = &packet.content else {
            // It may also be an answer that came too late.
            tracing::info!(from = %packet.from, to = %packet.to, "an answer of dialback that was not asked for");
            return Ok(Decision::Nothing);
        };
        if !facts.encrypted && federation.policy.requires_tls(&packet.from) {
            let reply = error(Condition::PolicyViolation, "TLS is required before dialback");
            return Ok(Decision::Answer(packet.answered(&reply)));
        }
        let reply = match packet.name {
            Name::Verify => authoritative(&packet, &federation.keys, |domain| federation.serves(domain)),
            Name::Result => {
                let pair = Arc::new(Pair::new(&packet.to, &packet.from));
                match self.claim(federation, facts, proven, &packet, &pair) {
                    Claim::Proven(how) => {
                        return Ok(Decision::Proven(pair, how, packet.answered(&Reply::Valid)));
                    }
                    Claim::Refused(reply) => reply,
                    Claim::Ask => {
                        let question = ask(federation.clone(), pair, facts.stream_id.to_owned(), key.clone());
                        let id = self.asking.spawn_local(question).id();
                        self.pending.push((id, packet));
                        return Ok(Decision::Nothing);
                    }
                }
            }
        };
        Ok(Decision::Answer(packet.answered(&reply)))
    }

    fn claim(
        &self,
        federation: &Federation,
        facts: &Facts<'_>,
        proven: &Proven,
        packet: &Packet,
        pair: &Pair,
    ) -> Claim {
        let refused = |condition, text| Claim::Refused(error(condition, text));
        if !federation.serves(&pair.local) {
            return refused(Condition::ItemNotFound, "the domain is not served here");
        }
        if federation.serves(&pair.remote) {
            return refused(Condition::NotAcceptable, "the domain is served here");
        }
        match federation.policy.permits(pair) {
            Ok(()) => {}
            Err(Forbidden::Policy) => {
                return refused(Condition::PolicyViolation, "streams of this domain are not wanted");
            }
            Err(Forbidden::NoServer) => {
                return refused(Condition::NotAcceptable, "this is no domain of a server");
            }
        }
        if proven.contains(pair) {
            // XEP-0220 2.5: it is not verified anew; what is proven stays so.
            return Claim::Refused(Reply::Valid);
        }
        if proven.len() + self.pending.len() >= federation.settings.pairs_per_stream as usize {
            return refused(Condition::ResourceConstraint, "too many pairs of domains on this stream");
        }
        // XEP-0344 2.3: dialback without dialling back.
        let by_certificate = identity::proves(
            facts.certificates,
            &pair.remote,
            &federation.trust,
            Role::Client,
            SystemTime::now(),
        );
        let unproven = match by_certificate {
            Ok(()) if facts.encrypted => return Claim::Proven(Authenticated::Certificate),
            Ok(()) => None,
            Err(unproven) => Some(unproven),
        };
        if federation.policy.requires_certificate(&pair.remote) {
            tracing::info!(%pair, ?unproven, "a domain that must have a valid certificate has none");
            return refused(
                Condition::NotAuthorized,
                "a certificate that is valid for the domain is required",
            );
        }
        let waits = |other: &(Id, Packet)| other.1.from == packet.from && other.1.to == packet.to;
        if self.pending.iter().any(waits) || self.pending.len() >= MAX_PENDING {
            return refused(Condition::ResourceConstraint, "too many claims wait on this stream");
        }
        Claim::Ask
    }

    /// What became of one of the claims that wait. Pending while none is decided. `alone` tells that nothing else
    /// keeps the stream.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, alone: bool) -> Poll<Decision> {
        let Some(joined) = ready!(self.asking.poll_join_next_with_id(cx)) else { return Poll::Pending };
        let (id, reply) = match joined {
            Ok((id, reply)) => (id, reply),
            // Nobody stops them but the end of the stream; one that panicked has decided nothing.
            Err(failed) => (failed.id(), error(Condition::RemoteServerTimeout, "the verification failed")),
        };
        let Some(index) = self.pending.iter().position(|(known, _)| *known == id) else {
            return Poll::Ready(Decision::Nothing);
        };
        let (_, packet) = self.pending.swap_remove(index);
        Poll::Ready(decide(&packet, &reply, alone))
    }
}

/// What is to be done about a claim at first sight.
enum Claim {
    Proven(Authenticated),
    Refused(Reply),
    Ask,
}

fn decide(packet: &Packet, reply: &Reply, alone: bool) -> Decision {
    match reply {
        Reply::Valid => {
            let pair = Arc::new(Pair::new(&packet.to, &packet.from));
            Decision::Proven(pair, Authenticated::Dialback, packet.answered(&Reply::Valid))
        }
        Reply::Invalid => {
            tracing::warn!(from = %packet.from, to = %packet.to, "a key of dialback that the domain did not make");
            // XEP-0220 2.2.1: other pairs of the stream need not suffer for it.
            if alone {
                Decision::Close(packet.answered(&Reply::Invalid))
            } else {
                let refused = error(Condition::Forbidden, "the domain did not make this key");
                Decision::Answer(packet.answered(&refused))
            }
        }
        Reply::Error(_) => Decision::Answer(packet.answered(reply)),
    }
}

/// Asks the authoritative server of the pair's remote domain, within the time for that.
async fn ask(federation: Arc<Federation>, pair: Arc<Pair>, stream_id: String, key: String) -> Reply {
    let Ok(_permit) = federation.asking.try_acquire() else {
        return error(Condition::ResourceConstraint, "too many claims wait to be verified");
    };
    let limit: Duration = federation.settings.dialback_timeout;
    match tokio::time::timeout(limit, confirm(&federation, &pair, &stream_id, &key)).await {
        Ok(reply) => reply,
        Err(_) => error(Condition::RemoteServerTimeout, "the domain's server did not answer in time"),
    }
}

async fn confirm(federation: &Arc<Federation>, pair: &Arc<Pair>, stream_id: &str, key: &str) -> Reply {
    let mut stream = match outbound::reach(federation, pair).await {
        Ok(reached) => reached.stream,
        Err(end) => {
            tracing::debug!(%pair, reason = end.text, "no stream to the authoritative server");
            return match end.cause {
                EndCause::NotFound => error(Condition::RemoteServerNotFound, "the domain has no server"),
                _ => error(Condition::RemoteServerTimeout, "the domain's server cannot be reached"),
            };
        }
    };
    let mut questions = Questions::default();
    let question = questions.verify(pair.clone(), stream_id, key);
    let answer = match stream.send(&question).await {
        Ok(()) => answer(&mut stream, &mut questions).await,
        Err(failure) => Err(failure),
    };
    let reply = match &answer {
        Ok(Answer::Valid) => Reply::Valid,
        Ok(Answer::Invalid) => Reply::Invalid,
        Ok(Answer::Error(condition)) if condition == "item-not-found" => {
            error(Condition::RemoteServerNotFound, "the domain's server does not serve it")
        }
        Err(Failure::Peer(reason)) if reason.starts_with("host-unknown") => {
            error(Condition::RemoteServerNotFound, "the domain's server does not serve it")
        }
        Ok(Answer::Error(_)) | Err(_) => {
            error(Condition::RemoteServerTimeout, "the domain's server gave no answer")
        }
    };
    tracing::debug!(%pair, ?answer, "asked the authoritative server");
    // XEP-0220 2.1.2: a stream for the sole purpose of verification ends with it. The answer does not wait
    // for that.
    let local = pair.local.to_string();
    let ending = match answer {
        Ok(_) => Failure::Closed,
        Err(failure) => failure,
    };
    actix_rt::spawn(async move { stream.end(&local, &ending).await });
    reply
}

/// Reads up to the answer to the one question. What else comes is not for this stream.
async fn answer(stream: &mut crate::stream::Stream, questions: &mut Questions) -> Result<Answer, Failure> {
    for _ in 0..MAX_BESIDES {
        let element = stream.element().await?;
        if element.namespace() == crate::stream::NS_DIALBACK
            && let Some((_, answer)) = questions.take(&Packet::read(&element)?)
        {
            return Ok(answer);
        }
    }
    Err(waystation_core::StreamCondition::PolicyViolation.into())
}

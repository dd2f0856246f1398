//! The server's side of one SASL exchange: bytes in, [`Step`]s out, no input or output.
//!
//! What must hold: an exchange succeeds once at most and only by way of verified credentials;
//! after success or failure it answers nothing but failures; an unknown account takes the same
//! steps as a wrong password; the authorization identity is checked before the password, so that
//! its error tells nothing about the password.

#[cfg(test)]
mod tests;

use subtle::ConstantTimeEq;
use waystation_core::Jid;
use waystation_core::prep;

use crate::credentials::{self, Candidate};
use crate::crypto::{self, Hash, Secret};
use crate::encoding::encode_base64;
use crate::error::{SaslError, SaslFailure};
use crate::mechanism::{Mechanism, Offer};
use crate::plain::{self, PasswordCheck, Verdict};
use crate::scram::{BindingFlag, ClientFinal, ClientFirst};

/// Longest message of a client in bytes, decoded. Three parts of 1,023 bytes, each byte escaped,
/// do not fit, but no name that a server lets someone register comes near.
pub const MAX_MESSAGE: usize = 6144;

/// Random bytes of the server's part of the nonce: 192 bits, written as 32 characters.
const NONCE_LEN: usize = 24;

/// What the negotiator does next.
#[derive(Debug)]
pub enum Step {
    /// Send a challenge with these bytes and pass the response to [`SaslServer::respond`].
    Challenge(Vec<u8>),
    /// Look the account up and pass what was found to [`SaslServer::credentials`].
    NeedCredentials {
        /// The prepared localpart; the host is the one that the exchange was made for.
        username: String,
    },
    /// Run the check where it blocks nobody and pass the verdict to
    /// [`SaslServer::password_checked`].
    NeedPasswordCheck(PasswordCheck),
    /// The client is this account of the host.
    Success {
        /// The prepared localpart.
        username: String,
        /// Additional data for `<success/>`.
        additional: Option<Vec<u8>>,
    },
    /// The exchange is over.
    Failure(SaslFailure),
}

/// One exchange.
#[derive(Debug)]
pub struct SaslServer {
    mechanism: Mechanism,
    host: String,
    offer: Offer,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Waits for the first message.
    Initial,
    /// SCRAM waits for credentials.
    ScramLookup(ScramFirst),
    /// SCRAM has sent its challenge.
    ScramFinal(Box<ScramChallenge>),
    /// PLAIN waits for credentials.
    PlainLookup { username: String, password: Secret },
    /// PLAIN waits for the verdict.
    PlainVerdict { username: String },
    /// Nothing more can come of it.
    Over,
}

/// What the first message of SCRAM leaves behind.
#[derive(Debug)]
struct ScramFirst {
    username: String,
    client_nonce: String,
    bare: String,
    /// The bytes that `c=` must hold: the header and the channel-binding data.
    binding_input: Vec<u8>,
}

#[derive(Debug)]
struct ScramChallenge {
    first: ScramFirst,
    nonce: String,
    server_first: String,
    candidate: Candidate,
}

const OUT_OF_TURN: SaslFailure = SaslFailure { condition: SaslError::MalformedRequest, text: None };

impl SaslServer {
    /// Begins an exchange on a stream to `host` (prepared), with a mechanism that
    /// [`Offer::select`] returned.
    pub fn new(mechanism: Mechanism, offer: &Offer, host: &str) -> Self {
        Self { mechanism, host: host.to_owned(), offer: offer.clone(), state: State::Initial }
    }

    /// The mechanism of the exchange.
    pub fn mechanism(&self) -> Mechanism {
        self.mechanism
    }

    /// Handles `<auth/>`. All mechanisms begin with a message of the client, which an empty
    /// challenge asks for when there is no initial response (RFC 4422 3.3).
    pub fn start(&mut self, initial: Option<&[u8]>) -> Step {
        match (initial, &self.state) {
            (None, State::Initial) => Step::Challenge(Vec::new()),
            (None, _) => self.fail(OUT_OF_TURN),
            (Some(data), _) => self.respond(data),
        }
    }

    /// Handles a message of the client.
    pub fn respond(&mut self, data: &[u8]) -> Step {
        let result = match std::mem::replace(&mut self.state, State::Over) {
            _ if data.len() > MAX_MESSAGE => Err(SaslError::MalformedRequest.into()),
            State::Initial if self.mechanism == Mechanism::Plain => self.plain(data),
            State::Initial => self.scram_first(data),
            State::ScramFinal(challenge) => scram_final(self.mechanism.hash(), &challenge, data),
            _ => Err(OUT_OF_TURN),
        };
        result.unwrap_or_else(|failure| self.fail(failure))
    }

    /// Takes what was found for [`Step::NeedCredentials`].
    pub fn credentials(&mut self, candidate: Candidate) -> Step {
        let result = match std::mem::replace(&mut self.state, State::Over) {
            State::ScramLookup(first) => self.scram_challenge(first, candidate),
            State::PlainLookup { username, password } => {
                self.state = State::PlainVerdict { username };
                Ok(Step::NeedPasswordCheck(PasswordCheck::new(candidate, password)))
            }
            _ => Err(OUT_OF_TURN),
        };
        result.unwrap_or_else(|failure| self.fail(failure))
    }

    /// Takes the verdict of [`Step::NeedPasswordCheck`].
    pub fn password_checked(&mut self, verdict: Verdict) -> Step {
        let right = verdict.into_inner();
        match std::mem::replace(&mut self.state, State::Over) {
            State::PlainVerdict { username } if right => Step::Success { username, additional: None },
            State::PlainVerdict { .. } => self.fail(SaslError::NotAuthorized.into()),
            _ => self.fail(OUT_OF_TURN),
        }
    }

    fn fail(&mut self, failure: SaslFailure) -> Step {
        self.state = State::Over;
        Step::Failure(failure)
    }

    fn plain(&mut self, data: &[u8]) -> Result<Step, SaslFailure> {
        let message = plain::parse(data)?;
        let username = self.prepare_username(message.authcid)?;
        self.check_authzid(message.authzid, &username)?;
        // A password that cannot be prepared is nobody's (RFC 4616 2).
        let password = credentials::prepare(message.password).map_err(|_| SaslError::NotAuthorized)?;
        self.state = State::PlainLookup { username: username.clone(), password };
        Ok(Step::NeedCredentials { username })
    }

    fn scram_first(&mut self, data: &[u8]) -> Result<Step, SaslFailure> {
        let message = ClientFirst::parse(data)?;
        let mut binding_input = message.gs2_header.as_bytes().to_vec();
        match (message.binding, self.mechanism.is_plus()) {
            (BindingFlag::Type(name), true) => {
                let data = self.offer.bindings().data(name).ok_or_else(|| {
                    SaslFailure::with_text(SaslError::NotAuthorized, "unsupported-channel-binding-type")
                })?;
                binding_input.extend_from_slice(data);
            }
            // RFC 5802 6: the client was shown a list without -PLUS, but that is not the list
            // that was sent.
            (BindingFlag::NotOffered, false) if self.offer.supports_channel_binding() => {
                return Err(SaslFailure::with_text(
                    SaslError::NotAuthorized,
                    "server-does-support-channel-binding",
                ));
            }
            (BindingFlag::NotOffered | BindingFlag::Unsupported, false) => {}
            // The flag contradicts the mechanism.
            _ => return Err(SaslError::MalformedRequest.into()),
        }
        let username = self.prepare_username(&message.username)?;
        self.check_authzid(message.authzid.as_deref().unwrap_or_default(), &username)?;
        self.state = State::ScramLookup(ScramFirst {
            username: username.clone(),
            client_nonce: message.nonce.to_owned(),
            bare: message.bare.to_owned(),
            binding_input,
        });
        Ok(Step::NeedCredentials { username })
    }

    fn scram_challenge(&mut self, first: ScramFirst, candidate: Candidate) -> Result<Step, SaslFailure> {
        let random: [u8; NONCE_LEN] = crypto::random().map_err(|_| SaslError::TemporaryAuthFailure)?;
        let nonce = format!("{}{}", first.client_nonce, encode_base64(&random));
        let hash = self.mechanism.hash();
        let keys = candidate.keys(hash);
        let server_first = format!(
            "r={nonce},s={},i={},h={}",
            encode_base64(&keys.salt),
            keys.iterations,
            self.offer.downgrade_hash(hash)
        );
        let challenge = server_first.clone().into_bytes();
        self.state = State::ScramFinal(Box::new(ScramChallenge { first, nonce, server_first, candidate }));
        Ok(Step::Challenge(challenge))
    }

    /// RFC 5802 5.1: a name that cannot be prepared fails the exchange. It is nobody's, and the
    /// error is that of any other name that is nobody's.
    fn prepare_username(&self, name: &str) -> Result<String, SaslFailure> {
        Ok(prep::localpart(name).map_err(|_| SaslError::NotAuthorized)?.into_owned())
    }

    /// RFC 6120 6.3.8: the bare JID to act as, which can only be the client's own.
    fn check_authzid(&self, authzid: &str, username: &str) -> Result<(), SaslFailure> {
        if authzid.is_empty() {
            return Ok(());
        }
        let jid = Jid::parse(authzid).map_err(|_| SaslError::InvalidAuthzid)?;
        if jid.is_bare() && jid.local() == Some(username) && jid.domain() == self.host {
            Ok(())
        } else {
            Err(SaslError::InvalidAuthzid.into())
        }
    }
}

fn scram_final(hash: Hash, challenge: &ScramChallenge, data: &[u8]) -> Result<Step, SaslFailure> {
    let message = ClientFinal::parse(data)?;
    if !bool::from(message.nonce.as_bytes().ct_eq(challenge.nonce.as_bytes())) {
        return Err(SaslError::NotAuthorized.into());
    }
    if !bool::from(message.channel_binding.ct_eq(&challenge.first.binding_input)) {
        return Err(SaslFailure::with_text(SaslError::NotAuthorized, "channel-bindings-dont-match"));
    }
    let auth_message =
        format!("{},{},{}", challenge.first.bare, challenge.server_first, message.without_proof);
    let (right, signature) = challenge.candidate.verify(hash, auth_message.as_bytes(), &message.proof);
    if !right {
        return Err(SaslError::NotAuthorized.into());
    }
    let additional = format!("v={}", encode_base64(signature.as_bytes()));
    Ok(Step::Success {
        username: challenge.first.username.clone(),
        additional: Some(additional.into_bytes()),
    })
}

//! Who may act as which account: SASL on the server's side, SCRAM keys in storage, failure limits.
//!
//! No input or output happens here but through [`waystation_core::storage::Storage`]: a negotiator
//! feeds bytes to [`SaslServer`] and carries out the [`Step`] it answers.
//!
//! What must hold: passwords are never stored, only the keys that SCRAM derives from them; secrets
//! are wiped when dropped, compared in constant time and cannot be printed; an exchange with an
//! unknown account takes the same steps and ends in the same error as one with a wrong password;
//! names and passwords pass through [`waystation_core::prep`] and nothing else.

mod accounts;
mod client;
mod credentials;
mod crypto;
mod encoding;
mod error;
mod limits;
mod mechanism;
mod plain;
mod scram;
mod secret;
mod server;
#[cfg(test)]
mod testing;
mod workers;

pub use accounts::{AccountError, Accounts, AccountsConfig, MAX_PAGE, SPACE};
pub use client::{ClientError, ScramClient};
pub use credentials::{Candidate, Credentials, DEFAULT_ITERATIONS, DeriveError, MIN_ITERATIONS, RecordError};
pub use crypto::Secret;
pub use encoding::{decode_base64, decode_initial_response, encode_base64};
pub use error::{SaslError, SaslFailure};
pub use limits::{Attempt, Bucket, ConnectionFailures, FailureLimits, FailureTracker, Refused};
pub use mechanism::{ChannelBindings, Mechanism, Offer, SaslPolicy, UnknownMechanism};
pub use plain::{PasswordCheck, Verdict};
pub use secret::{Decoys, ServerSecret};
pub use server::{MAX_MESSAGE, SaslServer, Step};
pub use workers::{Busy, PasswordWorkers};

//! SASL failures (RFC 6120 6.5).
//!
//! What must hold: whatever a client does wrong ends in one of these conditions, and none of them
//! tells whether an account exists.

use std::fmt;

/// A SASL error condition (RFC 6120 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SaslError {
    /// The client aborted the exchange.
    Aborted,
    /// The account is disabled.
    AccountDisabled,
    /// The credentials have expired.
    CredentialsExpired,
    /// The mechanism needs TLS.
    EncryptionRequired,
    /// The data is no canonical base64.
    IncorrectEncoding,
    /// The authorization identity is malformed, or not the client's own.
    InvalidAuthzid,
    /// The mechanism is unknown or not offered.
    InvalidMechanism,
    /// The data violates the syntax of the mechanism, or comes at the wrong time.
    MalformedRequest,
    /// Policy wants a stronger mechanism.
    MechanismTooWeak,
    /// Wrong credentials, or an unknown account.
    NotAuthorized,
    /// The server cannot verify credentials at the moment.
    TemporaryAuthFailure,
}

impl SaslError {
    /// The name of the element within `<failure/>`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::AccountDisabled => "account-disabled",
            Self::CredentialsExpired => "credentials-expired",
            Self::EncryptionRequired => "encryption-required",
            Self::IncorrectEncoding => "incorrect-encoding",
            Self::InvalidAuthzid => "invalid-authzid",
            Self::InvalidMechanism => "invalid-mechanism",
            Self::MalformedRequest => "malformed-request",
            Self::MechanismTooWeak => "mechanism-too-weak",
            Self::NotAuthorized => "not-authorized",
            Self::TemporaryAuthFailure => "temporary-auth-failure",
        }
    }

    /// True when the client is to blame, so that the failure counts against the limit of its
    /// connection (RFC 6120 6.4.5).
    pub fn counts(self) -> bool {
        self != Self::TemporaryAuthFailure
    }
}

impl fmt::Display for SaslError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed exchange: the condition, and what the `<text/>` may add to it.
///
/// The texts are server-error-values of RFC 5802 7, given only where they depend on nothing but
/// what the client sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SaslFailure {
    /// The defined condition.
    pub condition: SaslError,
    /// Text for `<text xml:lang='en'/>`.
    pub text: Option<&'static str>,
}

impl From<SaslError> for SaslFailure {
    fn from(condition: SaslError) -> Self {
        Self { condition, text: None }
    }
}

impl SaslFailure {
    pub(crate) fn with_text(condition: SaslError, text: &'static str) -> Self {
        Self { condition, text: Some(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_those_of_rfc6120_6_5() {
        use SaslError::*;
        let names = [
            (Aborted, "aborted"),
            (AccountDisabled, "account-disabled"),
            (CredentialsExpired, "credentials-expired"),
            (EncryptionRequired, "encryption-required"),
            (IncorrectEncoding, "incorrect-encoding"),
            (InvalidAuthzid, "invalid-authzid"),
            (InvalidMechanism, "invalid-mechanism"),
            (MalformedRequest, "malformed-request"),
            (MechanismTooWeak, "mechanism-too-weak"),
            (NotAuthorized, "not-authorized"),
            (TemporaryAuthFailure, "temporary-auth-failure"),
        ];
        for (error, name) in names {
            assert_eq!(error.as_str(), name);
            assert_eq!(error.counts(), error != TemporaryAuthFailure);
        }
    }
}

//! PLAIN (RFC 4616): its one message, and the slow check of its password.
//!
//! What must hold: the password is wiped as soon as it was checked, and is checked against the
//! stored SCRAM keys at the same cost whether or not the account exists.

use crate::credentials::Candidate;
use crate::crypto::Secret;
use crate::error::SaslError;

/// The parts of the message. Empty authorization identity: the client gave none.
pub(crate) struct Message<'a> {
    pub(crate) authzid: &'a str,
    pub(crate) authcid: &'a str,
    pub(crate) password: &'a str,
}

/// Splits `[authzid] NUL authcid NUL passwd` (RFC 4616 2).
pub(crate) fn parse(data: &[u8]) -> Result<Message<'_>, SaslError> {
    let text = std::str::from_utf8(data).map_err(|_| SaslError::MalformedRequest)?;
    let mut parts = text.split('\0');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(authzid), Some(authcid), Some(password), None)
            if !authcid.is_empty() && !password.is_empty() =>
        {
            Ok(Message { authzid, authcid, password })
        }
        _ => Err(SaslError::MalformedRequest),
    }
}

/// A password to check, which takes milliseconds: run it by
/// [`PasswordWorkers`](crate::PasswordWorkers), not on a thread that serves sessions.
#[derive(Debug)]
pub struct PasswordCheck {
    candidate: Candidate,
    password: Secret,
}

impl PasswordCheck {
    pub(crate) fn new(candidate: Candidate, password: Secret) -> Self {
        Self { candidate, password }
    }

    /// Checks the password. Hand the verdict to
    /// [`SaslServer::password_checked`](crate::SaslServer::password_checked).
    pub fn run(self) -> Verdict {
        Verdict(self.candidate.verify_password(&self.password))
    }
}

/// The outcome of a [`PasswordCheck`]. It is used up by the exchange that asked for it.
#[derive(Debug)]
pub struct Verdict(pub(crate) bool);

impl Verdict {
    pub(crate) fn into_inner(self) -> bool {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a2_messages_have_exactly_three_parts() {
        let message = parse(b"me@localhost\0me\0secret").unwrap();
        assert_eq!((message.authzid, message.authcid, message.password), ("me@localhost", "me", "secret"));
        assert_eq!(parse(b"\0me\0secret").unwrap().authzid, "");
        let bad: [&[u8]; 9] = [
            b"",
            b"\0",
            b"\0\0",
            b"me\0secret",
            b"\0\0secret",
            b"\0me\0",
            b"\0me\0secret\0",
            b"\0me\0sec\0ret",
            b"\0m\xff\0secret",
        ];
        for data in bad {
            assert_eq!(parse(data).err(), Some(SaslError::MalformedRequest), "{data:?}");
        }
    }
}

//! Why a step against a server failed.
//!
//! Every variant carries what was being waited for and what had arrived
//! instead, because that is what a reader of a failed test needs first.

use std::io;
use std::time::Duration;

/// The result of a harness step.
pub type Result<T> = std::result::Result<T, Error>;

/// A failed step: of the machine (`Io`, `Setup`) or of the server under test (all others).
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket or the file system failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A server could not be started, or a program it needs is missing.
    #[error("set-up: {0}")]
    Setup(String),
    /// Nothing suitable came before the deadline.
    #[error("no {what} within {after:?}; got so far: {got}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long it was waited for.
        after: Duration,
        /// What had been received and not yet consumed.
        got: String,
    },
    /// The server closed the stream or the connection while something else was expected.
    #[error("closed while waiting for {what}; got so far: {got}")]
    Closed {
        /// What was waited for.
        what: String,
        /// What had been received and not yet consumed.
        got: String,
    },
    /// The server answered something else than it had to.
    #[error("expected {expected}, got {got}")]
    Unexpected {
        /// What had to come.
        expected: String,
        /// What came.
        got: String,
    },
    /// The server sent bytes that are not well-formed XML.
    #[error("malformed XML from the server: {reason}: {text}")]
    Xml {
        /// What is wrong with it.
        reason: String,
        /// The bytes at fault, escaped.
        text: String,
    },
    /// A SASL exchange that the server failed, with the condition it named.
    #[error("authentication refused: {0}")]
    Sasl(String),
}

impl Error {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what: what.into(), source }
    }

    pub(crate) fn unexpected(expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Unexpected { expected: expected.into(), got: got.into() }
    }
}

/// Bytes as text for a failure message: control bytes escaped, and cut to a length that fits a report.
pub fn show(bytes: &[u8]) -> String {
    const MAX: usize = 2_000;
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .take(MAX)
        .flat_map(
            |c| if c.is_control() && c != '\n' { c.escape_default().collect::<Vec<_>>() } else { vec![c] },
        )
        .collect();
    if bytes.len() > MAX { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}

//! What is agreed on when a session is created (XEP-0124 7), and how its end is told (17).

use std::time::Duration;

use bytes::Bytes;

use crate::body::{NS_XBOSH, Wrapper};
use crate::request::Condition;

/// Versions of the protocol (7.1).
pub(crate) const VERSION: (u32, u32) = (1, 11);

/// What was agreed on when the session was created (7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) wait: Duration,
    pub(crate) hold: usize,
    /// Requests that the client may make at once.
    pub(crate) requests: usize,
    pub(crate) inactivity: Duration,
    /// Shortest time between polls.
    pub(crate) polling: Duration,
    pub(crate) max_pause: Duration,
    /// The client acknowledges responses (9.2).
    pub(crate) acks: bool,
    /// It named no version: it gets HTTP errors (17.1).
    pub(crate) legacy: bool,
    pub(crate) version: (u32, u32),
}

impl Terms {
    /// True for a session in which nothing is held (12).
    pub(crate) fn is_polling(&self) -> bool {
        self.hold == 0 || self.wait.is_zero()
    }
}

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// A wrapper.
    Body(Bytes),
    /// An HTTP error, for a legacy client (17.1).
    Status(u16),
    /// Nothing that counts as a response: the client has to repeat the request.
    Retry,
}

/// The end of a session, as the client understands it (17).
pub(crate) fn refusal(legacy: bool, condition: Option<Condition>) -> Response {
    match condition.and_then(Condition::legacy_status).filter(|_| legacy) {
        Some(status) => Response::Status(status),
        None => Response::Body(Wrapper::terminate(condition).finish()),
    }
}

/// What the response to a session creation request says (7.2, XEP-0206 4).
pub(crate) fn creation(terms: &Terms, sid: &str, host: &str, rid: u64) -> Wrapper {
    let mut wrapper = Wrapper::default();
    let mut number = |name, value: u64| wrapper.attr(name, &value.to_string());
    number("wait", terms.wait.as_secs());
    number("requests", terms.requests as u64);
    number("polling", terms.polling.as_secs());
    number("inactivity", terms.inactivity.as_secs());
    number("maxpause", terms.max_pause.as_secs());
    number("hold", terms.hold as u64);
    number("ack", rid);
    wrapper.attr("ver", &format!("{}.{}", terms.version.0, terms.version.1));
    wrapper.attr("sid", sid);
    wrapper.attr("from", host);
    wrapper.attr("charsets", "UTF-8");
    wrapper.attr("xmlns:xmpp", NS_XBOSH);
    wrapper.attr("xmpp:version", "1.0");
    wrapper.attr("xmpp:restartlogic", "true");
    wrapper
}

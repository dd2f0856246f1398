//! Finding out that a silent client is gone (RFC 6120 4.6.4, XEP-0199).
//!
//! What must hold: a client that sends nothing is asked once per idle time, and closed if it
//! does not answer; one deadline in the arbiter's wheel per session, no timer of its own.

use std::task::Context;
use std::time::{Duration, Instant};

use waystation_core::{IqType, Stanza, StanzaType, StreamCondition, StreamError};
use waystation_runtime::wheel;
use waystation_transport::Connection;

use super::{End, Link};

/// Ids of pings begin with this, followed by the session's identity.
pub(super) const PING_ID: &str = "waystation-ping-";

pub(super) struct Keepalive {
    heard: Instant,
    /// When the client was asked, while its answer is out.
    asked: Option<Instant>,
    /// When the wheel will wake the session; nothing is registered twice.
    next: Option<Instant>,
}

impl Keepalive {
    pub(super) fn new() -> Self {
        Self { heard: Instant::now(), asked: None, next: None }
    }

    /// Anything arrived: white space counts as well.
    pub(super) fn heard(&mut self) {
        self.heard = Instant::now();
        self.asked = None;
    }
}

impl Link {
    /// Asks or closes a silent client, and sees to it that this is looked at again.
    pub(super) fn keepalive(&mut self, conn: &mut Connection, cx: &mut Context<'_>) {
        let limits = &self.shared.limits;
        if limits.idle_ping.is_zero() {
            return;
        }
        let now = Instant::now();
        let state = &mut self.keepalive;
        if state.next.is_some_and(|next| now < next) {
            return;
        }
        let due = match state.asked {
            Some(asked) => asked + limits.ping_timeout,
            None => state.heard + limits.idle_ping,
        };
        let again = if now < due {
            due - now
        } else if state.asked.is_some() {
            let error = StreamError::new(StreamCondition::ConnectionTimeout).with_text("no answer to a ping");
            return self.finish_with(End::Error(error.into()));
        } else {
            state.asked = Some(now);
            // It says nothing more for now.
            self.recent = None;
            let id = format!("{PING_ID}{}", self.id.0);
            let host = self.jid.to_domain();
            let ping = Stanza::build(
                StanzaType::Iq(IqType::Get),
                Some(host),
                Some(self.jid.clone()),
                Some(&id),
                "<ping xmlns='urn:xmpp:ping'/>",
            );
            self.replies.push(ping);
            self.write(conn, cx);
            self.shared.limits.ping_timeout
        };
        let again = again.max(Duration::from_secs(1)).min(Duration::from_secs(500));
        self.keepalive.next = Some(now + again);
        wheel::wake_after(again, cx.waker().clone());
    }
}

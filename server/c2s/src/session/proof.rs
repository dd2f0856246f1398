//! Knowing what a client without stream management has received.
//!
//! What must hold: a record counts as delivered only when the client has shown that it read
//! past it, or has closed its stream properly; that the socket took the bytes shows nothing.
//! The proof is the answer to a request: a client answers stanzas in their order, if only with
//! an error (RFC 6120 8.2.3). It is asked for its features (XEP-0030), for there are clients in
//! use, go-sendxmpp among them, that end when they are asked something without a query. At most
//! a session's limit of stanzas waits for a proof; then nothing more is sent to it.

use std::collections::VecDeque;
use std::task::Context;
use std::time::{Duration, Instant};

use waystation_core::queue::RecordId;
use waystation_core::{IqType, Stanza, StanzaType};
use waystation_route::AccountMail;
use waystation_runtime::wheel;

use super::Link;
use super::keepalive::PING_ID;

/// Records after which the client is asked.
const ASK_AFTER: usize = 100;
/// The same in time.
const ASK_AFTER_TIME: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Proof {
    /// Records that the socket has taken and the client has not confirmed.
    flushed: VecDeque<RecordId>,
    since: Option<Instant>,
    /// The number of the ping that is out, and the last record before it.
    asked: Option<(u64, RecordId)>,
    pings: u64,
}

impl Proof {
    pub(super) fn flushed(&mut self, record: RecordId) {
        self.flushed.push_back(record);
    }

    /// The last record that the socket has taken.
    pub(super) fn last(&self) -> Option<RecordId> {
        self.flushed.back().copied()
    }
}

impl Link {
    /// True while the client owes more proofs than it may.
    pub(super) fn is_proof_overdue(&self) -> bool {
        self.proof.as_ref().is_some_and(|proof| proof.flushed.len() >= self.shared.limits.outbound_stanzas)
    }

    /// Asks the client to answer when there is something to prove.
    pub(super) fn ask_for_proof(&mut self, cx: &mut Context<'_>) {
        let Some(state) = &mut self.proof else { return };
        let (Some(last), None) = (state.last(), state.asked) else { return };
        let since = *state.since.get_or_insert_with(|| {
            wheel::wake_after(ASK_AFTER_TIME, cx.waker().clone());
            Instant::now()
        });
        // What waited for this session is asked about at once: a connection that does not last
        // would get it again and again.
        let first = state.pings == 0;
        if !first && state.flushed.len() < ASK_AFTER && since.elapsed() < ASK_AFTER_TIME {
            return;
        }
        state.pings += 1;
        state.asked = Some((state.pings, last));
        let id = format!("{PING_ID}{}-{}", self.id.0, state.pings);
        self.replies.push(Stanza::build(
            StanzaType::Iq(IqType::Get),
            Some(self.jid.to_domain()),
            Some(self.jid.clone()),
            Some(&id),
            "<query xmlns='http://jabber.org/protocol/disco#info'/>",
        ));
    }

    /// The client has answered a request of the server's.
    pub(super) fn pong(&mut self, id: &str) {
        let number = id.rsplit_once('-').and_then(|(_, number)| number.parse().ok());
        let Some(state) = &mut self.proof else { return };
        let Some((_, last)) = state.asked.filter(|(asked, _)| Some(*asked) == number) else { return };
        state.asked = None;
        state.since = None;
        while state.flushed.front().is_some_and(|record| *record <= last) {
            state.flushed.pop_front();
        }
        if state.flushed.is_empty() {
            state.flushed = VecDeque::new();
        }
        self.shared.router.control(&self.bare, AccountMail::Confirmed(self.id, last));
    }
}

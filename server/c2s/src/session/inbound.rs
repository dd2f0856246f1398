//! What a bound client sends (RFC 6120 8 and 10.3).
//!
//! What must hold: a stanza leaves here with the session's full JID as its sender, or the
//! stream ends (F1); stanzas are handed on in the order they came; every refused one is
//! answered by name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use waystation_core::read::{ReadError, Stamp};
use waystation_core::xml::{Event, Frame, Framer, Ns};
use waystation_core::{
    Condition, IqType, Jid, Kind, Stanza, StanzaError, StanzaType, StreamCondition, StreamError, spoof,
    storable,
};
use waystation_route::intake::Item;
use waystation_route::{AccountMail, OrderToken, Origin, Outbound, Passage, Receipt, Receipts, Routed};

use super::client_state::NS_CLIENT_STATE;
use super::keepalive::PING_ID;
use super::{End, Link};

const NS_SESSION: &str = "urn:ietf:params:xml:ns:xmpp-session";
const NS_BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";

/// Counts what was sent by way of the account's own route, and what of it is done. While both
/// differ, later stanzas go that way too, so that none overtakes (RFC 6120 10.1).
#[derive(Default)]
pub(crate) struct OrderGate {
    sent: u64,
    done: Arc<AtomicU64>,
}

impl OrderGate {
    fn is_open(&self) -> bool {
        self.sent == self.done.load(Ordering::Acquire)
    }

    fn token(&mut self) -> OrderToken {
        self.sent += 1;
        OrderToken::new(self.done.clone())
    }
}

/// A stanza that found no room; nothing is read until it does.
pub(super) struct Parked {
    pub(super) stanza: Stanza,
    passage: Option<Passage>,
    /// Set when it goes by way of the account's own route.
    outbound: Option<Outbound>,
}

impl Parked {
    /// The stanza is not handed on after all, and not counted: its number is free.
    pub(super) fn withdraw(self) -> Stanza {
        let receipt = self.passage.and_then(|p| p.receipt).or(self.outbound.and_then(|o| o.receipt));
        receipt.into_iter().for_each(Receipt::accept);
        self.stanza
    }
}

impl Link {
    /// Looks at input; how much of it was used. All of it, unless the session ends, a stanza had
    /// to be parked, or the client has to be slower.
    pub(super) fn feed(&mut self, framer: &mut Framer, input: &[u8]) -> usize {
        let mut rest = input;
        while self.end.is_none()
            && self.parked.is_none()
            && self.closing.is_none()
            && self.enabling.is_none()
            && self.slow_down.is_none()
        {
            match framer.next(&mut rest) {
                Ok(Event::NeedMore) => break,
                Ok(Event::Whitespace(_)) => {}
                Ok(Event::Stanza(frame)) => self.element(&frame),
                Ok(Event::Close) => {
                    self.close();
                    break;
                }
                Ok(Event::Open(_)) => {
                    self.stream_error(StreamError::new(StreamCondition::NotWellFormed));
                }
                Err(error) => self.stream_error(error.into()),
            }
        }
        input.len() - rest.len()
    }

    fn stream_error(&mut self, error: StreamError) {
        self.finish_with(End::Error(error.into()));
    }

    fn element(&mut self, frame: &Frame<'_>) {
        match frame.head.namespace {
            Ns::Client => {}
            Ns::StreamManagement => return self.stream_management_element(frame),
            // RFC 6120 4.9.1.1: a stream error of the client ends the stream as well.
            Ns::Streams if frame.name() == "error" => return self.finish_with(End::Closed),
            Ns::Other if frame.namespace() == NS_CLIENT_STATE && self.client_state_element(frame.name()) => {
                return;
            }
            _ => return self.stream_error(StreamError::new(StreamCondition::UnsupportedStanzaType)),
        }
        self.stanzas_in += 1;
        self.received += 1;
        if let Some(from) = frame.head.attr(frame.bytes, "from")
            && !self.may_send_as(&from)
        {
            return self.stream_error(StreamError::new(StreamCondition::InvalidFrom));
        }
        let known_to = self.recent.as_ref().and_then(|recent| recent.to());
        let stamp = Stamp { from: Some(&self.jid), lang: self.lang.as_deref(), known_to, ..Stamp::default() };
        match Stanza::read(frame, stamp) {
            Ok(stanza) => self.stanza(stanza),
            Err(ReadError::NotAStanza) => {
                self.stream_error(StreamError::new(StreamCondition::UnsupportedStanzaType));
            }
            Err(ReadError::Refused(refused)) => {
                if let Some(reply) = refused.reply {
                    self.replies.push(reply.readdressed(Some(self.bare.clone()), Some(self.jid.clone())));
                }
            }
            Err(ReadError::Malformed(error)) => self.stream_error(error.into()),
        }
    }

    /// RFC 6120 8.1.2.1: nothing, the full JID, or the bare JID; a resource of one's own is
    /// rewritten as well (F1).
    fn may_send_as(&self, from: &str) -> bool {
        from == self.jid.as_str() || Jid::parse(from).is_ok_and(|from| from.bare_eq(&self.jid))
    }

    fn stanza(&mut self, stanza: Stanza) {
        match stanza.kind() {
            // All presence concerns the account first: its state, its roster, whom it told.
            Kind::Presence => {
                self.slow_down = self.presence_rate.spend(&stanza);
                match self.presence_refusal(&stanza) {
                    Some(error) => self.replies.extend(stanza.error_reply(&error)),
                    None => self.outbound(stanza),
                }
            }
            Kind::Message => {
                // RFC 6120 10.3.1: without `to`, to oneself.
                let stanza = if stanza.to().is_none() { stanza.with_to(self.bare.clone()) } else { stanza };
                let router = &self.shared.router;
                let clean = spoof::cleaned(&stanza, |domain| router.is_local(domain));
                self.route(clean.unwrap_or(stanza));
            }
            Kind::Iq => self.iq(stanza),
        }
    }

    fn iq(&mut self, stanza: Stanza) {
        let to_server = stanza
            .to()
            .is_none_or(|to| to == &self.bare || (to.local().is_none() && to.domain() == self.jid.domain()));
        if to_server {
            match stanza.stanza_type() {
                StanzaType::Iq(IqType::Result | IqType::Error)
                    if stanza.raw_id().is_some_and(|id| id.starts_with(PING_ID)) =>
                {
                    // An answer to a ping, also when it is an error: the client lives, and has
                    // read what came before the ping.
                    if let Some(id) = stanza.id() {
                        self.pong(&id);
                    }
                    return;
                }
                StanzaType::Iq(IqType::Set) => match stanza.child() {
                    // RFC 3921 3; RFC 6121 dropped it, older clients still ask (no-op).
                    Some(("session", NS_SESSION)) => return self.replies.push(stanza.result(None)),
                    // RFC 6120 7.1: one resource a stream.
                    Some(("bind", NS_BIND)) => {
                        let error =
                            StanzaError::new(Condition::NotAllowed).with_text("a resource is bound already");
                        self.replies.extend(stanza.error_reply(&error));
                        return;
                    }
                    _ => {}
                },
                _ => {}
            }
        }
        // RFC 6120 10.3.3: without `to`, the server answers for the account.
        let stanza = if stanza.to().is_none() { stanza.with_to(self.bare.clone()) } else { stanza };
        self.route(stanza);
    }

    /// To the recipient, unless something of this session is still on its way through the
    /// account's own route.
    fn route(&mut self, stanza: Stanza) {
        let own = stanza.to().is_some_and(|to| to == &self.bare);
        if !own && !self.order.is_open() {
            return self.outbound(stanza);
        }
        let durable = storable::durable(&stanza);
        let behind = !self.is_clear();
        if durable && let Some(management) = &mut self.management {
            management.mark_comes(self.received);
        }
        let receipt = (durable || behind).then(|| self.receipts.issue(self.received));
        let stream = self.management.as_ref().and_then(|management| management.mark());
        // The account's route says so, in the turn in which another session wants copies or goes.
        let alone = self.inlet.hint();
        let passage = Passage { receipt, stream, behind, alone, ..Passage::default() };
        let router = &self.shared.router;
        let origin = Origin::Session(self.id);
        let routed = router.route_with(stanza, origin, passage, Some(&mut self.recent));
        if let Routed::Busy(stanza, mut passage) = routed {
            // While it waits it is not accepted.
            passage.receipt.get_or_insert_with(|| self.receipts.issue(self.received));
            self.park(Parked { stanza, passage: Some(passage), outbound: None });
        }
    }

    /// By way of the account's own route.
    fn outbound(&mut self, stanza: Stanza) {
        let behind = !self.is_clear();
        let receipt = Some(self.receipts.issue(self.received));
        let stream = self.management.as_ref().and_then(|management| management.mark());
        if storable::durable(&stanza)
            && stanza.kind() == Kind::Message
            && let Some(management) = &mut self.management
        {
            management.mark_comes(self.received);
        }
        let outbound = Outbound { token: self.order.token(), receipt, stream };
        self.send_outbound(stanza, outbound, behind);
    }

    fn send_outbound(&mut self, stanza: Stanza, outbound: Outbound, behind: bool) {
        let router = &self.shared.router;
        let mail = AccountMail::Outbound(self.id, stanza, outbound);
        if behind {
            if !router.intake().is_full() {
                return router.intake().offer(Item::pass(self.bare.clone(), mail));
            }
        } else {
            match router.to_account(&self.bare, mail) {
                Ok(()) => return,
                Err(AccountMail::Outbound(_, stanza, outbound)) => {
                    self.park(Parked { stanza, passage: None, outbound: Some(outbound) });
                }
                Err(_) => {}
            }
            return;
        }
        if let AccountMail::Outbound(_, stanza, outbound) = mail {
            self.park(Parked { stanza, passage: None, outbound: Some(outbound) });
        }
    }

    /// True when nothing of this session is on its way to the log.
    pub(super) fn is_clear(&self) -> bool {
        self.receipts.is_clear() && self.before.as_ref().is_none_or(Receipts::is_clear)
    }

    fn park(&mut self, parked: Parked) {
        self.parked = Some(Box::new(parked));
    }

    /// Tries a parked stanza again; false when it is still parked.
    pub(super) fn retry_parked(&mut self) -> bool {
        match self.parked.take().map(|parked| *parked) {
            None => {}
            Some(Parked { stanza, outbound: Some(outbound), .. }) => {
                // Its own receipt is open, which says nothing about those before it.
                self.send_outbound(stanza, outbound, true);
            }
            Some(Parked { stanza, passage, .. }) => {
                let passage = passage.unwrap_or_default();
                let router = &self.shared.router;
                if let Routed::Busy(stanza, passage) = router.route(stanza, Origin::Session(self.id), passage)
                {
                    self.park(Parked { stanza, passage: Some(passage), outbound: None });
                }
            }
        }
        self.parked.is_none()
    }
}

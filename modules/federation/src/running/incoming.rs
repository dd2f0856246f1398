//! What a peer sends on a running stream (RFC 6120 8.1 and 10.3).
//!
//! What must hold: a stanza leaves here only when its sender's domain was proven on this stream for the
//! domain that it is addressed to, or the stream ends (SECURITY F3); without what only we may vouch for (F6);
//! stanzas are handed on in the order they came; every refused one is answered by name.

use waystation_core::read::{ReadError, Stamp};
use waystation_core::xml::{Event, Frame, Framer, Ns};
use waystation_core::{Kind, Stanza, StreamCondition, StreamError, spoof, storable};
use waystation_route::{Origin, Passage, Routed};

use super::{End, Ground, Link};
use crate::addressing::check_addresses;
use crate::stream::describe_error;

impl Link {
    /// Looks at input; how much of it was used. All of it, unless the stream ends or a stanza had to be
    /// parked.
    pub(super) fn feed(&mut self, framer: &mut Framer, input: &[u8]) -> usize {
        let mut rest = input;
        while self.end.is_none() && self.parked.is_none() && !self.holds_input() {
            match framer.next(&mut rest) {
                Ok(Event::NeedMore) => break,
                Ok(Event::Whitespace(_)) => {}
                Ok(Event::Stanza(frame)) => self.element(&frame),
                Ok(Event::Close) => self.peer_ends(),
                Ok(Event::Open(_)) => self.stream_error(StreamCondition::NotWellFormed.into()),
                Err(error) => self.stream_error(error.into()),
            }
        }
        input.len() - rest.len()
    }

    pub(super) fn stream_error(&mut self, error: StreamError) {
        self.finish_with(End::Error(error.into()));
    }

    fn element(&mut self, frame: &Frame<'_>) {
        match frame.head.namespace {
            Ns::Server => return self.stanza(frame),
            Ns::StreamManagement => return self.stream_management_element(frame),
            _ => {}
        }
        let element = match frame.element() {
            Ok(element) => element,
            Err(error) => return self.stream_error(error.into()),
        };
        // RFC 6120 4.9.1.1: a stream error of the peer ends the stream as well.
        if frame.head.namespace == Ns::Streams && frame.name() == "error" {
            return self.finish_with(End::Peer(describe_error(&element)));
        }
        let mut ground = Ground { proven: &mut self.proven, say: &mut self.elements };
        if let Err(error) = self.extension.element(&element, &mut ground) {
            self.stream_error(error);
        }
    }

    fn stanza(&mut self, frame: &Frame<'_>) {
        let addressed = match check_addresses(frame, &self.proven) {
            Ok(addressed) => addressed,
            Err(error) => return self.stream_error(error),
        };
        self.stanzas_in += 1;
        self.received += 1;
        self.carried = self.heard;
        let (from, to) = (addressed.from, addressed.to);
        let stamp = Stamp { from: Some(&from), known_to: Some(&to), ..Stamp::default() };
        match Stanza::read(frame, stamp) {
            Ok(stanza) if self.federation.proofs.take(&stanza) => {}
            Ok(stanza) => {
                let router = &self.federation.router;
                let clean = match stanza.kind() {
                    Kind::Message => spoof::cleaned(&stanza, |domain| router.is_local(domain)),
                    Kind::Presence | Kind::Iq => None,
                };
                self.route(clean.unwrap_or(stanza));
            }
            Err(ReadError::NotAStanza) => self.stream_error(StreamCondition::UnsupportedStanzaType.into()),
            Err(ReadError::Refused(refused)) => {
                // By the way of all stanzas to its domain: this stream may carry none back.
                if let Some(reply) = refused.reply {
                    self.federation.router.route_own(reply.readdressed(Some(to), Some(from)));
                }
            }
            Err(ReadError::Malformed(error)) => self.stream_error(error.into()),
        }
    }

    fn route(&mut self, stanza: Stanza) {
        let behind =
            !self.receipts.is_clear() || self.before.as_ref().is_some_and(|before| !before.is_clear());
        let receipt = (storable::durable(&stanza) || behind).then(|| self.receipts.issue(self.received));
        let passage = Passage { receipt, behind, ..Passage::default() };
        let router = &self.federation.router;
        if let Routed::Busy(stanza, mut passage) =
            router.route_with(stanza, Origin::Remote, passage, Some(&mut self.recent))
        {
            // While it waits it is not accepted.
            passage.receipt.get_or_insert_with(|| self.receipts.issue(self.received));
            self.parked = Some((stanza, passage));
        }
    }

    /// Tries a parked stanza again; false when it is still parked.
    pub(super) fn retry_parked(&mut self) -> bool {
        if let Some((stanza, passage)) = self.parked.take()
            && let Routed::Busy(stanza, passage) =
                self.federation.router.route(stanza, Origin::Remote, passage)
        {
            self.parked = Some((stanza, passage));
        }
        self.parked.is_none()
    }
}

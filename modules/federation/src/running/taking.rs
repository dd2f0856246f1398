//! Stream management on streams that peers opened (XEP-0198 3 and 5): it begins when the peer asks for it, anew
//! or with a stream that it opened before.
//!
//! What must hold: the number that is said of a stream before is final, and all that it counts is safe; a
//! stream that another one goes on with takes nothing more, and ends.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use waystation_core::{Condition, Element, StreamCondition, StreamError};
use waystation_route::remote::Pair;
use waystation_route::{Receipt, Receipts};

use super::Link;
use super::management::{Management, failed};
use crate::resumable::Claim;
use crate::stream::NS_STREAM_MANAGEMENT;

/// How long what came before a connection broke may take to be stored.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// A stream that the peer opened before is looked for.
pub(super) struct Taking {
    id: Box<str>,
    h: u32,
    owner: Arc<Pair>,
    count: Pin<Box<dyn Future<Output = Option<u32>>>>,
}

impl Link {
    /// The peer opened the stream, and acknowledgements have not begun on it (section 3: at most once).
    pub(super) fn may_begin(&self) -> bool {
        !self.initiated && self.management.is_none() && self.taking.is_none()
    }

    /// Begins on a stream that the peer opened.
    pub(super) fn enable(&mut self, resume: bool) {
        let owner = self.proven.iter().next().filter(|_| resume).cloned();
        let claim = owner.and_then(|owner| self.federation.resumable.claim(owner));
        let mut enabled = Element::new("enabled", NS_STREAM_MANAGEMENT);
        if let Some(claim) = &claim {
            enabled = enabled
                .with_attr("id", claim.id())
                .with_attr("resume", "true")
                .with_attr("max", self.federation.resumable.keep().as_secs().to_string());
        }
        // Said before the first stanza that counts.
        self.say(&enabled);
        self.begin(0, Management::of_peer(claim, 0, 0));
    }

    /// From here on stanzas are counted: the peer's from `received`.
    fn begin(&mut self, received: u64, management: Management) {
        self.before = Some(std::mem::take(&mut self.receipts));
        self.received = received;
        self.management = Some(Box::new(management));
        self.info.acknowledges = true;
        // The claim is listened to from the next turn on.
        self.again = true;
        for outgoing in self.outgoing.iter_mut().flatten() {
            outgoing.begin_acknowledgements();
        }
    }

    /// The peer wants to go on with a stream that it opened before.
    pub(super) fn look_for(&mut self, id: &str, h: u32) {
        let Some(owner) = self.proven.iter().next().cloned() else {
            return self.say(&failed(Condition::ItemNotFound));
        };
        let (federation, id) = (self.federation.clone(), Box::<str>::from(id));
        let count = Box::pin({
            let (id, owner) = (id.clone(), owner.clone());
            async move { federation.resumable.take(&id, &owner).await }
        });
        self.taking = Some(Box::new(Taking { id, h, owner, count }));
        // Nothing looks at it before the next turn, which nobody else might begin.
        self.again = true;
    }

    /// Goes on with a stream of the peer's when its number is known, and gives this one's to another.
    pub(super) fn take_over(&mut self, cx: &mut Context<'_>) {
        if self.end.is_some() {
            return;
        }
        if let Some(taking) = &mut self.taking
            && let Poll::Ready(count) = taking.count.as_mut().poll(cx)
            && let Some(taking) = self.taking.take()
        {
            let Taking { id, h, owner, .. } = *taking;
            match count {
                None => self.say(&failed(Condition::ItemNotFound)),
                Some(count) => {
                    let resumed = Element::new("resumed", NS_STREAM_MANAGEMENT)
                        .with_attr("h", count.to_string())
                        .with_attr("previd", &*id);
                    self.say(&resumed);
                    let claim = self.federation.resumable.claim_again(&id, owner);
                    let received = u64::from(count);
                    self.begin(received, Management::of_peer(claim, u64::from(h), received));
                }
            }
        }
        let Some(management) = &mut self.management else { return };
        if management.yielding.is_none()
            && let Some(claim) = &mut management.claim
            && let Poll::Ready(tell) = claim.poll_wanted(cx)
        {
            management.yielding = Some(tell);
            if let Some((_, passage)) = self.parked.take() {
                // Not accepted and not counted: the peer sends it again.
                self.received -= 1;
                passage.receipt.into_iter().for_each(Receipt::accept);
            }
        }
        if management.yielding.is_some()
            && self.receipts.accepted(self.received, true, cx) == self.received
            && let Some(tell) = management.yielding.take()
        {
            // If it has gone meanwhile, the peer begins anew.
            let _ = tell.send(self.received as u32);
            // XEP-0198 5: the old stream is told.
            let error =
                StreamError::new(StreamCondition::Conflict).with_text("resumed on another connection");
            self.stream_error(error);
        }
    }
}

/// Keeps the number of a stream that broke once all that was received on it is safe; the peer begins anew
/// when that cannot be.
pub(super) async fn keep(claim: Claim, received: u64, receipts: Receipts) {
    let settled = poll_fn(|cx| {
        let accepted = receipts.accepted(received, true, cx);
        let failed = receipts.has_failed();
        if failed || accepted == received { Poll::Ready(!failed) } else { Poll::Pending }
    });
    if tokio::time::timeout(SETTLE_DEADLINE, settled).await == Ok(true) {
        claim.keep(received as u32);
    }
}

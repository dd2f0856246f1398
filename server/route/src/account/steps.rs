//! The effects of the presence logic, in their order, across commits.
//!
//! What must hold: a step runs only when all earlier ones are done; what a commit was to
//! announce is announced only after it; when a commit fails, its requester is told and the
//! logic's memory, which is ahead of the store, is read anew.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use waystation_core::account::{Effect, Effects, Persist, Step};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{SessionId, Stanza, StanzaError, StreamCondition, StreamError};
use waystation_runtime::Offer;

use super::{AccountRoute, State};
use crate::mail::{OrderToken, SessionMail};

#[expect(
    clippy::large_enum_variant,
    reason = "most steps are the large kind; a box would cost an allocation each"
)]
pub(super) enum QueuedStep {
    Step(Step),
    /// Everything before it is done when this is dropped.
    Token(OrderToken),
    /// The account's removal is complete.
    Removed(oneshot::Sender<()>),
}

pub(super) struct Persisting {
    commit: BoxFuture<'static, Result<(), StorageError>>,
    then: Vec<Effect>,
    request: Option<Stanza>,
}

impl AccountRoute {
    pub(super) fn enqueue(&mut self, effects: Effects) {
        self.steps.extend(effects.steps.into_iter().map(QueuedStep::Step));
        self.run_steps();
    }

    pub(super) fn enqueue_token(&mut self, token: OrderToken) {
        // With nothing before it the token is done at once.
        if !self.steps.is_empty() || self.persisting.is_some() {
            self.steps.push_back(QueuedStep::Token(token));
        }
    }

    pub(super) fn enqueue_removed(&mut self, reply: oneshot::Sender<()>) {
        self.steps.push_back(QueuedStep::Removed(reply));
        self.run_steps();
    }

    fn run_steps(&mut self) {
        while self.persisting.is_none()
            && let Some(step) = self.steps.pop_front()
        {
            match step {
                QueuedStep::Step(Step::Now(effect)) => self.apply(effect),
                QueuedStep::Step(Step::Persist(persist)) => {
                    let commit = self.router.storage.commit(persist.batch);
                    self.persisting =
                        Some(Persisting { commit, then: persist.then, request: persist.request });
                }
                QueuedStep::Token(token) => drop(token),
                QueuedStep::Removed(reply) => {
                    // What was loaded is the state of an account that is no more.
                    self.state = Self::load(&self.router, &self.account);
                    // The caller may have stopped waiting.
                    let _ = reply.send(());
                }
            }
        }
    }

    /// Polls the commit under way; true when something was done.
    pub(super) fn poll_steps(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Some(persisting) = &mut self.persisting {
            let Poll::Ready(result) = persisting.commit.as_mut().poll(cx) else { break };
            progress = true;
            let Some(done) = self.persisting.take() else { break };
            match result {
                Ok(()) => {
                    for effect in done.then {
                        self.apply(effect);
                    }
                }
                Err(error) => self.commit_failed(&error, done.request),
            }
            self.run_steps();
        }
        progress
    }

    fn commit_failed(&mut self, error: &StorageError, request: Option<Stanza>) {
        tracing::error!(account = %self.account, %error, "a change of the roster could not be stored");
        let told = |request: Stanza| {
            let error = match error {
                StorageError::Full => StanzaError::from(StorageError::Full),
                _ => StanzaError::from(StorageError::Closed),
            };
            self.router.refuse(&request, &error);
        };
        request.into_iter().for_each(told);
        let reload = matches!(&self.state, State::Live(presence) if presence.must_reload_after_failure());
        if !reload {
            return;
        }
        // What is queued was worked out from a state that was never stored: it may tell
        // someone what they may not know, and its commits would store that state after all.
        let (kept, stale): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut self.steps)
            .into_iter()
            .partition(|step| matches!(step, QueuedStep::Removed(_)));
        for step in stale {
            if let QueuedStep::Step(Step::Persist(Persist { request: Some(request), .. })) = step {
                told(request);
            }
        }
        self.steps = kept;
        self.state = Self::load(&self.router, &self.account);
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Route(stanza) => self.router.route_own(stanza),
            Effect::ToSession(id, stanza) => {
                let Some(handle) = self.handles.iter().find(|h| h.id == id) else { return };
                match handle.outlet.offer(SessionMail::Stanza(stanza)) {
                    Offer::Accepted => {}
                    Offer::Full(SessionMail::Stanza(stanza)) => self.overflow(id, &stanza),
                    // It has ended; its unbind is on the way.
                    Offer::Full(SessionMail::Close(_)) | Offer::Gone(_) => {}
                }
            }
        }
    }

    /// A session's client reads too slowly. Presence and the like is dropped, for newer
    /// presence will tell; anything else that could not be handed over would be lost
    /// unnoticed, so the session is closed and the client comes back to a fresh state.
    /// True when the session was closed.
    pub(super) fn overflow(&mut self, id: SessionId, stanza: &Stanza) {
        if super::handle::is_ephemeral(stanza) {
            tracing::debug!(session = ?id, "an ephemeral stanza was dropped: the client does not read");
            return;
        }
        let error = StreamError::new(StreamCondition::PolicyViolation)
            .with_text("the client does not read what it is sent");
        self.close_session(id, error);
    }
}

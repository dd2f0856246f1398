//! The effects of the presence logic, in their order, across commits.
//!
//! What must hold: a step runs only when all earlier ones are done; what a commit was to
//! announce is announced only after it; when a commit fails, its requester is told and the
//! logic's memory, which is ahead of the store, is read anew.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use waystation_core::account::{Effect, Effects, Persist, Step};
use waystation_core::queue::RecordId;
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Stanza, StanzaError, storable};

use super::{AccountRoute, State};
use crate::intake::Item;
use crate::mail::Outbound;
use crate::router::{Origin, Passage};

pub(super) enum QueuedStep {
    Step(Step),
    /// Everything before it is done.
    Token(Outbound),
    /// A record whose effects are all stored.
    Done(RecordId),
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
        for (id, stanza) in &effects.at_once {
            self.give(*id, stanza, None);
        }
        self.steps.extend(effects.steps.into_iter().map(QueuedStep::Step));
        self.run_steps();
    }

    /// Queues what follows the effects so far; done at once when none is left.
    pub(super) fn enqueue_step(&mut self, step: QueuedStep) {
        self.steps.push_back(step);
        self.run_steps();
    }

    /// Routes a stanza of the account's, behind those that are on their way to the log.
    pub(super) fn route_own(&mut self, stanza: Stanza) {
        let behind = !self.receipts.is_clear();
        if !behind && !storable::durable(&stanza) {
            return self.router.route_own(stanza);
        }
        self.routed += 1;
        let receipt = Some(self.receipts.issue(self.routed));
        self.router.route_in_any_case(
            stanza,
            Origin::Server,
            Passage { receipt, behind, ..Passage::default() },
        );
    }

    /// Answers a stanza with an error, if it may be answered, behind what was answered before.
    pub(super) fn refuse(&mut self, stanza: &Stanza, error: &StanzaError) {
        if let Some(reply) = stanza.error_reply(error) {
            self.route_own(reply);
        }
    }

    /// All that a stanza of the account's own caused was handed on.
    fn passed(&self, outbound: Outbound) {
        let Outbound { token, receipt, .. } = outbound;
        drop(token);
        if let Some(receipt) = receipt {
            // What it caused may be on its way into the log; it is accepted behind that.
            self.router.intake.offer(Item::After(receipt));
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
                    let (then, request) = (persist.then, persist.request);
                    self.persisting = Some(Box::new(Persisting { commit, then, request }));
                }
                QueuedStep::Token(outbound) => self.passed(outbound),
                QueuedStep::Done(id) => self.done(id),
                QueuedStep::Removed(reply) => {
                    self.purge();
                    // What was loaded is the state of an account that is no more.
                    self.state = super::load::again(&self.router, &self.account);
                    // The caller may have stopped waiting.
                    let _ = reply.send(());
                }
            }
        }
    }

    /// What waits for an account that is no more concerns nobody.
    fn purge(&self) {
        let purge = self.router.intake.backend().purge(self.queue.clone());
        let account = self.account.clone();
        actix_rt::spawn(async move {
            if let Err(error) = purge.await {
                tracing::error!(%account, %error, "the messages of a removed account were not removed");
            }
        });
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
        let router = self.router.clone();
        let told = |request: Stanza| {
            let error = match error {
                StorageError::Full => StanzaError::from(StorageError::Full),
                _ => StanzaError::from(StorageError::Closed),
            };
            router.refuse(&request, &error);
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
            match step {
                QueuedStep::Step(Step::Persist(Persist { request: Some(request), .. })) => told(request),
                // Its sender was told what became of it.
                QueuedStep::Token(outbound) => self.passed(outbound),
                // A record stays in the queue, and is handled again when the route is loaded anew.
                QueuedStep::Done(_) | QueuedStep::Step(_) | QueuedStep::Removed(_) => {}
            }
        }
        self.steps = kept;
        self.state = super::load::again(&self.router, &self.account);
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Route(stanza) => self.route_own(stanza),
            Effect::ToSession(id, stanza) => {
                self.give(id, &stanza, None);
            }
        }
    }
}

//! The account's offline messages (XEP-0160): storing them, and handing them over in order.
//!
//! What must hold: while stored messages are being handed over, new ones join the store
//! behind them, so that order is kept; a message leaves the store only after a session has
//! taken it over, and comes back from a session that could not write it.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use waystation_core::account::{OfflineError, OfflineMessage};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Condition, SessionId, Stanza, StanzaError};
use waystation_runtime::{Offer, wheel};

use super::AccountRoute;
use crate::mail::SessionMail;

/// Messages read from the store at once.
const PAGE: usize = 100;

/// A message that was on its way to the store.
pub(super) struct Stored {
    stanza: Stanza,
    result: Result<(), OfflineError>,
}

pub(super) struct Drain {
    session: SessionId,
    stage: Stage,
}

enum Stage {
    Start,
    Loading(BoxFuture<'static, Result<Vec<OfflineMessage>, StorageError>>),
    Removing(BoxFuture<'static, Result<(), StorageError>>),
    /// The session has no credit; tried again after a second.
    Paused(std::time::Instant),
}

impl AccountRoute {
    /// Stores a message for later.
    pub(super) fn store(&mut self, stanza: Stanza) {
        let future = self.router.offline.store(self.account.clone(), stanza.clone());
        self.storing.push(Box::pin(async move { Stored { stanza, result: future.await } }));
    }

    pub(super) fn stored(&mut self, stored: Stored) {
        let error: StanzaError = match stored.result {
            Ok(()) => return,
            // XEP-0160 3: the sender is told with service-unavailable; the delivery contract
            // asks for resource-constraint, which says that a retry may succeed.
            Err(OfflineError::Full) => Condition::ResourceConstraint.into(),
            Err(OfflineError::Storage(error)) => {
                tracing::error!(account = %self.account, %error, "an offline message could not be stored");
                error.into()
            }
        };
        self.router.refuse(&stored.stanza, &error);
    }

    /// True while stored messages are being handed over.
    pub(super) fn is_draining(&self) -> bool {
        self.drain.is_some()
    }

    /// Begins to hand stored messages to a session that has become able to receive them.
    pub(super) fn start_drain(&mut self, session: SessionId) {
        if self.drain.is_none() {
            self.drain = Some(Drain { session, stage: Stage::Start });
        }
    }

    /// True when something was done.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        while let Some(drain) = &mut self.drain {
            let able =
                |id: SessionId| self.sessions.get(id).is_some_and(|s| s.is_available() && s.priority >= 0);
            if !able(drain.session) {
                // Another session goes on where this one ended, if there is one.
                match self.sessions.available().find(|s| s.priority >= 0) {
                    Some(other) => drain.session = other.id,
                    None => {
                        if let Stage::Removing(_) = drain.stage {
                            // What was taken over must not be handed over again.
                        } else {
                            self.drain = None;
                            return true;
                        }
                    }
                }
            }
            match &mut drain.stage {
                Stage::Start => {
                    drain.stage = Stage::Loading(self.router.offline.load(self.account.clone(), None, PAGE));
                }
                Stage::Paused(until) => {
                    let left = until.saturating_duration_since(std::time::Instant::now());
                    if !left.is_zero() {
                        wheel::wake_after(left, cx.waker().clone());
                        return progress;
                    }
                    drain.stage = Stage::Start;
                }
                Stage::Removing(removing) => {
                    let Poll::Ready(result) = removing.as_mut().poll(cx) else { return progress };
                    if let Err(error) = result {
                        tracing::error!(account = %self.account, %error, "delivered offline messages were not removed");
                        self.drain = None;
                        return true;
                    }
                    drain.stage = Stage::Start;
                }
                Stage::Loading(loading) => {
                    let Poll::Ready(result) = loading.as_mut().poll(cx) else { return progress };
                    match result {
                        Err(error) => {
                            tracing::error!(account = %self.account, %error, "offline messages could not be read");
                            self.drain = None;
                        }
                        Ok(page) if page.is_empty() => {
                            if self.storing.is_empty() {
                                self.drain = None;
                            } else {
                                // Those on their way to the store come first; polled with
                                // the rest of the route's work, they wake it when stored.
                                drain.stage = Stage::Start;
                                return progress;
                            }
                        }
                        Ok(page) => self.hand_over(page),
                    }
                }
            }
            progress = true;
        }
        progress
    }

    fn hand_over(&mut self, page: Vec<OfflineMessage>) {
        let Some(drain) = &mut self.drain else { return };
        let Some(handle) = self.handles.iter().find(|h| h.id == drain.session) else {
            drain.stage = Stage::Start;
            return;
        };
        let mut taken: Vec<Bytes> = Vec::new();
        for message in page {
            match handle.outlet.offer(SessionMail::Stanza(message.stanza)) {
                Offer::Accepted => taken.push(message.key),
                Offer::Full(_) | Offer::Gone(_) => break,
            }
        }
        drain.stage = if taken.is_empty() {
            Stage::Paused(std::time::Instant::now() + Duration::from_secs(1))
        } else {
            Stage::Removing(self.router.offline.remove(self.account.clone(), taken))
        };
    }
}

//! The route of one account: an actor that owns the account's sessions, presence and spool.
//!
//! What must hold: mail is handled one by one in the order it came, except that nothing is
//! handled while the account's state is loading, and that while a closing session still owes
//! its unwritten stanzas only those are; so an older message is never overtaken by a newer
//! one. Mail keeps its credit until it is handled, so a route that waits is bounded. The
//! actor ends only when it owes nothing to anyone.

mod handle;
mod spool;
mod steps;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use actix::fut::ActorFuture;
use actix::{Actor, ActorContext, AsyncContext};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use waystation_core::account::AccountPresence;
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Condition, Jid, SessionId, Sessions, StanzaError, StreamCondition, StreamError};
use waystation_runtime::{Inlet, Weigh, after_others, wheel};

use crate::mail::{AccountMail, BindError, SessionMail, SessionOutlet};
use crate::router::Router;
use spool::{Drain, Stored};
use steps::{Persisting, QueuedStep};

/// Mail handled in one turn. Senders on other threads may fill the inlet as fast as it is emptied,
/// and then a turn without a limit would not end.
const TURN_BUDGET: usize = 128;

type Loaded = Option<Box<dyn AccountPresence>>;

enum State {
    /// The account's existence and roster are being read.
    Loading(BoxFuture<'static, Result<Loaded, StorageError>>),
    /// The account exists.
    Live(Box<dyn AccountPresence>),
    /// There is no such account.
    Nobody,
}

/// What the route keeps of a session besides [`waystation_core::account::LiveSession`].
struct Handle {
    id: SessionId,
    outlet: SessionOutlet,
    peer: SocketAddr,
    security: &'static str,
    since: SystemTime,
}

/// The actor.
pub(crate) struct AccountRoute {
    router: Arc<Router>,
    account: Jid,
    inlet: Inlet<AccountMail>,
    state: State,
    sessions: Sessions,
    handles: Vec<Handle>,
    /// Mail taken from the inlet and not yet handled; its credit is still out.
    held: VecDeque<AccountMail>,
    /// Effects of the presence logic in their order.
    steps: VecDeque<QueuedStep>,
    persisting: Option<Persisting>,
    /// Offline messages on their way to the store.
    storing: FuturesUnordered<BoxFuture<'static, Stored>>,
    drain: Option<Drain>,
    /// Sessions that were told to close and still owe what they did not write.
    leaving: Vec<SessionId>,
    idle_since: Option<Instant>,
}

impl Actor for AccountRoute {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Pump);
    }
}

/// The actor's only spawned item: all its work is done in its poll, so that a wake costs one.
struct Pump;

impl ActorFuture<AccountRoute> for Pump {
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        route: &mut AccountRoute,
        ctx: &mut actix::Context<AccountRoute>,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        if route.turn(task).is_ready() {
            ctx.stop();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl AccountRoute {
    /// Starts the route of an account on the current arbiter.
    pub(crate) fn start(router: Arc<Router>, account: Jid, inlet: Inlet<AccountMail>) {
        let state = Self::load(&router, &account);
        drop(Self::create(|_| Self {
            router,
            account,
            inlet,
            state,
            sessions: Sessions::default(),
            handles: Vec::new(),
            held: VecDeque::new(),
            steps: VecDeque::new(),
            persisting: None,
            storing: FuturesUnordered::new(),
            drain: None,
            leaving: Vec::new(),
            idle_since: None,
        }));
    }

    fn load(router: &Arc<Router>, account: &Jid) -> State {
        let (router, account) = (router.clone(), account.clone());
        State::Loading(Box::pin(async move {
            if !router.accounts.exists(account.clone()).await? {
                return Ok(None);
            }
            router.presence.load(account).await.map(Some)
        }))
    }

    /// Does what can be done now, within its budget; ready when the route has ended.
    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut budget = TURN_BUDGET;
        loop {
            let mut progress = false;
            if let State::Loading(loading) = &mut self.state
                && let Poll::Ready(loaded) = loading.as_mut().poll(cx)
            {
                progress = true;
                match loaded {
                    Ok(Some(presence)) => self.state = State::Live(presence),
                    Ok(None) => self.state = State::Nobody,
                    Err(error) => {
                        self.fail(&error);
                        return Poll::Ready(());
                    }
                }
            }
            progress |= self.poll_steps(cx);
            while let Poll::Ready(Some(stored)) = self.storing.poll_next_unpin(cx) {
                self.stored(stored);
                progress = true;
            }
            progress |= self.poll_drain(cx);
            while let Poll::Ready(mails) = self.inlet.poll_take(cx) {
                self.held.extend(mails);
                progress = true;
            }
            while let Some(index) = self.next_mail() {
                if budget == 0 {
                    after_others(cx);
                    return Poll::Pending;
                }
                budget -= 1;
                progress = true;
                let Some(mail) = self.held.remove(index) else { break };
                let weight = mail.weight();
                match self.handle(mail) {
                    // Its turn comes again when what stands in its way is gone.
                    Some(again) => self.held.push_front(again),
                    None => self.inlet.release(weight, 1),
                }
            }
            if !progress {
                self.free_room();
                return self.rest(cx);
            }
        }
    }

    /// Room that a burst needed is not kept: an account that rests has nothing waiting, and
    /// this is two kilobytes of it.
    fn free_room(&mut self) {
        if self.held.is_empty() {
            self.held = VecDeque::new();
        }
        if self.steps.is_empty() {
            self.steps = VecDeque::new();
        }
    }

    /// Which held mail may be handled now.
    fn next_mail(&self) -> Option<usize> {
        match self.state {
            State::Loading(_) => None,
            _ if self.leaving.is_empty() => (!self.held.is_empty()).then_some(0),
            _ => self
                .held
                .iter()
                .position(|mail| matches!(mail, AccountMail::Unbind(id, _) if self.leaving.contains(id))),
        }
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty()
            && self.leaving.is_empty()
            && self.held.is_empty()
            && self.steps.is_empty()
            && self.persisting.is_none()
            && self.storing.is_empty()
            && self.drain.is_none()
            && !matches!(self.state, State::Loading(_))
    }

    /// Ends the route when it has been idle for long enough.
    fn rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.is_idle() {
            self.no_longer_idle();
            return Poll::Pending;
        }
        let config = &self.router.config;
        let since = match self.idle_since {
            Some(since) => since,
            None => {
                let now = Instant::now();
                let lingering = self.router.lingering.fetch_add(1, Ordering::Relaxed);
                self.idle_since = Some(now);
                // A route of nobody is not worth keeping; too many are not worth their memory.
                if matches!(self.state, State::Nobody) || lingering >= config.max_lingering {
                    now.checked_sub(config.linger).unwrap_or(now)
                } else {
                    now
                }
            }
        };
        let left =
            if self.server_stops() { Duration::ZERO } else { config.linger.saturating_sub(since.elapsed()) };
        if left.is_zero() && self.inlet.close_if_idle() {
            return Poll::Ready(());
        }
        wheel::wake_after(left.max(Duration::from_secs(1)), cx.waker().clone());
        Poll::Pending
    }

    fn server_stops(&self) -> bool {
        self.router.stopping.load(Ordering::Acquire)
    }

    fn no_longer_idle(&mut self) {
        if self.idle_since.take().is_some() {
            self.router.lingering.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// The account's state cannot be read: everyone who waits for it is told.
    fn fail(&mut self, error: &StorageError) {
        tracing::error!(account = %self.account, %error, "the account's state could not be loaded");
        let mut mails = std::mem::take(&mut self.held);
        mails.extend(self.inlet.close());
        for mail in mails {
            match mail {
                AccountMail::Bind(_, reply) => {
                    // The negotiation may have ended meanwhile.
                    let _ = reply.send(Err(BindError::Unavailable));
                }
                AccountMail::Inbound(stanza, _) | AccountMail::Outbound(_, stanza, _) => {
                    let error = StanzaError::new(Condition::InternalServerError)
                        .with_type(waystation_core::ErrorType::Wait);
                    self.router.refuse(&stanza, &error);
                }
                AccountMail::Unbind(_, leftovers) => {
                    for stanza in leftovers {
                        self.router.refuse(&stanza, &Condition::InternalServerError.into());
                    }
                }
                AccountMail::ToSession(_)
                | AccountMail::Close(..)
                | AccountMail::Describe(_)
                | AccountMail::Remove(..) => {}
            }
        }
    }
}

impl Drop for AccountRoute {
    /// Also runs when a panic ends the actor: no entry of a dead route stays behind, and its
    /// sessions are told.
    fn drop(&mut self) {
        self.no_longer_idle();
        for handle in &self.handles {
            // A session that is gone needs no telling.
            let _ = handle
                .outlet
                .offer_control(SessionMail::Close(StreamError::new(StreamCondition::InternalServerError)));
        }
        let outlet = self.inlet.outlet();
        drop(self.inlet.close());
        self.router.directory.remove(self.account.as_str(), &outlet);
    }
}

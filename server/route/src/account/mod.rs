//! The route of one account: an actor that owns the account's sessions, presence and spool.
//!
//! What must hold: mail is handled one by one in the order it came, except that nothing is
//! handled while the account's state is loading, and that while a closing session still owes
//! its unwritten stanzas only those are; so an older message is never overtaken by a newer
//! one. Mail keeps its credit until it is handled, so a route that waits is bounded. The
//! actor ends only when it owes nothing to anyone; what waits in the account's queue is found
//! there by the next one.

mod archiving;
mod carbons;
mod detached;
mod gone;
mod handle;
mod load;
mod outlet;
mod records;
mod spool;
mod steps;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use actix::{Actor, AsyncContext};
use tokio::sync::oneshot;
use waystation_core::account::AccountPresence;
use waystation_core::queue::{QueueName, RecordId};
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{
    Condition, Jid, SessionId, Sessions, Stanza, StanzaError, StreamCondition, StreamError,
};
use waystation_runtime::{Inlet, Weigh, after_others, wheel};

use crate::mail::{AccountMail, BindError, SessionMail, SessionOutlet};
use crate::pump::Pump;
use crate::receipt::Receipts;
use crate::router::Router;
use crate::stream::{ResumeError, ResumeRequest, Resumption};
use archiving::Archiving;
use detached::{Detached, Resumable};
use load::Loaded;
use records::Records;
use spool::Drain;
use steps::{Persisting, QueuedStep};

/// Mail handled in one turn. Senders on other threads may fill the inlet as fast as it is emptied,
/// and then a turn without a limit would not end.
const TURN_BUDGET: usize = 128;

/// Makes room in a queue that has none. Such queues are given up when they are empty, and under load
/// a turn fills them with about ten items: room for them at once, not in three steps.
fn first_room<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() == 0 {
        queue.reserve(12);
    }
}

/// What was handled in a turn, whose credit is given back at its end.
#[derive(Default)]
struct Handled {
    bytes: usize,
    items: usize,
}

impl Handled {
    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.items += 1;
    }
}

enum State {
    /// The account's existence, roster and stored sessions are being read.
    Loading(BoxFuture<'static, Result<Loaded, StorageError>>),
    /// The account exists.
    Live(Box<dyn AccountPresence>),
    /// There is no such account.
    Nobody,
}

/// What the route keeps of a session besides [`waystation_core::account::LiveSession`].
struct Handle {
    id: SessionId,
    /// Who it was before it was resumed, the newest last: what its old connections received and
    /// the client was told of is still on its way.
    was: Vec<SessionId>,
    link: Link,
    peer: SocketAddr,
    security: &'static str,
    since: SystemTime,
    /// Records that it was given and has not confirmed, in growing order.
    held: VecDeque<RecordId>,
    /// Set once the session may be resumed.
    resumable: Option<Resumable>,
    /// Someone waits for the old connection to give the session up.
    resuming: Option<Resuming>,
    /// Presence that found the session without credit: the last one of each sender.
    late: Vec<Stanza>,
}

type Resuming = (Box<ResumeRequest>, oneshot::Sender<Result<Resumption, ResumeError>>);

/// How a session is reached.
enum Link {
    Live(SessionOutlet),
    Detached(Box<Detached>),
}

impl Handle {
    fn new(id: SessionId, link: Link) -> Self {
        Self {
            id,
            was: Vec::new(),
            link,
            peer: SocketAddr::from(([0, 0, 0, 0], 0)),
            security: "none",
            since: SystemTime::now(),
            held: VecDeque::new(),
            resumable: None,
            resuming: None,
            late: Vec::new(),
        }
    }
}

/// What became of something offered to a session.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    Taken,
    /// It has no room.
    Full,
    /// It is leaving, or unknown.
    Gone,
}

/// The actor.
pub(crate) struct AccountRoute {
    router: Arc<Router>,
    account: Jid,
    queue: QueueName,
    /// Records up to here were given to routes before this one began.
    given_before: u64,
    /// Which of the stanzas that this route sent are in the log, and how many there were: what
    /// it sends meanwhile must not overtake them.
    receipts: Receipts,
    routed: u64,
    inlet: Inlet<AccountMail>,
    state: State,
    sessions: Sessions,
    handles: Vec<Handle>,
    /// Mail taken from the inlet and not yet handled; its credit is still out.
    held: VecDeque<AccountMail>,
    /// Effects of the presence logic in their order.
    steps: VecDeque<QueuedStep>,
    persisting: Option<Box<Persisting>>,
    records: Records,
    /// Messages on their way to the archive.
    archiving: Archiving,
    drain: Option<Box<Drain>>,
    /// Keys of sessions that ended within a day.
    ended: Vec<u128>,
    /// Sessions that were told to close and still owe what they did not write.
    leaving: Vec<SessionId>,
    idle_since: Option<Instant>,
}

impl Actor for AccountRoute {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Pump(Self::turn));
    }
}

impl AccountRoute {
    /// Starts the route of an account on the current arbiter.
    pub(crate) fn start(router: Arc<Router>, account: Jid, queue: QueueName, inlet: Inlet<AccountMail>) {
        let state = load::first(&router, &account);
        let given_before = router.intake.given().0;
        drop(Self::create(|_| Self {
            router,
            account,
            queue,
            given_before,
            receipts: Receipts::default(),
            routed: 0,
            inlet,
            state,
            sessions: Sessions::default(),
            handles: Vec::new(),
            held: VecDeque::new(),
            steps: VecDeque::new(),
            persisting: None,
            records: Records::default(),
            archiving: Archiving::default(),
            drain: None,
            ended: Vec::new(),
            leaving: Vec::new(),
            idle_since: None,
        }));
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut handled = Handled::default();
        let poll = self.work(&mut handled, cx);
        self.tell_done();
        self.inlet.release(handled.bytes, handled.items);
        self.tell_who_is_alone();
        poll
    }

    /// Tells each session whether another one wants copies of what it sends.
    fn tell_who_is_alone(&self) {
        let copied = self.sessions.iter().filter(|session| session.carbons).count();
        for handle in &self.handles {
            if let Link::Live(outlet) = &handle.link {
                let itself = copied == 1 && self.sessions.get(handle.id).is_some_and(|s| s.carbons);
                outlet.set_hint(copied == 0 || itself);
            }
        }
    }

    /// Does what can be done now, within its budget; ready when the route has ended.
    fn work(&mut self, handled: &mut Handled, cx: &mut Context<'_>) -> Poll<()> {
        let mut budget = TURN_BUDGET;
        loop {
            let mut progress = false;
            while let Poll::Ready(mails) = self.inlet.poll_take(cx) {
                if self.held.is_empty() {
                    self.held = mails.into();
                } else {
                    self.held.extend(mails);
                }
                progress = true;
            }
            if let State::Loading(loading) = &mut self.state
                && let Poll::Ready(loaded) = loading.as_mut().poll(cx)
            {
                progress = true;
                match loaded {
                    Ok(loaded) => self.loaded(loaded),
                    Err(error) => {
                        self.fail(&error);
                        return Poll::Ready(());
                    }
                }
            }
            progress |= self.poll_steps(cx);
            match self.poll_catch_up(cx) {
                Ok(done) => progress |= done,
                Err(error) => {
                    self.fail(&StorageError::Io(error.to_string()));
                    return Poll::Ready(());
                }
            }
            progress |= self.poll_archive(cx);
            progress |= self.poll_drain(cx);
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
                    None => handled.add(weight),
                }
            }
            progress |= self.flush_archive();
            if !progress {
                // Before the route may end: the next one reads the queue.
                self.tell_done();
                self.flush_late(cx);
                if let Some(next) = self.expire_detached() {
                    wheel::wake_after(next, cx.waker().clone());
                }
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
            _ if self.records.is_reading() => None,
            _ if self.leaving.is_empty() => (!self.held.is_empty()).then_some(0),
            _ => self.held.iter().position(|mail| match mail {
                // What it says last of what its client has comes before its end.
                AccountMail::Confirmed(id, _) | AccountMail::Unbind(id, _) | AccountMail::Detach(id, _) => {
                    self.leaving.contains(id)
                }
                _ => false,
            }),
        }
    }

    fn is_idle(&self) -> bool {
        self.sessions.is_empty()
            && self.leaving.is_empty()
            && self.held.is_empty()
            && self.steps.is_empty()
            && self.persisting.is_none()
            && self.archiving.is_idle()
            && self.records.is_idle()
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
                AccountMail::Resume(_, reply) => {
                    let _ = reply.send(Err(ResumeError::Unavailable));
                }
                AccountMail::Enable(.., reply) => {
                    let _ = reply.send(Err(error.clone()));
                }
                // Records stay in the queue; the next route finds them there.
                AccountMail::Record(..) | AccountMail::Behind => {}
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
                | AccountMail::Detach(..)
                | AccountMail::Confirmed(..)
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
            if let Link::Live(outlet) = &handle.link {
                let error = StreamError::new(StreamCondition::InternalServerError);
                let _ = outlet.offer_control(SessionMail::Close(error));
            }
        }
        let outlet = self.inlet.outlet();
        drop(self.inlet.close());
        self.router.directory.remove(self.account.as_str(), &outlet);
    }
}

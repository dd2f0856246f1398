//! The route of one remote domain, as seen from one of ours: an actor that owns the pair's stream and what
//! waits for it.
//!
//! What must hold (DELIVERY P8): a record leaves the domain's queue only when the stream has handed it over,
//! or an error that replaces it is committed; records are given to the stream in the order of the log; what
//! nothing keeps comes in its place among them, or is answered or dropped while there is no stream. In
//! memory there are a page of records, the stream's window, and a bounded number of other stanzas, however
//! much waits: a domain that is dead costs its queue and nothing else. The actor ends only when it owes
//! nothing to anyone and has no stream.
//!
//! There are hundreds of these at most, not hundreds of thousands, so each has a timer of its own.

mod bounce;
mod config;
mod entry;
mod info;
mod late;
mod limits;
mod link;
mod records;
mod routing;
mod window;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use actix::{Actor, AsyncContext};
use tokio::sync::oneshot;
use waystation_core::queue::{QueueError, QueueStats, RecordId};
use waystation_core::storage::BoxFuture;
use waystation_core::{Condition, Stanza, StanzaError};
use waystation_runtime::{Inlet, Weigh, after_others};

pub use config::DomainConfig;
pub(crate) use entry::Domains;
pub use entry::{DOMAIN_QUEUES, Domain, Reservation, domain_queue};
pub use info::{DomainInfo, DomainState};
pub(crate) use limits::NewDomains;

use crate::mail::STANZA_OVERHEAD;
use crate::pump::Pump;
use crate::remote::{Resume, StreamEnd, StreamInfo};
use crate::router::Router;
use bounce::Bounces;
use info::Part;
use late::{Late, is_availability, is_request};
use link::Link;
use records::Records;
use window::Window;

/// Room of a route for what it has not looked at yet.
const MAIL_BYTES: usize = 1024 * 1024;
const MAIL_ITEMS: usize = 4_096;

/// What is done in one turn: senders on other threads may go on for ever.
const TURN_BUDGET: usize = 128;
/// The longest sleep: clocks are set, and times to live count by them.
const MAX_SLEEP: Duration = Duration::from_secs(3_600);
/// The shortest, so that no mistake can make a busy loop.
const MIN_SLEEP: Duration = Duration::from_millis(1);
/// How long until something that failed here, not at the peer, is tried again.
const REPAIR: Duration = Duration::from_secs(5);

/// What a domain's route is given.
pub(crate) enum DomainMail {
    /// A record of its queue, in the order of the log.
    Record(RecordId, Stanza, SystemTime),
    /// A stanza that nothing keeps, with the last record that was committed before it.
    Stanza(Stanza, u64),
    /// Records were committed that the route had no room for.
    Behind,
    /// The stream of this number is ready.
    Up(u64, Box<StreamInfo>),
    /// More has been handed over; how much is to be looked up.
    Handed(u64),
    /// The stream of this number has ended.
    Down(u64, StreamEnd),
    /// The remote domain has connected to us.
    Alive,
    /// Try now, say the administrators.
    Retry,
    /// Give up what waits; answered with how much that is.
    Flush(oneshot::Sender<u64>),
    /// Describe yourself.
    Describe(oneshot::Sender<Part>),
    /// The server stops.
    Stop,
}

impl Weigh for DomainMail {
    fn weight(&self) -> usize {
        STANZA_OVERHEAD
            + match self {
                Self::Record(_, stanza, _) | Self::Stanza(stanza, _) => stanza.len(),
                _ => 0,
            }
    }
}

/// Where a route stands (ARCHITECTURE: Connecting, Sending, Backoff, Bouncing).
pub(super) enum Stage {
    /// Nothing is wanted of it, or it is about to connect.
    Resting,
    /// A stream was asked for. `first`: nothing has failed before.
    Connecting { first: bool },
    /// The stream is up.
    Sending,
    /// The last attempt failed; the next is made then.
    Backoff { until: Instant },
    /// The domain cannot be reached at all: until then everything is answered with this.
    Bouncing { until: Instant, error: StanzaError },
}

/// The actor.
pub(crate) struct DomainRoute {
    router: Arc<Router>,
    domain: Arc<Domain>,
    inlet: Inlet<DomainMail>,
    /// Mail that was taken from the inlet and not yet handled: records in their order, and the rest. Its
    /// credit is still out.
    held: VecDeque<DomainMail>,
    control: VecDeque<DomainMail>,
    handled: (usize, usize),
    /// The queue's figures are being read; until then nothing else is done.
    loading: Option<BoxFuture<'static, Result<QueueStats, QueueError>>>,
    load_again: Option<Instant>,
    stage: Stage,
    link: Option<Link>,
    /// The number of the last stream that was asked for.
    generation: u64,
    /// What the last stream left to be resumed with; then the window is its.
    resume: Option<Resume>,
    window: Window,
    late: Late,
    records: Records,
    bounces: Bounces,
    /// Attempts that failed since a stream was of any use.
    failures: u32,
    last_attempt: Option<Instant>,
    last_error: Option<String>,
    /// Since when there has been no stream though one was tried.
    outage: Option<Instant>,
    /// Figures for administrators.
    handed: u64,
    bounced: u64,
    stopping: bool,
    alarm: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Actor for DomainRoute {
    type Context = actix::Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.spawn(Pump(Self::turn));
    }
}

impl DomainRoute {
    /// Starts the route of a pair on the current arbiter.
    pub(crate) fn start(router: Arc<Router>, domain: Arc<Domain>, inlet: Inlet<DomainMail>) {
        let config = &router.config.domains;
        let late = Late::new(config.held_items, config.held_bytes);
        let loading = Some(router.intake.backend().stats(domain.queue.clone()));
        let stopping = router.stopping.load(std::sync::atomic::Ordering::Acquire);
        drop(Self::create(|_| Self {
            router,
            domain,
            inlet,
            held: VecDeque::new(),
            control: VecDeque::new(),
            handled: (0, 0),
            loading,
            load_again: None,
            stage: Stage::Resting,
            link: None,
            generation: 0,
            resume: None,
            window: Window::default(),
            late,
            records: Records::default(),
            bounces: Bounces::default(),
            failures: 0,
            last_attempt: None,
            last_error: None,
            outage: None,
            handed: 0,
            bounced: 0,
            stopping,
            alarm: None,
        }));
    }

    fn config(&self) -> &DomainConfig {
        &self.router.config.domains
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let poll = self.work(cx);
        self.tell_done();
        self.release();
        let pending = poll.is_pending() && !matches!(self.stage, Stage::Sending) && self.wants();
        self.router.domains.set_pending(&self.domain, pending);
        poll
    }

    fn release(&mut self) {
        let (bytes, items) = std::mem::take(&mut self.handled);
        self.inlet.release(bytes, items);
    }

    fn was_handled(&mut self, weight: usize) {
        self.handled.0 += weight;
        self.handled.1 += 1;
    }

    /// Does what can be done now, within its budget; ready when the route has ended.
    fn work(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut budget = TURN_BUDGET;
        loop {
            // What was passed on before a record that is known now is among the mail that is taken next.
            self.records.known = RecordId(self.domain.newest());
            let mut progress = self.take_mail(cx);
            if !self.poll_load(cx) {
                self.sleep_until(self.load_again, cx);
                return Poll::Pending;
            }
            while let Some(mail) = self.control.pop_front() {
                self.was_handled(mail.weight());
                self.control_mail(mail);
                progress = true;
            }
            progress |= self.poll_read(cx);
            progress |= self.poll_bounces(cx);
            progress |= self.due(Instant::now());
            progress |= self.fill(&mut budget);
            while budget > 0
                && !self.waits_for_a_page()
                && let Some(mail) = self.held.pop_front()
            {
                self.was_handled(mail.weight());
                self.record_mail(mail);
                budget -= 1;
                progress = true;
            }
            if budget == 0 {
                after_others(cx);
                return Poll::Pending;
            }
            if !progress {
                return self.rest(cx);
            }
        }
    }

    /// Takes mail: records wait for their turn, and what nothing keeps finds its place at once, for it may
    /// be one before records that are read from the queue.
    fn take_mail(&mut self, cx: &mut Context<'_>) -> bool {
        let mut taken = false;
        while let Poll::Ready(mails) = self.inlet.poll_take(cx) {
            taken = true;
            for mail in mails {
                let weight = mail.weight();
                match mail {
                    DomainMail::Stanza(stanza, after) => {
                        self.was_handled(weight);
                        self.stanza(stanza, after);
                    }
                    DomainMail::Record(id, ..) => {
                        self.records.is_mailed(id);
                        self.held.push_back(mail);
                    }
                    DomainMail::Behind => {
                        self.records.is_interrupted();
                        self.held.push_back(mail);
                    }
                    mail => self.control.push_back(mail),
                }
            }
        }
        taken
    }

    /// True once the queue's figures are known.
    fn poll_load(&mut self, cx: &mut Context<'_>) -> bool {
        if let Some(again) = self.load_again {
            if Instant::now() < again {
                return false;
            }
            self.load_again = None;
            self.loading = Some(self.router.intake.backend().stats(self.domain.queue.clone()));
        }
        let Some(loading) = &mut self.loading else { return true };
        let Poll::Ready(loaded) = loading.as_mut().poll(cx) else { return false };
        self.loading = None;
        match loaded {
            Ok(stats) => {
                self.domain.found(&stats, self.router.intake.given());
                if stats.pending > 0 {
                    self.records.is_behind();
                    self.bounces.look_at(Instant::now());
                }
                true
            }
            Err(error) => {
                tracing::error!(pair = %self.domain.pair, %error, "a domain's queue could not be read");
                self.load_again = Some(Instant::now() + REPAIR);
                false
            }
        }
    }

    fn control_mail(&mut self, mail: DomainMail) {
        match mail {
            DomainMail::Up(generation, info) => self.up(generation, *info),
            DomainMail::Handed(generation) => self.look_what_was_handed(generation),
            DomainMail::Down(generation, end) => self.down(generation, end),
            DomainMail::Alive => self.is_alive(),
            DomainMail::Retry => self.retry(),
            DomainMail::Flush(reply) => {
                // The asker may have gone.
                let _ = reply.send(self.flush());
            }
            DomainMail::Describe(reply) => {
                // As above.
                let _ = reply.send(self.describe());
            }
            DomainMail::Stop => self.stop(),
            // Held, or handled when they were taken.
            DomainMail::Record(..) | DomainMail::Stanza(..) | DomainMail::Behind => {}
        }
    }

    fn record_mail(&mut self, mail: DomainMail) {
        match mail {
            DomainMail::Record(id, stanza, at) => self.record(id, &stanza, at),
            DomainMail::Behind => {
                self.domain.reads_the_log();
                self.records.is_behind();
                self.bounces.look_at(Instant::now());
            }
            _ => {}
        }
    }

    /// A stanza that nothing keeps.
    fn stanza(&mut self, stanza: Stanza, after: u64) {
        match &self.stage {
            Stage::Sending => {
                if self.late.is_empty()
                    && self.ready()
                    && after <= self.records.cursor.0
                    && self.give_ephemeral(&stanza)
                {
                    return;
                }
                self.hold(stanza, after);
            }
            // While nothing has failed, nothing is lost.
            Stage::Resting | Stage::Connecting { first: true } => self.hold(stanza, after),
            Stage::Connecting { .. } | Stage::Backoff { .. } if is_availability(&stanza) => {
                self.hold(stanza, after);
            }
            Stage::Connecting { .. } | Stage::Backoff { .. } => {
                self.answer(&stanza, &Condition::RemoteServerTimeout.into());
            }
            Stage::Bouncing { error, .. } => {
                let error = error.clone();
                self.answer(&stanza, &error);
            }
        }
    }

    fn hold(&mut self, stanza: Stanza, after: u64) {
        if let Some(refused) = self.late.push(stanza, after, Instant::now()) {
            self.answer(&refused, &no_room());
        }
    }

    /// Answers a request that cannot be sent. Other stanzas that nothing keeps are dropped (DELIVERY P8).
    fn answer(&self, stanza: &Stanza, error: &StanzaError) {
        if is_request(stanza) {
            self.router.refuse(stanza, error);
        }
    }

    /// True when something waits for a stream.
    fn wants(&self) -> bool {
        !self.late.is_empty() || self.domain.depth().0 > 0
    }

    /// What has to be done at its time; true when something was.
    fn due(&mut self, now: Instant) -> bool {
        let mut progress = false;
        match self.stage {
            Stage::Resting if self.may_connect() => {
                self.connect(now);
                progress = true;
            }
            Stage::Backoff { until } | Stage::Bouncing { until, .. } if until <= now => {
                self.stage = Stage::Resting;
                progress = true;
            }
            Stage::Sending => progress |= self.close_idle(now),
            _ => {}
        }
        if self.stopping && self.link.is_none() {
            self.let_go();
        }
        if !self.late.is_empty() {
            let (request, any) = (self.config().request_wait, self.config().message_ttl);
            for old in self.late.take_older(request, any, now) {
                self.answer(&old, &Condition::RemoteServerTimeout.into());
            }
        }
        progress | self.read_if_due(now)
    }

    fn may_connect(&self) -> bool {
        self.wants() && !self.stopping
    }

    /// Ends the route when it owes nothing, or sleeps until there is something to do.
    fn rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.tell_done();
        let now = Instant::now();
        let quiet = self.link.is_none()
            && self.held.is_empty()
            && self.late.is_empty()
            && (self.stopping || matches!(self.stage, Stage::Resting));
        let settled = self.records.is_settled(&self.router);
        if quiet && settled {
            self.release();
            if self.domain.close_if_idle(&mut self.inlet, self.stopping) {
                return Poll::Ready(());
            }
        }
        let mut next = [
            match self.stage {
                Stage::Backoff { until } | Stage::Bouncing { until, .. } => Some(until),
                Stage::Sending => self.idle_at(),
                _ => None,
            },
            self.late.due(self.config().request_wait, self.config().message_ttl),
            self.next_read(),
            self.room_at(),
        ]
        .into_iter()
        .flatten()
        .min();
        if quiet {
            // What it waits for wakes nobody: acknowledgements on their way, or mail that was refused.
            let soon = now + Duration::from_millis(100);
            next = Some(next.map_or(soon, |next| next.min(soon)));
        }
        self.sleep_until(next, cx);
        Poll::Pending
    }

    /// The task is woken then, or before.
    fn sleep_until(&mut self, at: Option<Instant>, cx: &mut Context<'_>) {
        let Some(at) = at else {
            self.alarm = None;
            return;
        };
        let left = at.saturating_duration_since(Instant::now()).clamp(MIN_SLEEP, MAX_SLEEP);
        let deadline = tokio::time::Instant::now() + left;
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        alarm.as_mut().reset(deadline);
        if alarm.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
    }
}

/// The error at a limit: a later attempt may succeed.
pub(super) fn no_room() -> StanzaError {
    StanzaError::new(Condition::ResourceConstraint).with_type(waystation_core::ErrorType::Wait)
}

impl Drop for DomainRoute {
    /// Also runs when a panic ends the actor: no entry of a dead route stays behind. Its records are found in
    /// the queue by the next one.
    fn drop(&mut self) {
        self.domain.close(&mut self.inlet);
        self.router.domains.remove(&self.domain);
    }
}

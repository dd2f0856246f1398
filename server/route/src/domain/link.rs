//! The stream of the pair: asking for one, what it tells, and when another one is tried.
//!
//! What must hold: at most one stream is asked for at a time, and what an older one still says changes
//! nothing; a stream that ends without being of use makes the pause before the next one longer.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use waystation_core::Condition;
use waystation_runtime::outlet;

use super::late::is_request;
use super::{DomainMail, DomainRoute, Stage};
use crate::remote::{EndCause, Forbidden, StreamEnd, StreamEvent, StreamEvents, StreamInfo, StreamMail};
use crate::remote::{StreamOutlet, StreamRequest};

/// A stream that lasted for so long was of use, whatever it handed over.
const OF_USE: Duration = Duration::from_secs(60);

/// A stream that was asked for.
pub(super) struct Link {
    pub(super) outlet: StreamOutlet,
    told: Arc<Told>,
    /// Set when it is up.
    pub(super) info: Option<Box<StreamInfo>>,
    up_at: Instant,
    /// It has handed something over.
    useful: bool,
    /// It is given nothing more.
    pub(super) closing: bool,
    pub(super) last_given: Instant,
}

/// How much a stream has handed over: told once for many, so that it fills no mailbox.
#[derive(Default)]
struct Told {
    count: AtomicU64,
    mailed: AtomicBool,
}

impl DomainRoute {
    /// Asks for a stream.
    pub(super) fn connect(&mut self, now: Instant) {
        self.last_attempt = Some(now);
        let pair = self.domain.pair.clone();
        let Some(streams) = self.router.remote_streams().cloned() else {
            return self.give_up(Condition::RemoteServerNotFound.into(), now);
        };
        if let Err(forbidden) = streams.permits(&pair) {
            self.last_error = Some("the policy forbids this domain".to_owned());
            return self.give_up(refusal(forbidden).into(), now);
        }
        self.generation += 1;
        let generation = self.generation;
        let (outlet, inlet) = outlet(self.config().window_bytes, self.config().window_items);
        let told = Arc::new(Told::default());
        let events = {
            let (route, told) = (self.inlet.outlet(), told.clone());
            StreamEvents::new(move |event| {
                let mail = match event {
                    StreamEvent::Up(info) => DomainMail::Up(generation, info),
                    StreamEvent::Handed(count) => {
                        told.count.fetch_max(count, Ordering::AcqRel);
                        if told.mailed.swap(true, Ordering::AcqRel) {
                            return;
                        }
                        DomainMail::Handed(generation)
                    }
                    StreamEvent::Down(end) => DomainMail::Down(generation, end),
                };
                // Gone: the route has ended, because it gave the stream up or panicked.
                let _ = route.offer_control(mail);
            })
        };
        self.link = Some(Link {
            outlet,
            told,
            info: None,
            up_at: now,
            useful: false,
            closing: false,
            last_given: now,
        });
        self.stage = Stage::Connecting { first: self.failures == 0 };
        streams.open(StreamRequest { pair, inlet, events, resume: self.resume.take() });
    }

    /// The stream is ready.
    pub(super) fn up(&mut self, generation: u64, info: StreamInfo) {
        let now = Instant::now();
        let Some(link) = self.link.as_mut().filter(|_| generation == self.generation) else { return };
        if link.closing {
            // It was told to end before it was ready.
            return;
        }
        (link.up_at, link.last_given) = (now, now);
        let resumed = info.resumed;
        link.info = Some(Box::new(info));
        match resumed {
            Some(count) => {
                self.handed_over(count);
                self.return_window(resumed);
            }
            None => self.put_back(),
        }
        tracing::debug!(pair = %self.domain.pair, ?resumed, "a stream to a remote domain is up");
        self.stage = Stage::Sending;
        self.last_error = None;
        self.outage = None;
        self.bounces.outage_is_over();
    }

    /// More has been handed over.
    pub(super) fn look_what_was_handed(&mut self, generation: u64) {
        let Some(link) = self.link.as_ref().filter(|_| generation == self.generation) else { return };
        link.told.mailed.store(false, Ordering::Release);
        let count = link.told.count.load(Ordering::Acquire);
        let handed = self.handed_over(count);
        self.records.has_room();
        if let Some(link) = &mut self.link {
            link.useful |= handed;
        }
    }

    /// The stream has ended.
    pub(super) fn down(&mut self, generation: u64, end: StreamEnd) {
        if generation != self.generation || self.link.is_none() {
            return;
        }
        self.look_what_was_handed(generation);
        let Some(link) = self.link.take() else { return };
        let now = Instant::now();
        let was_up = link.info.is_some();
        let of_use = was_up && (link.useful || now.saturating_duration_since(link.up_at) >= OF_USE);
        let pair = &self.domain.pair;
        tracing::debug!(%pair, cause = ?end.cause, text = end.text, "a stream to a remote domain has ended");
        self.resume = end.resume;
        if self.resume.is_none() {
            self.put_back();
        } else {
            self.records.rewind();
            if !was_up {
                // They were held for one attempt to resume.
                for request in self.window.take_requests(is_request) {
                    self.answer(&request, &Condition::RemoteServerTimeout.into());
                }
            }
        }
        if of_use {
            self.failures = 0;
        }
        match end.cause {
            EndCause::NotFound => {
                self.last_error = Some(end.text);
                self.outage.get_or_insert(now);
                self.give_up(Condition::RemoteServerNotFound.into(), now);
            }
            // Nobody needed it any more; if somebody does now, there is another one.
            EndCause::Ended if was_up && (of_use || link.closing) => self.stage = Stage::Resting,
            EndCause::Ended | EndCause::Failed | EndCause::Refused => {
                self.last_error = Some(end.text);
                self.fail(now);
            }
        }
    }

    /// An attempt has failed: the next one is made later, and who waits for it in person is told.
    pub(super) fn fail(&mut self, now: Instant) {
        let pause = pause(self.config().retry_min, self.config().retry_max, self.failures, random());
        self.failures = self.failures.saturating_add(1);
        self.outage.get_or_insert(now);
        self.stage = Stage::Backoff { until: now + pause };
        for stanza in self.late.take_all_but_presence() {
            self.answer(&stanza, &Condition::RemoteServerTimeout.into());
        }
        self.bounces.look_at(now);
    }

    /// The remote domain is there: it has just connected to us.
    pub(super) fn is_alive(&mut self) {
        let now = Instant::now();
        // A domain that connects and cannot be connected to is not tried each time.
        let early = self.last_attempt.map_or(now, |last| last + self.config().retry_min);
        match &mut self.stage {
            Stage::Backoff { until } | Stage::Bouncing { until, .. } => *until = (*until).min(early.max(now)),
            _ => {}
        }
    }

    /// Administrators want another attempt.
    pub(super) fn retry(&mut self) {
        if matches!(self.stage, Stage::Backoff { .. } | Stage::Bouncing { .. }) {
            self.stage = Stage::Resting;
        }
    }

    /// When the stream has been idle for long enough.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        let link = self.link.as_ref().filter(|link| !link.closing)?;
        let idle = self.window.is_empty() && self.late.is_empty() && self.domain.depth().0 == 0;
        idle.then(|| link.last_given + self.config().idle)
    }

    /// Ends a stream that nobody needs; true when it did.
    pub(super) fn close_idle(&mut self, now: Instant) -> bool {
        if self.idle_at().is_none_or(|at| at > now) {
            return false;
        }
        self.close_stream();
        true
    }

    fn close_stream(&mut self) {
        if let Some(link) = &mut self.link {
            link.closing = true;
            // Gone: it has ended, and says so by mail.
            let _ = link.outlet.offer_control(StreamMail::Close);
        }
    }

    /// The stream is told to end, and is not waited for.
    pub(super) fn give_up_stream(&mut self) {
        self.close_stream();
        self.link = None;
        self.generation += 1;
    }

    /// The server stops: what was given is let go in order, and the rest stays in the queue.
    pub(super) fn stop(&mut self) {
        self.stopping = true;
        if matches!(self.stage, Stage::Sending) {
            self.close_stream();
        } else {
            self.give_up_stream();
            self.stage = Stage::Resting;
        }
        if self.link.is_none() {
            self.let_go();
        }
    }

    /// No stream follows: what nothing keeps is answered or dropped.
    pub(super) fn let_go(&mut self) {
        let requests = self.window.take_requests(is_request);
        for stanza in self.late.take_all().into_iter().chain(requests) {
            self.answer(&stanza, &Condition::RemoteServerTimeout.into());
        }
    }

    /// When the next attempt is made, for people.
    pub(super) fn next_try(&self) -> Option<SystemTime> {
        let until = match self.stage {
            Stage::Backoff { until } if self.wants() => until,
            Stage::Bouncing { until, .. } => until,
            _ => return None,
        };
        Some(SystemTime::now() + until.saturating_duration_since(Instant::now()))
    }
}

/// What is answered where nothing may be sent.
pub(super) fn refusal(forbidden: Forbidden) -> Condition {
    match forbidden {
        Forbidden::Policy => Condition::NotAllowed,
        Forbidden::NoServer => Condition::RemoteServerNotFound,
    }
}

/// The pause after `failures` earlier ones: twice as long each time, up to the longest, and up to a quarter
/// shorter by chance, so that those who failed together do not come back together.
fn pause(min: Duration, max: Duration, failures: u32, random: u32) -> Duration {
    let whole = min.saturating_mul(1_u32.checked_shl(failures).unwrap_or(u32::MAX)).min(max);
    whole - whole.mul_f64(f64::from(random) / f64::from(u32::MAX) / 4.0)
}

/// Spread evenly is enough here: nothing is gained by guessing it.
fn random() -> u32 {
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u8(0);
    (hasher.finish() >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_the_longest_and_differ_by_a_quarter() {
        let (min, max) = (Duration::from_secs(2), Duration::from_secs(600));
        for (failures, whole) in
            [(0, 2), (1, 4), (5, 64), (8, 512), (9, 600), (31, 600), (32, 600), (u32::MAX, 600)]
        {
            let whole = Duration::from_secs(whole);
            assert_eq!(pause(min, max, failures, 0), whole, "after {failures}");
            assert_eq!(pause(min, max, failures, u32::MAX), whole.mul_f64(0.75));
            let by_chance = pause(min, max, failures, random());
            assert!(by_chance <= whole && by_chance >= whole.mul_f64(0.75));
        }
        let different: std::collections::HashSet<_> = (0..100).map(|_| random()).collect();
        assert!(different.len() > 90);
    }
}

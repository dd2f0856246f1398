//! Pairs of users that keep messages in flight between them.
//!
//! Each pair starts with `window` messages under way; whoever receives one
//! sends the next one back, so the number in flight never changes, and both
//! directions carry the same load. A message counts when its recipient has it.
//! The body begins with the time of sending; its place is found by one search
//! for the end tag and one for the body, not by parsing. One that comes back to
//! its sender as an error has not arrived.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::{JoinSet, LocalSet};
use waystation_harness::{Endpoint, Transport};

use crate::Failure;
use crate::channel::{Channel, namespace};
use crate::load::{Ground, until_measured};
use crate::meter::{Cost, Meter, as_f64};
use crate::pace::Pace;
use crate::sessions::{self, Access, Talker};

/// Hexadecimal digits of the time stamp at the start of every body.
const STAMP: usize = 16;
/// How long messages in flight may take to arrive after the sending has ended.
const DRAIN: Duration = Duration::from_secs(10);

/// How long nothing may arrive while messages are under way.
const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds between two messages of a user during a pause.
const PAUSE: f64 = 3_600.0;

/// Messages after which a client with stream management asks for an acknowledgement, as slixmpp
/// does.
const ASK_EVERY: usize = 5;

/// The shape of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Pairs of users.
    pub(crate) pairs: usize,
    /// Messages in flight per pair.
    pub(crate) window: usize,
    /// Bytes of text in a body.
    pub(crate) body: usize,
    /// Whether messages go to the full JID (else to the bare one).
    pub(crate) to_full: bool,
    /// Whether the users have stream management (XEP-0198): they ask for an acknowledgement every
    /// [`ASK_EVERY`] messages, and give one when they are asked.
    pub(crate) managed: bool,
    /// Seconds of load before measuring.
    pub(crate) warm_up: f64,
    /// Seconds measured.
    pub(crate) seconds: f64,
}

/// A measured stretch of the load.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stretch {
    /// Messages delivered while measuring.
    pub(crate) delivered: u64,
    /// The time of the faster half, in milliseconds.
    pub(crate) p50_ms: f64,
    /// The time that 99 of 100 stay below, in milliseconds.
    pub(crate) p99_ms: f64,
    /// What it cost.
    pub(crate) cost: Cost,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// The figures.
    #[serde(flatten)]
    pub(crate) stretch: Stretch,
    /// Messages that were sent and never arrived.
    pub(crate) lost: u64,
    /// What every message waited for, where the server tells it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) commits: Option<Commits>,
}

/// What the last commits to a server's queue took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Commits {
    /// The time of the faster half, in milliseconds.
    pub(crate) median_ms: f64,
    /// The time that 99 of 100 stay below, in milliseconds.
    pub(crate) p99_ms: f64,
}

/// The load while it runs, for who decides how long it does and at which rate.
pub(crate) struct Game {
    pids: Vec<u32>,
    shape: Shape,
    shared: Rc<Shared>,
}

struct Shared {
    ground: Ground,
    sent: Cell<u64>,
    received: Cell<u64>,
    /// Nanoseconds from one message of a user to its next; none means at once.
    interval: Cell<Option<u64>>,
    /// The interval is another one.
    changed: Notify,
    stopping: Cell<bool>,
    end_of_iq: Finder<'static>,
    end_of_message: Finder<'static>,
    request: Finder<'static>,
    start_of_body: Finder<'static>,
    error: Finder<'static>,
}

/// Runs the load against the server with this process id.
pub(crate) async fn run(at: &Endpoint, pid: u32, access: Access, shape: Shape) -> Result<Outcome, Failure> {
    play(at, pid, access, shape, Game::once).await
}

/// Logs the users in and lets them talk for as long as `body` takes.
pub(crate) async fn play<T>(
    at: &Endpoint,
    pid: u32,
    access: Access,
    shape: Shape,
    body: impl AsyncFnOnce(&Game) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let talkers = sessions::talkers(at, access, 0..shape.pairs * 2, shape.managed).await?;
    talk(talkers, &[pid], access.transport, shape, body).await
}

/// Lets these users talk, each one with its neighbour, for as long as `body` takes, while the servers
/// with these process ids are measured.
pub(crate) async fn talk<T>(
    talkers: Vec<Talker>,
    pids: &[u32],
    transport: Transport,
    shape: Shape,
    body: impl AsyncFnOnce(&Game) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let jids: Vec<String> = talkers
        .iter()
        .map(|talker| if shape.to_full { talker.jid.as_str() } else { talker.bare() }.to_owned())
        .collect();
    let shared = Rc::new(Shared {
        ground: Ground::new(256 * 1024),
        sent: Cell::new(0),
        received: Cell::new(0),
        interval: Cell::new(None),
        changed: Notify::new(),
        stopping: Cell::new(false),
        end_of_iq: Finder::new(b"</iq>"),
        end_of_message: Finder::new(b"</message>"),
        request: Finder::new(b"<r xmlns="),
        start_of_body: Finder::new(b"<body>"),
        error: Finder::new(b" type='error'"),
    });
    let game = Game { pids: pids.to_vec(), shape, shared: Rc::clone(&shared) };
    let tasks = LocalSet::new();
    let mut users = JoinSet::new();
    for (n, talker) in talkers.into_iter().enumerate() {
        let user = User {
            channel: talker.channel,
            template: Template::new(&jids[n ^ 1], shape.body, namespace(transport)),
            namespace: namespace(transport),
            shared: Rc::clone(&shared),
            pace: Pace::new(n, jids.len()),
            managed: shape.managed,
            unasked: 0,
            handled: 0,
        };
        // The even one of a pair sends the first messages.
        let first = if n % 2 == 0 { shape.window } else { 0 };
        users.spawn_local_on(user.run(first), &tasks);
    }
    until_measured(tasks, users, body(&game)).await
}

impl Game {
    /// Measures once, and ends.
    pub(crate) async fn once(&self) -> Result<Outcome, Failure> {
        let stretch = self.measure().await?;
        Ok(Outcome { stretch, lost: self.stop().await, commits: None })
    }

    /// Measures as long as the shape says, after its warm-up.
    pub(crate) async fn measure(&self) -> Result<Stretch, Failure> {
        let shared = &self.shared;
        tokio::time::sleep(Duration::from_secs_f64(self.shape.warm_up)).await;
        let meter = Meter::start(&self.pids)?;
        let before = shared.received.get();
        shared.ground.take_latencies();
        tokio::time::sleep(Duration::from_secs_f64(self.shape.seconds)).await;
        let cost = meter.cost()?;
        let delivered = shared.received.get() - before;
        let latencies = shared.ground.take_latencies();
        Ok(Stretch { delivered, p50_ms: latencies.p50_ms, p99_ms: latencies.p99_ms, cost })
    }

    /// Lets no message be sent any more, waits for those on their way, and counts those that did not come.
    pub(crate) async fn stop(&self) -> u64 {
        let shared = &self.shared;
        shared.stopping.set(true);
        let end = Instant::now() + DRAIN;
        while shared.received.get() < shared.sent.get() && Instant::now() < end {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shared.sent.get().saturating_sub(shared.received.get())
    }

    /// From now on all users together send so many messages a second, or as many as are answered.
    pub(crate) fn set_rate(&self, rate: Option<f64>) {
        let users = as_f64(self.shape.pairs as u64 * 2);
        self.set_interval(rate.map(|rate| users / rate));
    }

    /// From now on next to nothing is sent.
    pub(crate) fn pause(&self) {
        self.set_interval(Some(PAUSE));
    }

    fn set_interval(&self, seconds: Option<f64>) {
        self.shared.interval.set(seconds.map(nanos));
        self.shared.changed.notify_waiters();
    }

    /// Messages sent since the beginning.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.get()
    }

    /// Waits until so many messages were sent.
    pub(crate) async fn reach(&self, sent: u64) -> Result<(), Failure> {
        let (mut last, mut since) = (self.sent(), Instant::now());
        while last < sent {
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.sent() > last {
                (last, since) = (self.sent(), Instant::now());
            } else if since.elapsed() > PATIENCE {
                return Err(Failure::Load(format!("nothing moves after {last} messages")));
            }
        }
        Ok(())
    }
}

fn nanos(seconds: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(seconds).as_nanos()).unwrap_or(u64::MAX)
}

/// A message with a gap for the time stamp.
struct Template {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Template {
    fn new(to: &str, body: usize, namespace: &str) -> Self {
        let padding = "x".repeat(body.saturating_sub(STAMP));
        Self {
            before: format!("<message{namespace} to='{to}' type='chat' id='bench'><body>").into_bytes(),
            after: format!("{padding}</body></message>").into_bytes(),
        }
    }

    fn append(&self, out: &mut Vec<u8>, stamp: [u8; STAMP]) {
        out.extend_from_slice(&self.before);
        out.extend_from_slice(&stamp);
        out.extend_from_slice(&self.after);
    }
}

struct User {
    channel: Channel,
    template: Template,
    /// What a stanza says about it.
    namespace: &'static str,
    shared: Rc<Shared>,
    pace: Pace,
    managed: bool,
    /// Messages since the last request for an acknowledgement.
    unasked: usize,
    /// Stanzas received, of which XEP-0198 counts the lowest 32 bits.
    handled: u32,
}

impl User {
    /// Sends `first` messages, then answers every message by one, until the connection ends.
    async fn run(mut self, first: usize) -> io::Result<()> {
        let shared = Rc::clone(&self.shared);
        let mut inbox = Vec::new();
        self.pace.owe(first);
        loop {
            self.send_due();
            self.channel.write().await?;
            let fill = self.channel.fill(&shared.ground, &mut inbox);
            let read = match self.pace.due() {
                None => fill.await?,
                Some(due) => tokio::select! {
                    read = shared.ground.before(due, fill) => match read? {
                        Some(read) => read,
                        None => continue,
                    },
                    () = shared.changed.notified() => continue,
                },
            };
            if read == 0 {
                return Ok(());
            }
            let asked = self.managed && shared.is_asked(&mut inbox);
            let pings = shared.answer_pings(&mut inbox, &mut self.channel, self.namespace);
            let arrived = shared.take_messages(&mut inbox);
            self.handled = self.handled.wrapping_add(u32::try_from(pings + arrived).unwrap_or(0));
            if asked {
                let ack = format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", self.handled);
                self.channel.put(|out| out.extend_from_slice(ack.as_bytes()));
            }
            self.pace.owe(arrived);
        }
    }

    /// Sends what is owed and may go now; nothing once the load stops.
    fn send_due(&mut self) {
        let count = self.pace.take(self.shared.ground.now(), self.shared.interval.get());
        if count > 0 && !self.shared.stopping.get() {
            self.put(count);
        }
    }

    fn put(&mut self, count: usize) {
        let stamp = to_hex(self.shared.ground.now());
        for _ in 0..count {
            self.channel.put(|out| self.template.append(out, stamp));
        }
        self.unasked += count;
        if self.managed && self.unasked >= ASK_EVERY {
            self.unasked = 0;
            self.channel.put(|out| out.extend_from_slice(b"<r xmlns='urn:xmpp:sm:3'/>"));
        }
        self.shared.sent.set(self.shared.sent.get() + count as u64);
    }
}

impl Shared {
    /// Whether the server asks for an acknowledgement; what asks is removed.
    fn is_asked(&self, inbox: &mut Vec<u8>) -> bool {
        let mut asked = false;
        while let Some(start) = self.request.find(inbox)
            && let Some(length) = inbox[start..].iter().position(|b| *b == b'>')
        {
            inbox.drain(start..=start + length);
            asked = true;
        }
        asked
    }

    /// Answers the pings in `inbox`, removes and counts them: a server may hold messages back from
    /// a client that proves nothing.
    fn answer_pings(&self, inbox: &mut Vec<u8>, channel: &mut Channel, namespace: &str) -> usize {
        let mut count = 0;
        while let Some(end) = self.end_of_iq.find(inbox) {
            let end = end + b"</iq>".len();
            let start = memchr::memmem::rfind(&inbox[..end], b"<iq ").unwrap_or(end);
            let iq = &inbox[start..end];
            let id = memchr::memmem::find(iq, b"id='").map(|at| &iq[at + 4..]);
            if let Some(id) = id.and_then(|id| id.split(|b| *b == b'\'').next()) {
                channel.put(|out| {
                    out.extend_from_slice(b"<iq");
                    out.extend_from_slice(namespace.as_bytes());
                    out.extend_from_slice(b" type='result' id='");
                    out.extend_from_slice(id);
                    out.extend_from_slice(b"'/>");
                });
            }
            inbox.drain(start..end);
            count += 1;
        }
        count
    }

    /// Counts the whole messages in `inbox` with their latencies and removes them.
    fn take_messages(&self, inbox: &mut Vec<u8>) -> usize {
        let now = self.ground.now();
        let mut rest = inbox.as_slice();
        let mut count = 0;
        while let Some(end) = self.end_of_message.find(rest) {
            let message = &rest[..end];
            let body = self.start_of_body.find(message).map(|at| message.split_at(at));
            let body = body.filter(|(head, _)| self.error.find(head).is_none());
            if let Some(sent) = body.and_then(|(_, body)| from_hex(&body[b"<body>".len()..])) {
                self.ground.record(sent, now);
                count += 1;
            }
            rest = &rest[end + b"</message>".len()..];
        }
        let used = inbox.len() - rest.len();
        inbox.drain(..used);
        self.received.set(self.received.get() + count as u64);
        count
    }
}

fn to_hex(value: u64) -> [u8; STAMP] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    std::array::from_fn(|i| DIGITS[(value >> (60 - 4 * i) & 15) as usize])
}

fn from_hex(text: &[u8]) -> Option<u64> {
    let digit = |acc: u64, &b: &u8| char::from(b).to_digit(16).map(|d| acc << 4 | u64::from(d));
    text.get(..STAMP)?.iter().try_fold(0, digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_survive() {
        for value in [0, 1, 0x0123_4567_89ab_cdef, u64::MAX] {
            assert_eq!(from_hex(&to_hex(value)), Some(value));
        }
        assert_eq!(from_hex(b"short"), None);
        assert_eq!(from_hex(b"not hexadecimal!"), None);
    }
}

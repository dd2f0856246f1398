//! The witness: a session that must not notice what a test does to the server.
//!
//! On a thread of its own it pings the server every 100 ms, and each time also
//! sends itself a numbered message. At the end 99 of 100 pings must have been
//! answered within 250 ms and no message may be missing (SECURITY.md, header).
//! What the machine took from everybody meanwhile ([`crate::pace`]) does not count.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Client, Login};
use crate::error::{Error, Result};
use crate::pace::Pace;
use crate::server::{Account, Endpoint};

/// How often it pings.
const INTERVAL: Duration = Duration::from_millis(100);
/// What 99 of 100 pings must stay below.
const MAX_P99: Duration = Duration::from_millis(250);
/// How long the last answers may take.
const LAST_ANSWERS: Duration = Duration::from_secs(60);

/// A running witness.
pub struct Witness {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Report>>>,
}

/// What it saw.
#[derive(Debug, Clone)]
pub struct Report {
    /// The latency of every ping, in the order of the answers.
    pub latencies: Vec<Duration>,
    /// How much of each the machine took: how long an idle echo was kept waiting meanwhile.
    pub stalled: Vec<Duration>,
    /// Numbers of the messages that did not arrive.
    pub lost: Vec<u64>,
}

impl Report {
    /// The latency, less what the machine took, that 99 of 100 pings stay below (zero without
    /// pings). Of fewer than 100, one may be slower: a machine that does other work as well delays
    /// one now and then.
    pub fn p99(&self) -> Duration {
        let pings = self.latencies.iter().zip(&self.stalled);
        let mut sorted: Vec<_> = pings.map(|(latency, stalled)| latency.saturating_sub(*stalled)).collect();
        sorted.sort_unstable();
        let rank = (sorted.len() * 99 / 100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }
}

impl Witness {
    /// Logs in and starts; returns when the first ping has been answered.
    pub fn start(at: &Endpoint, account: &Account) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (at, account, stopping) = (at.clone(), account.clone(), Arc::clone(&stop));
        let thread = std::thread::Builder::new()
            .name("witness".into())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                let runtime = runtime.map_err(Error::io("witness"))?;
                runtime.block_on(observe(&at, &account, &stopping, || {
                    // Nobody waits any more only when the test has failed already.
                    let _test_is_gone = ready.send(());
                }))
            })
            .map_err(Error::io("witness"))?;
        let witness = Self { stop, thread: Some(thread) };
        match started.recv() {
            Ok(()) => Ok(witness),
            Err(_) => {
                Err(witness.end().err().unwrap_or_else(|| Error::Setup("the witness did not start".into())))
            }
        }
    }

    /// Stops it and returns what it saw.
    pub fn end(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            _ => Err(Error::Setup("the witness panicked".into())),
        }
    }

    /// Stops it and asserts that it noticed nothing.
    ///
    /// # Panics
    /// When its session broke, a message is missing, or pings took too long.
    pub fn finish(self) {
        let report = self.end().expect("the witness keeps its session");
        assert!(report.lost.is_empty(), "the witness missed its messages {:?}", report.lost);
        assert!(!report.latencies.is_empty(), "the witness had no time to ping");
        assert!(
            report.p99() < MAX_P99,
            "the witness waited: p99 {:?} of {:?}, of which the machine took {:?}",
            report.p99(),
            report.latencies,
            report.stalled
        );
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // The test is over; its own failure is the one to report.
            let _report = thread.join();
        }
    }
}

async fn observe(
    at: &Endpoint,
    account: &Account,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<Report> {
    let pace = Pace::start()?;
    let mut client = Client::login(at, account, &Login::resource("witness")).await?;
    client.become_available().await?;
    let mut ready = Some(ready);
    let mut sent = 0u64;
    let mut pings: BTreeMap<u64, Instant> = BTreeMap::new();
    let mut lost: BTreeMap<u64, ()> = BTreeMap::new();
    let mut answered = Vec::new();
    let mut tick = tokio::time::interval(INTERVAL);
    let mut end: Option<Instant> = None;
    client.set_patience(LAST_ANSWERS);
    loop {
        let done = pings.is_empty() && lost.is_empty();
        match end {
            None if stop.load(Ordering::Relaxed) => end = Some(Instant::now() + LAST_ANSWERS),
            Some(end) if done || Instant::now() > end => break,
            _ => {}
        }
        tokio::select! {
            _ = tick.tick() => {
                if end.is_some() {
                    continue;
                }
                sent += 1;
                let (jid, host) = (client.jid().to_owned(), client.host().to_owned());
                client.send(format!(
                    "<message to='{jid}' id='m{sent}'><body>{sent}</body></message>\
                     <iq type='get' id='p{sent}' to='{host}'><ping xmlns='urn:xmpp:ping'/></iq>"
                )).await?;
                lost.insert(sent, ());
                pings.insert(sent, Instant::now());
            }
            stanza = client.next("an answer for the witness") => {
                let stanza = stanza?;
                let id = stanza.attr("id").unwrap_or_default();
                if let Some(n) = id.strip_prefix('m').and_then(|n| n.parse::<u64>().ok()) {
                    lost.remove(&n);
                } else if let Some(n) = id.strip_prefix('p').and_then(|n| n.parse::<u64>().ok())
                    && let Some(began) = pings.remove(&n)
                {
                    answered.push((began, Instant::now()));
                    if let Some(ready) = ready.take() {
                        ready();
                    }
                }
            }
        }
    }
    let unanswered = pings.len();
    if unanswered > 0 {
        return Err(Error::unexpected("an answer to every ping", format!("{unanswered} without one")));
    }
    client.close().await?;
    let stalls = pace.end();
    Ok(Report {
        latencies: answered.iter().map(|(began, ended)| *ended - *began).collect(),
        stalled: answered.iter().map(|(began, ended)| stalls.taken(*began, *ended)).collect(),
        lost: lost.into_keys().collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p99_is_the_nearest_rank() {
        let report = |n: u64| Report {
            latencies: (1..=n).map(Duration::from_millis).collect(),
            stalled: vec![Duration::ZERO; n as usize],
            lost: Vec::new(),
        };
        assert_eq!(report(0).p99(), Duration::ZERO);
        assert_eq!(report(1).p99(), Duration::from_millis(1));
        assert_eq!(report(100).p99(), Duration::from_millis(99));
        assert_eq!(report(200).p99(), Duration::from_millis(198));
    }

    #[test]
    fn what_the_machine_took_does_not_count() {
        let latencies = vec![Duration::from_millis(300); 100];
        let mut stalled = vec![Duration::from_millis(280); 100];
        let report = |stalled: &[Duration]| {
            Report { latencies: latencies.clone(), stalled: stalled.to_vec(), lost: Vec::new() }.p99()
        };
        assert_eq!(report(&stalled), Duration::from_millis(20));
        stalled[..2].fill(Duration::ZERO);
        assert_eq!(report(&stalled), Duration::from_millis(300));
    }
}

//! What administrators see of the routes of remote domains, and what they can do to them.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::oneshot;

use super::{Domain, DomainMail, DomainRoute, Stage};
use crate::remote::{Pair, StreamInfo};
use crate::router::Router;

/// Where a route stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainState {
    /// There is no stream, and none is wanted.
    Idle,
    /// A stream is being opened.
    Connecting,
    /// A stream is up.
    Sending,
    /// The last attempt failed; what waits is kept until the next one.
    Backoff,
    /// The domain does not exist, or may not be written to: everything is answered with an error for a while.
    Bouncing,
}

impl DomainState {
    /// The name of it, for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Sending => "sending",
            Self::Backoff => "backoff",
            Self::Bouncing => "bouncing",
        }
    }
}

/// A remote domain as administrators see it.
#[derive(Clone, Debug)]
pub struct DomainInfo {
    /// The domains.
    pub pair: Arc<Pair>,
    /// Where its route stands.
    pub state: DomainState,
    /// Records that wait or are on their way, and those that the stream was given and did not hand over.
    pub depth: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Stanzas that nothing keeps and that wait for a stream.
    pub held: usize,
    /// When the oldest record was committed.
    pub oldest: Option<SystemTime>,
    /// How the last attempt or stream failed, in words; `None` while a stream is up.
    pub last_error: Option<String>,
    /// When the next attempt is made.
    pub next_try: Option<SystemTime>,
    /// The stream, while there is one.
    pub stream: Option<StreamInfo>,
    /// Stanzas that were handed over since the route began.
    pub handed: u64,
    /// Records that were answered with an error since then.
    pub bounced: u64,
}

/// What the route itself knows.
pub(crate) struct Part {
    state: DomainState,
    held: usize,
    last_error: Option<String>,
    next_try: Option<SystemTime>,
    stream: Option<StreamInfo>,
    handed: u64,
    bounced: u64,
}

impl DomainRoute {
    pub(super) fn describe(&self) -> Part {
        let state = match self.stage {
            Stage::Resting => DomainState::Idle,
            Stage::Connecting { .. } => DomainState::Connecting,
            Stage::Sending => DomainState::Sending,
            Stage::Backoff { .. } => DomainState::Backoff,
            Stage::Bouncing { .. } => DomainState::Bouncing,
        };
        Part {
            state,
            held: self.late.len(),
            last_error: self.last_error.clone(),
            next_try: self.next_try(),
            stream: self.link.as_ref().and_then(|link| link.info.as_deref().cloned()),
            handed: self.handed,
            bounced: self.bounced,
        }
    }
}

impl Router {
    /// The remote domains that have a route, in the order of their names.
    pub async fn domains(&self) -> Vec<DomainInfo> {
        self.describe_domains(self.domains.all(None)).await
    }

    /// The routes to one remote domain: one for each domain of ours that writes to it.
    pub async fn domain_info(&self, remote: &str) -> Vec<DomainInfo> {
        self.describe_domains(self.domains.all(Some(remote))).await
    }

    async fn describe_domains(&self, domains: Vec<Arc<Domain>>) -> Vec<DomainInfo> {
        let mut all = Vec::new();
        for domain in domains {
            let (reply, answer) = oneshot::channel();
            if !domain.outlet.offer_control(DomainMail::Describe(reply)).is_accepted() {
                continue;
            }
            // One that ends meanwhile has nothing to show.
            let Ok(part) = answer.await else { continue };
            let (depth, bytes) = domain.depth();
            let oldest = match depth {
                0 => None,
                // One that cannot be read is shown without.
                _ => self.intake.backend().read(domain.queue.clone(), None, 1, 1).await.ok(),
            };
            let Part { state, held, last_error, next_try, stream, handed, bounced } = part;
            all.push(DomainInfo {
                pair: domain.pair.clone(),
                state,
                depth,
                bytes,
                held,
                oldest: oldest.and_then(|page| page.first().map(|record| record.since)),
                last_error,
                next_try,
                stream,
                handed,
                bounced,
            });
        }
        all
    }

    /// Tries a remote domain at once, if something waits for it; how many routes were told.
    pub fn retry_domain(&self, remote: &str) -> usize {
        let domains = self.domains.all(Some(remote));
        domains.iter().filter(|d| d.outlet.offer_control(DomainMail::Retry).is_accepted()).count()
    }

    /// Gives up what waits for a remote domain: senders are told `remote-server-timeout`. How many records
    /// that concerns; what a stream that keeps up was given is the peer's, and is none of them.
    pub async fn flush_domain(&self, remote: &str) -> u64 {
        let mut count = 0;
        for domain in self.domains.all(Some(remote)) {
            let (reply, answer) = oneshot::channel();
            if domain.outlet.offer_control(DomainMail::Flush(reply)).is_accepted() {
                count += answer.await.unwrap_or(0);
            }
        }
        count
    }
}

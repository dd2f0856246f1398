//! What inbound streams leave behind when their connection breaks: how many stanzas were taken, so that the
//! peer can go on from there (XEP-0198 5).
//!
//! What must hold: a count is given only to a stream that is proven for the pair of domains that the first
//! one was proven for first, once, and an id that is unknown looks the same as another's (SECURITY M9); while
//! the first stream still lives it is asked for its final count, so that no stanza is taken twice; the
//! table is bounded, in all and per pair, and what is in it expires. The counts are in memory only: after a restart the
//! peer sends again what it has no answer for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use waystation_route::remote::Pair;

use crate::stream::random_id;

/// Most streams that can be resumed, living ones included.
const MAX: usize = 1_000;
/// Most of them for one pair; the oldest that has no stream any more makes room.
const MAX_PER_PAIR: usize = 10;
/// How long a stream that is still there may take to settle what it has read.
const TAKEOVER: Duration = Duration::from_secs(10);

/// The streams that can be resumed.
pub(crate) struct Resumable {
    table: Arc<Mutex<HashMap<Box<str>, Entry>>>,
    /// How long a count is kept.
    keep: Duration,
}

struct Entry {
    owner: Arc<Pair>,
    state: State,
}

enum State {
    /// The stream is there, and is asked here for its count.
    Live(mpsc::Sender<oneshot::Sender<u32>>),
    Kept {
        count: u32,
        until: Instant,
    },
}

/// A living stream's place in the table. Dropped, the stream cannot be resumed: it ended in order.
pub(crate) struct Claim {
    id: Box<str>,
    table: Arc<Mutex<HashMap<Box<str>, Entry>>>,
    keep: Duration,
    /// To know its own entry again: the one who goes on with the stream has one of the same id.
    ask: mpsc::Sender<oneshot::Sender<u32>>,
    wanted: mpsc::Receiver<oneshot::Sender<u32>>,
}

fn lock(table: &Mutex<HashMap<Box<str>, Entry>>) -> MutexGuard<'_, HashMap<Box<str>, Entry>> {
    // Every change under the lock is complete in itself.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resumable {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { table: Arc::default(), keep }
    }

    /// A place for a stream that was first proven for `owner`. `None` when the table is full, nothing is to
    /// be kept, or the system gives no random bytes: the stream goes on and cannot be resumed.
    pub(crate) fn claim(&self, owner: Arc<Pair>) -> Option<Claim> {
        self.claim_at(owner, Instant::now())
    }

    /// The same for a stream that went on with another, whose count was [taken](Self::take): it keeps that
    /// one's id (XEP-0198 5).
    pub(crate) fn claim_again(&self, id: &str, owner: Arc<Pair>) -> Option<Claim> {
        self.claim_as(id.into(), owner, Instant::now())
    }

    fn claim_at(&self, owner: Arc<Pair>, now: Instant) -> Option<Claim> {
        self.claim_as(random_id().ok()?.into(), owner, now)
    }

    fn claim_as(&self, id: Box<str>, owner: Arc<Pair>, now: Instant) -> Option<Claim> {
        if self.keep.is_zero() {
            return None;
        }
        // One stream at most takes over, and the second to ask finds nothing.
        let (ask, wanted) = mpsc::channel(1);
        let mut table = lock(&self.table);
        if table.len() >= MAX {
            table.retain(|_, entry| !entry.is_over(now));
        }
        if table.values().filter(|entry| entry.owner == owner).count() >= MAX_PER_PAIR {
            let of_pair = table.iter().filter(|(_, entry)| entry.owner == owner);
            let oldest = of_pair.filter_map(|(id, entry)| match entry.state {
                State::Kept { until, .. } => Some((until, id.clone())),
                State::Live(_) => None,
            });
            let (_, id) = oldest.min()?;
            table.remove(&id);
        }
        if table.len() >= MAX {
            return None;
        }
        table.insert(id.clone(), Entry { owner, state: State::Live(ask.clone()) });
        Some(Claim { id, table: self.table.clone(), keep: self.keep, ask, wanted })
    }

    /// How long counts are kept, for the peer to know (XEP-0198 5, `max`).
    pub(crate) fn keep(&self) -> Duration {
        self.keep
    }

    /// Takes the count of a stream that was first proven for `owner`. `None` if there is none to be had: it is
    /// unknown, another's, expired, or its stream did not settle in time (`item-not-found`).
    pub(crate) async fn take(&self, id: &str, owner: &Pair) -> Option<u32> {
        let ask = {
            let mut table = lock(&self.table);
            let entry =
                table.get(id).filter(|entry| *entry.owner == *owner && !entry.is_over(Instant::now()))?;
            match &entry.state {
                State::Live(ask) => ask.clone(),
                State::Kept { count, .. } => {
                    let count = *count;
                    table.remove(id);
                    return Some(count);
                }
            }
        };
        let (tell, told) = oneshot::channel();
        // Fails when another stream has asked already.
        ask.try_send(tell).ok()?;
        tokio::time::timeout(TAKEOVER, told).await.ok()?.ok()
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.table).len()
    }
}

impl Entry {
    fn is_of(&self, claim: &mpsc::Sender<oneshot::Sender<u32>>) -> bool {
        matches!(&self.state, State::Live(ask) if ask.same_channel(claim))
    }

    fn is_over(&self, now: Instant) -> bool {
        matches!(self.state, State::Kept { until, .. } if until <= now)
    }
}

impl Claim {
    /// What the peer resumes the stream with.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Ready when another stream resumes this one: it must take nothing more, end with `conflict`, and say how
    /// many stanzas it has taken once that is certain.
    pub(crate) fn poll_wanted(&mut self, cx: &mut Context<'_>) -> Poll<oneshot::Sender<u32>> {
        // A sender lives as long as the claim, so there is no end of it.
        self.wanted.poll_recv(cx).map(|tell| tell.unwrap_or_else(|| oneshot::channel().0))
    }

    /// The connection broke after so many stanzas were taken for certain.
    pub(crate) fn keep(mut self, count: u32) {
        if let Ok(tell) = self.wanted.try_recv() {
            // Another stream waits for just that; if it has gone meanwhile, the peer begins anew.
            let _ = tell.send(count);
            return;
        }
        let until = Instant::now() + self.keep;
        if let Some(entry) = lock(&self.table).get_mut(&self.id)
            && entry.is_of(&self.ask)
        {
            entry.state = State::Kept { count, until };
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if table.get(&self.id).is_some_and(|entry| entry.is_of(&self.ask)) {
            table.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(remote: &str) -> Arc<Pair> {
        Arc::new(Pair::new("us.example", remote))
    }

    #[actix_rt::test]
    async fn m9_only_the_pair_that_a_count_belongs_to_gets_it_and_once() {
        let resumable = Resumable::new(Duration::from_secs(60));
        let claim = resumable.claim(pair("a.org")).unwrap();
        let id = claim.id().to_owned();
        assert!(id.len() >= 22, "at least 128 bits");
        claim.keep(7);
        assert_eq!(resumable.take(&id, &pair("b.org")).await, None);
        assert_eq!(resumable.take(&id, &Pair::new("other.example", "a.org")).await, None);
        assert_eq!(resumable.take("unknown", &pair("a.org")).await, None);
        assert_eq!(resumable.take(&id, &pair("a.org")).await, Some(7));
        assert_eq!(resumable.take(&id, &pair("a.org")).await, None, "given once");
        assert_eq!(resumable.len(), 0);
    }

    #[actix_rt::test]
    async fn m9_a_living_stream_is_asked_and_one_of_two_wins() {
        let resumable = Arc::new(Resumable::new(Duration::from_secs(60)));
        let mut claim = resumable.claim(pair("a.org")).unwrap();
        let id = claim.id().to_owned();
        let first = actix_rt::spawn({
            let (resumable, id) = (resumable.clone(), id.clone());
            async move { resumable.take(&id, &pair("a.org")).await }
        });
        let tell = std::future::poll_fn(|cx| claim.poll_wanted(cx)).await;
        let another = actix_rt::spawn({
            let (resumable, id) = (resumable.clone(), id.clone());
            async move { resumable.take(&id, &pair("a.org")).await }
        });
        tell.send(3).unwrap();
        assert_eq!(first.await.unwrap(), Some(3));
        drop(claim);
        assert_eq!(another.await.unwrap(), None);
        assert_eq!(resumable.len(), 0, "a stream that ended cannot be resumed");
    }

    #[actix_rt::test]
    async fn a_stream_that_breaks_while_it_is_asked_still_answers() {
        let resumable = Arc::new(Resumable::new(Duration::from_secs(60)));
        let claim = resumable.claim(pair("a.org")).unwrap();
        let id = claim.id().to_owned();
        let asking = actix_rt::spawn({
            let resumable = resumable.clone();
            async move { resumable.take(&id, &pair("a.org")).await }
        });
        tokio::task::yield_now().await;
        claim.keep(9);
        assert_eq!(asking.await.unwrap(), Some(9));
        assert_eq!(resumable.len(), 0);
    }

    #[test]
    fn m9_the_table_is_bounded_and_expires() {
        let resumable = Resumable::new(Duration::from_secs(60));
        let now = Instant::now();
        let mut first = None;
        for _ in 0..MAX_PER_PAIR {
            let claim = resumable.claim_at(pair("a.org"), now).unwrap();
            first.get_or_insert_with(|| claim.id().to_owned());
            claim.keep(1);
        }
        let live: Vec<_> =
            (0..MAX_PER_PAIR).map(|_| resumable.claim_at(pair("a.org"), now).unwrap()).collect();
        assert!(!lock(&resumable.table).contains_key(first.unwrap().as_str()), "the oldest made room");
        assert!(resumable.claim_at(pair("a.org"), now).is_none(), "living streams keep their places");
        let others: Vec<_> = (MAX_PER_PAIR..MAX)
            .map(|n| resumable.claim_at(pair(&format!("{n}.org")), now).unwrap())
            .collect();
        assert_eq!(resumable.len(), MAX);
        assert!(resumable.claim_at(pair("one-more.org"), now).is_none());
        drop(live);
        assert_eq!(resumable.len(), MAX - MAX_PER_PAIR);
        others.into_iter().for_each(|claim| claim.keep(1));
        let more: Vec<_> =
            (0..MAX_PER_PAIR).map(|n| resumable.claim_at(pair(&format!("m{n}.org")), now).unwrap()).collect();
        assert!(resumable.claim_at(pair("one-more.org"), now).is_none());
        let later = Instant::now() + Duration::from_secs(61);
        assert!(resumable.claim_at(pair("one-more.org"), later).is_some(), "what is over makes room");
        drop(more);
        assert!(Resumable::new(Duration::ZERO).claim(pair("a.org")).is_none());
    }
}

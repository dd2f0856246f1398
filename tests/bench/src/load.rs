//! What loads of messages and of presence share: the clock that stamps what is sent, the buffer
//! that all connections read into, the latencies, and the end of a measurement.
//!
//! Everything runs in one thread, so that no lock and no second copy of the
//! buffer costs the generator time. The buffer is borrowed within one poll
//! only, never across an await.

use std::cell::{RefCell, RefMut};
use std::future::poll_fn;
use std::io;
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, LocalSet};
use waystation_harness::wire::Wire;

use crate::Failure;
use crate::histogram::Histogram;

/// A clock, a buffer and latencies for all the users of a load.
pub(crate) struct Ground {
    epoch: Instant,
    scratch: RefCell<Vec<u8>>,
    latencies: RefCell<Histogram>,
}

/// The latencies of a stretch of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Latencies {
    /// The time of the faster half, in milliseconds.
    pub(crate) p50_ms: f64,
    /// The time that 99 of 100 stay below, in milliseconds.
    pub(crate) p99_ms: f64,
}

impl Ground {
    /// Starts the clock; a single read takes up to `chunk` bytes.
    pub(crate) fn new(chunk: usize) -> Self {
        Self { epoch: Instant::now(), scratch: RefCell::new(vec![0; chunk]), latencies: RefCell::default() }
    }

    /// Nanoseconds since the start.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Appends what has arrived to `inbox` and returns how many bytes that were; 0 is the end.
    pub(crate) async fn fill(&self, wire: &mut Wire, inbox: &mut Vec<u8>) -> io::Result<usize> {
        poll_fn(|cx| wire.poll_read(cx, &mut self.scratch.borrow_mut(), inbox)).await
    }

    /// The buffer that all connections read into, for one poll.
    pub(crate) fn scratch(&self) -> RefMut<'_, Vec<u8>> {
        self.scratch.borrow_mut()
    }

    /// Waits for something to be read, up to a moment of this clock; `None` when it came first.
    pub(crate) async fn before(
        &self,
        due: u64,
        fill: impl Future<Output = io::Result<usize>>,
    ) -> io::Result<Option<usize>> {
        let due = tokio::time::Instant::from_std(self.epoch + Duration::from_nanos(due));
        tokio::time::timeout_at(due, fill).await.ok().transpose()
    }

    /// Counts something sent at `sent` that is there at `now`.
    pub(crate) fn record(&self, sent: u64, now: u64) {
        self.latencies.borrow_mut().record(now.saturating_sub(sent));
    }

    /// The latencies since the last call.
    pub(crate) fn take_latencies(&self) -> Latencies {
        let taken = self.latencies.take();
        let millis = |p| taken.percentile(p).as_secs_f64() * 1e3;
        Latencies { p50_ms: millis(0.5), p99_ms: millis(0.99) }
    }
}

/// Runs the users until the measurement is over. A user's task ends only by a failure: whichever
/// comes first decides.
pub(crate) async fn until_measured<T>(
    tasks: LocalSet,
    mut users: JoinSet<io::Result<()>>,
    measured: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tasks
        .run_until(async {
            tokio::select! {
                outcome = measured => outcome,
                Some(ended) = users.join_next() => match ended {
                    Ok(Err(e)) => Err(e.into()),
                    Ok(Ok(())) => Err(Failure::Load("the server closed a session".into())),
                    Err(e) => Err(Failure::task(e)),
                },
            }
        })
        .await
}

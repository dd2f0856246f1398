//! What a stretch of load cost: wall time, the server's CPU time, and the generator's own.

use std::time::{Duration, Instant};

use serde::Serialize;
use waystation_harness::process::{cpu_time, own_cpu_time};

use crate::Failure;

/// A process is at rest when it took less than a fiftieth of this time.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a process may take to come to rest.
const MAX_REST: Duration = Duration::from_secs(30);

/// A running measurement.
pub(crate) struct Meter {
    pids: Vec<u32>,
    began: Instant,
    server: Duration,
    own: Duration,
}

/// The cost of a stretch of load, in seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Cost {
    /// Wall time.
    pub(crate) wall: f64,
    /// CPU time of all the server's threads, kernel included; of both servers where there are two.
    pub(crate) server_cpu: f64,
    /// CPU time of the generator.
    pub(crate) generator_cpu: f64,
}

impl Meter {
    /// Starts measuring these processes, as one, and this one.
    pub(crate) fn start(pids: &[u32]) -> Result<Self, Failure> {
        let pids = pids.to_vec();
        Ok(Self { server: sum(&pids)?, pids, own: own_cpu_time()?, began: Instant::now() })
    }

    /// The cost since the start.
    pub(crate) fn cost(&self) -> Result<Cost, Failure> {
        Ok(Cost {
            wall: self.began.elapsed().as_secs_f64(),
            server_cpu: (sum(&self.pids)? - self.server).as_secs_f64(),
            generator_cpu: (own_cpu_time()? - self.own).as_secs_f64(),
        })
    }
}

fn sum(pids: &[u32]) -> std::io::Result<Duration> {
    pids.iter().map(|pid| cpu_time(*pid)).sum()
}

/// Waits until a process has next to nothing to do: what it put off would count for what comes next.
pub(crate) async fn rest(pid: u32) -> Result<(), Failure> {
    let end = Instant::now() + MAX_REST;
    let mut last = cpu_time(pid)?;
    while Instant::now() < end {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = cpu_time(pid)?;
        if now - last < LOOK_EVERY / 50 {
            break;
        }
        last = now;
    }
    Ok(())
}

impl Cost {
    /// Things done per second of wall time.
    pub(crate) fn per_second(&self, count: u64) -> f64 {
        as_f64(count) / self.wall
    }

    /// Things done per second of the server's CPU time.
    pub(crate) fn per_cpu_second(&self, count: u64) -> f64 {
        as_f64(count) / self.server_cpu
    }

    /// The server's CPU time for one thing, in microseconds.
    pub(crate) fn server_micros(&self, count: u64) -> f64 {
        self.server_cpu * 1e6 / as_f64(count)
    }

    /// The generator's CPU time for one thing, in microseconds.
    pub(crate) fn generator_micros(&self, count: u64) -> f64 {
        self.generator_cpu * 1e6 / as_f64(count)
    }

    /// Whether the generator was the limit: it had no time left while the server had.
    pub(crate) fn generator_bound(&self) -> bool {
        self.generator_cpu > 0.95 * self.wall && self.server_cpu < 0.9 * self.wall
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(crate) fn as_f64(count: u64) -> f64 {
    count as f64
}

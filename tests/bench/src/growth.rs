//! What a message costs while more and more is there that has nothing to do with it.
//!
//! The load is that of [`pairs`] at a fixed rate, which every server manages: so
//! each message meets the same conditions, however fast the server is. Both
//! figures come from one server, one after the other, with the same users
//! logged in all the time: only what grows differs.

use std::ops::Range;

use serde::Serialize;
use waystation_harness::Endpoint;

use crate::Failure;
use crate::meter::rest;
use crate::pairs::{self, Game, Stretch};
use crate::sessions::{self, Access};

/// The shape of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Who talks.
    pub(crate) pairs: pairs::Shape,
    /// Messages a second while measuring.
    pub(crate) rate: f64,
    /// The smaller size.
    pub(crate) few: usize,
    /// The larger size.
    pub(crate) many: usize,
}

/// The cost at one size.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Point {
    /// How much was there when measuring began.
    pub(crate) size: u64,
    /// The figures.
    #[serde(flatten)]
    pub(crate) stretch: Stretch,
}

impl Point {
    /// The server's CPU time for one message, in microseconds.
    pub(crate) fn server_micros(&self) -> f64 {
        self.stretch.cost.server_micros(self.stretch.delivered)
    }
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// At the smaller size.
    pub(crate) few: Point,
    /// At the larger size.
    pub(crate) many: Point,
    /// Messages a second that were wanted.
    pub(crate) rate: f64,
    /// Messages that were sent and never arrived.
    pub(crate) lost: u64,
}

impl Outcome {
    /// How many times as much a message costs at the larger size.
    pub(crate) fn ratio(&self) -> f64 {
        self.many.server_micros() / self.few.server_micros()
    }

    /// Whether the server kept up with the rate at both sizes: if not, it had more to do for each message
    /// than the others, or less.
    pub(crate) fn kept_rate(&self) -> bool {
        let kept = |p: &Point| p.stretch.cost.per_second(p.stretch.delivered) > 0.95 * self.rate;
        kept(&self.few) && kept(&self.many)
    }
}

/// Measures with `few` and with `many` further sessions that are available and say nothing.
pub(crate) async fn sessions(
    at: &Endpoint,
    pid: u32,
    access: Access,
    shape: Shape,
) -> Result<Outcome, Failure> {
    let first = shape.pairs.pairs * 2;
    pairs::play(at, pid, access, shape.pairs, async |game: &Game| {
        let mut crowd = Vec::new();
        let mut grow = async |size: usize| {
            game.pause();
            let further: Range<usize> = first + crowd.len()..first + size;
            crowd.extend(sessions::open(at, access, further).await?);
            let stretch = measure(game, pid, shape.rate).await?;
            Ok::<_, Failure>(Point { size: crowd.len() as u64, stretch })
        };
        let (few, many) = (grow(shape.few).await?, grow(shape.many).await?);
        let lost = game.stop().await;
        // Whoever was closed meanwhile was not there to be measured.
        for client in &mut crowd {
            client.drain().await?;
        }
        for client in crowd {
            client.reset()?;
        }
        Ok(Outcome { few, many, rate: shape.rate, lost })
    })
    .await
}

/// Measures with `few` and with `many` messages in the archive, which the pairs sent before as fast as
/// they could. Each is kept twice: for its sender and for its recipient.
pub(crate) async fn archive(
    at: &Endpoint,
    pid: u32,
    access: Access,
    shape: Shape,
) -> Result<Outcome, Failure> {
    pairs::play(at, pid, access, shape.pairs, async |game: &Game| {
        let grow = async |size: usize| {
            game.set_rate(None);
            game.reach(size as u64).await?;
            game.pause();
            let size = game.sent();
            let stretch = measure(game, pid, shape.rate).await?;
            Ok::<_, Failure>(Point { size, stretch })
        };
        let (few, many) = (grow(shape.few).await?, grow(shape.many).await?);
        Ok(Outcome { few, many, rate: shape.rate, lost: game.stop().await })
    })
    .await
}

/// Measures at this rate, after a pause in which the server comes to rest: what it put off while it was
/// filled is not what a message costs later.
async fn measure(game: &Game, pid: u32, rate: f64) -> Result<Stretch, Failure> {
    rest(pid).await?;
    game.set_rate(Some(rate));
    game.measure().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Cost;

    #[test]
    fn ratios_are_of_cost_per_message() {
        let point = |server_cpu, delivered| Point {
            size: 1,
            stretch: Stretch {
                delivered,
                p50_ms: 0.0,
                p99_ms: 0.0,
                cost: Cost { wall: 1.0, server_cpu, generator_cpu: 0.0 },
            },
        };
        let outcome = Outcome { few: point(1.0, 1_000), many: point(3.0, 2_000), rate: 2_000.0, lost: 0 };
        assert!((outcome.few.server_micros() - 1_000.0).abs() < 1e-6);
        assert!((outcome.ratio() - 1.5).abs() < 1e-9);
        assert!(!outcome.kept_rate());
        assert!(Outcome { rate: 1_000.0, ..outcome }.kept_rate());
    }
}

//! The figures of each outcome, as the report shows them.
//!
//! Every outcome of a workload gives the same figures in the same order, on
//! every server: medians and ratios are taken line by line. The first figure is
//! the one that stands for the workload where there is room for one only.

use crate::meter::{Cost, as_f64};
use crate::pairs::Commits;
use crate::stats::short;
use crate::suite::Outcome;

/// What the generator spent per message.
const GENERATOR: &str = "generator, µs of CPU per message";

/// One figure of an outcome.
pub(crate) struct Figure {
    /// Its name with its unit.
    pub(crate) name: &'static str,
    /// Its value.
    pub(crate) value: f64,
    /// Whether more is better; decides what a ratio of two servers means.
    pub(crate) more_is_better: bool,
    /// Whether the ratio to the peers is worth a column.
    pub(crate) compare: bool,
}

/// The figures of an outcome.
pub(crate) fn figures(outcome: &Outcome) -> Vec<Figure> {
    let up = |name, value, compare| Figure { name, value, more_is_better: true, compare };
    let down = |name, value, compare| Figure { name, value, more_is_better: false, compare };
    match outcome {
        Outcome::Pairs(o) => {
            let (cost, count) = (&o.stretch.cost, o.stretch.delivered);
            vec![
                up("messages per CPU second", cost.per_cpu_second(count), true),
                up("messages per second", cost.per_second(count), true),
                down("p50, ms", o.stretch.p50_ms, true),
                down("p99, ms", o.stretch.p99_ms, true),
                down(GENERATOR, cost.generator_micros(count), false),
                down("messages lost", as_f64(o.lost), false),
            ]
        }
        Outcome::Logins(o) => vec![
            up("logins per CPU second", o.cost.per_cpu_second(o.logins), true),
            up("logins per second", o.cost.per_second(o.logins), true),
            down("generator, µs of CPU per login", o.cost.generator_micros(o.logins), false),
        ],
        Outcome::Presence(o) => vec![
            up("copies per CPU second", o.cost.per_cpu_second(o.copies), true),
            up("copies per second", o.cost.per_second(o.copies), true),
            down("p50, ms", o.p50_ms, true),
            down("p99, ms", o.p99_ms, true),
            down("generator, µs of CPU per copy", o.cost.generator_micros(o.copies), false),
        ],
        Outcome::Idle(o) => vec![
            down("resident KB per session", o.rss_per_session / 1024.0, true),
            down("proportional KB per session", o.pss_per_session / 1024.0, false),
        ],
        Outcome::Drain(o) => vec![
            up("messages per CPU second", o.cost.per_cpu_second(o.delivered), true),
            up("messages per second", o.cost.per_second(o.delivered), true),
            down(GENERATOR, o.cost.generator_micros(o.delivered), false),
            down("messages lost", as_f64(o.lost), false),
            down("messages twice", as_f64(o.surplus), false),
        ],
        Outcome::Growth(o) => {
            let many = &o.many.stretch;
            vec![
                down("µs of CPU per message with the larger number", o.many.server_micros(), true),
                down("µs of CPU per message with the smaller number", o.few.server_micros(), true),
                down("larger to smaller", o.ratio(), false),
                down("the larger number", as_f64(o.many.size), false),
                down("the smaller number", as_f64(o.few.size), false),
                up("messages per second with the larger number", many.cost.per_second(many.delivered), false),
                down("p99 with the larger number, ms", many.p99_ms, false),
                down(GENERATOR, many.cost.generator_micros(many.delivered), false),
                down("messages lost", as_f64(o.lost), false),
            ]
        }
        Outcome::Blackhole(o) => {
            let (without, with) = (&o.without, &o.with);
            let megabytes = |bytes| as_f64(bytes) / f64::from(1 << 20);
            vec![
                down("p99 to the other server, with to without", o.across_ratio(), false),
                down("p99 to the other server without, ms", without.across.p99_ms, false),
                down("p99 to the other server with, ms", with.across.p99_ms, false),
                down("p99 within the server, with to without", o.within_ratio(), false),
                down("p99 within the server without, ms", without.within.p99_ms, false),
                down("p99 within the server with, ms", with.within.p99_ms, false),
                down("resident MB without", megabytes(without.rss), false),
                down("resident MB with", megabytes(with.rss), false),
                up("messages waiting", as_f64(o.waiting), false),
                down("messages lost", as_f64(o.lost), false),
                down("messages twice", as_f64(o.surplus), false),
            ]
        }
    }
}

/// What must be known of an outcome beside its figures.
pub(crate) fn remarks(outcome: &Outcome) -> Vec<String> {
    let limit = match outcome {
        Outcome::Growth(o) if !o.kept_rate() => Some("the server did not keep up with the rate"),
        Outcome::Blackhole(o) if !o.kept_rate() => Some("the servers did not keep up with the rate"),
        other => bound_by_generator(other).then_some("limited by the generator"),
    };
    let commits = match outcome {
        Outcome::Pairs(o) => o.commits.as_ref().map(|commits| {
            let Commits { median_ms, p99_ms } = *commits;
            format!(
                "a commit took {} ms in the median, 99 of 100 no more than {} ms: the p99 of messages is {} and {} \
                 times that",
                short(median_ms),
                short(p99_ms),
                short(o.stretch.p99_ms / median_ms),
                short(o.stretch.p99_ms / p99_ms)
            )
        }),
        _ => None,
    };
    limit.map(str::to_owned).into_iter().chain(commits).collect()
}

/// Whether the generator, not the server, was the limit.
fn bound_by_generator(outcome: &Outcome) -> bool {
    let cost: &Cost = match outcome {
        Outcome::Pairs(o) => &o.stretch.cost,
        Outcome::Logins(o) => &o.cost,
        Outcome::Presence(o) => &o.cost,
        Outcome::Drain(o) => &o.cost,
        Outcome::Growth(o) => &o.many.stretch.cost,
        Outcome::Blackhole(o) => &o.with.across.cost,
        Outcome::Idle(_) => return false,
    };
    cost.generator_bound()
}

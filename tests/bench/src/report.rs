//! The report: raw results as JSON, medians with their spread and ratios as Markdown, ratios as a
//! picture.
//!
//! Ratios are of medians, and always above 1 where ours is better, whichever
//! way a figure counts. What was not measured and what must be known of a run
//! stands below the table, so that no gap and no figure goes without a word.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::Failure;
use crate::figures::{Figure, figures, remarks};
use crate::machine::Machine;
use crate::plot::{self, Chart, Group};
use crate::stats::{Spread, short};
use crate::subjects::FLOOR;
use crate::suite::{Omission, Run};

/// The pictures' files beside the report: of single servers, and of two that talk to each other.
const PICTURES: [&str; 2] = ["ratios.svg", "ratios-federation.svg"];

/// Above the table of two servers that talk to each other.
const BETWEEN: &str = "## Between two servers\n\nThe two named servers have core 0 together, and what one costs \
    counts with what the other does. Streams between them: STARTTLS and SASL EXTERNAL with certificates of an \
    authority that all trust, found by SRV; stream management (XEP-0198) but with ejabberd, which has none \
    there; used in both directions (XEP-0288) between two of ours only.";

/// What was measured, all of it.
pub(crate) struct Results<'a> {
    /// Names and versions of the servers, in the order of the columns.
    pub(crate) servers: &'a [(&'static str, String)],
    /// The results, in the order of measuring.
    pub(crate) runs: &'a [Run],
    /// What is missing, and why.
    pub(crate) omissions: &'a [Omission],
}

/// A run in one line, for the terminal.
pub(crate) fn line(run: &Run) -> String {
    let mut text = format!("{:<16} {:<18} #{}", run.server, run.workload, run.round + 1);
    for figure in figures(&run.outcome) {
        let _infallible = write!(text, "  {} {}", short(figure.value), figure.name);
    }
    for remark in remarks(&run.outcome) {
        let _infallible = write!(text, "  ({remark})");
    }
    text
}

/// Writes `report.json`, `report.md` and its picture into `folder`, and the Markdown to standard output.
pub(crate) fn write(folder: &Path, results: &Results<'_>) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    let machine = Machine::of(&std::env::temp_dir());
    let Results { servers, runs, omissions } = results;
    let json = json!({ "machine": machine, "servers": servers, "runs": runs, "omitted": omissions });
    fs::write(folder.join("report.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    let tables = Table::all(results);
    for (table, file) in tables.iter().zip(PICTURES) {
        if let Some(picture) = plot::svg(&table.chart()) {
            fs::write(folder.join(file), picture)?;
        }
    }
    let markdown = markdown(&machine.to_string(), results, &tables);
    fs::write(folder.join("report.md"), &markdown)?;
    std::io::stdout().write_all(markdown.as_bytes())?;
    Ok(())
}

fn markdown(machine: &str, results: &Results<'_>, tables: &[Table; 2]) -> String {
    let rounds = results.runs.iter().map(|r| r.round + 1).max().unwrap_or(0);
    let mut text = format!(
        "# Load, measured side by side\n\nMachine: {machine}. The server has core 0 to itself, the generator \
         core 1. Medians of {rounds}, with the smallest and the largest value.\n\nServers:"
    );
    for (name, version) in results.servers {
        let _infallible = write!(text, " {name} {version};");
    }
    text.pop();
    text.push_str(".\n\n");
    for (n, (table, file)) in tables.iter().zip(PICTURES).enumerate() {
        if table.rows.is_empty() {
            continue;
        }
        if n > 0 {
            let _infallible = write!(text, "\n{BETWEEN}\n\n");
        }
        if plot::svg(&table.chart()).is_some() {
            let _infallible = writeln!(text, "![How many times better than the better peer]({file})\n");
        }
        table.write(&mut text);
    }
    for (run, remark) in
        results.runs.iter().flat_map(|run| remarks(&run.outcome).into_iter().map(move |remark| (run, remark)))
    {
        let _infallible = write!(text, "\n* {} {} #{}: {remark}.", run.server, run.workload, run.round + 1);
    }
    for Omission { server, workload, reason } in results.omissions {
        let _infallible = write!(text, "\n* {server} {workload}: {reason}.");
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

/// One of ours beside the peers that it is fair to compare it with.
struct Comparison {
    ours: usize,
    name: String,
    peers: Vec<usize>,
}

/// Each of ours with the peers without an archive, and the one with it with those that have one.
fn comparisons(servers: &[&'static str]) -> Vec<Comparison> {
    let indexes = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..servers.len()).filter(|index| wanted(servers[*index])).collect()
    };
    let is_ours = |name: &str| name.starts_with("waystation") || name == FLOOR;
    let mut all = Vec::new();
    // Of two servers, both.
    let has_archive = |name: &str| name.split('+').all(|n| n == "waystation" || n.ends_with("-archive"));
    for archive in [false, true] {
        let peers = indexes(&|name| !is_ours(name) && has_archive(name) == archive);
        let what = if archive { "better peer with its archive" } else { "better peer" };
        if !peers.is_empty() {
            for ours in indexes(&|name| is_ours(name) && (!archive || has_archive(name))) {
                let name = format!("{}: times better than the {what}", servers[ours]);
                all.push(Comparison { ours, name, peers: peers.clone() });
            }
        }
    }
    all
}

/// All figures of all servers.
struct Table {
    servers: Vec<&'static str>,
    comparisons: Vec<Comparison>,
    rows: Vec<Row>,
}

/// One figure of one workload.
struct Row {
    workload: String,
    figure: &'static str,
    /// Of each server.
    cells: Vec<Option<Spread>>,
    /// Of each comparison.
    ratios: Vec<Option<f64>>,
    /// Whether it is the workload's first figure, which stands for it.
    leads: bool,
}

impl Table {
    /// That of single servers, and that of two which talk to each other.
    fn all(results: &Results<'_>) -> [Self; 2] {
        [false, true].map(|both| Self::of(results, &|name| name.contains('+') == both))
    }

    /// That of some of the servers.
    fn of(results: &Results<'_>, included: &dyn Fn(&str) -> bool) -> Self {
        let servers: Vec<&'static str> =
            results.servers.iter().map(|(name, _)| *name).filter(|name| included(name)).collect();
        let comparisons = comparisons(&servers);
        let mut rows: Vec<Row> = Vec::new();
        for Run { workload, server, .. } in results.runs {
            if !included(server) || rows.iter().any(|row| row.workload == *workload) {
                continue;
            }
            let of = |server: &&str| -> Vec<Vec<Figure>> {
                let mine = results.runs.iter().filter(|r| r.workload == *workload && r.server == *server);
                mine.map(|r| figures(&r.outcome)).collect()
            };
            let all: Vec<Vec<Vec<Figure>>> = servers.iter().map(of).collect();
            let Some(shape) = all.iter().flatten().next() else { continue };
            for (i, figure) in shape.iter().enumerate() {
                let values = |rounds: &Vec<Vec<Figure>>| rounds.iter().map(|f| f[i].value).collect();
                let cells: Vec<Option<Spread>> =
                    all.iter().map(|rounds| Spread::of(values(rounds))).collect();
                let ratios = comparisons.iter().map(|c| ratio(c, &cells, figure)).collect();
                let (workload, figure) = (workload.clone(), figure.name);
                rows.push(Row { workload, figure, cells, ratios, leads: i == 0 });
            }
        }
        Self { servers, comparisons, rows }
    }

    fn write(&self, text: &mut String) {
        text.push_str("| workload | figure |");
        let names = self.servers.iter().copied().chain(self.comparisons.iter().map(|c| c.name.as_str()));
        for name in names {
            let _infallible = write!(text, " {name} |");
        }
        text.push_str("\n|---|---|");
        text.push_str(&"---|".repeat(self.servers.len() + self.comparisons.len()));
        text.push('\n');
        for row in &self.rows {
            let _infallible = write!(text, "| {} | {} |", row.workload, row.figure);
            for cell in &row.cells {
                let _infallible = write!(text, " {} |", cell.map_or("-".to_owned(), |cell| cell.show()));
            }
            for ratio in &row.ratios {
                let _infallible = write!(text, " {} |", ratio.map(short).unwrap_or_default());
            }
            text.push('\n');
        }
    }

    /// The first figure of each workload as ratios.
    fn chart(&self) -> Chart {
        let group = |row: &Row| Group {
            label: format!("{}: {}", row.workload, row.figure),
            ratios: row.ratios.clone(),
        };
        Chart {
            title: "How many times better than the better peer, medians, on a logarithmic scale".to_owned(),
            series: self.comparisons.iter().map(|c| c.name.clone()).collect(),
            groups: self.rows.iter().filter(|row| row.leads).map(group).collect(),
        }
    }
}

/// How many times better ours is than the best of the peers.
fn ratio(comparison: &Comparison, cells: &[Option<Spread>], figure: &Figure) -> Option<f64> {
    let of = |index: usize| cells[index].map(|cell| cell.median);
    let peers = comparison.peers.iter().filter_map(|index| of(*index));
    let best = peers.reduce(|a, b| if (a > b) == figure.more_is_better { a } else { b })?;
    let ours = of(comparison.ours)?;
    figure.compare.then_some(if figure.more_is_better { ours / best } else { best / ours })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::Outcome;
    use crate::{idle, logins, meter};

    fn idle(server: &'static str, round: usize, kilobytes: f64) -> Run {
        let bytes = kilobytes * 1024.0;
        let outcome = idle::Outcome {
            sessions: 1,
            baseline_rss: 0,
            rss: 0,
            rss_per_session: bytes,
            pss_per_session: bytes,
        };
        Run { server, workload: "idle-1".to_owned(), round, outcome: Outcome::Idle(outcome) }
    }

    fn logins(server: &'static str, logins: u64) -> Run {
        let cost = meter::Cost { wall: 1.0, server_cpu: 1.0, generator_cpu: 0.5 };
        let outcome = Outcome::Logins(logins::Outcome { logins, cost });
        Run { server, workload: "logins".to_owned(), round: 0, outcome }
    }

    fn report(runs: &[Run]) -> (String, Option<String>) {
        let names = ["waystation", "waystation-fsync", "prosody", "ejabberd", "ejabberd-archive"];
        let servers = names.map(|name| (name, "1.2".to_owned()));
        let omissions = [Omission {
            server: "prosody",
            workload: "idle-9".to_owned(),
            reason: "not measured; too many".to_owned(),
        }];
        let results = Results { servers: &servers, runs, omissions: &omissions };
        let tables = Table::all(&results);
        (markdown("a machine", &results, &tables), plot::svg(&tables[0].chart()))
    }

    #[test]
    fn rows_have_medians_spreads_and_ratios_to_the_better_peer() {
        let (text, picture) = report(&[
            idle("waystation", 0, 10.0),
            idle("waystation", 1, 12.0),
            idle("waystation", 2, 8.0),
            idle("prosody", 0, 50.0),
            idle("ejabberd", 0, 40.0),
            idle("ejabberd-archive", 0, 80.0),
            logins("waystation-fsync", 300),
            logins("prosody", 50),
            logins("ejabberd", 100),
        ]);
        let has = |row: &str| assert!(text.contains(row), "{row} in\n{text}");
        has("| idle-1 | resident KB per session | 10 (8–12) | - | 50 | 40 | 80 | 4 |  | 8 |\n");
        has("| logins | logins per CPU second | - | 300 | 50 | 100 | - |  | 3 |  |\n");
        has("generator, µs of CPU per login");
        has("* prosody idle-9: not measured; too many.\n");
        has("ejabberd-archive 1.2.\n");
        has("a machine");
        has("](ratios.svg)");
        let picture = picture.unwrap();
        for part in [">4.00<", ">8.00<", ">3.00<", "idle-1: resident KB per session"] {
            assert!(picture.contains(part), "{part} in {picture}");
        }
        assert!(!picture.contains("proportional"));
    }

    #[test]
    fn two_servers_are_compared_with_two() {
        let names =
            ["waystation", "prosody", "waystation+waystation", "waystation+prosody", "prosody+prosody"];
        let servers = names.map(|name| (name, "1.2".to_owned()));
        let runs = [
            logins("prosody", 1_000),
            logins("waystation+waystation", 600),
            logins("waystation+prosody", 300),
            logins("prosody+prosody", 200),
        ];
        let results = Results { servers: &servers, runs: &runs, omissions: &[] };
        let text = markdown("a machine", &results, &Table::all(&results));
        for row in [
            "| logins | logins per CPU second | - | 1,000 |  |\n",
            "## Between two servers",
            "| logins | logins per CPU second | 600 | 300 | 200 | 3 | 1.50 |\n",
            "](ratios-federation.svg)",
        ] {
            assert!(text.contains(row), "{row} in\n{text}");
        }
    }

    #[test]
    fn without_peers_there_is_a_table_and_no_picture() {
        let servers = [("waystation", "1".to_owned())];
        let runs = [idle("waystation", 0, 10.0)];
        let results = Results { servers: &servers, runs: &runs, omissions: &[] };
        let tables = Table::all(&results);
        assert!(plot::svg(&tables[0].chart()).is_none());
        let text = markdown("a machine", &results, &tables);
        assert!(text.ends_with("| idle-1 | proportional KB per session | 10 |\n"), "{text}");
        assert!(!text.contains("svg"));
    }
}

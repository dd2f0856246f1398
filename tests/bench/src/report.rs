//! The report: raw results as JSON, medians and ratios as Markdown.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::json;

use crate::Failure;
use crate::figures::{Figure, figures, remark};
use crate::suite::{Omission, Run};

/// A run in one line, for the terminal.
pub(crate) fn line(run: &Run) -> String {
    let mut text = format!("{:<11} {:<18} #{}", run.server, run.workload, run.round + 1);
    for figure in figures(&run.outcome) {
        let _infallible = write!(text, "  {} {}", short(figure.value), figure.name);
    }
    if let Some(remark) = remark(&run.outcome) {
        let _infallible = write!(text, "  ({remark})");
    }
    text
}

/// Writes `report.json` and `report.md` into `folder`, and the Markdown to standard output.
pub(crate) fn write(
    folder: &Path,
    servers: &[(&'static str, String)],
    runs: &[Run],
    omissions: &[Omission],
) -> Result<(), Failure> {
    fs::create_dir_all(folder)?;
    let machine = machine();
    let json = json!({ "machine": machine, "servers": servers, "runs": runs, "omitted": omissions });
    fs::write(folder.join("report.json"), serde_json::to_string_pretty(&json)? + "\n")?;
    let markdown = markdown(&machine, servers, runs, omissions);
    fs::write(folder.join("report.md"), &markdown)?;
    std::io::stdout().write_all(markdown.as_bytes())?;
    Ok(())
}

fn markdown(
    machine: &str,
    servers: &[(&'static str, String)],
    runs: &[Run],
    omissions: &[Omission],
) -> String {
    let rounds = runs.iter().map(|r| r.round + 1).max().unwrap_or(0);
    let mut text = format!(
        "# Load, measured side by side\n\nMachine: {machine}. The server has core 0 to itself, the generator core 1. \
         Medians of {rounds}.\n\nServers:"
    );
    for (name, version) in servers {
        let _infallible = write!(text, " {name} {version};");
    }
    text.pop();
    text.push_str(".\n\n| workload | figure |");
    for (name, _) in servers {
        let _infallible = write!(text, " {name} |");
    }
    let comparisons = comparisons(servers);
    for comparison in &comparisons {
        let peers = if comparison.archive { "better peer with its archive" } else { "better peer" };
        let _infallible = write!(text, " {}: times better than the {peers} |", servers[comparison.ours].0);
    }
    text.push_str("\n|---|---|");
    text.push_str(&"---|".repeat(servers.len() + comparisons.len()));
    text.push('\n');
    let mut names: Vec<&str> = Vec::new();
    for run in runs {
        if !names.contains(&run.workload.as_str()) {
            names.push(&run.workload);
        }
    }
    for workload in names {
        rows(&mut text, workload, servers, runs, &comparisons);
    }
    for (run, remark) in runs.iter().filter_map(|run| Some((run, remark(&run.outcome)?))) {
        let _infallible = write!(text, "\n{} {} #{}: {remark}.", run.server, run.workload, run.round + 1);
    }
    for Omission { server, workload, reason } in omissions {
        let _infallible = write!(text, "\n{server} {workload}: not measured; {reason}.");
    }
    text
}

/// One of ours beside the peers that it is fair to compare it with.
struct Comparison {
    ours: usize,
    peers: Vec<usize>,
    archive: bool,
}

/// Each of ours with the peers without an archive, and the one with it with those that have one.
fn comparisons(servers: &[(&'static str, String)]) -> Vec<Comparison> {
    let indexes = |wanted: &dyn Fn(&str) -> bool| -> Vec<usize> {
        (0..servers.len()).filter(|index| wanted(servers[*index].0)).collect()
    };
    let is_ours = |name: &str| name.starts_with("waystation");
    let mut all = Vec::new();
    for archive in [false, true] {
        let peers = indexes(&|name| !is_ours(name) && name.ends_with("-archive") == archive);
        let ours = indexes(&|name| is_ours(name) && (!archive || name == "waystation"));
        if !peers.is_empty() {
            all.extend(ours.into_iter().map(|ours| Comparison { ours, peers: peers.clone(), archive }));
        }
    }
    all
}

fn rows(
    text: &mut String,
    workload: &str,
    servers: &[(&'static str, String)],
    runs: &[Run],
    comparisons: &[Comparison],
) {
    let of = |server: &str| -> Vec<Vec<Figure>> {
        let mine = runs.iter().filter(|r| r.workload == workload && r.server == server);
        mine.map(|r| figures(&r.outcome)).collect()
    };
    let all: Vec<Vec<Vec<Figure>>> = servers.iter().map(|(name, _)| of(name)).collect();
    let Some(shape) = all.iter().flatten().next() else { return };
    for (i, figure) in shape.iter().enumerate() {
        let medians: Vec<Option<f64>> = all
            .iter()
            .map(|rounds| median(rounds.iter().map(|figures| figures[i].value).collect()))
            .collect();
        let _infallible = write!(text, "| {workload} | {} |", figure.name);
        for value in &medians {
            let _infallible = write!(text, " {} |", value.map_or("-".to_owned(), short));
        }
        for comparison in comparisons {
            let peers = comparison.peers.iter().filter_map(|index| medians[*index]);
            let best = peers.reduce(|a, b| if (a > b) == figure.more_is_better { a } else { b });
            let ratio = match (medians[comparison.ours], best) {
                (Some(ours), Some(best)) if figure.compare => {
                    short(if figure.more_is_better { ours / best } else { best / ours })
                }
                _ => String::new(),
            };
            let _infallible = write!(text, " {ratio} |");
        }
        text.push('\n');
    }
}

/// The middle value; of an even number the lower of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Three significant digits where that loses nothing, thousands separated.
fn short(value: f64) -> String {
    if value.abs() < 100.0 {
        return if value == value.trunc() { format!("{value:.0}") } else { format!("{value:.2}") };
    }
    let digits = format!("{value:.0}");
    let first = (digits.len() - 1) % 3 + 1;
    let mut text = digits[..first].to_owned();
    for group in digits.as_bytes()[first..].chunks(3) {
        text.push(',');
        text.push_str(std::str::from_utf8(group).unwrap_or_default());
    }
    text
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let cores = cpuinfo.lines().filter(|l| l.starts_with("processor")).count();
    let mhz = cpuinfo.lines().find_map(|l| l.strip_prefix("cpu MHz")).unwrap_or_default();
    let mhz = mhz.trim_start_matches([' ', '\t', ':']);
    let memory = read("/proc/meminfo");
    let memory = memory.lines().next().and_then(|l| l.split_whitespace().nth(1)).unwrap_or_default();
    let gib = memory.parse::<u64>().unwrap_or(0) / (1024 * 1024);
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split_whitespace().next().unwrap_or_default().to_owned();
    format!(
        "{cores} x {model} at {mhz} MHz, {gib} GiB, Linux {}, load average at the end {load}",
        kernel.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(short(0.5), "0.50");
        assert_eq!(short(7.0), "7");
        assert_eq!(short(123.4), "123");
        assert_eq!(short(1234.0), "1,234");
        assert_eq!(short(1_234_567.0), "1,234,567");
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(1.0));
        assert_eq!(median(vec![]), None);
    }
}

//! `waystation crashtest`

use std::process::ExitCode;

use super::CliError;
use super::arguments::{Crashtest, Durability, Settings};
use super::output::{self, Progress};
use crate::crashtest::{self, Failure, Options, Report};

/// Width of the progress bar.
const BAR: usize = 20;

/// Runs the test. Its exit codes are its own.
pub(super) fn run(command: &Crashtest, settings: &Settings) -> Result<ExitCode, CliError> {
    if !settings.set.is_empty() || settings.data_dir.is_some() {
        return Ok(impossible(
            &"crashtest serves a folder and a configuration of its own; leave --set and \
                               --data-dir out",
        ));
    }
    let durability = match command.durability {
        Durability::Fsync => "fsync",
        Durability::Os => "os",
        Durability::Memory => "memory",
    };
    let options = Options {
        cycles: command.cycles,
        clients: usize::from(command.clients),
        rate: command.rate,
        durability,
        keep: command.keep,
    };
    let mut progress = Progress::new();
    let result = crashtest::run(&options, &mut |at| {
        let (kills, cycles, tally) = (at.kills, options.cycles, at.tally);
        let bar = if progress.is_terminal() { bar(kills, cycles) } else { String::new() };
        progress.at(format_args!(
            "{bar}{kills} of {cycles} kills, {} messages sent, {} acknowledged, {} delivered",
            tally.sent, tally.acknowledged, tally.delivered
        ));
    });
    progress.end();
    let report = match result {
        Ok(report) => report,
        Err(Failure::Interrupted) => return Err(CliError::Interrupted),
        Err(error) => return Ok(impossible(&error)),
    };
    if command.json {
        output::json(&report)?;
    } else {
        show(&report)?;
    }
    Ok(ExitCode::from(u8::from(report.tally.lost > 0)))
}

fn impossible(error: &dyn std::fmt::Display) -> ExitCode {
    output::complain(error);
    ExitCode::from(2)
}

fn bar(done: u32, all: u32) -> String {
    let filled = done as usize * BAR / all.max(1) as usize;
    format!("[{:<BAR$}] ", "#".repeat(filled.min(BAR)))
}

fn show(report: &Report) -> Result<(), CliError> {
    let tally = &report.tally;
    for (name, value) in [
        ("durability", report.durability.to_owned()),
        ("clients", report.clients.to_string()),
        ("kills", report.kills.to_string()),
        ("longest recovery", format!("{} ms from a kill to the first session", report.longest_recovery_ms)),
        ("sessions", format!("{} resumed, {} begun", report.sessions_resumed, report.sessions_begun)),
        ("messages sent", tally.sent.to_string()),
        ("acknowledged", tally.acknowledged.to_string()),
        ("delivered", tally.delivered.to_string()),
        ("returned", format!("{} as errors", tally.returned)),
        ("lost", format!("{} acknowledged and never delivered", tally.lost)),
        ("twice", format!("{} delivered again without a broken stream", tally.doubled)),
        ("stored twice", format!("{} although sent again only as told", tally.stored_twice)),
        ("taken back", format!("{} acknowledged and forgotten on resumption", tally.taken_back)),
        ("out of order", tally.out_of_order.to_string()),
        ("again", format!("{} delivered again after a broken stream, which is allowed", tally.redelivered)),
        ("strange", format!("{} that nobody sent there", tally.strange)),
    ] {
        output::line(format_args!("{name:<18} {value}"))?;
    }
    for message in &report.lost_messages {
        output::line(format_args!("lost: {message}"))?;
    }
    if let Some(folder) = &report.folder {
        output::line(format_args!("kept: {}", folder.display()))?;
    }
    let wrong = tally.doubled + tally.stored_twice + tally.taken_back + tally.out_of_order + tally.strange;
    let verdict = match (tally.lost, wrong) {
        (0, 0) => "Nothing was lost, and every promise was kept.",
        (0, _) => "Nothing was lost, but not every promise was kept: see above.",
        _ => "ACKNOWLEDGED MESSAGES WERE LOST.",
    };
    Ok(output::line(format_args!("\n{verdict}"))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_fills() {
        assert_eq!(bar(0, 10), format!("[{}] ", " ".repeat(BAR)));
        assert_eq!(bar(5, 10), format!("[{}{}] ", "#".repeat(10), " ".repeat(10)));
        assert_eq!(bar(10, 10), format!("[{}] ", "#".repeat(BAR)));
    }
}

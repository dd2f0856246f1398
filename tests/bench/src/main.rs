//! Load generator: the same load for Waystation and for its peers, measured side by side.
//!
//! It starts each server itself, pinned to one core, and runs on the other
//! core in a single thread. Figures are per second of the server's CPU time
//! first, since those do not depend on what else the machine does.

use clap::{Parser, Subcommand};
use waystation_harness::process::pin_to_core;

mod blackhole;
mod channel;
mod drain;
mod federation;
mod figures;
mod floor;
mod growth;
mod histogram;
mod idle;
mod load;
mod logins;
mod machine;
mod meter;
mod pace;
mod pairs;
mod plot;
mod presence;
mod report;
mod sessions;
mod stats;
mod subjects;
mod suite;
mod workloads;

/// The core that servers are kept on.
const SERVER_CORE: usize = 0;
/// The core that the generator keeps itself on.
const GENERATOR_CORE: usize = 1;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A server could not be started, or a client could not log in.
    #[error(transparent)]
    Harness(#[from] waystation_harness::Error),
    /// A socket or a file failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The report could not be written as JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The load could not be kept up.
    #[error("{0}")]
    Load(String),
}

impl Failure {
    #[expect(clippy::needless_pass_by_value, reason = "the shape that map_err wants")]
    fn task(error: tokio::task::JoinError) -> Self {
        Self::Load(format!("a client task failed: {error}"))
    }
}

#[derive(Debug, Parser)]
#[command(about = "Puts the same load on Waystation and its peers, and compares")]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Runs the workloads on the servers and writes a report with ratios.
    Compare(suite::Options),
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let command = Command::parse();
    pin_to_core(GENERATOR_CORE)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match command.action {
        Action::Compare(options) => runtime.block_on(suite::run(&options))?,
    }
    Ok(())
}

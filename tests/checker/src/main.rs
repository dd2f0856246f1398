//! Runs workloads against a server and checks histories; exits with 1 when something was violated
//! and with 2 when that could not be found out.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use waystation_checker::history::History;
use waystation_checker::report::Report;
use waystation_checker::run::{self, Failure, Mix, Nemesis, Options, Workload};

#[derive(Debug, Parser)]
#[command(about = "Proves the delivery contract from what clients saw")]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Runs a workload against a nemesis and checks what came of it.
    Run(Run),
    /// Checks histories that were kept.
    Check {
        /// The files, one or more per run: CLIENT.jsonl.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// w1 (chat ring), w4 (the same over two servers) or w6 (rosters).
    #[arg(long, default_value = "w1", value_parser = parse_workload)]
    workload: Workload,
    /// none, kill9, stop, reset or disk-full.
    #[arg(long, default_value = "none", value_parser = parse_nemesis)]
    nemesis: Nemesis,
    /// How often the fault comes; without one, seconds of traffic.
    #[arg(long, default_value_t = 10)]
    cycles: u32,
    /// Decides all that is random; by default the time.
    #[arg(long)]
    seed: Option<u64>,
    /// The path of a Waystation binary, or the name of a peer: prosody, ejabberd.
    #[arg(long)]
    server: Option<String>,
    /// Messages (or roster changes) per second over all clients.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// How the clients get to the server: tcp, or web (two over WebSockets and one over BOSH).
    #[arg(long, default_value = "tcp", value_parser = parse_mix)]
    mix: Mix,
    /// Break connections by FIN instead of a reset.
    #[arg(long)]
    gentle: bool,
    /// The longest pause of the nemesis `stop`, in seconds.
    #[arg(long, default_value_t = 30)]
    max_pause: u64,
    /// Further keys for Waystation: KEY=TOML.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Modules for Prosody instead of smacks, mam and carbons.
    #[arg(long, value_delimiter = ',')]
    modules: Option<Vec<String>>,
    /// Where to keep the histories; without it they are kept only when something is violated.
    #[arg(long)]
    keep: Option<PathBuf>,
}

fn parse_workload(name: &str) -> Result<Workload, String> {
    Workload::from_name(name).ok_or_else(|| format!("no such workload: {name}"))
}

fn parse_mix(name: &str) -> Result<Mix, String> {
    Mix::from_name(name).ok_or_else(|| format!("no such mix: {name}"))
}

fn parse_nemesis(name: &str) -> Result<Nemesis, String> {
    Nemesis::from_name(name).ok_or_else(|| format!("no such nemesis: {name}"))
}

fn main() -> ExitCode {
    act().unwrap_or_else(|e| {
        eprintln!("{e}");
        ExitCode::from(2)
    })
}

fn act() -> Result<ExitCode, Box<dyn std::error::Error>> {
    match Command::parse().action {
        Action::Run(options) => run(&options),
        Action::Check { files } => {
            let report = Report::of(&History::read(&files)?);
            writeln!(std::io::stdout(), "{report}")?;
            Ok(exit_code(report.passed()))
        }
    }
}

fn exit_code(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

fn run(command: &Run) -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seed = match command.seed {
        Some(seed) => seed,
        None => SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
    };
    let mut server = run::server_config(command.server.as_deref());
    for setting in &command.settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: no '='"))?;
        server = server.with(key, value);
    }
    if let Some(modules) = &command.modules {
        server.modules.clone_from(modules);
    }
    let mut options = Options::new(command.workload, command.nemesis, command.cycles, seed, server);
    options.rate = command.rate;
    options.mix = command.mix;
    options.gentle = command.gentle;
    options.pause.1 = Duration::from_secs(command.max_pause.max(1));
    options.pause.0 = options.pause.0.min(options.pause.1);
    let mut out = std::io::stdout();
    writeln!(out, "{} x {}, seed {seed}", command.workload.name(), command.nemesis.name())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let progress = |text: &str| {
        // Progress that nobody can read is no reason to stop.
        let _unread = writeln!(std::io::stderr(), "  {text}");
    };
    let outcome = match runtime.block_on(run::run(options, progress)) {
        Err(Failure::LeftOut(why)) => {
            writeln!(out, "LEFT OUT: {why}")?;
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    };
    writeln!(out, "{}", outcome.report)?;
    if let Some(panic) = &outcome.panic {
        writeln!(out, "the server panicked: {panic}")?;
    }
    let passed = outcome.report.passed() && outcome.panic.is_none();
    let folder = match &command.keep {
        Some(folder) => Some(folder.clone()),
        None if passed => None,
        None => Some(std::env::temp_dir().join(format!("waystation-history-{seed}"))),
    };
    if let Some(folder) = folder {
        std::fs::create_dir_all(&folder)?;
        outcome.history.write(&folder)?;
        writeln!(out, "histories: {}", folder.display())?;
    }
    Ok(exit_code(passed))
}

//! All workloads on all servers, in turn, several rounds, in one run.
//!
//! Every workload gets a freshly started server with an empty data folder and
//! the same accounts. The rounds go over all servers before the next one, so
//! that a disturbance of the machine falls on all of them alike.

use std::process::Command;

use clap::Args;
use serde::Serialize;
use waystation_harness::process::raise_file_limit;
use waystation_harness::sasl::Hash;
use waystation_harness::{Config, Kind, Mechanism, Security, Server};

use crate::sessions::{Access, account};
use crate::{Failure, SERVER_CORE, idle, logins, pairs, presence, report};

/// What to run, and how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The servers, in order: waystation (as it comes: fsync and the archive), waystation-fsync,
    /// -os and -memory (those durabilities, without the archive), prosody, prosody-archive, ejabberd,
    /// ejabberd-archive.
    #[arg(long, value_delimiter = ',', default_value = "waystation,waystation-fsync,waystation-memory,prosody,ejabberd",
        value_parser = Subject::parse)]
    pub(crate) servers: Vec<Subject>,
    /// Only these workloads, or those whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    /// Rounds; the report shows medians.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Seconds measured per load.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Idle sessions.
    #[arg(long, default_value_t = 5_000)]
    pub(crate) sessions: usize,
    /// Further `--set` keys for Waystation: KEY=TOML.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Where to write report.md and report.json.
    #[arg(long, default_value = "target/bench")]
    pub(crate) out: std::path::PathBuf,
}

/// A server as it is put under load: which one, and how it is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    /// Name in the report.
    pub(crate) name: &'static str,
    kind: Kind,
    settings: &'static [(&'static str, &'static str)],
    modules: &'static [&'static str],
}

const SUBJECTS: [Subject; 8] = [
    Subject::ours("waystation", &[]),
    Subject::ours("waystation-fsync", &[("archive.enabled", "false")]),
    Subject::ours("waystation-os", &[("archive.enabled", "false"), ("durability", "'os'")]),
    Subject::ours("waystation-memory", &[("archive.enabled", "false"), ("durability", "'memory'")]),
    Subject::peer("prosody", Kind::Prosody, &["smacks"]),
    Subject::peer("prosody-archive", Kind::Prosody, &["smacks", "mam"]),
    Subject::peer("ejabberd", Kind::Ejabberd, &["mod_stream_mgmt: {}"]),
    Subject::peer("ejabberd-archive", Kind::Ejabberd, &["mod_stream_mgmt: {}", "mod_mam: {default: always}"]),
];

impl Subject {
    const fn ours(name: &'static str, settings: &'static [(&'static str, &'static str)]) -> Self {
        Self { name, kind: Kind::Waystation, settings, modules: &[] }
    }

    const fn peer(name: &'static str, kind: Kind, modules: &'static [&'static str]) -> Self {
        Self { name, kind, settings: &[], modules }
    }

    fn parse(name: &str) -> Result<Self, String> {
        let names = SUBJECTS.map(|subject| subject.name).join(", ");
        let found = SUBJECTS.into_iter().find(|subject| subject.name == name);
        found.ok_or_else(|| format!("no such server: {name}; there are {names}"))
    }
}

/// Lines of the server's log that are shown when a load fails.
const LOG_LINES: usize = 10;

/// One kind of load.
#[derive(Debug, Clone, Copy)]
enum Load {
    Pairs(pairs::Shape),
    Logins(logins::Shape),
    Presence(presence::Shape),
    Idle(usize),
}

struct Workload {
    name: &'static str,
    security: Security,
    load: Load,
}

impl Workload {
    fn users(&self) -> usize {
        match self.load {
            Load::Pairs(shape) => shape.pairs * 2,
            Load::Logins(shape) => shape.users,
            Load::Presence(shape) => shape.contacts + 1,
            Load::Idle(count) => count,
        }
    }
}

/// What one load on one server gave.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// Of [`pairs`].
    Pairs(pairs::Outcome),
    /// Of [`logins`].
    Logins(logins::Outcome),
    /// Of [`presence`].
    Presence(presence::Outcome),
    /// Of [`idle`].
    Idle(idle::Outcome),
}

/// One row of the raw results.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    /// The server's name.
    pub(crate) server: &'static str,
    /// The workload's name.
    pub(crate) workload: &'static str,
    /// The round, from 0.
    pub(crate) round: usize,
    /// The figures.
    pub(crate) outcome: Outcome,
}

/// Runs everything and writes the report.
pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    raise_file_limit()?;
    let settings = parse_settings(&options.settings)?;
    let mut workloads = workloads(options);
    let names: Vec<&str> = workloads.iter().map(|w| w.name).collect();
    let means = |part: &str, name: &str| name == part || (!names.contains(&part) && name.contains(part));
    workloads.retain(|w| options.only.is_empty() || options.only.iter().any(|part| means(part, w.name)));
    let mut runs: Vec<Run> = Vec::new();
    for round in 0..options.rounds {
        for subject in &options.servers {
            for workload in &workloads {
                let outcome = measure(subject, workload, &settings).await?;
                let run = Run { server: subject.name, workload: workload.name, round, outcome };
                eprintln!("{}", report::line(&run));
                runs.push(run);
            }
        }
    }
    let servers: Vec<(&'static str, String)> =
        options.servers.iter().map(|subject| (subject.name, version(subject.kind))).collect();
    report::write(&options.out, &servers, &runs)
}

fn workloads(options: &Options) -> Vec<Workload> {
    let shape = |pairs, window| pairs::Shape {
        pairs,
        window,
        body: 100,
        to_full: false,
        managed: false,
        warm_up: 2.0,
        seconds: options.seconds,
    };
    let pairs = |pairs, window| Load::Pairs(shape(pairs, window));
    let managed = |pairs, window| Load::Pairs(pairs::Shape { managed: true, ..shape(pairs, window) });
    let logins = Load::Logins(logins::Shape { users: 200, seconds: options.seconds });
    let presence =
        |contacts| Load::Presence(presence::Shape { contacts, warm_up: 1.0, seconds: options.seconds });
    let idle = Load::Idle(options.sessions);
    let (none, tls, starttls) = (Security::None, Security::Direct, Security::StartTls);
    vec![
        Workload { name: "pairs-100x10", security: none, load: pairs(100, 10) },
        Workload { name: "pairs-100x10-tls", security: tls, load: pairs(100, 10) },
        Workload { name: "pairs-100x10-sm", security: none, load: managed(100, 10) },
        Workload { name: "pairs-100x1", security: none, load: pairs(100, 1) },
        Workload { name: "pairs-100x100", security: none, load: pairs(100, 100) },
        Workload { name: "pairs-20x1", security: none, load: pairs(20, 1) },
        Workload { name: "logins", security: none, load: logins },
        Workload { name: "logins-starttls", security: starttls, load: logins },
        Workload { name: "presence-200", security: none, load: presence(200) },
        Workload { name: "presence-1000", security: none, load: presence(1_000) },
        Workload { name: "idle", security: none, load: idle },
        Workload { name: "idle-tls", security: tls, load: idle },
    ]
}

async fn measure(
    subject: &Subject,
    workload: &Workload,
    settings: &[(String, String)],
) -> Result<Outcome, Failure> {
    let own = subject.settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    let config = Config {
        kind: subject.kind,
        accounts: (0..workload.users()).map(account).collect(),
        hash: Hash::Sha1,
        settings: own.chain(settings.iter().cloned()).collect(),
        modules: subject.modules.iter().map(|module| (*module).to_owned()).collect(),
        unlimited: true,
        core: Some(SERVER_CORE),
        ..Config::default()
    };
    let server = Server::start(config)?;
    let (at, pid) = (server.endpoint().clone(), server.pid());
    // The one mechanism that all three servers offer with their default way to store accounts.
    let access = Access { security: workload.security, mechanism: Mechanism::ScramSha1 };
    let outcome = match workload.load {
        Load::Pairs(shape) => pairs::run(&at, pid, access, shape).await.map(Outcome::Pairs),
        Load::Logins(shape) => logins::run(&at, pid, access, shape).await.map(Outcome::Logins),
        Load::Presence(shape) => presence::run(&at, pid, access, shape).await.map(Outcome::Presence),
        Load::Idle(count) => idle::run(&at, pid, access, count).await.map(Outcome::Idle),
    };
    // What the server says of it goes with its folder.
    outcome.inspect_err(|_| {
        let log = server.log();
        let last: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
        last.iter().rev().for_each(|line| eprintln!("{}: {line}", subject.name));
    })
}

fn parse_settings(settings: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |s: &String| s.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    settings.iter().map(|s| split(s).ok_or_else(|| Failure::Load(format!("--set {s}: no '='")))).collect()
}

fn version(kind: Kind) -> String {
    let output = match kind {
        Kind::Waystation => waystation_harness::waystation::binary()
            .ok()
            .and_then(|path| Command::new(path).arg("--version").output().ok()),
        Kind::Prosody | Kind::Ejabberd => {
            Command::new("dpkg-query").args(["-W", "-f", "${Version}", kind.name()]).output().ok()
        }
    };
    output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned()).unwrap_or_default()
}

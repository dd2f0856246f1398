//! All workloads on all servers, in turn, several rounds, in one run.
//!
//! Every workload gets a freshly started server with an empty data folder and
//! the same accounts. The rounds go over all servers before the next one, so
//! that a disturbance of the machine falls on all of them alike.

use clap::Args;
use serde::Serialize;
use waystation_harness::process::raise_file_limit;
use waystation_harness::sasl::Hash;
use waystation_harness::{Config, Kind, Mechanism, Server, Transport};

use crate::federation::{self, Sides};
use crate::sessions::{Access, account_at};
use crate::subjects::Subject;
use crate::workloads::{self, Load, Workload};
use crate::{Failure, SERVER_CORE, blackhole, drain, floor, growth, idle, logins, pairs, presence, report};

const DEFAULT_SERVERS: &str = "waystation,waystation-fsync,waystation-memory,prosody,ejabberd,\
    waystation+waystation,waystation-memory+waystation-memory,waystation+prosody,waystation-memory+prosody,\
    waystation+ejabberd,prosody+prosody,ejabberd+ejabberd";

/// What to run, and how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The servers, in order: waystation (as it comes: fsync and the archive), waystation-fsync,
    /// -os and -memory (those durabilities, without the archive), prosody, prosody-archive, ejabberd,
    /// ejabberd-archive; floor, which is what the kernel and the cryptography cost without a server, for
    /// presence and logins. Those with a plus are two servers that talk to each other, for the workloads of
    /// federation and for these only.
    #[arg(long, value_delimiter = ',', default_value = DEFAULT_SERVERS, value_parser = Subject::parse)]
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
    /// Idle sessions: a workload idle-N and one idle-N-tls for each number.
    #[arg(long, value_delimiter = ',', default_values_t = [2_000, 10_000, 18_000])]
    pub(crate) sessions: Vec<usize>,
    /// Idle sessions over WebSockets and over BOSH: workloads idle-websocket-N and idle-bosh-N.
    #[arg(long, default_value_t = 5_000)]
    pub(crate) web_sessions: usize,
    /// The most idle sessions that the peers are given.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) peer_sessions: usize,
    /// Messages a second in the workloads that grow, and of each kind in federation-blackhole: what all servers manage, with archives too.
    #[arg(long, default_value_t = 500.0)]
    pub(crate) rate: f64,
    /// The idle sessions that growth-sessions begins with.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) grow_from: usize,
    /// The idle sessions that growth-sessions ends with; the peers get --peer-sessions at most.
    #[arg(long, default_value_t = 18_000)]
    pub(crate) grow_to: usize,
    /// Messages that wait for each of the 20 accounts of drain; ejabberd closes a session with more than
    /// 5,000 that it did not acknowledge.
    #[arg(long, default_value_t = 1_000)]
    pub(crate) offline: usize,
    /// The messages in the archive that growth-archive ends with; it begins with 10,000.
    #[arg(long, default_value_t = 1_000_000)]
    pub(crate) archived: usize,
    /// The same for the peers, which take longer to be filled.
    #[arg(long, default_value_t = 50_000)]
    pub(crate) peer_archived: usize,
    /// Messages that wait for the domain of federation-blackhole; a domain's queue holds 20,000.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) waiting: usize,
    /// Further `--set` keys for Waystation: KEY=TOML.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) settings: Vec<String>,
    /// Where to write report.md and report.json.
    #[arg(long, default_value = "target/bench")]
    pub(crate) out: std::path::PathBuf,
}

/// Lines of the server's log that are shown when a load fails.
const LOG_LINES: usize = 10;

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
    /// Of [`drain`].
    Drain(drain::Outcome),
    /// Of [`growth`].
    Growth(growth::Outcome),
    /// Of [`blackhole`].
    Blackhole(Box<blackhole::Outcome>),
}

/// One row of the raw results.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    /// The server's name.
    pub(crate) server: &'static str,
    /// The workload's name.
    pub(crate) workload: String,
    /// The round, from 0.
    pub(crate) round: usize,
    /// The figures.
    pub(crate) outcome: Outcome,
}

/// A workload that a server was not given, or a round of it that failed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Omission {
    /// The server's name.
    pub(crate) server: &'static str,
    /// The workload's name.
    pub(crate) workload: String,
    /// Why, or how.
    pub(crate) reason: String,
}

/// Runs everything and writes the report.
pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    raise_file_limit()?;
    let settings = parse_settings(&options.settings)?;
    let workloads = workloads::only(workloads::all(options), &options.only);
    let mut runs: Vec<Run> = Vec::new();
    let mut omissions: Vec<Omission> = Vec::new();
    let mut failed = 0usize;
    for round in 0..options.rounds {
        for subject in &options.servers {
            let both = subject.other.is_some();
            for workload in workloads.iter().filter(|w| w.is_between_servers() == both) {
                let (server, name) = (subject.name, workload.name.clone());
                match workload.for_subject(subject, options) {
                    Ok(workload) => {
                        let run = match measure(subject, &workload, &settings).await {
                            Ok(outcome) => Run { server, workload: name, round, outcome },
                            Err(e) => {
                                // One failure must not take the results of hours with it.
                                let reason = format!("round {} failed: {e}", round + 1);
                                eprintln!("{server} {name}: {reason}");
                                omissions.push(Omission { server, workload: name, reason });
                                failed += 1;
                                continue;
                            }
                        };
                        eprintln!("{}", report::line(&run));
                        runs.push(run);
                    }
                    Err(reason) if round == 0 => {
                        let reason = format!("not measured; {reason}");
                        omissions.push(Omission { server, workload: name, reason });
                    }
                    Err(_) => {}
                }
            }
        }
    }
    let servers: Vec<(&'static str, String)> =
        options.servers.iter().map(|subject| (subject.name, subject.version())).collect();
    let results = report::Results { servers: &servers, runs: &runs, omissions: &omissions };
    report::write(&options.out, &results)?;
    if failed > 0 {
        return Err(Failure::Load(format!("{failed} measurements failed; the report says which")));
    }
    Ok(())
}

async fn measure(
    subject: &Subject,
    workload: &Workload,
    settings: &[(String, String)],
) -> Result<Outcome, Failure> {
    if subject.floor {
        return floor::run(workload).await;
    }
    let config = |subject: &Subject, domain: &str| {
        let own = subject.settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        // Servers of tests that meet others log all that federation does.
        let own = own.chain([("log.modules".to_owned(), "{}".to_owned())]);
        Config {
            kind: subject.kind,
            hosts: vec![domain.to_owned()],
            accounts: (0..workload.users()).map(|n| account_at(n, domain)).collect(),
            hash: Hash::Sha1,
            settings: own.chain([quick_accounts()]).chain(settings.iter().cloned()).collect(),
            modules: subject.modules.iter().map(|module| (*module).to_owned()).collect(),
            web: workload.transport != Transport::Tcp,
            unlimited: true,
            core: Some(SERVER_CORE),
            ..Config::default()
        }
    };
    // The one mechanism that all three servers offer with their default way to store accounts.
    let Workload { transport, security, .. } = *workload;
    let access = Access { transport, security, mechanism: Mechanism::ScramSha1 };
    // What a server says of a failure goes with its folder.
    if let Some(other) = subject.other {
        let sides = Sides::start([subject, other].map(|subject| |domain: &str| config(subject, domain)))?;
        let outcome = between(&sides, workload.load, access).await;
        return outcome.inspect_err(|_| sides.servers().iter().for_each(|server| show_log(subject, server)));
    }
    let server = Server::start(config(subject, "localhost"))?;
    within(&server, workload.load, access).await.inspect_err(|_| show_log(subject, &server))
}

/// Puts a load on one server.
async fn within(server: &Server, load: Load, access: Access) -> Result<Outcome, Failure> {
    let (at, pid) = (server.endpoint(), server.pid());
    match load {
        Load::Pairs(shape) => {
            let outcome = pairs::run(at, pid, access, shape).await?;
            // Where users wait for each other, a message's time is that of commits above all.
            let commits = if shape.window == 1 { commits(server) } else { None };
            Ok(Outcome::Pairs(pairs::Outcome { commits, ..outcome }))
        }
        Load::Logins(shape) => logins::run(at, pid, access, shape).await.map(Outcome::Logins),
        Load::Presence(shape) => presence::run(at, pid, access, shape).await.map(Outcome::Presence),
        Load::Drain(shape) => drain::run(at, pid, access, shape).await.map(Outcome::Drain),
        Load::GrowSessions(shape) => growth::sessions(at, pid, access, shape).await.map(Outcome::Growth),
        Load::GrowArchive(shape) => growth::archive(at, pid, access, shape).await.map(Outcome::Growth),
        Load::Idle(count) => idle::run(at, pid, access, count).await.map(Outcome::Idle),
        Load::Federation(_) | Load::Blackhole(_) => Err(Failure::Load("it needs two servers".to_owned())),
    }
}

/// What the last commits to the queue took, if this is ours and its commits are flushed.
fn commits(server: &Server) -> Option<pairs::Commits> {
    if server.config().kind != Kind::Waystation {
        return None;
    }
    let status = server.status(&[]).ok()?;
    let millis = |key: &str| status["commits"][key].as_f64().map(|micros| micros / 1_000.0);
    let (median_ms, p99_ms) = (millis("median_us")?, millis("p99_us")?);
    (status["durability"] == "fsync").then_some(pairs::Commits { median_ms, p99_ms })
}

/// Puts a load on two servers that talk to each other.
async fn between(sides: &Sides, load: Load, access: Access) -> Result<Outcome, Failure> {
    match load {
        Load::Federation(shape) => federation::run(sides, access, shape).await.map(Outcome::Pairs),
        Load::Blackhole(shape) => {
            let outcome = blackhole::run(sides, access, shape).await?;
            Ok(Outcome::Blackhole(Box::new(outcome)))
        }
        _ => Err(Failure::Load("it needs one server".to_owned())),
    }
}

fn show_log(subject: &Subject, server: &Server) {
    let log = server.log();
    let last: Vec<&str> = log.lines().rev().take(LOG_LINES).collect();
    let domain = &server.endpoint().host;
    last.iter().rev().for_each(|line| eprintln!("{} ({domain}): {line}", subject.name));
}

/// As many rounds of hashing as the peers' accounts have: more take minutes for 18,000 accounts, and
/// a login costs the server the same with any number.
fn quick_accounts() -> (String, String) {
    ("sasl.iterations".to_owned(), "4096".to_owned())
}

fn parse_settings(settings: &[String]) -> Result<Vec<(String, String)>, Failure> {
    let split = |s: &String| s.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
    settings.iter().map(|s| split(s).ok_or_else(|| Failure::Load(format!("--set {s}: no '='")))).collect()
}

#[cfg(test)]
impl Options {
    /// Small numbers.
    pub(crate) fn for_tests() -> Self {
        Self {
            servers: Vec::new(),
            only: Vec::new(),
            rounds: 1,
            seconds: 0.1,
            sessions: vec![20, 100],
            web_sessions: 30,
            peer_sessions: 50,
            offline: 5,
            waiting: 100,
            archived: 2_000_000,
            peer_archived: 30_000,
            rate: 100.0,
            grow_from: 10,
            grow_to: 60,
            settings: Vec::new(),
            out: std::path::PathBuf::new(),
        }
    }
}

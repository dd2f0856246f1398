//! A run: a server or two, clients at work, a nemesis, the quiet at the end, the report.
//!
//! What must stay true: the seed alone decides what clients do and when faults
//! come, and nothing of a run is left behind, neither a process nor a folder nor
//! a mount, whether it passes or fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Barrier, watch};
use tokio::task::JoinSet;
use waystation_harness::{Config, Kind, Transport};

use crate::client::{Manner, Peer, Scene};
use crate::history::{Ev, Event, HARNESS, History};
use crate::report::Report;
use crate::rng::Rng;

mod chat;
mod nemesis;
mod quiesce;
mod roster;
mod servers;

pub use nemesis::Nemesis;

/// What the clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// W1: eight clients in a ring chat, come and go.
    Chat,
    /// W4: the same ring, whose clients are on two servers in turns, so that neighbours are on different ones.
    Federation,
    /// W6: clients change their rosters.
    Roster,
}

impl Workload {
    /// Finds a workload by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "w1" => Some(Self::Chat),
            "w4" => Some(Self::Federation),
            "w6" => Some(Self::Roster),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Chat => "w1",
            Self::Federation => "w4",
            Self::Roster => "w6",
        }
    }
}

/// How to run.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the clients do.
    pub workload: Workload,
    /// What goes wrong.
    pub nemesis: Nemesis,
    /// How often it goes wrong; without a nemesis, for how many seconds the run lasts.
    pub cycles: u32,
    /// Decides all that is random.
    pub seed: u64,
    /// The server; in W4, what is common to both.
    pub server: Config,
    /// How the clients get to it.
    pub mix: Mix,
    /// Messages per second over all clients, while all are online.
    pub rate: u32,
    /// How long nothing must come before a client takes its offline messages for read.
    pub idle: Duration,
    /// Whether clients break connections by FIN instead of a reset. A server may then be expected to
    /// have read all that was written, and none has to deal with half a stanza.
    pub gentle: bool,
    /// The shortest and the longest pause of the nemesis that stops the server.
    pub pause: (Duration, Duration),
}

impl Options {
    /// A run of a server with the rates and times of the contract.
    pub fn new(workload: Workload, nemesis: Nemesis, cycles: u32, seed: u64, server: Config) -> Self {
        let pause = (Duration::from_secs(5), Duration::from_secs(30));
        Self {
            workload,
            nemesis,
            cycles,
            seed,
            server,
            mix: Mix::Tcp,
            rate: 500,
            idle: Duration::from_secs(2),
            gentle: false,
            pause,
        }
    }
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// What the clients saw.
    pub history: History,
    /// What follows from it.
    pub report: Report,
    /// The panic that a server logged, if one did.
    pub panic: Option<String>,
}

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A server could not be started, or started again.
    #[error(transparent)]
    Harness(#[from] waystation_harness::Error),
    /// A client or the nemesis ended by a panic.
    #[error("a task of the run failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// The nemesis cannot work on this machine: nothing was run.
    #[error("left out: {0}")]
    LeftOut(String),
}

/// What clients are told while they work.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Orders {
    stop: bool,
    /// Counts the storms: with every new one, each client breaks its connection.
    resets: u64,
}

/// What a client task gets.
struct Task {
    options: Arc<Options>,
    number: usize,
    peers: Arc<Vec<String>>,
    orders: watch::Receiver<Orders>,
    barrier: Arc<Barrier>,
}

/// How many clients the workloads have.
const CLIENTS: usize = 8;

/// How the clients get to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    /// All over TCP, six of them with stream management.
    Tcp,
    /// As the contract says: four over TCP with stream management, two over WebSockets with it, one over
    /// BOSH, and one over TCP without anything.
    Web,
}

impl Mix {
    /// Finds one by its name.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "tcp" => Some(Self::Tcp),
            "web" => Some(Self::Web),
            _ => None,
        }
    }

    /// Of the client with this number.
    fn manner(self, number: usize) -> Manner {
        let over = match (self, number) {
            (Self::Web, 4 | 5) => Transport::WebSocket,
            (Self::Web, 6) => Transport::Bosh,
            _ => Transport::Tcp,
        };
        Manner { over, managed: number < 6 }
    }
}

/// The server that `waystation-checker` runs when nothing else is asked for, by its name or path.
pub fn server_config(server: Option<&str>) -> Config {
    let mut config = Config { unlimited: true, ..Config::default() };
    match server.map(|name| (name, Kind::from_name(name))) {
        None => {}
        Some((_, Some(kind))) => config.kind = kind,
        Some((path, None)) => (config.kind, config.program) = (Kind::Waystation, Some(PathBuf::from(path))),
    }
    if config.kind == Kind::Prosody {
        config.modules = ["smacks", "mam", "carbons"].map(str::to_owned).to_vec();
    }
    config
}

/// Runs a workload against a nemesis, and checks what came of it. `progress` is told what happens.
pub async fn run(options: Options, progress: fn(&str)) -> Result<Outcome, Failure> {
    let mut config = options.server.clone();
    config.web |= options.mix == Mix::Web;
    let kind = config.kind;
    let field = nemesis::Field::prepare(options.nemesis)?;
    let workload = options.workload;
    let (servers, field) = tokio::task::spawn_blocking(move || {
        servers::Servers::start(workload, &config, &field).map(|servers| (servers, field))
    })
    .await??;

    let options = Arc::new(options);
    let run = format!("{}-{}", options.workload.name(), options.seed);
    let scene = Arc::new(Scene { epoch: Instant::now(), run, gentle: options.gentle });
    let (orders, told) = watch::channel(Orders::default());
    let accounts: Vec<_> = (0..CLIENTS).map(|number| servers.account(number)).collect();
    let peers = Arc::new(accounts.iter().map(|account| account.jid()).collect::<Vec<_>>());
    let barrier = Arc::new(Barrier::new(CLIENTS));
    let mut clients = JoinSet::new();
    for (number, account) in accounts.into_iter().enumerate() {
        let place = servers.place(number);
        let peer = Peer::new(Arc::clone(&scene), place, account, "r", options.mix.manner(number));
        let task = Task {
            options: Arc::clone(&options),
            number,
            peers: Arc::clone(&peers),
            orders: told.clone(),
            barrier: Arc::clone(&barrier),
        };
        clients.spawn(work(peer, task));
    }
    drop(told);

    let mut demon =
        nemesis::Demon::new(servers, Arc::clone(&scene), Arc::clone(&options), field, orders.clone());
    let (servers, mut noted, field) = tokio::task::spawn_blocking(move || {
        let healed = demon.torment(progress);
        healed.map(|()| demon.end())
    })
    .await??;
    progress("healed; the clients settle");
    orders.send_modify(|orders| orders.stop = true);

    let mut history = History::default();
    let about = Ev::Run {
        seed: options.seed,
        workload: options.workload.name().to_owned(),
        nemesis: options.nemesis.name().to_owned(),
        server: kind.name().to_owned(),
    };
    noted.insert(0, Event { t: 0, s: 0, ev: about });
    while let Some(ended) = clients.join_next().await {
        let (name, events) = ended?.into_history();
        history.clients.insert(name, events);
    }
    let panic = servers.panic();
    // The servers first, then the file system under them.
    tokio::task::spawn_blocking(move || drop((servers, field))).await?;
    history.clients.insert(HARNESS.to_owned(), noted);
    progress("checking");
    let report = Report::of(&history);
    Ok(Outcome { history, report, panic })
}

/// One client, from its first connection to the last page of its archive.
async fn work(mut peer: Peer, task: Task) -> Peer {
    let rng = Rng::fork(task.options.seed, 1 + task.number as u64);
    match task.options.workload {
        Workload::Chat | Workload::Federation => chat::work(&mut peer, &task, rng).await,
        Workload::Roster => roster::work(&mut peer, &task, rng).await,
    }
    quiesce::quiesce(&mut peer, &task).await;
    peer
}

//! The test of the promise: a server that is killed again and again while clients talk.
//!
//! What must hold: it runs on its own, on a temporary folder and a free port of this machine, and
//! leaves neither process nor folder behind, however it ends; what it reports is what clients saw,
//! not what the server says of itself.

mod board;
mod client;
mod ledger;
mod process;
mod stream;

use std::fmt::Write as _;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use board::{Board, Leave, Whom};
use client::{Client, user};
pub(crate) use ledger::Tally;
use process::{Folder, Server};

/// The domain of the throw-away server.
const HOST: &str = "localhost";
/// How long clients may take to be back after a kill.
const RECOVERY: Duration = Duration::from_secs(60);
/// How long acknowledgements and deliveries may take in the end.
const SETTLE: Duration = Duration::from_secs(60);
/// In the end, silence of this length means that nothing more will come.
const SILENCE: Duration = Duration::from_secs(2);
/// What comes too much would come within this time.
const LATE: Duration = Duration::from_millis(300);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(20);

/// What is asked for.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How often the server is killed.
    pub(crate) cycles: u32,
    /// How many clients there are, at least two.
    pub(crate) clients: usize,
    /// Messages a second, all clients together.
    pub(crate) rate: u32,
    /// As the configuration has it.
    pub(crate) durability: &'static str,
    /// Keeps the folder.
    pub(crate) keep: bool,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// It could not be run.
    #[error("{0}")]
    Impossible(String),
    /// Somebody stopped it.
    #[error("interrupted")]
    Interrupted,
}

/// How far it is.
#[derive(Debug)]
pub(crate) struct Progress<'p> {
    /// Kills so far.
    pub(crate) kills: u32,
    /// The sums so far. What is on its way counts as lost until it arrives.
    pub(crate) tally: &'p Tally,
}

/// What was found.
#[derive(Debug, serde::Serialize)]
pub(crate) struct Report {
    /// What the server was to keep.
    pub(crate) durability: &'static str,
    /// How many clients there were.
    pub(crate) clients: usize,
    /// How often the server was killed.
    pub(crate) kills: u32,
    /// The sums.
    #[serde(flatten)]
    pub(crate) tally: Tally,
    /// Sessions that were resumed.
    pub(crate) sessions_resumed: u64,
    /// Sessions that were begun anew, the first ones too.
    pub(crate) sessions_begun: u64,
    /// The longest time from a kill to the first session after it, in milliseconds.
    pub(crate) longest_recovery_ms: u64,
    /// How long the test took, in milliseconds.
    pub(crate) duration_ms: u64,
    /// The first lost messages.
    pub(crate) lost_messages: Vec<String>,
    /// The folder, if it was kept.
    pub(crate) folder: Option<PathBuf>,
}

/// Runs the test.
///
/// # Errors
/// When there is nothing to report: the server did not start, or did not come back.
pub(crate) fn run(options: &Options, progress: &mut dyn FnMut(&Progress<'_>)) -> Result<Report, Failure> {
    let folder = Folder::new(options.keep)?;
    let report = actix_rt::System::new().block_on(async {
        let stopped = async {
            let (Ok(mut interrupt), Ok(mut terminate)) =
                (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
            else {
                // Without them a signal ends this process at once.
                return std::future::pending().await;
            };
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };
        tokio::select! {
            report = test(options, &folder, progress) => report,
            () = stopped => Err(Failure::Interrupted),
        }
    });
    match report {
        Err(Failure::Impossible(text)) if options.keep => {
            Err(Failure::Impossible(format!("{text}\nthe folder was kept: {}", folder.path().display())))
        }
        report => report,
    }
}

async fn test(
    options: &Options,
    folder: &Folder,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Report, Failure> {
    let started = Instant::now();
    let mut random = Random::new();
    let password: Rc<str> = format!("{:016x}{:016x}", random.next(), random.next()).into();
    let mut server = Server::new(folder, options.durability)?;
    let mut accounts = String::new();
    for index in 0..options.clients {
        // Writing to a string cannot fail.
        let _ = writeln!(accounts, "{}@{HOST} {password}", user(index));
    }
    server.add_accounts(&accounts)?;
    server.start()?;
    let board = Rc::new(Board::new(server.address, options.clients));
    let rate = f64::from(options.rate) / options.clients as f64;
    for index in 0..options.clients {
        actix_rt::spawn(Client::new(index, password.clone(), board.clone(), rate).run());
    }
    let mut test = Test { board: &board, server, kills: 0, progress };
    test.until_all_online().await?;
    board.set_sending(true);
    for cycle in 1..=options.cycles {
        let leave = if random.below(2) == 0 { Leave::Break } else { Leave::Close };
        board.send_away(Some((Whom::One(random.below(options.clients)), leave)));
        test.pause(Duration::from_millis(200 + random.below(800) as u64)).await?;
        test.kill()?;
        board.send_away(None);
        // Sometimes the next kill comes while clients still come back.
        if cycle == options.cycles || random.below(4) > 0 {
            test.until_all_online().await?;
        }
    }
    board.set_sending(false);
    test.settle().await?;
    if !board.ledger.borrow().is_settled() {
        // What is not delivered may still be stored: for new sessions.
        test.begin_anew().await?;
        test.settle().await?;
    }
    let ledger = board.ledger.borrow();
    let tally = ledger.tally();
    if tally.acknowledged == 0 {
        // Of a server that promised nothing, no loss proves nothing.
        return Err(Failure::Impossible(
            "no message was acknowledged between the kills, so nothing was shown; let there be more cycles or \
             a higher rate"
                .to_owned(),
        ));
    }
    let (sessions_resumed, sessions_begun) = board.sessions();
    Ok(Report {
        durability: options.durability,
        clients: options.clients,
        kills: test.kills,
        tally,
        sessions_resumed,
        sessions_begun,
        longest_recovery_ms: millis(board.recovery()),
        duration_ms: millis(started.elapsed()),
        lost_messages: ledger.named(),
        folder: options.keep.then(|| folder.path().to_owned()),
    })
}

/// A run in progress.
struct Test<'t, 'f> {
    board: &'t Board,
    server: Server<'f>,
    kills: u32,
    progress: &'t mut dyn FnMut(&Progress<'_>),
}

impl Test<'_, '_> {
    /// Kills the server and starts it again.
    fn kill(&mut self) -> Result<(), Failure> {
        // One that has ended by itself was not killed.
        self.look()?;
        let at = Instant::now();
        let killed = self.server.kill();
        killed.map_err(|error| Failure::Impossible(format!("the server cannot be killed: {error}")))?;
        self.board.killed(at);
        self.kills += 1;
        self.server.start()
    }

    async fn pause(&mut self, time: Duration) -> Result<(), Failure> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
            sleep(LOOK.min(end.saturating_duration_since(Instant::now()))).await;
        }
        Ok(())
    }

    async fn until_all_online(&mut self) -> Result<(), Failure> {
        let end = Instant::now() + RECOVERY;
        while !self.board.all_online() {
            self.look()?;
            if Instant::now() > end {
                let seconds = RECOVERY.as_secs();
                return Err(Failure::Impossible(format!(
                    "not all clients had a session within {seconds} s; the last fault was of {}",
                    self.board.last_trouble()
                )));
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Lets all clients close their sessions and begin new ones.
    async fn begin_anew(&mut self) -> Result<(), Failure> {
        self.board.send_away(Some((Whom::All, Leave::Close)));
        let end = Instant::now() + RECOVERY;
        while !self.board.all_offline() && Instant::now() < end {
            self.pause(LOOK).await?;
        }
        self.board.send_away(None);
        self.until_all_online().await
    }

    /// Waits until nothing more is to come.
    async fn settle(&mut self) -> Result<(), Failure> {
        let (begun, end) = (Instant::now(), Instant::now() + SETTLE);
        while Instant::now() < end && !self.board.ledger.borrow().is_settled() {
            if self.board.silence().min(begun.elapsed()) > SILENCE {
                break;
            }
            self.pause(LOOK).await?;
        }
        self.pause(LATE).await
    }

    /// Shows how far it is; an error when it cannot go on.
    fn look(&mut self) -> Result<(), Failure> {
        self.server.check()?;
        if let Some(text) = self.board.failure() {
            return Err(Failure::Impossible(text));
        }
        let tally = self.board.ledger.borrow().tally();
        (self.progress)(&Progress { kills: self.kills, tally: &tally });
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Random bits from the seed that the system gives to hash tables.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Random numbers (`SplitMix64`), good enough to choose moments by.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(seed())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a bound, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

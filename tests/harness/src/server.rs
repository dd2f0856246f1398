//! A server under test: started on free ports with its own folder, watched, and ended by its process id.
//!
//! `Server::finish` asserts what must hold after every test: no panic and no
//! secret in the log, file descriptors back at the baseline, bounded growth of
//! memory, a clean exit. Dropping a server without it only kills the process,
//! and prints the end of its log when the test is failing.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::error::{Error, Result, show};
use crate::federation::Federation;
use crate::peers;
use crate::process::Sample;
use crate::sasl::Hash;
use crate::waystation;

/// How long a server may take from its start to its first accepted connection.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long a server may take to end after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// How long memory and file descriptors may take to settle after the last client left.
const SETTLE: Duration = Duration::from_secs(5);
/// How much resident memory may grow over the baseline (SECURITY.md, header).
const MAX_GROWTH: u64 = 32 << 20;

/// Which server program is under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// This project's server.
    Waystation,
    /// Prosody, as packaged.
    Prosody,
    /// ejabberd, as packaged.
    Ejabberd,
}

impl Kind {
    /// Finds a server by its name in lower case.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Waystation, Self::Prosody, Self::Ejabberd].into_iter().find(|k| k.name() == name)
    }

    /// Whether its program is on this machine.
    pub fn is_installed(self) -> bool {
        match self {
            Self::Waystation => waystation::binary().is_ok(),
            Self::Prosody => peers::program("prosody").is_ok(),
            Self::Ejabberd => peers::program("erl").is_ok() && peers::erlang_libraries().is_ok(),
        }
    }

    /// The name in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waystation => "waystation",
            Self::Prosody => "prosody",
            Self::Ejabberd => "ejabberd",
        }
    }
}

/// An account that exists before the server starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The localpart.
    pub user: String,
    /// The domain.
    pub host: String,
    /// The password.
    pub password: String,
}

impl Account {
    /// An account on `localhost` with a password that no log may ever show.
    pub fn new(user: &str) -> Self {
        Self::at(user, "localhost")
    }

    /// The same on another domain.
    pub fn at(user: &str, host: &str) -> Self {
        Self { user: user.to_owned(), host: host.to_owned(), password: format!("CANARY-{user}-secret") }
    }

    /// The bare JID.
    pub fn jid(&self) -> String {
        format!("{}@{}", self.user, self.host)
    }
}

/// How to start a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// The program.
    pub kind: Kind,
    /// The domains to serve.
    pub hosts: Vec<String>,
    /// The accounts to make before the start.
    pub accounts: Vec<Account>,
    /// The hash that Prosody and ejabberd store accounts with, and so the one mechanism they offer.
    pub hash: Hash,
    /// Whether a login needs TLS first.
    pub tls_required: bool,
    /// Whether it listens for HTTP as well, with BOSH and WebSockets.
    pub web: bool,
    /// Waystation only: further keys for `--set`, as (key, TOML value).
    pub settings: Vec<(String, String)>,
    /// Whether the server's limits against floods are lifted (for measurements).
    pub unlimited: bool,
    /// The core to keep the server on.
    pub core: Option<usize>,
    /// Waystation only: the binary to run, instead of the one that was built with the tests.
    pub program: Option<PathBuf>,
    /// Peers only: further modules to load, for Prosody `smacks`, for ejabberd `mod_mam: {}`.
    pub modules: Vec<String>,
    /// What it needs to meet other servers; without it, it listens to none and looks for none.
    pub federation: Option<Federation>,
}

impl Default for Config {
    /// Waystation on `localhost`, TLS offered and not required. The environment variable
    /// `WAYSTATION_TEST_SERVER` selects another program, to prove a test against it.
    fn default() -> Self {
        let named = std::env::var("WAYSTATION_TEST_SERVER").ok();
        Self {
            kind: named.as_deref().and_then(Kind::from_name).unwrap_or(Kind::Waystation),
            hosts: vec!["localhost".to_owned()],
            accounts: Vec::new(),
            hash: Hash::Sha1,
            tls_required: false,
            web: false,
            settings: Vec::new(),
            unlimited: false,
            core: None,
            program: None,
            modules: Vec::new(),
            federation: None,
        }
    }
}

impl Config {
    /// The same with these accounts on `localhost`.
    pub fn with_users<'a>(mut self, users: impl IntoIterator<Item = &'a str>) -> Self {
        self.accounts.extend(users.into_iter().map(Account::new));
        self
    }

    /// The same with one more `--set` key; `value` is TOML.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }
}

/// Where a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The domain that streams are opened to.
    pub host: String,
    /// Plain TCP with STARTTLS.
    pub c2s: SocketAddr,
    /// Direct TLS.
    pub c2s_tls: SocketAddr,
    /// HTTP without TLS; nobody listens there unless [`Config::web`] asks for it.
    pub http: SocketAddr,
    /// Other servers, over plain TCP with STARTTLS; nobody listens there without [`Config::federation`].
    pub s2s: SocketAddr,
    /// Other servers, with direct TLS; likewise.
    pub s2s_tls: SocketAddr,
}

/// What a peer or this project's server needs to be run: made by `waystation` and `peers`.
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    /// A file that appears when the program is ready, beyond accepting connections.
    pub(crate) ready_file: Option<PathBuf>,
}

/// A running server.
pub struct Server {
    config: Config,
    endpoint: Endpoint,
    child: Child,
    folder: TempDir,
    baseline: Sample,
    /// How many of its open files were its own data then.
    baseline_data: usize,
}

impl Server {
    /// Makes the accounts, starts the server and waits until it accepts connections.
    pub fn start(config: Config) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("waystation-test-")
            .tempdir()
            .map_err(Error::io("temporary folder"))?;
        Self::start_in(config, folder)
    }

    /// As [`Server::start`] in a folder that may hold the data of an earlier run.
    pub fn start_in(config: Config, folder: TempDir) -> Result<Self> {
        // A port that was free a moment ago may be taken by another test: then try others.
        const ATTEMPTS: usize = 3;
        let mut last = String::new();
        for attempt in 0..ATTEMPTS {
            let endpoint = reserve_endpoint(&config.hosts)?;
            let accounts: &[Account] = if attempt == 0 { &config.accounts } else { &[] };
            match launch(&config, &endpoint, folder.path(), accounts) {
                Ok(child) => {
                    let baseline = Sample::of(child.id()).map_err(Error::io("look at the server"))?;
                    let baseline_data = data_files(child.id(), folder.path());
                    return Ok(Self { config, endpoint, child, folder, baseline, baseline_data });
                }
                Err(e) => {
                    last = e.to_string();
                    if !last.contains("in use") && !last.contains("eaddrinuse") {
                        break;
                    }
                }
            }
        }
        Err(Error::Setup(format!("{} did not start: {last}", config.kind.name())))
    }

    /// Where to connect.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The configuration it was started with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its folder: configuration, data, log.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What it has logged up to now.
    pub fn log(&self) -> String {
        match fs::read(self.folder.path().join("server.log")) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) => format!("(no log: {e})"),
        }
    }

    /// Waits until the log contains `text`.
    pub fn wait_for_log(&self, text: &str, deadline: Duration) -> Result<()> {
        let end = Instant::now() + deadline;
        while !self.log().contains(text) {
            if Instant::now() > end {
                let what = format!("log line with {text:?}");
                return Err(Error::Timeout { what, after: deadline, got: show(self.log().as_bytes()) });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// The account with this localpart.
    ///
    /// # Panics
    /// When the configuration has no such account, which is a mistake in the test.
    pub fn account(&self, user: &str) -> &Account {
        let found = self.config.accounts.iter().find(|a| a.user == user);
        found.unwrap_or_else(|| panic!("the test has no account {user}"))
    }

    /// A look at its process now.
    pub fn sample(&self) -> Result<Sample> {
        Sample::of(self.pid()).map_err(Error::io("look at the server"))
    }

    /// What it is compared with at the end: the moment it was ready, or the last `rebase`.
    pub fn baseline(&self) -> Sample {
        self.baseline
    }

    /// Takes the present state as the baseline: after a warm-up whose cost is not the test's subject.
    pub fn rebase(&mut self) -> Result<()> {
        self.baseline = self.sample()?;
        self.baseline_data = data_files(self.pid(), self.folder.path());
        Ok(())
    }

    /// Runs `waystation ARGS` on this server's data folder, with `input` on its standard input.
    pub fn command(&self, args: &[&str], input: &str) -> Result<std::process::Output> {
        waystation::command(&self.config, &self.endpoint, self.folder.path(), args, input)
    }

    /// What `waystation status --json OPTIONS` says of this server.
    ///
    /// # Errors
    /// When it is not this project's server, or does not answer.
    pub fn status(&self, options: &[&str]) -> Result<serde_json::Value> {
        let output = self.command(&[&["status", "--json"], options].concat(), "")?;
        if !output.status.success() {
            return Err(Error::Setup(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
        serde_json::from_slice(&output.stdout).map_err(|e| Error::Setup(format!("status: {e}")))
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).map_err(|e| Error::Setup(e.to_string()))?;
        kill(Pid::from_raw(pid), signal).map_err(|e| Error::Setup(format!("{signal}: {e}")))
    }

    /// Waits for the process to end by itself or by an earlier signal.
    pub fn wait_for_exit(&mut self, deadline: Duration) -> Result<ExitStatus> {
        wait_for_exit(&mut self.child, deadline)
    }

    /// Kills the server as a crash would (SIGKILL) and gives its folder back, to start it again.
    pub fn crash(mut self) -> Result<(Config, TempDir)> {
        self.child.kill().map_err(Error::io("kill"))?;
        self.child.wait().map_err(Error::io("wait for the killed server"))?;
        self.into_folder()
    }

    /// Stops the server cleanly (SIGTERM) and gives its folder back, to start it again.
    pub fn stop(mut self) -> Result<(Config, TempDir)> {
        self.terminate()?;
        self.into_folder()
    }

    /// Kills the server as a crash would (SIGKILL); [`Server::start_again`] brings it back.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().map_err(Error::io("kill"))?;
        self.child.wait().map_err(Error::io("wait for the killed server"))?;
        Ok(())
    }

    /// Stops the server cleanly (SIGTERM); [`Server::start_again`] brings it back.
    pub fn halt(&mut self) -> Result<()> {
        self.terminate()?;
        Ok(())
    }

    /// Starts a server that was killed or halted, on the same folder and the same ports.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = launch(&self.config, &self.endpoint, self.folder.path(), &[])?;
        Ok(())
    }

    fn into_folder(mut self) -> Result<(Config, TempDir)> {
        let empty = TempDir::new().map_err(Error::io("temporary folder"))?;
        let folder = std::mem::replace(&mut self.folder, empty);
        Ok((self.config.clone(), folder))
    }

    /// Asserts what must hold after every test, and stops the server.
    ///
    /// # Panics
    /// When the server is gone, grew, leaks file descriptors, panicked, logged a secret or a raw
    /// control byte, or does not end cleanly.
    pub fn finish(mut self) {
        assert!(
            matches!(self.child.try_wait(), Ok(None)),
            "the server ended by itself:\n{}",
            tail_of(&self.log())
        );
        if self.config.kind == Kind::Waystation {
            self.assert_settles();
        }
        self.end();
    }

    /// The same for a server that is not left alone: others have connections to it, which they may keep, so
    /// what it holds is not compared.
    ///
    /// # Panics
    /// When the server is gone, panicked, logged a secret or a raw control byte, or does not end cleanly.
    pub fn end(mut self) {
        assert!(
            matches!(self.child.try_wait(), Ok(None)),
            "the server ended by itself:\n{}",
            tail_of(&self.log())
        );
        let status = self.terminate().expect("the server ends after SIGTERM");
        if self.config.kind == Kind::Waystation {
            assert!(status.success(), "exit after SIGTERM: {status}\n{}", tail_of(&self.log()));
            self.assert_log_is_clean();
        }
    }

    /// Asserts that file descriptors and memory come back to the baseline.
    ///
    /// # Panics
    /// When they do not within five seconds.
    pub fn assert_settles(&self) {
        let end = Instant::now() + SETTLE;
        loop {
            let now = self.sample().expect("a running server can be looked at");
            // The store opens and closes files of its own as it sees fit.
            let data = data_files(self.pid(), self.folder.path());
            let fds = now.fds.saturating_sub(data);
            if fds <= self.baseline.fds.saturating_sub(self.baseline_data)
                && now.rss <= self.baseline.rss + MAX_GROWTH
            {
                return;
            }
            if Instant::now() > end {
                let open: Vec<_> = fs::read_dir(format!("/proc/{}/fd", self.pid()))
                    .into_iter()
                    .flatten()
                    .filter_map(|f| fs::read_link(f.ok()?.path()).ok())
                    .collect();
                panic!("not back at the baseline: was {:?}, is {now:?}; open: {open:?}", self.baseline);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asserts that the log shows no panic, no secret and no raw control byte.
    ///
    /// # Panics
    /// When it does.
    pub fn assert_log_is_clean(&self) {
        let log = self.log();
        assert!(!log.contains("panicked at"), "the server panicked:\n{}", tail_of(&log));
        for account in &self.config.accounts {
            assert!(!log.contains(&account.password), "the password of {} is in the log", account.user);
        }
        let raw = log.lines().find(|l| l.chars().any(|c| c.is_control() && c != '\t'));
        assert!(raw.is_none(), "raw control characters in the log: {:?}", raw.unwrap_or_default());
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        if let Ok(Some(status)) = self.child.try_wait() {
            return Ok(status);
        }
        self.signal(Signal::SIGTERM)?;
        wait_for_exit(&mut self.child, STOP_DEADLINE)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the server's log ---\n{}", tail_of(&self.log()));
        }
        // Both fail only when the process was already waited for.
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// How many files below the server's data folder it has open.
fn data_files(pid: u32, folder: &Path) -> usize {
    let data = folder.join("data");
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()).filter(|path| path.starts_with(&data)).count()
}

/// Picks free ports of the loopback interface.
fn reserve_endpoint(hosts: &[String]) -> Result<Endpoint> {
    let listen = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::io("find a free port"));
    // All are held until all are known, so that they differ.
    let (a, b, c, d, e) = (listen()?, listen()?, listen()?, listen()?, listen()?);
    let addr = |l: &TcpListener| l.local_addr().map_err(Error::io("find a free port"));
    let host = hosts.first().cloned().ok_or_else(|| Error::Setup("no host configured".into()))?;
    Ok(Endpoint {
        host,
        c2s: addr(&a)?,
        c2s_tls: addr(&b)?,
        http: addr(&c)?,
        s2s: addr(&d)?,
        s2s_tls: addr(&e)?,
    })
}

/// Makes the accounts and starts the program; it accepts connections when this returns.
fn launch(config: &Config, at: &Endpoint, folder: &Path, accounts: &[Account]) -> Result<Child> {
    let program = match config.kind {
        Kind::Waystation => waystation::prepare(config, at, folder, accounts)?,
        Kind::Prosody => peers::prepare_prosody(config, at, folder, accounts)?,
        Kind::Ejabberd => peers::prepare_ejabberd(config, at, folder)?,
    };
    let log = folder.join("server.log");
    // An earlier run in the folder has logged that it was ready, too.
    let logged = fs::read(&log).map_or(0, |text| text.len());
    let mut child = spawn(&program, config.core, &log)?;
    let federated = config.federation.is_some();
    let ports = [
        Some(at.c2s),
        Some(at.c2s_tls),
        config.web.then_some(at.http),
        federated.then_some(at.s2s),
        federated.then_some(at.s2s_tls),
    ];
    let ready = wait_until_ready(&mut child, &ports, program.ready_file.as_deref());
    let ready = ready.and_then(|()| match config.kind {
        Kind::Waystation => wait_for_ready_line(&log, logged),
        Kind::Prosody | Kind::Ejabberd => Ok(()),
    });
    match ready {
        Ok(()) => Ok(child),
        Err(e) => {
            // It may be gone already; either way it is not left behind.
            let _gone = child.kill();
            let _status = child.wait();
            Err(Error::Setup(format!("{e}\n{}", tail(&log))))
        }
    }
}

fn spawn(program: &Program, core: Option<usize>, log: &Path) -> Result<Child> {
    let file = File::options().create(true).append(true).open(log).map_err(Error::io("open the log"))?;
    let copy = file.try_clone().map_err(Error::io("open the log"))?;
    let command = match core {
        // taskset replaces itself by the program, so the process id is the server's.
        Some(core) => {
            let mut command = Command::new("taskset");
            command.arg("-c").arg(core.to_string()).arg(&program.path);
            command
        }
        None => Command::new(&program.path),
    };
    let mut command = waystation::clean(command);
    command.args(&program.args).envs(program.env.iter().map(|(k, v)| (k, v)));
    command.stdin(Stdio::null()).stdout(file).stderr(copy);
    command.spawn().map_err(Error::io(format!("start {}", program.path.display())))
}

fn wait_until_ready(
    child: &mut Child,
    ports: &[Option<SocketAddr>],
    ready_file: Option<&Path>,
) -> Result<()> {
    let end = Instant::now() + START_DEADLINE;
    let accepts = |addr: &SocketAddr| TcpStream::connect_timeout(addr, Duration::from_secs(1)).is_ok();
    while !(ready_file.is_none_or(Path::exists) && ports.iter().flatten().all(accepts)) {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(Error::Setup(format!("ended at once: {status}")));
        }
        if Instant::now() > end {
            return Err(Error::Setup(format!("not ready after {START_DEADLINE:?}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn wait_for_exit(child: &mut Child, deadline: Duration) -> Result<ExitStatus> {
    let end = Instant::now() + deadline;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() > end => {
                let what = "exit of the server".to_owned();
                return Err(Error::Timeout { what, after: deadline, got: String::new() });
            }
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Err(e) => return Err(Error::io("wait for the server")(e)),
        }
    }
}

fn tail(log: &Path) -> String {
    fs::read(log).map(|b| tail_of(&String::from_utf8_lossy(&b))).unwrap_or_default()
}

fn tail_of(log: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

pub(crate) fn write(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, contents).map_err(Error::io(format!("write {}", path.display())))
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(Error::io(format!("make {}", path.display()))(e))
        }
        _ => Ok(()),
    }
}

/// Waits for the server to say that it is ready: before, it may still be opening files, and what it
/// has open then is no baseline.
fn wait_for_ready_line(log: &Path, from: usize) -> Result<()> {
    let end = Instant::now() + START_DEADLINE;
    let says_ready = |text: Vec<u8>| text.get(from..).is_some_and(|new| contains(new, b"ready"));
    while !fs::read(log).is_ok_and(says_ready) {
        if Instant::now() > end {
            return Err(Error::Setup(format!("the server does not get ready:\n{}", tail(log))));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|w| w == part)
}

//! Clients that do not read, floods, and the signal to stop.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use waystation_harness::pace::Pace;
use waystation_harness::process::stolen;
use waystation_harness::{Account, Client, Config, Endpoint, Login, Server};
use waystation_security::World;

/// More than any limit lets wait for a client.
const FLOOD: u64 = 1 << 30;
/// What a session may notice of others.
const ACCURATE_US: u64 = 20_000;
/// Each takes a second. The machine may be busy with something else in some of them; a server that
/// does not give way is late in most.
const MEASUREMENTS: usize = 5;
/// Seconds of which a machine without other work needs the first five.
const MOST: usize = 40;

/// The allocator asks for huge pages, and a few bytes of each took 2 MiB: a server at rest needed
/// twice the memory, and one that had stored 1,000 messages seemed to have grown by 35 MB.
#[test]
fn a_server_does_not_spread_over_huge_pages() {
    let world = World::new();
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", world.server.pid())).unwrap();
    let huge = rollup.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).unwrap();
    // What was there before the program's first line may stay.
    let kib: u64 = huge.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib <= 4_096, "{kib} KiB in huge pages");
    world.end();
}

/// What all these tests rest upon: the machine's own stalls are forgiven, those of the server not.
#[test]
fn the_witness_notices_a_server_that_stalls() {
    let world = World::alone(Config::default());
    for _ in 0..3 {
        world.server.signal(Signal::SIGSTOP).unwrap();
        // Much longer than what is asserted: a busy machine stalls as well in that time, and that is
        // subtracted.
        std::thread::sleep(Duration::from_millis(1_500));
        world.server.signal(Signal::SIGCONT).unwrap();
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = world.report();
    assert!(report.p99() > Duration::from_millis(250), "{report:?}");
}

#[tokio::test]
async fn a_client_that_does_not_read_costs_bounded_memory() {
    // Without the limits against floods the sender is as fast as it can be; those of memory stay.
    let config = Config { unlimited: true, ..Config::default() }.with("durability", "'memory'");
    let world = World::alone(config.with("limits.offline_messages", "0"));
    let mut deaf = world.login("juliet", "deaf").await;
    deaf.send("<presence/>").await.unwrap();
    let baseline = world.server.sample().unwrap().rss;
    let mut romeo = world.login("romeo", "r").await;
    let body = "x".repeat(200_000);
    let message =
        format!("<message to='juliet@localhost/deaf' type='headline'><body>{body}</body></message>");
    let (mut sent, mut worst) = (0u64, 0);
    while sent < FLOOD {
        romeo.send(&message).await.unwrap();
        sent += message.len() as u64;
        // What comes back once the session is closed is read, or romeo would be the deaf one.
        if sent % (20 * message.len() as u64) == 0 {
            romeo.drain().await.unwrap();
            worst = worst.max(world.server.sample().unwrap().rss.saturating_sub(baseline));
        }
    }
    romeo.drain().await.unwrap();
    assert!(worst < 64 << 20, "{} MiB more for one client that does not read", worst >> 20);
    drop((deaf, romeo));
    world.end();
}

#[tokio::test]
async fn a_flood_leaves_others_their_time() {
    let world = World::alone(Config { unlimited: true, ..Config::default() });
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    let many = "<message to='juliet@localhost/r'><body>flood</body></message>".repeat(200);
    let end = Instant::now() + Duration::from_secs(3);
    let mut received = 0usize;
    while Instant::now() < end {
        romeo.send(&many).await.unwrap();
        for _ in 0..200 {
            juliet.next("the flood").await.unwrap();
            received += 1;
        }
    }
    assert!(received > 200);
    drop((romeo, juliet));
    // The witness has pinged all the while; its p99 is asserted here.
    world.end();
}

/// A session that sends as fast as the server takes it, on a thread of its own.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Flood {
    fn start(at: &Endpoint, account: &Account, resource: &str, what: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (at, account, login) = (at.clone(), account.clone(), Login::resource(resource));
        let (stopping, counter) = (stop.clone(), sent.clone());
        let flood = async move {
            let mut client = Client::login(&at, &account, &login).await.unwrap();
            while !stopping.load(Ordering::Relaxed) {
                client.send(&what).await.unwrap();
                counter.fetch_add(what.len() as u64, Ordering::Relaxed);
            }
            client.drain().await.unwrap();
        };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(flood);
        });
        Self { stop, sent, thread }
    }

    fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.sent.load(Ordering::Relaxed)
    }
}

/// The p99 of the latest thread, in microseconds, less what a thread
/// is late by that does nothing else, there and back, each time a thread waits for a core.
fn measure(world: &World) -> u64 {
    let pace = Pace::start().unwrap();
    let status = world.server.status(&["--timers"]).unwrap();
    let timers = status["timers"].as_array().unwrap();
    let p99 = timers.iter().map(|t| t["p99_us"].as_u64().unwrap()).max().unwrap();
    let machine = u64::try_from(pace.end().p99().as_micros()).unwrap();
    p99.saturating_sub(2 * machine)
}

#[test]
fn a_flood_leaves_a_10_ms_timer_accurate_to_20_ms() {
    let world = World::alone(Config { unlimited: true, ..Config::default() });
    let (at, accounts) =
        (world.server.endpoint(), [world.server.account("romeo"), world.server.account("juliet")]);
    // What nobody asked for is dropped, so that nothing but reading holds the sender back.
    let dropped = "<iq type='result' id='x' to='localhost'/>".repeat(2_000);
    // Each of these goes to another session of the server, and is dropped there.
    let routed = "<message type='error' to='nobody@localhost'><body>flood</body></message>".repeat(1_000);
    let floods: Vec<Flood> = (0..4)
        .map(|n| {
            let what = if n < 2 { &dropped } else { &routed };
            Flood::start(at, accounts[n % 2], &format!("flood{n}"), what.clone())
        })
        .collect();
    while floods.iter().any(|flood| flood.sent.load(Ordering::Relaxed) == 0) {
        assert!(!floods.iter().any(|flood| flood.thread.is_finished()), "a session ended before it flooded");
        std::thread::yield_now();
    }
    // Where other programs want the same cores, a whole round may be theirs all the same; what was
    // measured while the host took the cores away tells nothing.
    let (mut rounds, mut round) = (Vec::new(), Vec::new());
    for _ in 0..MOST {
        let (began, before) = (Instant::now(), stolen());
        let measured = measure(&world);
        if stolen() - before < began.elapsed() / 50 {
            round.push(measured);
        }
        if round.len() == MEASUREMENTS {
            round.sort_unstable();
            rounds.push(std::mem::take(&mut round));
            if rounds.len() == 3 || rounds.iter().any(|round| round[MEASUREMENTS / 2] < ACCURATE_US) {
                break;
            }
        }
    }
    let sent: Vec<u64> = floods.into_iter().map(Flood::end).collect();
    assert!(sent.iter().all(|bytes| *bytes > 1_000_000), "no flood: {sent:?} bytes");
    let accurate = rounds.iter().any(|round| round[MEASUREMENTS / 2] < ACCURATE_US);
    if !accurate && rounds.len() < 3 {
        println!("too few of {MOST} seconds were the machine's own: nothing is told by {rounds:?}");
    } else {
        assert!(accurate, "timers were late in most seconds of each round, by us: {rounds:?}");
    }
    world.end();
}

#[tokio::test]
async fn a_stop_tells_every_session_and_loses_no_offline_message() {
    let mut server = Server::start(Config::default().with_users(["romeo", "juliet"])).unwrap();
    let login = Login::resource("r");
    let mut romeo = Client::login(server.endpoint(), server.account("romeo"), &login).await.unwrap();
    romeo.send("<message to='juliet@localhost' type='chat'><body>later</body></message>").await.unwrap();
    romeo.drain().await.unwrap();
    server.signal(Signal::SIGTERM).unwrap();
    romeo.raw().expect_stream_error("system-shutdown").await.unwrap();
    assert!(server.wait_for_exit(Duration::from_secs(60)).unwrap().success());
    let account = server.account("juliet").clone();
    let (mut config, folder) = server.stop().unwrap();
    // They are in the folder already.
    config.accounts.clear();
    let server = Server::start_in(config, folder).unwrap();
    let mut juliet = Client::login(server.endpoint(), &account, &login).await.unwrap();
    juliet.send("<presence/>").await.unwrap();
    juliet.raw().read_until("<body>later</body>").await.unwrap();
    juliet.close().await.unwrap();
    server.finish();
}

//! Commits per second of each back-end, with 1, 16 and 128 committers at once.
//!
//! `cargo run --release -p waystation-storage --example commit_rate [FOLDER] [SECONDS]`: the folder
//! says which device is measured (default: the system's temporary folder).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use waystation_core::storage::{Batch, Durability, Space, Storage};
use waystation_storage::{DataDir, Kind, Options, open};

const SPACE: Space = Space("rows");
const VALUE: [u8; 500] = [b'v'; 500];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    report(format_args!("engine  durability  committers  commits/s  CPU us/commit  p50 ms  p99 ms"));
    let cases = [
        (Kind::Fjall, Durability::Fsync),
        (Kind::Fjall, Durability::Os),
        (Kind::Sled, Durability::Os),
        (Kind::Memory, Durability::Memory),
    ];
    for (kind, durability) in cases {
        for committers in [1, 16, 128] {
            let data = tempfile::tempdir_in(&folder)?;
            let options = Options { kind, durability, ..Options::default() };
            let store = open(&DataDir::lock(data.path())?, &options)?;
            let cpu = cpu_time()?;
            let started = Instant::now();
            let mut latencies = runtime.block_on(run(&store, committers, Duration::from_secs(seconds)))?;
            let elapsed = started.elapsed();
            let cpu = cpu_time()?.saturating_sub(cpu);
            latencies.sort_unstable();
            let count = latencies.len();
            report(format_args!(
                "{:<6}  {:<10}  {committers:>10}  {:>9.0}  {:>13.1}  {:>6.2}  {:>6.2}",
                store.name(),
                format!("{:?}", store.durability()),
                count as f64 / elapsed.as_secs_f64(),
                cpu.as_secs_f64() * 1e6 / count as f64,
                latencies[count / 2].as_secs_f64() * 1e3,
                latencies[count * 99 / 100].as_secs_f64() * 1e3,
            ));
        }
    }
    Ok(())
}

/// Keeps `committers` commits under way for `time`; the time that each took.
async fn run(
    store: &Arc<dyn Storage>,
    committers: u64,
    time: Duration,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let started = Instant::now();
    let mut latencies = Vec::new();
    let mut next = 0_u64;
    let mut commit = || {
        next += 1;
        let issued = Instant::now();
        let commit = store.commit(Batch::new().put(SPACE, next.to_be_bytes().to_vec(), &VALUE[..]));
        async move { commit.await.map(|()| issued.elapsed()) }
    };
    let mut running: FuturesUnordered<_> = (0..committers).map(|_| commit()).collect();
    while let Some(latency) = running.next().await {
        latencies.push(latency?);
        if started.elapsed() < time {
            running.push(commit());
        }
    }
    Ok(latencies)
}

/// What this process has used of all cores.
fn cpu_time() -> Result<Duration, nix::Error> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let total = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(
        u64::try_from(nix::sys::time::TimeValLike::num_microseconds(&total)).unwrap_or(0),
    ))
}

fn report(line: std::fmt::Arguments<'_>) {
    use std::io::Write;
    // Nobody reads any more: there is nothing left to measure for.
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(1);
    }
}

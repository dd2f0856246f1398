//! What the queue does on this machine: records per second, CPU time per record, commits per
//! second and records per commit, at several numbers of records in flight; then a large backlog:
//! memory, disk, time to open again.
//!
//! `cargo run --release -p waystation-bench --bin queue -- [FOLDER] [SECONDS] [BACKLOG]`: the folder
//! says which device is measured (default: the system's temporary folder); every case appends and
//! acknowledges for SECONDS (default 2); BACKLOG records (default 10,000,000; 0 for none) are left
//! pending by the last case.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use smallvec::smallvec;
use tokio::task::JoinSet;
use waystation_core::queue::{Append, Batch, QueueBackend, QueueError, QueueName, RecordId, Settle, Verdict};
use waystation_core::storage::Durability;
use waystation_harness::process::own_cpu_time;
use waystation_queue::fs::{File, FileSystem, FreeSpace, Lock, RealFileSystem};
use waystation_queue::{Options, memory, open, open_on};

/// Bytes of a payload: a short message with its envelope.
const PAYLOAD: usize = 500;
/// Queues that the records are spread over.
const QUEUES: usize = 1000;
/// Bytes of a payload of the backlog.
const BACKLOG_PAYLOAD: usize = 200;

/// With this argument the program is the process that [`opened_after_a_crash`] crashes.
const FILL: &str = "--fill";

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|argument| argument == FILL) {
        let (folder, count) = (arguments.nth(1).unwrap_or_default(), arguments.next().unwrap_or_default());
        return fill_and_die(Path::new(&folder), count.parse()?);
    }
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(Ok(2), |text| text.parse())?;
    let backlog_records = arguments.next().map_or(Ok(10_000_000), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    say(format_args!(
        "{PAYLOAD} bytes a record, {QUEUES} queues; each record is appended, then acknowledged"
    ))?;
    say(format_args!(
        "{:<8} {:>9} {:>12} {:>13} {:>11} {:>15} {:>8} {:>8} {:>8}",
        "back-end",
        "in flight",
        "records/s",
        "CPU us/record",
        "commits/s",
        "records/commit",
        "p50 ms",
        "p99 ms",
        "max ms"
    ))?;
    for durability in [Durability::Fsync, Durability::Os, Durability::Memory] {
        // One record a batch, as sessions commit them; the last one a batch of all, as a domain's
        // backlog is read in.
        for (flight, per_batch) in
            [(1, 1), (16, 1), (100, 1), (1000, 1), (10_000, 1), (1000, 1000), (10_000, 1000)]
        {
            let data = tempfile::tempdir_in(&folder)?;
            let writes = Counting::default();
            let queue = start(data.path(), durability, writes.clone())?;
            let load = Load { flight, per_batch, time: Duration::from_secs(seconds) };
            let result = runtime.block_on(load.run(&queue, &writes.0))?;
            result.say(durability, &load)?;
            runtime.block_on(queue.close())?;
        }
    }
    if backlog_records > 0 {
        backlog(&runtime, &folder, backlog_records)?;
        opened_after_a_crash(&folder, backlog_records)?;
    }
    Ok(())
}

fn start(folder: &Path, durability: Durability, fs: Counting) -> Result<Arc<dyn QueueBackend>, Failure> {
    Ok(match durability {
        Durability::Memory => memory(),
        durability => open_on(Arc::new(fs), folder, &Options { durability, ..Options::default() })?,
    })
}

#[derive(Clone, Copy)]
struct Load {
    flight: usize,
    per_batch: usize,
    time: Duration,
}

struct Measured {
    records: u64,
    writes: u64,
    wall: Duration,
    cpu: Duration,
    latencies: Vec<u32>,
}

impl Load {
    /// Keeps `flight` records under way, each batch acknowledging the records of the one before.
    async fn run(&self, queue: &Arc<dyn QueueBackend>, writes: &AtomicU64) -> Result<Measured, Failure> {
        let stop = Arc::new(AtomicBool::new(false));
        let records = Arc::new(AtomicU64::new(0));
        let writes_before = writes.load(Ordering::Relaxed);
        let cpu = own_cpu_time()?;
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        for task in 0..self.flight / self.per_batch {
            let worker =
                worker(Arc::clone(queue), task, self.per_batch, Arc::clone(&stop), Arc::clone(&records));
            // On one thread: the client side costs as little as it can.
            tasks.spawn(worker);
        }
        tokio::time::sleep(self.time).await;
        stop.store(true, Ordering::Relaxed);
        let wall = began.elapsed();
        let writes = writes.load(Ordering::Relaxed) - writes_before;
        let records = records.load(Ordering::Relaxed);
        let mut latencies = Vec::new();
        while let Some(done) = tasks.join_next().await {
            latencies.extend(done??);
        }
        latencies.sort_unstable();
        let cpu = own_cpu_time()?.saturating_sub(cpu);
        Ok(Measured { records, writes, wall, cpu, latencies })
    }
}

async fn worker(
    queue: Arc<dyn QueueBackend>,
    task: usize,
    per_batch: usize,
    stop: Arc<AtomicBool>,
    records: Arc<AtomicU64>,
) -> Result<Vec<u32>, QueueError> {
    let payload = Bytes::from(vec![b'p'; PAYLOAD]);
    let name = |n: usize| QueueName::from(format!("a/user{:04}@example.org", n % QUEUES));
    let names: Vec<QueueName> = (0..per_batch).map(|n| name(task + n)).collect();
    let mut before: Vec<RecordId> = Vec::new();
    let mut latencies = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let mut batch = Batch::default();
        batch.records.extend(
            names
                .iter()
                .map(|name| Append { queues: smallvec![name.clone()], payload: smallvec![payload.clone()] }),
        );
        batch.settles.extend(before.iter().zip(&names).map(|(id, name)| Settle {
            queue: name.clone(),
            id: *id,
            verdict: Verdict::Ack,
        }));
        let asked = Instant::now();
        before = queue.commit(batch).await?;
        latencies.push(u32::try_from(asked.elapsed().as_micros()).unwrap_or(u32::MAX));
        records.fetch_add(before.len() as u64, Ordering::Relaxed);
        // The memory back-end never waits, and the clock has to be looked at all the same.
        tokio::task::yield_now().await;
    }
    Ok(latencies)
}

/// The real file system, with a count of the writes: a commit is one, and so are few others.
#[derive(Clone, Default)]
struct Counting(Arc<AtomicU64>);

struct CountedFile(Arc<dyn File>, Arc<AtomicU64>);

impl Counting {
    fn counted(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(CountedFile(file, Arc::clone(&self.0)))
    }
}

impl FileSystem for Counting {
    fn make_folder(&self, folder: &Path) -> io::Result<()> {
        RealFileSystem.make_folder(folder)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        RealFileSystem.list(folder)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.counted(RealFileSystem.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.counted(RealFileSystem.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealFileSystem.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFileSystem.remove(path)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        RealFileSystem.sync_folder(folder)
    }

    fn free_space(&self, folder: &Path) -> io::Result<FreeSpace> {
        RealFileSystem.free_space(folder)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Lock>>> {
        RealFileSystem.lock(path)
    }
}

impl File for CountedFile {
    fn write_at(&self, pieces: &[io::IoSlice<'_>], offset: u64) -> io::Result<usize> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.write_at(pieces, offset)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.0.allocate(len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }
}

impl Measured {
    fn say(&self, durability: Durability, load: &Load) -> io::Result<()> {
        let records = self.records as f64;
        let seconds = self.wall.as_secs_f64();
        let at = |share: usize| {
            let index = (self.latencies.len() * share / 100).min(self.latencies.len().saturating_sub(1));
            self.latencies.get(index).map_or(0.0, |micros| f64::from(*micros) / 1e3)
        };
        let commits = if durability == Durability::Memory {
            "-".to_owned()
        } else {
            format!("{:.0}", self.writes as f64 / seconds)
        };
        let per_commit = if durability == Durability::Memory {
            "-".to_owned()
        } else {
            format!("{:.1}", records / self.writes.max(1) as f64)
        };
        let flight = if load.per_batch > 1 {
            format!("{}x{}", load.flight / load.per_batch, load.per_batch)
        } else {
            load.flight.to_string()
        };
        say(format_args!(
            "{:<8} {flight:>9} {:>12.0} {:>13.2} {commits:>11} {per_commit:>15} {:>8.2} {:>8.2} {:>8.2}",
            format!("{durability:?}").to_lowercase(),
            records / seconds,
            self.cpu.as_secs_f64() * 1e6 / records,
            at(50),
            at(99),
            at(100),
        ))
    }
}

/// A field of /proc/self/status in MiB.
fn status_mib(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn disk_mib(folder: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in folder.read_dir()? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes / (1024 * 1024))
}

/// Leaves many records pending, opens the queue again, and takes them all away.
fn backlog(runtime: &tokio::runtime::Runtime, folder: &Path, count: usize) -> Result<(), Failure> {
    let data = tempfile::tempdir_in(folder)?;
    let options = backlog_options();
    let names = backlog_names();
    say(format_args!("\nbacklog: {count} pending records of {BACKLOG_PAYLOAD} bytes in {QUEUES} queues"))?;
    let before = status_mib("VmRSS:");
    let queue = open(data.path(), &options)?;
    let began = Instant::now();
    runtime.block_on(fill(&queue, &names, count))?;
    say(format_args!("  appending them: {:.1} s", began.elapsed().as_secs_f64()))?;
    say(format_args!("  memory: {} MiB resident, {before} before", status_mib("VmRSS:")))?;
    say(format_args!("  disk: {} MiB", disk_mib(data.path())?))?;
    let began = Instant::now();
    runtime.block_on(queue.close())?;
    drop(queue);
    say(format_args!("  closing: {:.3} s", began.elapsed().as_secs_f64()))?;
    let began = Instant::now();
    let queue = open(data.path(), &options)?;
    say(format_args!("  opening: {:.3} s", began.elapsed().as_secs_f64()))?;
    say(format_args!("  memory after opening: {} MiB resident", status_mib("VmRSS:")))?;
    let began = Instant::now();
    let cpu = own_cpu_time()?;
    let drained = runtime.block_on(drain(&queue, &names))?;
    say(format_args!(
        "  reading and acknowledging {drained}: {:.1} s, {:.2} CPU us each",
        began.elapsed().as_secs_f64(),
        own_cpu_time()?.saturating_sub(cpu).as_secs_f64() * 1e6 / drained as f64
    ))?;
    say(format_args!("  memory: {} MiB resident, at most {}", status_mib("VmRSS:"), status_mib("VmHWM:")))?;
    runtime.block_on(queue.close())?;
    say(format_args!("  disk after closing: {} MiB", disk_mib(data.path())?))?;
    Ok(())
}

fn backlog_options() -> Options {
    Options { durability: Durability::Os, ..Options::default() }
}

fn backlog_names() -> Vec<QueueName> {
    (0..QUEUES).map(|n| QueueName::from(format!("a/user{n:04}@example.org"))).collect()
}

async fn fill(queue: &Arc<dyn QueueBackend>, names: &[QueueName], count: usize) -> Result<(), QueueError> {
    let payload = Bytes::from(vec![b'p'; BACKLOG_PAYLOAD]);
    for first in (0..count).step_by(5000) {
        let append = |n: usize| Append {
            queues: smallvec![names[n % QUEUES].clone()],
            payload: smallvec![payload.clone()],
        };
        let records = (first..count.min(first + 5000)).map(append).collect();
        queue.commit(Batch { records, ..Batch::default() }).await?;
    }
    Ok(())
}

fn fill_and_die(folder: &Path, count: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let queue = open(folder, &backlog_options())?;
    runtime.block_on(fill(&queue, &backlog_names(), count))?;
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL)?;
    Ok(())
}

/// The same backlog, left by a process that was killed with its last append.
fn opened_after_a_crash(folder: &Path, count: usize) -> Result<(), Failure> {
    let data = tempfile::tempdir_in(folder)?;
    let mut child = std::process::Command::new(std::env::current_exe()?);
    let status = child.arg(FILL).arg(data.path()).arg(count.to_string()).status()?;
    say(format_args!("the same, and the process killed: {status}"))?;
    let began = Instant::now();
    let queue = open(data.path(), &backlog_options())?;
    say(format_args!("  opening: {:.3} s", began.elapsed().as_secs_f64()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pending = runtime.block_on(async {
        let mut pending = 0;
        for name in backlog_names() {
            pending += queue.stats(name).await?.pending;
        }
        Ok::<_, QueueError>(pending)
    })?;
    say(format_args!("  {pending} of {count} records are pending"))?;
    runtime.block_on(queue.close())?;
    Ok(())
}

/// Empties the queues, one after the other.
async fn drain(queue: &Arc<dyn QueueBackend>, names: &[QueueName]) -> Result<u64, QueueError> {
    let mut drained = 0;
    for name in names {
        let mut after = None;
        loop {
            let records = queue.read(name.clone(), after, 5000, usize::MAX).await?;
            let Some(last) = records.last() else { break };
            after = Some(last.id);
            drained += records.len() as u64;
            let settles = records.iter().map(|record| Settle {
                queue: name.clone(),
                id: record.id,
                verdict: Verdict::Ack,
            });
            queue.commit(Batch { settles: settles.collect(), ..Batch::default() }).await?;
        }
    }
    Ok(drained)
}

fn say(line: std::fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

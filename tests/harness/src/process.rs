//! What a process costs: memory, open files, threads and CPU time, read from the kernel.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// One look at a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Resident memory in bytes.
    pub rss: u64,
    /// Proportional share of resident memory in bytes: shared pages divided among their users.
    pub pss: u64,
    /// Memory that belongs to this process alone and was written to, in bytes.
    pub private: u64,
    /// Open file descriptors.
    pub fds: usize,
    /// Threads.
    pub threads: usize,
    /// CPU time of all threads, those that have ended included.
    pub cpu: Duration,
}

impl Sample {
    /// Looks at a process; an error when it is gone.
    pub fn of(pid: u32) -> io::Result<Self> {
        let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kib = |field: &str| -> u64 {
            rollup
                .lines()
                .find_map(|line| line.strip_prefix(field))
                .and_then(|rest| rest.split_whitespace().next())
                .and_then(|n| n.parse::<u64>().ok())
                .unwrap_or(0)
                * 1024
        };
        Ok(Self {
            rss: kib("Rss:"),
            pss: kib("Pss:"),
            private: kib("Private_Dirty:"),
            fds: open_files(pid)?,
            threads: fs::read_dir(format!("/proc/{pid}/task"))?.count(),
            cpu: cpu_time(pid)?,
        })
    }
}

/// How many file descriptors a process has open.
pub fn open_files(pid: u32) -> io::Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// What the host of a virtual machine has taken from all its cores since the start; zero where that
/// is not told.
pub fn stolen() -> Duration {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    // `cpu`, then user, nice, system, idle, iowait, irq, softirq, steal, in hundredths of a second.
    let ticks = stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok());
    Duration::from_millis(10 * ticks.unwrap_or(0_u64))
}

/// CPU time used by all threads of a process, in the kernel and outside, to the nanosecond
/// (the figures of `/proc/<pid>/stat` are the same time, cut to ticks of 10 ms).
pub fn cpu_time(pid: u32) -> io::Result<Duration> {
    let pid = Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?);
    Ok(Duration::from(clock_gettime(clock_getcpuclockid(pid)?)?))
}

/// CPU time used by all threads of this process.
pub fn own_cpu_time() -> io::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?))
}

/// CPU time used by the current thread.
pub fn thread_cpu_time() -> io::Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

/// Keeps this process (its present thread and all that it starts) on one core.
pub fn pin_to_core(core: usize) -> io::Result<()> {
    let mut set = nix::sched::CpuSet::new();
    set.set(core)?;
    Ok(nix::sched::sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Raises the soft limit of open files to the hard one, for this process and its children.
pub fn raise_file_limit() -> io::Result<u64> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_its_own_process() {
        let pid = std::process::id();
        let before = Sample::of(pid).unwrap();
        let file = fs::File::open("/proc/self/stat").unwrap();
        let mut memory = vec![0u8; 64 << 20];
        for page in memory.chunks_mut(4096) {
            page[0] = 1;
        }
        let mut spin = 0u64;
        while cpu_time(pid).unwrap() < before.cpu + Duration::from_millis(20) {
            spin = std::hint::black_box(spin + 1);
        }
        let after = Sample::of(pid).unwrap();
        assert!(after.rss >= before.rss + (60 << 20), "{before:?} {after:?}");
        assert!(after.private >= before.private + (60 << 20), "{before:?} {after:?}");
        // Other tests of this process open and close files meanwhile, so only the floor is certain.
        assert!(after.fds >= 4 && after.threads >= 1);
        drop((file, memory));
    }
}

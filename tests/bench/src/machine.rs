//! The machine that was measured on, without which no figure means anything.
//!
//! Everything is read from the kernel when the report is written; what cannot
//! be read stays empty, and never stops a report.

use std::fmt;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// The machine's shape.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    /// Cores that the kernel uses.
    cores: usize,
    /// The processor's name.
    cpu: String,
    /// Its clock in MHz, as the kernel tells it.
    mhz: String,
    /// Memory in GiB, rounded.
    memory_gib: u64,
    /// The kernel's version, without what its builder added.
    kernel: String,
    /// The file system that the servers' data folders are on.
    file_system: String,
    /// The device below it.
    device: String,
    /// The load average of the last minute, when the report was written.
    load: String,
}

impl Machine {
    /// This machine, with the file system of the folder that holds the servers' data.
    pub(crate) fn of(data: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let field = |name: &str| {
            let line = cpuinfo.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_default();
            line.trim_start_matches([' ', '\t', ':']).to_owned()
        };
        let memory = read("/proc/meminfo");
        let memory = memory.lines().next().and_then(|l| l.split_whitespace().nth(1)).unwrap_or_default();
        let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
        let (file_system, device) = mount(&read("/proc/self/mounts"), &data).unwrap_or_default();
        Self {
            cores: cpuinfo.lines().filter(|l| l.starts_with("processor")).count(),
            cpu: field("model name"),
            mhz: field("cpu MHz"),
            memory_gib: (memory.parse::<u64>().unwrap_or(0) + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease")
                .trim()
                .split('-')
                .next()
                .unwrap_or_default()
                .to_owned(),
            file_system,
            device,
            load: read("/proc/loadavg").split_whitespace().next().unwrap_or_default().to_owned(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} x {} at {} MHz, ", self.cores, self.cpu, self.mhz)?;
        write!(f, "{} GiB of memory, Linux {}, ", self.memory_gib, self.kernel)?;
        write!(f, "data folders on {} ({}), ", self.file_system, self.device)?;
        write!(f, "load average at the end {}", self.load)
    }
}

/// The file system and the device of the innermost mount that holds this path; of two at the same
/// place the later one, which hides the earlier.
fn mount(mounts: &str, path: &Path) -> Option<(String, String)> {
    let rows = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (device, at, kind) = (words.next()?, words.next()?, words.next()?);
        // Spaces in the names are written as octal numbers.
        let at = at.replace("\\040", " ");
        path.starts_with(&at).then(|| (at.len(), (kind.to_owned(), device.to_owned())))
    });
    rows.max_by_key(|(length, _)| *length).map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_is_found() {
        let mounts = "/dev/a / ext4 rw 0 0\nproc /proc proc rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n\
                      /dev/b /tmp/my\\040data xfs rw 0 0\n/dev/c /tmp tmpfs2 rw 0 0\n";
        let of = |path: &str| mount(mounts, Path::new(path)).map(|(kind, _)| kind);
        assert_eq!(of("/home/x").as_deref(), Some("ext4"));
        assert_eq!(of("/tmpfile").as_deref(), Some("ext4"));
        assert_eq!(of("/tmp/x").as_deref(), Some("tmpfs2"));
        assert_eq!(of("/tmp/my data/x").as_deref(), Some("xfs"));
        assert_eq!(mount("", Path::new("/")), None);
    }

    #[test]
    fn this_machine_has_a_shape() {
        let machine = Machine::of(&std::env::temp_dir());
        assert!(machine.cores > 0 && !machine.kernel.is_empty() && !machine.file_system.is_empty());
        assert!(machine.to_string().contains("GiB"), "{machine}");
    }
}

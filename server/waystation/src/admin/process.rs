//! What this process uses of the system, read from `/proc`.
//!
//! What must hold: a system that does not tell is no error; the look itself is not counted.

use std::fs;

/// Resident memory in bytes.
pub(super) fn memory() -> Option<u64> {
    // A file of the kernel's: reading it waits for no disk.
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Open file descriptors.
pub(super) fn descriptors() -> Option<usize> {
    // One of them is the folder that is being listed.
    fs::read_dir("/proc/self/fd").ok()?.count().checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_sees_itself() {
        assert!(memory().unwrap() > 1024 * 1024);
        // Standard input, output and error; other tests may hold more at any moment.
        assert!(descriptors().unwrap() >= 3);
    }
}

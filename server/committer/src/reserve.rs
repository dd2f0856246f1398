//! Refuses what needs room while the device is nearly full, so that removing stays possible.
//!
//! What must hold: not to know how much room there is refuses nothing, for a device that is really
//! full still makes the write fail; the log tells of each change once, not of each group.

use std::io;
use std::path::Path;

/// Room on a device, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreeSpace {
    /// What this process may still use.
    pub available: u64,
    /// The size of the device.
    pub total: u64,
}

/// The room on the device that holds `path`, by statvfs.
///
/// # Errors
/// The error of the system, such as when `path` does not exist.
pub fn free_space(path: &Path) -> io::Result<FreeSpace> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    // The types of these fields differ between platforms, hence the widening.
    let unit = stat.fragment_size() as u64;
    Ok(FreeSpace {
        available: (stat.blocks_available() as u64).saturating_mul(unit),
        total: (stat.blocks() as u64).saturating_mul(unit),
    })
}

/// Below how many free bytes a device of `total` bytes counts as full, unless configured.
fn default_reserve(total: u64) -> u64 {
    (total / 20).min(512 * 1024 * 1024)
}

/// Tells how much room the device has. Called by the committer alone, before every group.
pub type Probe = Box<dyn Fn() -> io::Result<FreeSpace> + Send>;

/// How many bytes of the device a store leaves to others and to its own removals.
pub struct Reserve {
    store: &'static str,
    probe: Option<Probe>,
    min_free: Option<u64>,
    was_low: bool,
}

impl Reserve {
    /// Wants `min_free` bytes of what `probe` tells: by default a twentieth of the device, at most
    /// 512 MiB; with 0 nothing is asked. `store` is who refuses, in the words of the log: "the queue".
    pub fn new(store: &'static str, probe: Probe, min_free: Option<u64>) -> Self {
        Self { store, probe: (min_free != Some(0)).then_some(probe), min_free, was_low: false }
    }

    /// Never refuses.
    pub fn none() -> Self {
        Self { store: "", probe: None, min_free: None, was_low: false }
    }

    /// True when there is too little room now.
    pub fn is_low(&mut self) -> bool {
        let Some(probe) = &self.probe else { return false };
        let store = self.store;
        let space = match probe() {
            Ok(space) => space,
            Err(error) => {
                tracing::warn!(%error, "cannot ask for the free space of {store}'s folder");
                return false;
            }
        };
        let wanted = self.min_free.unwrap_or_else(|| default_reserve(space.total));
        let low = space.available < wanted;
        if low != self.was_low {
            self.was_low = low;
            if low {
                tracing::error!(
                    available = space.available,
                    wanted,
                    "the disk is nearly full: {store} refuses writes until there is room again"
                );
            } else {
                tracing::info!(available = space.available, "there is room on the disk again for {store}");
            }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_a_device_and_a_missing_one_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let space = free_space(folder.path()).unwrap();
        assert!(space.total >= space.available && space.total > 0, "{space:?}");
        let missing = free_space(&folder.path().join("absent"));
        assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn the_reserve_is_a_twentieth_up_to_half_a_gibibyte() {
        assert_eq!(default_reserve(4 * 1024 * 1024), 4 * 1024 * 1024 / 20);
        assert_eq!(default_reserve(1 << 50), 512 * 1024 * 1024);
    }
}

//! How much room the device of a folder has.

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
pub(crate) fn default_reserve(total: u64) -> u64 {
    (total / 20).min(512 * 1024 * 1024)
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

//! Refuses records while the device is nearly full, so that acknowledging stays possible.

use std::path::Path;

use crate::fs::FileSystem;

/// See the module's header.
pub(crate) struct Reserve {
    min_free: Option<u64>,
    was_low: bool,
}

/// Below how many free bytes a device of `total` bytes counts as full, unless configured.
fn default_reserve(total: u64) -> u64 {
    (total / 20).min(512 * 1024 * 1024)
}

impl Reserve {
    /// Wants `min_free` bytes, by default a share of the device; with 0 nothing is looked at.
    pub(crate) fn new(min_free: Option<u64>) -> Self {
        Self { min_free, was_low: false }
    }

    /// True when there is too little room now.
    pub(crate) fn is_low(&mut self, fs: &dyn FileSystem, folder: &Path) -> bool {
        if self.min_free == Some(0) {
            return false;
        }
        let space = match fs.free_space(folder) {
            Ok(space) => space,
            Err(error) => {
                // Not knowing is no reason to refuse: a really full disk still makes the write fail.
                tracing::warn!(%error, "cannot ask for the free space of the queue's folder");
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
                    "the disk is nearly full: the queue refuses records until there is room again"
                );
            } else {
                tracing::info!(available = space.available, "there is room on the disk again");
            }
        }
        low
    }
}

//! What the last commits took: every message waits for one before it is acknowledged.
//!
//! What must hold: the times of at most [`KEPT`] commits are kept, the newest ones.

use std::collections::VecDeque;
use std::time::Duration;

use waystation_runtime::percentile;

/// Of so many commits the times are kept: 16 KiB, and enough for a percentile of 99.
const KEPT: usize = 4_096;

/// What the last commits to the queue took, from their beginning until the last of their data was safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitTimes {
    /// So many commits are meant, at most 4,096.
    pub commits: usize,
    /// Half of them took no longer, in whole microseconds.
    pub median: Duration,
    /// 99 of 100 took no longer, in whole microseconds.
    pub p99: Duration,
}

/// Times of commits, the oldest first.
#[derive(Clone, Default)]
pub(crate) struct RecentCommits {
    micros: VecDeque<u32>,
}

impl RecentCommits {
    pub(crate) fn add(&mut self, took: Duration) {
        if self.micros.len() == KEPT {
            self.micros.pop_front();
        }
        self.micros.push_back(u32::try_from(took.as_micros()).unwrap_or(u32::MAX));
    }

    /// None before the first commit. It sorts: not for who holds up others.
    pub(crate) fn into_times(self) -> Option<CommitTimes> {
        let mut sorted = Vec::from(self.micros);
        sorted.sort_unstable();
        let at = |percent| Some(Duration::from_micros(percentile(&sorted, percent)?.into()));
        Some(CommitTimes { commits: sorted.len(), median: at(50)?, p99: at(99)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_taken() {
        let mut recent = RecentCommits::default();
        assert_eq!(recent.clone().into_times(), None);
        recent.add(Duration::from_micros(7));
        let seven = Duration::from_micros(7);
        assert_eq!(recent.clone().into_times(), Some(CommitTimes { commits: 1, median: seven, p99: seven }));
        (1..=199).rev().for_each(|micros| recent.add(Duration::from_micros(micros)));
        let times = recent.clone().into_times().unwrap();
        assert_eq!(
            (times.commits, times.median, times.p99.as_micros()),
            (200, Duration::from_micros(99), 197)
        );
    }

    #[test]
    fn the_newest_are_kept() {
        let mut recent = RecentCommits::default();
        (0..KEPT).for_each(|_| recent.add(Duration::from_secs(3)));
        (0..KEPT).for_each(|_| recent.add(Duration::from_secs(2)));
        let two = Duration::from_secs(2);
        assert_eq!(recent.clone().into_times(), Some(CommitTimes { commits: KEPT, median: two, p99: two }));
        recent.add(Duration::from_secs(100_000));
        assert_eq!(recent.clone().into_times().unwrap().commits, KEPT);
        assert_eq!(recent.micros.back(), Some(&u32::MAX), "more than 71 minutes are told as that");
    }
}

//! When the next commit begins: at once, or when those have come who will come soon.
//!
//! Who is answered by a commit often says the next thing at once. A commit that begins with the first of them
//! leaves all others to the one after it, and in the end everybody waits for two commits, one of which is
//! half empty. So on a slow device the next commit waits for as many as the last one answered.
//!
//! What must hold: a pause is at most half of what a commit takes, or [`SHORTEST`]; who waits in vain is
//! asked to ever more seldom; where commits are quick, or only one at a time wants something, nothing waits.

use std::time::{Duration, Instant};

/// Commits that take less are those of a queue that does not flush.
const SLOW: Duration = Duration::from_micros(100);
/// The shortest pause: timers count milliseconds. Where commits are quicker it ends because all have come.
const SHORTEST: Duration = Duration::from_millis(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_millis(50);
/// What an item costs the server before and after its commit, roughly. Where all of them together cost more than
/// a commit does, the device had better work meanwhile.
const EACH: Duration = Duration::from_micros(2);
/// Most commits without a pause after one that was in vain.
const MOST_SKIPPED: u32 = 512;

/// Decides on pauses, from how commits and earlier pauses went.
pub(crate) struct Pace {
    /// What a commit takes: a moving average.
    takes: Duration,
    /// So many commits to go without a pause, and how many after the next pause that is in vain.
    skip: u32,
    penalty: u32,
}

/// A pause before a commit.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    /// The commit begins now at the latest...
    pub(crate) until: Instant,
    /// ... and as soon as so many items wait that somebody waits for.
    pub(crate) wanted: usize,
    /// How many did when it began.
    waiting: usize,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { takes: Duration::ZERO, skip: 0, penalty: 1 }
    }

    /// A commit of `count` items that somebody waited for took `took`; `waiting` more have come meanwhile.
    pub(crate) fn committed(
        &mut self,
        took: Duration,
        count: usize,
        waiting: usize,
        now: Instant,
    ) -> Option<Pause> {
        self.takes = (self.takes * 7 + took) / 8;
        let wanted = count + waiting;
        let busy = EACH * u32::try_from(wanted).unwrap_or(u32::MAX);
        if count == 0 || self.takes < SLOW.max(busy) {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        let until = now + (self.takes / 2).clamp(SHORTEST, LONGEST);
        Some(Pause { until, wanted, waiting })
    }

    /// A pause is over, and `waiting` items wait that somebody waits for.
    pub(crate) fn paused(&mut self, pause: &Pause, waiting: usize) {
        let (hoped, came) = (pause.wanted - pause.waiting, waiting.saturating_sub(pause.waiting));
        if came * 4 >= hoped * 3 {
            self.penalty = 1;
        } else if waiting > 0 {
            // Somebody waited for nobody.
            self.skip = self.penalty;
            self.penalty = (self.penalty * 2).min(MOST_SKIPPED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW_ENOUGH: Duration = Duration::from_millis(8);

    fn slow() -> Pace {
        Pace { takes: SLOW_ENOUGH, ..Pace::new() }
    }

    #[test]
    fn those_who_answer_at_once_are_waited_for() {
        let (mut pace, now) = (slow(), Instant::now());
        for _ in 0..1000 {
            let pause = pace.committed(SLOW_ENOUGH, 10, 5, now).unwrap();
            assert_eq!((pause.until, pause.wanted), (now + SLOW_ENOUGH / 2, 15));
            pace.paused(&pause, 13);
        }
    }

    #[test]
    fn who_waits_in_vain_waits_ever_more_seldom_until_it_helps_again() {
        let (mut pace, now) = (slow(), Instant::now());
        let mut pauses = 0;
        for _ in 0..10_000 {
            if let Some(pause) = pace.committed(SLOW_ENOUGH, 10, 5, now) {
                pauses += 1;
                pace.paused(&pause, 9);
            }
        }
        assert!((10..=30).contains(&pauses), "{pauses} pauses");
        let pause =
            std::iter::repeat_with(|| pace.committed(SLOW_ENOUGH, 10, 5, now)).take(600).flatten().next();
        pace.paused(&pause.unwrap(), 15);
        let pause = pace.committed(SLOW_ENOUGH, 10, 5, now).unwrap();
        pace.paused(&pause, 5);
        assert_eq!(pace.committed(SLOW_ENOUGH, 10, 5, now), None);
        assert!(pace.committed(SLOW_ENOUGH, 10, 5, now).is_some(), "the penalty was forgotten");
    }

    #[test]
    fn one_alone_waits_for_nobody_else() {
        let pause = slow().committed(SLOW_ENOUGH, 1, 0, Instant::now()).unwrap();
        assert_eq!(pause.wanted, 1);
    }

    #[test]
    fn a_pause_in_which_nobody_waited_is_not_in_vain() {
        let (mut pace, now) = (slow(), Instant::now());
        let pause = pace.committed(SLOW_ENOUGH, 10, 0, now).unwrap();
        pace.paused(&pause, 0);
        assert!(pace.committed(SLOW_ENOUGH, 10, 0, now).is_some());
    }

    #[test]
    fn quick_and_large_commits_are_not_waited_for_and_a_pause_has_its_limits() {
        let now = Instant::now();
        let mut quick = Pace::new();
        for _ in 0..100 {
            assert_eq!(quick.committed(SLOW / 2, 10, 10, now), None);
        }
        let mut pace = slow();
        let many = (SLOW_ENOUGH.as_micros() / EACH.as_micros()) as usize;
        assert!(pace.committed(SLOW_ENOUGH, many - 1, 1, now).is_some());
        assert_eq!(pace.committed(SLOW_ENOUGH, many, 1, now), None);
        assert_eq!(pace.committed(SLOW_ENOUGH, 0, 0, now), None, "nobody was answered");
        // A device that stopped for a minute.
        let pause = pace.committed(Duration::from_secs(60), 10, 0, now).unwrap();
        assert_eq!(pause.until, now + LONGEST);
    }
}

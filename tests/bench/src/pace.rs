//! When a user may send what it owes: at once, or one message in each interval.
//!
//! The intervals of a load's users begin evenly spread, so that a rate is a
//! stream and not bursts. A slot that was free while nothing was owed is lost;
//! one that was missed because something else took long is made up for, so the
//! rate holds.

/// One user's turns. Times are nanoseconds of the load's clock.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Where its intervals begin, as a share of one.
    share: f64,
    /// When the next message may go; known while something is owed and the load is paced.
    due: Option<u64>,
    /// What that was reckoned with.
    interval: Option<u64>,
    owed: usize,
}

impl Pace {
    /// The `n`th of `users`.
    pub(crate) fn new(n: usize, users: usize) -> Self {
        Self { share: n as f64 / users as f64, due: None, interval: None, owed: 0 }
    }

    /// So many more are to be sent.
    pub(crate) fn owe(&mut self, count: usize) {
        if self.owed == 0 {
            self.due = None;
        }
        self.owed += count;
    }

    /// How many are to be sent now, which are owed no longer; all of them without an interval.
    pub(crate) fn take(&mut self, now: u64, interval: Option<u64>) -> usize {
        if self.interval != interval {
            self.interval = interval;
            self.due = None;
        }
        let Some(interval) = interval else {
            return std::mem::take(&mut self.owed);
        };
        let mut count = 0;
        while self.owed > 0 {
            let due = *self.due.get_or_insert_with(|| slot(now, interval, self.share));
            if due > now {
                break;
            }
            self.due = Some(due + interval);
            self.owed -= 1;
            count += 1;
        }
        count
    }

    /// When the next message may go, if one is owed that may not go yet.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due.filter(|_| self.owed > 0)
    }
}

/// The first beginning of an interval from `now` on.
fn slot(now: u64, interval: u64, share: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "share is within 0..1")]
    let offset = (interval as f64 * share) as u64;
    now.saturating_sub(offset).div_ceil(interval.max(1)) * interval + offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_an_interval_all_goes_at_once() {
        let mut pace = Pace::new(0, 2);
        pace.owe(3);
        pace.owe(4);
        assert_eq!(pace.take(5, None), 7);
        assert_eq!((pace.take(6, None), pace.due()), (0, None));
    }

    #[test]
    fn one_message_goes_in_each_interval() {
        let mut pace = Pace::new(1, 4);
        pace.owe(3);
        assert_eq!((pace.take(101, Some(100)), pace.due()), (0, Some(125)));
        assert_eq!((pace.take(125, Some(100)), pace.due()), (1, Some(225)));
        assert_eq!(pace.take(224, Some(100)), 0);
        // Late: what was missed is made up for.
        assert_eq!((pace.take(330, Some(100)), pace.due()), (2, None));
    }

    #[test]
    fn free_slots_are_lost() {
        let mut pace = Pace::new(0, 1);
        pace.owe(1);
        assert_eq!(pace.take(0, Some(100)), 1);
        pace.owe(5);
        assert_eq!((pace.take(950, Some(100)), pace.due()), (0, Some(1000)));
        assert_eq!(pace.take(1000, Some(100)), 1);
        // Another pace, and none.
        assert_eq!((pace.take(1001, Some(400)), pace.due()), (0, Some(1200)));
        assert_eq!((pace.take(1002, None), pace.due()), (4, None));
    }

    #[test]
    fn users_are_spread() {
        let slots: Vec<u64> = (0..4).map(|n| slot(1000, 400, f64::from(n) / 4.0)).collect();
        assert_eq!(slots, [1200, 1300, 1000, 1100]);
        assert_eq!(slot(0, 400, 0.5), 200);
    }
}

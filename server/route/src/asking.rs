//! When the peer of a stream with stream management is asked what it has got (XEP-0198 4): a client, or
//! another server.
//!
//! What must hold: one question is open at a time; a peer that has something to acknowledge is asked again in
//! the end, and never without a pause.

use std::time::{Duration, Instant};

/// A peer that was asked and had nothing new to say is asked again after this time, unless something is sent
/// to it before; then after twice that, and so on up to [`AGAIN_MOST`].
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MOST: Duration = Duration::from_secs(64);

/// What was asked, and what came of it.
#[derive(Debug, Default)]
pub struct Asking {
    /// The peer was asked, then, and has not answered yet.
    asked: Option<Instant>,
    /// So many stanzas had been sent when it was asked last.
    about: u64,
    /// Set while its last answer said nothing new: when that came, and how long it is left alone.
    in_vain: Option<(Instant, Duration)>,
}

impl Asking {
    /// Since when the peer owes an answer.
    pub fn since(&self) -> Option<Instant> {
        self.asked
    }

    /// When a peer that had nothing new to say may be asked again.
    pub fn again_at(&self) -> Option<Instant> {
        self.in_vain.map(|(since, wait)| since + wait)
    }

    /// Whether the peer is to be asked: there is something that it has not acknowledged (`kept`), and it may
    /// have more to say than the last time. One that acknowledges only what it has handled would otherwise be
    /// asked without a pause. `sent` is how many stanzas it was sent.
    pub fn is_due(&self, sent: u64, kept: bool) -> bool {
        self.asked.is_none()
            && kept
            && (sent > self.about || self.in_vain.is_none_or(|(since, wait)| since.elapsed() >= wait))
    }

    /// The peer is asked now.
    pub fn asks(&mut self, sent: u64) {
        self.asked = Some(Instant::now());
        self.about = sent;
    }

    /// The peer has answered that it has got so many stanzas more than before.
    pub fn answered(&mut self, new: u64, kept: bool) {
        let asked = self.asked.take().is_some();
        if new > 0 {
            self.in_vain = None;
        } else if kept && asked {
            let wait = self.in_vain.map_or(AGAIN, |(_, wait)| (2 * wait).min(AGAIN_MOST));
            self.in_vain = Some((Instant::now(), wait));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_with_nothing_new_to_say_is_left_alone_ever_longer() {
        let mut asking = Asking::default();
        assert!(!asking.is_due(1, false), "nothing is kept");
        assert!(asking.is_due(1, true));
        asking.asks(1);
        assert!(!asking.is_due(2, true), "the first question is open");
        let mut wait = Duration::ZERO;
        for expected in [1, 2, 4, 8, 16, 32, 64, 64] {
            asking.answered(0, true);
            assert!(!asking.is_due(1, true) && asking.is_due(2, true));
            wait = asking.in_vain.map_or(Duration::ZERO, |(_, wait)| wait);
            assert_eq!(wait, Duration::from_secs(expected));
            asking.asks(1);
        }
        asking.in_vain = asking.in_vain.and_then(|(since, _)| Some((since.checked_sub(wait)?, wait)));
        asking.asked = None;
        assert!(asking.is_due(1, true), "the pause is over");
        asking.asks(1);
        asking.answered(1, true);
        assert!(asking.is_due(1, true) && asking.again_at().is_none(), "it had something to say");
    }

    #[test]
    fn an_answer_that_was_not_asked_for_changes_no_pause() {
        let mut asking = Asking::default();
        asking.answered(0, true);
        assert!(asking.again_at().is_none() && asking.since().is_none());
    }
}

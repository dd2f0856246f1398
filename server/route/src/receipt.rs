//! Which of a session's stanzas have been accepted: the number behind `<a h='…'/>` (XEP-0198 4).
//!
//! What must hold: a stanza counts only once everything that was to be durable for it is; the
//! number is that of a contiguous prefix, so a stanza that needs nothing still waits for the
//! earlier ones; a receipt that is dropped without a word is a failure, never an acceptance.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Waker};

#[derive(Default)]
struct State {
    /// Stanzas whose fate is open, in their order.
    open: VecDeque<Fate>,
    failed: bool,
    waker: Option<Waker>,
    /// Whoever waits wants to know of more than a failure.
    progress: bool,
}

/// The number of a stanza, and in the lowest bit whether it is accepted: every session has room
/// for some of them.
#[derive(Clone, Copy)]
struct Fate(u64);

impl Fate {
    fn open(number: u64) -> Self {
        Self(number << 1)
    }

    fn number(self) -> u64 {
        self.0 >> 1
    }

    fn is_accepted(self) -> bool {
        self.0 & 1 == 1
    }

    fn accept(&mut self) {
        self.0 |= 1;
    }
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, number: u64, accepted: bool) {
        let waker = {
            let mut state = self.lock();
            let Ok(index) = state.open.binary_search_by_key(&number, |fate| fate.number()) else { return };
            if accepted {
                state.open[index].accept();
            } else {
                state.failed = true;
            }
            let before = state.open.len();
            while state.open.front().is_some_and(|fate| fate.is_accepted()) {
                state.open.pop_front();
            }
            // Whoever waits learns of a longer prefix, and of a failure.
            let news = state.failed || (state.progress && state.open.len() < before);
            if news { state.waker.take() } else { None }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The session's side. Most routes of accounts never issue one, and keep no memory for them.
#[derive(Default)]
pub struct Receipts {
    shared: OnceLock<Arc<Shared>>,
}

impl Receipts {
    /// A receipt for the stanza `number`, which must be greater than all before.
    pub fn issue(&self, number: u64) -> Receipt {
        let shared = self.shared.get_or_init(Arc::default);
        shared.lock().open.push_back(Fate::open(number));
        Receipt { shared: shared.clone(), number, open: true }
    }

    /// True when nothing is open.
    pub fn is_clear(&self) -> bool {
        self.shared.get().is_none_or(|shared| shared.lock().open.is_empty())
    }

    /// True when a stanza was not accepted though it was handed on: nothing after it can ever
    /// be acknowledged.
    pub fn has_failed(&self) -> bool {
        self.shared.get().is_some_and(|shared| shared.lock().failed)
    }

    /// How many of `received` stanzas are accepted without a gap. The task of `cx` is woken when
    /// one has failed, and with `progress` also when that number may have grown: whoever has
    /// nothing to tell its client of it is spared a turn for each commit.
    pub fn accepted(&self, received: u64, progress: bool, cx: &mut Context<'_>) -> u64 {
        let Some(shared) = self.shared.get() else { return received };
        let mut state = shared.lock();
        let Some(first) = state.open.front() else { return received };
        let accepted = first.number() - 1;
        state.progress = progress;
        match &state.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => state.waker = Some(cx.waker().clone()),
        }
        accepted
    }
}

/// The open fate of one stanza.
#[derive(Debug)]
#[must_use = "a receipt that is dropped is a failure"]
pub struct Receipt {
    shared: Arc<Shared>,
    number: u64,
    open: bool,
}

impl Receipt {
    /// Position of the stanza in its session, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The stanza is accepted: what was to be durable is, or its sender was told otherwise.
    pub fn accept(mut self) {
        self.open = false;
        self.shared.settle(self.number, true);
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.open {
            self.shared.settle(self.number, false);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Receipts")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(receipts: &Receipts, received: u64) -> u64 {
        receipts.accepted(received, true, &mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn the_number_is_that_of_a_prefix_without_gaps() {
        let receipts = Receipts::default();
        assert_eq!(accepted(&receipts, 3), 3, "what needs nothing counts at once");
        let (a, b) = (receipts.issue(4), receipts.issue(6));
        assert_eq!(accepted(&receipts, 7), 3);
        b.accept();
        assert_eq!(accepted(&receipts, 7), 3, "the earlier one is open");
        a.accept();
        assert_eq!(accepted(&receipts, 7), 7);
        assert!(receipts.is_clear() && !receipts.has_failed());
    }

    #[test]
    fn a_receipt_that_is_dropped_is_a_failure() {
        let receipts = Receipts::default();
        drop(receipts.issue(1));
        let later = receipts.issue(2);
        later.accept();
        assert!(receipts.has_failed());
        assert_eq!(accepted(&receipts, 2), 0, "nothing behind a failure is acknowledged");
    }
}

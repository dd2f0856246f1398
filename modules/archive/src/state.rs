//! What is known of an account's archive as a whole: how far it goes, how much it holds, and
//! where the clock was set back.
//!
//! On disk, in the space `archive_state`: the account's bare JID, holding a version byte (2) and
//! the fields of [`State`] as varints. It is written in the same batch as the chunk that it tells
//! of, and each batch demands that the state is the one that it was made from: so a batch behind
//! one that failed fails as well, and the watermark never passes a message that was not stored.
//!
//! What must hold: `messages` and `bytes` are those of the rows; for two messages of one segment
//! (the positions between two steps, above `unsorted`) the later one's time is at most [`SLACK`]
//! before the earlier one's.

use bytes::Bytes;
use waystation_core::Jid;
use waystation_core::storage::{Space, StorageError};

use crate::row::{put_signed, put_varint, take_signed, take_varint};

/// The states, and nothing else.
pub(crate) const STATES: Space = Space("archive_state");

/// How far, in milliseconds, times may run backwards along the positions without a step: sessions
/// take the time before the log gives the position, and clocks are corrected a little.
pub(crate) const SLACK: i64 = 60_000;

/// Steps that are kept; with more, the oldest two segments become unsorted.
const MAX_STEPS: usize = 16;

const VERSION: u8 = 2;

/// See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct State {
    /// The greatest position that was handed over; 0 for none.
    pub(crate) newest: u64,
    /// All positions up to this one were removed; 0 for none.
    pub(crate) trimmed: u64,
    /// How many messages there are.
    pub(crate) messages: u64,
    /// Bytes of their stanzas on the wire.
    pub(crate) bytes: u64,
    /// Time of the oldest message as far as known, in milliseconds since 1970; for retention.
    pub(crate) oldest_time: i64,
    /// The latest time in the last segment.
    pub(crate) latest_time: i64,
    /// Up to this position times are in no order; 0 for none.
    pub(crate) unsorted: u64,
    /// First positions of the segments but the first, ascending.
    pub(crate) steps: Vec<u64>,
}

impl State {
    /// The key of an account.
    pub(crate) fn key(account: &Jid) -> Bytes {
        Bytes::copy_from_slice(account.bare_str().as_bytes())
    }

    /// Takes up a message behind all others.
    pub(crate) fn append(&mut self, position: u64, millis: i64, bytes: u64) {
        if self.messages == 0 {
            // Nothing is left that the new one could be out of order with.
            (self.oldest_time, self.latest_time) = (millis, millis);
            self.steps.clear();
        } else if millis < self.latest_time.saturating_sub(SLACK) {
            self.steps.push(position);
            self.latest_time = millis;
            if self.steps.len() > MAX_STEPS {
                self.steps.remove(0);
                self.unsorted = self.steps[0] - 1;
            }
        }
        self.latest_time = self.latest_time.max(millis);
        self.newest = self.newest.max(position);
        self.add(millis, bytes);
    }

    /// Takes up a message among the others, whose time fits between theirs.
    pub(crate) fn insert(&mut self, millis: i64, bytes: u64) {
        if self.messages == 0 {
            (self.oldest_time, self.latest_time) = (millis, millis);
        }
        self.latest_time = self.latest_time.max(millis);
        self.add(millis, bytes);
    }

    fn add(&mut self, millis: i64, bytes: u64) {
        self.oldest_time = self.oldest_time.min(millis);
        self.messages += 1;
        self.bytes += bytes;
    }

    /// Lets go of the messages up to a position.
    pub(crate) fn trim(&mut self, through: u64, messages: u64, bytes: u64) {
        self.trimmed = self.trimmed.max(through);
        self.messages = self.messages.saturating_sub(messages);
        self.bytes = self.bytes.saturating_sub(bytes);
        self.steps.retain(|&step| step > through);
    }

    /// The segments with an order of their own, and before them the unsorted one if there is one:
    /// first and last position, and whether it is sorted.
    pub(crate) fn segments(&self) -> Vec<(u64, u64, bool)> {
        let mut out = Vec::with_capacity(self.steps.len() + 2);
        let mut first = self.trimmed.saturating_add(1);
        if self.unsorted >= first {
            out.push((first, self.unsorted, false));
            first = self.unsorted.saturating_add(1);
        }
        for &step in &self.steps {
            if step > first {
                out.push((first, step - 1, true));
                first = step;
            }
        }
        if first <= self.newest {
            out.push((first, self.newest, true));
        }
        out
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(64);
        out.push(VERSION);
        for number in [self.newest, self.trimmed, self.messages, self.bytes, self.unsorted] {
            put_varint(&mut out, number);
        }
        put_signed(&mut out, self.oldest_time);
        put_signed(&mut out, self.latest_time);
        for &step in &self.steps {
            put_varint(&mut out, step);
        }
        out.into()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StorageError> {
        match bytes.first() {
            // Before a release, so that there is nothing to convert.
            Some(1) => Err(StorageError::Corrupt(
                "a message archive in layout 1; this version reads layout 2 alone".into(),
            )),
            _ => Self::read(bytes)
                .ok_or_else(|| StorageError::Corrupt("the state of a message archive".into())),
        }
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (&version, mut input) = bytes.split_first()?;
        if version != VERSION {
            return None;
        }
        let mut number = || take_varint(&mut input);
        let (newest, trimmed, messages) = (number()?, number()?, number()?);
        let (bytes, unsorted) = (number()?, number()?);
        let (oldest_time, latest_time) = (take_signed(&mut input)?, take_signed(&mut input)?);
        let mut steps = Vec::new();
        while !input.is_empty() {
            steps.push(take_varint(&mut input)?);
        }
        let ascending = steps.windows(2).all(|pair| pair[0] < pair[1]);
        let whole = ascending && steps.len() <= MAX_STEPS && steps.first() != Some(&0);
        whole.then_some(Self { newest, trimmed, messages, bytes, oldest_time, latest_time, unsorted, steps })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_state_is_refused() {
        for bytes in [&b""[..], &[3, 0, 0, 0, 0, 0, 0, 0], &[2], &[2, 0, 0, 0, 0, 0, 0, 0, 5, 5]] {
            assert!(State::decode(bytes).is_err(), "{bytes:?}");
        }
        let older = State::decode(&[1, 0, 0, 0, 0, 0, 0, 0]).unwrap_err().to_string();
        assert!(older.contains("layout 1"), "{older}");
    }

    proptest! {
        /// Whatever the clock does, each sorted segment keeps the order that searches rely on.
        #[test]
        fn segments_are_in_order_and_states_read_back(
            jumps in proptest::collection::vec(-400_000i64..200_000, 1..80),
        ) {
            let mut state = State::default();
            let mut rows = Vec::new();
            let mut now = 1_700_000_000_000i64;
            for (index, jump) in jumps.into_iter().enumerate() {
                now += jump;
                let position = index as u64 * 3 + 1;
                state.append(position, now, 10);
                rows.push((position, now));
            }
            prop_assert_eq!(&State::decode(&state.encode()).unwrap(), &state);
            prop_assert_eq!(state.messages, rows.len() as u64);
            prop_assert_eq!(state.oldest_time, rows.iter().map(|row| row.1).min().unwrap());
            let segments = state.segments();
            let covered: u64 = segments.iter().map(|(first, last, _)| last - first + 1).sum();
            prop_assert_eq!(covered, state.newest);
            for (first, last, sorted) in segments {
                let times: Vec<_> =
                    rows.iter().filter(|row| row.0 >= first && row.0 <= last).map(|row| row.1).collect();
                let mut latest = i64::MIN;
                for time in times {
                    prop_assert!(!sorted || time >= latest.saturating_sub(SLACK));
                    latest = latest.max(time);
                }
            }
        }
    }
}

//! The checks C1 to C12 of DELIVERY.md section 5, each a pure function from facts to witnesses.
//!
//! What must stay true: one fault of a server is reported by the check that the
//! contract names for it and by no other (`tests/mutations.rs` proves it), and a
//! correct server is never accused: where a history cannot tell, a check is silent.

use std::fmt;

use crate::facts::{At, Facts};
use crate::history::History;

mod acks;
mod duplicates;
mod effects;
mod loss;
mod order;
mod sessions;

/// A check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Loss.
    C1,
    /// Phantoms and corruption.
    C2,
    /// Duplicates.
    C3,
    /// Inbound processing twice.
    C3b,
    /// Order.
    C4,
    /// Acknowledgements that make sense.
    C5,
    /// One fate.
    C6,
    /// The order of a room.
    C7,
    /// The order of an account.
    C8,
    /// Liveness.
    C9,
    /// One owner of a session.
    C10,
    /// Effect before reply.
    C11,
    /// Honest errors.
    C12,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::C1,
        Self::C2,
        Self::C3,
        Self::C3b,
        Self::C4,
        Self::C5,
        Self::C6,
        Self::C7,
        Self::C8,
        Self::C9,
        Self::C10,
        Self::C11,
        Self::C12,
    ];

    /// What it is about, in a word or two.
    pub fn title(self) -> &'static str {
        match self {
            Self::C1 => "loss",
            Self::C2 => "phantom or corruption",
            Self::C3 => "duplicate",
            Self::C3b => "inbound processed twice",
            Self::C4 => "order of a sender",
            Self::C5 => "acknowledgement",
            Self::C6 => "two fates",
            Self::C7 => "order of a room",
            Self::C8 => "order of an account",
            Self::C9 => "liveness",
            Self::C10 => "two owners of a session",
            Self::C11 => "effect before reply",
            Self::C12 => "error honesty",
        }
    }

    /// Runs it.
    pub fn run(self, facts: &Facts<'_>) -> Vec<Witness> {
        match self {
            Self::C1 => loss::loss(facts),
            Self::C2 => loss::phantoms(facts),
            Self::C3 => duplicates::duplicates(facts),
            Self::C3b => duplicates::processed_twice(facts),
            Self::C4 => order::sender_order(facts),
            Self::C5 => acks::acks(facts),
            Self::C6 => loss::two_fates(facts),
            Self::C7 => order::room_order(facts),
            Self::C8 => order::account_order(facts),
            Self::C9 => acks::liveness(facts),
            Self::C10 => sessions::owners(facts),
            Self::C11 => effects::effects(facts),
            Self::C12 => loss::errors(facts),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// One violation, with the events that prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// What was violated.
    pub check: Check,
    /// What happened.
    pub text: String,
    /// The events that prove it.
    pub at: Vec<At>,
}

impl Witness {
    fn new(check: Check, at: impl Into<Vec<At>>, text: impl Into<String>) -> Self {
        Self { check, text: text.into(), at: at.into() }
    }
}

/// Runs all checks on a history.
pub fn check(history: &History) -> Vec<Witness> {
    check_facts(&Facts::new(history))
}

/// Runs all checks on what was derived from a history.
pub fn check_facts(facts: &Facts<'_>) -> Vec<Witness> {
    Check::ALL.into_iter().flat_map(|check| check.run(facts)).collect()
}

//! Proves the delivery contract (DELIVERY.md section 5) from what clients saw.
//!
//! [`history`] is what they saw, [`facts`] what follows from it, [`checks`] what
//! must hold, [`report`] the outcome for a reader. None of these knows a server
//! or a socket: they are pure, so that mutated histories prove the checks. The
//! server is met only on the wire, through the harness.

pub mod body;
pub mod checks;
pub mod client;
pub mod facts;
pub mod history;
pub mod report;
pub mod rng;
pub mod run;

//! Streams that we open, against peers written by hand: negotiation, proof, delivery, attacks.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;
mod negotiation;
mod ours;
mod running;

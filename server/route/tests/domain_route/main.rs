//! The route of a remote domain as an actor, against a peer that the tests play.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod common;
mod contacts;
mod histories;
mod limits;
mod order;
mod outage;
mod pace;
mod peer;
mod stores;

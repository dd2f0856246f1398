//! The module as its route sees it.

#![allow(clippy::unwrap_used, reason = "in a test it is an assertion")]

mod appendix_a;
mod limits;
mod model;
mod presence;
mod probes;
mod rosters;
mod store;
mod subscriptions;
mod world;

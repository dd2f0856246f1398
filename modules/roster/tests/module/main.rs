//! The module as its route sees it.

mod appendix_a;
mod limits;
mod model;
mod presence;
mod probes;
mod rosters;
mod store;
mod subscriptions;
mod world;

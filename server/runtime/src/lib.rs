//! What the actors run on: the allocator, arbiters and how late their timers are, outlets with byte credits, a
//! timer wheel, the drain signal, turns.
//!
//! What must hold: every queue between actors is an [`outlet`], bounded in bytes and items;
//! an idle actor owns no timer of its own, only a place in its arbiter's wheel.

pub mod allocator;
pub mod arbiters;
pub mod drain;
pub mod lateness;
pub mod outlet;
pub mod percentile;
pub mod turn;
pub mod wheel;

pub use allocator::Allocator;
pub use arbiters::Arbiters;
pub use drain::{Drain, DrainSignal};
pub use outlet::{Inlet, Offer, Outlet, Weigh, outlet};
pub use percentile::percentile;
pub use turn::after_others;

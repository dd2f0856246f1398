//! What a store is made of that has one thread to commit and a few to read: the inbox of the one,
//! the threads of the others, and the look at how much room the device has.
//!
//! What must hold: nothing here knows what is stored or in which format, and nothing needs a
//! runtime: a store is called from the event loops of many threads, and from threads without one.
//! A caller is never blocked, and nothing waits here without a limit.

mod block_on;
mod failure;
mod inbox;
mod readers;
mod reserve;

pub use block_on::block_on;
pub use failure::Failure;
pub use inbox::{Commit, Entry, Inbox, Limit, Work};
pub use readers::Readers;
pub use reserve::{FreeSpace, Probe, Reserve, free_space};

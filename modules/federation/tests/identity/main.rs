//! Which certificate proves which domain: row T8 of SECURITY.md, by its letters.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod chains;
mod common;
mod hostile;
mod names;

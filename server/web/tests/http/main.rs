//! The HTTP listeners from outside: what clients, proxies and browsers get, and what slow or hostile ones do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod discovery;
mod hostile;
mod origins;
mod proxies;
mod slow;
mod stopping;
mod tls;

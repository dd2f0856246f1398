//! The module as the rest of the server uses it.

mod m1;
mod rules;
mod store;
mod world;

//! The module as the rest of the server uses it.

mod durability;
mod exported;
mod gathering;
mod limits;
mod m1;
mod model;
mod outbox;
mod rules;
mod store;
mod world;

//! Multi-client tests that read as prose: the language (`script`) and its interpreter (`run`).
//!
//! The language is described in tests/scenarios/README.md.

mod run;
mod script;

pub use run::run;
pub use script::{Script, Step};

//! The configuration: one TOML file, environment variables and arguments, read into typed values.
//!
//! What must hold: the defaults are in the code and are a working server on localhost; every
//! mistake is found before anything is started, and all of them are told at once, each with its
//! place, its key, what was found and what was expected; no value is a secret.

mod check;
mod federation;
mod kinds;
mod node;
mod problem;
mod reader;
mod reference;
mod schema;
mod source;
mod suggest;
mod units;
mod value;
mod web;

use std::collections::BTreeMap;

pub use federation::{Authorities, DomainPattern, Peer, ServerAddress};
pub use kinds::{
    Account, ArchivePolicy, Certificate, ContactUri, Engine, Host, Level, LogFormat, LogModules, Mechanism,
    MinFree, Named,
};
pub use problem::{ConfigError, Excerpt, Origin, Problem};
pub use reference::reference;
pub use schema::{
    Config, Contact, Federation, Info, Limits, Listen, Log, Registration, Sasl, Shutdown, Storage, Tls, Web,
};
pub use source::{CONFIG_VARIABLE, ENVIRONMENT_PREFIX, Sources};
pub use units::Size;
pub use waystation_core::storage::Durability;
pub use web::{ExternalUrl, Network, PlainLogin, WebOrigin};

/// A configuration with the places where its keys were set.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The values in force.
    pub config: Config,
    origins: BTreeMap<String, Origin>,
}

/// Reads and checks a configuration.
///
/// # Errors
/// [`ConfigError`] with every mistake in every source.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigError> {
    let schema = schema::Schema::new();
    let mut problems = Vec::new();
    let texts = sources.collect(&mut problems);
    let entries = texts.iter().flat_map(|text| text.entries(&schema, &mut problems)).collect();
    let mut reader = reader::Reader::new(entries, problems);
    let mut config = node::Node::read(Config::default(), "", None, &mut reader);
    check::check(&mut config, &mut reader);
    if reader.problems.is_empty() {
        return Ok(Loaded { config, origins: reader.origins() });
    }
    let mut problems = reader.problems;
    // By line within the file, then as the sources come.
    problems.sort_by_key(|problem| match problem.origin {
        Origin::File { line, column, .. } => (0, line, column),
        _ => (1, 0, 0),
    });
    Err(ConfigError { problems })
}

impl Loaded {
    /// Where a key was set.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }

    /// All keys with the values in force, as TOML; a comment says where a key was set.
    pub fn show(&self) -> String {
        reference::show(&self.config, &self.origins)
    }
}

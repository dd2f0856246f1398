//! Limits and times of the routes.

use std::time::Duration;

use crate::domain::DomainConfig;

/// Limits of the routes.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Most bytes that may wait for one account's route.
    pub route_bytes: usize,
    /// Most stanzas that may wait for one account's route.
    pub route_items: usize,
    /// Most sessions of one account.
    pub sessions_per_account: usize,
    /// How long a route without sessions stays in memory.
    pub linger: Duration,
    /// Most routes without sessions that stay in memory.
    pub max_lingering: usize,
    /// Most messages that wait for an account.
    pub waiting_messages: u64,
    /// Most bytes of them.
    pub waiting_bytes: u64,
    /// Most sessions of an account that wait for their clients to come back (XEP-0198 5).
    pub detached_sessions: usize,
    /// Most stanzas that a session which waits for its client holds.
    pub detached_stanzas: usize,
    /// Most bytes of them.
    pub detached_bytes: usize,
    /// Limits and times of the routes of remote domains.
    pub domains: DomainConfig,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            route_bytes: 8 * 1024 * 1024,
            route_items: 10_000,
            sessions_per_account: 100,
            linger: Duration::from_secs(60),
            max_lingering: 10_000,
            waiting_messages: 10_000,
            waiting_bytes: 64 * 1024 * 1024,
            detached_sessions: 10,
            detached_stanzas: 1_000,
            detached_bytes: 4 * 1024 * 1024,
            domains: DomainConfig::default(),
        }
    }
}

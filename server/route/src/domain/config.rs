//! Limits and times of the routes of remote domains (DELIVERY 4, P8).

use std::time::Duration;

/// Limits and times of the routes of remote domains.
#[derive(Clone, Debug)]
pub struct DomainConfig {
    /// How long a record waits, from its commit on; then its sender is told that it failed.
    pub message_ttl: Duration,
    /// About the first pause after a failure; each further one is twice as long.
    pub retry_min: Duration,
    /// The longest pause.
    pub retry_max: Duration,
    /// After so long without a stream those whose messages wait are told; zero: never.
    pub delay_notice: Duration,
    /// A stream that was given nothing for so long is closed.
    pub idle: Duration,
    /// How long a domain that does not exist is not asked for again.
    pub negative: Duration,
    /// Most records that wait for a domain.
    pub queue_records: u64,
    /// Most bytes of them.
    pub queue_bytes: u64,
    /// Most domains that something waits for.
    pub pending_domains: usize,
    /// Domains that an account may be the first to write to, in a minute; of presence ten times as many, for
    /// that goes to all its contacts at once.
    pub new_domains: u32,
    /// Most stanzas that a stream owes: given, and still in its memory.
    pub window_items: usize,
    /// Most bytes of them.
    pub window_bytes: usize,
    /// Most stanzas that nothing keeps and that wait for a stream.
    pub held_items: usize,
    /// Most bytes of them.
    pub held_bytes: usize,
    /// How long a request waits for a stream.
    pub request_wait: Duration,
}

impl Default for DomainConfig {
    fn default() -> Self {
        Self {
            message_ttl: Duration::from_secs(24 * 3600),
            retry_min: Duration::from_secs(2),
            retry_max: Duration::from_secs(600),
            delay_notice: Duration::from_secs(300),
            idle: Duration::from_secs(600),
            negative: Duration::from_secs(60),
            queue_records: 20_000,
            queue_bytes: 256 * 1024 * 1024,
            pending_domains: 500,
            new_domains: 10,
            window_items: 1_000,
            window_bytes: 1024 * 1024,
            held_items: 1_000,
            held_bytes: 1024 * 1024,
            request_wait: Duration::from_secs(30),
        }
    }
}

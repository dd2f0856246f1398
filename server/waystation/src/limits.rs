//! The limits of clients and addresses as the configuration wants them.
//!
//! What must hold: `limits.disabled` switches off those on rates and failures, and only those.

use waystation_auth::{Bucket, FailureLimits};
use waystation_c2s::{Limits, Rate, RecipientLimit};
use waystation_config::Config;
use waystation_core::xml;
use waystation_transport::{AddressLimits, Admission};

/// The limits by address, of all listeners that share this: `connections` open at once, 0 for any number.
pub(crate) fn admission(config: &Config, connections: u32) -> Admission {
    let limits = &config.limits;
    Admission::new(if limits.disabled {
        AddressLimits::unlimited()
    } else {
        AddressLimits {
            connections,
            rate: f64::from(limits.connection_rate),
            burst: limits.connection_burst,
            ..AddressLimits::default()
        }
    })
}

/// Failed logins.
pub(crate) fn failure_limits(config: &Config) -> FailureLimits {
    let limits = &config.limits;
    if limits.disabled {
        return FailureLimits::disabled();
    }
    let bucket =
        |failures: u32| Bucket { burst: failures, refill: limits.login_failure_window / failures.max(1) };
    FailureLimits {
        per_connection: limits.login_failures_per_connection,
        address: bucket(limits.login_failures_per_address),
        account: bucket(limits.login_failures_per_account),
        ..FailureLimits::default()
    }
}

/// What a connection and its session may do.
pub(crate) fn c2s_limits(config: &Config, failures: FailureLimits) -> Limits {
    let limits = &config.limits;
    let small = |size: waystation_config::Size| u32::try_from(size.0).unwrap_or(u32::MAX);
    let rate = |per_second, burst| match limits.disabled {
        true => Rate::NONE,
        false => Rate { per_second, burst },
    };
    let common = stanza_limits(config);
    Limits {
        bytes: rate(small(limits.inbound_rate), small(limits.inbound_burst)),
        broadcasts: rate(limits.presence_broadcast_rate, limits.presence_broadcast_burst),
        presence: rate(limits.presence_rate, limits.presence_burst),
        pre_auth: xml::Limits {
            max_stanza_bytes: limits.stanza_size_unauthenticated.bytes(),
            max_elements: limits.stanza_elements_unauthenticated as usize,
            ..xml::Limits::pre_auth()
        },
        authenticated: common,
        unauthenticated: limits.unauthenticated_timeout,
        idle_ping: limits.ping_interval,
        ping_timeout: limits.ping_timeout,
        outbound_bytes: limits.outbound_bytes.bytes(),
        outbound_stanzas: limits.outbound_stanzas as usize,
        resume: limits.resume_timeout,
        failures,
    }
}

/// What a stanza may be.
pub(crate) fn stanza_limits(config: &Config) -> xml::Limits {
    let limits = &config.limits;
    xml::Limits {
        max_stanza_bytes: limits.stanza_size.bytes(),
        max_depth: limits.stanza_depth as usize,
        max_elements: limits.stanza_elements as usize,
        max_attributes: limits.stanza_attributes as usize,
    }
}

/// To how many addresses an account may send presence.
pub(crate) fn recipient_limit(config: &Config) -> RecipientLimit {
    let limits = &config.limits;
    if limits.disabled {
        return RecipientLimit::NONE;
    }
    RecipientLimit { count: limits.presence_recipients, window: limits.presence_recipient_window }
}

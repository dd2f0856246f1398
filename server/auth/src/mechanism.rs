//! Mechanisms, channel bindings, and what is offered on a stream.
//!
//! What must hold: the features of a stream, the choice of a mechanism and the hash against
//! downgrades (XEP-0474) are all taken from one [`Offer`]; PLAIN is never in it without TLS, and
//! a -PLUS mechanism never without channel-binding data.

use std::fmt;
use std::str::FromStr;

use crate::crypto::{self, Hash, Secret};
use crate::encoding::encode_base64;
use crate::error::SaslError;

/// A SASL mechanism.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mechanism {
    /// SCRAM-SHA-256 with channel binding (RFC 7677).
    ScramSha256Plus,
    /// SCRAM-SHA-1 with channel binding (RFC 5802).
    ScramSha1Plus,
    /// SCRAM-SHA-256 (RFC 7677).
    ScramSha256,
    /// SCRAM-SHA-1 (RFC 5802).
    ScramSha1,
    /// PLAIN (RFC 4616).
    Plain,
}

impl Mechanism {
    /// All mechanisms, in the order in which they are offered: the strongest first.
    pub const ALL: [Self; 5] =
        [Self::ScramSha256Plus, Self::ScramSha1Plus, Self::ScramSha256, Self::ScramSha1, Self::Plain];

    /// The registered name.
    pub fn name(self) -> &'static str {
        match self {
            Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
            Self::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
            Self::ScramSha256 => "SCRAM-SHA-256",
            Self::ScramSha1 => "SCRAM-SHA-1",
            Self::Plain => "PLAIN",
        }
    }

    /// True for the mechanisms that bind to the TLS channel.
    pub fn is_plus(self) -> bool {
        matches!(self, Self::ScramSha256Plus | Self::ScramSha1Plus)
    }

    /// The hash function; PLAIN is verified against the stronger of the two records.
    pub(crate) fn hash(self) -> Hash {
        match self {
            Self::ScramSha1Plus | Self::ScramSha1 => Hash::Sha1,
            Self::ScramSha256Plus | Self::ScramSha256 | Self::Plain => Hash::Sha256,
        }
    }
}

impl fmt::Display for Mechanism {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No mechanism of this server has the given name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown SASL mechanism")]
pub struct UnknownMechanism;

impl FromStr for Mechanism {
    type Err = UnknownMechanism;

    /// Mechanism names are case-sensitive here, as they are in the stream features.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|m| m.name() == name).ok_or(UnknownMechanism)
    }
}

/// Channel-binding data of a TLS connection.
#[derive(Clone, Debug, Default)]
pub struct ChannelBindings {
    /// Exported keying material (RFC 9266): 32 bytes with the label `EXPORTER-Channel-Binding`.
    /// Absent below TLS 1.3 unless the extended master secret is in use.
    pub tls_exporter: Option<Vec<u8>>,
    /// Hash of the server's certificate (RFC 5929 4).
    pub tls_server_end_point: Option<Vec<u8>>,
}

impl ChannelBindings {
    const TLS_EXPORTER: &'static str = "tls-exporter";
    const TLS_SERVER_END_POINT: &'static str = "tls-server-end-point";

    /// Names of the types that have data, the strongest first.
    pub fn types(&self) -> impl Iterator<Item = &'static str> {
        [
            self.tls_exporter.as_ref().map(|_| Self::TLS_EXPORTER),
            self.tls_server_end_point.as_ref().map(|_| Self::TLS_SERVER_END_POINT),
        ]
        .into_iter()
        .flatten()
    }

    /// The data of a type; `None` for types that this connection does not have.
    pub(crate) fn data(&self, name: &str) -> Option<&[u8]> {
        match name {
            Self::TLS_EXPORTER => self.tls_exporter.as_deref(),
            Self::TLS_SERVER_END_POINT => self.tls_server_end_point.as_deref(),
            _ => None,
        }
    }
}

/// Which mechanisms a listener allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SaslPolicy {
    /// The allowed mechanisms, in any order.
    pub mechanisms: Vec<Mechanism>,
    /// True when nothing is offered before TLS. PLAIN needs TLS in any case.
    pub require_encryption: bool,
}

impl Default for SaslPolicy {
    /// Every mechanism, TLS required.
    fn default() -> Self {
        Self { mechanisms: Mechanism::ALL.to_vec(), require_encryption: true }
    }
}

/// What a server offers on one stream.
#[derive(Clone, Debug)]
pub struct Offer {
    allowed: Vec<Mechanism>,
    offered: Vec<Mechanism>,
    bindings: ChannelBindings,
    encrypted: bool,
}

impl Offer {
    /// The offer on a stream; `bindings` are those of its TLS connection, empty without TLS.
    pub fn new(policy: &SaslPolicy, encrypted: bool, bindings: ChannelBindings) -> Self {
        let bound = encrypted && bindings.types().next().is_some();
        let allowed = policy.mechanisms.clone();
        let offered: Vec<Mechanism> = Mechanism::ALL
            .into_iter()
            .filter(|m| allowed.contains(m))
            .filter(|&m| encrypted || !(policy.require_encryption || m == Mechanism::Plain))
            .filter(|m| bound || !m.is_plus())
            .collect();
        // Types without a mechanism that uses them would mislead (XEP-0440, business rule 5).
        let bindings =
            if offered.iter().any(|m| m.is_plus()) { bindings } else { ChannelBindings::default() };
        Self { allowed, offered, bindings, encrypted }
    }

    /// The content of `<mechanisms/>`, in order of preference. Empty: do not offer SASL.
    pub fn mechanisms(&self) -> &[Mechanism] {
        &self.offered
    }

    /// The content of `<sasl-channel-binding/>` (XEP-0440). Empty: leave the element out.
    pub fn channel_binding_types(&self) -> impl Iterator<Item = &'static str> {
        self.bindings.types()
    }

    /// The mechanism that a client names.
    ///
    /// # Errors
    /// [`SaslError::EncryptionRequired`] for one that would be offered with TLS,
    /// [`SaslError::InvalidMechanism`] for any other that is not offered.
    pub fn select(&self, name: &str) -> Result<Mechanism, SaslError> {
        let mechanism: Mechanism = name.parse().map_err(|_| SaslError::InvalidMechanism)?;
        if self.offered.contains(&mechanism) {
            Ok(mechanism)
        } else if !self.encrypted && self.allowed.contains(&mechanism) {
            Err(SaslError::EncryptionRequired)
        } else {
            Err(SaslError::InvalidMechanism)
        }
    }

    pub(crate) fn bindings(&self) -> &ChannelBindings {
        &self.bindings
    }

    pub(crate) fn supports_channel_binding(&self) -> bool {
        self.offered.iter().any(|m| m.is_plus())
    }

    /// The value of the attribute `h`, by which a client finds out that someone changed the
    /// lists on their way (XEP-0474, section "Server Sends Downgrade Protection Hash").
    pub(crate) fn downgrade_hash(&self, hash: Hash) -> String {
        fn sorted<'a>(names: impl Iterator<Item = &'a str>) -> String {
            let mut names: Vec<&str> = names.collect();
            names.sort_unstable();
            names.join("\u{1e}")
        }
        let mut text = sorted(self.offered.iter().map(|m| m.name()));
        if self.supports_channel_binding() {
            text.push('\u{1f}');
            text.push_str(&sorted(self.channel_binding_types()));
        }
        let digest: Secret = crypto::digest(hash, text.as_bytes());
        encode_base64(digest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bindings() -> ChannelBindings {
        ChannelBindings { tls_exporter: Some(vec![1; 32]), tls_server_end_point: Some(vec![2; 32]) }
    }

    fn names(offer: &Offer) -> Vec<&'static str> {
        offer.mechanisms().iter().map(|m| m.name()).collect()
    }

    #[test]
    fn names_are_read_back() {
        for mechanism in Mechanism::ALL {
            assert_eq!(mechanism.name().parse(), Ok(mechanism));
        }
        for unknown in ["", "plain", "SCRAM-SHA-256-PLUS ", "SCRAM-SHA-512", "EXTERNAL", "X-OAUTH2"] {
            assert_eq!(unknown.parse::<Mechanism>(), Err(UnknownMechanism));
        }
    }

    #[test]
    fn the_strongest_mechanism_is_offered_first() {
        let offer = Offer::new(&SaslPolicy::default(), true, bindings());
        assert_eq!(
            names(&offer),
            ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"]
        );
        assert_eq!(
            offer.channel_binding_types().collect::<Vec<_>>(),
            ["tls-exporter", "tls-server-end-point"]
        );
    }

    #[test]
    fn t3_nothing_is_offered_before_tls() {
        let offer = Offer::new(&SaslPolicy::default(), false, ChannelBindings::default());
        assert!(offer.mechanisms().is_empty());
        for mechanism in Mechanism::ALL {
            assert_eq!(offer.select(mechanism.name()), Err(SaslError::EncryptionRequired));
        }
        assert_eq!(offer.select("EXTERNAL"), Err(SaslError::InvalidMechanism));
    }

    #[test]
    fn t3_plain_and_plus_need_tls_even_where_it_is_optional() {
        let policy = SaslPolicy { require_encryption: false, ..SaslPolicy::default() };
        let offer = Offer::new(&policy, false, bindings());
        assert_eq!(names(&offer), ["SCRAM-SHA-256", "SCRAM-SHA-1"]);
        assert_eq!(offer.channel_binding_types().count(), 0);
        assert_eq!(offer.select("PLAIN"), Err(SaslError::EncryptionRequired));
        assert_eq!(offer.select("SCRAM-SHA-1-PLUS"), Err(SaslError::EncryptionRequired));
        assert_eq!(offer.select("SCRAM-SHA-1"), Ok(Mechanism::ScramSha1));
    }

    #[test]
    fn plus_needs_channel_binding_data() {
        let offer = Offer::new(&SaslPolicy::default(), true, ChannelBindings::default());
        assert_eq!(names(&offer), ["SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN"]);
        assert_eq!(offer.select("SCRAM-SHA-256-PLUS"), Err(SaslError::InvalidMechanism));
    }

    #[test]
    fn what_policy_leaves_out_is_invalid_and_binds_to_nothing() {
        let policy = SaslPolicy { mechanisms: vec![Mechanism::ScramSha256], require_encryption: true };
        let offer = Offer::new(&policy, true, bindings());
        assert_eq!(names(&offer), ["SCRAM-SHA-256"]);
        assert_eq!(offer.channel_binding_types().count(), 0);
        assert_eq!(offer.select("PLAIN"), Err(SaslError::InvalidMechanism));
    }

    #[test]
    fn a4_downgrade_hash_of_the_example_in_xep_0474() {
        let policy = SaslPolicy {
            mechanisms: vec![Mechanism::ScramSha1, Mechanism::ScramSha1Plus],
            require_encryption: true,
        };
        let offer = Offer::new(&policy, true, bindings());
        assert_eq!(offer.downgrade_hash(Hash::Sha1), "G6k/rBLDqgOhRRaCuuatSDFkJ08=");
    }

    #[test]
    fn a4_downgrade_hash_without_channel_binding_has_no_second_list() {
        let policy = SaslPolicy { mechanisms: vec![Mechanism::ScramSha1], require_encryption: true };
        let offer = Offer::new(&policy, true, ChannelBindings::default());
        let digest = crypto::digest(Hash::Sha256, b"SCRAM-SHA-1");
        assert_eq!(offer.downgrade_hash(Hash::Sha256), encode_base64(digest.as_bytes()));
    }
}

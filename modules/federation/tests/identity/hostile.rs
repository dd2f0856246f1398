//! Whatever a certificate holds: an answer, and never a panic.

use std::sync::OnceLock;
use std::time::SystemTime;

use proptest::prelude::*;
use rcgen::{BasicConstraints, GeneralSubtree, IsCa, NameConstraints};
use rustls_pki_types::CertificateDer;
use waystation_federation::Trust;
use waystation_federation::identity::{Role, describe, proves};

use crate::common::*;

struct Valid {
    trust: Trust,
    chain: [CertificateDer<'static>; 2],
}

/// A chain that has all that is looked at.
fn valid() -> &'static Valid {
    static VALID: OnceLock<Valid> = OnceLock::new();
    VALID.get_or_init(|| {
        let authority = Authority::new();
        let between = authority.below("Between", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.name_constraints = Some(NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("org".into())],
                excluded_subtrees: vec![GeneralSubtree::DnsName("victim.org".into())],
            });
        });
        let names = [
            dns("*.example.org"),
            dns("xn--mnchen-3ya.org"),
            srv("_xmpp-server.example.org"),
            xmpp("example.org"),
            tlv(0x87, &[192, 0, 2, 1]),
        ];
        Valid { trust: authority.trust(), chain: [between.issue(&names), between.der.clone()] }
    })
}

/// Changes bytes, cuts, and repeats.
#[derive(Debug, Clone)]
enum Change {
    Byte(usize, u8),
    Bit(usize, u8),
    Cut(usize),
    Remove(usize, usize),
    Insert(usize, Vec<u8>),
}

impl Change {
    fn apply(&self, der: &mut Vec<u8>) {
        let len = der.len().max(1);
        if der.is_empty() {
            return;
        }
        match self {
            Self::Byte(at, value) => der[at % len] = *value,
            Self::Bit(at, bit) => der[at % len] ^= 1 << (bit % 8),
            Self::Cut(at) => der.truncate(at % len),
            Self::Remove(at, count) => {
                let at = at % len;
                der.drain(at..(at + count).min(len));
            }
            Self::Insert(at, bytes) => {
                let at = at % len;
                der.splice(at..at, bytes.iter().copied());
            }
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, value)| Change::Byte(at, value)),
        (any::<usize>(), any::<u8>()).prop_map(|(at, bit)| Change::Bit(at, bit)),
        any::<usize>().prop_map(Change::Cut),
        (any::<usize>(), 1..20usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (any::<usize>(), prop::collection::vec(any::<u8>(), 1..20))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ];
    prop::collection::vec(change, 1..6)
}

fn judge(chain: &[CertificateDer<'static>], domain: &str) -> bool {
    let outcome = proves(chain, domain, &valid().trust, Role::Server, SystemTime::now());
    if let Err(error) = &outcome {
        assert!(!error.to_string().contains(char::is_control), "{error}");
    }
    for certificate in chain {
        assert!(!describe(certificate).contains(char::is_control));
    }
    outcome.is_ok()
}

#[test]
fn the_unchanged_chain_is_good() {
    for domain in ["example.org", "a.example.org", "münchen.org"] {
        assert!(judge(&valid().chain, domain), "{domain}");
    }
}

#[test]
fn no_single_byte_can_be_changed() {
    for which in 0..2 {
        let der = valid().chain[which].to_vec();
        for at in 0..der.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff, der[at] ^ 1, der[at] ^ 0x20] {
                let mut changed = der.clone();
                changed[at] = value;
                let mut chain = valid().chain.clone();
                chain[which] = changed.into();
                let same = chain[which] == valid().chain[which];
                assert_eq!(judge(&chain, "example.org"), same, "byte {at} of certificate {which}: {value}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_certificate_is_refused(changes in changes(), which in 0..2usize) {
        let mut chain = valid().chain.clone();
        let mut der = chain[which].to_vec();
        for change in &changes {
            change.apply(&mut der);
        }
        let same = der == *chain[which];
        chain[which] = der.into();
        prop_assert_eq!(judge(&chain, "example.org"), same);
    }

    #[test]
    fn any_names_in_a_good_certificate_get_an_answer(
        names in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6),
        tags in prop::collection::vec(prop_oneof![Just(0x82u8), Just(0xa0), any::<u8>()], 6),
        domain in "\\PC{0,40}",
    ) {
        let names: Vec<_> = names.iter().zip(&tags).map(|(name, tag)| tlv(*tag, name)).collect();
        static AUTHORITY: OnceLock<Authority> = OnceLock::new();
        let certificate = AUTHORITY.get_or_init(Authority::new).issue(&names);
        judge(std::slice::from_ref(&certificate), "example.org");
        judge(&[certificate], &domain);
    }

    #[test]
    fn anything_is_no_certificate(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(!judge(&[bytes.into()], "example.org"));
    }
}

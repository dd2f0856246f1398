//! Authorities and certificates of tests; subject alternative names are written by hand, as no library makes
//! wrong ones.

use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls_pki_types::CertificateDer;
use waystation_federation::Trust;
use waystation_federation::identity::{Role, Unproven, proves};

pub(crate) const BOTH: [Role; 2] = [Role::Client, Role::Server];

/// Somebody who issues certificates.
pub(crate) struct Authority {
    pub(crate) params: CertificateParams,
    pub(crate) key: KeyPair,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    pub(crate) fn with(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = Self::parts("Test Authority", change);
        let certificate = params.self_signed(&key).unwrap();
        Self { params, key, der: certificate.der().clone(), pem: certificate.pem() }
    }

    /// An authority below this one.
    pub(crate) fn below(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (params, key) = Self::parts(name, change);
        let certificate = params.signed_by(&key, &self.issuer()).unwrap();
        Self { params, key, der: certificate.der().clone(), pem: certificate.pem() }
    }

    fn parts(name: &str, change: impl FnOnce(&mut CertificateParams)) -> (CertificateParams, KeyPair) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        (params, KeyPair::generate().unwrap())
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    /// Trust in this one alone.
    pub(crate) fn trust(&self) -> Trust {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &self.pem).unwrap();
        Trust::from_pem(file.path()).unwrap()
    }

    /// A certificate with these names.
    pub(crate) fn issue(&self, names: &[Vec<u8>]) -> CertificateDer<'static> {
        self.issue_with(names, |_| ())
    }

    pub(crate) fn issue_with(
        &self,
        names: &[Vec<u8>],
        change: impl FnOnce(&mut CertificateParams),
    ) -> CertificateDer<'static> {
        let params = leaf(names, change);
        params.signed_by(&KeyPair::generate().unwrap(), &self.issuer()).unwrap().der().clone()
    }
}

pub(crate) fn leaf(names: &[Vec<u8>], change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Test");
    if !names.is_empty() {
        let content = tlv(0x30, &names.concat());
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 17], content));
    }
    change(&mut params);
    params
}

/// Whether `certificate`, issued by `authority`, proves `domain`; the role must not matter.
pub(crate) fn proven(
    authority: &Authority,
    certificate: &CertificateDer<'static>,
    domain: &str,
) -> Result<(), Unproven> {
    let trust = authority.trust();
    let [client, server] =
        BOTH.map(|role| proves(std::slice::from_ref(certificate), domain, &trust, role, SystemTime::now()));
    assert_eq!(client.is_ok(), server.is_ok());
    server
}

/// Whether a certificate with this name proves `domain`.
pub(crate) fn name_proves(authority: &Authority, name: Vec<u8>, domain: &str) -> bool {
    match proven(authority, &authority.issue(&[name]), domain) {
        Ok(()) => true,
        Err(Unproven::OtherNames { .. } | Unproven::NotADomain(_)) => false,
        Err(other) => panic!("{other}"),
    }
}

/// DER: a tag, the length, and the content.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    match content.len() {
        length @ 0..=127 => der.push(length as u8),
        length => der.extend_from_slice(&[0x82, (length >> 8) as u8, length as u8]),
    }
    der.extend_from_slice(content);
    der
}

pub(crate) fn dns(name: impl AsRef<[u8]>) -> Vec<u8> {
    tlv(0x82, name.as_ref())
}

pub(crate) const IA5_STRING: u8 = 0x16;
pub(crate) const UTF8_STRING: u8 = 0x0c;
/// The last number of id-on-dnsSRV.
pub(crate) const SRV: u8 = 7;
/// The last number of id-on-xmppAddr.
pub(crate) const XMPP: u8 = 5;

/// An otherName of those that PKIX defines.
pub(crate) fn other(kind: u8, string: u8, name: impl AsRef<[u8]>) -> Vec<u8> {
    let kind = tlv(6, &[0x2b, 6, 1, 5, 5, 7, 8, kind]);
    tlv(0xa0, &[kind, tlv(0xa0, &tlv(string, name.as_ref()))].concat())
}

pub(crate) fn srv(name: impl AsRef<[u8]>) -> Vec<u8> {
    other(SRV, IA5_STRING, name)
}

pub(crate) fn xmpp(name: impl AsRef<[u8]>) -> Vec<u8> {
    other(XMPP, UTF8_STRING, name)
}

//! What a server needs to meet others: a name server, an authority for certificates, ways to prove itself.
//!
//! What must stay true: nothing here touches the system. Name servers are on loopback, the authority is
//! known to the servers of one test alone, and its key never leaves the memory of the test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::server::write;

/// How the servers of a test prove to each other who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// By certificates of the authority, and nothing else does (XEP-0178).
    Certificate,
    /// By dialback (XEP-0220): the certificates are their own and prove nothing.
    Dialback,
}

/// What makes a server one of several: for [`crate::Config::federation`].
#[derive(Debug, Clone)]
pub struct Federation {
    /// The name server that knows where the others are.
    pub nameserver: SocketAddr,
    /// The authority that is trusted, the only one.
    pub authority: Authority,
    /// How servers prove who they are.
    pub proof: Proof,
    /// Prosody only, for this project's server does it whenever the other one can: streams are used in
    /// both directions (XEP-0288).
    pub bidi: bool,
    /// Peers only: whether the first host has rooms, at the domain [`rooms`] names.
    pub rooms: bool,
}

/// The domain of the rooms of a host.
pub fn rooms(host: &str) -> String {
    format!("rooms.{host}")
}

/// An authority for certificates, known to the servers of one test.
#[derive(Clone)]
pub struct Authority {
    issuer: Arc<rcgen::CertifiedIssuer<'static, rcgen::KeyPair>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// A new one.
    pub fn new() -> Result<Self> {
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let mut params = params(&[], "Waystation test authority")?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
        let issuer = rcgen::CertifiedIssuer::self_signed(params, key).map_err(failed)?;
        Ok(Self { issuer: Arc::new(issuer) })
    }

    /// Its own certificate, in PEM.
    pub fn pem(&self) -> String {
        self.issuer.as_ref().as_ref().pem()
    }

    /// A certificate for these hosts (dNSName), for a server in either role, and its key, both in PEM.
    pub fn issue(&self, hosts: &[String]) -> Result<(String, String)> {
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let mut params = params(hosts, first(hosts))?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let made = params.signed_by(&key, self.issuer.as_ref()).map_err(failed)?;
        Ok((made.pem(), key.serialize_pem()))
    }
}

/// The files that a server is given: made anew for every start.
pub(crate) struct Files {
    /// Its certificate.
    pub(crate) certificate: PathBuf,
    /// The key of it.
    pub(crate) key: PathBuf,
    /// The authorities that it trusts.
    pub(crate) authorities: PathBuf,
}

impl Files {
    /// Where they are.
    pub(crate) fn of(folder: &Path) -> Self {
        Self {
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
            authorities: folder.join("authorities.pem"),
        }
    }

    /// Writes them: a certificate (ECDSA P-256, as this project's server makes its own) of the authority,
    /// or one that is its own issuer.
    pub(crate) fn write(hosts: &[String], federation: Option<&Federation>, folder: &Path) -> Result<Self> {
        let files = Self::of(folder);
        let mut names = hosts.to_vec();
        if federation.is_some_and(|f| f.rooms) {
            names.push(rooms(first(hosts)));
        }
        let trusted = federation.filter(|f| f.proof == Proof::Certificate);
        let (certificate, key) = match trusted {
            Some(federation) => federation.authority.issue(&names)?,
            None => {
                let key = rcgen::KeyPair::generate().map_err(failed)?;
                let made = params(&names, first(hosts))?.self_signed(&key).map_err(failed)?;
                (made.pem(), key.serialize_pem())
            }
        };
        write(&files.certificate, certificate)?;
        write(&files.key, key)?;
        if let Some(federation) = federation {
            write(&files.authorities, federation.authority.pem())?;
        }
        Ok(files)
    }
}

fn params(hosts: &[String], name: &str) -> Result<rcgen::CertificateParams> {
    let mut params = rcgen::CertificateParams::new(hosts.to_vec()).map_err(failed)?;
    // rcgen's default validity ends in the year 4096, at which ejabberd stumbles.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 1, 1);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    Ok(params)
}

fn first(hosts: &[String]) -> &str {
    hosts.first().map_or("localhost", String::as_str)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(e: rcgen::Error) -> Error {
    Error::Setup(format!("certificate: {e}"))
}

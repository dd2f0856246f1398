//! Who is trusted to say whose domain it is: authorities, and whether a chain of certificates leads to one.
//!
//! What must stay true: a chain is valid only if every signature, time, purpose, length and constraint on names
//! along one path to an authority is in order (RFC 5280 section 6); what cannot be read is not valid. Work on
//! a hostile chain is bounded: by [`INTERMEDIATES`], and by the validator's own limits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, Error, KeyUsage, VerifiedPath};
use x509_parser::extensions::{GeneralName, GeneralSubtree, NameConstraints};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::identity::{Role, normalise};

/// Certificates behind the peer's own that are looked at; a chain has two or three of them.
const INTERMEDIATES: usize = 10;

/// Why authorities cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not PEM, or a certificate in it is none that an authority can have.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system has no authorities that can be used.
    #[error("the system has no trusted authorities ({0}); install ca-certificates, or name a file of them")]
    System(String),
}

/// The authorities that are trusted. Cheap to clone; the default trusts nobody.
#[derive(Clone, Default)]
pub struct Trust {
    anchors: Arc<[TrustAnchor<'static>]>,
}

impl Trust {
    /// Trusts every certificate of a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read, holds no certificate, or one that cannot be an authority's: what an
    /// administrator wrote down is not skipped in silence.
    pub fn from_pem(path: &Path) -> Result<Self, TrustError> {
        let invalid = |reason: String| TrustError::Invalid { path: path.to_owned(), reason };
        let text =
            std::fs::read(path).map_err(|source| TrustError::Read { path: path.to_owned(), source })?;
        let mut anchors = Vec::new();
        for certificate in CertificateDer::pem_slice_iter(&text) {
            let certificate = certificate.map_err(|error| invalid(format!("not PEM: {error}")))?;
            let number = anchors.len() + 1;
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|error| invalid(format!("certificate {number} cannot be used: {error}")))?;
            anchors.push(anchor.to_owned());
        }
        if anchors.is_empty() {
            return Err(invalid("holds no certificate".into()));
        }
        Ok(Self { anchors: anchors.into() })
    }

    /// Trusts whom the system trusts: the bundle of the distribution, or what `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR` name. Certificates there that cannot be used are skipped, as others maintain them.
    ///
    /// # Errors
    /// When nothing is left.
    pub fn system() -> Result<Self, TrustError> {
        let found = rustls_native_certs::load_native_certs();
        let anchors: Vec<_> = found
            .certs
            .iter()
            .filter_map(|certificate| Some(webpki::anchor_from_trusted_cert(certificate).ok()?.to_owned()))
            .collect();
        if anchors.is_empty() {
            let reason = found.errors.first().map_or_else(|| "none was found".into(), ToString::to_string);
            return Err(TrustError::System(reason));
        }
        Ok(Self { anchors: anchors.into() })
    }

    /// How many authorities are trusted.
    pub fn authorities(&self) -> usize {
        self.anchors.len()
    }

    /// Whether a path leads from the chain's first certificate to an authority, on which nobody was forbidden
    /// to speak for `domain` (normalised).
    ///
    /// A certificate that is restricted to some purposes (extended key usage) must be for servers or for
    /// clients of TLS, and all of its path for the same; which of the two does not matter, whatever `role`
    /// the peer has. A server of XMPP is both, and has one certificate: public authorities issue theirs for
    /// servers only, by now, and XEP-0178 knows of no other. `role` decides what is tried first.
    pub(crate) fn validate(
        &self,
        chain: &[CertificateDer<'_>],
        domain: &str,
        role: Role,
        now: UnixTime,
    ) -> Result<(), Error> {
        let (own, others) = chain.split_first().ok_or(Error::BadDer)?;
        let own = EndEntityCert::try_from(own)?;
        let others = &others[..others.len().min(INTERMEDIATES)];
        let permitted = |path: &VerifiedPath<'_>| match path_permits(path, domain) {
            true => Ok(()),
            false => Err(Error::NameConstraintViolation),
        };
        let check = |usage: KeyUsage| {
            own.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &self.anchors,
                others,
                now,
                usage,
                None,
                Some(&permitted),
            )
            .map(drop)
        };
        let (first, second) = match role {
            Role::Server => (KeyUsage::server_auth(), KeyUsage::client_auth()),
            Role::Client => (KeyUsage::client_auth(), KeyUsage::server_auth()),
        };
        let Err(error) = check(first) else { return Ok(()) };
        match check(second) {
            Err(Error::RequiredEkuNotFoundContext(_)) => Err(error),
            outcome => outcome,
        }
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust").field("authorities", &self.authorities()).finish_non_exhaustive()
    }
}

/// Whether every issuer on the path may speak for `domain`.
///
/// The validator applies constraints on dNSNames to dNSNames only. Here they count for the domain, whichever
/// kind of name proves it: an authority that may name hosts of one company would else reach every domain by
/// an SRVName or an xmppAddr.
fn path_permits(path: &VerifiedPath<'_>, domain: &str) -> bool {
    let anchor = path.anchor().name_constraints.as_ref();
    let by_anchor = anchor.is_none_or(|content| {
        let der = sequence(content);
        NameConstraints::from_der(&der).is_ok_and(|(_, constraints)| permits(&constraints, domain))
    });
    by_anchor
        && path.intermediate_certificates().all(|issuer| {
            let der = issuer.der();
            let Ok((_, parsed)) = X509Certificate::from_der(&der) else { return false };
            parsed
                .name_constraints()
                .is_ok_and(|extension| extension.is_none_or(|extension| permits(extension.value, domain)))
        })
}

fn permits(constraints: &NameConstraints<'_>, domain: &str) -> bool {
    let mut permitted = None;
    for subtree in constraints.permitted_subtrees.iter().flatten() {
        match &subtree.base {
            GeneralName::DNSName(base) => {
                permitted = Some(permitted == Some(true) || within(domain, base) == Some(true));
            }
            GeneralName::Invalid(..) => return false,
            _ => {}
        }
    }
    let excluded = |subtree: &GeneralSubtree<'_>| match &subtree.base {
        GeneralName::DNSName(base) => within(domain, base) != Some(false),
        GeneralName::Invalid(..) => true,
        _ => false,
    };
    permitted != Some(false) && !constraints.excluded_subtrees.iter().flatten().any(excluded)
}

/// RFC 5280 section 4.2.1.10: the name itself and all below it; with a dot in front, as some write it, those below.
/// `None`: the constraint is no name.
fn within(domain: &str, base: &str) -> Option<bool> {
    let (base, itself) = match base.strip_prefix('.') {
        Some(parent) => (parent, false),
        None => (base, true),
    };
    if base.is_empty() {
        return Some(true);
    }
    let rest = domain.strip_suffix(normalise(base)?.as_str());
    Some(rest.is_some_and(|rest| (rest.is_empty() && itself) || rest.ends_with('.')))
}

/// Puts the header of a SEQUENCE before its content: anchors are kept without it.
fn sequence(content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![0x30];
    if content.len() >= 0x80 {
        der.push(0x80 | significant.len() as u8);
        der.extend_from_slice(significant);
    } else {
        der.push(content.len() as u8);
    }
    der.extend_from_slice(content);
    der
}

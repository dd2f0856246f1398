//! Reads certificate files and checks them: an error names the file and the reason, before a client meets it.
//!
//! A `CertificateSet` is immutable; a reload makes a new one, and sessions keep what they were given.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::time::ASN1Time;

/// Where one host's certificate and key are. Both are PEM; the certificate file holds the host's own certificate first and
/// then the intermediate ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostCertificate {
    /// The host (XMPP domain) that it is for, as a U-label or an A-label.
    pub host: String,
    /// The certificate chain.
    pub chain: PathBuf,
    /// The private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file cannot be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("{}: cannot be written: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not PEM, or what its PEM holds cannot be parsed.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The key is not the one the certificate was made for.
    #[error("{}: the key does not belong to the certificate in {}", key.display(), chain.display())]
    KeyMismatch {
        /// The certificate file.
        chain: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// A host name is not one.
    #[error("`{host}` is not a host name that a certificate can be for")]
    InvalidHost {
        /// The name.
        host: String,
    },
    /// Two certificates are given for one host.
    #[error("host `{host}` has more than one certificate")]
    DuplicateHost {
        /// The host.
        host: String,
    },
    /// There is no certificate for the default host.
    #[error("there is no certificate for the default host `{host}`")]
    NoDefault {
        /// The default host.
        host: String,
    },
    /// The TLS library refuses the settings.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Generate(String),
}

/// Something about a certificate that an administrator should know; it is used all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateWarning {
    /// The certificate's time is over.
    Expired {
        /// The certificate file.
        chain: PathBuf,
        /// When it ended, in seconds since 1970.
        not_after: i64,
    },
    /// The certificate's time has not begun.
    NotYetValid {
        /// The certificate file.
        chain: PathBuf,
        /// When it begins, in seconds since 1970.
        not_before: i64,
    },
    /// The certificate's subject alternative names do not include the host it is used for.
    HostNotCovered {
        /// The certificate file.
        chain: PathBuf,
        /// The host.
        host: String,
    },
    /// Every user of the machine can read the key.
    KeyReadableByAll {
        /// The key file.
        key: PathBuf,
    },
}

impl fmt::Display for CertificateWarning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = |seconds: &i64| {
            ASN1Time::from_timestamp(*seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
        };
        match self {
            Self::Expired { chain, not_after } => {
                write!(f, "{}: the certificate expired on {}", chain.display(), date(not_after))
            }
            Self::NotYetValid { chain, not_before } => {
                write!(f, "{}: the certificate is not valid before {}", chain.display(), date(not_before))
            }
            Self::HostNotCovered { chain, host } => {
                write!(f, "{}: the certificate does not name the host {host}", chain.display())
            }
            Self::KeyReadableByAll { key } => {
                write!(f, "{}: the key can be read by every user of this machine", key.display())
            }
        }
    }
}

/// A certificate in use.
pub(crate) struct LoadedCertificate {
    pub(crate) key: Arc<CertifiedKey>,
    pub(crate) server_end_point: Option<Arc<[u8]>>,
    /// Tickets are opened only by the certificate they were issued with: a resumed session must have the
    /// channel binding that its client expects.
    pub(crate) ticketer: Arc<dyn ProducesTickets>,
}

/// The certificates of all hosts, by A-label.
pub(crate) struct CertificateSet {
    by_host: HashMap<Box<str>, Arc<LoadedCertificate>>,
    default: Arc<LoadedCertificate>,
}

impl CertificateSet {
    /// Reads and checks all files.
    pub(crate) fn load(
        hosts: &[HostCertificate],
        default_host: &str,
    ) -> Result<(Self, Vec<CertificateWarning>), CertificateError> {
        let mut by_host = HashMap::with_capacity(hosts.len());
        let mut warnings = Vec::new();
        for host in hosts {
            let name = ascii_host(&host.host)?;
            let certificate = Arc::new(load_certificate(host, &name, &mut warnings)?);
            if by_host.insert(name.into_boxed_str(), certificate).is_some() {
                return Err(CertificateError::DuplicateHost { host: host.host.clone() });
            }
        }
        let default = by_host
            .get(ascii_host(default_host)?.as_str())
            .ok_or_else(|| CertificateError::NoDefault { host: default_host.to_owned() })?
            .clone();
        Ok((Self { by_host, default }, warnings))
    }

    /// The certificate for a host name as TLS carries it.
    pub(crate) fn find(&self, server_name: &str) -> Option<&Arc<LoadedCertificate>> {
        self.by_host.get(server_name).or_else(|| {
            let lower = server_name.trim_end_matches('.').to_ascii_lowercase();
            self.by_host.get(lower.as_str())
        })
    }

    /// The certificate for a host, or that of the default host.
    pub(crate) fn for_host(&self, host: Option<&str>) -> &Arc<LoadedCertificate> {
        host.and_then(|host| ascii_host(host).ok())
            .and_then(|name| self.by_host.get(name.as_str()))
            .unwrap_or(&self.default)
    }

    /// What `host` proves itself with as a client: its certificate, or the default host's if that names it too; one
    /// that proves another domain would not be shown to peers.
    pub(crate) fn for_client(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        let name = ascii_host(host).ok()?;
        if let Some(own) = self.by_host.get(name.as_str()) {
            return Some(own.key.clone());
        }
        let (_, parsed) = X509Certificate::from_der(self.default.key.end_entity_cert().ok()?).ok()?;
        names_host(&parsed, &name).then(|| self.default.key.clone())
    }
}

/// The A-label form of a host, lower-case, fit for a file name: letters, digits, `-`, `_`, `.`, and `:` in addresses.
pub(crate) fn ascii_host(host: &str) -> Result<String, CertificateError> {
    let invalid = || CertificateError::InvalidHost { host: host.escape_debug().collect() };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<std::net::IpAddr>().is_ok() {
        return Ok(bare.to_ascii_lowercase());
    }
    let ascii = idna::domain_to_ascii(host).map_err(|_| invalid())?;
    let ascii = ascii.trim_end_matches('.');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if ascii.is_empty() || ascii.len() > 253 || ascii.starts_with('.') || !ascii.bytes().all(allowed) {
        return Err(invalid());
    }
    Ok(ascii.to_owned())
}

pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, CertificateError> {
    std::fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })
}

fn invalid(path: &Path, reason: impl Into<String>) -> CertificateError {
    CertificateError::Invalid { path: path.to_owned(), reason: reason.into() }
}

/// Reads the certificates of a PEM file; there is at least one.
pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&read_file(path)?)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid(path, format!("not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid(path, "holds no certificate (expected -----BEGIN CERTIFICATE-----)"));
    }
    Ok(chain)
}

/// Reads the first private key of a PEM file.
pub(crate) fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertificateError> {
    let text = zeroize::Zeroizing::new(read_file(path)?);
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound if text.windows(9).any(|part| part == b"ENCRYPTED") => invalid(
            path,
            "the key is protected by a password; store it without one, readable by the server only",
        ),
        pem::Error::NoItemsFound => {
            invalid(path, "holds no private key (expected -----BEGIN PRIVATE KEY----- or similar)")
        }
        error => invalid(path, format!("not PEM: {error}")),
    })
}

/// Joins a chain and a key, or says that they do not belong together.
pub(crate) fn certified_key(files: &HostCertificate) -> Result<CertifiedKey, CertificateError> {
    let chain = read_chain(&files.chain)?;
    let provider = rustls::crypto::ring::default_provider();
    let key = read_key(&files.key)?;
    let signing = provider
        .key_provider
        .load_private_key(key)
        .map_err(|error| invalid(&files.key, format!("the key cannot be used: {error}")))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        // Unknown: the key type cannot be compared; the handshake would show it.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            Err(CertificateError::KeyMismatch { chain: files.chain.clone(), key: files.key.clone() })
        }
        Err(error) => Err(invalid(&files.chain, format!("the certificate cannot be used: {error}"))),
    }
}

pub(crate) fn parse<'a>(
    path: &Path,
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate)
        .map_err(|error| invalid(path, format!("the certificate cannot be parsed: {error}")))?;
    Ok(parsed)
}

fn load_certificate(
    files: &HostCertificate,
    name: &str,
    warnings: &mut Vec<CertificateWarning>,
) -> Result<LoadedCertificate, CertificateError> {
    let key = certified_key(files)?;
    // `read_chain` proved that the chain has a first certificate.
    let own = key.end_entity_cert().map_err(CertificateError::Tls)?;
    let parsed = parse(&files.chain, own)?;
    let now = unix_now();
    let validity = parsed.validity();
    if validity.not_after.timestamp() < now {
        let not_after = validity.not_after.timestamp();
        warnings.push(CertificateWarning::Expired { chain: files.chain.clone(), not_after });
    }
    if validity.not_before.timestamp() > now {
        let not_before = validity.not_before.timestamp();
        warnings.push(CertificateWarning::NotYetValid { chain: files.chain.clone(), not_before });
    }
    if !names_host(&parsed, name) {
        let host = files.host.clone();
        warnings.push(CertificateWarning::HostNotCovered { chain: files.chain.clone(), host });
    }
    if std::fs::metadata(&files.key).is_ok_and(|meta| meta.permissions().mode() & 0o004 != 0) {
        warnings.push(CertificateWarning::KeyReadableByAll { key: files.key.clone() });
    }
    let server_end_point = server_end_point(&parsed, own);
    Ok(LoadedCertificate {
        server_end_point: server_end_point.map(Arc::from),
        key: Arc::new(key),
        ticketer: rustls::crypto::ring::Ticketer::new()?,
    })
}

pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// True if the certificate names `host` (an A-label or an address), directly or by a wildcard for its first
/// label (RFC 6125 section 6.4.3).
fn names_host(certificate: &X509Certificate<'_>, host: &str) -> bool {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let address = host.parse::<std::net::IpAddr>().ok();
    names.value.general_names.iter().any(|name| match name {
        GeneralName::DNSName(dns) => {
            let parent = host.split_once('.').map(|(_, parent)| parent);
            dns.eq_ignore_ascii_case(host)
                || dns
                    .strip_prefix("*.")
                    .is_some_and(|dns| parent.is_some_and(|parent| dns.eq_ignore_ascii_case(parent)))
        }
        GeneralName::IPAddress(bytes) => match address {
            Some(std::net::IpAddr::V4(v4)) => *bytes == v4.octets(),
            Some(std::net::IpAddr::V6(v6)) => *bytes == v6.octets(),
            None => false,
        },
        _ => false,
    })
}

/// Channel binding `tls-server-end-point`, RFC 5929 section 4.1.
fn server_end_point(parsed: &X509Certificate<'_>, der: &[u8]) -> Option<Vec<u8>> {
    match signature_hash(parsed)? {
        Hash::Sha224 => Some(Sha224::digest(der).to_vec()),
        Hash::Sha256 => Some(Sha256::digest(der).to_vec()),
        Hash::Sha384 => Some(Sha384::digest(der).to_vec()),
        Hash::Sha512 => Some(Sha512::digest(der).to_vec()),
    }
}

enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The hash of the certificate's signature, with MD5 and SHA-1 replaced by SHA-256; `None` where the
/// signature uses no single hash function, for which RFC 5929 defines no binding.
fn signature_hash(certificate: &X509Certificate<'_>) -> Option<Hash> {
    let algorithm = &certificate.signature_algorithm;
    if let Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) = SignatureAlgorithm::try_from(algorithm) {
        return match parameters.hash_algorithm_oid().to_id_string().as_str() {
            "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
            "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
            "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
            "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
            _ => None,
        };
    }
    match algorithm.algorithm.to_id_string().as_str() {
        // RSA with MD5, SHA-1 and SHA-256; ECDSA with SHA-1 and SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" => Some(Hash::Sha224),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        _ => None,
    }
}

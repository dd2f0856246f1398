//! The self-signed certificate that a first start makes, so that TLS works before a real one is there.
//!
//! It lies in `<folder>/<host>.pem` with its key in `<host>.key` (mode 0600). The key is made once and kept, also when an
//! expired certificate is replaced. Files that are there but damaged are reported, never overwritten: they
//! may be somebody's own.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose,
};
use sha2::{Digest, Sha256};

use super::certificate::{
    CertificateError, HostCertificate, ascii_host, certified_key, parse, read_file, unix_now,
};

/// The longest validity that common TLS clients accept.
const VALIDITY: Duration = Duration::from_secs(825 * 24 * 3600);
/// Clients whose clock is behind accept the certificate all the same.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// A development certificate, ready for use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevelopmentCertificate {
    /// Its files.
    pub files: HostCertificate,
    /// The SHA-256 of the certificate, as `AB:CD:...`: what clients show when they ask whether to trust it.
    pub fingerprint: String,
    /// Where it came from.
    pub origin: DevelopmentOrigin,
}

/// How a development certificate came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DevelopmentOrigin {
    /// It was there.
    Reused,
    /// It was made now.
    Created,
    /// The one that was there had expired; a new one was made for the same key.
    Renewed,
}

/// Finds or makes the development certificate of `host` in `folder`, which is made too if need be.
pub fn ensure_development_certificate(
    folder: &Path,
    host: &str,
) -> Result<DevelopmentCertificate, CertificateError> {
    let name = ascii_host(host)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|source| write(folder, source))?;
    let files = HostCertificate {
        host: host.to_owned(),
        chain: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key")),
    };
    let origin = match (files.key.exists(), files.chain.exists()) {
        (_, false) => DevelopmentOrigin::Created,
        (false, true) => {
            return Err(CertificateError::Invalid {
                path: files.chain,
                reason: "the key that belongs to it is missing; put it back, or remove this file".into(),
            });
        }
        (true, true) => {
            let certified = certified_key(&files)?;
            let certificate = certified.end_entity_cert()?;
            let parsed = parse(&files.chain, certificate)?;
            let self_signed = parsed.subject() == parsed.issuer();
            if self_signed && parsed.validity().not_after.timestamp() < unix_now() {
                DevelopmentOrigin::Renewed
            } else {
                let fingerprint = fingerprint(certificate);
                return Ok(DevelopmentCertificate { files, fingerprint, origin: DevelopmentOrigin::Reused });
            }
        }
    };
    let key = load_or_make_key(&files.key)?;
    let certificate = certificate_params(&name)?
        .self_signed(&key)
        .map_err(|e| CertificateError::Generate(e.to_string()))?;
    write_atomically(&files.chain, certificate.pem().as_bytes(), 0o644)?;
    Ok(DevelopmentCertificate { fingerprint: fingerprint(certificate.der()), files, origin })
}

fn certificate_params(name: &str) -> Result<CertificateParams, CertificateError> {
    let mut names = vec![name.to_owned()];
    if name == "localhost" {
        names.extend(["127.0.0.1".to_owned(), "::1".to_owned()]);
    }
    let mut params = CertificateParams::new(names).map_err(|e| CertificateError::Generate(e.to_string()))?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + VALIDITY).into();
    Ok(params)
}

fn load_or_make_key(path: &Path) -> Result<KeyPair, CertificateError> {
    if path.exists() {
        let text = zeroize::Zeroizing::new(read_file(path)?);
        return std::str::from_utf8(&text)
            .map_err(|e| e.to_string())
            .and_then(|text| KeyPair::from_pem(text).map_err(|e| e.to_string()))
            .map_err(|reason| CertificateError::Invalid { path: path.to_owned(), reason });
    }
    let key = KeyPair::generate().map_err(|e| CertificateError::Generate(e.to_string()))?;
    let text = zeroize::Zeroizing::new(key.serialize_pem());
    write_atomically(path, text.as_bytes(), 0o600)?;
    Ok(key)
}

/// Writes a file whole or not at all.
fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<(), CertificateError> {
    let temporary = path.with_extension("new");
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    attempt().map_err(|source| write(path, source))
}

fn write(path: &Path, source: io::Error) -> CertificateError {
    CertificateError::Write { path: path.to_owned(), source }
}

fn fingerprint(certificate: &[u8]) -> String {
    let digest = Sha256::digest(certificate);
    digest.iter().map(|byte| format!("{byte:02X}")).collect::<Vec<_>>().join(":")
}

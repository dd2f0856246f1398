//! Watches one handshake for what rustls' unbuffered connection does not report afterwards: the server name,
//! the certificate that was chosen, and the secrets the exporter is derived from.
//!
//! Each handshake has a probe of its own, which is its certificate resolver and its key log. The secrets stay
//! in it, are wiped on drop, and it is dropped when the handshake ends.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{KeyLog, SupportedCipherSuite};
use zeroize::Zeroizing;

use super::certificate::{CertificateSet, LoadedCertificate};
use super::exporter::{self, ServerHello};

/// The name rustls logs the TLS 1.3 exporter master secret under.
const EXPORTER_SECRET: &str = "EXPORTER_SECRET";
/// The name rustls logs the TLS 1.2 master secret under.
const MASTER_SECRET: &str = "CLIENT_RANDOM";

pub(crate) struct Probe {
    certificates: Arc<CertificateSet>,
    fallback: Arc<LoadedCertificate>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    server_name: Option<Box<str>>,
    certificate: Option<Arc<LoadedCertificate>>,
    exporter_secret: Option<Zeroizing<Vec<u8>>>,
    master_secret: Option<(Zeroizing<Vec<u8>>, Vec<u8>)>,
    server_hello: Option<ServerHello>,
}

impl Probe {
    /// `fallback` is presented to clients that ask for no name, or for an unknown one.
    pub(crate) fn new(certificates: Arc<CertificateSet>, fallback: Arc<LoadedCertificate>) -> Self {
        Self { certificates, fallback, seen: Mutex::default() }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Only plain stores happen under the lock, so a poisoned one holds no broken state.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at a handshake record of ours on its way out.
    pub(crate) fn sent(&self, record: &[u8]) {
        if let Some(hello) = ServerHello::parse(record) {
            self.seen().server_hello = Some(hello);
        }
    }

    pub(crate) fn server_name(&self) -> Option<Box<str>> {
        self.seen().server_name.clone()
    }

    /// Channel binding `tls-server-end-point` of the certificate that was presented.
    pub(crate) fn server_end_point(&self) -> Option<Arc<[u8]>> {
        self.seen().certificate.as_ref()?.server_end_point.clone()
    }

    /// Channel binding `tls-exporter`, once the handshake is complete.
    pub(crate) fn tls_exporter(&self, suite: SupportedCipherSuite) -> Option<[u8; 32]> {
        let seen = self.seen();
        if let Some(secret) = &seen.exporter_secret {
            return exporter::tls13(suite, secret);
        }
        let (secret, client_random) = seen.master_secret.as_ref()?;
        exporter::tls12(suite, secret, client_random, seen.server_hello.as_ref()?)
    }
}

impl ResolvesServerCert for Probe {
    fn resolve(&self, client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let server_name = client_hello.server_name();
        let certificate =
            server_name.and_then(|name| self.certificates.find(name)).unwrap_or(&self.fallback).clone();
        let key = certificate.key.clone();
        let mut seen = self.seen();
        seen.server_name = server_name.map(Into::into);
        seen.certificate = Some(certificate);
        Some(key)
    }
}

impl KeyLog for Probe {
    fn log(&self, label: &str, client_random: &[u8], secret: &[u8]) {
        let secret = Zeroizing::new(secret.to_vec());
        match label {
            EXPORTER_SECRET => self.seen().exporter_secret = Some(secret),
            MASTER_SECRET => self.seen().master_secret = Some((secret, client_random.to_vec())),
            _ => {}
        }
    }

    fn will_log(&self, label: &str) -> bool {
        label == EXPORTER_SECRET || label == MASTER_SECRET
    }
}

impl fmt::Debug for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe").finish_non_exhaustive()
    }
}

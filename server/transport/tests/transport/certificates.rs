//! Certificate files: what is wrong with them is said with the file's name; development certificates.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest, Sha256};
use waystation_transport::{
    CertificateError, CertificateWarning, DevelopmentOrigin, HostCertificate, TlsAcceptor, TlsSettings,
    ensure_development_certificate,
};

use crate::common::*;

fn load(hosts: &[HostCertificate]) -> Result<Vec<CertificateWarning>, CertificateError> {
    let default = hosts[0].host.clone();
    TlsAcceptor::new(TlsSettings::new(hosts.to_vec(), default)).map(|(_, warnings)| warnings)
}

/// Makes a certificate for `names` that is valid for a time around now.
fn write_certificate(files: &HostCertificate, names: &[&str], days: std::ops::Range<i32>) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    let day = |n: i32| {
        let span = Duration::from_secs(u64::from(n.unsigned_abs()) * 24 * 3600);
        let now = SystemTime::now();
        if n < 0 { now - span } else { now + span }
    };
    params.not_before = day(days.start).into();
    params.not_after = day(days.end).into();
    std::fs::write(&files.chain, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    mode(&files.key, 0o600);
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn errors_name_the_file_and_the_reason() {
    let certificates = Certificates::new(&["one.example", "two.example"]);
    let [one, two] = &certificates.hosts[..] else { unreachable!() };
    let folder = certificates.folder.path();
    let missing = folder.join("missing.pem");
    let empty = folder.join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let garbage = folder.join("garbage.pem");
    std::fs::write(&garbage, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let damaged = folder.join("damaged.pem");
    std::fs::write(&damaged, "-----BEGIN CERTIFICATE-----\n!!!\n").unwrap();
    let encrypted = folder.join("encrypted.key");
    std::fs::write(
        &encrypted,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let with = |chain: &Path, key: &Path| HostCertificate {
        host: "one.example".into(),
        chain: chain.to_owned(),
        key: key.to_owned(),
    };
    let cases = [
        (with(&missing, &one.key), &missing, "cannot be read"),
        (with(&one.chain, &missing), &missing, "cannot be read"),
        (with(&empty, &one.key), &empty, "holds no certificate"),
        (with(&one.key, &one.key), &one.key, "holds no certificate"),
        (with(&garbage, &one.key), &garbage, "certificate cannot be"),
        (with(&damaged, &one.key), &damaged, "not PEM"),
        (with(&one.chain, &empty), &empty, "holds no private key"),
        (with(&one.chain, &one.chain), &one.chain, "holds no private key"),
        (with(&one.chain, &encrypted), &encrypted, "protected by a password"),
        (with(&one.chain, &two.key), &two.key, "does not belong to the certificate in"),
    ];
    for (files, named, reason) in cases {
        let error = load(&[files]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: ", named.display())), "{error}");
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn hosts_are_checked() {
    let certificates = Certificates::new(&["one.example"]);
    let one = &certificates.hosts[0];
    let as_host = |host: &str| HostCertificate { host: host.into(), ..one.clone() };
    for bad in ["", ".", "../etc", "a/b", "a b", "x\0y", &"a.".repeat(200)] {
        let error = load(&[as_host(bad)]).unwrap_err();
        assert!(matches!(error, CertificateError::InvalidHost { .. }), "{bad}: {error}");
    }
    let twice = load(&[one.clone(), as_host("ONE.example")]).unwrap_err();
    assert!(matches!(twice, CertificateError::DuplicateHost { .. }), "{twice}");
    let no_default = TlsAcceptor::new(TlsSettings::new(vec![one.clone()], "two.example")).unwrap_err();
    assert!(matches!(no_default, CertificateError::NoDefault { .. }), "{no_default}");
}

#[test]
fn warnings_do_not_stop_anything() {
    let certificates = Certificates::new(&["one.example"]);
    let files = &certificates.hosts[0];
    assert_eq!(load(std::slice::from_ref(files)).unwrap(), []);

    let warning = |names: &[&str], days| {
        write_certificate(files, names, days);
        let warnings = load(std::slice::from_ref(files)).unwrap();
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(warning(&["one.example"], -1..1), "");
    assert_eq!(warning(&["*.example"], -1..1), "");
    assert_eq!(warning(&["other.example", "ONE.EXAMPLE"], -1..1), "");
    assert!(warning(&["one.example"], -3..-1).contains("one.example.pem: the certificate expired on"));
    assert!(warning(&["one.example"], 1..3).contains("not valid before"));
    for uncovered in ["other.example", "*.one.example", "example", "*.com"] {
        let said = warning(&[uncovered], -1..1);
        assert!(said.contains("does not name the host one.example"), "{uncovered}: {said}");
    }
    write_certificate(files, &["one.example"], -1..1);
    mode(&files.key, 0o644);
    let warnings = load(std::slice::from_ref(files)).unwrap();
    assert_eq!(warnings, [CertificateWarning::KeyReadableByAll { key: files.key.clone() }]);
}

#[test]
fn a_development_certificate_is_made_once_and_works() {
    let data = tempfile::tempdir().unwrap();
    let folder = data.path().join("certs");
    let made = ensure_development_certificate(&folder, "localhost").unwrap();
    assert_eq!(made.origin, DevelopmentOrigin::Created);
    assert_eq!(made.files.chain, folder.join("localhost.pem"));
    assert_eq!(made.files.key, folder.join("localhost.key"));
    let permissions = std::fs::metadata(&made.files.key).unwrap().permissions().mode();
    assert_eq!(permissions & 0o777, 0o600);
    let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(load(std::slice::from_ref(&made.files)).unwrap(), []);

    let again = ensure_development_certificate(&folder, "localhost").unwrap();
    assert_eq!(again.origin, DevelopmentOrigin::Reused);
    assert_eq!(again.fingerprint, made.fingerprint);

    // A client that trusts it accepts it, by name and by address.
    let pem = std::fs::read(&made.files.chain).unwrap();
    let der: rustls::pki_types::CertificateDer<'_> =
        rustls::pki_types::pem::PemObject::from_pem_slice(&pem).unwrap();
    let fingerprint: Vec<String> = Sha256::digest(&der).iter().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(made.fingerprint, fingerprint.join(":"));
    let mut roots = rustls::RootCertStore::empty();
    roots.add(der).unwrap();
    let acceptor = TlsAcceptor::new(TlsSettings::new(vec![made.files], "localhost")).unwrap().0;
    for name in ["localhost", "127.0.0.1", "::1"] {
        run(async {
            let (server, client) = socket_pair().await;
            let mut server = connection(server);
            let (accepted, connected) = tokio::join!(
                server.handshake(&acceptor, None, b""),
                tls_client(client, trusting(&roots), name)
            );
            accepted.unwrap();
            connected.unwrap();
        });
    }
}

#[test]
fn an_expired_development_certificate_is_renewed_for_the_same_key() {
    let data = tempfile::tempdir().unwrap();
    let made = ensure_development_certificate(data.path(), "ü.example").unwrap();
    assert_eq!(made.files.chain, data.path().join("xn--tda.example.pem"));
    write_certificate(&made.files, &["xn--tda.example"], -30..-1);
    let key = std::fs::read(&made.files.key).unwrap();

    let renewed = ensure_development_certificate(data.path(), "ü.example").unwrap();
    assert_eq!(renewed.origin, DevelopmentOrigin::Renewed);
    assert_ne!(renewed.fingerprint, made.fingerprint);
    assert_eq!(std::fs::read(&made.files.key).unwrap(), key);
    assert_eq!(load(&[renewed.files]).unwrap(), []);
    let after = ensure_development_certificate(data.path(), "ü.example").unwrap();
    assert_eq!((after.origin, after.fingerprint), (DevelopmentOrigin::Reused, renewed.fingerprint));
}

#[test]
fn damaged_development_files_are_reported_and_left_alone() {
    let data = tempfile::tempdir().unwrap();
    let made = ensure_development_certificate(data.path(), "localhost").unwrap();
    let good = std::fs::read(&made.files.chain).unwrap();

    std::fs::write(&made.files.chain, "damaged").unwrap();
    let error = ensure_development_certificate(data.path(), "localhost").unwrap_err().to_string();
    assert!(error.contains("localhost.pem"), "{error}");
    assert_eq!(std::fs::read(&made.files.chain).unwrap(), b"damaged");

    // A start that was interrupted between the two files is completed.
    std::fs::remove_file(&made.files.chain).unwrap();
    let completed = ensure_development_certificate(data.path(), "localhost").unwrap();
    assert_eq!(completed.origin, DevelopmentOrigin::Created);
    assert_eq!(load(std::slice::from_ref(&completed.files)).unwrap(), []);

    std::fs::remove_file(&made.files.key).unwrap();
    let error = ensure_development_certificate(data.path(), "localhost").unwrap_err().to_string();
    assert!(error.contains("the key that belongs to it is missing"), "{error}");

    std::fs::write(&made.files.chain, good).unwrap();
    let other = ensure_development_certificate(&data.path().join("other"), "localhost").unwrap();
    std::fs::copy(&other.files.key, &made.files.key).unwrap();
    let error = ensure_development_certificate(data.path(), "localhost").unwrap_err();
    assert!(matches!(error, CertificateError::KeyMismatch { .. }), "{error}");
}

#[test]
fn a_host_cannot_lead_out_of_the_folder() {
    let data = tempfile::tempdir().unwrap();
    for host in ["../evil", "/etc/evil", "a/b", "..", ""] {
        let error = ensure_development_certificate(data.path(), host).unwrap_err();
        assert!(matches!(error, CertificateError::InvalidHost { .. }), "{host}: {error}");
    }
}

#[test]
fn a_folder_that_cannot_be_made_is_reported() {
    let data = tempfile::tempdir().unwrap();
    let blocked = data.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let error = ensure_development_certificate(&blocked.join("certs"), "localhost").unwrap_err();
    assert!(matches!(error, CertificateError::Write { .. }), "{error}");
}

#[test]
fn the_development_ca_makes_certificates_that_clients_check() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../certs/development-ca.sh");
    let folder = tempfile::tempdir().unwrap();
    let make = |hosts: &[&str]| {
        let mut command = std::process::Command::new(&script);
        let output = command.arg(folder.path()).args(hosts).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let long = format!("{}.example", "a".repeat(63));
    assert_eq!(make(&["localhost", "example.org", &long]), (true, String::new()));
    let authority = std::fs::read(folder.path().join("ca.pem")).unwrap();
    assert_eq!(make(&["example.org"]), (true, String::new()), "a second run");
    assert_eq!(std::fs::read(folder.path().join("ca.pem")).unwrap(), authority, "the authority is kept");
    for bad in ["../x", "", "-h", "a b", "ü.example"] {
        let (success, said) = make(&[bad]);
        assert!(!success && said.contains("is not a host name"), "{bad}: {said}");
    }

    let hosts: Vec<_> = ["localhost", "example.org", &long]
        .map(|host| HostCertificate {
            host: host.to_owned(),
            chain: folder.path().join(format!("{host}.pem")),
            key: folder.path().join(format!("{host}.key")),
        })
        .to_vec();
    let (acceptor, warnings) = TlsAcceptor::new(TlsSettings::new(hosts, "localhost")).unwrap();
    assert_eq!(warnings, []);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(&authority).unwrap()).unwrap();
    for name in ["localhost", "example.org", "127.0.0.1", &long] {
        run(async {
            let (server, client) = socket_pair().await;
            let mut server = connection(server);
            let (accepted, connected) = tokio::join!(
                server.handshake(&acceptor, None, b""),
                tls_client(client, trusting(&roots), name)
            );
            accepted.unwrap();
            connected.unwrap();
        });
    }
}

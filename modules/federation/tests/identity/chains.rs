//! T8 (i): times, purposes, authorities, constraints, and signatures.

use std::process::Command;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyPair, NameConstraints, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use waystation_federation::identity::{Role, Unproven, proves};
use waystation_federation::{Trust, TrustError};

use crate::common::*;

/// The reason why `chain` does not prove example.org, which its names would allow.
fn invalid(authority: &Authority, chain: &[CertificateDer<'static>]) -> String {
    let trust = authority.trust();
    let [client, server] = BOTH.map(|role| proves(chain, "example.org", &trust, role, SystemTime::now()));
    assert!(matches!(client, Err(Unproven::Invalid(_))), "{client:?}");
    let Err(Unproven::Invalid(_)) = &server else { panic!("{server:?}") };
    server.unwrap_err().to_string()
}

fn example() -> [Vec<u8>; 1] {
    [dns("example.org")]
}

#[test]
fn t8_i_outside_of_its_time_a_certificate_proves_nothing() {
    let authority = Authority::new();
    let certificate = authority.issue_with(&example(), |params| {
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2031, 1, 1);
    });
    let trust = authority.trust();
    let at = |seconds: u64| {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        proves(std::slice::from_ref(&certificate), "example.org", &trust, Role::Server, now)
    };
    const BEGIN: u64 = 1_893_456_000;
    const END: u64 = 1_924_992_000;
    assert!(at(BEGIN - 1).unwrap_err().to_string().contains("not begun"));
    at(BEGIN).unwrap();
    at(END).unwrap();
    assert!(at(END + 1).unwrap_err().to_string().contains("over"));

    let between = authority.below("Between", |params| params.not_after = date_time_ymd(2020, 1, 1));
    assert!(invalid(&authority, &[between.issue(&example()), between.der.clone()]).contains("over"));
}

#[test]
fn t8_i_purposes() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, EmailProtection, ServerAuth};
    let authority = Authority::new();
    let cases = [
        (vec![], true),
        (vec![ServerAuth], true),
        (vec![ClientAuth], true),
        (vec![EmailProtection, ClientAuth], true),
        (vec![CodeSigning], false),
        (vec![Any], false),
    ];
    for (purposes, expected) in cases {
        let certificate =
            authority.issue_with(&example(), |params| params.extended_key_usages.clone_from(&purposes));
        if expected {
            proven(&authority, &certificate, "example.org").unwrap();
        } else {
            assert!(invalid(&authority, &[certificate]).contains("neither"), "{purposes:?}");
        }
    }
    // An authority for one purpose is none for the other.
    let for_clients = authority.below("Between", |params| params.extended_key_usages = vec![ClientAuth]);
    let certificate =
        for_clients.issue_with(&example(), |params| params.extended_key_usages = vec![ServerAuth]);
    invalid(&authority, &[certificate, for_clients.der.clone()]);
    let certificate =
        for_clients.issue_with(&example(), |params| params.extended_key_usages = vec![ClientAuth]);
    for role in BOTH {
        let chain = [certificate.clone(), for_clients.der.clone()];
        proves(&chain, "example.org", &authority.trust(), role, SystemTime::now()).unwrap();
    }
}

#[test]
fn t8_i_an_authoritys_own_certificate_is_no_servers() {
    let authority = Authority::new();
    let certificate =
        authority.issue_with(&example(), |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    assert!(invalid(&authority, &[certificate]).contains("authority's own"));
    // And a server's is no authority's.
    let server = authority.below("Server", |params| params.is_ca = IsCa::ExplicitNoCa);
    assert!(invalid(&authority, &[server.issue(&example()), server.der.clone()]).contains("no authority"));
}

#[test]
fn t8_i_nobody_who_is_trusted_issued_it() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let self_signed = leaf(&example(), |_| ()).self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert!(invalid(&authority, &[self_signed.der().clone()]).contains("nobody"));
    // Of the same name as the one that is trusted.
    let foreign = stranger.issue(&example());
    assert!(invalid(&authority, std::slice::from_ref(&foreign)).contains("signature"));
    assert!(proven(&stranger, &foreign, "example.org").is_ok());
    let now = SystemTime::now();
    let nobody = proves(&[foreign], "example.org", &Trust::default(), Role::Server, now);
    assert!(nobody.unwrap_err().to_string().contains("nobody"));
    // The chain is needed, in whatever order.
    let between = authority.below("Between", |_| ());
    let other = authority.below("Other", |_| ());
    let certificate = between.issue(&example());
    assert!(invalid(&authority, std::slice::from_ref(&certificate)).contains("nobody"));
    for rest in [[&between, &other], [&other, &between]] {
        let chain = [certificate.clone(), rest[0].der.clone(), rest[1].der.clone()];
        proves(&chain, "example.org", &authority.trust(), Role::Client, now).unwrap();
    }
}

#[test]
fn t8_i_constraints_on_names_bind_every_kind_of_name() {
    let constraints = |permitted: &[&str], excluded: &[&str]| {
        let subtrees =
            |names: &[&str]| names.iter().map(|name| GeneralSubtree::DnsName((*name).into())).collect();
        Some(NameConstraints {
            permitted_subtrees: subtrees(permitted),
            excluded_subtrees: subtrees(excluded),
        })
    };
    let names = [dns("example.org"), srv("_xmpp-server.example.org"), xmpp("example.org")];
    for (permitted, excluded, expected) in [
        (&["example.org"][..], &[][..], true),
        (&["org"], &[], true),
        (&["other.example", "example.org"], &[], true),
        (&["other.example"], &[], false),
        (&["ample.org"], &[], false),
        (&["a.example.org"], &[], false),
        (&[], &["example.org"], false),
        (&["org"], &["example.org"], false),
        (&[], &["other.example"], true),
    ] {
        let root = Authority::with(|params| params.name_constraints = constraints(permitted, excluded));
        let plain = Authority::new();
        let between =
            plain.below("Between", |params| params.name_constraints = constraints(permitted, excluded));
        for name in &names {
            let by_root = proven(&root, &root.issue(std::slice::from_ref(name)), "example.org");
            let chain = [between.issue(std::slice::from_ref(name)), between.der.clone()];
            let by_between = proves(&chain, "example.org", &plain.trust(), Role::Server, SystemTime::now());
            for outcome in [by_root, by_between] {
                match outcome {
                    Ok(()) => assert!(expected, "{permitted:?} {excluded:?} {name:?}"),
                    Err(error) => {
                        assert!(!expected, "{permitted:?} {excluded:?} {name:?}: {error}");
                        assert!(error.to_string().contains("may not speak"), "{error}");
                    }
                }
            }
        }
    }
}

#[test]
fn t8_i_many_constraints_are_read_too() {
    // More than 127 bytes of them: the length takes another form.
    let many = (0..300).map(|n| GeneralSubtree::DnsName(format!("host-{n}.example"))).collect();
    let root = Authority::with(|params| {
        params.name_constraints =
            Some(NameConstraints { permitted_subtrees: many, excluded_subtrees: vec![] });
    });
    proven(&root, &root.issue(&[xmpp("a.host-299.example")]), "a.host-299.example").unwrap();
    assert!(proven(&root, &root.issue(&[xmpp("host-300.example")]), "host-300.example").is_err());
}

#[test]
fn t8_i_the_length_of_a_path() {
    let authority = Authority::with(|_| ());
    let between = authority.below("Between", |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    });
    let chain = [between.issue(&example()), between.der.clone()];
    proves(&chain, "example.org", &authority.trust(), Role::Server, SystemTime::now()).unwrap();
    let below = between.below("Below", |_| ());
    let chain = [below.issue(&example()), below.der.clone(), between.der.clone()];
    assert!(invalid(&authority, &chain).contains("longer"));
}

#[test]
fn t8_i_sha1_is_refused() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("ca.pem"), &authority.pem).unwrap();
    std::fs::write(path("ca.key"), authority.key.serialize_pem()).unwrap();
    std::fs::write(path("ext"), "subjectAltName=DNS:example.org\n").unwrap();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output();
        let output = output.expect("openssl must be installed for these tests");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (key, request) = (path("key"), path("request"));
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", &key];
    openssl(&[&["req", "-new", "-subj", "/O=Test", "-out", &request][..], &new_key].concat());
    for (digest, accepted) in [("-sha256", true), ("-sha1", false)] {
        let certificate = path(digest);
        let authority_files = ["-CA", &path("ca.pem"), "-CAkey", &path("ca.key"), "-CAcreateserial"];
        let issue = ["x509", "-req", "-days", "30", digest, "-in", &request, "-extfile", &path("ext")];
        openssl(&[&issue[..], &authority_files, &["-out", &certificate]].concat());
        let certificate = CertificateDer::from_pem_file(&certificate).unwrap();
        if accepted {
            proven(&authority, &certificate, "example.org").unwrap();
        } else {
            assert!(invalid(&authority, &[certificate]).contains("not safe"));
        }
    }
}

#[test]
fn a_chain_of_any_length_is_judged_soon() {
    // All of the same name, so that each could have issued each.
    let authority = Authority::new();
    let mut chain = vec![authority.below("Loop", |_| ())];
    for _ in 0..40 {
        let next = chain[chain.len() - 1].below("Loop", |_| ());
        chain.push(next);
    }
    let mut certificates = vec![chain[40].issue(&example())];
    certificates.extend(chain.iter().rev().map(|one| one.der.clone()));
    let stranger = Authority::new();
    let began = std::time::Instant::now();
    let outcome = proves(&certificates, "example.org", &stranger.trust(), Role::Server, SystemTime::now());
    assert!(outcome.is_err());
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn authorities_that_cannot_be_used_are_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authorities.pem");
    assert!(matches!(Trust::from_pem(&path), Err(TrustError::Read { .. })));
    let authority = Authority::new();
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    for (text, reason) in [
        (String::new(), "no certificate"),
        (authority.key.serialize_pem(), "no certificate"),
        (format!("{}{broken}", authority.pem), "certificate 2"),
        (authority.pem.replace('M', "!"), "not PEM"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Trust::from_pem(&path).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("authorities.pem"), "{error}");
    }
    std::fs::write(&path, authority.pem.repeat(2)).unwrap();
    assert_eq!(Trust::from_pem(&path).unwrap().authorities(), 2);
    // What the system has is the system's affair; either it has some, or it says that it has none.
    match Trust::system() {
        Ok(trust) => assert!(trust.authorities() > 0),
        Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
    }
}

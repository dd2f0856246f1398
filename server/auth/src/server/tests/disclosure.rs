//! What an exchange tells about accounts and secrets: rows A5 and A6.

use super::*;
use crate::crypto::work::{self, Work};

/// Unknown account and wrong password: the same steps, messages of the same form, the same error.
#[test]
fn a5_unknown_accounts_look_like_wrong_passwords() {
    let fixture = Fixture::new();
    let observe = |name: &str| {
        let first = challenge(fixture.scram_first(format!("n,,n={name},r=x").as_bytes()));
        let text = String::from_utf8(first).unwrap();
        let attributes: Vec<String> = text.split(',').skip(1).map(str::to_owned).collect();
        (attributes[0].clone(), attributes[1].clone(), text.len())
    };
    let (known, unknown) = (observe("juliet"), observe("nobody"));
    assert_eq!(known.1, unknown.1, "iteration count");
    assert_eq!(known.2, unknown.2, "length");
    for _ in 0..5 {
        assert_eq!(observe("nobody").0, unknown.0, "the salt changed");
        assert_eq!(observe("juliet").0, known.0);
    }
    let fail = |name: &str| {
        let mut client = ScramClient::new(Hash::Sha256, name, "wrong");
        failure(fixture.scram(Mechanism::ScramSha256, &offer(bindings()), &mut client))
    };
    assert_eq!(fail("juliet"), fail("nobody"));
    assert_eq!(failure(fixture.plain(b"\0juliet\0wrong")), failure(fixture.plain(b"\0nobody\0wrong")),);
}

/// The work is counted, not timed: as many HMACs, hashes and iterations for both.
#[test]
fn a5_unknown_accounts_cost_as_much_as_wrong_passwords() {
    let fixture = Fixture::new();
    let plain = |name: &str| -> Work {
        work::take();
        failure(fixture.plain(format!("\0{name}\0wrong").as_bytes()));
        work::take()
    };
    let (known, unknown) = (plain("juliet"), plain("nobody"));
    assert_eq!(known, unknown);
    assert_eq!(known.iterations, u64::from(MIN_ITERATIONS));

    let scram = |name: &str| -> (Work, Work) {
        let mut server = SaslServer::new(Mechanism::ScramSha1, &offer(bindings()), HOST);
        work::take();
        let step = server.start(Some(format!("n,,n={name},r=clientnonce").as_bytes()));
        let first = challenge(fixture.drive(&mut server, step));
        let first_work = work::take();
        let last = ScramClient::new(Hash::Sha1, name, "wrong").last(&first);
        work::take();
        failure(server.respond(&last));
        (first_work, work::take())
    };
    assert_eq!(scram("juliet"), scram("nobody"));
    assert!(scram("nobody").1.hmacs >= 2, "the proof of an unknown account is not computed");
}

#[test]
fn a5_nothing_matches_a_decoy() {
    let fixture = Fixture::new();
    // Even a client that knows the made-up keys gets nowhere: the outcome is fixed.
    let decoy = fixture.decoys.candidate(HOST, "nobody", None);
    let keys = ScramClient::new(Hash::Sha256, "nobody", "guess");
    let derived = credentials::ScramKeys::derive(
        Hash::Sha256,
        &keys.password,
        &decoy.keys(Hash::Sha256).salt,
        MIN_ITERATIONS,
    );
    let planted = Candidate::new(
        Credentials { sha1: decoy.keys(Hash::Sha1).clone(), sha256: derived },
        subtle::Choice::from(0),
    );
    let mut server = SaslServer::new(Mechanism::ScramSha256, &offer(bindings()), HOST);
    let mut client = ScramClient::new(Hash::Sha256, "nobody", "guess");
    let _ = server.start(Some(&client.first()));
    let last = client.last(&challenge(server.credentials(planted.clone())));
    assert_eq!(condition(server.respond(&last)), SaslError::NotAuthorized);
    assert!(!planted.verify_password(&credentials::prepare("guess").unwrap()));
}

#[test]
fn a6_nothing_secret_is_printed() {
    let fixture = Fixture::new();
    let mut server = SaslServer::new(Mechanism::Plain, &offer(bindings()), HOST);
    let _ = server.start(Some(b"\0juliet\0CANARY-password"));
    assert!(!format!("{server:?}").contains("CANARY"));
    let step = server.credentials(fixture.candidate("juliet"));
    assert!(!format!("{step:?}").contains("CANARY"));
    let bytes = format!("{:?}", b"CANARY");
    assert!(!format!("{step:?}").contains(bytes.trim_matches(['[', ']'])));
}

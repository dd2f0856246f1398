use proptest::prelude::*;

use super::*;
use crate::credentials::{Credentials, MIN_ITERATIONS};
use crate::crypto::work::{self, Work};
use crate::encoding::decode_base64;
use crate::mechanism::{ChannelBindings, SaslPolicy};
use crate::secret::{Decoys, ServerSecret};
use crate::testing::ScramClient;

const HOST: &str = "localhost";
const EXPORTER: [u8; 32] = [0xe1; 32];
const END_POINT: [u8; 32] = [0xe2; 32];

fn bindings() -> ChannelBindings {
    ChannelBindings { tls_exporter: Some(EXPORTER.to_vec()), tls_server_end_point: Some(END_POINT.to_vec()) }
}

fn offer(bindings: ChannelBindings) -> Offer {
    Offer::new(&SaslPolicy::default(), true, bindings)
}

/// One account, `juliet`, whose password is `pencil`.
struct Fixture {
    decoys: Decoys,
    juliet: Credentials,
}

impl Fixture {
    fn new() -> Self {
        Self {
            decoys: Decoys::new(ServerSecret::generate().unwrap(), MIN_ITERATIONS),
            juliet: Credentials::derive("pencil", MIN_ITERATIONS).unwrap(),
        }
    }

    fn candidate(&self, username: &str) -> Candidate {
        let found = (username == "juliet").then(|| self.juliet.clone());
        self.decoys.candidate(HOST, username, found)
    }

    /// Answers lookups and checks until the exchange needs the client or is over.
    fn drive(&self, server: &mut SaslServer, mut step: Step) -> Step {
        loop {
            step = match step {
                Step::NeedCredentials { username } => server.credentials(self.candidate(&username)),
                Step::NeedPasswordCheck(check) => server.password_checked(check.run()),
                step => return step,
            };
        }
    }

    fn plain(&self, message: &[u8]) -> Step {
        let mut server = SaslServer::new(Mechanism::Plain, &offer(bindings()), HOST);
        let step = server.start(Some(message));
        self.drive(&mut server, step)
    }

    /// A whole exchange over SCRAM.
    fn scram(&self, mechanism: Mechanism, offer: &Offer, client: &mut ScramClient) -> Step {
        let mut server = SaslServer::new(mechanism, offer, HOST);
        let step = server.start(Some(&client.first()));
        match self.drive(&mut server, step) {
            Step::Challenge(challenge) => {
                let last = client.last(&challenge);
                server.respond(&last)
            }
            step => step,
        }
    }

    /// The answer to a first message of SCRAM-SHA-1.
    fn scram_first(&self, message: &[u8]) -> Step {
        let mut server = SaslServer::new(Mechanism::ScramSha1, &offer(bindings()), HOST);
        let step = server.start(Some(message));
        self.drive(&mut server, step)
    }
}

#[track_caller]
fn failure(step: Step) -> SaslFailure {
    match step {
        Step::Failure(failure) => failure,
        step => panic!("not a failure: {step:?}"),
    }
}

#[track_caller]
fn condition(step: Step) -> SaslError {
    failure(step).condition
}

#[track_caller]
fn username(step: Step) -> String {
    match step {
        Step::Success { username, .. } => username,
        step => panic!("no success: {step:?}"),
    }
}

#[track_caller]
fn challenge(step: Step) -> Vec<u8> {
    match step {
        Step::Challenge(data) => data,
        step => panic!("no challenge: {step:?}"),
    }
}

fn plus_client(hash: Hash, binding: &str, data: &[u8]) -> ScramClient {
    ScramClient {
        gs2_header: format!("p={binding},,"),
        binding: data.to_vec(),
        ..ScramClient::new(hash, "juliet", "pencil")
    }
}

#[test]
fn the_right_password_succeeds_with_every_mechanism() {
    let fixture = Fixture::new();
    assert_eq!(username(fixture.plain(b"\0juliet\0pencil")), "juliet");
    for mechanism in Mechanism::ALL.into_iter().filter(|&m| m != Mechanism::Plain) {
        let mut client = if mechanism.is_plus() {
            plus_client(mechanism.hash(), "tls-exporter", &EXPORTER)
        } else {
            ScramClient::new(mechanism.hash(), "juliet", "pencil")
        };
        match fixture.scram(mechanism, &offer(bindings()), &mut client) {
            Step::Success { username, additional: Some(additional) } => {
                assert_eq!(username, "juliet");
                assert!(client.trusts(&additional), "{mechanism}: the server's signature is wrong");
            }
            step => panic!("{mechanism}: {step:?}"),
        }
    }
}

/// The exchange of RFC 7677 3, with the server's part of the nonce and no downgrade hash, as
/// there: the state machine signs what the RFC signs.
#[test]
fn exchange_of_rfc7677() {
    let salt = decode_base64("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
    let sha256 = credentials::ScramKeys::derive(Hash::Sha256, b"pencil", &salt, 4096);
    let sha1 = credentials::ScramKeys::derive(Hash::Sha1, b"pencil", &salt, 4096);
    let first = ClientFirst::parse(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO").unwrap();
    let nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0".to_owned();
    let state = ScramChallenge {
        first: ScramFirst {
            username: first.username.clone(),
            client_nonce: first.nonce.to_owned(),
            bare: first.bare.to_owned(),
            binding_input: first.gs2_header.into(),
        },
        server_first: format!("r={nonce},s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"),
        nonce,
        candidate: Candidate::new(Credentials { sha1, sha256 }, subtle::Choice::from(1)),
    };
    let last = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                 p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
    match scram_final(Hash::Sha256, &state, last) {
        Ok(Step::Success { username, additional: Some(additional) }) => {
            assert_eq!(username, "user");
            assert_eq!(additional, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_exchange_without_initial_response_begins_with_an_empty_challenge() {
    let fixture = Fixture::new();
    let mut server = SaslServer::new(Mechanism::Plain, &offer(bindings()), HOST);
    assert_eq!(challenge(server.start(None)), b"");
    let step = server.respond(b"\0juliet\0pencil");
    assert_eq!(username(fixture.drive(&mut server, step)), "juliet");
}

#[test]
fn a1_nobody_acts_as_another() {
    let fixture = Fixture::new();
    for authzid in [
        "victim",
        "victim@localhost",
        "victim@localhost/res",
        "VICTIM@localhost",
        "juliet@otherhost",
        "juliet",
        "localhost",
        "juliet@localhost/res",
        "juliet@localhost/",
        "@localhost",
        "juliet@",
        "juliet@local\u{2024}host",
        "a@juliet@localhost",
        " juliet@localhost",
        "juliet@localhost ",
        "juliet\u{ad}@localhost",
    ] {
        let message = [authzid, "\0juliet\0pencil"].concat();
        assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::InvalidAuthzid, "{authzid:?}");
        // The error is the same before the password was looked at.
        let message = [authzid, "\0juliet\0wrong"].concat();
        assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::InvalidAuthzid, "{authzid:?}");
        let message = format!("n,a={authzid},n=juliet,r=x");
        assert_eq!(
            condition(fixture.scram_first(message.as_bytes())),
            SaslError::InvalidAuthzid,
            "{authzid:?}"
        );
    }
}

#[test]
fn a1_everybody_acts_as_themselves_in_every_spelling() {
    let fixture = Fixture::new();
    for authzid in [
        "juliet@localhost",
        "JULIET@localhost",
        "juliet@LOCALHOST",
        "juliet@localhost.",
        "\u{ff2a}uliet@localhost",
    ] {
        let message = [authzid, "\0Juliet\0pencil"].concat();
        assert_eq!(username(fixture.plain(message.as_bytes())), "juliet", "{authzid:?}");
        let mut client = ScramClient::new(Hash::Sha1, "juliet", "pencil");
        client.gs2_header = format!("n,a={authzid},");
        assert_eq!(username(fixture.scram(Mechanism::ScramSha1, &offer(bindings()), &mut client)), "juliet");
    }
}

#[test]
fn a2_wrong_passwords_fail() {
    let fixture = Fixture::new();
    for password in ["Pencil", "pencil ", "", "pencil\u{301}", "x"] {
        for (mechanism, hash) in [(Mechanism::ScramSha1, Hash::Sha1), (Mechanism::ScramSha256, Hash::Sha256)]
        {
            let mut client = ScramClient::new(hash, "juliet", password);
            assert_eq!(
                condition(fixture.scram(mechanism, &offer(bindings()), &mut client)),
                SaslError::NotAuthorized
            );
        }
        if !password.is_empty() {
            let message = ["\0juliet\0", password].concat();
            assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::NotAuthorized);
        }
    }
    // A proof made for the other hash function has the wrong length.
    let mut client = ScramClient::new(Hash::Sha1, "juliet", "pencil");
    let step = fixture.scram(Mechanism::ScramSha256, &offer(bindings()), &mut client);
    assert_eq!(condition(step), SaslError::NotAuthorized);
}

/// Changes a correct final message in one place each.
#[test]
fn a2_wrong_final_messages_fail() {
    let fixture = Fixture::new();
    let not_authorized = SaslError::NotAuthorized;
    let malformed = SaslError::MalformedRequest;
    type Change = fn(&str) -> String;
    let changes: [(&str, SaslError, Change); 19] = [
        ("client part of the nonce", not_authorized, |m| m.replace("r=clientnonce", "r=clientnoncf")),
        ("client part dropped", not_authorized, |m| m.replace("r=clientnonce", "r=")),
        ("shorter nonce", not_authorized, |m| {
            let (head, proof) = m.rsplit_once(",p=").unwrap();
            format!("{},p={proof}", &head[..head.len() - 1])
        }),
        ("longer nonce", not_authorized, |m| m.replace(",p=", "x,p=")),
        ("client's nonce alone", not_authorized, |m| {
            format!("c=biws,r=clientnonce,p={}", m.rsplit_once(",p=").unwrap().1)
        }),
        ("another header", not_authorized, |m| m.replace("c=biws", "c=eSws")),
        ("header and data", not_authorized, |m| m.replace("c=biws", "c=biwsAAAA")),
        ("unsigned extension", not_authorized, |m| m.replace(",p=", ",x=1,p=")),
        ("no nonce", malformed, |m| format!("c=biws,p={}", m.rsplit_once(",p=").unwrap().1)),
        ("no proof", malformed, |m| m.rsplit_once(",p=").unwrap().0.to_owned()),
        ("empty proof", malformed, |m| format!("{},p=", m.rsplit_once(",p=").unwrap().0)),
        ("short proof", not_authorized, |m| format!("{},p=AAAA", m.rsplit_once(",p=").unwrap().0)),
        ("padding only", malformed, |m| format!("{},p=====", m.rsplit_once(",p=").unwrap().0)),
        ("white space in the proof", malformed, |m| m.replace(",p=", ",p= ")),
        ("mandatory extension", malformed, |m| m.replace(",p=", ",m=x,p=")),
        ("nonce twice", malformed, |m| m.replace("c=biws,", "c=biws,r=x,")),
        ("attribute twice", malformed, |m| m.replace(",p=", ",x=1,x=1,p=")),
        ("something after the proof", malformed, |m| format!("{m},x=1")),
        ("NUL", malformed, |m| format!("{m}\0")),
    ];
    for (what, expected, change) in changes {
        let mut server = SaslServer::new(Mechanism::ScramSha1, &offer(bindings()), HOST);
        let mut client = ScramClient::new(Hash::Sha1, "juliet", "pencil");
        let step = server.start(Some(&client.first()));
        let last = client.last(&challenge(fixture.drive(&mut server, step)));
        let changed = change(std::str::from_utf8(&last).unwrap());
        assert_ne!(changed.as_bytes(), last, "{what}: nothing was changed");
        assert_eq!(condition(server.respond(changed.as_bytes())), expected, "{what}");
    }
}

#[test]
fn a2_unknown_extensions_are_signed_and_ignored() {
    let fixture = Fixture::new();
    let mut client = ScramClient::new(Hash::Sha256, "juliet", "pencil");
    client.bare.push_str(",z=later");
    client.extension = ",x=1,t=a=b".into();
    assert_eq!(username(fixture.scram(Mechanism::ScramSha256, &offer(bindings()), &mut client)), "juliet");
}

#[test]
fn a2_messages_of_any_length_are_answered() {
    let fixture = Fixture::new();
    let long = "a".repeat(MAX_MESSAGE);
    assert_eq!(condition(fixture.plain(format!("\0juliet\0{long}").as_bytes())), SaslError::MalformedRequest);
    assert_eq!(
        condition(fixture.scram_first(format!("n,,n=juliet,r={long}").as_bytes())),
        SaslError::MalformedRequest
    );
    // RFC 4616 2: each part may have 255 octets, and here as many as a JID part.
    let message = format!("\0{0}\0{0}", "a".repeat(1023));
    assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::NotAuthorized);
    let message = format!("\0juliet\0{}", "a".repeat(1024));
    assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::NotAuthorized);
}

#[test]
fn a3_a_recorded_exchange_cannot_be_played_again() {
    let fixture = Fixture::new();
    let offer = offer(bindings());
    let mut client = ScramClient::new(Hash::Sha1, "juliet", "pencil");
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer, HOST);
    let step = server.start(Some(&client.first()));
    let recorded = client.last(&challenge(fixture.drive(&mut server, step)));
    assert_eq!(username(server.respond(&recorded)), "juliet");
    // On the same connection, and on a new one.
    assert_eq!(condition(server.respond(&recorded)), SaslError::MalformedRequest);
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer, HOST);
    let step = server.start(Some(&client.first()));
    challenge(fixture.drive(&mut server, step));
    assert_eq!(condition(server.respond(&recorded)), SaslError::NotAuthorized);
}

#[test]
fn a3_nonces_are_long_and_new() {
    let fixture = Fixture::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..100 {
        let first = challenge(fixture.scram_first(b"n,,n=juliet,r=clientnonce"));
        let nonce = std::str::from_utf8(&first).unwrap().split(',').next().unwrap().to_owned();
        let server_part = nonce.strip_prefix("r=clientnonce").unwrap().to_owned();
        assert!(server_part.len() * 6 >= 144, "{} characters of base64", server_part.len());
        assert!(seen.insert(server_part));
    }
}

#[test]
fn a3_messages_out_of_turn_end_the_exchange() {
    let fixture = Fixture::new();
    let offer = offer(bindings());
    // A response while credentials are being looked up.
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer, HOST);
    assert!(matches!(server.start(Some(b"n,,n=juliet,r=x")), Step::NeedCredentials { .. }));
    assert_eq!(condition(server.respond(b"n,,n=juliet,r=x")), SaslError::MalformedRequest);
    assert_eq!(condition(server.credentials(fixture.candidate("juliet"))), SaslError::MalformedRequest);
    // A response while the password is being checked.
    let mut server = SaslServer::new(Mechanism::Plain, &offer, HOST);
    assert!(matches!(server.start(Some(b"\0juliet\0pencil")), Step::NeedCredentials { .. }));
    let Step::NeedPasswordCheck(check) = server.credentials(fixture.candidate("juliet")) else {
        panic!("no check was asked for")
    };
    assert_eq!(condition(server.respond(b"\0juliet\0pencil")), SaslError::MalformedRequest);
    assert_eq!(condition(server.password_checked(check.run())), SaslError::MalformedRequest);
    // Anything after the end; a second start.
    let mut server = SaslServer::new(Mechanism::Plain, &offer, HOST);
    assert_eq!(condition(server.start(Some(b"junk"))), SaslError::MalformedRequest);
    assert_eq!(condition(server.start(None)), SaslError::MalformedRequest);
    assert_eq!(condition(server.start(Some(b"\0juliet\0pencil"))), SaslError::MalformedRequest);
    // Credentials that nobody asked for.
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer, HOST);
    assert_eq!(condition(server.credentials(fixture.candidate("juliet"))), SaslError::MalformedRequest);
    // The wrong kind of verdict for the state.
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer, HOST);
    let _ = server.start(Some(b"n,,n=juliet,r=x"));
    assert_eq!(condition(server.password_checked(Verdict(true))), SaslError::MalformedRequest);
}

#[test]
fn a4_both_binding_types_succeed_with_the_right_data_only() {
    let fixture = Fixture::new();
    for (mechanism, hash) in
        [(Mechanism::ScramSha1Plus, Hash::Sha1), (Mechanism::ScramSha256Plus, Hash::Sha256)]
    {
        for (name, data, other) in
            [("tls-exporter", EXPORTER, END_POINT), ("tls-server-end-point", END_POINT, EXPORTER)]
        {
            let mut client = plus_client(hash, name, &data);
            assert_eq!(username(fixture.scram(mechanism, &offer(bindings()), &mut client)), "juliet");
            for wrong in [&other[..], &[], &data[1..], &[&data[..], &[0]].concat()] {
                let mut client = plus_client(hash, name, wrong);
                let failure = failure(fixture.scram(mechanism, &offer(bindings()), &mut client));
                assert_eq!(failure.condition, SaslError::NotAuthorized);
                assert_eq!(failure.text, Some("channel-bindings-dont-match"));
            }
        }
    }
}

#[test]
fn a4_binding_types_without_data_are_refused() {
    let fixture = Fixture::new();
    let end_point_only = ChannelBindings { tls_exporter: None, ..bindings() };
    for (offer, name) in [
        (offer(bindings()), "tls-unique"),
        (offer(bindings()), "unknown"),
        (offer(bindings()), "TLS-EXPORTER"),
        (offer(end_point_only), "tls-exporter"),
    ] {
        let mut client = plus_client(Hash::Sha1, name, &EXPORTER);
        let failure = failure(fixture.scram(Mechanism::ScramSha1Plus, &offer, &mut client));
        assert_eq!(failure.condition, SaslError::NotAuthorized);
        assert_eq!(failure.text, Some("unsupported-channel-binding-type"), "{name}");
    }
}

#[test]
fn a4_a_client_that_was_not_shown_plus_is_told_so() {
    let fixture = Fixture::new();
    let client =
        || ScramClient { gs2_header: "y,,".into(), ..ScramClient::new(Hash::Sha256, "juliet", "pencil") };
    let refused = failure(fixture.scram(Mechanism::ScramSha256, &offer(bindings()), &mut client()));
    assert_eq!(refused.condition, SaslError::NotAuthorized);
    assert_eq!(refused.text, Some("server-does-support-channel-binding"));
    // Where the server has none, the client is right.
    let none = offer(ChannelBindings::default());
    assert_eq!(username(fixture.scram(Mechanism::ScramSha256, &none, &mut client())), "juliet");
}

#[test]
fn a4_a_flag_that_contradicts_the_mechanism_is_refused() {
    let fixture = Fixture::new();
    for (mechanism, header) in [
        (Mechanism::ScramSha1Plus, "n,,"),
        (Mechanism::ScramSha1Plus, "y,,"),
        (Mechanism::ScramSha1, "p=tls-exporter,,"),
    ] {
        let mut client = plus_client(Hash::Sha1, "tls-exporter", &EXPORTER);
        client.gs2_header = header.into();
        let step = fixture.scram(mechanism, &offer(bindings()), &mut client);
        assert_eq!(condition(step), SaslError::MalformedRequest, "{mechanism} {header}");
    }
}

#[test]
fn a4_the_first_answer_carries_the_downgrade_hash() {
    let fixture = Fixture::new();
    let first = challenge(fixture.scram_first(b"n,,n=juliet,r=x"));
    let lists = "PLAIN\x1eSCRAM-SHA-1\x1eSCRAM-SHA-1-PLUS\x1eSCRAM-SHA-256\x1eSCRAM-SHA-256-PLUS\
                 \x1ftls-exporter\x1etls-server-end-point";
    let expected = format!(",h={}", encode_base64(crypto::digest(Hash::Sha1, lists.as_bytes()).as_bytes()));
    assert!(std::str::from_utf8(&first).unwrap().ends_with(&expected));
}

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
fn a9_names_that_cannot_be_prepared_are_nobodys() {
    let fixture = Fixture::new();
    let long = "a".repeat(1024);
    for name in [
        "\u{2168}",
        "\u{aa}",
        "jul\u{ad}iet",
        "jul\u{1806}iet",
        "a\u{5d0}",
        "a\u{378}",
        "juliet\u{ff20}localhost",
        "juliet@localhost",
        "juliet/x",
        "jul iet",
        &long,
    ] {
        let message = ["\0", name, "\0pencil"].concat();
        assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::NotAuthorized, "{name:?}");
        let message = format!("n,,n={name},r=x");
        assert_eq!(condition(fixture.scram_first(message.as_bytes())), SaslError::NotAuthorized, "{name:?}");
    }
    for password in ["\u{7}", "\u{ad}", "\u{1f600}"] {
        let message = ["\0juliet\0", password].concat();
        assert_eq!(condition(fixture.plain(message.as_bytes())), SaslError::NotAuthorized, "{password:?}");
    }
}

#[test]
fn a9_every_spelling_of_a_name_logs_in() {
    let fixture = Fixture::new();
    let credentials = Credentials::derive("p\u{e8}ncil", MIN_ITERATIONS).unwrap();
    for name in ["caf\u{e9}", "cafe\u{301}", "CAFE\u{301}", "\u{ff43}af\u{e9}"] {
        for password in ["p\u{e8}ncil", "pe\u{300}ncil"] {
            let mut server = SaslServer::new(Mechanism::Plain, &offer(bindings()), HOST);
            let Step::NeedCredentials { username: prepared } =
                server.start(Some(["\0", name, "\0", password].concat().as_bytes()))
            else {
                panic!("{name:?} was refused")
            };
            assert_eq!(prepared, "caf\u{e9}");
            let candidate = fixture.decoys.candidate(HOST, &prepared, Some(credentials.clone()));
            let step = server.credentials(candidate);
            assert_eq!(username(fixture.drive(&mut server, step)), "caf\u{e9}");
        }
        // SCRAM signs the name as the client wrote it (RFC 5802 5.1).
        let mut server = SaslServer::new(Mechanism::ScramSha256, &offer(bindings()), HOST);
        let mut client = ScramClient::new(Hash::Sha256, name, "p\u{e8}ncil");
        let _ = server.start(Some(&client.first()));
        let candidate = fixture.decoys.candidate(HOST, "caf\u{e9}", Some(credentials.clone()));
        let last = client.last(&challenge(server.credentials(candidate)));
        assert_eq!(username(server.respond(&last)), "caf\u{e9}");
    }
}

#[test]
fn names_with_escaped_characters_log_in() {
    let fixture = Fixture::new();
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer(bindings()), HOST);
    match server.start(Some(b"n,,n=a=2Cb=3Dc,r=x")) {
        Step::NeedCredentials { username } => assert_eq!(username, "a,b=c"),
        step => panic!("{step:?}"),
    }
    let _ = fixture;
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

/// Parts of real messages in any order, and noise.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let parts = [
        "n,,",
        "y,,",
        "p=tls-exporter,,",
        "n,a=juliet@localhost,",
        "n=juliet",
        "n=victim",
        ",",
        "r=x",
        "c=biws",
        "p=AAAA",
        "\0",
        "juliet",
        "wrong",
        "m=1",
        "=2C",
        "=",
        "x=1",
        "\u{e9}",
        "\u{2168}",
    ];
    prop_oneof![
        any::<Vec<u8>>(),
        proptest::collection::vec(proptest::sample::select(parts.to_vec()), 0..10)
            .prop_map(|parts| parts.concat().into_bytes()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    /// Whatever a client that does not know the password sends, in whatever order: no panic, no
    /// success, and nothing after a failure but failures.
    #[test]
    fn a2_noise_never_succeeds(
        which in 0..Mechanism::ALL.len(),
        messages in proptest::collection::vec(message(), 1..4),
        with_initial: bool,
        account_exists: bool,
    ) {
        // Deriving keys for each of thousands of cases would take minutes.
        thread_local!(static FIXTURE: Fixture = Fixture::new());
        FIXTURE.with(|fixture| {
            let mut server = SaslServer::new(Mechanism::ALL[which], &offer(bindings()), HOST);
            let mut failed = false;
            let mut check = |server: &mut SaslServer, mut step: Step| {
                loop {
                    step = match step {
                        Step::NeedCredentials { username } => {
                            let name = if account_exists { "juliet" } else { &*username };
                            server.credentials(fixture.candidate(name))
                        }
                        Step::NeedPasswordCheck(_) => server.password_checked(Verdict(false)),
                        Step::Success { .. } => panic!("noise succeeded"),
                        Step::Failure(_) => {
                            failed = true;
                            return;
                        }
                        Step::Challenge(_) => {
                            assert!(!failed, "an exchange went on after its failure");
                            return;
                        }
                    };
                }
            };
            if !with_initial {
                let step = server.start(None);
                check(&mut server, step);
            }
            for (i, data) in messages.iter().enumerate() {
                let step = if with_initial && i == 0 { server.start(Some(data)) } else { server.respond(data) };
                check(&mut server, step);
            }
        });
    }
}

//! Whole exchanges with a client written from the RFC.

mod binding;
mod disclosure;
mod identity;
mod messages;

use super::*;
use crate::credentials::{Credentials, MIN_ITERATIONS};
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

//! Wrong, repeated and senseless messages: rows A2 and A3.

use proptest::prelude::*;

use super::*;

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

/// The proof is right, for it covers what was sent; the nonce must be right as well.
#[test]
fn a2_a_wrong_nonce_fails_even_when_it_is_signed() {
    let fixture = Fixture::new();
    for nonce in ["clientnonce", "x", "clientnonceAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let mut client = ScramClient::new(Hash::Sha256, "juliet", "pencil");
        client.nonce = Some(nonce.into());
        let step = fixture.scram(Mechanism::ScramSha256, &offer(bindings()), &mut client);
        assert_eq!(condition(step), SaslError::NotAuthorized, "{nonce}");
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

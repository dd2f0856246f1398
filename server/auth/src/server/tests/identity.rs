//! Who a client says it is: rows A1 and A9.

use super::*;

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
fn escaped_characters_of_a_name_are_read() {
    let mut server = SaslServer::new(Mechanism::ScramSha1, &offer(bindings()), HOST);
    match server.start(Some(b"n,,n=a=2Cb=3Dc,r=x")) {
        Step::NeedCredentials { username } => assert_eq!(username, "a,b=c"),
        step => panic!("{step:?}"),
    }
}

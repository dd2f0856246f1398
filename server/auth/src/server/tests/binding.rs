//! Channel binding and downgrades: row A4.

use super::*;

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

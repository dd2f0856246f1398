//! SECURITY.md rows A1 to A4 and A9: every variant of a row, as whole exchanges.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use waystation_harness::sasl::{Binding, Hash, Scram};
use waystation_harness::{Config, RawClient};
use waystation_security::{World, auth, base64, sasl};

const NS: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// As many connections and failures as there are variants.
fn world() -> World {
    let config = Config::default().with("limits.connections_per_address", "0");
    let config = config.with("limits.connection_rate", "0").with("limits.login_failures_per_account", "1000");
    World::with(config.with("limits.login_failures_per_address", "1000"))
}

fn response(message: impl AsRef<[u8]>) -> String {
    format!("<response xmlns='{NS}'>{}</response>", base64(message))
}

/// An exchange of romeo's up to the server's challenge, and the right answer to it.
async fn challenged(
    raw: &mut RawClient,
    world: &World,
    mechanism: &str,
    authzid: &str,
    binding: Binding,
) -> Result<String, String> {
    let hash = if mechanism.contains("256") { Hash::Sha256 } else { Hash::Sha1 };
    let mut scram = Scram::new(hash, "romeo", &world.server.account("romeo").password, authzid, binding);
    raw.send(auth(mechanism, scram.client_first())).await.unwrap();
    let challenge = raw.next_element("a challenge").await.unwrap();
    if challenge.local() != "challenge" {
        return Err(challenge.children().next().map_or_else(String::new, |c| c.local().to_owned()));
    }
    let server_first = String::from_utf8(STANDARD.decode(challenge.text()).unwrap()).unwrap();
    Ok(scram.client_final(&server_first).unwrap())
}

#[tokio::test]
async fn a1_authorization_identities_in_whole_scram_exchanges() {
    let world = world();
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"] {
        for own in ["romeo@localhost", "ROMEO@LocalHost"] {
            let mut raw = world.open_tls().await;
            let last = challenged(&mut raw, &world, mechanism, own, Binding::NotSupported).await.unwrap();
            assert_eq!(sasl(&mut raw, &response(last)).await, "success", "{mechanism} {own}");
        }
        for other in [
            "juliet",
            "romeo",
            "juliet@localhost",
            "romeo@localhost/r",
            "romeo@elsewhere",
            "localhost",
            "@",
            "juliet@localhost/romeo",
        ] {
            let mut raw = world.open_tls().await;
            let outcome =
                challenged(&mut raw, &world, mechanism, other, Binding::NotSupported).await.unwrap_err();
            assert!(
                ["invalid-authzid", "not-authorized"].contains(&outcome.as_str()),
                "{mechanism} {other}: {outcome}"
            );
        }
        // The identity that was signed is the one of the first message: another in `c=` is a lie.
        let mut raw = world.open_tls().await;
        let last = challenged(&mut raw, &world, mechanism, "", Binding::NotSupported).await.unwrap();
        let forged = last.replace(&base64("n,,"), &base64("n,a=juliet@localhost,"));
        assert_eq!(sasl(&mut raw, &response(forged)).await, "not-authorized");
    }
    world.end();
}

#[tokio::test]
async fn a2_wrong_final_messages() {
    let world = world();
    type Forge = fn(&str) -> String;
    fn part<'a>(message: &'a str, name: &str) -> &'a str {
        message.split(',').find(|p| p.starts_with(name)).unwrap()
    }
    let cases: [(&str, Forge, &str); 17] = [
        ("a wrong proof", |m| m.replace(part(m, "p="), &format!("p={}", base64([7; 32]))), "not-authorized"),
        ("an empty proof", |m| m.replace(part(m, "p="), "p="), "malformed-request"),
        ("a short proof", |m| m.replace(part(m, "p="), "p=AAAA"), "not-authorized"),
        ("a long proof", |m| m.replace(part(m, "p="), &format!("p={}", base64([7; 100]))), "not-authorized"),
        ("no proof", |m| m.replace(&format!(",{}", part(m, "p=")), ""), "malformed-request"),
        ("a proof that is no base64", |m| m.replace(part(m, "p="), "p====="), "malformed-request"),
        ("a longer nonce", |m| m.replace(part(m, "r="), &format!("{}x", part(m, "r="))), "not-authorized"),
        (
            "a shorter nonce",
            |m| m.replace(part(m, "r="), &part(m, "r=")[..part(m, "r=").len() - 1]),
            "not-authorized",
        ),
        (
            "the nonce without the client's part",
            |m| m.replace(part(m, "r="), &format!("r={}", &part(m, "r=")[26..])),
            "not-authorized",
        ),
        ("another nonce", |m| m.replace(part(m, "r="), "r=abcdefgh"), "not-authorized"),
        ("no nonce", |m| m.replace(&format!(",{}", part(m, "r=")), ""), "malformed-request"),
        (
            "the nonce twice",
            |m| m.replace(part(m, "r="), &format!("{0},{0}", part(m, "r="))),
            "malformed-request",
        ),
        ("another header", |m| m.replace(part(m, "c="), &format!("c={}", base64("y,,"))), "not-authorized"),
        ("no header", |m| m.replace(&format!("{},", part(m, "c=")), ""), "malformed-request"),
        ("an extension that is a must", |m| format!("m=x,{m}"), "malformed-request"),
        ("an extension that was not signed", |m| m.replace(",p=", ",x=1,p="), "not-authorized"),
        ("something behind the proof", |m| format!("{m},x=1"), "malformed-request"),
    ];
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"] {
        for (what, forge, expected) in cases {
            let mut raw = world.open_tls().await;
            let last = challenged(&mut raw, &world, mechanism, "", Binding::NotSupported).await.unwrap();
            let forged = forge(&last);
            assert_ne!(forged, last, "{what}");
            assert_eq!(sasl(&mut raw, &response(&forged)).await, expected, "{mechanism}: {what}");
            // What was right before the forgery is worth nothing now.
            assert_eq!(sasl(&mut raw, &response(&last)).await, "malformed-request", "{mechanism}: {what}");
        }
    }
    for data in ["====", "Yz1 iaXdz", "Yz1iaXdz\n", "Yz1iaXd", "Yz1iaXd=", "Yz1iaXd_", "Yz1iaXdzA", "\u{e9}"]
    {
        let mut raw = world.open_tls().await;
        challenged(&mut raw, &world, "SCRAM-SHA-1", "", Binding::NotSupported).await.unwrap();
        // Bad data of one client keeps nobody else from logging in meanwhile.
        let mut other = world.open_tls().await;
        let last = challenged(&mut other, &world, "SCRAM-SHA-1", "", Binding::NotSupported).await.unwrap();
        let outcome = sasl(&mut raw, &format!("<response xmlns='{NS}'>{data}</response>")).await;
        assert_eq!(outcome, "incorrect-encoding", "{data:?}");
        assert_eq!(sasl(&mut other, &response(last)).await, "success", "beside {data:?}");
    }
    world.end();
}

#[tokio::test]
async fn a3_recordings_and_messages_out_of_turn() {
    let world = world();
    // A recorded exchange, word for word, on another connection.
    let mut raw = world.open_tls().await;
    let mut scram =
        Scram::new(Hash::Sha1, "romeo", &world.server.account("romeo").password, "", Binding::NotSupported);
    let first = auth("SCRAM-SHA-1", scram.client_first());
    raw.send(&first).await.unwrap();
    let challenge = raw.next_element("a challenge").await.unwrap().text();
    let last = scram.client_final(&String::from_utf8(STANDARD.decode(challenge).unwrap()).unwrap()).unwrap();
    assert_eq!(sasl(&mut raw, &response(&last)).await, "success");
    let mut replayed = world.open_tls().await;
    assert_eq!(sasl(&mut replayed, &first).await, "challenge");
    assert_eq!(sasl(&mut replayed, &response(&last)).await, "not-authorized");
    // Nothing of SASL is known any more after success.
    raw.open("localhost").await.unwrap();
    raw.send(&first).await.unwrap();
    let outcome = raw.next_element("a refusal").await;
    assert!(
        outcome.as_ref().is_err() || outcome.as_ref().is_ok_and(|e| e.local() == "failure"),
        "{outcome:?}"
    );
    drop(raw);
    // An exchange that was given up can be begun again, and not gone on with.
    let mut raw = world.open_tls().await;
    let last = challenged(&mut raw, &world, "SCRAM-SHA-1", "", Binding::NotSupported).await.unwrap();
    assert_eq!(sasl(&mut raw, &format!("<abort xmlns='{NS}'/>")).await, "aborted");
    assert_eq!(sasl(&mut raw, &response(last)).await, "malformed-request");
    let last = challenged(&mut raw, &world, "SCRAM-SHA-1", "", Binding::NotSupported).await.unwrap();
    assert_eq!(sasl(&mut raw, &response(last)).await, "success");
    drop(raw);
    // Both messages at once: the second cannot know the server's nonce.
    let mut raw = world.open_tls().await;
    raw.send(format!("{}{}", first, response("c=biws,r=abc,p=AAAA"))).await.unwrap();
    assert_eq!(raw.next_element("a challenge").await.unwrap().local(), "challenge");
    assert!(raw.next_element("a failure").await.unwrap().child("not-authorized").is_some());
    drop((raw, replayed));
    world.end();
}

#[tokio::test]
async fn a4_channel_bindings_that_are_not_this_connections() {
    let world = world();
    let bound = |kind: &str, data: &[u8]| Binding::Bound { kind: kind.to_owned(), data: data.to_vec() };
    for mechanism in ["SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"] {
        // That of another connection, as somebody in between would have it; and none, and others.
        let Binding::Bound { data: foreign, .. } = world.open_tls().await.binding(&[]) else {
            panic!("no TLS")
        };
        for kind in ["tls-exporter", "tls-server-end-point"] {
            for data in [&foreign[..], &[], &[0; 32], &foreign[..31]] {
                let mut raw = world.open_tls().await;
                let last = challenged(&mut raw, &world, mechanism, "", bound(kind, data)).await.unwrap();
                assert_eq!(sasl(&mut raw, &response(last)).await, "not-authorized", "{mechanism} {kind}");
            }
        }
        for kind in ["tls-unique", "tls-unique-for-telnet", "TLS-EXPORTER", "x"] {
            let mut raw = world.open_tls().await;
            let outcome = challenged(&mut raw, &world, mechanism, "", bound(kind, &foreign)).await;
            assert_eq!(outcome, Err("not-authorized".into()), "{mechanism} {kind}");
        }
        // This connection's own works by both kinds.
        for kind in ["tls-exporter", "tls-server-end-point"] {
            let mut raw = world.open_tls().await;
            let tls = raw.wire().tls().unwrap();
            let data = match kind {
                "tls-exporter" => waystation_harness::tls::exporter_binding(tls),
                _ => waystation_harness::tls::end_point_binding(tls),
            };
            let last =
                challenged(&mut raw, &world, mechanism, "", bound(kind, &data.unwrap())).await.unwrap();
            assert_eq!(sasl(&mut raw, &response(last)).await, "success", "{mechanism} {kind}");
        }
    }
    // Who believes that the server cannot bind was told so by somebody else.
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"] {
        let mut raw = world.open_tls().await;
        let outcome = challenged(&mut raw, &world, mechanism, "", Binding::NotOffered).await;
        assert_eq!(outcome, Err("not-authorized".into()), "{mechanism}");
        // Without TLS it is the truth.
        let mut raw = world.open().await;
        let last = challenged(&mut raw, &world, mechanism, "", Binding::NotOffered).await.unwrap();
        assert_eq!(sasl(&mut raw, &response(last)).await, "success", "{mechanism}");
    }
    world.end();
}

#[tokio::test]
async fn a9_names_that_nobody_can_have() {
    let world = world();
    let password = world.server.account("romeo").password.clone();
    for name in [
        "ro\u{ad}meo",
        "ro\u{1806}meo",
        "romeo\u{378}",
        "\u{5d0}romeo",
        "romeo\u{ff20}localhost",
        "romeo\u{200b}",
        "romeo/x",
        "&romeo",
        "romeo ",
        " romeo",
        "",
        "romeo\u{fffd}\u{ffff}",
    ] {
        let mut raw = world.open_tls().await;
        let outcome = sasl(&mut raw, &auth("PLAIN", format!("\0{name}\0{password}"))).await;
        assert!(["not-authorized", "malformed-request"].contains(&outcome.as_str()), "{name:?}: {outcome}");
    }
    // Composed or not, a name is the same account, and a password the same password.
    world.server.command(&["user", "add", "ren\u{e9}@localhost", "--password-stdin"], "caf\u{e9}\n").unwrap();
    for (name, password) in [
        ("ren\u{e9}", "caf\u{e9}"),
        ("rene\u{301}", "caf\u{e9}"),
        ("REN\u{c9}", "cafe\u{301}"),
        ("rene\u{301}", "cafe\u{301}"),
    ] {
        let mut raw = world.open_tls().await;
        let outcome = sasl(&mut raw, &auth("PLAIN", format!("\0{name}\0{password}"))).await;
        assert_eq!(outcome, "success", "{name} {password}");
    }
    world.end();
}

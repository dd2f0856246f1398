//! SECURITY.md section 3 on streams; the rows' inner tables are tested in `server/auth`.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Client, Config, Login, Mechanism, RawClient, Security};
use waystation_security::{World, auth, condition, sasl};

async fn fails(world: &World, xml: &str) -> String {
    let mut raw = world.open_tls().await;
    sasl(&mut raw, xml).await
}

#[tokio::test]
async fn a1_authorization_identities() {
    let world = World::new();
    let password = world.server.account("romeo").password.clone();
    for authzid in
        ["juliet@localhost", "juliet", "romeo@localhost/res", "JULIET@localhost", "romeo@elsewhere"]
    {
        let outcome = fails(&world, &auth("PLAIN", format!("{authzid}\0romeo\0{password}"))).await;
        assert!(
            ["invalid-authzid", "not-authorized"].contains(&outcome.as_str()),
            "PLAIN {authzid}: {outcome}"
        );
        let outcome = fails(&world, &auth("SCRAM-SHA-1", format!("n,a={authzid},n=romeo,r=abcdefgh"))).await;
        assert!(
            ["invalid-authzid", "not-authorized"].contains(&outcome.as_str()),
            "SCRAM {authzid}: {outcome}"
        );
    }
    for authzid in ["", "romeo@localhost", "ROMEO@localhost"] {
        let outcome = fails(&world, &auth("PLAIN", format!("{authzid}\0romeo\0{password}"))).await;
        assert_eq!(outcome, "success", "{authzid}");
    }
    world.end();
}

#[tokio::test]
async fn a2_a3_malformed_and_misplaced_messages() {
    let world = World::new();
    let sasl_ns = "urn:ietf:params:xml:ns:xmpp-sasl";
    for (xml, expected) in [
        (auth("SCRAM-SHA-1", "n,,n=romeo"), "malformed-request"),
        (auth("SCRAM-SHA-1", "n,,m=x,n=romeo,r=abc"), "malformed-request"),
        (auth("SCRAM-SHA-1", "garbage"), "malformed-request"),
        (auth("NONSENSE", "x"), "invalid-mechanism"),
        (format!("<auth xmlns='{sasl_ns}' mechanism='PLAIN'>====</auth>"), "incorrect-encoding"),
        (format!("<auth xmlns='{sasl_ns}' mechanism='PLAIN'>AGE AYg==</auth>"), "incorrect-encoding"),
        (format!("<response xmlns='{sasl_ns}'>AAAA</response>"), "malformed-request"),
        (format!("<abort xmlns='{sasl_ns}'/>"), "aborted"),
    ] {
        assert_eq!(fails(&world, &xml).await, expected, "{xml}");
    }
    // Two exchanges at once: the first one ends with the second.
    let mut raw = world.open_tls().await;
    let first = auth("SCRAM-SHA-1", "n,,n=romeo,r=abcdefgh");
    assert_eq!(sasl(&mut raw, &first).await, "challenge");
    assert_eq!(sasl(&mut raw, &first).await, "malformed-request");
    assert_eq!(
        sasl(&mut raw, &format!("<response xmlns='{sasl_ns}'>AAAA</response>")).await,
        "malformed-request"
    );
    drop(raw);
    // A broken exchange does not keep others from logging in.
    world.login("romeo", "r").await.close().await.unwrap();
    world.end();
}

#[tokio::test]
async fn a3_a_recorded_login_does_not_work_again() {
    let world = World::new();
    let nonces: Vec<String> = {
        let mut all = Vec::new();
        for _ in 0..2 {
            let mut raw = world.open_tls().await;
            raw.send(auth("SCRAM-SHA-1", "n,,n=romeo,r=abcdefgh")).await.unwrap();
            all.push(raw.next_element("a challenge").await.unwrap().text());
        }
        all
    };
    assert_ne!(nonces[0], nonces[1], "the server's nonce must differ");
    assert!(nonces[0].len() > 40);
    world.end();
}

#[tokio::test]
async fn a4_channel_binding_downgrades() {
    let world = World::new();
    for (mechanism, message, expected) in [
        ("SCRAM-SHA-1", "y,,n=romeo,r=abcdefgh", "not-authorized"),
        ("SCRAM-SHA-1-PLUS", "p=tls-unique,,n=romeo,r=abcdefgh", "not-authorized"),
        ("SCRAM-SHA-1-PLUS", "p=nonsense,,n=romeo,r=abcdefgh", "not-authorized"),
        ("SCRAM-SHA-1-PLUS", "n,,n=romeo,r=abcdefgh", "malformed-request"),
        ("SCRAM-SHA-1", "p=tls-exporter,,n=romeo,r=abcdefgh", "malformed-request"),
    ] {
        assert_eq!(fails(&world, &auth(mechanism, message)).await, expected, "{mechanism} {message}");
    }
    let mut raw = world.open().await;
    let outcome = sasl(&mut raw, &auth("SCRAM-SHA-1-PLUS", "p=tls-exporter,,n=romeo,r=abcdefgh")).await;
    assert!(["encryption-required", "invalid-mechanism"].contains(&outcome.as_str()), "{outcome}");
    // And the real thing works, over both ways to TLS.
    for security in [Security::StartTls, Security::Direct] {
        let login = Login { security, mechanism: Some(Mechanism::ScramSha256Plus), resource: None };
        let account = world.server.account("romeo");
        Client::login(world.server.endpoint(), account, &login).await.unwrap().close().await.unwrap();
    }
    drop(raw);
    world.end();
}

#[tokio::test]
async fn a5_unknown_users_look_like_known_ones() {
    let world = World::new();
    let challenge = async |user: &str| {
        let mut raw = world.open_tls().await;
        raw.send(auth("SCRAM-SHA-1", format!("n,,n={user},r=abcdefgh"))).await.unwrap();
        let text = raw.next_element("a challenge").await.unwrap().text();
        let text = String::from_utf8(base64_decode(&text)).unwrap();
        let salt = text.split(',').find(|p| p.starts_with("s=")).unwrap().to_owned();
        let iterations = text.split(',').find(|p| p.starts_with("i=")).unwrap().to_owned();
        (salt, iterations)
    };
    let known = challenge("romeo").await;
    let unknown = challenge("mercutio").await;
    assert_eq!(challenge("mercutio").await, unknown, "the salt of an unknown user is stable");
    assert_eq!(known.1, unknown.1, "the same number of iterations");
    assert_eq!(known.0.len(), unknown.0.len());
    for user in ["romeo", "mercutio"] {
        assert_eq!(fails(&world, &auth("PLAIN", format!("\0{user}\0wrong"))).await, "not-authorized");
    }
    world.end();
}

fn base64_decode(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}

#[tokio::test]
async fn a7_brute_force() {
    let world = World::with(Config::default().with("limits.login_failures_per_account", "8"));
    let mut raw = world.open_tls().await;
    for attempt in 1..=5 {
        assert_eq!(
            sasl(&mut raw, &auth("PLAIN", "\0romeo\0wrong")).await,
            "not-authorized",
            "attempt {attempt}"
        );
    }
    raw.expect_stream_error("policy-violation").await.unwrap();
    drop(raw);
    // Over connections: the pair of address and account is refused for a while ...
    let mut refused = false;
    for _ in 0..8 {
        refused |= fails(&world, &auth("PLAIN", "\0romeo\0wrong")).await == "temporary-auth-failure";
    }
    assert!(refused, "romeo can be guessed without end");
    // ... and nobody else is.
    world.login("juliet", "r").await.close().await.unwrap();
    world.end();
}

#[tokio::test]
async fn a9_names_are_prepared_in_one_way() {
    let world = World::new();
    let password = world.server.account("romeo").password.clone();
    for name in ["ROMEO", "Romeo", "\u{ff32}omeo"] {
        assert_eq!(fails(&world, &auth("PLAIN", format!("\0{name}\0{password}"))).await, "success", "{name}");
    }
    for name in ["ro\u{0}meo".to_owned(), "romeo@x".to_owned(), "r".repeat(1_024), "ro meo".to_owned()] {
        let outcome = fails(&world, &auth("PLAIN", format!("\0{name}\0{password}"))).await;
        assert!(["not-authorized", "malformed-request"].contains(&outcome.as_str()), "{name:?}: {outcome}");
    }
    world.end();
}

#[tokio::test]
async fn a11_anonymous_and_others_are_neither_offered_nor_accepted() {
    let config = Config::default().with("limits.connections_per_address", "0");
    let world = World::with(config.with("limits.connection_rate", "0"));
    let own = ["PLAIN", "SCRAM-SHA-1", "SCRAM-SHA-256", "SCRAM-SHA-1-PLUS", "SCRAM-SHA-256-PLUS"];
    let others = [
        "ANONYMOUS",
        "anonymous",
        "EXTERNAL",
        "LOGIN",
        "DIGEST-MD5",
        "CRAM-MD5",
        "OAUTHBEARER",
        "X-OAUTH2",
        "GSSAPI",
        "SCRAM-SHA-512",
        "SCRAM-SHA-512-PLUS",
        "HT-SHA-256-NONE",
        "",
        " PLAIN",
        "plain",
        "SCRAM-SHA-1 ",
    ];
    for security in [Security::None, Security::StartTls, Security::Direct] {
        for name in others {
            let (mut raw, opened) =
                Client::open(world.server.endpoint(), "localhost", security).await.unwrap();
            let offered = opened.mechanisms();
            assert!(!offered.is_empty() && offered.iter().all(|m| own.contains(&m.as_str())), "{offered:?}");
            for data in ["", "=", "cm9tZW8="] {
                let auth = format!(
                    "<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{name}'>{data}</auth>"
                );
                assert_eq!(sasl(&mut raw, &auth).await, "invalid-mechanism", "{name:?} {data:?}");
            }
            // Nothing of it has let the client in.
            raw.send("<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>")
                .await
                .unwrap();
            raw.expect_stream_error("not-authorized").await.unwrap();
        }
    }
    world.end();
    // What is supported but switched off is not offered either.
    let world = World::with(Config::default().with("sasl.mechanisms", "['SCRAM-SHA-256', 'SCRAM-SHA-1']"));
    let (mut raw, opened) =
        Client::open(world.server.endpoint(), "localhost", Security::Direct).await.unwrap();
    assert_eq!(opened.mechanisms(), ["SCRAM-SHA-256", "SCRAM-SHA-1"]);
    let right = format!("\0romeo\0{}", world.server.account("romeo").password);
    assert_eq!(sasl(&mut raw, &auth("PLAIN", right)).await, "invalid-mechanism");
    assert_eq!(
        sasl(&mut raw, &auth("SCRAM-SHA-256-PLUS", "p=tls-exporter,,n=romeo,r=abcdefgh")).await,
        "invalid-mechanism"
    );
    drop(raw);
    world.end();
}

#[tokio::test]
async fn a12_passwords_of_others_and_what_a_change_ends() {
    let world = World::new();
    let login = Login::resource("one").over(Security::Direct);
    let mut romeo =
        Client::login(world.server.endpoint(), world.server.account("romeo"), &login).await.unwrap();
    let mut other = world.login("romeo", "two").await;
    let change = |user: &str| {
        format!(
            "<iq type='set' id='c' to='localhost'><query xmlns='jabber:iq:register'>\
             <username>{user}</username><password>New-Secret-9</password></query></iq>"
        )
    };
    romeo.send(change("juliet")).await.unwrap();
    let refused = condition(&romeo.reply("c").await.unwrap());
    assert!(["forbidden", "not-allowed"].contains(&refused.as_str()), "{refused}");
    world.login("juliet", "r").await.close().await.unwrap();
    romeo.send(change("romeo")).await.unwrap();
    assert_eq!(romeo.reply("c").await.unwrap().attr("type"), Some("result"));
    other.raw().read_until("<stream:error>").await.unwrap();
    let old = auth("PLAIN", format!("\0romeo\0{}", world.server.account("romeo").password));
    assert_eq!(fails(&world, &old).await, "not-authorized");
    assert_eq!(fails(&world, &auth("PLAIN", "\0romeo\0New-Secret-9")).await, "success");
    assert!(romeo.drain().await.unwrap().is_empty(), "the session that changed it goes on");
    drop((romeo, other));
    world.end();
}

#[tokio::test]
async fn m5_registration_is_off_unless_it_is_switched_on() {
    let register = |user: &str| {
        format!(
            "<iq type='set' id='r'><query xmlns='jabber:iq:register'><username>{user}</username>\
             <password>Some-Secret-1</password></query></iq>"
        )
    };
    let world = World::new();
    let mut raw = world.open_tls().await;
    raw.send(register("tybalt")).await.unwrap();
    raw.expect_stream_error("not-authorized").await.unwrap();
    drop(raw);
    world.end();
    let world = World::with(Config::default().with("registration.enabled", "true"));
    let mut raw: RawClient = world.open_tls().await;
    raw.send(register("tybalt")).await.unwrap();
    assert_eq!(raw.next_element("a result").await.unwrap().attr("type"), Some("result"));
    assert_eq!(sasl(&mut raw, &auth("PLAIN", "\0tybalt\0Some-Secret-1")).await, "success");
    drop(raw);
    let mut raw = world.open_tls().await;
    raw.send(register("mercutio")).await.unwrap();
    assert_eq!(
        condition(&raw.next_element("an error").await.unwrap()),
        "not-acceptable",
        "one account per address and ten minutes"
    );
    drop(raw);
    world.end();
}

//! SECURITY.md row T11: certificates rotate under live sessions.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use nix::sys::signal::Signal;
use waystation_harness::{Client, Config, Login, Security, Server};
use waystation_security::World;

const SESSIONS: usize = 100;

/// A certificate that another server has made, and its key.
struct Certificate {
    chain: Vec<u8>,
    key: Vec<u8>,
}

fn make() -> Certificate {
    let server = Server::start(Config::default()).unwrap();
    let file = |name: &str| std::fs::read(server.folder().join("data/certs").join(name)).unwrap();
    let made = Certificate { chain: file("localhost.pem"), key: file("localhost.key") };
    server.finish();
    made
}

/// Where the server under test finds its certificate.
struct Files {
    chain: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(server: &Server) -> Self {
        let folder = server.folder().join("data/certs");
        Self { chain: folder.join("localhost.pem"), key: folder.join("localhost.key") }
    }

    fn put(&self, certificate: &Certificate) {
        replace(&self.chain, &certificate.chain);
        replace(&self.key, &certificate.key);
    }
}

/// As programs that renew certificates do it: by a rename.
fn replace(path: &Path, contents: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, contents).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn reload(world: &World) -> Output {
    world.server.command(&["reload"], "").unwrap()
}

/// The certificate that a new client of either way to TLS sees.
async fn shown(world: &World) -> Vec<u8> {
    let mut seen = Vec::new();
    for security in [Security::StartTls, Security::Direct] {
        let (mut raw, _) = Client::open(world.server.endpoint(), "localhost", security).await.unwrap();
        seen.push(raw.wire().tls().unwrap().peer_certificates().unwrap()[0].to_vec());
    }
    assert_eq!(seen[0], seen[1], "both ways to TLS show one certificate");
    seen.swap_remove(0)
}

async fn all_answer(sessions: &mut [Client], when: &str) {
    for session in sessions {
        let outcome = session.drain().await;
        assert!(outcome.as_ref().is_ok_and(Vec::is_empty), "{} {when}: {outcome:?}", session.jid());
    }
}

#[tokio::test]
async fn t11_certificates_rotate_under_100_live_sessions() {
    let config = Config::default().with("limits.sessions_per_account", "100");
    let config = config.with("limits.connection_rate", "0").with("limits.connections_per_address", "0");
    let world = World::alone(config);
    let files = Files::of(&world.server);
    let first =
        Certificate { chain: std::fs::read(&files.chain).unwrap(), key: std::fs::read(&files.key).unwrap() };
    let second = make();
    assert!(first.chain != second.chain && first.key != second.key);

    let mut sessions = Vec::new();
    for n in 0..SESSIONS {
        let account = world.server.account(["romeo", "juliet"][n % 2]);
        let security = [Security::StartTls, Security::Direct][n / 2 % 2];
        let login = Login::resource(&format!("r{n}")).over(security);
        sessions.push(Client::login(world.server.endpoint(), account, &login).await.unwrap());
    }
    let old = shown(&world).await;

    // Half of a new pair is no certificate: it is said, and the old one remains.
    replace(&files.chain, &second.chain);
    let output = reload(&world);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("does not belong"), "{output:?}");
    assert_eq!(shown(&world).await, old, "a certificate without its key is not used");
    all_answer(&mut sessions, "after a reload that failed").await;

    replace(&files.key, &second.key);
    assert_eq!(shown(&world).await, old, "files are read by a reload and not before");
    assert!(reload(&world).status.success());
    let new = shown(&world).await;
    assert_ne!(new, old, "a new handshake sees the new certificate");
    all_answer(&mut sessions, "after the reload").await;

    // Again and again, with requests of all sessions under way.
    for round in 0..4 {
        for session in &mut sessions {
            session
                .send(format!(
                    "<iq type='get' id='q{round}' to='localhost'><ping xmlns='urn:xmpp:ping'/></iq>"
                ))
                .await
                .unwrap();
        }
        let (certificate, expected) = if round % 2 == 0 { (&first, &old) } else { (&second, &new) };
        files.put(certificate);
        assert!(reload(&world).status.success());
        assert_eq!(&shown(&world).await, expected, "round {round}");
        for session in &mut sessions {
            let answer = session.reply(&format!("q{round}")).await.unwrap();
            assert_eq!(answer.attr("type"), Some("result"), "{answer}");
        }
    }

    // The signal does the same as the command.
    files.put(&first);
    world.server.signal(Signal::SIGHUP).unwrap();
    world.server.wait_for_log("certificates read anew", Duration::from_secs(10)).unwrap();
    assert_eq!(shown(&world).await, old);
    all_answer(&mut sessions, "after the signal").await;

    // Logins bind to the channel of the certificate that was shown.
    for security in [Security::StartTls, Security::Direct] {
        let login = Login::resource("new").over(security);
        let mut client =
            Client::login(world.server.endpoint(), world.server.account("romeo"), &login).await.unwrap();
        assert!(client.drain().await.unwrap().is_empty());
        client.close().await.unwrap();
    }
    for session in sessions {
        session.close().await.unwrap();
    }
    world.end();
}

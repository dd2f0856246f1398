//! The harness against servers that others wrote: every way to log in, and a message through.
//!
//! A server that is not installed makes its tests ignored, with the way to get it in the output.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use libtest_mimic::{Arguments, Trial};
use waystation_harness::sasl::Hash;
use waystation_harness::{Client, Config, Kind, Login, Security, Server, Transport};

mod on_the_web;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for kind in [Kind::Prosody, Kind::Ejabberd] {
        let installed = kind.is_installed();
        if !installed {
            eprintln!("LEFT OUT: {} is not installed: apt-get install {}", kind.name(), kind.name());
        }
        for hash in [Hash::Sha1, Hash::Sha256] {
            let name = format!("{}_{hash:?}", kind.name()).to_lowercase();
            let trial = Trial::test(name, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(every_way_in(kind, hash));
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!installed));
        }
        for over in [Transport::WebSocket, Transport::Bosh] {
            let name = format!("{}_{over:?}", kind.name()).to_lowercase();
            let trial = Trial::test(name, move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(on_the_web::every_step(kind, over));
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!installed));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

async fn every_way_in(kind: Kind, hash: Hash) {
    let config = Config { kind, hash, ..Config::default() }.with_users(["romeo", "juliet"]);
    let server = Server::start(config).unwrap();
    let at = server.endpoint().clone();
    for security in [Security::None, Security::StartTls, Security::Direct] {
        let romeo = Login::resource("orchard").over(security);
        let mut romeo = Client::login(&at, server.account("romeo"), &romeo).await.unwrap();
        let juliet = Login::resource("balcony").over(security);
        let mut juliet = Client::login(&at, server.account("juliet"), &juliet).await.unwrap();
        romeo.become_available().await.unwrap();
        juliet.become_available().await.unwrap();
        let body = "O".repeat(100_000);
        let message = format!("<message to='juliet@localhost' type='chat'><body>{body}</body></message>");
        romeo.send(message).await.unwrap();
        let message = juliet.next("the message").await.unwrap();
        assert_eq!(message.attr("from"), Some("romeo@localhost/orchard"));
        assert_eq!(message.child("body").unwrap().text(), body);
        assert!(juliet.drain().await.unwrap().is_empty());
        romeo.close().await.unwrap();
        juliet.close().await.unwrap();
    }
    server.finish();
}

//! Every file in tests/scenarios is a test, on one server that all of them share.
//!
//! Each scenario has accounts of its own, so they run beside each other. The
//! server is Waystation; `WAYSTATION_TEST_SERVER=prosody` (or `ejabberd`) plays
//! them against another one, where a scenario that says how that server
//! deviates has to fail.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fs;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Failed, Trial};
use waystation_harness::scenario::{Script, run};
use waystation_harness::{Account, Config, Server};

fn main() {
    let arguments = Arguments::from_args();
    // All scenarios connect from one address within seconds; what limits do is tested elsewhere.
    let mut config = Config::default()
        .with("limits.connection_rate", "100000")
        .with("limits.connection_burst", "100000")
        .with("limits.connections_per_address", "10000");
    let kind = config.kind;
    let server: Arc<OnceLock<Server>> = Arc::default();
    let mut trials = Vec::new();
    for (name, text) in scenarios() {
        let script = match Script::parse(&text) {
            Ok(script) => script,
            Err(e) => {
                trials.push(Trial::test(name.clone(), move || Err(format!("{name}.scenario: {e}").into())));
                continue;
            }
        };
        config.accounts.extend(script.accounts().into_iter().map(|account| own_account(account, &name)));
        let (server, file) = (Arc::clone(&server), name.clone());
        trials.push(Trial::test(name, move || {
            let server = server.get().ok_or("the server was not started")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let played =
                runtime.block_on(run(&script, server.endpoint(), |account| own_account(account, &file)));
            match (played, script.deviations.get(kind.name())) {
                (Ok(()), None) => Ok(()),
                (Ok(()), Some(what)) => {
                    Err(Failed::from(format!("{} no longer deviates: it {what}", kind.name())))
                }
                (Err(_), Some(_)) => Ok(()),
                (Err(e), None) => Err(format!("{file}.scenario, {e}\n({})", script.about).into()),
            }
        }));
    }
    if !arguments.list {
        let started = Server::start(config).unwrap();
        assert!(server.set(started).is_ok(), "the server is started once");
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Some(server) = Arc::into_inner(server).and_then(OnceLock::into_inner) {
        server.finish();
    }
    conclusion.exit();
}

fn scenarios() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scenarios");
    let mut all: Vec<(String, String)> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "scenario"))
        .map(|path| {
            (path.file_stem().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    all.sort();
    all
}

/// The account that stands for `name` in this scenario alone.
fn own_account(name: &str, scenario: &str) -> Account {
    Account::new(&format!("{name}-{scenario}"))
}

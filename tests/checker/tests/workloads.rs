//! Workloads against real servers: this project's, and Prosody, which proves client and checks.
//!
//! A server that is not installed makes its tests say so and pass. Whatever a
//! test starts ends with it.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use waystation_checker::checks::Check;
use waystation_checker::history::Ev;
use waystation_checker::run::{Failure, Mix, Nemesis, Options, Outcome, Workload, run, server_config};
use waystation_harness::{Config, Kind};

/// Cycles of the short runs.
const CYCLES: u32 = 3;

fn prosody(modules: &[&str]) -> Option<Config> {
    if !Kind::Prosody.is_installed() {
        eprintln!("LEFT OUT: prosody is not installed: apt-get install prosody");
        return None;
    }
    let modules = modules.iter().map(|m| (*m).to_owned()).collect();
    Some(Config { modules, ..server_config(Some("prosody")) })
}

fn options(workload: Workload, nemesis: Nemesis, cycles: u32, server: Config) -> Options {
    // Slower than the default, for tests share the machine with others.
    let options = Options::new(workload, nemesis, cycles, 1, server);
    Options { rate: 200, idle: Duration::from_secs(1), ..options }
}

async fn outcome(options: Options) -> Option<Outcome> {
    match run(options, |_| {}).await {
        Err(Failure::LeftOut(why)) => {
            eprintln!("LEFT OUT: {why}");
            None
        }
        other => Some(other.unwrap()),
    }
}

/// Runs, and demands that nothing was violated and something was done.
async fn passes(options: Options) {
    let Some(outcome) = outcome(options).await else { return };
    eprintln!("{}", outcome.report);
    // Every server here offers stream management, and most clients want it. Without it nobody knows
    // what a broken stream did not deliver, so a run in which nobody had it would prove little.
    let managed = outcome.history.clients.values().flatten().any(|e| matches!(e.ev, Ev::Smon { .. }));
    assert!(managed, "no client had stream management\n{}", outcome.report);
    let violated = outcome.report.witnesses.first();
    assert!(violated.is_none(), "{violated:?}\n{}", outcome.report);
    assert_eq!(outcome.panic, None);
    assert!(outcome.history.len() > 200, "only {} events", outcome.history.len());
}

#[tokio::test]
async fn w1_none() {
    passes(options(Workload::Chat, Nemesis::None, CYCLES, server_config(None))).await;
}

#[tokio::test]
async fn w1_kill9_200() {
    let options = Options::new(Workload::Chat, Nemesis::Kill, 200, 1, server_config(None));
    passes(options).await;
}

/// The clients of the contract: two over WebSockets and one over BOSH, whose session goes on after a kill.
async fn passes_from_the_web(options: Options) {
    passes(Options { mix: Mix::Web, ..options }).await;
}

#[tokio::test]
async fn w1_none_from_the_web() {
    passes_from_the_web(options(Workload::Chat, Nemesis::None, CYCLES, server_config(None))).await;
}

#[tokio::test]
async fn w1_kill9_from_the_web() {
    passes_from_the_web(Options::new(Workload::Chat, Nemesis::Kill, 50, 1, server_config(None))).await;
}

#[tokio::test]
async fn w1_reset_from_the_web() {
    passes_from_the_web(options(Workload::Chat, Nemesis::Reset, CYCLES, server_config(None))).await;
}

/// One thread delivers and commits, and what no archive wants is in one queue only.
#[tokio::test]
async fn w1_kill9_without_an_archive_on_one_thread() {
    let server = server_config(None).with("threads", "1").with("archive.enabled", "false");
    passes(options(Workload::Chat, Nemesis::Kill, 4 * CYCLES, server)).await;
}

#[tokio::test]
async fn w4_none() {
    passes(options(Workload::Federation, Nemesis::None, CYCLES, server_config(None))).await;
}

/// Either of two servers is killed at random.
#[tokio::test]
async fn w4_kill9_20() {
    passes(Options::new(Workload::Federation, Nemesis::Kill, 20, 1, server_config(None))).await;
}

#[tokio::test]
async fn w6_kill9() {
    passes(options(Workload::Roster, Nemesis::Kill, CYCLES, server_config(None))).await;
}

#[tokio::test]
async fn w1_stop() {
    let mut options = options(Workload::Chat, Nemesis::Stop, 1, server_config(None));
    options.pause = (Duration::from_secs(1), Duration::from_secs(2));
    passes(options).await;
}

#[tokio::test]
async fn w1_reset() {
    passes(options(Workload::Chat, Nemesis::Reset, CYCLES, server_config(None))).await;
}

#[tokio::test]
async fn w1_disk_full() {
    passes(options(Workload::Chat, Nemesis::DiskFull, 1, server_config(None))).await;
}

#[tokio::test]
async fn w1_none_on_prosody() {
    let Some(server) = prosody(&["smacks", "mam", "carbons"]) else { return };
    passes(Options { gentle: true, ..options(Workload::Chat, Nemesis::None, CYCLES, server) }).await;
}

/// Two Prosodys lose nothing. What waited for the first stream between them comes after what was sent when
/// it was there, against the order of its sender: nothing else may be found.
#[tokio::test]
async fn w4_none_on_prosody() {
    let Some(server) = prosody(&["smacks", "mam", "carbons"]) else { return };
    let options = options(Workload::Federation, Nemesis::None, CYCLES, server);
    let outcome = outcome(Options { gentle: true, ..options }).await.unwrap();
    let other = outcome.report.witnesses.iter().find(|w| w.check != Check::C4);
    assert!(other.is_none(), "{other:?}\n{}", outcome.report);
    // The neighbours of a client are on the other server.
    let crossed = |ev: &Ev| matches!(ev, Ev::Recv { from, .. } if from.starts_with("user0@one.test/"));
    let came = outcome.history.clients["user1"].iter().filter(|event| crossed(&event.ev)).count();
    assert!(came > 20, "only {came} messages of user0 came to user1\n{}", outcome.report);
}

/// Prosody 0.12 feeds a resumed stream to the parser of the broken one: half a stanza left there
/// spoils what follows. So connections end by FIN here, after a whole stanza.
#[tokio::test]
async fn w1_reset_on_prosody() {
    let Some(server) = prosody(&["smacks", "mam", "carbons"]) else { return };
    passes(Options { gentle: true, ..options(Workload::Chat, Nemesis::Reset, CYCLES, server) }).await;
}

/// Two clients over WebSockets and one over BOSH: they, too, lose nothing as long as the server lives.
#[tokio::test]
async fn w1_reset_on_prosody_from_the_web() {
    let Some(server) = prosody(&["smacks", "mam", "carbons"]) else { return };
    let options = options(Workload::Chat, Nemesis::Reset, CYCLES, server);
    passes(Options { gentle: true, mix: Mix::Web, ..options }).await;
}

/// Prosody acknowledges before anything is stored; without an archive a kill loses what waits in
/// memory for clients that are away. The checker must see it.
#[tokio::test]
async fn losses_of_prosody_are_seen() {
    let Some(server) = prosody(&["smacks"]) else { return };
    let mut options = options(Workload::Chat, Nemesis::Kill, 6, server);
    (options.gentle, options.rate) = (true, 400);
    let outcome = outcome(options).await.unwrap();
    let losses = outcome.report.witnesses.iter().filter(|w| w.check == Check::C1).count();
    assert!(losses > 0, "{}", outcome.report);
}

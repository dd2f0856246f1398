//! Servers of every kind with each other, in every mode: what users do across them.
//!
//! A server that is not installed makes its tests ignored, with the way to get it in the output.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use libtest_mimic::{Arguments, Trial};
use waystation_federation_tests::{cases, end};
use waystation_harness::{Kind, Mode, Network, Proof, Server, Way};

/// Every pair. Those without this project's server prove the cases.
const PAIRS: [(Kind, Kind); 6] = [
    (Kind::Prosody, Kind::Ejabberd),
    (Kind::Prosody, Kind::Prosody),
    (Kind::Waystation, Kind::Prosody),
    (Kind::Prosody, Kind::Waystation),
    (Kind::Waystation, Kind::Ejabberd),
    (Kind::Waystation, Kind::Waystation),
];

fn main() {
    let arguments = Arguments::from_args();
    for kind in [Kind::Prosody, Kind::Ejabberd].into_iter().filter(|kind| !kind.is_installed()) {
        eprintln!("LEFT OUT: {} is not installed: apt-get install {}", kind.name(), kind.name());
    }
    let mut trials = Vec::new();
    for (a, b) in PAIRS {
        for mode in Mode::ALL {
            // Who opens the streams matters only where they go in both directions.
            if !can(a, b, mode) || (a == Kind::Prosody && b != Kind::Ejabberd && !mode.bidi) {
                continue;
            }
            let name = format!("{}_{}::{}", a.name(), b.name(), mode.name());
            let trial = Trial::test(name, move || {
                runtime()?.block_on(meet(a, b, mode));
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!(a.is_installed() && b.is_installed())));
        }
    }
    for (a, b) in PAIRS {
        let name = format!("{}_{}::certificates_are_demanded", a.name(), b.name());
        let trial = Trial::test(name, move || {
            runtime()?.block_on(distrust(a, b));
            Ok(())
        });
        trials.push(trial.with_ignored_flag(!(a.is_installed() && b.is_installed())));
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Whether both servers know the mode: ejabberd knows nothing of streams in both directions.
fn can(a: Kind, b: Kind, mode: Mode) -> bool {
    !mode.bidi || ![a, b].contains(&Kind::Ejabberd)
}

async fn meet(a: Kind, b: Kind, mode: Mode) {
    let network = Network::new(mode).unwrap();
    let start = |kind: Kind, domain: String| {
        let mut config = network.config(kind, &domain, &cases::USERS);
        if kind == Kind::Prosody {
            config.modules.extend(["carbons", "mam"].map(str::to_owned));
        }
        Server::start(config).unwrap()
    };
    let a = start(a, format!("{}.test", a.name()));
    let b = start(b, format!("other-{}.test", b.name()));
    network.announce(&b);
    // Where streams go in both directions, the first one cannot be found: all that comes to it comes on
    // streams that it has opened.
    if !mode.bidi {
        network.announce(&a);
    }
    cases::all(&a, &b).await;
    end(a, b);
}

/// The second server has a certificate that proves nothing, and would do with dialback.
async fn distrust(a: Kind, b: Kind) {
    let network = Network::new(Mode { way: Way::StartTls, proof: Proof::Certificate, bidi: false }).unwrap();
    let a = network.start(a, &format!("{}.test", a.name()), &cases::USERS).unwrap();
    let mut unproven = network.config(b, &format!("other-{}.test", b.name()), &cases::USERS);
    unproven.federation.as_mut().unwrap().proof = Proof::Dialback;
    let b = Server::start(unproven).unwrap();
    network.announce(&b);
    cases::refusal(&a, &b).await;
    end(a, b);
}

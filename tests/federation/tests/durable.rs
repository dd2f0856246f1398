//! What this project's server has acknowledged arrives at the other one, whatever restarts meanwhile
//! (DELIVERY P8).
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use nix::sys::signal::Signal;
use waystation_federation_tests::sender::read_in_order;
use waystation_federation_tests::{Sender, Talker};
use waystation_harness::{Kind, Mode, Network, Proof, Server, Way};

const MODE: Mode = Mode { way: Way::StartTls, proof: Proof::Certificate, bidi: false };
const OURS: &str = "ours.test";
const THEIRS: &str = "theirs.test";

/// What happens to a server in the middle of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Restart {
    OursInOrder,
    OursByKill,
    Theirs,
}

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for peer in [Kind::Waystation, Kind::Prosody, Kind::Ejabberd] {
        let installed = peer.is_installed();
        if !installed {
            eprintln!("LEFT OUT: {} is not installed: apt-get install {}", peer.name(), peer.name());
        }
        let mut add = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let name = format!("waystation_{}::{name}", peer.name());
            let trial = Trial::test(name, move || {
                run();
                Ok(())
            });
            trials.push(trial.with_ignored_flag(!installed));
        };
        add("a_thousand_wait_for_a_server_that_is_down", Box::new(move || block_on(outage(peer))));
        for (name, restart) in [
            ("ours_restarts_in_a_conversation", Restart::OursInOrder),
            ("ours_is_killed_in_a_conversation", Restart::OursByKill),
            ("theirs_restarts_in_a_conversation", Restart::Theirs),
        ] {
            add(name, Box::new(move || block_on(conversation(peer, restart))));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
}

fn start(peer: Kind) -> (Network, Server, Server) {
    let network = Network::new(MODE).unwrap();
    let ours = network.start(Kind::Waystation, OURS, &["romeo"]).unwrap();
    let mut theirs = network.config(peer, THEIRS, &["juliet"]);
    if peer == Kind::Prosody {
        // It acknowledges to other servers what it has taken.
        theirs.modules.push("smacks".to_owned());
    }
    let theirs = Server::start(theirs).unwrap();
    network.announce(&theirs);
    (network, ours, theirs)
}

/// The other server is down, 1,000 messages are acknowledged to their sender, ours is killed and started
/// again, the other one comes: 1,000 arrive in order, none twice.
async fn outage(peer: Kind) {
    const MESSAGES: usize = 1000;
    let (_network, mut ours, mut theirs) = start(peer);
    theirs.halt().unwrap();
    let juliet = format!("juliet@{THEIRS}");
    let mut romeo = Sender::enter(&ours, "romeo").await;
    romeo.say(&juliet, 0..MESSAGES).await;
    drop(romeo);
    ours.kill().unwrap();
    ours.start_again().unwrap();
    let mut juliet_there = start_and_enter(&ours, &mut theirs).await;
    let again = read_in_order(&mut juliet_there, 0..MESSAGES).await;
    assert_eq!(again, 0, "so many came twice");
    // What would still be on its way comes before this one.
    let mut romeo = Sender::enter(&ours, "romeo").await;
    romeo.say(&juliet, MESSAGES..MESSAGES + 1).await;
    assert_eq!(read_in_order(&mut juliet_there, MESSAGES..MESSAGES + 1).await, 0);
    end(romeo, juliet_there, ours, theirs).await;
}

/// Two talk, a server restarts, they talk on: what ours acknowledged arrives in order, and both directions
/// work again.
async fn conversation(peer: Kind, restart: Restart) {
    let (_network, mut ours, mut theirs) = start(peer);
    let juliet_bare = format!("juliet@{THEIRS}");
    let mut romeo = Sender::enter(&ours, "romeo").await;
    let mut juliet = Talker::enter(&theirs, "juliet", "there").await;
    romeo.say(&juliet_bare, 0..100).await;
    reach(&mut juliet, &mut romeo, "before").await;
    let again = match restart {
        Restart::OursInOrder | Restart::OursByKill => {
            romeo.say(&juliet_bare, 100..200).await;
            drop(romeo);
            if restart == Restart::OursByKill { ours.kill() } else { ours.halt() }.unwrap();
            ours.start_again().unwrap();
            romeo = Sender::enter(&ours, "romeo").await;
            romeo.say(&juliet_bare, 200..300).await;
            read_in_order(&mut juliet, 0..300).await
        }
        Restart::Theirs => {
            let again = read_in_order(&mut juliet, 0..100).await;
            // Her server would bring her again what she has not confirmed.
            juliet.leave().await;
            theirs.halt().unwrap();
            romeo.say(&juliet_bare, 100..200).await;
            juliet = start_and_enter(&ours, &mut theirs).await;
            romeo.say(&juliet_bare, 200..300).await;
            again + read_in_order(&mut juliet, 100..300).await
        }
    };
    // A server that was killed cannot know what the other one has taken, nor does ours when ejabberd stops: that
    // acknowledges nothing and just goes. So it may send that again.
    let unknown = restart == Restart::OursByKill || (restart, peer) == (Restart::Theirs, Kind::Ejabberd);
    assert!(again == 0 || unknown, "{again} came twice");
    reach(&mut juliet, &mut romeo, "after").await;
    end(romeo, juliet, ours, theirs).await;
}

/// The other server comes back, and juliet with it, before ours can notice: what comes to ejabberd while she
/// enters, it brings her in another order.
async fn start_and_enter(ours: &Server, theirs: &mut Server) -> Talker {
    ours.signal(Signal::SIGSTOP).unwrap();
    theirs.start_again().unwrap();
    let juliet = Talker::enter(theirs, "juliet", "there").await;
    ours.signal(Signal::SIGCONT).unwrap();
    juliet
}

/// A message from the other server comes, at the latest when that has noticed that ours is there again: until
/// then its messages come back.
async fn reach(juliet: &mut Talker, romeo: &mut Sender, text: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < end, "{text} does not come");
        let message = format!("<message to='{}' type='chat'><body>{text}</body></message>", romeo.jid());
        juliet.send(message).await;
        let heard = tokio::time::timeout(Duration::from_secs(2), romeo.hear()).await;
        if heard.is_ok_and(|message| message.child("body").unwrap().text() == text) {
            return;
        }
    }
}

async fn end(romeo: Sender, juliet: Talker, ours: Server, theirs: Server) {
    romeo.leave().await;
    juliet.leave().await;
    waystation_federation_tests::end(ours, theirs);
}

//! SECURITY.md row A5: how long the server takes tells nobody which accounts exist.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use waystation_harness::{Config, RawClient};
use waystation_security::statistics::{Timings, shuffled};
use waystation_security::{World, auth, sasl};

/// Accounts that exist and others that do not, with names of the same lengths.
const NAMES: [[&str; 2]; 2] = [["romeo", "juliet"], ["rosal", "tybalt"]];
/// What nobody on the same machine can use, and still less over a network.
const TOLERANCE: Duration = Duration::from_micros(50);
/// How long one mechanism may be measured.
const BUDGET: Duration = Duration::from_secs(10);
/// Not counted: first connections, caches and tables that grow once.
const WARM_UP: usize = 20;

/// A server on which failed logins have no consequences.
fn world() -> World {
    World::with(Config { unlimited: true, ..Config::default() }.with("sasl.iterations", "4096"))
}

/// Times `attempt` with the names of both kinds in random order: `most` of each, and at least
/// `least` when that takes too long.
async fn measure(
    raw: &mut RawClient,
    least: usize,
    most: usize,
    mut attempt: impl AsyncFnMut(&mut RawClient, &str) -> Duration,
) -> Timings {
    for n in 0..WARM_UP {
        attempt(raw, NAMES[n % 2][n / 2 % 2]).await;
    }
    let mut timings = Timings::default();
    let end = Instant::now() + BUDGET;
    // In blocks, so that both kinds have as many samples wherever the time ends.
    while timings.samples[0].len() < least || (timings.samples[0].len() < most && Instant::now() < end) {
        for (n, kind) in shuffled(50).into_iter().enumerate() {
            let time = attempt(raw, NAMES[kind][n % 2]).await;
            timings.add(kind, time);
        }
    }
    timings
}

#[tokio::test]
async fn a5_the_first_scram_message_takes_as_long_for_unknown_accounts() {
    let world = world();
    for mechanism in ["SCRAM-SHA-1", "SCRAM-SHA-256"] {
        let mut raw = world.open().await;
        let timings = measure(&mut raw, 500, 2_000, async |raw, user| {
            let first = auth(mechanism, format!("n,,n={user},r=abcdefgh"));
            let began = Instant::now();
            assert_eq!(sasl(raw, &first).await, "challenge", "{user}");
            let time = began.elapsed();
            let abort = "<abort xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>";
            assert_eq!(sasl(raw, abort).await, "aborted", "{user}");
            time
        })
        .await;
        println!("{mechanism}: {}", timings.summary());
        assert!(!timings.differ(TOLERANCE, 0.0), "{mechanism} tells accounts: {}", timings.summary());
    }
    world.end();
}

#[tokio::test]
async fn a5_a_wrong_proof_takes_as_long_for_unknown_accounts() {
    let world = world();
    let mut raw = world.open().await;
    let timings = measure(&mut raw, 500, 2_000, async |raw, user| {
        raw.send(auth("SCRAM-SHA-256", format!("n,,n={user},r=abcdefgh"))).await.unwrap();
        let challenge = raw.next_element("a challenge").await.unwrap().text();
        let challenge = String::from_utf8(waystation_security::from_base64(&challenge)).unwrap();
        let nonce = challenge.split(',').next().unwrap();
        let proof = waystation_security::base64([7; 32]);
        let last = waystation_security::base64(format!("c=biws,{nonce},p={proof}"));
        let last = format!("<response xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>{last}</response>");
        let began = Instant::now();
        assert_eq!(sasl(raw, &last).await, "not-authorized", "{user}");
        began.elapsed()
    })
    .await;
    println!("SCRAM-SHA-256, second message: {}", timings.summary());
    assert!(!timings.differ(TOLERANCE, 0.0), "a proof tells accounts: {}", timings.summary());
    drop(raw);
    world.end();
}

#[tokio::test]
async fn a5_a_wrong_password_takes_as_long_for_unknown_accounts() {
    let world = world();
    let mut raw = world.open_tls().await;
    let timings = measure(&mut raw, 200, 2_000, async |raw, user| {
        let message = auth("PLAIN", format!("\0{user}\0wrong"));
        let began = Instant::now();
        assert_eq!(sasl(raw, &message).await, "not-authorized", "{user}");
        began.elapsed()
    })
    .await;
    println!("PLAIN: {}", timings.summary());
    assert!(!timings.differ(TOLERANCE, 0.02), "PLAIN tells accounts: {}", timings.summary());
    drop(raw);
    world.end();
}

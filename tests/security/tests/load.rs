//! Clients that do not read, floods, and the signal to stop.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use waystation_harness::{Config, Server};
use waystation_security::World;

/// More than any limit lets wait for a client.
const FLOOD: u64 = 1 << 30;

#[tokio::test]
async fn a_client_that_does_not_read_costs_bounded_memory() {
    // Without the limits against floods the sender is as fast as it can be; those of memory stay.
    let config = Config { unlimited: true, ..Config::default() }.with("durability", "'memory'");
    let world = World::with(config.with("limits.offline_messages", "0"));
    let mut deaf = world.login("juliet", "deaf").await;
    deaf.send("<presence/>").await.unwrap();
    let baseline = world.server.sample().unwrap().rss;
    let mut romeo = world.login("romeo", "r").await;
    let body = "x".repeat(200_000);
    let message =
        format!("<message to='juliet@localhost/deaf' type='headline'><body>{body}</body></message>");
    let (mut sent, mut worst) = (0u64, 0);
    while sent < FLOOD {
        romeo.send(&message).await.unwrap();
        sent += message.len() as u64;
        // What comes back once the session is closed is read, or romeo would be the deaf one.
        if sent % (20 * message.len() as u64) == 0 {
            romeo.drain().await.unwrap();
            worst = worst.max(world.server.sample().unwrap().rss.saturating_sub(baseline));
        }
    }
    romeo.drain().await.unwrap();
    assert!(worst < 64 << 20, "{} MiB more for one client that does not read", worst >> 20);
    drop((deaf, romeo));
    world.end();
}

#[tokio::test]
async fn a_flood_leaves_others_their_time() {
    let world = World::with(Config { unlimited: true, ..Config::default() });
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    let many = "<message to='juliet@localhost/r'><body>flood</body></message>".repeat(200);
    let end = Instant::now() + Duration::from_secs(3);
    let mut received = 0usize;
    while Instant::now() < end {
        romeo.send(&many).await.unwrap();
        for _ in 0..200 {
            juliet.next("the flood").await.unwrap();
            received += 1;
        }
    }
    assert!(received > 200);
    drop((romeo, juliet));
    // The witness has pinged all the while; its p99 is asserted here.
    world.end();
}

#[tokio::test]
async fn a_stop_tells_every_session_and_loses_no_offline_message() {
    let mut server = Server::start(Config::default().with_users(["romeo", "juliet"])).unwrap();
    let login = waystation_harness::Login::resource("r");
    let mut romeo =
        waystation_harness::Client::login(server.endpoint(), server.account("romeo"), &login).await.unwrap();
    romeo.send("<message to='juliet@localhost' type='chat'><body>later</body></message>").await.unwrap();
    romeo.drain().await.unwrap();
    server.signal(nix::sys::signal::Signal::SIGTERM).unwrap();
    romeo.raw().expect_stream_error("system-shutdown").await.unwrap();
    assert!(server.wait_for_exit(Duration::from_secs(10)).unwrap().success());
    let account = server.account("juliet").clone();
    let (mut config, folder) = server.stop().unwrap();
    // They are in the folder already.
    config.accounts.clear();
    let server = Server::start_in(config, folder).unwrap();
    let mut juliet = waystation_harness::Client::login(server.endpoint(), &account, &login).await.unwrap();
    juliet.send("<presence/>").await.unwrap();
    juliet.raw().read_until("<body>later</body>").await.unwrap();
    juliet.close().await.unwrap();
    server.finish();
}

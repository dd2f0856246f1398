//! What a server with sessions tells of itself.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::{Client, Config, Kind, Login, Server};

/// A message that has arrived was committed, and flushed.
#[tokio::test]
async fn status_tells_what_commits_take() {
    let config = Config { kind: Kind::Waystation, ..Config::default() };
    let server = Server::start(config.with_users(["romeo"])).unwrap();
    assert_eq!(server.status(&[]).unwrap().get("commits"), None, "nothing was committed");
    let mut romeo =
        Client::login(server.endpoint(), server.account("romeo"), &Login::resource("orchard")).await.unwrap();
    romeo.become_available().await.unwrap();
    for _ in 0..3 {
        romeo.send("<message to='romeo@localhost' type='chat'><body>x</body></message>").await.unwrap();
        romeo.next("the message").await.unwrap();
    }
    let commits = &server.status(&[]).unwrap()["commits"];
    let figure = |name: &str| commits[name].as_u64().unwrap();
    assert!(figure("count") >= 3, "{commits}");
    assert!((1..=figure("p99_us")).contains(&figure("median_us")), "{commits}");
    romeo.close().await.unwrap();
}

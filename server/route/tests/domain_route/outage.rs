//! What becomes of stanzas while a domain cannot be reached.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use waystation_core::Stanza;
use waystation_route::remote::{EndCause, Forbidden, Pair};
use waystation_route::{DomainConfig, DomainState};

use crate::common::{World, bind, describe, message, quick, stanza, until, world, world_in, world_on};

/// Retries are far away: what happens now happens in Backoff.
fn patient() -> DomainConfig {
    DomainConfig { retry_min: Duration::from_secs(1_000), retry_max: Duration::from_secs(1_000), ..quick() }
}

async fn until_state(world: &World, state: DomainState) {
    let deadline = Instant::now() + crate::common::PATIENCE;
    loop {
        let now = world.info().await.map(|info| info.state);
        if now == Some(state) {
            return;
        }
        assert!(Instant::now() < deadline, "{now:?}, not {state:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn until_bounced(world: &World, count: u64) {
    let deadline = Instant::now() + crate::common::PATIENCE;
    while world.info().await.is_none_or(|info| info.bounced != count) {
        assert!(Instant::now() < deadline, "not so many are bounced");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[actix_rt::test]
async fn requests_are_held_for_the_first_attempt_and_answered_at_once_afterwards() {
    let world = world(patient()).await;
    let mut client = bind(&world, "a@h").await;
    world.iq("first");
    let peer = world.asked().await;
    until_state(&world, DomainState::Connecting).await;
    peer.fail();
    assert_eq!(client.next().await, "remote-server-timeout first");
    until_state(&world, DomainState::Backoff).await;
    let before = world.streams.opened.load(Ordering::SeqCst);
    world.iq("second");
    assert_eq!(client.next().await, "remote-server-timeout second");
    assert_eq!(world.streams.opened.load(Ordering::SeqCst), before, "nobody is disturbed for it");
}

#[actix_rt::test]
async fn a_request_waits_for_a_stream_for_a_bounded_time() {
    let world = world(DomainConfig { request_wait: Duration::from_millis(50), ..quick() }).await;
    let mut client = bind(&world, "a@h").await;
    world.iq("1");
    let mut peer = world.asked().await;
    assert_eq!(client.next().await, "remote-server-timeout 1");
    peer.up(None);
    assert!(peer.is_quiet().await);
}

#[actix_rt::test]
async fn of_presence_only_the_last_waits_and_other_stanzas_that_nothing_keeps_do_not() {
    let world = world(patient()).await;
    world.message("0");
    world.asked().await.fail();
    until_state(&world, DomainState::Backoff).await;
    world.presence("a@h/1", "");
    world.presence("a@h/2", "");
    world.presence("a@h/1", "type='probe'");
    world.message("1");
    world.presence("a@h/1", "type='unavailable'");
    world
        .send(stanza("<message type='headline' from='a@h/r' to='b@remote.test'><body>news</body></message>"));
    world.accepted().await;
    assert_eq!(world.info().await.unwrap().held, 3);
    assert_eq!(world.router.retry_domain("remote.test"), 1);
    let mut peer = world.up().await;
    for expected in ["0", "available a@h/2", "probe a@h/1", "1", "unavailable a@h/1"] {
        assert_eq!(peer.next().await, expected);
    }
    assert!(peer.is_quiet().await);
}

#[actix_rt::test]
async fn an_expired_message_is_replaced_by_an_error_that_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config = DomainConfig { message_ttl: Duration::from_millis(300), ..patient() };
    let start = Instant::now();
    let world = world_in(folder.path(), config.clone()).await;
    *world.streams.dead.lock().unwrap() = Some(EndCause::Failed);
    // A client that reads nothing.
    let client = bind(&world, "a@h").await;
    world.message("1");
    world.message("2");
    world.accepted().await;
    world.until_queued(0).await;
    assert!(start.elapsed() >= Duration::from_millis(300), "too early");
    assert_eq!(world.queued("a/a@h").await, ["remote-server-timeout 1", "remote-server-timeout 2"]);
    until_bounced(&world, 2).await;
    world.close().await;
    let world = world_in(folder.path(), config).await;
    assert_eq!(world.router.domain_routes(), 0);
    assert_eq!(world.queued("a/a@h").await, ["remote-server-timeout 1", "remote-server-timeout 2"]);
    world.close().await;
    drop(client);
}

/// It would be delivered and bounced.
#[actix_rt::test]
async fn nothing_is_sent_while_an_error_is_on_its_way_to_take_its_place() {
    let config = DomainConfig { message_ttl: Duration::from_millis(300), ..patient() };
    let world = world(config).await;
    let mut client = bind(&world, "a@h").await;
    world.message("1");
    let mut peer = world.asked().await;
    world.accepted().await;
    world.queue.late.store(true, Ordering::SeqCst);
    let reads = world.queue.read.load(Ordering::SeqCst);
    until("the front of the queue is read", || world.queue.read.load(Ordering::SeqCst) > reads).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.queued("d/h/remote.test").await, ["1"]);
    peer.up(None);
    assert_eq!(client.next().await, "remote-server-timeout 1");
    assert!(peer.is_quiet().await);
}

#[actix_rt::test]
async fn what_expired_while_the_server_was_down_is_bounced_when_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let world = world_in(folder.path(), patient()).await;
    for body in ["1", "2", "3"] {
        world.message(body);
    }
    world.accepted().await;
    world.close().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let config = DomainConfig { message_ttl: Duration::from_millis(50), ..patient() };
    let queue = waystation_queue::open(folder.path(), &waystation_queue::Options::default()).unwrap();
    let world = world_on(queue, config).await;
    let mut client = bind(&world, "a@h").await;
    world.router.start_domains().await.unwrap();
    for body in ["1", "2", "3"] {
        assert_eq!(client.next().await, format!("remote-server-timeout {body}"));
    }
    world.until_queued(0).await;
    world.close().await;
}

#[actix_rt::test]
async fn a_domain_that_does_not_exist_bounces_everything_for_a_while() {
    let world = world(DomainConfig { negative: Duration::from_millis(1_500), ..quick() }).await;
    let mut client = bind(&world, "a@h").await;
    for body in ["1", "2"] {
        world.message(body);
    }
    world.iq("3");
    world.accepted().await;
    let peer = world.asked().await;
    peer.down(crate::peer::end(EndCause::NotFound));
    let mut told = [client.next().await, client.next().await, client.next().await];
    told.sort();
    assert_eq!(told, [1, 2, 3].map(|i| format!("remote-server-not-found {i}")));
    until_state(&world, DomainState::Bouncing).await;
    let info = world.info().await.unwrap();
    assert!(info.next_try.is_some() && info.last_error.as_deref() == Some("as the test wants it"));
    for round in ["4", "5"] {
        world.message(round);
        assert_eq!(client.next().await, format!("remote-server-not-found {round}"));
        world.iq(&format!("iq{round}"));
        assert_eq!(client.next().await, format!("remote-server-not-found iq{round}"));
    }
    assert_eq!(world.streams.opened.load(Ordering::SeqCst), 1);
    world.until_queued(0).await;
    until("the route ends, and what it knew is forgotten", || world.router.domain_routes() == 0).await;
    world.message("6");
    assert_eq!(world.up().await.next().await, "6");
}

#[actix_rt::test]
async fn attempts_are_made_again_and_again_and_at_once_when_the_remote_is_heard_of() {
    let world = world(quick()).await;
    *world.streams.dead.lock().unwrap() = Some(EndCause::Refused);
    world.message("1");
    let start = Instant::now();
    until("several attempts", || world.streams.opened.load(Ordering::SeqCst) >= 5).await;
    // 20, 40, 80 and 100 ms, each up to a quarter less.
    assert!(start.elapsed() >= Duration::from_millis(180), "{:?}", start.elapsed());
}

#[actix_rt::test]
async fn a_domain_that_is_heard_of_is_tried_soon() {
    let config = DomainConfig { retry_min: Duration::from_millis(500), ..patient() };
    let world = world(config).await;
    let pair = Pair::new("h", "remote.test");
    world.router.domain_alive(&pair);
    assert_eq!(world.router.domain_routes(), 0, "nothing is wanted");
    world.message("1");
    for _ in 0..12 {
        world.asked().await.fail();
        until_state(&world, DomainState::Backoff).await;
        world.router.retry_domain("remote.test");
    }
    let start = Instant::now();
    world.asked().await.fail();
    until_state(&world, DomainState::Backoff).await;
    let next = || async { world.info().await.unwrap().next_try.unwrap() };
    let before = next().await;
    world.router.domain_alive(&pair);
    assert!(next().await < before - Duration::from_secs(500), "it is not tried soon");
    // Not sooner than the shortest pause: or a domain that connects for ever would be dialled for ever.
    let mut peer = world.up().await;
    assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    assert_eq!(peer.next().await, "1");
    peer.handed_all();
    world.until_queued(0).await;
    // This stream was of use: the pauses begin anew.
    world.message("2");
    assert_eq!(peer.next().await, "2");
    peer.fail();
    until_state(&world, DomainState::Backoff).await;
    assert!(next().await < std::time::SystemTime::now() + Duration::from_secs(2));
}

#[actix_rt::test]
async fn each_sender_is_told_of_a_delay_once_in_an_outage() {
    let config = DomainConfig { delay_notice: Duration::from_millis(50), ..patient() };
    let world = world(config).await;
    let mut clients = [bind(&world, "a@h").await, bind(&world, "c@h").await];
    let send = |from: &str, body: &str| world.send(message(from, "b@remote.test", body));
    send("a@h/r", "1");
    send("a@h/r", "2");
    world.accepted().await;
    world.asked().await.fail();
    let notice: Stanza = clients[0].stanza().await;
    assert!(describe(&notice).contains("remote.test is delayed"), "{notice:?}");
    assert_eq!(notice.from().unwrap().as_str(), "h");
    assert_eq!(notice.stanza_type().attribute(), None, "it is of type normal");
    // Later in the same outage.
    send("c@h/r", "3");
    send("a@h/r", "4");
    assert!(describe(&clients[1].stanza().await).contains("delayed"));
    world.router.retry_domain("remote.test");
    world.asked().await.fail();
    send("a@h/r", "5");
    world.accepted().await;
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    world.router.retry_domain("remote.test");
    let mut peer = world.up().await;
    for body in ["1", "2", "3", "4", "5"] {
        assert_eq!(peer.next().await, body);
    }
    peer.handed_all();
    world.until_queued(0).await;
    // Nobody was told twice: the next thing that each sees is the answer to this.
    peer.fail();
    until_state(&world, DomainState::Backoff).await;
    for client in &mut clients {
        let from = client.jid.to_string();
        world.send(stanza(&format!(
            "<iq type='get' from='{from}' to='b@remote.test' id='9'><x xmlns='u'/></iq>"
        )));
        assert_eq!(client.next().await, "remote-server-timeout 9");
    }
    // Another outage.
    send("a@h/r", "6");
    assert!(describe(&clients[0].stanza().await).contains("delayed"));
}

#[actix_rt::test]
async fn a_delay_notice_can_be_switched_off() {
    let world = world(DomainConfig { delay_notice: Duration::ZERO, ..patient() }).await;
    let mut client = bind(&world, "a@h").await;
    world.message("1");
    world.accepted().await;
    world.asked().await.fail();
    until_state(&world, DomainState::Backoff).await;
    let reads = world.queue.read.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.queue.read.load(Ordering::SeqCst), reads, "nothing is read for nothing");
    world.iq("9");
    assert_eq!(client.next().await, "remote-server-timeout 9");
}

#[actix_rt::test]
async fn administrators_see_try_and_flush() {
    let world = world(patient()).await;
    let mut client = bind(&world, "a@h").await;
    for body in ["1", "2", "3"] {
        world.message(body);
    }
    world.accepted().await;
    world.asked().await.fail();
    until_state(&world, DomainState::Backoff).await;
    let info = world.info().await.unwrap();
    assert_eq!((info.depth, info.stream.is_none(), info.handed, info.bounced), (3, true, 0, 0));
    assert!(info.bytes > 100 && info.oldest.is_some() && info.next_try.is_some());
    assert_eq!(info.last_error.as_deref(), Some("as the test wants it"));
    assert_eq!(world.router.retry_domain("other.test"), 0);
    assert_eq!(world.router.retry_domain("remote.test"), 1);
    let mut peer = world.up().await;
    assert_eq!(peer.next().await, "1");
    peer.handed(1);
    world.until_queued(2).await;
    let info = world.router.domains().await.pop().unwrap();
    assert_eq!((info.depth, info.state, info.handed), (2, DomainState::Sending, 1));
    assert!(info.stream.is_some() && info.last_error.is_none() && info.next_try.is_none());
    assert_eq!(world.router.flush_domain("remote.test").await, 0, "all was given to the stream");
    peer.fail();
    until_state(&world, DomainState::Backoff).await;
    assert_eq!(world.router.flush_domain("remote.test").await, 2);
    for body in ["2", "3"] {
        assert_eq!(client.next().await, format!("remote-server-timeout {body}"));
    }
    world.until_queued(0).await;
    until_bounced(&world, 2).await;
    // What comes later waits.
    world.message("4");
    world.accepted().await;
    assert_eq!(world.queued("d/h/remote.test").await, ["4"]);
}

#[actix_rt::test]
async fn a_stream_that_takes_nothing_is_flushed_with_what_waits_behind_it() {
    let world = world(DomainConfig { window_items: 2, ..patient() }).await;
    for body in ["1", "2", "3", "4"] {
        world.message(body);
    }
    world.accepted().await;
    let mut peer = world.up().await;
    until_state(&world, DomainState::Sending).await;
    until_queue_is_read(&world).await;
    assert_eq!(world.router.flush_domain("remote.test").await, 4);
    world.until_queued(0).await;
    assert_eq!([peer.next().await, peer.next().await], ["1", "2"]);
    peer.closed().await;
    // What it still says changes nothing.
    peer.handed(2);
    peer.fail();
    until_state(&world, DomainState::Backoff).await;
    until_bounced(&world, 4).await;
}

async fn until_queue_is_read(world: &World) {
    until("the queue is read", || world.queue.read.load(Ordering::SeqCst) > 0).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
}

#[actix_rt::test]
async fn a_domain_that_is_forbidden_is_refused_and_what_waits_for_it_is_bounced() {
    let folder = tempfile::tempdir().unwrap();
    let world = world_in(folder.path(), patient()).await;
    let mut client = bind(&world, "a@h").await;
    for (forbidden, error) in
        [(Forbidden::Policy, "not-allowed"), (Forbidden::NoServer, "remote-server-not-found")]
    {
        *world.streams.forbidden.lock().unwrap() = Some(forbidden);
        world.message("1");
        assert_eq!(client.next().await, format!("{error} 1"));
        world.iq("2");
        assert_eq!(client.next().await, format!("{error} 2"));
    }
    assert_eq!(world.router.domain_routes(), 0);
    *world.streams.forbidden.lock().unwrap() = None;
    world.message("3");
    world.accepted().await;
    world.asked().await.fail();
    until_state(&world, DomainState::Backoff).await;
    *world.streams.forbidden.lock().unwrap() = Some(Forbidden::Policy);
    world.router.retry_domain("remote.test");
    assert_eq!(client.next().await, "not-allowed 3");
    world.until_queued(0).await;
    drop(client);
    world.shut_down().await;
}

//! The order of what a stream is given, and that nothing is lost or given twice.

use std::sync::atomic::Ordering;
use std::time::Duration;

use waystation_route::DomainConfig;
use waystation_route::remote::{EndCause, StreamEnd};

use crate::common::{PATIENCE, World, bind, quick, stanza, until, world, world_in};

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|i| i.to_string()).collect()
}

fn send(world: &World, range: std::ops::Range<u32>) {
    for body in numbers(range) {
        world.message(&body);
    }
}

fn composing(world: &World, id: &str) {
    let xml = format!(
        "<message type='chat' from='a@h/r' to='b@remote.test' id='{id}'>\
         <composing xmlns='http://jabber.org/protocol/chatstates'/></message>"
    );
    world.send(stanza(&xml));
}

#[actix_rt::test]
async fn what_is_sent_while_a_stream_is_up_goes_straight_through() {
    let world = world(quick()).await;
    world.message("0");
    let mut peer = world.up().await;
    assert_eq!((&*peer.pair.local, &*peer.pair.remote), ("h", "remote.test"));
    assert_eq!(peer.next().await, "0");
    for i in 1..100 {
        world.message(&i.to_string());
        world.iq(&format!("iq{i}"));
        composing(&world, &format!("state{i}"));
        let first = peer.stanza().await;
        assert!(!String::from_utf8_lossy(&first.to_bytes()).contains("<delay"), "it is not late");
        assert_eq!(crate::common::describe(&first), i.to_string());
        assert_eq!(peer.next().await, format!("iq{i}"));
        assert_eq!(peer.next().await, format!("state{i}"));
    }
    world.accepted().await;
    assert_eq!(world.queued("d/h/remote.test").await, numbers(0..100), "none was handed over");
    peer.handed_all();
    world.until_queued(0).await;
}

#[actix_rt::test]
async fn a_slow_stream_gets_everything_in_order_whether_it_came_by_mail_or_from_the_queue() {
    let config = DomainConfig { window_items: 7, ..quick() };
    let world = world(config).await;
    world.message("0");
    let mut peer = world.up().await;
    let mut expected = numbers(0..1);
    let mut got = Vec::new();
    for round in 0..40 {
        for i in 0..50 {
            let number = 1 + round * 50 + i;
            if number % 10 == 5 {
                world.iq(&number.to_string());
            } else {
                world.message(&number.to_string());
            }
            expected.push(number.to_string());
        }
        world.accepted().await;
        for _ in 0..45 {
            got.push(peer.next().await);
        }
        if round % 5 == 0 {
            peer.handed_all();
        }
    }
    while got.len() < expected.len() {
        got.push(peer.next().await);
        peer.handed_all();
    }
    assert_eq!(got, expected);
    world.until_queued(0).await;
    // It keeps up again.
    send(&world, 9_000..9_010);
    for body in numbers(9_000..9_010) {
        assert_eq!(peer.next().await, body);
    }
    assert!(peer.is_quiet().await);
}

/// Without a stop for breath, so that the route has to find the point at which it keeps up.
#[actix_rt::test]
async fn a_stream_that_comes_up_in_the_middle_of_a_flood_gets_everything_once() {
    let world = world(quick()).await;
    let mut sent = 0;
    let mut flood = |world: &World, count: u32| {
        send(world, sent..sent + count);
        sent += count;
    };
    flood(&world, 3_000);
    let mut peer = world.up().await;
    let mut got = Vec::new();
    while got.len() < 9_000 {
        if got.len() % 100 == 0 && got.len() < 6_000 {
            flood(&world, 100);
        }
        got.push(peer.next().await);
        if got.len() % 64 == 0 {
            peer.handed_all();
        }
    }
    assert_eq!(got, numbers(0..9_000));
    peer.handed_all();
    world.until_queued(0).await;
    assert!(peer.is_quiet().await);
}

#[actix_rt::test]
async fn what_was_not_handed_over_is_sent_again_in_order_and_late() {
    let world = world(quick()).await;
    let mut client = bind(&world, "a@h").await;
    send(&world, 0..10);
    world.accepted().await;
    let mut peer = world.up().await;
    for body in numbers(0..10) {
        assert_eq!(peer.next().await, body);
    }
    peer.handed(4);
    world.until_queued(6).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    world.iq("lost");
    world.presence("a@h/r", "");
    assert_eq!([peer.next().await, peer.next().await], ["lost", "available a@h/r"]);
    peer.fail();
    assert_eq!(client.next().await, "remote-server-timeout lost");
    send(&world, 10..12);
    let mut peer = world.up().await;
    for body in numbers(4..12) {
        if body == "10" {
            // Where it was before.
            assert_eq!(peer.next().await, "available a@h/r");
        }
        let stanza = peer.stanza().await;
        let text = String::from_utf8_lossy(&stanza.to_bytes()).into_owned();
        assert_eq!(crate::common::describe(&stanza), body);
        let number: u32 = body.parse().unwrap();
        let stamp = "<delay xmlns='urn:xmpp:delay' from='h' stamp='2";
        assert_eq!(text.contains(stamp), number < 10, "{text}");
    }
    peer.handed_all();
    world.until_queued(0).await;
}

/// The records are in the queue, and can be read there, before what was passed on between them is.
#[actix_rt::test]
async fn what_was_sent_between_two_records_stays_there_while_their_commit_is_slow() {
    let world = world(quick()).await;
    world.queue.slow.store(true, Ordering::SeqCst);
    send(&world, 0..1);
    world.iq("1");
    send(&world, 2..3);
    let mut peer = world.asked().await;
    world.until_queued(2).await;
    peer.up(None);
    assert_eq!([peer.next().await, peer.next().await, peer.next().await], ["0", "1", "2"]);
    assert!(peer.is_quiet().await);
}

/// What had come by mail was taken for what the new stream had been given.
#[actix_rt::test]
async fn what_went_straight_through_and_was_not_handed_over_is_sent_again_though_nothing_follows() {
    let world = world(quick()).await;
    send(&world, 0..1);
    let mut peer = world.up().await;
    assert_eq!(peer.next().await, "0");
    send(&world, 1..5);
    for body in numbers(1..5) {
        assert_eq!(peer.next().await, body);
    }
    peer.handed(3);
    world.until_queued(2).await;
    peer.fail();
    let mut peer = world.up().await;
    assert_eq!([peer.next().await, peer.next().await], ["3", "4"]);
}

#[actix_rt::test]
async fn a_stream_that_is_resumed_gets_what_the_last_one_did_not_hand_over_and_nothing_else() {
    let world = world(quick()).await;
    send(&world, 0..5);
    world.accepted().await;
    let mut peer = world.up().await;
    for body in numbers(0..5) {
        assert_eq!(peer.next().await, body);
    }
    world.iq("request");
    composing(&world, "state");
    send(&world, 5..6);
    for expected in ["request", "state", "5"] {
        assert_eq!(peer.next().await, expected);
    }
    peer.handed(1);
    world.until_queued(5).await;
    let end = StreamEnd { cause: EndCause::Failed, text: String::new(), resume: Some(Box::new(9_u32)) };
    peer.down(end);
    let mut peer = world.asked().await;
    assert_eq!(peer.resume, Some(9));
    peer.up(Some(3));
    for expected in ["3", "4", "request", "5"] {
        assert_eq!(peer.next().await, expected);
    }
    assert!(peer.is_quiet().await);
    world.until_queued(3).await;
    // The count goes on from 3: 3, 4 and the request.
    peer.handed(6);
    world.until_queued(1).await;
    assert_eq!(world.queued("d/h/remote.test").await, ["5"]);
    peer.handed(7);
    world.until_queued(0).await;
}

#[actix_rt::test]
async fn a_resumption_that_fails_gives_everything_again_and_answers_requests() {
    let world = world(quick()).await;
    let mut client = bind(&world, "a@h").await;
    send(&world, 0..3);
    let mut peer = world.up().await;
    for body in numbers(0..3) {
        assert_eq!(peer.next().await, body);
    }
    world.iq("request");
    assert_eq!(peer.next().await, "request");
    let resume = || Some(Box::new(1_u32) as waystation_route::remote::Resume);
    peer.down(StreamEnd { cause: EndCause::Failed, text: String::new(), resume: resume() });
    let peer = world.asked().await;
    peer.down(StreamEnd { cause: EndCause::Failed, text: String::new(), resume: resume() });
    assert_eq!(client.next().await, "remote-server-timeout request");
    let mut peer = world.asked().await;
    assert_eq!(peer.resume, Some(1));
    peer.up(None);
    for body in numbers(0..3) {
        assert_eq!(peer.next().await, body);
    }
    peer.handed(3);
    world.until_queued(0).await;
}

/// The second of the things that the issue wants to see, without the killing.
#[actix_rt::test]
async fn a_thousand_messages_survive_a_restart_while_the_remote_is_down() {
    let folder = tempfile::tempdir().unwrap();
    let world = world_in(folder.path(), quick()).await;
    *world.streams.dead.lock().unwrap() = Some(EndCause::Failed);
    send(&world, 0..1_000);
    world.accepted().await;
    world.close().await;
    let world = world_in(folder.path(), quick()).await;
    let mut peer = world.up().await;
    for body in numbers(0..1_000) {
        assert_eq!(peer.next().await, body);
    }
    assert!(peer.is_quiet().await);
    peer.handed_all();
    world.until_queued(0).await;
    world.close().await;
    let world = world_in(folder.path(), quick()).await;
    assert_eq!(world.router.domain_routes(), 0, "nothing is left to be sent");
    world.close().await;
}

#[actix_rt::test]
async fn a_server_that_stops_ends_its_streams_in_order_and_keeps_what_was_not_handed_over() {
    let folder = tempfile::tempdir().unwrap();
    let world = world_in(folder.path(), quick()).await;
    send(&world, 0..4);
    world.accepted().await;
    let mut peer = world.up().await;
    for body in numbers(0..4) {
        assert_eq!(peer.next().await, body);
    }
    peer.handed(1);
    world.until_queued(3).await;
    let peer = async {
        peer.closed().await;
        peer.handed(3);
        peer.down(crate::peer::end(EndCause::Ended));
    };
    tokio::join!(world.shut_down(), peer);
    let world = world_in(folder.path(), quick()).await;
    let mut peer = world.up().await;
    assert_eq!(peer.next().await, "3");
    assert!(peer.is_quiet().await);
    // One that is being opened is not waited for.
    peer.fail();
    let _asked = world.asked().await;
    tokio::time::timeout(PATIENCE / 2, world.shut_down()).await.expect("it waits for nothing");
}

#[actix_rt::test]
async fn an_idle_stream_is_closed_and_the_route_ends() {
    let world = world(DomainConfig { idle: Duration::from_millis(50), ..quick() }).await;
    send(&world, 0..1);
    let mut peer = world.up().await;
    assert_eq!(peer.next().await, "0");
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(peer.is_quiet().await, "not before all is handed over");
    peer.handed_all();
    peer.closed().await;
    // Too late for this stream, and in time for the next.
    world.iq("waits");
    send(&world, 1..2);
    peer.down(crate::peer::end(EndCause::Ended));
    let mut peer = world.up().await;
    assert_eq!([peer.next().await, peer.next().await], ["waits", "1"]);
    peer.handed_all();
    peer.closed().await;
    peer.down(crate::peer::end(EndCause::Ended));
    until("the route has ended", || world.router.domain_routes() == 0).await;
    send(&world, 2..3);
    assert_eq!(world.up().await.next().await, "2");
}

/// The next route would find in the queue what the last one had handed over.
#[actix_rt::test]
async fn a_route_ends_when_the_queue_knows_what_it_has_done() {
    let world = world(quick()).await;
    send(&world, 0..3);
    let mut peer = world.up().await;
    for body in numbers(0..3) {
        assert_eq!(peer.next().await, body);
    }
    peer.handed_all();
    peer.down(crate::peer::end(EndCause::Ended));
    until("the route has ended", || world.router.domain_routes() == 0).await;
    assert_eq!(world.queued("d/h/remote.test").await, [""; 0]);
}

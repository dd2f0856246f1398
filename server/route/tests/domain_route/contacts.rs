//! Contacts of other domains, with the real roster: subscriptions, presence, and what comes in.

use waystation_core::Stanza;
use waystation_route::remote::EndCause;
use waystation_route::{DomainConfig, Origin};

use crate::common::{World, bind, describe, message, quick, stanza, world};

fn from_remote(world: &World, xml: &str) {
    world.send_as(stanza(xml), Origin::Remote);
}

fn to(stanza: &Stanza) -> String {
    format!("{} to {}", describe(stanza), stanza.to().unwrap())
}

#[actix_rt::test]
async fn subscriptions_and_presence_cross_domains_as_they_do_within_one() {
    let world = world(quick()).await;
    let mut client = bind(&world, "a@h").await;
    client.presence("id='1'");
    assert_eq!(client.next().await, "available a@h/r");
    // Out: the request is durable.
    client.presence("type='subscribe' to='b@remote.test' id='2'");
    let mut peer = world.up().await;
    assert_eq!(to(&peer.stanza().await), "subscribe a@h to b@remote.test");
    assert_eq!(world.queued("d/h/remote.test").await, ["subscribe a@h"]);
    peer.handed_all();
    world.until_queued(0).await;
    from_remote(&world, "<presence type='subscribed' from='b@remote.test' to='a@h'/>");
    from_remote(&world, "<presence from='b@remote.test/x' to='a@h'/>");
    // It has not asked for its roster, so it is not told of that.
    assert_eq!(client.next().await, "available b@remote.test/x");
    world.accepted().await;
    // In.
    from_remote(&world, "<presence type='subscribe' from='b@remote.test' to='a@h'/>");
    assert_eq!(client.next().await, "subscribe b@remote.test");
    client.presence("type='subscribed' to='b@remote.test'");
    assert_eq!(to(&peer.stanza().await), "subscribed a@h to b@remote.test");
    assert_eq!(to(&peer.stanza().await), "available a@h/r to b@remote.test");
    // A probe, and one of a stranger.
    from_remote(&world, "<presence type='probe' from='b@remote.test' to='a@h'/>");
    assert_eq!(to(&peer.stanza().await), "available a@h/r to b@remote.test");
    from_remote(&world, "<presence type='probe' from='c@remote.test' to='a@h'/>");
    assert_eq!(to(&peer.stanza().await), "unsubscribed a@h to c@remote.test");
    // Broadcast, the end of the session, and the probe of the next one.
    client.presence("id='3'");
    assert_eq!(to(&peer.stanza().await), "available a@h/r to b@remote.test");
    drop(client);
    assert_eq!(to(&peer.stanza().await), "unavailable a@h/r to b@remote.test");
    let client = bind(&world, "a@h").await;
    client.presence("id='4'");
    let mut both = [to(&peer.stanza().await), to(&peer.stanza().await)];
    both.sort();
    assert_eq!(both, ["available a@h/r to b@remote.test", "probe a@h to b@remote.test"]);
    peer.handed_all();
    world.until_queued(0).await;
}

#[actix_rt::test]
async fn messages_and_requests_of_remote_senders_are_answered_like_those_of_our_own() {
    let world = world(quick()).await;
    let mut client = bind(&world, "a@h").await;
    client.presence("id='1'");
    assert_eq!(client.next().await, "available a@h/r");
    world.send_as(message("b@remote.test/x", "a@h", "hello"), Origin::Remote);
    assert_eq!(client.next().await, "hello");
    // An account that does not exist: the error is as durable as the message was.
    world.send_as(message("b@remote.test/x", "nobody@h", "lost"), Origin::Remote);
    world.accepted().await;
    let mut peer = world.asked().await;
    world.until_queued(1).await;
    assert_eq!(world.queued("a/nobody@h").await, [""; 0], "it took the message's place");
    peer.up(None);
    assert_eq!(to(&peer.stanza().await), "service-unavailable lost to b@remote.test/x");
    for (to_whom, id) in [("a@h", 1), ("h", 2), ("a@h/nothing", 3), ("nobody@h", 4)] {
        from_remote(
            &world,
            &format!(
                "<iq type='get' from='b@remote.test/x' to='{to_whom}' id='{id}'><unknown xmlns='u'/></iq>"
            ),
        );
        assert_eq!(to(&peer.stanza().await), format!("service-unavailable {id} to b@remote.test/x"));
    }
    // A request to a session, and its answer.
    from_remote(&world, "<iq type='get' from='b@remote.test/x' to='a@h/r' id='5'><x xmlns='u'/></iq>");
    world.accepted().await;
    peer.handed_all();
    world.until_queued(0).await;
}

#[actix_rt::test]
async fn what_a_remote_sender_can_no_longer_be_told_is_dropped_and_its_message_is_done_with() {
    let world = world(DomainConfig { queue_records: 0, ..quick() }).await;
    world.send_as(message("b@remote.test/x", "nobody@h", "lost"), Origin::Remote);
    world.accepted().await;
    let deadline = std::time::Instant::now() + crate::common::PATIENCE;
    while !world.queued("a/nobody@h").await.is_empty() {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[actix_rt::test]
async fn what_goes_to_a_remote_domain_is_copied_to_the_senders_other_sessions() {
    let world = world(quick()).await;
    let mut client = bind(&world, "a@h").await;
    let enable = "<iq from='a@h/r' to='a@h' type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>";
    world.send_as(stanza(enable), Origin::Session(client.id));
    assert_eq!(client.next().await, "c");
    world.send(message("a@h/other", "b@remote.test", "hello"));
    let copy = client.stanza().await.to_bytes();
    let copy = String::from_utf8_lossy(&copy).into_owned();
    assert!(copy.contains("<sent xmlns='urn:xmpp:carbons:2'>") && copy.contains("hello"), "{copy}");
    assert_eq!(world.up().await.next().await, "hello");
}

/// A subscription request that cannot be delivered: the error is durable as the request was.
#[actix_rt::test]
async fn a_subscription_request_to_a_domain_that_does_not_exist_is_answered() {
    let world = world(quick()).await;
    let mut client = bind(&world, "a@h").await;
    client.presence("id='1'");
    assert_eq!(client.next().await, "available a@h/r");
    client.presence("type='subscribe' to='b@remote.test' id='2'");
    world.asked().await.down(crate::peer::end(EndCause::NotFound));
    assert_eq!(client.next().await, "remote-server-not-found 2");
    world.until_queued(0).await;
}

#[actix_rt::test]
async fn the_last_presence_of_a_server_that_stops_is_sent_before_the_stream_ends() {
    let world = world(quick()).await;
    let client = bind(&world, "a@h").await;
    client.presence("to='b@remote.test'");
    let mut peer = world.up().await;
    assert_eq!(to(&peer.stanza().await), "available a@h/r to b@remote.test");
    let ends = async {
        client.told_to_end().await;
        assert_eq!(to(&peer.stanza().await), "unavailable a@h/r to b@remote.test");
        peer.closed().await;
        peer.handed_all();
        peer.down(crate::peer::end(EndCause::Ended));
    };
    tokio::join!(world.shut_down(), ends);
}

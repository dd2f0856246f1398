//! Presence probes (RFC 6121 4.3.2, 4.6.6).

use std::sync::atomic::Ordering;

use waystation_core::account::refuse_probe;
use waystation_core::storage::{Space, key};

use crate::presence::with_contacts;
use crate::world::{World, stanza, text};

const ME: &str = "me@example.org/r";

#[test]
fn s4_3_2_a_subscriber_gets_the_last_presence_of_every_available_resource() {
    let mut world = with_contacts();
    for (resource, presence) in
        [("a", "<presence id='pres1'><show>dnd</show></presence>"), ("b", "<presence id='pres2'/>")]
    {
        let full = format!("me@example.org/{resource}");
        world.bind(&full);
        world.send(&full, "<presence id='first'><show>away</show></presence>");
        world.send(&full, presence);
    }
    world.bind("me@example.org/connected-only");
    world.routed();
    for prober in ["from@example.net", "both@example.net/full"] {
        world.receive(&format!("<presence from='{prober}' to='me@example.org' type='probe' id='probe1'/>"));
        assert_eq!(
            world.routed(),
            [
                format!(
                    "<presence from='me@example.org/a' to='{prober}' id='pres1'><show>dnd</show></presence>"
                ),
                format!("<presence from='me@example.org/b' to='{prober}' id='pres2'/>"),
            ]
        );
    }
}

#[test]
fn s4_3_2_rule_3_without_available_resources_the_answer_says_since_when() {
    let mut world = with_contacts();
    let since = |world: &mut World| {
        world.receive("<presence from='from@example.net' to='me@example.org' type='probe' id='probe2'/>");
        let routed = world.routed();
        assert_eq!(routed.len(), 1);
        let start = "<presence from='me@example.org' to='from@example.net' type='unavailable' id='probe2'>\
                     <delay xmlns='urn:xmpp:delay' from='me@example.org' stamp='";
        let rest = routed[0].strip_prefix(start).unwrap_or_else(|| panic!("{routed:?}"));
        rest.strip_suffix("'/></presence>").unwrap().to_owned()
    };
    let now = since(&mut world);
    assert!(now.starts_with("20"), "{now}");
    let row = (Space("last_unavailable"), key(&["me@example.org"]), 1_500u64.to_le_bytes().to_vec());
    world.store.put(row.0, row.1, row.2.into());
    world.reload("me@example.org");
    assert_eq!(since(&mut world), "1970-01-01T00:00:01.500Z", "remembered durably");
    world.login(ME);
    world.login("me@example.org/other");
    let commits = world.store.commits.load(Ordering::SeqCst);
    world.close(ME);
    assert_eq!(world.store.commits.load(Ordering::SeqCst), commits, "another resource is available");
    world.close("me@example.org/other");
    world.routed();
    world.reload("me@example.org");
    assert!(since(&mut world).starts_with("20"));

    let mut world = World::new();
    world.bind(ME);
    world.receive("<presence from='from@example.net' to='me@example.org' type='subscribe'/>");
    world.send(ME, "<presence to='from@example.net' type='subscribed'/>");
    world.routed();
    world.receive("<presence from='from@example.net' to='me@example.org' type='probe'/>");
    assert_eq!(
        world.routed(),
        ["<presence from='me@example.org' to='from@example.net' type='unavailable'/>"],
        "it never was available"
    );
}

#[test]
fn s4_3_2_a_probe_to_a_resource_tells_no_details_and_of_no_other_resource() {
    let mut world = with_contacts();
    world.bind(ME);
    world.send(ME, "<presence id='mine'><show>dnd</show><status>secret</status></presence>");
    world.bind("me@example.org/connected-only");
    world.routed();
    for (resource, answer) in [
        ("r", "to='from@example.net' id='mine'/>"),
        ("connected-only", "to='from@example.net' type='unavailable' id='p'/>"),
        ("nobody", "to='from@example.net' type='unavailable' id='p'/>"),
    ] {
        world.receive(&format!(
            "<presence from='from@example.net' to='me@example.org/{resource}' type='probe' id='p'/>"
        ));
        assert_eq!(world.routed(), [format!("<presence from='me@example.org/{resource}' {answer}")]);
    }
}

#[test]
fn m4_probes_of_strangers_get_one_answer_whatever_there_is() {
    let refusal = |to: &str, prober: &str| {
        let to = to.split('/').next().unwrap();
        [format!("<presence from='{to}' to='{prober}' type='unsubscribed' id='p'/>")]
    };
    for prober in ["stranger@example.net", "stranger@example.net/r", "to@example.net", "none@example.net"] {
        for to in ["me@example.org", "me@example.org/r", "me@example.org/nobody"] {
            let probe = format!("<presence from='{prober}' to='{to}' type='probe' id='p'/>");
            let mut world = with_contacts();
            world.receive(&probe);
            assert_eq!(world.routed(), refusal(to, prober), "offline");
            world.bind(ME);
            world.receive(&probe);
            assert_eq!(world.routed(), refusal(to, prober), "connected");
            world.send(ME, "<presence id='secret'/>");
            world.routed();
            world.receive(&probe);
            assert_eq!(world.routed(), refusal(to, prober), "available");
        }
        // The router answers for accounts that do not exist.
        let probe =
            stanza(&format!("<presence from='{prober}' to='ghost@example.org/r' type='probe' id='p'/>"));
        let answer = refuse_probe(&probe).unwrap();
        assert_eq!([text(&answer)], refusal("ghost@example.org", prober));
    }
}

#[test]
fn the_account_itself_may_probe_its_resources() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, "<presence to='me@example.org' type='probe'/>");
    world.settle();
    assert_eq!(world.got(ME), ["<presence from='me@example.org/r' to='me@example.org/r'/>"]);
}

#[test]
fn s4_6_6_who_got_directed_presence_may_ask_whether_it_still_holds() {
    let mut world = World::new();
    world.bind(ME);
    world.send(ME, "<presence to='room@muc.example.net/nick'><show>dnd</show></presence>");
    world.send(ME, "<presence to='friend@example.net'/>");
    world.login("me@example.org/other");
    world.routed();
    let refused =
        |to: &str| format!("<presence from='me@example.org' to='{to}' type='unsubscribed' id='p'/>");
    let mere = |to: &str| format!("<presence from='{ME}' to='{to}'/>");
    for (prober, to, answer) in [
        ("room@muc.example.net/nick", ME, mere("room@muc.example.net/nick")),
        ("room@muc.example.net/nick", "me@example.org", mere("room@muc.example.net/nick")),
        ("room@muc.example.net/nick", "me@example.org/other", refused("room@muc.example.net/nick")),
        ("room@muc.example.net/else", ME, refused("room@muc.example.net/else")),
        ("room@muc.example.net", ME, refused("room@muc.example.net")),
        ("friend@example.net/any", ME, mere("friend@example.net/any")),
    ] {
        world.receive(&format!("<presence from='{prober}' to='{to}' type='probe' id='p'/>"));
        assert_eq!(world.routed(), [answer], "{prober} asks {to}");
    }
    world.send(ME, "<presence to='room@muc.example.net/nick' type='unavailable'/>");
    world.routed();
    world.receive("<presence from='room@muc.example.net/nick' to='me@example.org/r' type='probe' id='p'/>");
    assert_eq!(world.routed(), [refused("room@muc.example.net/nick")]);
}

#[test]
fn s4_3_1_within_a_domain_only_the_new_resource_hears_the_answer() {
    let mut world = World::new();
    world.login("juliet@example.org/balcony");
    world.login("romeo@example.org/a");
    world.send("romeo@example.org/a", "<presence to='juliet@example.org' type='subscribe'/>");
    world.settle();
    world.send("juliet@example.org/balcony", "<presence to='romeo@example.org' type='subscribed'/>");
    world.settle();
    world.got("romeo@example.org/a");
    world.bind("romeo@example.org/b");
    world.send("romeo@example.org/b", "<presence/>");
    world.settle();
    assert_eq!(
        world.got("romeo@example.org/b").last().unwrap(),
        "<presence from='juliet@example.org/balcony' to='romeo@example.org/b'/>"
    );
    assert_eq!(
        world.got("romeo@example.org/a"),
        ["<presence from='romeo@example.org/b' to='romeo@example.org'/>"]
    );
    // A subscription that the contact does not know of ends all the same.
    world.fail_next_commit();
    world.send("juliet@example.org/balcony", "<presence to='romeo@example.org' type='unsubscribed'/>");
    assert!(world.roster("juliet@example.org").1.contains("'from'"), "that failed");
    world.send("juliet@example.org/balcony", "<presence to='romeo@example.org' type='unsubscribed'/>");
    world.fail_next_commit();
    world.settle();
    assert!(world.roster("romeo@example.org").1.contains("'to'"), "romeo missed it");
    world.close("romeo@example.org/b");
    world.login("romeo@example.org/b");
    world.settle();
    assert!(world.roster("romeo@example.org").1.contains("'none'"));
}

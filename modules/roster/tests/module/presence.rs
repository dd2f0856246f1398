//! Presence: broadcasts, directed presence, delivery (RFC 6121 4, 8.5).

use waystation_core::account::{MAX_DIRECTED, Relation};
use waystation_roster::RosterConfig;

use crate::world::World;

const ME: &str = "me@example.org/r";

/// An account with contacts of every subscription state, none of whose sessions is bound yet.
pub(crate) fn with_contacts() -> World {
    with_contacts_and(RosterConfig::default())
}

fn with_contacts_and(config: RosterConfig) -> World {
    let mut world = World::with(config);
    world.login(ME);
    for contact in ["from", "both"] {
        world.receive(&format!(
            "<presence from='{contact}@example.net' to='me@example.org' type='subscribe'/>"
        ));
        world.send(ME, &format!("<presence to='{contact}@example.net' type='subscribed'/>"));
    }
    for contact in ["to", "both"] {
        world.send(ME, &format!("<presence to='{contact}@example.net' type='subscribe'/>"));
        world.receive(&format!(
            "<presence from='{contact}@example.net' to='me@example.org' type='subscribed'/>"
        ));
    }
    world.send(
        ME,
        "<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='none@example.net'/></query></iq>",
    );
    world.close(ME);
    world.reload("me@example.org");
    world.routed();
    world
}

#[test]
fn s4_2_2_initial_presence_goes_to_subscribers_and_own_resources_and_probes_to_subscriptions() {
    let mut world = with_contacts();
    world.login("me@example.org/other");
    world.bind("me@example.org/connected-only");
    world.bind(ME);
    world.routed();
    let presence = "<presence id='p' xml:lang='en'><show>away</show><x xmlns='urn:x'/></presence>";
    world.send(ME, presence);
    let sent = |to: &str| presence.replace("<presence", &format!("<presence from='{ME}' to='{to}'"));
    assert_eq!(
        world.routed(),
        [
            sent("both@example.net"),
            sent("from@example.net"),
            "<presence from='me@example.org' to='both@example.net' type='probe'/>".into(),
            "<presence from='me@example.org' to='to@example.net' type='probe'/>".into(),
        ]
    );
    assert_eq!(world.got("me@example.org/other"), [sent("me@example.org")]);
    assert_eq!(
        world.got(ME),
        [sent("me@example.org"), "<presence from='me@example.org/other' to='me@example.org'/>".into(),],
        "itself and the other available resource"
    );
    assert!(world.got("me@example.org/connected-only").is_empty());
}

#[test]
fn s4_4_2_an_update_is_broadcast_without_probes() {
    let mut world = with_contacts();
    world.login("me@example.org/other");
    world.login(ME);
    world.routed();
    world.got("me@example.org/other");
    world.send(ME, "<presence><show>dnd</show></presence>");
    let sent = |to: &str| format!("<presence from='{ME}' to='{to}'><show>dnd</show></presence>");
    assert_eq!(world.routed(), [sent("both@example.net"), sent("from@example.net")]);
    assert_eq!(world.got("me@example.org/other"), [sent("me@example.org")]);
    assert_eq!(world.got(ME), [sent("me@example.org")]);
}

#[test]
fn s4_5_2_unavailable_presence_is_broadcast_whole_and_a_new_presence_is_initial_again() {
    let mut world = with_contacts();
    world.login("me@example.org/other");
    world.login(ME);
    world.routed();
    world.got("me@example.org/other");
    world.send(ME, "<presence type='unavailable' id='u'><status>vacation</status></presence>");
    let sent = |to: &str| {
        format!(
            "<presence from='{ME}' to='{to}' type='unavailable' id='u'><status>vacation</status></presence>"
        )
    };
    assert_eq!(world.routed(), [sent("both@example.net"), sent("from@example.net")]);
    assert_eq!(world.got("me@example.org/other"), [sent("me@example.org")]);
    assert_eq!(world.got(ME), [sent("me@example.org")], "the resource that sent it as well");
    world.send(ME, "<presence type='unavailable'/>");
    assert!(world.routed().is_empty() && world.got(ME).is_empty(), "it was not available");
    world.close(ME);
    assert!(world.routed().is_empty(), "nobody is owed anything");
    world.bind(ME);
    world.send(ME, "<presence/>");
    assert_eq!(world.routed().iter().filter(|s| s.contains("probe")).count(), 2);
}

#[test]
fn s4_5_2_the_server_speaks_for_a_session_that_just_ends() {
    let mut world = with_contacts();
    world.login("me@example.org/other");
    world.login(ME);
    world.routed();
    world.got("me@example.org/other");
    world.close(ME);
    let sent = |to: &str| format!("<presence from='{ME}' to='{to}' type='unavailable'/>");
    assert_eq!(world.routed(), [sent("both@example.net"), sent("from@example.net")]);
    assert_eq!(world.got("me@example.org/other"), [sent("me@example.org")]);
    world.bind("me@example.org/connected-only");
    world.close("me@example.org/connected-only");
    assert!(world.routed().is_empty(), "it was never available");
}

#[test]
fn s4_7_2_3_priorities() {
    let mut world = World::new();
    world.login(ME);
    for (child, expected) in [
        ("", Some(0)),
        ("<priority>127</priority>", Some(127)),
        ("<status>x</status><priority> -128\n</priority>", Some(-128)),
        ("<priority xmlns='urn:x'>5</priority>", Some(0)),
        ("<priority>128</priority>", None),
        ("<priority>-129</priority>", None),
        ("<priority>1.5</priority>", None),
        ("<priority></priority>", None),
        ("<priority>1</priority><priority>1</priority>", None),
        ("<priority>1<x xmlns='urn:x'/></priority>", None),
    ] {
        world.send(ME, "<presence><priority>9</priority></presence>");
        world.got(ME);
        world.send(ME, &format!("<presence id='p'>{child}</presence>"));
        let got = world.got(ME);
        assert_eq!(got.len(), 1);
        match expected {
            Some(priority) => assert_eq!(world.session(ME).priority, priority, "{child}"),
            None => {
                let start =
                    "<presence to='me@example.org/r' type='error' id='p'><error type='modify'><bad-request";
                assert!(got[0].starts_with(start), "{child}: {got:?}");
                assert_eq!(world.session(ME).priority, 9, "{child}: as before");
            }
        }
    }
    world.send(ME, "<presence type='unavailable'/>");
    assert_eq!(world.session(ME).priority, 0);
}

#[test]
fn m4_presence_that_is_too_long_is_not_broadcast() {
    let limit = "<presence from='me@example.org/r'><status></status></presence>".len() + 100;
    let mut world = with_contacts_and(RosterConfig { max_presence_bytes: limit, ..RosterConfig::default() });
    world.login(ME);
    world.routed();
    let of = |n: usize| format!("<presence><status>{}</status></presence>", "x".repeat(n));
    world.send(ME, &of(101));
    let got = world.got(ME);
    assert!(got.len() == 1 && got[0].contains("<policy-violation"), "{got:?}");
    assert!(world.routed().is_empty());
    assert_eq!(world.session(ME).presence.as_ref().unwrap().child(), None, "the earlier presence stays");
    world.send(ME, &of(100));
    assert_eq!(world.routed().len(), 2);
}

#[test]
fn m4_no_presence_reaches_who_was_unsubscribed() {
    for end in [
        "<presence to='both@example.net' type='unsubscribed'/>",
        "<iq type='set' id='s'><query xmlns='jabber:iq:roster'>\
         <item jid='both@example.net' subscription='remove'/></query></iq>",
    ] {
        let mut world = with_contacts();
        world.login(ME);
        world.send(ME, end);
        world.routed();
        world.send(ME, "<presence><show>away</show></presence>");
        world.receive("<presence from='both@example.net' to='me@example.org' type='probe'/>");
        world.close(ME);
        let leaked: Vec<_> = world
            .routed()
            .into_iter()
            .filter(|s| s.contains("to='both@") && !s.contains("type='unsubscribed'"))
            .collect();
        assert!(leaked.is_empty(), "{leaked:?}");
        assert_eq!(world.relation("me@example.org", "both@example.net"), Relation::Stranger);
    }
}

#[test]
fn s4_3_probes_and_errors_of_clients_are_routed_or_dropped_never_refused() {
    let mut world = World::new();
    world.bind(ME);
    for kind in ["probe", "error"] {
        world.send(ME, &format!("<presence to='x@example.net' type='{kind}'/>"));
        assert_eq!(world.routed(), [format!("<presence from='{ME}' to='x@example.net' type='{kind}'/>")]);
        world.send(ME, &format!("<presence type='{kind}'/>"));
        assert!(world.routed().is_empty());
    }
    assert!(world.got(ME).is_empty());
}

#[test]
fn s4_6_3_case_1_to_a_subscriber_nothing_is_remembered() {
    let mut world = with_contacts();
    world.login(ME);
    world.routed();
    for to in ["from@example.net", "from@example.net/res", "me@example.org"] {
        world.send(ME, &format!("<presence to='{to}'><show>chat</show></presence>"));
        assert_eq!(world.routed(), [format!("<presence from='{ME}' to='{to}'><show>chat</show></presence>")]);
    }
    assert!(world.session(ME).directed.is_empty());
    world.send(ME, "<presence to='from@example.net' type='unavailable'/>");
    world.routed();
    world.send(ME, "<presence/>");
    assert_eq!(world.routed().len(), 2, "broadcasts still reach it");
}

#[test]
fn s4_6_3_case_2_others_hear_of_the_end_but_of_no_broadcast() {
    let room = "room@muc.example.net/nick";
    for how in ["unavailable", "close"] {
        let mut world = with_contacts();
        world.login(ME);
        world.send(ME, &format!("<presence to='{room}'/>"));
        world.routed();
        world.send(ME, "<presence><show>away</show></presence>");
        assert!(!world.routed().iter().any(|s| s.contains(room)));
        let expected = match how {
            "close" => {
                world.close(ME);
                format!("<presence from='{ME}' to='{room}' type='unavailable'/>")
            }
            _ => {
                world.send(ME, "<presence type='unavailable'><status>bye</status></presence>");
                format!(
                    "<presence from='{ME}' to='{room}' type='unavailable'><status>bye</status></presence>"
                )
            }
        };
        let routed = world.routed();
        assert_eq!(routed.len(), 3, "two subscribers and the room: {routed:?}");
        assert_eq!(routed[2], expected);
        if how == "unavailable" {
            world.close(ME);
            assert!(world.routed().is_empty(), "once is enough");
        }
    }
}

#[test]
fn s4_6_3_case_3_without_initial_presence_subscribers_are_owed_the_end_too() {
    let mut world = with_contacts();
    world.bind(ME);
    world.send(ME, "<presence to='from@example.net'/>");
    world.send(ME, "<presence to='stranger@example.net'/>");
    world.routed();
    world.close(ME);
    assert_eq!(
        world.routed(),
        [
            "<presence from='me@example.org/r' to='from@example.net' type='unavailable'/>",
            "<presence from='me@example.org/r' to='stranger@example.net' type='unavailable'/>",
        ]
    );
    // Once it is available the broadcast tells the subscriber, and only once.
    world.bind(ME);
    world.send(ME, "<presence to='from@example.net'/>");
    world.send(ME, "<presence/>");
    world.routed();
    world.close(ME);
    assert_eq!(world.routed().iter().filter(|s| s.contains("to='from@example.net'")).count(), 1);
}

#[test]
fn s4_6_3_who_was_told_or_told_us_is_owed_nothing() {
    for (end, from_us) in [
        ("<presence to='x@example.net/a' type='unavailable'/>", true),
        ("<presence to='x@example.net' type='unavailable'/>", true),
        ("<presence from='x@example.net/a' to='me@example.org/r' type='unavailable'/>", false),
        ("<presence from='x@example.net/a' to='me@example.org' type='unavailable'/>", false),
        ("<presence from='x@example.net' to='me@example.org' type='unavailable'/>", false),
    ] {
        let mut world = World::new();
        world.bind(ME);
        world.send(ME, "<presence to='x@example.net/a'/>");
        world.send(ME, "<presence to='y@example.net'/>");
        if from_us {
            world.send(ME, end)
        } else {
            world.receive(end)
        }
        world.routed();
        world.close(ME);
        assert_eq!(
            world.routed(),
            ["<presence from='me@example.org/r' to='y@example.net' type='unavailable'/>"],
            "{end}"
        );
    }
    let mut world = World::new();
    world.bind(ME);
    world.bind("me@example.org/other");
    world.send(ME, "<presence to='x@example.net/a'/>");
    world.receive("<presence from='x@example.net/a' to='me@example.org/other' type='unavailable'/>");
    world.receive("<presence from='x@example.net/b' to='me@example.org/r' type='unavailable'/>");
    assert_eq!(world.session(ME).directed.len(), 1, "neither was about that presence");
}

#[test]
fn m4_directed_presence_to_too_many_is_refused() {
    let mut world = World::new();
    world.bind(ME);
    for i in 0..MAX_DIRECTED {
        world.send(ME, &format!("<presence to='c{i}@example.net'/>"));
    }
    assert_eq!(world.routed().len(), MAX_DIRECTED);
    world.send(ME, "<presence to='c0@example.net' id='again'/>");
    assert_eq!(world.routed().len(), 1, "to one of them more is allowed");
    assert!(world.got(ME).is_empty());
    world.send(ME, "<presence to='more@example.net' id='d'/>");
    assert!(world.routed().is_empty(), "it could not be told of the end");
    let got = world.got(ME);
    assert!(
        got.len() == 1
            && got[0]
                .starts_with("<presence from='more@example.net' to='me@example.org/r' type='error' id='d'>")
            && got[0].contains("<error type='wait'><resource-constraint"),
        "{got:?}"
    );
    world.send(ME, "<presence to='c0@example.net' type='unavailable'/>");
    world.send(ME, "<presence to='more@example.net'/>");
    assert_eq!(world.routed().len(), 2);
}

#[test]
fn s8_5_presence_reaches_all_available_resources_or_the_one_it_is_for() {
    let mut world = World::new();
    world.login("me@example.org/a");
    world.login("me@example.org/b");
    world.bind("me@example.org/connected-only");
    world.got("me@example.org/a");
    for kind in ["", " type='unavailable'", " type='error'"] {
        for (to, expected) in [
            ("me@example.org", [true, true, false]),
            ("me@example.org/a", [true, false, false]),
            ("me@example.org/connected-only", [false, false, true]),
            ("me@example.org/nobody", [false, false, false]),
        ] {
            let stanza = format!(
                "<presence from='stranger@example.net/x' to='{to}'{kind} id='i'><status>s</status></presence>"
            );
            world.receive(&stanza);
            let sessions = ["me@example.org/a", "me@example.org/b", "me@example.org/connected-only"];
            assert_eq!(sessions.map(|full| world.got(full) == [stanza.clone()]), expected, "{stanza}");
        }
    }
    assert!(world.routed().is_empty(), "nothing is ever answered");
}

#[test]
fn a_presence_change_during_a_subscription_reaches_the_new_subscriber() {
    let mut world = World::new();
    world.login("juliet@example.org/balcony");
    world.login("romeo@example.org/orchard");
    world.send("romeo@example.org/orchard", "<presence to='juliet@example.org' type='subscribe'/>");
    world.settle();
    world.send("juliet@example.org/balcony", "<presence to='romeo@example.org' type='subscribed'/>");
    world.send("juliet@example.org/balcony", "<presence><show>away</show></presence>");
    world.got("romeo@example.org/orchard");
    world.settle();
    let presence: Vec<_> = world
        .got("romeo@example.org/orchard")
        .into_iter()
        .filter(|s| s.starts_with("<presence from='juliet@example.org/balcony'"))
        .collect();
    assert_eq!(
        presence,
        [
            "<presence from='juliet@example.org/balcony' to='romeo@example.org'/>",
            "<presence from='juliet@example.org/balcony' to='romeo@example.org'><show>away</show></presence>",
        ]
    );
}

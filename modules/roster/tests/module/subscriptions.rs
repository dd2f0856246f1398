//! Subscription stanzas (RFC 6121 3): who hears what, and in which order.

use waystation_core::account::Relation;

use crate::appendix_a::{ME, OTHER, in_state, state_of, step};
use crate::world::World;

#[test]
fn s3_1_2_a_request_leaves_from_bare_to_bare_jid_before_the_push() {
    let mut world = World::new();
    world.login(ME);
    world.login("me@example.org/second");
    world.bind("me@example.org/connected-only");
    world.got(ME);
    world.send(ME, "<presence to='other@example.net/res' type='subscribe' id='xk3h1v69'/>");
    assert_eq!(
        world.routed(),
        ["<presence from='me@example.org' to='other@example.net' type='subscribe' id='xk3h1v69'/>"]
    );
    for interested in [ME, "me@example.org/second"] {
        let version = world.roster("me@example.org").0;
        assert_eq!(
            world.got(interested),
            [format!(
                "<iq from='me@example.org' to='{interested}' type='set' id='*'>\
                 <query xmlns='jabber:iq:roster' ver='{version}'>\
                 <item jid='other@example.net' subscription='none' ask='subscribe'/></query></iq>"
            )]
        );
    }
    assert!(world.got("me@example.org/connected-only").is_empty(), "it never asked for the roster");
}

#[test]
fn s3_1_2_unanswered_requests_are_sent_again_with_the_first_resource_only() {
    let mut world = in_state("None + Pending Out");
    world.bind("me@example.org/second");
    world.send("me@example.org/second", "<presence/>");
    assert!(world.routed().is_empty(), "another resource is available");
    world.close("me@example.org/second");
    world.send(ME, "<presence type='unavailable'/>");
    world.send(ME, "<presence/>");
    assert_eq!(
        world.routed(),
        ["<presence from='me@example.org' to='other@example.net' type='subscribe' id='*'/>"]
    );
}

#[test]
fn s3_1_3_a_request_waits_whole_and_reaches_every_new_resource_until_it_is_answered() {
    let mut world = World::new();
    let request = "<presence from='other@example.net' to='me@example.org' type='subscribe' id='q' \
                   xml:lang='de'><status>Hallo &amp; so</status><x xmlns='urn:x' a='1'/></presence>";
    world.receive(
        &request
            .replace("other@example.net", "other@example.net/res")
            .replace("me@example.org", "me@example.org/no-such-resource"),
    );
    world.receive(&request.replace("Hallo", "Zweite"));
    assert_eq!(world.stored_roster("me@example.org"), "", "no item before the approval");

    for resource in ["a", "b"] {
        let full = format!("me@example.org/{resource}");
        world.bind(&full);
        world.send(&full, "<presence><priority>-1</priority></presence>");
        let requests: Vec<_> = world.got(&full).into_iter().filter(|s| s.contains("subscribe")).collect();
        assert_eq!(requests, [request], "the first of the two, to {resource}");
        world.send(&full, "<presence><show>away</show></presence>");
        assert!(!world.got(&full).iter().any(|s| s.contains("subscribe")), "once for a session");
        world.reload("me@example.org");
    }
    world.send("me@example.org/a", "<presence to='other@example.net' type='unsubscribed'/>");
    world.bind("me@example.org/c");
    world.send("me@example.org/c", "<presence/>");
    assert!(!world.got("me@example.org/c").iter().any(|s| s.contains("subscribe")));
}

#[test]
fn s3_1_3_requests_go_to_available_resources_all_else_to_interested_ones() {
    let (available, interested) = ("me@example.org/available", "me@example.org/interested");
    let mut world = World::new();
    world.bind(available);
    world.send(available, "<presence/>");
    world.bind(interested);
    world.send(interested, "<iq type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>");
    world.got(available);
    world.got(interested);
    step(&mut world, "<subscribe");
    assert_eq!(
        world.got(available),
        ["<presence from='other@example.net' to='me@example.org' type='subscribe' id='r'/>"]
    );
    assert!(world.got(interested).is_empty());
    world.send(available, "<presence to='other@example.net' type='subscribed'/>");
    world.send(available, "<presence to='other@example.net' type='subscribe'/>");
    for (kind, after) in [("subscribed", "both"), ("unsubscribe", "to"), ("unsubscribed", "none")] {
        world.got(interested);
        step(&mut world, &format!("<{kind}"));
        let got = world.got(interested);
        let notice = format!("<presence from='other@example.net' to='me@example.org' type='{kind}' id='r'/>");
        assert_eq!(got[0], notice);
        assert!(got[1].contains(&format!("subscription='{after}'")), "{got:?}");
        assert!(world.got(available).is_empty(), "{kind}");
    }
}

#[test]
fn s3_1_3_a_subscriber_that_asks_again_gets_the_presence_as_well() {
    let mut world = in_state("From");
    step(&mut world, "<subscribe");
    assert_eq!(
        world.routed(),
        [
            "<presence from='me@example.org' to='other@example.net' type='subscribed' id='r'/>",
            "<presence from='me@example.org/r' to='other@example.net'/>",
        ]
    );
    assert!(world.got(ME).is_empty());
}

#[test]
fn s3_1_5_an_approval_is_followed_by_the_presence_of_every_available_resource() {
    let mut world = in_state("None + Pending In");
    world.bind("me@example.org/connected-only");
    world.bind("me@example.org/second");
    world.send("me@example.org/second", "<presence id='p2'><show>away</show></presence>");
    world.routed();
    world.send(ME, "<presence to='other@example.net' type='subscribed' id='h4v1c4kj'/>");
    assert_eq!(
        world.routed(),
        [
            "<presence from='me@example.org' to='other@example.net' type='subscribed' id='h4v1c4kj'/>",
            "<presence from='me@example.org/r' to='other@example.net'/>",
            "<presence from='me@example.org/second' to='other@example.net' id='p2'><show>away</show></presence>",
        ]
    );
    assert_eq!(world.relation("me@example.org", "other@example.net/any"), Relation::Subscriber);
}

#[test]
fn s3_1_6_and_3_2_3_the_notice_comes_before_the_push_to_interested_resources() {
    for (state, kind, after) in [
        ("None + Pending Out", "subscribed", "to"),
        ("From + Pending Out", "subscribed", "both"),
        ("To", "unsubscribed", "none"),
        ("Both", "unsubscribed", "from"),
        ("From", "unsubscribe", "none"),
        ("Both", "unsubscribe", "to"),
    ] {
        let mut world = in_state(state);
        step(&mut world, &format!("<{kind}"));
        let got = world.got(ME);
        assert_eq!(got.len(), 2, "{kind} in {state}: {got:?}");
        assert!(got[0].starts_with("<presence"), "{got:?}");
        assert!(
            got[1].contains(&format!("<item jid='other@example.net' subscription='{after}'/>")),
            "{got:?}"
        );
    }
}

#[test]
fn s3_2_2_a_cancelled_subscriber_hears_unavailable_presence_first() {
    let mut world = in_state("Both");
    world.bind("me@example.org/second");
    world.send("me@example.org/second", "<presence/>");
    // Not available, but it showed itself to one of the contact's resources.
    world.bind("me@example.org/directed");
    world.send("me@example.org/directed", "<presence to='other@example.net/x'/>");
    world.bind("me@example.org/connected-only");
    world.routed();
    world.send(ME, "<presence to='other@example.net' type='unsubscribed' id='u'/>");
    assert_eq!(
        world.routed(),
        [
            "<presence from='me@example.org/r' to='other@example.net' type='unavailable'/>",
            "<presence from='me@example.org/second' to='other@example.net' type='unavailable'/>",
            "<presence from='me@example.org/directed' to='other@example.net' type='unavailable'/>",
            "<presence from='me@example.org' to='other@example.net' type='unsubscribed' id='u'/>",
        ]
    );
    // 4.6.1: the directed presence ended with the subscription.
    world.close("me@example.org/directed");
    assert!(world.routed().is_empty());
}

#[test]
fn s3_2_2_who_was_refused_hears_no_presence() {
    for state in ["None + Pending In", "None + Pending Out+In", "To + Pending In"] {
        let mut world = in_state(state);
        step(&mut world, ">unsubscribed");
        assert_eq!(
            world.routed(),
            ["<presence from='me@example.org' to='other@example.net' type='unsubscribed' id='s'/>"],
            "{state}"
        );
    }
}

#[test]
fn s3_3_3_who_unsubscribes_hears_unavailable_presence_and_unsubscribed() {
    let mut world = in_state("From");
    world.login("me@example.org/second");
    world.routed();
    step(&mut world, "<unsubscribe");
    assert_eq!(
        world.routed(),
        [
            "<presence from='me@example.org/r' to='other@example.net' type='unavailable'/>",
            "<presence from='me@example.org/second' to='other@example.net' type='unavailable'/>",
            "<presence from='me@example.org' to='other@example.net' type='unsubscribed' id='r'/>",
        ]
    );
    assert_eq!(world.relation("me@example.org", OTHER), Relation::Stranger);
}

#[test]
fn s3_4_2_pre_approval_is_pushed_not_routed_and_answers_the_request() {
    for (state, after) in [("None", "from"), ("None + Pending Out", "from"), ("To", "both")] {
        let mut world = in_state(state);
        step(&mut world, ">subscribed");
        assert!(world.routed().is_empty(), "{state}");
        let got = world.got(ME);
        assert_eq!(got.len(), 1);
        assert!(got[0].contains(" approved='true'"), "{got:?}");
        step(&mut world, ">subscribed");
        assert!(world.got(ME).is_empty(), "approved already");

        world.reload("me@example.org");
        step(&mut world, "<subscribe");
        assert_eq!(
            world.routed(),
            [
                "<presence from='me@example.org' to='other@example.net' type='subscribed' id='r'/>",
                "<presence from='me@example.org/r' to='other@example.net'/>",
            ],
            "{state}"
        );
        let got = world.got(ME);
        assert_eq!(got.len(), 1, "the request is not delivered: {got:?}");
        assert!(got[0].contains(&format!("subscription='{after}'")), "{got:?}");
        assert!(got[0].contains("approved='true'"), "kept until unsubscribed");
    }
}

#[test]
fn s3_4_2_unsubscribed_takes_the_pre_approval_back_without_a_word_to_the_contact() {
    let mut world = in_state("None");
    step(&mut world, ">subscribed");
    world.got(ME);
    step(&mut world, ">unsubscribed");
    assert!(world.routed().is_empty());
    let got = world.got(ME);
    assert!(got.len() == 1 && !got[0].contains("approved"), "{got:?}");
    step(&mut world, "<subscribe");
    assert_eq!(state_of(&mut world), "None + Pending In");
}

#[test]
fn s3_4_2_an_approval_that_was_used_is_taken_back_with_the_subscription() {
    let mut world = in_state("None");
    step(&mut world, ">subscribed");
    step(&mut world, "<subscribe");
    step(&mut world, ">unsubscribed");
    step(&mut world, "<subscribe");
    assert_eq!(state_of(&mut world), "None + Pending In");
}

#[test]
fn m4_a_probe_by_a_pre_approved_contact_leaves_the_approval() {
    let mut world = in_state("None");
    step(&mut world, ">subscribed");
    world.receive("<presence from='other@example.net' to='me@example.org' type='probe' id='p'/>");
    assert_eq!(
        world.routed(),
        ["<presence from='me@example.org' to='other@example.net' type='unsubscribed' id='p'/>"]
    );
    step(&mut world, "<subscribe");
    assert_eq!(state_of(&mut world), "From");
}

#[test]
fn s8_5_3_2_2_to_a_resource_that_is_not_there_only_requests_count() {
    for (state, kind) in
        [("None + Pending Out", "subscribed"), ("Both", "unsubscribe"), ("Both", "unsubscribed")]
    {
        let mut world = in_state(state);
        let to =
            |resource| format!("<presence from='{OTHER}' to='me@example.org/{resource}' type='{kind}'/>");
        world.receive(&to("nobody"));
        assert_eq!(state_of(&mut world), state);
        assert!(world.got(ME).is_empty() && world.routed().is_empty());
        world.receive(&to("r"));
        assert_ne!(state_of(&mut world), state, "to a connected resource it counts as to the account");
    }
    let mut world = in_state("None");
    world.receive("<presence from='other@example.net/x' to='me@example.org/nobody' type='subscribe'/>");
    assert_eq!(world.got(ME), ["<presence from='other@example.net' to='me@example.org' type='subscribe'/>"]);
}

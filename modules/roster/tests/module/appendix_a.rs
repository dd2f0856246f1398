//! Every cell of RFC 6121 Appendix A, through the seam that the route uses.

use crate::world::World;

pub(crate) const ME: &str = "me@example.org/r";
pub(crate) const OTHER: &str = "other@example.net";

/// How to get into each of the nine states of A.1: `>` is sent by the account, `<` is received.
pub(crate) const STATES: [(&str, &[&str]); 9] = [
    ("None", &[]),
    ("None + Pending Out", &[">subscribe"]),
    ("None + Pending In", &["<subscribe"]),
    ("None + Pending Out+In", &[">subscribe", "<subscribe"]),
    ("To", &[">subscribe", "<subscribed"]),
    ("To + Pending In", &[">subscribe", "<subscribed", "<subscribe"]),
    ("From", &["<subscribe", ">subscribed"]),
    ("From + Pending Out", &["<subscribe", ">subscribed", ">subscribe"]),
    ("Both", &["<subscribe", ">subscribed", ">subscribe", "<subscribed"]),
];

pub(crate) fn step(world: &mut World, step: &str) {
    match step.split_at(1) {
        (">", kind) => world.send(ME, &format!("<presence to='{OTHER}' type='{kind}' id='s'/>")),
        (_, kind) => {
            world.receive(&format!("<presence from='{OTHER}' to='me@example.org' type='{kind}' id='r'/>"));
        }
    }
}

/// A world in which `ME` is available and interested, in the given state with `OTHER`.
pub(crate) fn in_state(name: &str) -> World {
    let mut world = World::new();
    world.login(ME);
    let (_, steps) = STATES.iter().find(|(state, _)| *state == name).unwrap();
    steps.iter().for_each(|s| step(&mut world, s));
    world.routed();
    world.got(ME);
    assert_eq!(state_of(&mut world), name);
    world
}

/// The state, as it can be seen: the item, and whether a new resource is told of a request.
pub(crate) fn state_of(world: &mut World) -> String {
    let (_, items) = world.roster("me@example.org");
    let base = match items.split("subscription='").nth(1).and_then(|rest| rest.split('\'').next()) {
        None | Some("none") => "None",
        Some("to") => "To",
        Some("from") => "From",
        Some("both") => "Both",
        Some(other) => panic!("subscription is {other}"),
    };
    assert_eq!(world.stored_roster("me@example.org"), items);
    let request = format!("<presence from='{OTHER}' to='me@example.org' type='subscribe'");
    let greeting = world.stored_greeting("me@example.org");
    let pending_in = greeting.iter().any(|stanza| stanza.starts_with(&request));
    match (items.contains("ask='subscribe'"), pending_in) {
        (false, false) => base.to_owned(),
        (true, false) => format!("{base} + Pending Out"),
        (false, true) => format!("{base} + Pending In"),
        (true, true) => format!("{base} + Pending Out+In"),
    }
}

/// Tables 2 to 5: existing state, routed, new state.
fn outbound_table(kind: &str, rows: [(&str, bool, &str); 9]) {
    for (before, route, after) in rows {
        let mut world = in_state(before);
        step(&mut world, &format!(">{kind}"));
        let routed = world.routed();
        let expected =
            format!("<presence from='me@example.org' to='other@example.net' type='{kind}' id='s'/>");
        assert_eq!(routed.contains(&expected), route, "{kind} in {before}: {routed:?}");
        assert_eq!(state_of(&mut world), after, "{kind} in {before}");
    }
}

/// Tables 6 to 9: existing state, delivered, new state, automatic reply.
fn inbound_table(kind: &str, rows: [(&str, bool, &str, Option<&str>); 9]) {
    for (before, deliver, after, reply) in rows {
        let mut world = in_state(before);
        step(&mut world, &format!("<{kind}"));
        let expected =
            format!("<presence from='other@example.net' to='me@example.org' type='{kind}' id='r'/>");
        let got = world.got(ME);
        assert_eq!(got.contains(&expected), deliver, "{kind} in {before}: {got:?}");
        let routed = world.routed();
        let replies: Vec<_> = routed.iter().filter(|s| s.contains("subscribe")).map(String::as_str).collect();
        let expected = reply.map(|reply| {
            format!("<presence from='me@example.org' to='other@example.net' type='{reply}' id='r'/>")
        });
        assert_eq!(replies, expected.as_deref().into_iter().collect::<Vec<_>>(), "{kind} in {before}");
        assert_eq!(state_of(&mut world), after, "{kind} in {before}");
    }
}

#[test]
fn a_2_1_outbound_subscribe() {
    outbound_table(
        "subscribe",
        [
            ("None", true, "None + Pending Out"),
            ("None + Pending Out", true, "None + Pending Out"),
            ("None + Pending In", true, "None + Pending Out+In"),
            ("None + Pending Out+In", true, "None + Pending Out+In"),
            ("To", true, "To"),
            ("To + Pending In", true, "To + Pending In"),
            ("From", true, "From + Pending Out"),
            ("From + Pending Out", true, "From + Pending Out"),
            ("Both", true, "Both"),
        ],
    );
}

#[test]
fn a_2_2_outbound_unsubscribe() {
    outbound_table(
        "unsubscribe",
        [
            ("None", true, "None"),
            ("None + Pending Out", true, "None"),
            ("None + Pending In", true, "None + Pending In"),
            ("None + Pending Out+In", true, "None + Pending In"),
            ("To", true, "None"),
            ("To + Pending In", true, "None + Pending In"),
            ("From", true, "From"),
            ("From + Pending Out", true, "From"),
            ("Both", true, "From"),
        ],
    );
}

#[test]
fn a_2_3_outbound_subscribed() {
    outbound_table(
        "subscribed",
        [
            ("None", false, "None"),
            ("None + Pending Out", false, "None + Pending Out"),
            ("None + Pending In", true, "From"),
            ("None + Pending Out+In", true, "From + Pending Out"),
            ("To", false, "To"),
            ("To + Pending In", true, "Both"),
            ("From", false, "From"),
            ("From + Pending Out", false, "From + Pending Out"),
            ("Both", false, "Both"),
        ],
    );
}

#[test]
fn a_2_4_outbound_unsubscribed() {
    outbound_table(
        "unsubscribed",
        [
            ("None", false, "None"),
            ("None + Pending Out", false, "None + Pending Out"),
            ("None + Pending In", true, "None"),
            ("None + Pending Out+In", true, "None + Pending Out"),
            ("To", false, "To"),
            ("To + Pending In", true, "To"),
            ("From", true, "None"),
            ("From + Pending Out", true, "None + Pending Out"),
            ("Both", true, "To"),
        ],
    );
}

#[test]
fn a_3_1_inbound_subscribe() {
    let auto = Some("subscribed");
    inbound_table(
        "subscribe",
        [
            ("None", true, "None + Pending In", None),
            ("None + Pending Out", true, "None + Pending Out+In", None),
            ("None + Pending In", false, "None + Pending In", None),
            ("None + Pending Out+In", false, "None + Pending Out+In", None),
            ("To", true, "To + Pending In", None),
            ("To + Pending In", false, "To + Pending In", None),
            ("From", false, "From", auto),
            ("From + Pending Out", false, "From + Pending Out", auto),
            ("Both", false, "Both", auto),
        ],
    );
}

#[test]
fn a_3_2_inbound_unsubscribe() {
    let auto = Some("unsubscribed");
    inbound_table(
        "unsubscribe",
        [
            ("None", false, "None", None),
            ("None + Pending Out", false, "None + Pending Out", None),
            ("None + Pending In", true, "None", auto),
            ("None + Pending Out+In", true, "None + Pending Out", auto),
            ("To", false, "To", None),
            ("To + Pending In", true, "To", auto),
            ("From", true, "None", auto),
            ("From + Pending Out", true, "None + Pending Out", auto),
            ("Both", true, "To", auto),
        ],
    );
}

#[test]
fn a_3_3_inbound_subscribed() {
    inbound_table(
        "subscribed",
        [
            ("None", false, "None", None),
            ("None + Pending Out", true, "To", None),
            ("None + Pending In", false, "None + Pending In", None),
            ("None + Pending Out+In", true, "To + Pending In", None),
            ("To", false, "To", None),
            ("To + Pending In", false, "To + Pending In", None),
            ("From", false, "From", None),
            ("From + Pending Out", true, "Both", None),
            ("Both", false, "Both", None),
        ],
    );
}

#[test]
fn a_3_4_inbound_unsubscribed() {
    inbound_table(
        "unsubscribed",
        [
            ("None", false, "None", None),
            ("None + Pending Out", true, "None", None),
            ("None + Pending In", false, "None + Pending In", None),
            ("None + Pending Out+In", true, "None + Pending In", None),
            ("To", true, "None", None),
            ("To + Pending In", true, "None + Pending In", None),
            ("From", false, "From", None),
            ("From + Pending Out", true, "From", None),
            ("Both", true, "From", None),
        ],
    );
}

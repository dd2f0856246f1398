//! What is refused, limited or lost: addresses, full rosters, too many requests, failing stores,
//! damaged rows, and the removal of the account.

use waystation_core::account::Relation;
use waystation_core::storage::{Space, key};
use waystation_roster::RosterConfig;

use crate::appendix_a::{ME, OTHER, STATES, in_state, state_of, step};
use crate::world::{World, jid, now};

#[test]
fn subscription_stanzas_to_oneself_or_to_nobody_are_refused() {
    let mut world = in_state("None");
    for kind in ["subscribe", "subscribed", "unsubscribe", "unsubscribed"] {
        for (to, condition) in [
            ("to='me@example.org'", "not-allowed"),
            ("to='me@example.org/r'", "not-allowed"),
            ("", "bad-request"),
        ] {
            world.send(ME, &format!("<presence {to} type='{kind}' id='e'/>"));
            let got = world.got(ME);
            assert_eq!(got.len(), 1);
            assert!(got[0].contains("type='error'") && got[0].contains(condition), "{got:?}");
        }
    }
    assert!(world.routed().is_empty());
    assert_eq!(world.stored_roster("me@example.org"), "");
}

#[test]
fn a_full_roster_takes_no_new_contact_by_presence_either() {
    let mut world = World::with(RosterConfig { max_items: 1, ..RosterConfig::default() });
    world.login(ME);
    world.send(ME, "<presence to='first@example.net' type='subscribe'/>");
    step(&mut world, "<subscribe");
    world.routed();
    world.got(ME);
    for kind in ["subscribe", "subscribed"] {
        world.send(ME, &format!("<presence to='other@example.net' type='{kind}' id='e'/>"));
        assert!(world.routed().is_empty());
        let got = world.got(ME);
        assert_eq!(got.len(), 1, "{got:?}");
        assert!(
            got[0]
                .starts_with("<presence from='other@example.net' to='me@example.org/r' type='error' id='e'>")
                && got[0].contains("<policy-violation"),
            "{got:?}"
        );
    }
    // What needs no new item still works.
    world.send(ME, "<presence to='first@example.net' type='subscribed'/>");
    world.send(ME, "<presence to='other@example.net' type='unsubscribed'/>");
    assert_eq!(
        world.stored_roster("me@example.org"),
        "<item jid='first@example.net' subscription='none' ask='subscribe' approved='true'/>"
    );
}

#[test]
fn m4_requests_over_the_limit_are_ignored_and_come_in_once_there_is_room() {
    let mut world = World::with(RosterConfig { max_requests: 2, ..RosterConfig::default() });
    world.login(ME);
    let ask = |world: &mut World, from: &str| {
        world.receive(&format!("<presence from='{from}@example.net' to='me@example.org' type='subscribe'/>"));
        world.got(ME).len()
    };
    assert_eq!([ask(&mut world, "a"), ask(&mut world, "b"), ask(&mut world, "c")], [1, 1, 0]);
    assert!(world.routed().is_empty(), "as for an account that does not exist");
    world.reload("me@example.org");
    assert_eq!(ask(&mut world, "c"), 0, "the limit counts stored requests");
    world.send(ME, "<presence to='a@example.net' type='unsubscribed'/>");
    assert_eq!(ask(&mut world, "c"), 1);
}

#[test]
fn m4_a_long_request_keeps_the_start_of_its_status() {
    let mut world = World::with(RosterConfig { max_request_bytes: 2_000, ..RosterConfig::default() });
    world.login(ME);
    let status = "ä".repeat(1_500);
    let id = "i".repeat(200);
    world.receive(&format!(
        "<presence from='other@example.net' to='me@example.org' type='subscribe' id='{id}'>\
         <x xmlns='urn:x'/><status>{status}</status></presence>"
    ));
    let kept = format!(
        "<presence from='other@example.net' to='me@example.org' type='subscribe'><status>{}</status></presence>",
        "ä".repeat(512)
    );
    assert_eq!(world.got(ME), std::slice::from_ref(&kept));
    world.reload("me@example.org");
    world.bind("me@example.org/b");
    world.send("me@example.org/b", "<presence/>");
    assert!(world.got("me@example.org/b").contains(&kept));
}

#[test]
fn m4_requests_are_kept_whole_up_to_the_limit_and_bare_once_the_sum_is_reached() {
    let empty = "<presence from='other@example.net' to='me@example.org' type='subscribe'><status></status></presence>";
    let request = |from: char| {
        empty.replace("other", &format!("othe{from}")).replace("></s", &format!(">{}</s", "x".repeat(100)))
    };
    let limit = request('a').len();
    let config =
        RosterConfig { max_request_bytes: limit, max_requests_bytes: 2 * limit + 10, ..Default::default() };
    let mut world = World::with(config);
    world.login(ME);
    world.receive(&request('a'));
    world.receive(&request('b'));
    assert_eq!(world.got(ME), [request('a'), request('b')], "whole at the limit");
    world.receive(&request('c'));
    world.receive(&request('d'));
    let cut = |from: char, status: &str| {
        format!("<presence from='othe{from}@example.net' to='me@example.org' type='subscribe'{status}")
    };
    assert_eq!(
        world.got(ME),
        [cut('c', &format!("><status>{}</status></presence>", "x".repeat(10))), cut('d', "/>"),]
    );
}

#[test]
fn a_failed_commit_changes_nothing_and_is_told() {
    let mut world = in_state("None + Pending In");
    world.fail_next_commit();
    world.send(ME, "<presence to='other@example.net' type='subscribed' id='f'/>");
    assert!(world.routed().is_empty(), "the contact hears nothing");
    let got = world.got(ME);
    assert_eq!(got.len(), 1);
    assert!(
        got[0].starts_with("<presence from='other@example.net' to='me@example.org/r' type='error' id='f'>")
            && got[0].contains("<internal-server-error"),
        "{got:?}"
    );
    assert_eq!(state_of(&mut world), "None + Pending In");
    assert_eq!(world.relation("me@example.org", OTHER), Relation::Stranger);

    let mut world = in_state("None");
    world.fail_next_commit();
    step(&mut world, "<subscribe");
    // The stanza itself waits for no commit (the log has it); what follows from it does.
    assert_eq!(world.got(ME).len(), 1);
    let routed = world.routed();
    assert!(routed.len() == 1 && routed[0].contains("type='error'"), "the sender can try again: {routed:?}");
    assert_eq!(state_of(&mut world), "None");
}

#[test]
fn s2_5_2_removing_an_item_ends_subscriptions_and_requests_in_both_directions() {
    for (state, expected) in [
        ("None + Pending Out", &["unsubscribe"][..]),
        ("None + Pending Out+In", &["unsubscribe", "unsubscribed"]),
        ("To", &["unsubscribe"]),
        ("To + Pending In", &["unsubscribe", "unsubscribed"]),
        ("From", &["unavailable", "unsubscribed"]),
        ("From + Pending Out", &["unavailable", "unsubscribe", "unsubscribed"]),
        ("Both", &["unavailable", "unsubscribe", "unsubscribed"]),
    ] {
        let mut world = in_state(state);
        world.send(
            ME,
            "<iq type='set' id='rm'><query xmlns='jabber:iq:roster'>\
             <item jid='other@example.net' subscription='remove'/></query></iq>",
        );
        let routed = world.routed();
        let expected: Vec<_> = expected
            .iter()
            .map(|kind| match *kind {
                "unavailable" => format!("<presence from='{ME}' to='{OTHER}' type='unavailable'/>"),
                kind => format!("<presence from='me@example.org' to='{OTHER}' type='{kind}' id='*'/>"),
            })
            .collect();
        assert_eq!(routed, expected, "{state}");
        let got = world.got(ME);
        assert_eq!(got.len(), 2);
        assert_eq!(got[0], format!("<iq to='{ME}' type='result' id='rm'/>"));
        assert!(got[1].contains("<item jid='other@example.net' subscription='remove'/>"), "{got:?}");
        assert_eq!(state_of(&mut world), "None");
    }
}

#[test]
fn account_removal_tells_contacts_and_leaves_no_row() {
    let mut world = World::new();
    world.login(ME);
    world.close(ME);
    world.login(ME);
    for state in STATES {
        let contact = format!("c{}@example.net", state.0.replace([' ', '+'], "").to_lowercase());
        for step in state.1 {
            match step.split_at(1) {
                (">", kind) => world.send(ME, &format!("<presence to='{contact}' type='{kind}'/>")),
                (_, kind) => {
                    world.receive(&format!("<presence from='{contact}' to='me@example.org' type='{kind}'/>"));
                }
            }
        }
    }
    world.login("neighbour@example.org/r");
    world.send("neighbour@example.org/r", "<presence to='x@example.net' type='subscribe'/>");
    world.close("neighbour@example.org/r");
    world.bind("me@example.org/gone");
    world.send("me@example.org/gone", "<presence/>");
    world.send(ME, "<presence to='room@muc.example.net/nick'/>");
    world.close("me@example.org/gone");
    world.routed();
    let others: Vec<_> =
        world.store.rows().into_keys().filter(|(_, key)| key.starts_with(b"neighbour")).collect();
    assert_eq!(others.len(), 3);
    world.remove_account("me@example.org");
    let mut routed = world.routed();
    routed.sort();
    let mut expected = Vec::new();
    for (contact, kinds) in [
        ("cnonependingout", &["unsubscribe"][..]),
        ("cnonependingin", &["unsubscribed"]),
        ("cnonependingoutin", &["unsubscribe", "unsubscribed"]),
        ("cto", &["unsubscribe"]),
        ("ctopendingin", &["unsubscribe", "unsubscribed"]),
        ("cfrom", &["unavailable", "unsubscribed"]),
        ("cfrompendingout", &["unavailable", "unsubscribe", "unsubscribed"]),
        ("cboth", &["unavailable", "unsubscribe", "unsubscribed"]),
    ] {
        for kind in kinds {
            expected.push(match *kind {
                "unavailable" => {
                    format!("<presence from='{ME}' to='{contact}@example.net' type='unavailable'/>")
                }
                _ => format!(
                    "<presence from='me@example.org' to='{contact}@example.net' type='{kind}' id='*'/>"
                ),
            });
        }
    }
    expected.sort();
    assert_eq!(routed, expected);

    // Until its sessions are gone it is as if it did not exist.
    world.got(ME);
    world.send(ME, "<iq type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>");
    world.send(ME, "<presence to='new@example.net' type='subscribe'/>");
    world.receive("<presence from='new@example.net' to='me@example.org' type='subscribe'/>");
    assert!(world.routed().is_empty());
    let got = world.got(ME);
    assert!(got.len() == 1 && got[0].contains("<item-not-found"), "{got:?}");
    world.close(ME);
    assert_eq!(
        world.routed(),
        ["<presence from='me@example.org/r' to='room@muc.example.net/nick' type='unavailable'/>"]
    );
    assert_eq!(world.store.rows().into_keys().collect::<Vec<_>>(), others);
}

#[test]
fn rosters_of_any_size_are_loaded_and_no_configuration_makes_them_too_large_to_remove() {
    let config = RosterConfig { max_items: usize::MAX, max_requests: usize::MAX, ..RosterConfig::default() };
    let mut world = World::with(config);
    world.bind(ME);
    for i in 0..4_010 {
        world.send(ME, &format!("<presence to='c{i}@example.net' type='subscribe' id='e'/>"));
        world.receive(&format!("<presence from='r{i}@example.net' to='me@example.org' type='subscribe'/>"));
    }
    assert_eq!(world.routed().len(), 4_000);
    assert_eq!(world.got(ME).len(), 10);
    assert_eq!(world.stored_roster("me@example.org").matches("<item").count(), 4_000);
    assert_eq!(world.stored_greeting("me@example.org").len(), 8_001);
    world.reload("me@example.org");
    world.remove_account("me@example.org");
    assert!(world.store.rows().is_empty());
}

#[test]
fn damaged_rows_stop_the_load() {
    for (space, contact, value) in [
        ("roster", "other@example.net", &b"\x09"[..]),
        ("roster", "no jid", &[1, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("roster_version", "", b"\x01\x02"),
        ("last_unavailable", "", b"\x01"),
    ] {
        let world = World::new();
        let parts: &[&str] =
            if contact.is_empty() { &["me@example.org"] } else { &["me@example.org", contact] };
        world.store.put(Space(space), key(parts), value.to_vec().into());
        let module = waystation_roster::RosterModule::new(world.store.clone(), RosterConfig::default());
        let logic = waystation_core::module::Module::registration(&module).presence.unwrap();
        let loaded = now(logic.load(jid("me@example.org")));
        assert!(
            matches!(loaded, Err(waystation_core::storage::StorageError::Corrupt(_))),
            "{space}: a damaged row must not be taken for an absent one"
        );
    }
}

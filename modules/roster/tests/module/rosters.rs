//! Roster gets, sets and pushes, their errors, and versions (RFC 6121 2).

use waystation_core::account::Relation;
use waystation_roster::RosterConfig;

use crate::world::World;

const ME: &str = "me@example.org/r";
const GET: &str = "<iq type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>";

fn set(item: &str) -> String {
    format!("<iq type='set' id='s'><query xmlns='jabber:iq:roster'>{item}</query></iq>")
}

fn get_since(version: &str) -> String {
    format!("<iq type='get' id='g'><query xmlns='jabber:iq:roster' ver='{version}'/></iq>")
}

/// The name of the condition and the type of the only stanza that the session got.
fn error(world: &mut World) -> String {
    let got = world.got(ME);
    assert_eq!(got.len(), 1, "{got:?}");
    let start = "<iq to='me@example.org/r' type='error' id='s'><error type='";
    let rest = got[0].strip_prefix(start).unwrap_or_else(|| panic!("{got:?}"));
    let (kind, rest) = rest.split_once("'><").unwrap();
    let (condition, _) = rest.split_once(' ').unwrap();
    format!("{kind} {condition}")
}

#[test]
fn s2_1_4_an_empty_roster_is_a_query_without_items() {
    let mut world = World::new();
    world.bind(ME);
    world.send(ME, GET);
    assert_eq!(
        world.got(ME),
        [
            "<iq to='me@example.org/r' type='result' id='g'><query xmlns='jabber:iq:roster' ver='0'></query></iq>"
        ]
    );
}

#[test]
fn s2_2_a_get_returns_every_item_and_not_those_who_only_asked() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, &set("<item jid='nurse@example.com' name='Nurse &lt;&apos;&gt;'><group>A &amp; B</group><group>C</group></item>"));
    world.send(ME, &set("<item jid='Icq.Example.com'/>"));
    world.receive("<presence from='stranger@example.net' to='me@example.org' type='subscribe'/>");
    world.send(ME, "<presence to='romeo@example.net' type='subscribe'/>");
    world.receive("<presence from='romeo@example.net' to='me@example.org' type='subscribed'/>");
    let items = "<item jid='icq.example.com' subscription='none'/>\
                 <item jid='nurse@example.com' subscription='none' name='Nurse &lt;&apos;&gt;'>\
                 <group>A &amp; B</group><group>C</group></item>\
                 <item jid='romeo@example.net' subscription='to'/>";
    world.got(ME);
    world.send(ME, "<iq to='me@example.org' type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>");
    let version = world.roster("me@example.org").0;
    let result = format!(
        "<iq from='me@example.org' to='{ME}' type='result' id='g'>\
         <query xmlns='jabber:iq:roster' ver='{version}'>{items}</query></iq>"
    );
    assert_eq!(world.got(ME), [result]);
    assert_eq!(world.stored_roster("me@example.org"), world.roster("me@example.org").1);
}

#[test]
fn s2_3_2_a_set_is_answered_and_pushed_to_all_interested_resources() {
    let mut world = World::new();
    world.login(ME);
    world.bind("me@example.org/interested");
    world.send("me@example.org/interested", GET);
    world.bind("me@example.org/not-interested");
    world.got("me@example.org/interested");
    world.send(ME, &set("<item jid='nurse@example.com' name='Nurse' subscription='both' ask='subscribe' approved='true'><group>Servants</group></item>"));
    let version = world.roster("me@example.org").0;
    let push = |to: &str| {
        format!(
            "<iq from='me@example.org' to='{to}' type='set' id='*'>\
             <query xmlns='jabber:iq:roster' ver='{version}'>\
             <item jid='nurse@example.com' subscription='none' name='Nurse'><group>Servants</group></item>\
             </query></iq>"
        )
    };
    assert_eq!(world.got(ME), [format!("<iq to='{ME}' type='result' id='s'/>"), push(ME)]);
    assert_eq!(world.got("me@example.org/interested"), [push("me@example.org/interested")]);
    assert!(world.got("me@example.org/not-interested").is_empty());
    assert!(world.routed().is_empty());
}

#[test]
fn s2_4_an_update_replaces_name_and_groups_and_keeps_the_subscription() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, "<presence to='romeo@example.net' type='subscribe'/>");
    world.send(ME, "<presence to='romeo@example.net' type='subscribed'/>");
    for (item, after) in [
        ("name='Romeo'><group>Friends</group></item>", " name='Romeo'><group>Friends</group></item>"),
        (
            "name='Romeo'><group>Lovers</group><group>Friends</group></item>",
            " name='Romeo'><group>Lovers</group><group>Friends</group></item>",
        ),
        ("name='MyRomeo'/>", " name='MyRomeo'/>"),
        ("name=''/>", "/>"),
    ] {
        world.send(ME, &set(&format!("<item jid='romeo@example.net' {item}")));
        assert_eq!(
            world.stored_roster("me@example.org"),
            format!(
                "<item jid='romeo@example.net' subscription='none' ask='subscribe' approved='true'{after}"
            )
        );
    }
    world.routed();
    world.got(ME);
    world.send(ME, &set("<item jid='romeo@example.net' name='x' subscription='remove'/>"));
    assert_eq!(world.stored_roster("me@example.org"), "");
}

#[test]
fn s2_3_3_and_2_5_3_sets_that_break_a_rule_are_refused() {
    let config = RosterConfig { max_text_bytes: 6, max_groups: 2, ..RosterConfig::default() };
    let mut world = World::with(config);
    world.login(ME);
    for (item, expected) in [
        ("", "modify bad-request"),
        ("<item xmlns='urn:x' jid='a@example.net'/>", "modify bad-request"),
        ("<item jid='a@example.net'/><item jid='b@example.net'/>", "modify bad-request"),
        ("<item name='a'/>", "modify bad-request"),
        ("<item jid=''/>", "modify jid-malformed"),
        ("<item jid='a@b@c'/>", "modify jid-malformed"),
        ("<item jid='a@example.net/r'/>", "modify bad-request"),
        ("<item jid='a@example.net/r' subscription='remove'/>", "modify bad-request"),
        ("<item jid='me@example.org'/>", "cancel not-allowed"),
        ("<item jid='a@example.net' name='äääx'/>", "modify not-acceptable"),
        ("<item jid='a@example.net'><group/></item>", "modify not-acceptable"),
        ("<item jid='a@example.net'><group></group></item>", "modify not-acceptable"),
        ("<item jid='a@example.net'><group>äääx</group></item>", "modify not-acceptable"),
        (
            "<item jid='a@example.net'><group>1</group><group>2</group><group>3</group></item>",
            "modify not-acceptable",
        ),
        ("<item jid='a@example.net'><group>G</group><group>G</group></item>", "modify bad-request"),
        // Equal once prepared as resourceparts: composed and decomposed.
        (
            "<item jid='a@example.net'><group>\u{e9}</group><group>e\u{301}</group></item>",
            "modify bad-request",
        ),
        ("<item jid='nobody@example.net' subscription='remove'/>", "modify item-not-found"),
    ] {
        world.send(ME, &set(item));
        assert_eq!(error(&mut world), expected, "{item}");
    }
    world.send(ME, "<iq type='set' id='s'><other xmlns='jabber:iq:roster'/></iq>");
    assert_eq!(error(&mut world), "modify bad-request");
    assert_eq!(world.stored_roster("me@example.org"), "", "nothing was stored");
    // At the limits.
    world.send(ME, &set("<item jid='a@example.net' name='äää'><group>äää</group><group>ggg</group></item>"));
    assert_eq!(world.got(ME)[0], "<iq to='me@example.org/r' type='result' id='s'/>");
}

#[test]
fn s2_5_3_who_only_asked_is_no_item_that_could_be_removed() {
    let mut world = World::new();
    world.login(ME);
    world.receive("<presence from='stranger@example.net' to='me@example.org' type='subscribe'/>");
    world.got(ME);
    world.send(ME, &set("<item jid='stranger@example.net' subscription='remove'/>"));
    assert_eq!(error(&mut world), "modify item-not-found");
    // Adding the item keeps the request (A.1, "None + Pending In").
    world.send(ME, &set("<item jid='stranger@example.net'/>"));
    assert!(world.stored_greeting("me@example.org").iter().any(|s| s.contains("type='subscribe'")));
}

#[test]
fn f4_rosters_of_others_are_forbidden() {
    let mut world = World::new();
    world.login(ME);
    let set = set("<item jid='a@example.net'/>").replace("<iq", "<iq to='romeo@example.org'");
    for iq in [set, GET.replace("<iq", "<iq to='romeo@example.org'")] {
        world.send(ME, &iq);
        let got = world.got(ME);
        assert!(got.len() == 1 && got[0].contains("<error type='auth'><forbidden"), "{got:?}");
    }
    assert_eq!(world.stored_roster("me@example.org"), "");
}

#[test]
fn f7_replies_to_pushes_are_swallowed() {
    let mut world = World::new();
    world.login(ME);
    for kind in ["result", "error"] {
        world.send(ME, &format!("<iq type='{kind}' id='x'/>"));
        world.send(
            ME,
            &format!("<iq type='{kind}' id='x'><query xmlns='jabber:iq:roster'><item jid='a@b.example'/></query></iq>"),
        );
    }
    assert!(world.got(ME).is_empty() && world.routed().is_empty());
    assert_eq!(world.stored_roster("me@example.org"), "");
}

#[test]
fn a_full_roster_refuses_new_items_only() {
    let mut world = World::with(RosterConfig { max_items: 2, ..RosterConfig::default() });
    world.login(ME);
    for name in ["a", "b"] {
        world.send(ME, &set(&format!("<item jid='{name}@example.net'/>")));
    }
    world.got(ME);
    world.send(ME, &set("<item jid='c@example.net'/>"));
    assert_eq!(error(&mut world), "modify policy-violation");
    // Requests of strangers take no place.
    world.receive("<presence from='d@example.net' to='me@example.org' type='subscribe'/>");
    world.send(ME, &set("<item jid='b@example.net' name='B'/>"));
    world.send(ME, &set("<item jid='a@example.net' subscription='remove'/>"));
    world.send(ME, &set("<item jid='c@example.net'/>"));
    assert_eq!(
        world.stored_roster("me@example.org"),
        "<item jid='b@example.net' subscription='none' name='B'/><item jid='c@example.net' subscription='none'/>"
    );
}

#[test]
fn a_limit_that_was_lowered_does_not_lock_the_roster() {
    let mut world = World::new();
    world.login(ME);
    for name in ["a", "b", "c"] {
        world.send(ME, &set(&format!("<item jid='{name}@example.net'/>")));
    }
    world.config.max_items = 1;
    world.reload("me@example.org");
    world.got(ME);
    world.send(ME, &set("<item jid='c@example.net' name='C'/>"));
    assert!(world.got(ME)[0].contains("type='result'"));
    world.send(ME, &set("<item jid='c@example.net' subscription='remove'/>"));
    world.got(ME);
    world.send(ME, &set("<item jid='d@example.net'/>"));
    assert_eq!(error(&mut world), "modify policy-violation");
}

#[test]
fn the_bytes_of_a_roster_are_limited() {
    // Each item: 13 bytes of JID and 10 of name.
    let mut world = World::with(RosterConfig { max_roster_bytes: 46, ..RosterConfig::default() });
    world.login(ME);
    world.send(ME, &set("<item jid='a@example.net' name='0123456789'/>"));
    world.send(ME, &set("<item jid='b@example.net' name='01234'><group>01234</group></item>"));
    assert_eq!(world.got(ME).len(), 4, "the limit itself is allowed");
    world.send(ME, &set("<item jid='b@example.net' name='01234'><group>012345</group></item>"));
    assert_eq!(error(&mut world), "modify policy-violation");
    world.send(ME, &set("<item jid='b@example.net' name='012345678'/>"));
    world.got(ME);
    world.send(ME, "<presence to='c@example.net' type='subscribe' id='s'/>");
    assert!(world.got(ME)[0].contains("<policy-violation"));

    // A limit that was lowered does not lock the roster.
    world.config.max_roster_bytes = 20;
    world.reload("me@example.org");
    world.send(ME, &set("<item jid='b@example.net' name='01234567'/>"));
    assert_eq!(world.got(ME).len(), 2, "smaller than before");
    world.send(ME, &set("<item jid='b@example.net' name='012345678'/>"));
    assert_eq!(error(&mut world), "modify policy-violation");
}

#[test]
fn s2_6_a_client_with_the_latest_version_gets_an_empty_result() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, &set("<item jid='a@example.net'/>"));
    let version = world.roster("me@example.org").0;
    world.reload("me@example.org");
    world.got(ME);
    world.bind("me@example.org/new");
    world.send("me@example.org/new", &get_since(&version));
    assert_eq!(world.got("me@example.org/new"), ["<iq to='me@example.org/new' type='result' id='g'/>"]);
    // It is interested all the same.
    world.send(ME, &set("<item jid='b@example.net'/>"));
    assert_eq!(world.got("me@example.org/new").len(), 1);
}

#[test]
fn s2_6_3_a_client_that_was_away_gets_one_push_per_changed_item_in_order() {
    let mut world = World::new();
    world.login(ME);
    for name in ["a", "b", "c", "d", "e", "f", "g"] {
        world.send(ME, &set(&format!("<item jid='{name}@example.net'/>")));
    }
    let version = world.roster("me@example.org").0;
    world.got(ME);
    world.send(ME, &set("<item jid='e@example.net' name='1'/>"));
    world.send(ME, &set("<item jid='b@example.net' subscription='remove'/>"));
    world.send(ME, "<presence to='a@example.net' type='subscribe'/>");
    world.send(ME, &set("<item jid='e@example.net' name='2'/>"));
    let mut live: Vec<_> = world.got(ME).into_iter().filter(|s| s.contains("type='set'")).collect();
    assert_eq!(live.len(), 4);
    // The first of the two changes of `e` is not told.
    live.remove(0);
    world.reload("me@example.org");
    world.bind("me@example.org/new");
    world.send("me@example.org/new", &get_since(&version));
    let mut expected = vec!["<iq to='me@example.org/new' type='result' id='g'/>".to_owned()];
    expected.extend(live.iter().map(|push| push.replace(ME, "me@example.org/new")));
    assert_eq!(world.got("me@example.org/new"), expected);
}

#[test]
fn s2_6_3_unknown_versions_and_many_changes_get_the_whole_roster() {
    let mut world = World::new();
    world.login(ME);
    let mut versions = Vec::new();
    for name in ["a", "b", "c", "d"] {
        world.send(ME, &set(&format!("<item jid='{name}@example.net'/>")));
        versions.push(world.roster("me@example.org").0);
    }
    let latest = u64::from_str_radix(versions.last().unwrap(), 16).unwrap();
    let newer = format!("{:x}", latest + 1);
    for seen in ["", "0", "x", "ffffffffffffffffff", &newer, &versions[0]] {
        world.bind("me@example.org/new");
        world.send("me@example.org/new", &get_since(seen));
        let got = world.got("me@example.org/new");
        assert!(got.len() == 1 && got[0].matches("<item").count() == 4, "{seen}: {got:?}");
        assert!(got[0].contains(&format!("ver='{}'", versions[3])));
        world.close("me@example.org/new");
    }
    world.bind("me@example.org/new");
    world.send("me@example.org/new", &get_since(&versions[1]));
    assert_eq!(world.got("me@example.org/new").len(), 3, "two pushes are shorter than four items");
}

#[test]
fn s2_6_removals_are_remembered_up_to_a_limit() {
    let mut world = World::new();
    world.login(ME);
    for i in 0..400 {
        world.send(ME, &set(&format!("<item jid='c{i}@example.net'/>")));
    }
    let before = world.roster("me@example.org").0;
    let mut after_first = String::new();
    for i in 0..101 {
        world.send(ME, &set(&format!("<item jid='c{i}@example.net' subscription='remove'/>")));
        if i == 0 {
            after_first = world.roster("me@example.org").0;
        }
    }
    for reloaded in [false, true] {
        if reloaded {
            world.reload("me@example.org");
        }
        world.bind("me@example.org/new");
        world.send("me@example.org/new", &get_since(&before));
        let got = world.got("me@example.org/new");
        assert_eq!((got.len(), got[0].matches("<item").count()), (1, 299), "the first removal is forgotten");
        world.send("me@example.org/new", &get_since(&after_first));
        let got = world.got("me@example.org/new");
        assert_eq!(got.len(), 101);
        assert!(got[1..].iter().all(|push| push.contains("subscription='remove'")));
        world.close("me@example.org/new");
    }
    let rows = world.store.rows().into_keys().filter(|(space, _)| space.0 == "roster").count();
    assert_eq!(rows, 399, "299 items and 100 removals");
}

#[test]
fn s2_6_an_item_that_comes_back_is_no_removal_any_more() {
    let mut world = World::new();
    world.login(ME);
    for name in ["a", "b", "c"] {
        world.send(ME, &set(&format!("<item jid='{name}@example.net'/>")));
    }
    let version = world.roster("me@example.org").0;
    world.send(ME, &set("<item jid='a@example.net' subscription='remove'/>"));
    world.send(ME, &set("<item jid='a@example.net' name='again'/>"));
    world.bind("me@example.org/new");
    world.send("me@example.org/new", &get_since(&version));
    let got = world.got("me@example.org/new");
    assert!(
        got.len() == 2 && got[1].contains("<item jid='a@example.net' subscription='none' name='again'/>")
    );

    // Nor does it take the place of one.
    for i in 0..300 {
        world.send(ME, &set(&format!("<item jid='x{i}@example.net'/>")));
    }
    let version = world.roster("me@example.org").0;
    world.send(ME, &set("<item jid='a@example.net' subscription='remove'/>"));
    world.send(ME, &set("<item jid='a@example.net'/>"));
    for i in 0..100 {
        world.send(ME, &set(&format!("<item jid='x{i}@example.net' subscription='remove'/>")));
    }
    world.got("me@example.org/new");
    world.send("me@example.org/new", &get_since(&version));
    assert_eq!(world.got("me@example.org/new").len(), 102);
}

#[test]
fn s2_6_requests_of_strangers_and_refusals_do_not_change_the_version() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, &set("<item jid='a@example.net'/>"));
    let version = world.roster("me@example.org").0;
    world.receive("<presence from='s@example.net' to='me@example.org' type='subscribe'/>");
    world.receive("<presence from='a@example.net' to='me@example.org' type='subscribe'/>");
    world.send(ME, "<presence to='s@example.net' type='unsubscribed'/>");
    assert_eq!(world.roster("me@example.org").0, version);
}

#[test]
fn s2_6_versions_of_a_removed_account_are_unknown_to_its_successor() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, &set("<item jid='a@example.net'/>"));
    let version = world.roster("me@example.org").0;
    world.remove_account("me@example.org");
    world.close(ME);
    world.reload("me@example.org");
    world.login(ME);
    world.send(ME, &set("<item jid='b@example.net'/>"));
    world.got(ME);
    world.send(ME, &get_since(&version));
    let got = world.got(ME);
    assert!(got.len() == 1 && got[0].contains("b@example.net"), "{got:?}");
}

#[test]
fn a_failed_commit_leaves_the_roster_and_its_version() {
    let mut world = World::new();
    world.login(ME);
    world.send(ME, &set("<item jid='a@example.net'/>"));
    let before = world.roster("me@example.org");
    world.got(ME);
    for item in ["<item jid='b@example.net'/>", "<item jid='a@example.net' subscription='remove'/>"] {
        world.fail_next_commit();
        world.send(ME, &set(item));
        assert_eq!(error(&mut world), "wait internal-server-error");
        assert_eq!(world.roster("me@example.org"), before);
        assert!(world.routed().is_empty());
    }
}

#[test]
fn accounts_do_not_see_each_others_rows() {
    let mut world = World::new();
    for account in ["me@example.org/r", "me@example.org.evil.net/r", "m@example.org/r"] {
        world.login(account);
        world.send(account, &set(&format!("<item jid='x@{}'/>", account.replace(['@', '/'], "-"))));
    }
    assert_eq!(world.stored_roster("me@example.org"), "<item jid='x@me-example.org-r' subscription='none'/>");
    assert_eq!(world.relation("me@example.org", "me@example.org/other"), Relation::Own);
    assert_eq!(world.relation("me@example.org", "m@example.org"), Relation::Stranger);
}

#[test]
fn addresses_of_any_length_fit_the_keys_of_the_store() {
    let mut world = World::new();
    let long = |c: &str| format!("{}@{}.example", c.repeat(1023), "d".repeat(63));
    let me = format!("{}/r", long("m"));
    world.login(&me);
    world.send(&me, &set(&format!("<item jid='{}'/>", long("c"))));
    assert!(world.stored_roster(&long("m")).contains(&long("c")));
}

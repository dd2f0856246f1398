//! The rules of XEP-0313, by section.

use waystation_core::module::{Feature, Requests, Scope};

use super::world::*;
use crate::NS_MAM;

const ROMEO: &str = "from='romeo@montague.example/orchard' to='juliet@capulet.example/balcony' type='chat'";
const TO_ROMEO: &str = "from='juliet@capulet.example/chamber' to='romeo@montague.example/garden' type='chat'";
const NURSE: &str = "from='nurse@capulet.example' to='juliet@capulet.example'";
const SELF: &str = "from='juliet@capulet.example/balcony' to='juliet@capulet.example'";
const ROOM: &str = "from='hall@rooms.example/romeo' to='juliet@capulet.example/balcony' type='groupchat'";

/// Positions 10, 20, ... at 23:00, 23:01, ...
async fn verona() -> World {
    let world = world();
    let senders = [ROMEO, TO_ROMEO, NURSE, SELF, ROOM, ROMEO];
    let messages = senders.iter().enumerate().map(|(minute, sender)| {
        let stamp = format!("2010-07-10T23:0{minute}:00Z");
        message(minute as u64 * 10 + 10, &stamp, sender, "<body>Hail</body>")
    });
    world.add(messages.collect()).await.unwrap();
    world
}

#[tokio::test]
async fn queries_match_by_section() {
    let world = verona().await;
    let (ids, all): (Vec<_>, Vec<u64>) =
        ((0..=7).map(|n| id(n * 10)).collect(), (1..=6).map(|n| n * 10).collect());
    let cases: Vec<(&str, String, Vec<u64>)> = vec![
        ("4 all", String::new(), all.clone()),
        ("4.1 empty form", form(&[]), all.clone()),
        ("4.1.1 bare", form(&[("with", "romeo@montague.example")]), vec![10, 20, 60]),
        ("4.1.1 not in normal form", form(&[("with", "Romeo@MONTAGUE.example")]), vec![10, 20, 60]),
        ("4.1.1 full", form(&[("with", "romeo@montague.example/garden")]), vec![20]),
        ("4.1.1 full, nobody", form(&[("with", "romeo@montague.example/x")]), vec![]),
        ("4.1.1 own bare", form(&[("with", JULIET)]), vec![40]),
        ("4.1.1 own full", form(&[("with", BALCONY)]), vec![10, 40, 50, 60]),
        ("4.1.1 room", form(&[("with", "hall@rooms.example")]), vec![50]),
        ("4.1.1 occupant", form(&[("with", "hall@rooms.example/romeo")]), vec![50]),
        ("4.1.1 domain", form(&[("with", "montague.example")]), vec![]),
        ("4.1.1 left empty", form(&[("with", "")]), all.clone()),
        ("4.1.2 start, inclusive", form(&[("start", "2010-07-10T23:04:00Z")]), vec![50, 60]),
        ("4.1.2 start, other zone", form(&[("start", "2010-07-11T01:04:00.001+02:00")]), vec![60]),
        ("4.1.2 end, inclusive", form(&[("end", "2010-07-10T23:01:00Z")]), vec![10, 20]),
        ("4.1.2 end, just before", form(&[("end", "2010-07-10T23:00:59.999Z")]), vec![10]),
        (
            "4.1.2 both",
            form(&[("start", "2010-07-10T23:01:00Z"), ("end", "2010-07-10T23:03:00Z")]),
            vec![20, 30, 40],
        ),
        (
            "4.1.2 one moment",
            form(&[("start", "2010-07-10T23:01:00Z"), ("end", "2010-07-10T23:01:00Z")]),
            vec![20],
        ),
        ("4.1.2 year 0", form(&[("start", "0000-01-01T00:00:00Z")]), all.clone()),
        ("4.1.2 year 9999", form(&[("end", "9999-12-31T23:59:59.999Z")]), all.clone()),
        ("4.1.2 after all", form(&[("start", "9999-12-31T23:59:59.999Z")]), vec![]),
        ("4.1.2 before all", form(&[("end", "0000-01-01T00:00:00Z")]), vec![]),
        ("4.1.3 after-id", form(&[("after-id", &ids[4])]), vec![50, 60]),
        ("4.1.3 before-id", form(&[("before-id", &ids[2])]), vec![10]),
        ("4.1.3 between", form(&[("after-id", &ids[2]), ("before-id", &ids[5])]), vec![30, 40]),
        ("4.1.3 none between", form(&[("after-id", &ids[5]), ("before-id", &ids[2])]), vec![]),
        ("4.1.3 ids", form(&[("ids", &format!("{}</value><value>{}", ids[5], ids[2]))]), vec![20, 50]),
        ("4.1.3 an id twice", form(&[("ids", &format!("{}</value><value>{}", ids[2], ids[2]))]), vec![20]),
        ("4.1.3 ids and with", form(&[("ids", &ids[3]), ("with", "romeo@montague.example")]), vec![]),
        ("4.1.4 with groupchat", form(&[("include-groupchat", "true")]), all.clone()),
        ("4.1.4 without groupchat", form(&[("include-groupchat", "0")]), vec![10, 20, 30, 40, 60]),
        ("4.1.3 not of the filter", form(&[("with", JULIET), ("after-id", &ids[1])]), vec![40]),
        ("4.3 first page", set("<max>2</max>"), vec![10, 20]),
        ("4.3.2 next page", set(&format!("<max>2</max><after>{}</after>", ids[2])), vec![30, 40]),
        ("4.3.2 page before", set(&format!("<max>2</max><before>{}</before>", ids[4])), vec![20, 30]),
        ("4.3.3 last page", set("<max>2</max><before/>"), vec![50, 60]),
        (
            "4.3 page of a filter",
            form(&[("with", "romeo@montague.example")]) + &set("<max>2</max><before/>"),
            vec![20, 60],
        ),
        ("4.3.4 flipped", set("<max>3</max>") + &format!("<flip-page xmlns='{NS_MAM}'/>"), vec![30, 20, 10]),
        ("4.3.4 flipped last", set("<max>2</max><before/>") + "<flip-page/>", vec![60, 50]),
        ("XEP-0059 2.6 index", set("<max>2</max><index>3</index>"), vec![40, 50]),
        ("XEP-0059 2.6 past the end", set("<max>2</max><index>9</index>"), vec![]),
        ("XEP-0059 2.7 count", set("<max>0</max>"), vec![]),
        ("unknown elements are ignored", "<x xmlns='urn:x'/>".to_owned(), all.clone()),
    ];
    for (rule, inner, expected) in cases {
        let answer = world.query(&inner).await.unwrap_or_else(|error| panic!("{rule}: {error:?}"));
        assert_eq!(answer.positions(), expected, "{rule}");
        if !expected.is_empty() {
            // Flipping changes the order of sending alone (4.3.4).
            let sorted = (expected.iter().min().unwrap(), expected.iter().max().unwrap());
            assert_eq!(answer.first(), Some(id(*sorted.0)), "{rule}");
            assert_eq!(answer.last(), Some(id(*sorted.1)), "{rule}");
        }
    }
}

#[tokio::test]
async fn completeness_counts_and_indexes_by_section() {
    let world = verona().await;
    let after = |position| format!("<after>{}</after>", id(position));
    let before = |position| format!("<before>{}</before>", id(position));
    let romeo = form(&[("with", "romeo@montague.example")]);
    // Rule, query, complete (4.3.2), count and index (XEP-0059 2.6, 2.7).
    let cases = [
        ("all", String::new(), true, Some(6), Some(0)),
        ("first page", set("<max>2</max>"), false, Some(6), Some(0)),
        ("exactly all", set("<max>6</max>"), true, Some(6), Some(0)),
        ("next page", set(&(after(20) + "<max>2</max>")), false, Some(6), None),
        ("to the end", set(&(after(40) + "<max>2</max>")), true, Some(6), None),
        ("behind the end", set(&after(60)), true, Some(6), None),
        ("last page", set("<max>2</max><before/>"), false, Some(6), Some(4)),
        ("back to the start", set(&(before(30) + "<max>2</max>")), true, Some(6), Some(0)),
        ("before the start", set(&before(10)), true, Some(6), None),
        ("an index", set("<max>2</max><index>3</index>"), false, Some(6), Some(3)),
        ("count alone", set("<max>0</max>"), false, Some(6), None),
        ("whole filter", romeo.clone(), true, Some(3), Some(0)),
        ("part of a filter", romeo.clone() + &set("<max>2</max>"), false, None, Some(0)),
        ("end of a filter", romeo.clone() + &set(&after(20)), true, None, None),
        ("count of a filter", romeo.clone() + &set("<max>0</max>"), false, Some(3), None),
        ("count of nothing", form(&[("with", "a@b")]) + &set("<max>0</max>"), true, Some(0), None),
    ];
    for (rule, inner, complete, count, index) in cases {
        let answer = world.query(&inner).await.unwrap();
        assert_eq!(answer.is_complete(), complete, "{rule}");
        assert_eq!(answer.count(), count, "{rule}");
        assert_eq!(answer.index(), index, "{rule}");
        assert_eq!(answer.first().is_some(), !answer.positions().is_empty(), "{rule}");
        assert!(answer.fin.attr("stable").is_none(), "{rule}");
    }
}

#[tokio::test]
async fn results_are_written_as_4_2_shows() {
    let world = world();
    let inner = "<body>Call me but love &amp; I&apos;ll</body><origin-id xmlns='urn:xmpp:sid:0' id='o'/>";
    world.add(vec![message(5, "2010-07-10T23:08:25Z", ROMEO, inner)]).await.unwrap();
    let answer = world.query("").await.unwrap();
    assert_eq!(
        String::from_utf8(answer.results[0].to_bytes().to_vec()).unwrap(),
        format!(
            "<message from='{JULIET}' to='{BALCONY}'><result xmlns='urn:xmpp:mam:2' queryid='f27' \
             id='0000000000005'><forwarded xmlns='urn:xmpp:forward:0'>\
             <delay xmlns='urn:xmpp:delay' stamp='2010-07-10T23:08:25Z'/>\
             <message xmlns='jabber:client' {ROMEO}>{inner}\
             <stanza-id xmlns='urn:xmpp:sid:0' by='{JULIET}' id='0000000000005'/></message>\
             </forwarded></result></message>"
        )
    );
    assert_eq!(
        String::from_utf8(answer.fin.to_vec("")).unwrap(),
        "<fin xmlns='urn:xmpp:mam:2' complete='true'><set xmlns='http://jabber.org/protocol/rsm'>\
         <first index='0'>0000000000005</first><last>0000000000005</last><count>1</count></set></fin>"
    );
}

#[tokio::test]
async fn odd_stanzas_are_forwarded_well_formed() {
    let world = world();
    for (position, xml) in [
        (1, "<message from='a@b' to='juliet@capulet.example'/>"),
        (2, "<message from='a@b' to='juliet@capulet.example' />"),
        (3, "<message from='a@b' to='juliet@capulet.example'></message >"),
        (
            4,
            "<message from='a@b/&lt;&apos;&gt;' to='juliet@capulet.example' xmlns:e='urn:e' e:x='1'><e:y/></message>",
        ),
        (
            5,
            "<message from='a@b' to='juliet@capulet.example'><stanza-id xmlns='urn:xmpp:sid:0' \
             by='juliet@capulet.example' id='forged'/><body>x</body></message>",
        ),
    ] {
        let mut message = plain(position);
        message.stanza = waystation_core::Stanza::parse(xml.as_bytes()).unwrap();
        world.add(vec![message]).await.unwrap();
        let answer = world.query(&set("<before/><max>1</max>")).await.unwrap();
        let result = answer.elements().remove(0);
        let forwarded = result.child("forwarded", "urn:xmpp:forward:0").unwrap();
        let inner = forwarded.child("message", "jabber:client").unwrap();
        // XEP-0359 4, rule 4: exactly one of the archive.
        let ids: Vec<_> = inner.children().filter(|child| child.is("stanza-id", "urn:xmpp:sid:0")).collect();
        assert_eq!(ids.len(), 1, "{xml}");
        assert_eq!((ids[0].attr("by"), ids[0].attr("id")), (Some(JULIET), Some(&*id(position))), "{xml}");
        assert!(inner.attr("from").unwrap().starts_with("a@b"), "{xml}");
    }
}

#[tokio::test]
async fn a_queryid_is_repeated_and_may_be_absent() {
    let world = verona().await;
    let query = |attributes: &str| format!("<query xmlns='{NS_MAM}'{attributes}/>");
    world.iq(true, &query("")).await.unwrap();
    assert!(world.sent().iter().all(|stanza| {
        stanza.element().unwrap().child("result", NS_MAM).unwrap().attr("queryid").is_none()
    }));
    world.iq(true, &query(" queryid=\"a'&lt;\"")).await.unwrap();
    let sent = world.sent();
    let element = sent[0].element().unwrap();
    assert_eq!(element.child("result", NS_MAM).unwrap().attr("queryid"), Some("a'<"));
}

#[tokio::test]
async fn the_form_lists_every_field_as_4_1_5_shows() {
    let form = world().iq(false, &format!("<query xmlns='{NS_MAM}'/>")).await.unwrap();
    let form = form.child("x", "jabber:x:data").unwrap();
    assert_eq!(form.attr("type"), Some("form"));
    let fields: Vec<_> =
        form.children().map(|field| (field.attr("var").unwrap(), field.attr("type").unwrap())).collect();
    assert_eq!(
        fields,
        [
            ("FORM_TYPE", "hidden"),
            ("with", "jid-single"),
            ("start", "text-single"),
            ("end", "text-single"),
            ("before-id", "text-single"),
            ("after-id", "text-single"),
            ("ids", "list-multi"),
            ("include-groupchat", "boolean"),
        ]
    );
    let ids = form.children().find(|field| field.attr("var") == Some("ids")).unwrap();
    let validate = ids.child("validate", "http://jabber.org/protocol/xdata-validate").unwrap();
    assert!(validate.child("open", "http://jabber.org/protocol/xdata-validate").is_some());
    assert!(ids.children().all(|child| child.name() != "option"));
    assert!(form.children().all(|field| field.children().all(|child| child.name() != "required")));
}

#[tokio::test]
async fn metadata_tells_both_ends_as_5_shows() {
    let world = world();
    let metadata = format!("<metadata xmlns='{NS_MAM}'/>");
    let shown = |element: waystation_core::Element| String::from_utf8(element.to_vec("")).unwrap();
    assert_eq!(shown(world.iq(false, &metadata).await.unwrap()), metadata);
    world.fill([7, 9, 8]).await;
    assert_eq!(
        shown(world.iq(false, &metadata).await.unwrap()),
        "<metadata xmlns='urn:xmpp:mam:2'><start id='0000000000007' timestamp='2010-07-10T23:00:07Z'/>\
         <end id='0000000000009' timestamp='2010-07-10T23:00:09Z'/></metadata>"
    );
}

#[tokio::test]
async fn everything_is_advertised_where_it_answers_as_7_demands() {
    for (groupchat, available) in [(false, 0), (true, 1)] {
        let config = crate::Config { groupchat, ..crate::Config::default() };
        let registration = with_config(config).registration;
        for var in [NS_MAM, "urn:xmpp:mam:2#extended", "urn:xmpp:mam:2#groupchat-field", "urn:xmpp:sid:0"] {
            assert!(registration.features.contains(&Feature { scope: Scope::Account, var }), "{var}");
        }
        let found = registration.features.iter().filter(|f| f.var == "urn:xmpp:mam:2#groupchat-available");
        assert_eq!(found.count(), available);
        assert!(registration.iqs.iter().all(|iq| iq.scope == Scope::Account && iq.namespace == NS_MAM));
        let metadata = registration.iqs.iter().find(|iq| iq.element == "metadata").unwrap();
        assert_eq!(metadata.requests, Requests::Get);
        assert!(registration.archive.is_some() && registration.on_account_removed.is_some());
    }
}

#[tokio::test]
async fn preferences_decide_what_is_kept() {
    let world = world();
    let prefs = |inner: &str| format!("<prefs xmlns='{NS_MAM}' {inner}</prefs>");
    let shown = world.iq(false, &prefs(">")).await.unwrap();
    assert_eq!(shown.attr("default"), Some("always"));
    let wanted = prefs("default='roster'><always/><never><jid>nurse@capulet.example</jid></never>");
    let applied = world.iq(true, &wanted).await.unwrap();
    assert_eq!(world.iq(false, &prefs(">")).await.unwrap(), applied);
    let mut contact = plain(3);
    contact.contact = true;
    let nurse = waystation_core::archive::Archived {
        contact: true,
        ..message(4, "2010-07-10T23:00:04Z", NURSE, "<body/>")
    };
    world.add(vec![plain(2), contact, nurse, plain(5)]).await.unwrap();
    assert_eq!(world.positions().await, [3]);
    assert_eq!(world.newest().await, Some(5), "the watermark tells what was handed over, kept or not");
    // Over a restart the preferences hold.
    let again = over(world.storage.clone(), crate::Config::default());
    assert_eq!(again.iq(false, &prefs(">")).await.unwrap(), applied);
    again.fill([6]).await;
    assert_eq!((again.positions().await, again.newest().await), (vec![3], Some(6)));
}

//! The M1 row of the security matrix: other people's archives and malformed requests.

use waystation_core::Condition;
use waystation_core::account::{Relation, SessionId};

use super::world::*;
use crate::NS_MAM;

#[tokio::test]
async fn m1_only_the_account_itself_sees_and_changes_anything() {
    let world = world();
    world.fill([1, 2]).await;
    for (name, set) in
        [("query", true), ("query", false), ("metadata", false), ("prefs", true), ("prefs", false)]
    {
        let payload = format!("<{name} xmlns='{NS_MAM}' default='never'/>");
        let request = |from| world.request(from, JULIET, set, &payload);
        let mut cases = vec![
            request("romeo@montague.example/a"),
            request("nurse@capulet.example/a"),
            request("capulet.example"),
        ];
        // Even if it may see the presence, or is said to be the account.
        for (relation, session) in [
            (Relation::Subscriber, Some(SessionId(1))),
            (Relation::Own, Some(SessionId(1))),
            (Relation::Own, None),
        ] {
            let mut other = request("nurse@capulet.example/a");
            (other.relation, other.session) = (relation, session);
            cases.push(other);
        }
        let mut remote = request(BALCONY);
        remote.session = None;
        cases.push(remote);
        for case in cases {
            let from = case.from.clone();
            let error = world.handle(case).await.expect_err(name);
            assert_eq!(error.condition, Condition::Forbidden, "{name} of {from}");
        }
    }
    assert!(world.sent().is_empty());
    let prefs = world.iq(false, &format!("<prefs xmlns='{NS_MAM}'/>")).await.unwrap();
    assert_eq!(prefs.attr("default"), Some("always"));
}

#[tokio::test]
async fn m1_ids_never_cross_archives() {
    let world = world();
    world.fill([1, 3]).await;
    world.archive().add(jid("nurse@capulet.example"), vec![plain(2)]).await.unwrap();
    world.archive().add(jid("juliet@capulet.example.org"), vec![plain(4)]).await.unwrap();
    for foreign in [
        id(2),
        id(4),
        id(0),
        id(u64::MAX),
        "1".into(),
        "&apos; OR 1=1; --".into(),
        "0000000000001 ".into(),
        "000000000000\u{e9}".into(),
        "x".repeat(10_000),
    ] {
        for inner in [
            set(&format!("<after>{foreign}</after>")),
            set(&format!("<before>{foreign}</before>")),
            form(&[("after-id", &foreign)]),
            form(&[("before-id", &foreign)]),
            form(&[("ids", &foreign)]),
            form(&[("ids", &format!("{}</value><value>{foreign}", id(1)))]),
        ] {
            assert_eq!(world.refused(&inner).await, Condition::ItemNotFound, "{inner}");
        }
    }
    assert_eq!(world.positions().await, [1, 3]);
}

#[tokio::test]
async fn m1_malformed_queries_are_refused_by_name() {
    let world = world();
    world.fill([1]).await;
    let field = |var: &str, values: &str| {
        form(&[]).replace("</x>", &format!("<field var='{var}'>{values}</field></x>"))
    };
    let twice = "<value>a@b</value><value>c@d</value>";
    let cases = [
        (form(&[("with", "a@b@c")]), Condition::BadRequest),
        (form(&[("with", "@")]), Condition::BadRequest),
        (form(&[("with", "a@b/")]), Condition::BadRequest),
        (field("with", twice), Condition::BadRequest),
        (form(&[("start", "yesterday")]), Condition::BadRequest),
        (form(&[("start", "2010-07-10")]), Condition::BadRequest),
        (form(&[("start", "10000-01-01T00:00:00Z")]), Condition::BadRequest),
        (form(&[("end", "-0001-01-01T00:00:00Z")]), Condition::BadRequest),
        (form(&[("end", "9999-12-31T23:59:59-01:00")]), Condition::BadRequest),
        (form(&[("start", "2011-01-01T00:00:00Z"), ("end", "2010-01-01T00:00:00Z")]), Condition::BadRequest),
        (form(&[("include-groupchat", "maybe")]), Condition::BadRequest),
        (
            form(&[("start", "2010-01-01T00:00:00Z"), ("start", "2010-01-01T00:00:00Z")]),
            Condition::BadRequest,
        ),
        (form(&[]).replace("submit", "result"), Condition::BadRequest),
        (form(&[]).replace("submit", "bogus"), Condition::BadRequest),
        (form(&[]).replace(NS_MAM, "urn:xmpp:mam:1"), Condition::BadRequest),
        ("<x xmlns='jabber:x:data' type='submit'/>".into(), Condition::BadRequest),
        (form(&[]) + &form(&[]), Condition::BadRequest),
        (form(&[("{urn:x}text", "love")]), Condition::FeatureNotImplemented),
        (form(&[("With", "a@b")]), Condition::FeatureNotImplemented),
        (set("<max>-1</max>"), Condition::BadRequest),
        (set("<max>18446744073709551616</max>"), Condition::BadRequest),
        (set("<after/>"), Condition::BadRequest),
        (set("") + &set(""), Condition::BadRequest),
        (set("<index>1</index><before/>"), Condition::BadRequest),
    ];
    for (inner, expected) in cases {
        assert_eq!(world.refused(&inner).await, expected, "{inner}");
    }
    for (attributes, expected) in [
        (format!("queryid='{}'", "q".repeat(crate::query::MAX_QUERY_ID + 1)), Condition::BadRequest),
        ("node='urn:xmpp:microblog:0'".into(), Condition::FeatureNotImplemented),
    ] {
        let error = world.iq(true, &format!("<query xmlns='{NS_MAM}' {attributes}/>")).await.unwrap_err();
        assert_eq!(error.condition, expected);
    }
}

#[tokio::test]
async fn m1_no_page_is_larger_than_the_cap() {
    let world = world();
    world.fill(1..=250).await;
    for (max, expected) in [
        ("", 100),
        ("<max>1000000000</max>", 100),
        ("<max>4294967295</max>", 100),
        ("<max>101</max>", 100),
        ("<max>99</max>", 99),
        ("<max>0</max>", 0),
    ] {
        for before in ["", "<before/>"] {
            let answer = world.query(&set(&format!("{max}{before}"))).await.unwrap();
            assert_eq!((answer.positions().len(), answer.is_complete()), (expected, false), "{max}{before}");
        }
    }
    // Without a set as well (4.3.1).
    assert_eq!(world.query("").await.unwrap().positions().len(), 100);
}

#[tokio::test]
async fn m1_a_page_of_large_messages_ends_early() {
    let world = with_config(crate::Config { page_bytes: 10_000, ..crate::Config::default() });
    let large = |position| {
        let mut message = plain(position);
        message.stanza = message.stanza.with_appended(&format!("<x xmlns='u'>{}</x>", "x".repeat(3_000)));
        message
    };
    world.add((1..=9).map(large).collect()).await.unwrap();
    let answer = world.query("").await.unwrap();
    assert_eq!((answer.positions(), answer.is_complete()), (vec![1, 2, 3, 4], false));
    assert_eq!(world.positions().await, (1..=9).collect::<Vec<_>>());
}

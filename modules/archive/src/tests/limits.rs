//! Retention at its limits, removal of accounts, and what queries cost.

use std::time::Duration;

use waystation_core::storage::StorageError;

use super::world::*;
use crate::chunk::{ROWS, WITH};
use crate::prefs::PREFS;
use crate::row::Row;
use crate::state::STATES;
use crate::{Config, NS_MAM};

/// The second of `plain` messages that counts as 0.
const EPOCH: i64 = 1_278_802_800_000;

async fn sweep(world: &World, second: u64) {
    world.archives.sweep(at(EPOCH + second as i64 * 1_000)).await.unwrap();
}

fn bytes_of(position: u64) -> u64 {
    let message = plain(position);
    Row::new(&jid(JULIET), waystation_core::datetime::Timestamp::now(), &message.stanza).stanza_len()
}

#[tokio::test]
async fn each_limit_keeps_exactly_what_it_allows() {
    let three = bytes_of(8) + bytes_of(9) + bytes_of(10);
    let limits = |age, messages, bytes| Config {
        max_age: age,
        max_messages: messages,
        max_bytes: bytes,
        ..Config::default()
    };
    let seconds = |n| Some(Duration::from_secs(n));
    // The limits, and how many of ten messages go.
    for (name, config, gone) in [
        ("none", limits(None, None, None), 0),
        ("count, at the limit", limits(None, Some(10), None), 0),
        ("count, one over", limits(None, Some(9), None), 1),
        ("count", limits(None, Some(3), None), 7),
        ("count of none", limits(None, Some(0), None), 10),
        ("bytes, at the limit", limits(None, None, Some(three)), 7),
        ("bytes, one short", limits(None, None, Some(three - 1)), 8),
        ("age, at the limit", limits(seconds(16), None, None), 3),
        ("age of all", limits(seconds(1), None, None), 10),
        ("age beyond all clocks", limits(Some(Duration::MAX), None, None), 0),
        ("the strictest counts", limits(seconds(16), Some(2), Some(three)), 8),
    ] {
        let world = with_config(config);
        world.fill(1..=10).await;
        sweep(&world, 20).await;
        let kept: Vec<u64> = (gone + 1..=10).collect();
        assert_eq!(world.positions().await, kept, "{name}");
        assert_eq!(world.query("").await.unwrap().count(), Some(kept.len()), "{name}");
        // What is left of the chunk, and of its key for Romeo.
        let chunks = usize::from(!kept.is_empty());
        assert_eq!((world.storage.rows(ROWS), world.storage.rows(WITH)), (chunks, chunks), "{name}");
        let metadata = world.iq(false, &format!("<metadata xmlns='{NS_MAM}'/>")).await.unwrap();
        let start = metadata.child("start", NS_MAM).map(|start| start.attr("id").unwrap().to_owned());
        assert_eq!(start, kept.first().map(|first| id(*first)), "{name}");
        // The watermark stays, and what was removed does not come back (3.2).
        assert_eq!(world.newest().await, Some(10), "{name}");
        world.fill(1..=10).await;
        assert_eq!(world.positions().await, kept, "{name}");
        // Paging on from a message that is gone (4.3.2).
        if kept.first() == Some(&8) {
            let gone = world.refused(&set(&format!("<after>{}</after>", id(7)))).await;
            assert_eq!(gone, waystation_core::Condition::ItemNotFound);
            let answer = world.query(&set("<before/><max>3</max>")).await.unwrap();
            assert!(answer.is_complete());
        }
        // New messages are taken as before, over a restart as well.
        let again = over(world.storage.clone(), Config::default());
        again.fill([11]).await;
        assert_eq!(again.query("").await.unwrap().count(), Some(kept.len() + 1), "{name}");
    }
}

#[tokio::test]
async fn retention_works_in_bounded_steps() {
    let world = with_config(Config { max_messages: Some(10), ..Config::default() });
    world.fill(1..=1_000).await;
    world.storage.calls();
    let (mut steps, mut most) = (0, 0);
    loop {
        let goal = crate::retention::Goal::Limits { before: None };
        let more =
            world.archives.ask(&jid(JULIET), |reply| crate::driver::Job::Trim { goal, reply }).await.unwrap();
        let calls = world.storage.calls();
        most = most.max(calls.rows);
        assert!(calls.commits <= 1 && calls.scans <= 1, "{calls:?}");
        steps += 1;
        // Others have their turn between two steps.
        world.fill([1_000 + steps]).await;
        world.storage.calls();
        if !more {
            break;
        }
    }
    assert!(steps >= 7 && most <= 17, "{steps} steps, {most} chunks");
}

#[tokio::test]
async fn a_sweep_that_fails_loses_no_more_than_it_should() {
    let world = with_config(Config { max_messages: Some(5), ..Config::default() });
    world.fill(1..=300).await;
    world.storage.fail_commits(1, 1);
    sweep(&world, 0).await;
    let left = world.positions().await;
    assert_eq!(left, (129..=300).collect::<Vec<_>>());
    assert_eq!(world.query("").await.unwrap().count(), Some(left.len()));
    sweep(&world, 0).await;
    assert_eq!(world.positions().await, (296..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn clocks_that_ran_backwards_do_not_stop_retention() {
    let world = with_config(Config { max_age: Some(Duration::from_secs(1_000)), ..Config::default() });
    let mut messages: Vec<_> = (1..=300).map(plain).collect();
    for (index, message) in messages.iter_mut().enumerate() {
        // Every 50 messages the clock is set back by ten minutes.
        message.at -= Duration::from_secs(index as u64 / 50 * 600);
    }
    world.add(messages).await.unwrap();
    sweep(&world, 2_000).await;
    assert_eq!(world.positions().await, Vec::<u64>::new());
}

#[tokio::test]
async fn limits_are_enforced_in_the_background() {
    let config = Config { max_messages: Some(2), sweep_interval: Duration::ZERO, ..Config::default() };
    let world = with_config(config);
    world.fill(1..=10).await;
    let background = tokio::spawn(world.module.enforce_limits());
    tokio::time::timeout(Duration::from_secs(10), async {
        while world.query("").await.unwrap().count() != Some(2) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    background.abort();
    assert_eq!(world.positions().await, [9, 10]);
    // Without limits there is nothing to do.
    super::world::world().module.enforce_limits().await;
}

#[tokio::test]
async fn a_removed_account_leaves_nothing_behind() {
    let world = world();
    let prefs = format!("<prefs xmlns='{NS_MAM}' default='roster'/>");
    world.fill(1..=300).await;
    world.iq(true, &prefs).await.unwrap();
    for neighbour in ["juliet@capulet.example.org", "juliette@capulet.example"] {
        world.archive().add(jid(neighbour), vec![plain(1)]).await.unwrap();
    }
    let removed = world.registration.on_account_removed.as_ref().unwrap();
    removed.account_removed(jid(JULIET)).await.unwrap();
    let left = [ROWS, WITH, STATES, PREFS].map(|space| world.storage.rows(space));
    assert_eq!(left, [2, 2, 2, 0]);
    assert_eq!((world.newest().await, world.positions().await), (None, vec![]));
    // Whoever has the name next begins anew.
    assert_eq!(world.iq(false, &prefs).await.unwrap().attr("default"), Some("always"));
    world.fill([500]).await;
    assert_eq!(world.positions().await, [500]);
}

#[tokio::test]
async fn a_removal_that_fails_can_be_repeated_and_damage_does_not_stop_it() {
    let world = world();
    world.fill(1..=300).await;
    let removed = world.registration.on_account_removed.as_ref().unwrap();
    world.storage.fail_commits(1, 1);
    assert!(matches!(removed.account_removed(jid(JULIET)).await, Err(StorageError::Full)));
    let left = world.positions().await;
    assert_eq!(world.query("").await.unwrap().count(), Some(left.len()));
    world.storage.damage(ROWS, crate::row::key(&crate::row::prefix(&jid(JULIET)), 150));
    world.storage.damage(PREFS, crate::prefs::Prefs::key(&jid(JULIET)));
    removed.account_removed(jid(JULIET)).await.unwrap();
    assert_eq!([ROWS, WITH, STATES, PREFS].map(|space| world.storage.rows(space)), [0; 4]);
}

#[tokio::test]
async fn pages_of_100_000_messages_cost_as_much_as_those_of_few() {
    let world = world();
    let mut messages: Vec<_> = (1..=100_000).map(plain).collect();
    for message in messages.iter_mut().filter(|message| message.id.0 % 1_000 == 0) {
        let nurse = jid("nurse@capulet.example");
        message.stanza = message.stanza.with_from(nurse);
    }
    world.add(messages).await.unwrap();
    let page = |inner: &str| format!("{inner}<max>50</max>");
    // An hour in the middle, and the last minute: seconds since 23:00.
    let span = form(&[("start", "2010-07-11T12:00:00Z"), ("end", "2010-07-11T13:00:00Z")]);
    for (name, inner, matches, gets, scans, rows) in [
        ("first", set(&page("")), 50, 0, 1, 1),
        ("last", set(&page("<before/>")), 50, 0, 1, 2),
        // The id, what covers the position behind it, and on from there.
        ("in the middle", set(&page(&format!("<after>{}</after>", id(50_000)))), 50, 0, 3, 4),
        ("index", set(&page("<index>1000</index>")), 50, 0, 2, 19),
        (
            "rare counterpart",
            form(&[("with", "nurse@capulet.example")]) + &set("<before/>"),
            100,
            100,
            2,
            100,
        ),
        ("span of time", span + &set(&page("")), 50, 0, 40, 42),
        ("count", set("<max>0</max>"), 0, 0, 1, 1),
        (
            "count of a counterpart",
            form(&[("with", "nurse@capulet.example")]) + &set("<max>0</max>"),
            0,
            200,
            5,
            201,
        ),
    ] {
        world.storage.calls();
        let answer = world.query(&inner).await.unwrap();
        assert_eq!(answer.positions().len(), matches, "{name}");
        let calls = world.storage.calls();
        let within = calls.gets <= gets && calls.scans <= scans && calls.rows <= rows && calls.commits == 0;
        assert!(within, "{name}: {calls:?}");
    }
}

#[tokio::test]
async fn a_query_for_few_among_many_goes_on_step_by_step() {
    let config = Config { rows_per_query: 100, ..Config::default() };
    let world = with_config(config);
    let mut messages: Vec<_> = (1..=1_000).map(plain).collect();
    for wanted in [5, 450, 998] {
        let stanza = &messages[wanted - 1].stanza;
        messages[wanted - 1].stanza = stanza.with_from(jid("romeo@montague.example/garden"));
    }
    world.add(messages).await.unwrap();
    let filter = form(&[("with", "romeo@montague.example/garden")]);
    for backward in [false, true] {
        let (mut found, mut queries, mut from) = (Vec::new(), 0, String::new());
        loop {
            world.storage.calls();
            let page = if backward { format!("<before>{from}</before>") } else { from.clone() };
            let answer = world.query(&(filter.clone() + &set(&page))).await.unwrap();
            let calls = world.storage.calls();
            assert!(calls.gets <= 103, "{calls:?}");
            queries += 1;
            found.extend(answer.positions());
            assert_eq!(answer.count().is_some(), answer.is_complete() && queries == 1);
            if answer.is_complete() {
                break;
            }
            let next = if backward { answer.first() } else { answer.last() }.expect("where to go on");
            from = if backward { next } else { format!("<after>{next}</after>") };
        }
        found.sort_unstable();
        assert_eq!(found, [5, 450, 998], "backward: {backward}");
        assert!((10..=13).contains(&queries), "{queries} queries");
    }
    // The count is not worth reading everything, and an index that far cannot be found.
    let answer = world.query(&(filter.clone() + &set("<max>0</max>"))).await.unwrap();
    assert_eq!((answer.count(), answer.is_complete()), (None, false));
    let refused = world.refused(&(filter + &set("<index>2</index>"))).await;
    assert_eq!(refused, waystation_core::Condition::FeatureNotImplemented);
}

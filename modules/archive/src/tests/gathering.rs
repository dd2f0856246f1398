//! Messages that gather before they are committed: when that ends, and what holds meanwhile.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use waystation_core::storage::{BoxFuture, StorageError};

use super::store::TestStorage;
use super::world::*;
use crate::chunk::{ROWS, WITH};
use crate::gather::MAX_GATHERED;
use crate::{Config, NS_MAM};

type Add = BoxFuture<'static, Result<(), StorageError>>;

/// A world where nothing but what is tested ends the gathering.
async fn patient() -> World {
    let world = gathering(
        Arc::<TestStorage>::default(),
        Config { gather: Duration::from_secs(3_600), ..Config::default() },
    );
    // From here on the account is known, so that calls take effect at once.
    world.newest().await;
    world.storage.calls();
    world
}

fn add(world: &World, positions: impl IntoIterator<Item = u64>) -> Add {
    world.archive().add(jid(JULIET), positions.into_iter().map(plain).collect())
}

fn large(position: u64, bytes: usize) -> waystation_core::archive::Archived {
    let mut message = plain(position);
    message.stanza = message.stanza.with_appended(&format!("<x xmlns='u'>{}</x>", "x".repeat(bytes)));
    message
}

#[tokio::test]
async fn messages_of_many_calls_are_one_commit_of_one_chunk() {
    let world = patient().await;
    let mut adds: Vec<Add> = (1..FULL).map(|position| add(&world, [position])).collect();
    assert!(adds.iter_mut().all(|add| add.now_or_never().is_none()), "told before it was stored");
    assert_eq!((world.storage.calls().commits, world.storage.rows(ROWS)), (0, 0));
    adds.push(add(&world, [FULL]));
    for add in adds {
        add.now_or_never().expect("committed").unwrap();
    }
    assert_eq!(world.storage.calls().commits, 1);
    assert_eq!((world.storage.rows(ROWS), world.storage.rows(WITH)), (1, 1));
    assert_eq!(world.positions().await, (1..=FULL).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_burst_of_one_call_is_cut_into_chunks() {
    let world = patient().await;
    let mut burst = pin!(add(&world, 1..=3 * FULL + 8));
    assert!(burst.as_mut().now_or_never().is_none());
    assert_eq!((world.storage.calls().commits, world.storage.rows(ROWS)), (3, 3));
    assert_eq!(world.positions().await, (1..=3 * FULL + 8).collect::<Vec<_>>());
    burst.await.unwrap();
    assert_eq!(world.storage.rows(ROWS), 4);
}

#[tokio::test]
async fn large_messages_fill_a_chunk_early() {
    let world = patient().await;
    let adds: Vec<Add> =
        (1..=9).map(|position| world.archive().add(jid(JULIET), vec![large(position, 8_000)])).collect();
    // Five make 32 KiB, four do not.
    assert_eq!((world.storage.calls().commits, world.storage.rows(ROWS)), (1, 1));
    world.flush();
    for add in adds {
        add.await.unwrap();
    }
    assert_eq!(world.storage.rows(ROWS), 2);
}

#[tokio::test(start_paused = true)]
async fn one_clock_ends_the_gathering_of_all_accounts() {
    let world = gathering(Arc::<TestStorage>::default(), Config::default());
    let account = |n: u64| jid(&format!("user{n}@capulet.example"));
    for round in 1..=3 {
        let started = tokio::time::Instant::now();
        let adds: Vec<Add> = (0..50)
            .flat_map(|n| [2 * round, 2 * round + 1].map(|p| (n, p)))
            .map(|(n, position)| world.archive().add(account(n), vec![plain(position)]))
            .collect();
        for add in adds {
            add.await.unwrap();
        }
        assert!(started.elapsed() <= Config::default().gather + Duration::from_millis(100));
        assert!(started.elapsed() >= Config::default().gather - Duration::from_millis(100));
        assert_eq!(world.storage.calls().commits, 50);
        assert_eq!(world.archives.clock.gathered(), 0);
    }
    assert_eq!(world.storage.rows(ROWS), 150);
}

#[tokio::test]
async fn whoever_needs_what_was_gathered_sees_it_at_once() {
    let metadata = format!("<metadata xmlns='{NS_MAM}'/>");
    let prefs = format!("<prefs xmlns='{NS_MAM}' default='never'/>");
    for case in 0..6 {
        let world = patient().await;
        let call = add(&world, [1, 2]);
        match case {
            0 => assert_eq!(world.query("").await.unwrap().positions(), [1, 2]),
            1 => assert_eq!(world.newest().await, Some(2)),
            2 => assert_eq!(world.iq(false, &metadata).await.unwrap().children().count(), 2),
            3 => drop(world.iq(false, &prefs).await.unwrap()),
            4 => drop(world.iq(true, &prefs).await.unwrap()),
            _ => {
                let removed = world.registration.on_account_removed.as_ref().unwrap();
                removed.account_removed(jid(JULIET)).await.unwrap();
                assert_eq!((world.newest().await, world.storage.rows(ROWS)), (None, 0));
            }
        }
        call.now_or_never().unwrap_or_else(|| panic!("case {case}")).unwrap();
        assert_eq!(world.archives.clock.gathered(), 0);
    }
}

#[tokio::test]
async fn retention_and_late_messages_see_what_was_gathered() {
    let config = Config { gather: Duration::from_secs(3_600), max_messages: Some(3), ..Config::default() };
    let world = gathering(Arc::<TestStorage>::default(), config);
    world.newest().await;
    let first = add(&world, [2, 4, 6, 8, 10]);
    let late = add(&world, [4, 5]);
    let behind = add(&world, [12]);
    // The late one begins by committing what came before it.
    let _ = late.await;
    first.now_or_never().unwrap().unwrap();
    let last = tokio::spawn(behind);
    world.flush();
    last.await.unwrap().unwrap();
    world.archives.sweep(at(0)).await.unwrap();
    assert_eq!(world.positions().await, [8, 10, 12]);
    world.check_store();
}

#[tokio::test]
async fn all_accounts_together_gather_no_more_than_the_bound() {
    let world = patient().await;
    let account = |n: u64| jid(&format!("user{n}@capulet.example"));
    let mut most = 0;
    let mut adds = Vec::new();
    for n in 0..1_000 {
        world.archive().newest(account(n)).await.unwrap();
        adds.push(world.archive().add(account(n), vec![large(1, 20_000)]));
        most = most.max(world.archives.clock.gathered());
        assert!(world.archives.clock.gathered() < MAX_GATHERED, "{n}");
    }
    assert!(most > MAX_GATHERED * 9 / 10, "{most}");
    let stored = world.storage.rows(ROWS);
    assert!(stored > 500 && stored < 1_000, "{stored}");
    let mut done = 0;
    for add in &mut adds {
        // A task may do so much at once and no more.
        tokio::task::yield_now().await;
        done += usize::from(add.now_or_never().is_some_and(|outcome| outcome.is_ok()));
    }
    assert_eq!(done, stored);
    // Those that are not waited for any more are committed all the same.
    drop(adds);
    for n in 0..1_000 {
        assert!(world.archive().newest(account(n)).await.unwrap().is_some());
    }
    assert_eq!((world.archives.clock.gathered(), world.storage.rows(ROWS)), (0, 1_000));
}

#[tokio::test]
async fn what_is_gathered_does_not_hold_on_to_what_it_came_in() {
    let world = patient().await;
    let message = plain(1);
    let tail = message.stanza.wire().1.clone();
    assert!(!tail.is_unique());
    let call = world.archive().add(jid(JULIET), vec![message]);
    assert!(tail.is_unique(), "the stanza's buffer is kept");
    world.flush();
    call.await.unwrap();
}

#[tokio::test]
async fn a_crash_before_the_commit_leaves_nothing_half_done() {
    let world = patient().await;
    add(&world, 1..=FULL).await.unwrap();
    let lost = add(&world, [FULL + 1, FULL + 2]);
    let again = over(Arc::new(world.storage.copy()), Config::default());
    assert_eq!((again.newest().await, again.positions().await.len()), (Some(FULL), FULL as usize));
    // The route hands over what is behind that, here with some of what is there.
    again.fill(FULL - 4..=FULL + 6).await;
    assert_eq!(again.positions().await, (1..=FULL + 6).collect::<Vec<_>>());
    assert_eq!(again.query(&set("<max>0</max>")).await.unwrap().count(), Some(FULL as usize + 6));
    again.check_store();
    drop(lost);
}

#[tokio::test]
async fn a_commit_that_fails_is_told_to_all_that_gathered_behind_it() {
    let world = patient().await;
    world.storage.hold();
    world.storage.fail_commits(0, 1);
    let stored = add(&world, 1..=FULL);
    let behind = add(&world, [FULL + 1]);
    world.storage.release();
    assert!(matches!(stored.await, Err(StorageError::Full)));
    let outcome = behind.now_or_never().expect("told at once");
    assert!(matches!(outcome, Err(StorageError::Full)), "{outcome:?}");
    assert_eq!((world.archives.clock.gathered(), world.newest().await), (0, None));
    // What comes later is taken, and what failed when it is handed over again.
    let again = add(&world, 1..=FULL + 2);
    assert_eq!(world.positions().await, (1..=FULL + 2).collect::<Vec<_>>());
    again.await.unwrap();
    world.check_store();
}

#[tokio::test]
async fn a_server_that_stops_waits_for_nothing_that_gathers() {
    let world = patient().await;
    let before = add(&world, [1]);
    world.module.stop_gathering()();
    before.now_or_never().expect("committed").unwrap();
    add(&world, 2..=100).now_or_never().expect("committed").unwrap();
    assert_eq!(world.positions().await, (1..=100).collect::<Vec<_>>());
}

#[test]
fn the_end_of_the_runtime_that_the_clock_runs_on_commits_what_was_gathered() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (world, call) = first.block_on(async {
        let world = patient().await;
        let call = add(&world, [1]);
        tokio::task::yield_now().await;
        (world, call)
    });
    drop(first);
    runtime().block_on(async {
        call.await.unwrap();
        let call = add(&world, [2]);
        assert_eq!(world.newest().await, Some(2));
        call.await.unwrap();
    });
}

/// Numbers of messages at the edges of three full chunks and one of eight behind them, and beside them.
fn edges() -> impl Iterator<Item = usize> {
    let full = FULL as usize;
    let beside = (1..=3).flat_map(move |n| [n * full - 1, n * full, n * full + 1]);
    [1, 2].into_iter().chain(beside).chain([3 * full + 7, 3 * full + 8])
}

#[tokio::test]
async fn pages_meet_at_the_edges_of_chunks() {
    let full = FULL as usize;
    let total = 3 * full + 8;
    let world = with_config(Config { page_limit: 2 * full, ..Config::default() });
    let all: Vec<u64> = (1..=total as u64).map(|n| n * 2).collect();
    world.fill(all.clone()).await;
    world.check_store();
    for edge in edges() {
        let place = edge - 1;
        for size in [1, 2, full - 1, full, full + 1, full + full / 2] {
            let page = |at: &str| set(&format!("<max>{size}</max><{at}>{}</{at}>", id(all[place])));
            let answer = world.query(&page("after")).await.unwrap();
            let expected = &all[edge..(edge + size).min(total)];
            assert_eq!(answer.positions(), expected, "{size} after {edge}");
            assert_eq!(answer.is_complete(), edge + size >= total, "{size} after {edge}");
            let answer = world.query(&page("before")).await.unwrap();
            assert_eq!(answer.positions(), &all[place.saturating_sub(size)..place], "{size} before {edge}");
            assert_eq!(answer.is_complete(), size >= place, "{size} before {edge}");
        }
        let ids = form(&[("ids", &format!("{}</value><value>{}", id(all[place]), id(2)))]);
        let expected = if place == 0 { vec![2] } else { vec![2, all[place]] };
        assert_eq!(world.query(&ids).await.unwrap().positions(), expected);
        // Between two messages of a chunk there is none.
        let refused = world.refused(&set(&format!("<after>{}</after>", id(all[place] + 1)))).await;
        assert_eq!(refused, waystation_core::Condition::ItemNotFound);
    }
}

#[tokio::test]
async fn retention_cuts_chunks_at_their_edges_and_between() {
    let total = 3 * FULL + 8;
    // Counted from the end, where a chunk of eight is.
    let inside = [0, 1, 7, 8, 9, FULL - 1, FULL, FULL + 7, FULL + 8, FULL + 9];
    for keep in inside.into_iter().chain([2 * FULL + 7, 2 * FULL + 8, 2 * FULL + 9, total - 1, total]) {
        let world = with_config(Config { max_messages: Some(keep), ..Config::default() });
        world.fill(1..=total).await;
        world.archives.sweep(at(0)).await.unwrap();
        let left: Vec<u64> = (total + 1 - keep..=total).collect();
        assert_eq!(world.positions().await, left);
        let romeo = form(&[("with", "romeo@montague.example")]);
        assert_eq!(world.query(&(romeo + &set("<max>0</max>"))).await.unwrap().count(), Some(left.len()));
        if keep < total {
            let gone = world.refused(&set(&format!("<after>{}</after>", id(total - keep)))).await;
            assert_eq!(gone, waystation_core::Condition::ItemNotFound);
        }
        world.check_store();
        world.fill([150, total + 1]).await;
        assert_eq!(world.query("").await.unwrap().count(), Some(left.len() + 1));
    }
}

#[tokio::test]
async fn late_messages_find_their_place_in_before_and_between_chunks() {
    let world = world();
    // Full chunks of even positions, and room between two of them.
    let span = 2 * FULL;
    world.fill((1..=FULL).map(|n| n * 2 + 1_000)).await;
    world.fill((1..=FULL).map(|n| n * 2 + 2_000)).await;
    let mut expected = world.positions_of_store();
    let first = [1_003, 999 + span, 1_001 + span, 1_500, 1_501, 1_999, 2_003, 2_001];
    for late in first.into_iter().chain([1, 999, 1_005, 1_007, 1_999 + span]) {
        world.fill([late]).await;
        expected.push(late);
        expected.sort_unstable();
        assert_eq!(world.positions_of_store(), expected, "{late}");
        assert_eq!(world.positions().await, expected, "{late}");
        world.check_store();
    }
    assert_eq!(world.query("").await.unwrap().count(), Some(expected.len()));
}

#[tokio::test]
async fn what_one_query_reads_is_bounded_in_bytes() {
    let world = world();
    for first in 0..10 {
        world.add((1..=100).map(|n| large(first * 100 + n, 50_000)).collect()).await.unwrap();
    }
    // An address of the account itself may be party to any message.
    let nobody = form(&[("with", "juliet@capulet.example/nowhere")]);
    for backward in [false, true] {
        let (mut queries, mut edge) = (0, String::new());
        loop {
            queries += 1;
            let page = match (backward, edge.is_empty()) {
                (true, _) => format!("<before>{edge}</before>"),
                (false, true) => String::new(),
                (false, false) => format!("<after>{edge}</after>"),
            };
            let answer = world.query(&(nobody.clone() + &set(&page))).await.unwrap();
            assert_eq!(answer.positions(), Vec::<u64>::new());
            if answer.is_complete() {
                break;
            }
            edge = answer.last().expect("where to go on");
        }
        assert_eq!(queries, 2, "backward: {backward}");
    }
}

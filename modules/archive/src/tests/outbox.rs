//! Full chunks that wait for those of others: when that ends, and what holds meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use waystation_core::storage::{BoxFuture, StorageError};

use super::store::TestStorage;
use super::world::*;
use crate::Config;
use crate::chunk::ROWS;
use crate::outbox::{MAX_SEALED, TOGETHER};

type Add = BoxFuture<'static, Result<(), StorageError>>;

fn account(n: u64) -> waystation_core::Jid {
    jid(&format!("user{n}@capulet.example"))
}

/// A world whose accounts are known, and in which a chunk has just gone to the store.
async fn busy(accounts: u64) -> World {
    let world = gathering(
        Arc::<TestStorage>::default(),
        Config { gather: Duration::from_secs(3_600), ..Config::default() },
    );
    world.newest().await;
    for n in 0..accounts {
        world.archive().newest(account(n)).await.unwrap();
    }
    world.archive().newest(jid("first@capulet.example")).await.unwrap();
    world.storage.calls();
    let first = world.archive().add(jid("first@capulet.example"), (1..=FULL).map(plain).collect());
    first.now_or_never().expect("nothing to wait for").unwrap();
    assert_eq!(world.storage.calls().commits, 1);
    world
}

fn add(world: &World, positions: impl IntoIterator<Item = u64>) -> Add {
    world.archive().add(jid(JULIET), positions.into_iter().map(plain).collect())
}

/// A message that fills a chunk, and cannot be compressed by half.
fn noise(position: u64) -> waystation_core::archive::Archived {
    let mut state = position;
    let mut digit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        char::from(b"0123456789abcdefghijklmnopqrstuv"[(state >> 59) as usize])
    };
    let text: String = (0..40_000).map(|_| digit()).collect();
    let mut message = plain(position);
    message.stanza = message.stanza.with_appended(&format!("<x xmlns='u'>{text}</x>"));
    message
}

#[tokio::test(start_paused = true)]
async fn full_chunks_of_many_accounts_go_to_the_store_together() {
    let world = busy(50).await;
    for round in 0..3 {
        let started = tokio::time::Instant::now();
        let mut adds: Vec<Add> = (0..50)
            .map(|n| world.archive().add(account(n), (1..=FULL).map(|p| plain(round * FULL + p)).collect()))
            .collect();
        assert!(adds.iter_mut().all(|add| add.now_or_never().is_none()), "told before it was stored");
        assert_eq!(world.storage.calls().commits, 0, "round {round}");
        for add in adds {
            add.await.unwrap();
        }
        // The clock counts whole milliseconds.
        assert!(started.elapsed() <= TOGETHER + Duration::from_millis(1), "{:?}", started.elapsed());
        assert_eq!(world.storage.calls().commits, 50);
    }
    tokio::time::advance(TOGETHER).await;
    add(&world, 1..=FULL).now_or_never().expect("after a rest at once").unwrap();
    assert_eq!(world.storage.rows(ROWS), 152);
}

#[tokio::test(start_paused = true)]
async fn so_many_bytes_wait_for_no_others() {
    let world = busy(100).await;
    let mut adds = Vec::new();
    let mut commits = Vec::new();
    for n in 0..100 {
        adds.push(world.archive().add(account(n), vec![noise(1)]));
        assert!(world.archives.outbox.bytes() < MAX_SEALED, "{n}");
        commits.push(world.storage.calls().commits);
    }
    commits.retain(|count| *count > 0);
    // 25 to 41 chunks of that size make a mebibyte.
    assert!((2..=4).contains(&commits.len()), "{commits:?}");
    assert!(commits.iter().all(|count| (25..=41).contains(count)), "{commits:?}");
    for add in adds {
        add.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_needs_a_chunk_that_waits_sees_it_at_once() {
    let world = busy(1).await;
    let started = tokio::time::Instant::now();
    let call = add(&world, (1..=FULL).map(|n| n * 2));
    assert_eq!(world.storage.calls().commits, 0);
    assert_eq!(world.positions().await.len() as u64, FULL);
    call.now_or_never().expect("committed").unwrap();
    // A change goes behind it, here a message that belongs into the chunk that waits.
    let call = add(&world, (FULL + 1..=2 * FULL).map(|n| n * 2));
    assert_eq!(world.storage.rows(ROWS), 2);
    add(&world, [2 * FULL + 27]).await.unwrap();
    call.now_or_never().expect("committed").unwrap();
    assert_eq!(world.positions().await.len() as u64, 2 * FULL + 1);
    // What another account asks for takes it along.
    let call = add(&world, 1_001..=1_000 + FULL);
    world.archive().newest(account(0)).await.unwrap();
    call.now_or_never().expect("committed").unwrap();
    assert!(started.elapsed() < TOGETHER);
    world.check_store();
}

#[tokio::test(start_paused = true)]
async fn a_commit_that_fails_is_told_to_what_waited_behind_it() {
    let world = busy(0).await;
    world.storage.fail_commits(0, 1);
    let calls = [add(&world, 1..=FULL), add(&world, FULL + 1..=2 * FULL), add(&world, [2 * FULL + 1])];
    for call in calls {
        let outcome = call.await;
        assert!(matches!(outcome, Err(StorageError::Full)), "{outcome:?}");
    }
    add(&world, 1..=2 * FULL + 1).now_or_never();
    assert_eq!(world.positions().await, (1..=2 * FULL + 1).collect::<Vec<_>>());
    world.check_store();
}

#[tokio::test(start_paused = true)]
async fn a_server_that_stops_waits_for_no_chunk() {
    let world = busy(0).await;
    let before = add(&world, 1..=FULL);
    assert_eq!(world.storage.calls().commits, 0);
    world.module.stop_gathering()();
    before.now_or_never().expect("committed").unwrap();
    add(&world, FULL + 1..=3 * FULL).now_or_never().expect("committed").unwrap();
}

#[test]
fn the_end_of_the_runtime_that_the_wait_runs_on_sends_what_waited() {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    };
    let first = runtime();
    let (world, call) = first.block_on(async {
        let world = busy(0).await;
        let call = add(&world, 1..=FULL);
        tokio::task::yield_now().await;
        (world, call)
    });
    assert_eq!(world.storage.calls().commits, 0);
    drop(first);
    assert_eq!(world.storage.calls().commits, 1);
    runtime().block_on(async {
        call.await.unwrap();
        assert_eq!(world.newest().await, Some(FULL));
    });
}

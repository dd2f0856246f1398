//! How many commits it takes when each is slow.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Barrier;
use tokio::time::timeout;
use waystation_route::intake::{Item, Stored};

use crate::common::{World, quick, world};

const DEADLINE: Duration = Duration::from_secs(60);
const ROUNDS: u64 = 20;

/// Stores something small, and comes back when it is stored.
async fn store(world: &World) {
    let stored = Arc::new(Stored::default());
    world.intake.offer(Item::Note("n/somebody".into(), Bytes::from_static(b"note"), stored.clone()));
    poll_fn(|cx| stored.poll(cx).map_or(Poll::Pending, |_| Poll::Ready(()))).await;
}

/// Two groups of ten, of which the second begins while the first is being stored, each of whom goes on as soon
/// as it has its answer.
#[actix_rt::test]
async fn those_whom_a_slow_commit_answers_share_the_next_one() {
    let world = Rc::new(world(quick()).await);
    world.queue.takes.store(20, Ordering::SeqCst);
    let start = Rc::new(Barrier::new(10));
    let mut all = Vec::new();
    for n in 0..20 {
        let (world, start) = (Rc::clone(&world), Rc::clone(&start));
        all.push(actix_rt::spawn(async move {
            if n >= 10 {
                start.wait().await;
                while world.queue.commits.load(Ordering::SeqCst) == 0 {
                    tokio::task::yield_now().await;
                }
            }
            for _ in 0..ROUNDS {
                store(&world).await;
            }
        }));
    }
    for one in all {
        timeout(DEADLINE, one).await.expect("stored in time").unwrap();
    }
    // Each group with commits of its own would need 40. One was the first group's alone.
    let commits = world.queue.commits.load(Ordering::SeqCst);
    assert!((ROUNDS..=ROUNDS + 6).contains(&commits), "{commits} commits");
    let times = world.router.intake().commit_times().unwrap();
    assert_eq!(times.commits as u64, commits as u64);
    assert!(times.median >= Duration::from_millis(20) && times.p99 >= times.median, "{times:?}");
}

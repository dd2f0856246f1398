use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use futures_util::future::join_all;
use waystation_committer::{FreeSpace, Limit};
use waystation_core::storage::{Row, ScanRange, Space};

use super::*;
use crate::engine::MemoryEngine;

const SPACE: Space = Space("rows");

/// What a commit of the engine does.
enum Step {
    Succeed,
    Fail(StorageError),
    Panic,
}

/// An engine that does what it is told, commit by commit, and counts its commits.
struct Scripted {
    memory: MemoryEngine,
    steps: Mutex<Receiver<Step>>,
    commits: Arc<AtomicU64>,
}

impl Engine for Scripted {
    const NAME: &'static str = "scripted";
    const ON_DISK: bool = true;

    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.memory.get(space, key)
    }

    fn scan(&self, space: Space, range: &ScanRange) -> Result<Vec<Row>, StorageError> {
        self.memory.scan(space, range)
    }

    fn commit(&self, changes: Changes) -> Result<(), StorageError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        let step = self.steps.lock().unwrap().recv().unwrap();
        match step {
            Step::Succeed => self.memory.commit(changes),
            Step::Fail(error) => Err(error),
            Step::Panic => panic!("the panic that this test wants"),
        }
    }

    fn close(self) -> Result<(), StorageError> {
        Ok(())
    }
}

struct Bench {
    shared: Arc<Shared<Scripted>>,
    steps: SyncSender<Step>,
    commits: Arc<AtomicU64>,
    closed: oneshot::Receiver<Outcome>,
}

impl Bench {
    fn new(reserve: Reserve) -> Self {
        let (steps, script) = sync_channel(100);
        let commits = Arc::new(AtomicU64::new(0));
        let engine = Scripted {
            memory: MemoryEngine::default(),
            steps: Mutex::new(script),
            commits: Arc::clone(&commits),
        };
        let limit = Limit { entries: 1000, bytes: 1_000_000 };
        let shared =
            Arc::new(Shared { engine: RwLock::new(Some(engine)), inbox: Arc::new(Inbox::new(limit, limit)) });
        let (ended, closed) = oneshot::channel();
        let committer = Committer { shared: Arc::clone(&shared), reserve };
        std::thread::spawn(move || committer.run(ended));
        Self { shared, steps, commits, closed }
    }

    fn commit(&self, batch: Batch) -> impl Future<Output = Outcome> + use<> {
        let queued = self.shared.inbox.push(batch, 1);
        async move { queued?.await }
    }

    fn get(&self, key: &str) -> Option<Bytes> {
        self.shared.with_engine(|engine| engine.get(SPACE, key.as_bytes())).unwrap()
    }
}

fn put(key: &'static str, value: &'static str) -> Batch {
    Batch::new().put(SPACE, key, value)
}

#[tokio::test]
async fn what_queues_up_during_a_flush_shares_the_next_one() {
    let bench = Bench::new(Reserve::none());
    let first = bench.commit(put("first", "1"));
    while bench.commits.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    // The engine is busy with the first until it is given its step.
    let others: Vec<_> = (0..200).map(|_| bench.commit(put("other", "1"))).collect();
    let conflict = bench.commit(put("other", "2").expect(SPACE, "other", None));
    bench.steps.send(Step::Succeed).unwrap();
    first.await.unwrap();
    assert!(bench.get("other").is_none());
    bench.steps.send(Step::Succeed).unwrap();
    for outcome in join_all(others).await {
        outcome.unwrap();
    }
    assert!(matches!(conflict.await, Err(StorageError::Conflict)));
    assert_eq!(bench.commits.load(Ordering::SeqCst), 2);
}

/// SECURITY.md section 6: an error of fsync, and then none, is a failure for good.
#[tokio::test]
async fn after_a_failed_commit_nothing_is_written_and_reads_go_on() {
    let bench = Bench::new(Reserve::none());
    bench.steps.send(Step::Succeed).unwrap();
    bench.commit(put("before", "1")).await.unwrap();
    bench.steps.send(Step::Fail(StorageError::Io("EIO".to_owned()))).unwrap();
    let failing = [bench.commit(put("a", "1")), bench.commit(put("b", "1").expect(SPACE, "a", None))];
    let [a, b] = failing;
    let error = a.await.unwrap_err();
    assert!(matches!(&error, StorageError::Io(text) if text == "EIO"), "{error:?}");
    // In the same group or after it, but never acknowledged.
    assert!(matches!(b.await, Err(StorageError::Io(_) | StorageError::Closed)));
    bench.steps.send(Step::Succeed).unwrap();
    for _ in 0..3 {
        assert!(matches!(bench.commit(put("later", "1")).await, Err(StorageError::Closed)));
    }
    assert_eq!(bench.commits.load(Ordering::SeqCst), 2, "the engine was asked to write again");
    assert_eq!(bench.get("before").unwrap(), "1");
    assert_eq!(bench.get("later"), None);
    bench.shared.inbox.close();
    let closed = bench.closed.await.unwrap();
    assert!(matches!(closed, Err(StorageError::Io(_))), "the failure shows when closing: {closed:?}");
}

#[tokio::test]
async fn a_panic_of_the_engine_is_a_failed_commit() {
    let bench = Bench::new(Reserve::none());
    bench.steps.send(Step::Panic).unwrap();
    assert!(matches!(bench.commit(put("a", "1")).await, Err(StorageError::Io(_))));
    assert!(matches!(bench.commit(put("a", "1")).await, Err(StorageError::Closed)));
    bench.shared.inbox.close();
    bench.closed.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_group_of_conflicts_writes_nothing() {
    let bench = Bench::new(Reserve::none());
    let batch = put("a", "1").expect(SPACE, "a", Some("0".into()));
    assert!(matches!(bench.commit(batch).await, Err(StorageError::Conflict)));
    bench.commit(Batch::new()).await.unwrap();
    assert_eq!(bench.commits.load(Ordering::SeqCst), 0);
}

/// SECURITY.md section 6: a full disk refuses writes, and once it is freed they go on.
#[tokio::test]
async fn a_nearly_full_disk_refuses_writes_until_there_is_room_again() {
    let available = Arc::new(AtomicU64::new(1000));
    let probe = {
        let available = Arc::clone(&available);
        move || match available.load(Ordering::SeqCst) {
            0 => Err(io::Error::other("no answer")),
            available => Ok(FreeSpace { available, total: 10_000 }),
        }
    };
    let bench = Bench::new(Reserve::new("the store", Box::new(probe.clone()), Some(600)));
    for _ in 0..5 {
        bench.steps.send(Step::Succeed).unwrap();
    }
    bench.commit(put("a", "1").put(SPACE, "b", "1")).await.unwrap();
    available.store(599, Ordering::SeqCst);
    assert!(matches!(bench.commit(put("a", "2")).await, Err(StorageError::Full)));
    assert!(matches!(bench.commit(put("c", "1").delete(SPACE, "b")).await, Err(StorageError::Full)));
    assert_eq!(bench.get("a").unwrap(), "1");
    assert_eq!(bench.get("b").unwrap(), "1");
    bench.commit(Batch::new().delete(SPACE, "b")).await.unwrap();
    assert_eq!(bench.get("b"), None, "what makes room is let through");
    available.store(600, Ordering::SeqCst);
    bench.commit(put("a", "3")).await.unwrap();
    available.store(0, Ordering::SeqCst);
    bench.commit(put("a", "4")).await.unwrap();
    assert_eq!(bench.get("a").unwrap(), "4", "not knowing refuses nothing");

    // By default a twentieth of the device is kept free; with 0 nothing is.
    available.store(499, Ordering::SeqCst);
    let bench = Bench::new(Reserve::new("the store", Box::new(probe.clone()), None));
    assert!(matches!(bench.commit(put("a", "1")).await, Err(StorageError::Full)));
    let bench = Bench::new(Reserve::new("the store", Box::new(probe), Some(0)));
    bench.steps.send(Step::Succeed).unwrap();
    bench.commit(put("a", "1")).await.unwrap();
}

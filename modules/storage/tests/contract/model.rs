//! Random batches and scans, compared with a sorted map.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use waystation_committer::block_on;
use waystation_core::storage::{Batch, Expect, Op, ScanRange, Space, Storage, StorageError};
use waystation_storage::Kind;

use crate::support::Backend;

const SPACES: [Space; 2] = [Space("rows"), Space("rows_too")];

type Model = BTreeMap<(Space, Bytes), Bytes>;

/// What is done to the store.
#[derive(Clone, Debug)]
enum Step {
    Commit(Batch),
    Scan(Space, ScanRange),
    Reopen,
}

/// Few keys, so that they meet, with the bytes that separate and bound others among them.
fn key() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(prop::sample::select(vec![0, 1, b'a', b'b', 0xff]), 1..4).prop_map(Bytes::from)
}

fn space() -> impl Strategy<Value = Space> {
    prop::sample::select(SPACES.to_vec())
}

fn value() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..3).prop_map(Bytes::from),
        1 => (any::<u8>(), 3000..9000_usize).prop_map(|(byte, len)| Bytes::from(vec![byte; len])),
    ]
}

fn batch() -> impl Strategy<Value = Batch> {
    let op = prop_oneof![
        3 => (space(), key(), value()).prop_map(|(space, key, value)| Op::Put { space, key, value }),
        2 => (space(), key()).prop_map(|(space, key)| Op::Delete { space, key }),
    ];
    // A condition that names a value hardly ever holds, unless it is one of few.
    let value =
        prop::option::of(prop::collection::vec(any::<bool>().prop_map(u8::from), 0..1).prop_map(Bytes::from));
    let expect = (space(), key(), value).prop_map(|(space, key, value)| Expect { space, key, value });
    (prop::collection::vec(expect, 0..2), prop::collection::vec(op, 0..8))
        .prop_map(|(expects, ops)| Batch { expects, ops })
}

fn range() -> impl Strategy<Value = ScanRange> {
    let bound = || {
        prop_oneof![
            Just(Bound::Unbounded),
            key().prop_map(Bound::Included),
            key().prop_map(Bound::Excluded),
            Just(Bound::Included(Bytes::new())),
        ]
    };
    let limit = prop_oneof![0..6_usize, Just(1000), Just(5000)];
    prop_oneof![
        2 => (bound(), bound(), any::<bool>(), limit.clone())
            .prop_map(|(start, end, reverse, limit)| ScanRange { start, end, reverse, limit }),
        1 => (key(), any::<bool>(), limit).prop_map(|(prefix, reverse, limit)| {
            let range = ScanRange::prefix(prefix, limit);
            if reverse { range.reversed() } else { range }
        }),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        10 => batch().prop_map(Step::Commit),
        10 => (space(), range()).prop_map(|(space, range)| Step::Scan(space, range)),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// Applies a batch to the model; false when a condition does not hold.
fn apply(model: &mut Model, batch: &Batch) -> bool {
    let holds = |expect: &Expect| model.get(&(expect.space, expect.key.clone())) == expect.value.as_ref();
    if !batch.expects.iter().all(holds) {
        return false;
    }
    for op in &batch.ops {
        match op.clone() {
            Op::Put { space, key, value } => model.insert((space, key), value),
            Op::Delete { space, key } => model.remove(&(space, key)),
        };
    }
    true
}

/// The rows of a range by looking at each, for the map panics on some empty ranges.
fn scan(model: &Model, space: Space, range: &ScanRange) -> Vec<(Bytes, Bytes)> {
    let within = |key: &Bytes| {
        let after = match &range.start {
            Bound::Unbounded => true,
            Bound::Included(start) => key >= start,
            Bound::Excluded(start) => key > start,
        };
        after
            && match &range.end {
                Bound::Unbounded => true,
                Bound::Included(end) => key <= end,
                Bound::Excluded(end) => key < end,
            }
    };
    let mut rows: Vec<_> = model
        .iter()
        .filter(|((at, key), _)| *at == space && within(key))
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .collect();
    if range.reverse {
        rows.reverse();
    }
    rows.truncate(range.limit);
    rows
}

async fn run(kind: Kind, steps: Vec<Step>) {
    let backend = Backend::new(kind);
    let mut store: Arc<dyn Storage> = backend.open();
    let mut model = Model::new();
    for (n, step) in steps.into_iter().enumerate() {
        match step {
            Step::Commit(batch) => {
                let expected = apply(&mut model, &batch);
                match store.commit(batch).await {
                    Ok(()) => assert!(expected, "step {n}: a condition did not hold"),
                    Err(StorageError::Conflict) => assert!(!expected, "step {n}: every condition held"),
                    Err(error) => panic!("step {n}: {error}"),
                }
            }
            Step::Scan(space, range) => {
                let rows = store.scan(space, range.clone()).await.expect("readable");
                assert_eq!(rows, scan(&model, space, &range), "step {n}: {range:?}");
            }
            Step::Reopen if backend.is_durable() => store = backend.reopen(store).await,
            Step::Reopen => {}
        }
    }
    for space in SPACES {
        let all = ScanRange::prefix("", usize::MAX);
        let rows = store.scan(space, all.clone()).await.expect("readable");
        assert_eq!(rows, scan(&model, space, &all), "at the end");
        for (key, value) in rows {
            assert_eq!(store.get(space, key).await.expect("readable"), Some(value));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fjall_is_like_a_sorted_map(steps in steps()) {
        block_on(run(Kind::Fjall, steps));
    }

    #[test]
    fn sled_is_like_a_sorted_map(steps in steps()) {
        block_on(run(Kind::Sled, steps));
    }

    #[test]
    fn memory_is_like_a_sorted_map(steps in steps()) {
        block_on(run(Kind::Memory, steps));
    }
}

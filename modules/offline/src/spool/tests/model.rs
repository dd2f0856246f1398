//! The spool against a list in memory, over the server's own memory store.

use proptest::prelude::*;
use waystation_storage::{DataDir, Kind, Options};

use super::*;

#[derive(Clone, Debug)]
enum Action {
    /// So many calls at once, then all are awaited.
    Store(usize),
    /// Messages at these places, as far as they exist, are removed.
    Remove(Vec<usize>),
    Clear,
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (1usize..5).prop_map(Action::Store),
        3 => proptest::collection::vec(0usize..8, 0..4).prop_map(Action::Remove),
        1 => Just(Action::Clear),
        1 => Just(Action::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn the_spool_agrees_with_a_list(actions in proptest::collection::vec(action(), 1..16)) {
        const LIMIT: usize = 6;
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(folder.path()).unwrap();
        let options = Options { kind: Kind::Memory, ..Options::default() };
        let storage = waystation_storage::open(&data_dir, &options).unwrap();
        let limits = Limits { messages: LIMIT, ..ROOMY };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut spool = Spool::new(storage.clone(), limits);
            let mut model: Vec<String> = Vec::new();
            let mut next = 0;
            for action in actions {
                match action {
                    Action::Store(count) => {
                        let bodies: Vec<_> = (next..next + count).map(|number| number.to_string()).collect();
                        next += count;
                        let calls: Vec<_> = bodies.iter().map(|body| spool.store(juliet(), message(body))).collect();
                        for (body, result) in bodies.into_iter().zip(join_all(calls).await) {
                            assert_eq!(result.is_ok(), model.len() < LIMIT);
                            if result.is_ok() {
                                model.push(body);
                            }
                        }
                    }
                    Action::Remove(mut places) => {
                        places.sort_unstable();
                        places.dedup();
                        let stored = spool.load(juliet(), None, LIMIT).await.unwrap();
                        let keys = places.iter().filter_map(|place| stored.get(*place)).map(|message| message.key.clone());
                        spool.remove(juliet(), keys.collect()).await.unwrap();
                        let mut place = 0;
                        model.retain(|_| {
                            place += 1;
                            !places.contains(&(place - 1))
                        });
                    }
                    Action::Clear => {
                        spool.clear(juliet()).await.unwrap();
                        model.clear();
                    }
                    Action::Restart => spool = Spool::new(storage.clone(), limits),
                }
                assert_eq!(bodies(&spool, juliet()).await, model);
                assert_eq!(spool.count(juliet()).await.unwrap(), model.len());
            }
        });
    }
}

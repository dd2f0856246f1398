//! The checker is itself tested: clean histories pass, and every mutation trips exactly its check.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_checker::checks::check;

mod model;

#[test]
fn ten_thousand_clean_histories_pass() {
    let mut events = 0;
    for seed in 0..10_000 {
        let history = model::clean(seed);
        events += history.len();
        let found = check(&history);
        assert!(
            found.is_empty(),
            "seed {seed}: {:#?}\n{}",
            found,
            waystation_checker::report::Report::of(&history)
        );
    }
    assert!(events > 1_000_000, "only {events} events: the histories are too small to prove much");
}

//! The checker is itself tested: clean histories pass, and every mutation trips exactly its check.
//!
//! A mutation is applied to many random histories that have a place for it; where
//! it has none in a history, it is left out there, but it must find enough of them.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeSet;

use waystation_checker::checks::{Check, check};
use waystation_checker::history::History;
use waystation_checker::report::Report;
use waystation_checker::rng::Rng;

mod model;
mod mutate;

#[test]
fn ten_thousand_clean_histories_pass() {
    let mut events = 0;
    for seed in 0..10_000 {
        let history = model::clean(seed);
        events += history.len();
        let found = check(&history);
        assert!(found.is_empty(), "seed {seed}: {}", Report::of(&history));
    }
    assert!(events > 1_000_000, "only {events} events: the histories are too small to prove much");
}

/// A run of hours must not take hours to check.
#[test]
fn a_million_events_are_checked_in_seconds() {
    let shape = model::Shape { steps: 330_000, accounts: 8, archive: true, room: true };
    let history = model::with_shape(1, shape);
    let events = history.len();
    let start = std::time::Instant::now();
    let report = Report::of(&history);
    let took = start.elapsed();
    println!("{events} events in {took:?}");
    assert!(report.passed(), "{report}");
    assert!(events > 1_000_000, "{events} events");
    // Many times what it takes: this is about growth with the square of the length.
    assert!(took < std::time::Duration::from_secs(60), "{events} events took {took:?}");
}

/// Applies a mutation to random histories, and demands that exactly this check notices.
fn trips(expected: Check, mutation: fn(&mut History, &mut Rng) -> Option<()>) {
    const ENOUGH: usize = 60;
    let mut applied = 0;
    for seed in 20_000..26_000 {
        let mut history = model::clean(seed);
        if mutation(&mut history, &mut Rng::fork(seed, 2)).is_none() {
            continue;
        }
        let tripped: BTreeSet<Check> = check(&history).iter().map(|w| w.check).collect();
        assert_eq!(tripped, BTreeSet::from([expected]), "seed {seed}: {}", Report::of(&history));
        applied += 1;
        if applied == ENOUGH {
            return;
        }
    }
    panic!("the mutation found a place in {applied} histories only");
}

macro_rules! mutations {
    ($($name:ident => $check:ident;)*) => {
        $(#[test]
        fn $name() {
            trips(Check::$check, mutate::$name);
        })*
    };
}

mutations! {
    lose_everywhere => C1;
    lose_from_live_without_archive => C1;
    alter_body => C2;
    alter_archived_body => C2;
    invent => C2;
    forge_sender => C2;
    readdress => C2;
    change_addressee => C2;
    repeat_at_once => C3;
    repeat_with_new_id => C3;
    same_id_for_two => C3;
    show_archived_twice => C3;
    archive_twice => C3b;
    swap_of_one_sender => C4;
    swap_archived_of_one_sender => C4;
    raise_h => C5;
    lower_h => C5;
    lower_resumed_h => C5;
    deny_handled => C5;
    bounce_delivered => C6;
    swap_in_room => C7;
    gap_in_room => C7;
    swap_of_two_senders => C8;
    lose_from_archive => C8;
    no_answer => C9;
    archive_without_end => C9;
    fault_without_end => C9;
    double_bind => C10;
    forget_change => C11;
    revive_removed => C11;
    overload_for_good => C12;
    unknown_error_type => C12;
}

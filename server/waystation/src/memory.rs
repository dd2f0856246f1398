//! The allocator, and giving memory back that nobody needs any more.
//!
//! What must hold: what a burst needed is the system's again some seconds later. mimalloc gives
//! pages back when their thread allocates again; what other threads freed meanwhile stays with a
//! thread that has gone idle, so each arbiter looks at its own heap now and then.

use std::time::Duration;

use waystation_runtime::{Allocator, Arbiters};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// How often an arbiter gives memory back.
const INTERVAL: Duration = Duration::from_secs(2);

/// Keeps this process to small pages; without effect where the system knows no other. The pages
/// that are there already stay as they are, so it comes first.
///
/// mimalloc asks for huge ones, of which each thread's first few allocations take a whole one:
/// measured, a server at rest needs 13 MB instead of 25, and 18 instead of 47 after 1,000 messages,
/// with no measurable loss of throughput.
pub(crate) fn keep_to_small_pages() {
    #[cfg(target_os = "linux")]
    {
        // Old kernels and some sandboxes refuse it; it costs memory only.
        let _refused = nix::sys::prctl::set_thp_disable(true);
    }
}

/// Makes every arbiter give memory back from now on.
pub(crate) fn give_back(arbiters: &Arbiters) {
    for index in 0..arbiters.count() {
        // False only while the server stops.
        arbiters.spawn_on(index, give_back_here());
    }
}

/// Makes the thread that polls this give memory back; it never ends.
pub(crate) async fn give_back_here() {
    let mut interval = tokio::time::interval(INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        collect();
    }
}

#[expect(
    unsafe_code,
    reason = "the allocator's own function has no safe form; it takes no pointer and keeps none"
)]
fn collect() {
    // SAFETY: mi_collect may be called at any time from any thread that mimalloc serves, which
    // with it as the global allocator is every thread. That memory really comes back is asserted
    // by the load tests of tests/security.
    unsafe { libmimalloc_sys::mi_collect(false) }
}

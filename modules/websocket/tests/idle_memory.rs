//! How much heap an idle session over WebSocket costs the HTTP side of the server: the connection of
//! actix-http, this module's, and the pipe. The session itself lives on another thread.
//!
//! Most of it is actix-http's: a buffer for reading and one for writing, as large as the traffic before
//! made them. Allocations are counted on the HTTP server's thread only. Run with `--nocapture` for the figure.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[path = "websocket/client.rs"]
#[allow(dead_code, reason = "a part of it is needed")]
mod client;
#[path = "../../../server/c2s/tests/common/mod.rs"]
mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

use client::Site;

/// Sessions held at once: enough to make what all share insignificant, and as many as an account may have.
const SESSIONS: usize = 90;

struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

fn count(bytes: isize) {
    if COUNTED.try_with(Cell::get).unwrap_or(false) {
        LIVE.fetch_add(bytes, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches no memory of the heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[actix_rt::test]
async fn an_idle_session_holds_little_memory() {
    let settings = waystation_websocket::Settings::default();
    let site = Site::on_thread(settings, true, |_| {}, || COUNTED.set(true)).await;
    let mut held = Vec::new();
    let mut before = 0;
    for n in 0..SESSIONS {
        // A large stanza in each direction, so that buffers have been there to be kept.
        let mut client = site.log_in(&format!("idle{n}")).await;
        client.ask(&"x".repeat(20_000)).await;
        held.push(client);
        if n == 0 {
            // The first one also made what all share.
            before = LIVE.load(Ordering::Relaxed);
        }
    }
    let each = (LIVE.load(Ordering::Relaxed) - before) / (SESSIONS as isize - 1);
    println!("heap per idle WebSocket session, without the session itself: {each}");
    assert!(each <= 48 * 1024, "{each} bytes");
}

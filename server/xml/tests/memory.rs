//! What the reader costs in heap, counted by a global allocator.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use waystation_xml::fuzzing::HEADER;
use waystation_xml::{Event, Framer, Limits};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // Fails only while the thread ends.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + bytes);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(live.get())));
    });
    if bytes > 0 {
        let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
    }
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as promised to us.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as promised to us.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const STANZA: &[u8] =
    b"<message to='juliet@capulet.example' type='chat' id='1' xml:lang='en'><body>Hello</body>\
    <active xmlns='http://jabber.org/protocol/chatstates'/></message>";

fn feed(framer: &mut Framer, mut input: &[u8]) -> usize {
    let mut stanzas = 0;
    loop {
        match framer.next(&mut input).unwrap() {
            Event::Stanza(_) => stanzas += 1,
            Event::NeedMore => return stanzas,
            _ => {}
        }
    }
}

fn opened() -> Framer {
    let mut framer = Framer::new(Limits::authenticated());
    feed(&mut framer, HEADER);
    framer
}

#[test]
fn stanzas_that_arrive_whole_cost_no_heap() {
    let mut framer = opened();
    let input = STANZA.repeat(100);
    feed(&mut framer, STANZA);
    let before = ALLOCATIONS.get();
    assert_eq!(feed(&mut framer, &input), 100);
    for _ in 0..100 {
        assert_eq!(feed(&mut framer, STANZA), 1);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}

#[test]
fn idle_framers_hold_no_heap() {
    assert!(size_of::<Framer>() <= 64, "{}", size_of::<Framer>());
    let mut framers: Vec<Framer> = Vec::with_capacity(100);
    feed(&mut opened(), STANZA);
    let before = LIVE.get();
    for _ in 0..100 {
        let mut framer = opened();
        // Large enough that its buffer is no one's spare.
        let large = [b"<message>", &[b'x'; 100_000][..], b"</message>"].concat();
        for input in [STANZA, &large] {
            let (first, second) = input.split_at(input.len() / 2);
            assert_eq!(feed(&mut framer, first), 0);
            assert!(framer.is_mid_stanza());
            assert_eq!(feed(&mut framer, second), 1);
            assert!(!framer.is_mid_stanza());
        }
        framers.push(framer);
    }
    assert_eq!(LIVE.get() - before, 0);
}

/// X9: heap in proportion to what was sent, for the costliest that the limits allow.
#[test]
fn x9_heap_is_bounded_by_the_bytes_that_arrived() {
    let elements = format!("<message>{}", "<a>".repeat(127));
    let attributes: String = (0..256).map(|i| format!(" a{i}=''")).collect();
    let attributes = format!("<message{attributes}><x{attributes}><x{attributes}>");
    let declarations: String = (0..255).map(|i| format!(" xmlns:a{i}='u'")).collect();
    let escaped: String = (0..255).map(|i| format!(" xmlns:a{i}='&#117;'")).collect();
    for start in [elements, attributes, format!("<message{declarations}>"), format!("<message{escaped}>")] {
        let input = format!("{start}{}", "x".repeat(200_000));
        let mut framer = opened();
        let before = LIVE.get();
        PEAK.set(before);
        for piece in input.as_bytes().chunks(1000) {
            assert_eq!(feed(&mut framer, piece), 0);
        }
        let peak = (PEAK.get() - before) as usize;
        // Growing holds the old and the new buffer for a moment.
        assert!(peak <= input.len() * 2, "{peak} for {}: {}", input.len(), &start[..20]);
    }
}

/// A stream is closed on an error: what it had gathered is freed at once.
#[test]
fn a_refused_stream_holds_no_heap() {
    let mut framer = opened();
    feed(&mut opened(), STANZA);
    let before = LIVE.get();
    feed(&mut framer, &[b"<message>", &[b'x'; 100_000][..]].concat());
    assert!(LIVE.get() - before > 100_000);
    assert!(framer.next(&mut &b"\0"[..]).is_err());
    assert!(LIVE.get() <= before);
}

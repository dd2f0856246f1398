//! The rows X8 to X12 of the catalogue of attacks: what exceeds a limit, and what is meant to take long.

use std::time::Duration;

use waystation_xml::XmlError::*;
use waystation_xml::fuzzing::{HEADER, Item, trace};
use waystation_xml::{Element, Event, Framer, Limits, MAX_DEPTH, MAX_HEADER_BYTES, MAX_NAMESPACES, ns};

use crate::common::{content, content_within, error, stanzas, stream};

/// The processor time that `work` takes on this thread: other work on the machine does not count.
fn processor_time(work: impl FnOnce()) -> Duration {
    let now = || Duration::from(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().unwrap());
    let started = now();
    work();
    now() - started
}

/// How long a fresh framer takes for these pieces; the best of three.
fn time(limits: Limits, input: &[u8], piece: usize) -> Duration {
    let once = || {
        let mut framer = Framer::new(limits);
        trace(&mut framer, [HEADER]);
        processor_time(|| {
            let items = trace(&mut framer, input.chunks(piece));
            assert!(matches!(items[..], [Item::Stanza(..) | Item::Error(_) | Item::Unfinished]));
        })
    };
    (0..3).map(|_| once()).min().unwrap()
}

/// Four times the bytes, one at a time, may take about four times as long; sixteen would be quadratic.
#[test]
fn x8_huge_tokens_in_many_writes_are_linear() {
    let limits = Limits { max_stanza_bytes: 1 << 22, max_attributes: 1 << 16, ..Limits::authenticated() };
    let token = |before: &str, unit: &str, after: &str, bytes: usize| {
        format!("{before}{}{after}", unit.repeat(bytes / unit.len())).into_bytes()
    };
    for (before, unit, after) in [
        ("<message id='", "x", "'/>"),
        ("<message id='", "é", "'/>"),
        ("<message id='", "&lt;", "'/>"),
        ("<message>&#", "0", "65;</message>"),
        ("<message ", "  \n ", "/>"),
        ("<message><", "n", ""),
        ("<message><body>", "x", "</body></message>"),
        ("<message><body>", "]>", "</body></message>"),
        ("<message><![CDATA[", "<]]&", "]]></message>"),
        ("<message xmlns:a='", "u", "'/>"),
        ("<message><a></a", " ", "></message>"),
    ] {
        let small = time(limits, &token(before, unit, after, 50_000), 1);
        let large = time(limits, &token(before, unit, after, 200_000), 1);
        assert!(large < small * 9 + Duration::from_millis(5), "{before}{unit}: {small:?} then {large:?}");
    }
    // An end tag is compared with the start tag once, not from the start at each byte.
    let named = |bytes: usize| {
        let name = "n".repeat(bytes / 2);
        format!("<message><{name}></{name}></message>").into_bytes()
    };
    let small = time(limits, &named(50_000), 1);
    let large = time(limits, &named(200_000), 1);
    assert!(large < small * 9 + Duration::from_millis(5), "end tag: {small:?} then {large:?}");
}

#[test]
fn x8_x9_limit_hits_at_the_byte() {
    let limits = Limits { max_stanza_bytes: 1000, ..Limits::authenticated() };
    let fill = |before: &str, unit: &str, after: &str, bytes: usize| {
        let units = (bytes - before.len() - after.len()) / unit.len();
        let mut text = format!("{before}{}{after}", unit.repeat(units));
        let missing = bytes - text.len();
        text.insert_str(before.len(), &"x".repeat(missing));
        text.into_bytes()
    };
    for (before, unit, after) in [
        ("<message><body>", "x", "</body></message>"),
        ("<message id='", "x", "'/>"),
        ("<message><body>x", "&amp;", "</body></message>"),
        ("<message><body>x", "é", "</body></message>"),
        ("<message>x", "<a/>", "</message>"),
    ] {
        let fits = fill(before, unit, after, 1000);
        assert_eq!(fits.len(), 1000);
        assert_eq!(stanzas(&content_within(limits, &fits)), 1, "{before}");
        let exceeds = fill(before, unit, after, 1001);
        for piece in [1, 7, 1000, 1001] {
            let mut framer = Framer::new(limits);
            trace(&mut framer, [HEADER]);
            let items = trace(&mut framer, exceeds.chunks(piece));
            assert_eq!(items, [Item::Error(StanzaTooBig)], "{before} in pieces of {piece}");
            assert_eq!(error(&items).unwrap().condition(), "policy-violation");
        }
        // The limit is reached before the end is seen, so nothing more is waited for.
        let mut framer = Framer::new(limits);
        trace(&mut framer, [HEADER]);
        let reached = trace(&mut framer, [&exceeds[..1000]]);
        assert_eq!(reached, [Item::Error(StanzaTooBig)], "{before}");
    }
    // What comes later is not counted.
    let two =
        [fill("<message>", "x", "</message>", 1000), fill("<message>", "x", "</message>", 1000)].concat();
    assert_eq!(stanzas(&content_within(limits, &two)), 2);
}

#[test]
fn x9_oversize_stanzas() {
    let pre = Limits::pre_auth();
    let body = |bytes: usize| format!("<message>{}</message>", "x".repeat(bytes - 19));
    assert_eq!(stanzas(&content_within(pre, body(8192).as_bytes())), 1);
    assert_eq!(error(&content_within(pre, body(8193).as_bytes())), Some(StanzaTooBig));
    assert_eq!(stanzas(&content(body(262_144).as_bytes())), 1);
    assert_eq!(error(&content(body(262_145).as_bytes())), Some(StanzaTooBig));
    let attribute = format!("<message id='{}'/>", "x".repeat(262_145));
    assert_eq!(error(&content(attribute.as_bytes())), Some(StanzaTooBig));
    let children = format!("<message>{}</message>", "<a/>".repeat(40_000));
    assert_eq!(error(&content(children.as_bytes())), Some(TooManyElements));
    let attributes: String = (0..30_000).map(|i| format!(" a{i}=''")).collect();
    assert_eq!(error(&content(format!("<message{attributes}/>").as_bytes())), Some(TooManyAttributes));
    let declarations: String = (0..30_000).map(|i| format!(" xmlns:a{i}='a'")).collect();
    assert_eq!(error(&content(format!("<message{declarations}/>").as_bytes())), Some(TooManyAttributes));
    // A stream header is small whatever the limits: what it declares is kept.
    let header = |bytes: usize| {
        let rest =
            "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' to=''>";
        rest.replace("to=''", &format!("to='{}'", "x".repeat(bytes - rest.len())))
    };
    assert!(matches!(stream(header(MAX_HEADER_BYTES).as_bytes())[..], [Item::Open(_)]));
    assert_eq!(error(&stream(header(MAX_HEADER_BYTES + 1).as_bytes())), Some(StanzaTooBig));
    let declaration = format!("<?xml version='1.0'{}", " ".repeat(MAX_HEADER_BYTES));
    assert_eq!(error(&stream(declaration.as_bytes())), Some(StanzaTooBig));
}

#[test]
fn x10_depth() {
    let nested = |depth: usize| format!("{}{}", "<a>".repeat(depth), "</a>".repeat(depth));
    assert_eq!(stanzas(&content(nested(128).as_bytes())), 1);
    assert_eq!(error(&content(nested(129).as_bytes())), Some(TooDeep));
    assert_eq!(error(&content("<a>".repeat(65_536).as_bytes())), Some(TooDeep));
    assert_eq!(error(&content_within(Limits::pre_auth(), nested(17).as_bytes())), Some(TooDeep));
    let forwarded = "<forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client'>".repeat(1000);
    assert_eq!(error(&content(forwarded.as_bytes())), Some(TooDeep));
    // However generous the configuration is.
    let any = Limits { max_depth: usize::MAX, ..Limits::authenticated() };
    assert_eq!(stanzas(&content_within(any, nested(MAX_DEPTH).as_bytes())), 1);
    assert_eq!(error(&content_within(any, nested(MAX_DEPTH + 1).as_bytes())), Some(TooDeep));
}

/// Trees as deep as they get are parsed, cloned, compared, moved, written and dropped on a small stack.
#[test]
fn x10_trees_use_a_bounded_stack() {
    let work = || {
        let nested = format!("{}{}", "<a>".repeat(MAX_DEPTH), "</a>".repeat(MAX_DEPTH));
        let mut element = Element::parse(nested.as_bytes(), ns::CLIENT).unwrap();
        let copy = element.clone();
        assert_eq!(copy, element);
        element.rescope(ns::CLIENT, ns::SERVER);
        assert_ne!(copy, element);
        assert_eq!(element.to_vec(ns::SERVER), copy.to_vec(ns::CLIENT));
        let deeper = format!("<a>{nested}</a>");
        assert_eq!(Element::parse(deeper.as_bytes(), ns::CLIENT), Err(TooDeep));
    };
    std::thread::Builder::new().stack_size(256 << 10).spawn(work).unwrap().join().unwrap();
}

#[test]
fn x11_counts() {
    let children = |count: usize| format!("<message>{}</message>", "<a/>".repeat(count));
    assert_eq!(stanzas(&content(children(4095).as_bytes())), 1);
    assert_eq!(error(&content(children(4096).as_bytes())), Some(TooManyElements));
    assert_eq!(error(&content_within(Limits::pre_auth(), children(32).as_bytes())), Some(TooManyElements));
    let attributes = |count: usize| {
        let attributes: String = (0..count).map(|i| format!(" a{i}=''")).collect();
        format!("<message><x{attributes}/></message>")
    };
    assert_eq!(stanzas(&content(attributes(256).as_bytes())), 1);
    assert_eq!(error(&content(attributes(257).as_bytes())), Some(TooManyAttributes));
    assert_eq!(error(&content(attributes(5000).as_bytes())), Some(TooManyAttributes));
    // Declarations in scope at once, over several elements.
    let scope = |count: usize| {
        let element = |from: usize| -> String {
            let some: String = (from..count.min(from + 100)).map(|i| format!(" xmlns:p{i}='u'")).collect();
            format!("<a{some}>")
        };
        let open: String = (0..count).step_by(100).map(element).collect();
        format!("{open}{}", "</a>".repeat(count.div_ceil(100)))
    };
    assert_eq!(stanzas(&content(scope(MAX_NAMESPACES).as_bytes())), 1);
    assert_eq!(error(&content(scope(MAX_NAMESPACES + 1).as_bytes())), Some(TooManyNamespaces));
    // Default namespaces are not counted: what the element tree writes declares one at each change.
    let defaults = "<a xmlns='urn:a'><a xmlns='urn:b'>".repeat(60);
    let both = format!("{defaults}{}{}", scope(MAX_NAMESPACES), "</a>".repeat(120));
    assert_eq!(stanzas(&content(both.as_bytes())), 1);
    // Limits count anew for each stanza.
    assert_eq!(stanzas(&content(children(4095).repeat(3).as_bytes())), 3);
}

/// No choice of names makes comparing them slow: the worst stanzas that the limits allow.
#[test]
fn x12_names_that_collide() {
    let alphabet = ["Aa", "BB"];
    let name = |mut i: usize| -> String {
        // Names that collide in the hash functions that attacks are known for.
        (0..8).map(|_| (alphabet[i % 2], i /= 2).0).collect()
    };
    let attributes: String = (0..256).map(|i| format!(" {}=''", name(i))).collect();
    let element = format!("<x{attributes}/>");
    let colliding = format!("<message>{}</message>", element.repeat(200_000 / element.len()));
    let declarations: String =
        (0..255).map(|i| format!(" xmlns:{}='{}'", name(i), "u".repeat(300))).collect();
    let prefixed: String = (0..256).map(|i| format!(" {}:a{i}=''", name(0))).collect();
    let element = format!("<{0}:x{prefixed}/>", name(0));
    let looked_up = format!("<message{declarations}>{}</message>", element.repeat(100_000 / element.len()));
    for stanza in [colliding, looked_up] {
        let mut framer = Framer::new(Limits::authenticated());
        trace(&mut framer, [HEADER]);
        let mut input = stanza.as_bytes();
        let taken = processor_time(|| assert!(matches!(framer.next(&mut input), Ok(Event::Stanza(_)))));
        println!("{taken:?} for {} bytes", stanza.len());
        assert!(taken < Duration::from_millis(200), "{taken:?}");
    }
}

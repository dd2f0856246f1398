//! The bodies of the fuzz targets under `fuzz/`, kept here so that their corpora are replayed as ordinary
//! tests. Each panics where a promise of this crate is broken, and does nothing otherwise.

use crate::{Element, Event, Frame, Framer, Head, Limits, Node, StreamOpen, XmlError, ns};

/// A usual stream header.
pub const HEADER: &[u8] =
    b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";

/// What a framer made of some input. White space between elements is summed up, for how it is cut depends on
/// how the input is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The stream header.
    Open(StreamOpen),
    /// So many bytes of white space.
    Whitespace(usize),
    /// An element, its bytes and its index.
    Stanza(Vec<u8>, Box<Head>),
    /// The end of the stream.
    Close,
    /// The input ended within an element.
    Unfinished,
    /// The input was refused.
    Error(XmlError),
}

/// Feeds the framer pieces, and checks each element on the way.
pub fn trace<'a>(framer: &mut Framer, pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<Item> {
    let mut items = Vec::new();
    for piece in pieces {
        let mut input = piece;
        loop {
            let before = input.len();
            match framer.next(&mut input) {
                Ok(Event::NeedMore) => {
                    assert!(input.is_empty(), "asks for more while there is input");
                    break;
                }
                Ok(Event::Whitespace(count)) => {
                    assert!(before - input.len() >= count);
                    match items.last_mut() {
                        Some(Item::Whitespace(sum)) => *sum += count,
                        _ => items.push(Item::Whitespace(count)),
                    }
                }
                Ok(Event::Open(open)) => items.push(Item::Open(open)),
                Ok(Event::Stanza(frame)) => {
                    check_frame(&frame);
                    items.push(Item::Stanza(frame.bytes.to_vec(), Box::new(frame.head.clone())));
                }
                Ok(Event::Close) => items.push(Item::Close),
                Err(error) => {
                    items.push(Item::Error(error));
                    return items;
                }
            }
        }
    }
    if framer.is_mid_stanza() {
        items.push(Item::Unfinished);
    }
    items
}

/// Checks that the index of an element agrees with the tree that quick-xml makes of it.
pub fn check_frame(frame: &Frame<'_>) {
    let bytes = frame.bytes;
    let head = frame.head;
    let element = match frame.element() {
        Err(XmlError::StanzaTooBig) => return,
        element => element.expect("what the framer passes can be parsed"),
    };
    assert_eq!(frame.name(), element.name());
    assert_eq!(frame.namespace(), element.namespace());
    assert_eq!(head.lang(bytes).as_deref(), element.lang());
    let declarations = head.attributes.iter().filter(|a| a.is_declaration).count();
    assert_eq!(head.attributes.len() - declarations, element.attrs().count());
    for attribute in element.attrs().filter(|a| a.namespace().is_none()) {
        assert_eq!(head.attr(bytes, attribute.name()).as_deref(), Some(attribute.value()));
    }
    for attribute in &head.attributes {
        let raw = attribute.raw(bytes);
        assert!(raw.starts_with(attribute.qualified_name(bytes).as_bytes()));
        assert!(raw.ends_with(b"'") || raw.ends_with(b"\""));
    }
    assert_eq!(head.children as usize, element.children().count());
    let child = head.child.as_ref().map(|child| (child.name(bytes), child.namespace(bytes)));
    assert_eq!(child, element.children().next().map(|child| (child.name(), child.namespace())));
    if let Some(child) = &head.child {
        assert_eq!(bytes.get(child.start), Some(&b'<'));
    }
    if head.self_closing {
        assert_eq!(&bytes[head.open_end..], b"/>");
        assert_eq!(head.close_start, bytes.len());
        assert!(head.tail(bytes).is_empty());
    } else {
        assert_eq!(bytes[head.open_end], b'>');
        assert!(bytes[head.close_start..].starts_with(b"</"));
    }
    if !head.reserialise {
        let relayed = relay(frame);
        let expected = (element.namespace() == ns::CLIENT).then_some(element);
        let again = Element::parse(&relayed, ns::CLIENT).expect("a relayed element is well-formed");
        assert!(expected.is_none_or(|expected| expected == again), "a relayed element keeps its meaning");
    }
}

/// The element as a server relays it: a new head, and the tail as it came.
pub fn relay(frame: &Frame<'_>) -> Vec<u8> {
    let mut out = vec![b'<'];
    out.extend_from_slice(frame.name().as_bytes());
    for attribute in &frame.head.attributes {
        if !attribute.is_declaration || !attribute.prefix.is_empty() {
            out.push(b' ');
            out.extend_from_slice(attribute.raw(frame.bytes));
        }
    }
    out.push(b'>');
    out.extend_from_slice(frame.head.tail(frame.bytes));
    out.extend_from_slice(b"</");
    out.extend_from_slice(frame.name().as_bytes());
    out.push(b'>');
    out
}

/// How a framer takes input does not depend on how it is split.
///
/// The first line of `data` says how: `f` at its start stands for frames instead of a stream, then `p` for
/// the limits before authentication, `t` for tiny ones; each other byte is the length of a piece.
pub fn xml_stream(data: &[u8]) {
    let (script, input) = match data.iter().position(|b| *b == b'\n') {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, &data[data.len()..]),
    };
    let (frames, script) = match script {
        [b'f', rest @ ..] => (true, rest),
        _ => (false, script),
    };
    let limits = match script.first() {
        Some(b'p') => Limits::pre_auth(),
        Some(b't') => Limits { max_stanza_bytes: 120, max_depth: 3, max_elements: 4, max_attributes: 3 },
        _ => Limits::authenticated(),
    };
    let framer = || if frames { Framer::new_frames(limits) } else { Framer::new(limits) };
    let whole = trace(&mut framer(), [input]);
    let by_one = trace(&mut framer(), input.chunks(1));
    assert_eq!(whole, by_one);
    let mut pieces = Vec::new();
    let mut rest = input;
    let mut lengths = script.iter().cycle();
    while !rest.is_empty() {
        let length = lengths.next().map_or(1, |b| usize::from(b % 64) + 1);
        let (piece, after) = rest.split_at(length.min(rest.len()));
        pieces.push(piece);
        rest = after;
    }
    assert_eq!(whole, trace(&mut framer(), pieces));
}

/// What the framer passes reads back as the same tree after being written, wherever it is written to.
pub fn xml_roundtrip(data: &[u8]) {
    let mut framer = Framer::new(Limits::authenticated());
    let mut input = HEADER;
    if !matches!(framer.next(&mut input), Ok(Event::Open(_))) {
        return;
    }
    let mut input = data;
    loop {
        match framer.next(&mut input) {
            Ok(Event::Stanza(frame)) => rewrite(&frame),
            Ok(Event::Whitespace(_)) => {}
            _ => return,
        }
    }
}

fn rewrite(frame: &Frame<'_>) {
    let element = match frame.element() {
        Err(XmlError::StanzaTooBig) => return,
        element => element.expect("what the framer passes can be parsed"),
    };
    for default_ns in [ns::CLIENT, ns::SERVER, "", "urn:example:other"] {
        assert_eq!(reread(&element, default_ns), element);
    }
    let mut rescoped = element;
    rescoped.rescope(ns::CLIENT, ns::SERVER);
    assert_eq!(reread(&rescoped, ns::SERVER), rescoped);
}

/// Writes, proves and parses an element.
fn reread(element: &Element, default_ns: &str) -> Element {
    let written = element.to_vec(default_ns);
    let generous =
        Limits { max_stanza_bytes: 1 << 24, max_depth: 256, max_elements: 1 << 20, max_attributes: 1024 };
    let mut framer = Framer::new_frames(generous);
    let mut input = &written[..];
    match framer.next(&mut input) {
        Ok(Event::Stanza(frame)) => assert_eq!(frame.bytes, written),
        other => panic!("refuses what was written: {other:?}"),
    }
    let parsed = Element::parse(&written, default_ns).expect("what is written can be parsed");
    assert!(text_is_merged(&parsed));
    parsed
}

fn text_is_merged(element: &Element) -> bool {
    let pairs = element.nodes().windows(2);
    pairs.into_iter().all(|pair| !matches!(pair, [Node::Text(_), Node::Text(_)]))
        && element.children().all(text_is_merged)
}

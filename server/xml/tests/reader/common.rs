//! Helpers of the XML tests: short ways to feed a framer, and the canonical form in which trees from
//! different parsers are compared (see tests/xml/expat_oracle.py).

use waystation_xml::fuzzing::{HEADER, Item, trace};
use waystation_xml::{Element, Event, Framer, Limits, Node, XmlError};

/// What a new stream makes of `input`.
pub(crate) fn stream(input: &[u8]) -> Vec<Item> {
    trace(&mut Framer::new(Limits::authenticated()), [input])
}

/// What an open stream makes of `input`.
pub(crate) fn content(input: &[u8]) -> Vec<Item> {
    content_within(Limits::authenticated(), input)
}

/// What an open stream with these limits makes of `input`.
pub(crate) fn content_within(limits: Limits, input: &[u8]) -> Vec<Item> {
    let mut framer = Framer::new(limits);
    assert!(matches!(trace(&mut framer, [HEADER])[..], [Item::Open(_)]));
    trace(&mut framer, [input])
}

/// The error that ends the items.
pub(crate) fn error(items: &[Item]) -> Option<XmlError> {
    match items.last() {
        Some(Item::Error(error)) => Some(*error),
        _ => None,
    }
}

/// How many elements are among the items.
pub(crate) fn stanzas(items: &[Item]) -> usize {
    items.iter().filter(|item| matches!(item, Item::Stanza(..))).count()
}

/// Feeds `input` to new streams whole, byte by byte, and split in two at every byte, and gives what all of
/// them made of it.
pub(crate) fn every_split(input: &[u8]) -> Vec<Item> {
    let new = || Framer::new(Limits::authenticated());
    let whole = trace(&mut new(), [input]);
    assert_eq!(trace(&mut new(), input.chunks(1)), whole, "by one: {}", input.escape_ascii());
    for at in 1..input.len() {
        let (a, b) = input.split_at(at);
        assert_eq!(trace(&mut new(), [a, b]), whole, "split at {at}: {}", input.escape_ascii());
    }
    whole
}

/// [`every_split`] after a usual stream header.
pub(crate) fn every_split_of_content(input: &[u8]) -> Vec<Item> {
    let mut items = every_split(&[HEADER, input].concat());
    assert!(matches!(items.remove(0), Item::Open(_)));
    items
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{}:{text}", text.len()).as_bytes());
}

/// Appends the canonical form of an element.
pub(crate) fn canonical(out: &mut Vec<u8>, element: &Element) {
    out.push(b'(');
    string(out, element.namespace());
    string(out, element.name());
    let mut attributes: Vec<_> =
        element.attrs().map(|a| (a.namespace().unwrap_or_default(), a.name(), a.value())).collect();
    attributes.sort_unstable();
    for (namespace, name, value) in attributes {
        out.push(b'@');
        string(out, namespace);
        string(out, name);
        string(out, value);
    }
    for node in element.nodes() {
        match node {
            Node::Element(child) => canonical(out, child),
            Node::Text(text) => {
                out.push(b'T');
                string(out, text);
            }
        }
    }
    out.push(b')');
}

/// After a usual header, split in every way: no element is delivered, and this is the error.
pub(crate) fn refused(input: impl AsRef<[u8]>, with: XmlError) {
    let input = input.as_ref();
    let items = every_split_of_content(input);
    assert_eq!(error(&items), Some(with), "{}", input.escape_ascii());
    assert_eq!(stanzas(&items), 0, "{}", input.escape_ascii());
}

/// The same at the very start of a stream.
pub(crate) fn stream_refused(input: impl AsRef<[u8]>, with: XmlError) {
    let input = input.as_ref();
    let items = every_split(input);
    assert_eq!(error(&items), Some(with), "{}", input.escape_ascii());
    assert!(!items.iter().any(|i| matches!(i, Item::Open(_))), "{}", input.escape_ascii());
}

/// After a usual header, split in every way: one element is delivered exactly as it came.
pub(crate) fn passed(input: impl AsRef<[u8]>) -> Element {
    let input = input.as_ref();
    match &every_split_of_content(input)[..] {
        [Item::Stanza(bytes, _)] => {
            assert_eq!(bytes, input);
            element(input)
        }
        other => panic!("{}: {other:?}", input.escape_ascii()),
    }
}

/// The tree of the only element after a usual header.
pub(crate) fn element(input: &[u8]) -> Element {
    let mut framer = Framer::new(Limits::authenticated());
    trace(&mut framer, [HEADER]);
    match framer.next(&mut &input[..]) {
        Ok(Event::Stanza(frame)) => frame.element().unwrap(),
        other => panic!("{other:?}"),
    }
}

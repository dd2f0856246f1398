//! Stanzas as trees, and the reader that cuts a server's output into them.
//!
//! Names are expanded (namespace and local name), so two elements are equal
//! when they mean the same, however prefixes were chosen and attributes
//! ordered. Independent of the server's own parser on purpose: a harness that
//! shared it would agree with its mistakes.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use quick_xml::Reader;
use quick_xml::errors::{Error as XmlError, IllFormedError};
use quick_xml::events::{BytesStart, Event};

use crate::error::{Error, Result, show};

/// The namespace of the `xml` prefix.
pub const XML_NS: &str = "http://www.w3.org/XML/1998/namespace";
/// The namespace of the stream element.
pub const STREAM_NS: &str = "http://etherx.jabber.org/streams";
/// The content namespace of client streams.
pub const CLIENT_NS: &str = "jabber:client";

/// An expanded name: namespace (empty for none) and local name.
pub type Name = (String, String);

/// One XML element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// Namespace and local name.
    pub name: Name,
    /// Attributes by expanded name, without namespace declarations.
    pub attrs: BTreeMap<Name, String>,
    /// Child elements and text, in order.
    pub nodes: Vec<Node>,
}

/// A child of an element.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A child element.
    Element(Element),
    /// Character data, unescaped.
    Text(String),
}

impl Element {
    /// Parses one element; a missing `xmlns` means `default_ns`.
    pub fn parse(text: &str, default_ns: &str) -> Result<Self> {
        let scope = Scope::with_default(default_ns);
        match parse_first(text.as_bytes(), &scope)? {
            Parsed::Element(element, used) if text[used..].trim().is_empty() => Ok(element),
            _ => Err(Error::Xml { reason: "not exactly one element".into(), text: show(text.as_bytes()) }),
        }
    }

    /// Parses one element that must declare all that it uses, as a document of its own does.
    pub fn parse_document(text: &str) -> Result<Self> {
        match parse_first(text.as_bytes(), &Scope::default())? {
            Parsed::Element(element, used) if text[used..].trim().is_empty() => Ok(element),
            _ => Err(Error::Xml { reason: "not exactly one element".into(), text: show(text.as_bytes()) }),
        }
    }

    /// Parses a run of elements, with white space allowed around them.
    pub fn parse_all(text: &str, default_ns: &str) -> Result<Vec<Self>> {
        let scope = Scope::with_default(default_ns);
        let mut rest = text.trim();
        let mut all = Vec::new();
        while !rest.is_empty() {
            let Parsed::Element(element, used) = parse_first(rest.as_bytes(), &scope)? else {
                return Err(Error::Xml { reason: "unfinished element".into(), text: show(rest.as_bytes()) });
            };
            all.push(element);
            rest = rest[used..].trim_start();
        }
        Ok(all)
    }

    /// The local name.
    pub fn local(&self) -> &str {
        &self.name.1
    }

    /// The namespace.
    pub fn ns(&self) -> &str {
        &self.name.0
    }

    /// An attribute without namespace.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attrs.get(&(String::new(), name.to_owned())).map(String::as_str)
    }

    /// The child elements.
    pub fn children(&self) -> impl Iterator<Item = &Element> {
        self.nodes.iter().filter_map(|n| match n {
            Node::Element(e) => Some(e),
            Node::Text(_) => None,
        })
    }

    /// The first child with this local name, in any namespace.
    pub fn child(&self, local: &str) -> Option<&Element> {
        self.children().find(|c| c.local() == local)
    }

    /// The first child in this namespace.
    pub fn child_in(&self, ns: &str) -> Option<&Element> {
        self.children().find(|c| c.ns() == ns)
    }

    /// The direct character data, joined.
    pub fn text(&self) -> String {
        self.nodes
            .iter()
            .filter_map(|n| match n {
                Node::Text(t) => Some(t.as_str()),
                Node::Element(_) => None,
            })
            .collect()
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, outer_ns: &str, depth: usize) -> fmt::Result {
        write!(f, "{:1$}<{2}", "", depth * 2, self.local())?;
        if self.ns() != outer_ns {
            write!(f, " xmlns='{}'", self.ns())?;
        }
        for ((ns, name), value) in &self.attrs {
            let prefix = match ns.as_str() {
                "" => String::new(),
                XML_NS => "xml:".to_owned(),
                other => format!("{{{other}}}"),
            };
            write!(f, " {prefix}{name}='{}'", escape(value))?;
        }
        let text = self.text();
        let has_children = self.children().next().is_some();
        match (has_children, text.is_empty()) {
            (false, true) => f.write_str("/>"),
            (false, false) => write!(f, ">{}</{}>", escape(&text), self.local()),
            (true, _) => {
                writeln!(f, ">")?;
                for node in &self.nodes {
                    match node {
                        Node::Element(e) => {
                            e.write(f, self.ns(), depth + 1)?;
                            writeln!(f)?;
                        }
                        Node::Text(t) if t.trim().is_empty() => {}
                        Node::Text(t) => writeln!(f, "{:1$}{2}", "", (depth + 1) * 2, escape(t))?,
                    }
                }
                write!(f, "{:1$}</{2}>", "", depth * 2, self.local())
            }
        }
    }
}

/// Indented, for failure messages.
impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, CLIENT_NS, 0)
    }
}

/// Escapes text for use in content and in attribute values.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&apos;")
        .replace('"', "&quot;")
}

/// The element with the namespace of client streams, unless its start tag names one.
pub fn with_namespace(xml: &str) -> Cow<'_, str> {
    let start = xml.split('>').next().unwrap_or_default();
    let name = start.find(|c: char| c.is_ascii_whitespace() || c == '/').unwrap_or(start.len());
    if start.contains(" xmlns=") || start[..name].contains(':') {
        return Cow::Borrowed(xml);
    }
    Cow::Owned(format!("{} xmlns='{CLIENT_NS}'{}", &xml[..name], &xml[name..]))
}

/// What a server's stream yields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEvent {
    /// The stream header: an element without children.
    Header(Element),
    /// A complete first-level element.
    Element(Element),
    /// `</stream:stream>`.
    End,
}

/// Cuts the bytes of one stream into events. A new stream (after TLS, after SASL) needs a new reader.
#[derive(Debug, Default)]
pub struct StreamReader {
    scope: Option<Scope>,
}

impl StreamReader {
    /// Takes the next event off the front of `buffer`; `None` when it is not complete yet.
    pub fn next(&mut self, buffer: &mut Vec<u8>) -> Result<Option<StreamEvent>> {
        let blank = buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
        buffer.drain(..blank);
        if buffer.is_empty() {
            return Ok(None);
        }
        let Some(scope) = &self.scope else {
            let Some((header, scope, used)) = parse_header(buffer)? else { return Ok(None) };
            self.scope = Some(scope);
            buffer.drain(..used);
            return Ok(Some(StreamEvent::Header(header)));
        };
        if buffer.starts_with(b"</") {
            let Some(end) = buffer.iter().position(|&b| b == b'>') else { return Ok(None) };
            buffer.drain(..=end);
            return Ok(Some(StreamEvent::End));
        }
        match parse_first(buffer, scope)? {
            Parsed::Element(element, used) => {
                buffer.drain(..used);
                Ok(Some(StreamEvent::Element(element)))
            }
            Parsed::Incomplete => Ok(None),
        }
    }
}

/// The namespaces that prefixes stand for; the empty prefix is the default namespace.
#[derive(Debug, Clone, Default)]
struct Scope(BTreeMap<String, String>);

impl Scope {
    fn with_default(ns: &str) -> Self {
        Self(BTreeMap::from([(String::new(), ns.to_owned()), ("stream".to_owned(), STREAM_NS.to_owned())]))
    }

    fn resolve(&self, qname: &str, is_attribute: bool) -> std::result::Result<Name, String> {
        match qname.split_once(':') {
            None if is_attribute => Ok((String::new(), qname.to_owned())),
            None => Ok((self.0.get("").cloned().unwrap_or_default(), qname.to_owned())),
            Some(("xml", local)) => Ok((XML_NS.to_owned(), local.to_owned())),
            Some((prefix, local)) => match self.0.get(prefix) {
                Some(ns) => Ok((ns.clone(), local.to_owned())),
                None => Err(format!("undeclared prefix {prefix:?}")),
            },
        }
    }
}

enum Parsed {
    Element(Element, usize),
    Incomplete,
}

fn parse_header(buffer: &[u8]) -> Result<Option<(Element, Scope, usize)>> {
    let mut reader = Reader::from_str(utf8(buffer)?);
    loop {
        match reader.read_event() {
            Ok(Event::Decl(_)) => {}
            Ok(Event::Text(t)) if t.trim().is_empty() => {}
            Ok(Event::Start(start)) => {
                let (element, scope) = open(&start, &Scope::default()).map_err(|r| malformed(r, buffer))?;
                let used = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
                return Ok(Some((element, scope, used)));
            }
            Ok(Event::Eof) => return Ok(None),
            Err(e) if is_unfinished(&e) => return Ok(None),
            Ok(other) => return Err(malformed(format!("{other:?} before the stream header"), buffer)),
            Err(e) => return Err(malformed(e.to_string(), buffer)),
        }
    }
}

fn parse_first(buffer: &[u8], scope: &Scope) -> Result<Parsed> {
    let mut reader = Reader::from_str(utf8(buffer)?);
    let mut open_elements: Vec<(Element, Scope)> = Vec::new();
    loop {
        let event = match reader.read_event() {
            Ok(event) => event,
            Err(e) if is_unfinished(&e) => return Ok(Parsed::Incomplete),
            Err(e) => return Err(malformed(e.to_string(), buffer)),
        };
        let outer = open_elements.last().map_or(scope, |(_, s)| s);
        let finished = match event {
            Event::Start(start) => {
                open_elements.push(open(&start, outer).map_err(|r| malformed(r, buffer))?);
                continue;
            }
            Event::Empty(start) => open(&start, outer).map_err(|r| malformed(r, buffer))?.0,
            Event::End(_) => match open_elements.pop() {
                Some((element, _)) => element,
                None => return Err(malformed("end tag without a start tag".into(), buffer)),
            },
            Event::Text(text) => {
                push_text(&mut open_elements, &text.xml10_content()).map_err(|r| malformed(r, buffer))?;
                continue;
            }
            Event::CData(text) => {
                push_text(&mut open_elements, &text.xml10_content()).map_err(|r| malformed(r, buffer))?;
                continue;
            }
            Event::GeneralRef(reference) => {
                let text = expand(&reference).map_err(|r| malformed(r, buffer))?;
                push_text(&mut open_elements, &text).map_err(|r| malformed(r, buffer))?;
                continue;
            }
            Event::Eof => return Ok(Parsed::Incomplete),
            other => return Err(malformed(format!("not allowed in a stream: {other:?}"), buffer)),
        };
        match open_elements.last_mut() {
            Some((parent, _)) => parent.nodes.push(Node::Element(finished)),
            None => {
                let used = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
                return Ok(Parsed::Element(finished, used));
            }
        }
    }
}

fn push_text(open: &mut [(Element, Scope)], text: &str) -> std::result::Result<(), String> {
    let Some((parent, _)) = open.last_mut() else {
        return if text.trim().is_empty() { Ok(()) } else { Err(format!("text between stanzas: {text:?}")) };
    };
    match parent.nodes.last_mut() {
        Some(Node::Text(before)) => before.push_str(text),
        _ if text.is_empty() => {}
        _ => parent.nodes.push(Node::Text(text.to_owned())),
    }
    Ok(())
}

fn expand(reference: &str) -> std::result::Result<String, String> {
    quick_xml::escape::unescape(&format!("&{reference};")).map(|t| t.into_owned()).map_err(|e| e.to_string())
}

fn open(start: &BytesStart<'_>, outer: &Scope) -> std::result::Result<(Element, Scope), String> {
    let mut scope = outer.clone();
    let mut plain = Vec::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|e| e.to_string())?;
        let key = attribute.key.0;
        let raw = attribute.value.as_ref();
        if raw.contains('<') {
            return Err(format!("'<' in the attribute {key}"));
        }
        let value = quick_xml::escape::unescape(raw).map_err(|e| e.to_string())?.into_owned();
        match key {
            "xmlns" => drop(scope.0.insert(String::new(), value)),
            _ => match key.strip_prefix("xmlns:") {
                Some(prefix) => drop(scope.0.insert(prefix.to_owned(), value)),
                None => plain.push((key.to_owned(), value)),
            },
        }
    }
    let mut attrs = BTreeMap::new();
    for (key, value) in plain {
        let name = scope.resolve(&key, true)?;
        if attrs.insert(name, value).is_some() {
            return Err(format!("attribute {key} twice"));
        }
    }
    Ok((Element { name: scope.resolve(start.name().0, false)?, attrs, nodes: Vec::new() }, scope))
}

/// The longest prefix of whole characters; an error only for what can never become UTF-8.
fn utf8(buffer: &[u8]) -> Result<&str> {
    match std::str::from_utf8(buffer) {
        Ok(text) => Ok(text),
        Err(e) if e.error_len().is_none() => {
            Ok(std::str::from_utf8(&buffer[..e.valid_up_to()]).unwrap_or_default())
        }
        Err(e) => Err(malformed(e.to_string(), buffer)),
    }
}

/// Markup that breaks off looks like bad markup; if it really is bad, the reader times out and shows it.
fn is_unfinished(error: &XmlError) -> bool {
    matches!(error, XmlError::Syntax(_) | XmlError::IllFormed(IllFormedError::UnclosedReference))
}

fn malformed(reason: String, buffer: &[u8]) -> Error {
    Error::Xml { reason, text: show(buffer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_in_meaning_is_equal() {
        let a = Element::parse("<a x='1' y='2'><b xmlns='urn:b' k='&lt;'/></a>", "urn:a").unwrap();
        let b =
            Element::parse("<p:a xmlns:p='urn:a' y=\"2\" x=\"1\"><q:b xmlns:q='urn:b' k='&#60;'/></p:a>", "")
                .unwrap();
        assert_eq!(a, b);
        let c = Element::parse("<a x='1' y='2'><b k='&lt;'/></a>", "urn:a").unwrap();
        assert_ne!(a, c);
    }

    #[test]
    fn stream_is_cut_at_any_byte() {
        let text = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                    xmlns:stream='http://etherx.jabber.org/streams' id='1'>\
                    <stream:features><bind xmlns='urn:x'/></stream:features> \
                    <message><body>a &amp; b<![CDATA[<c>]]></body></message></stream:stream>";
        for cut in 0..text.len() {
            let mut reader = StreamReader::default();
            let mut buffer = Vec::new();
            let mut events = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                buffer.extend_from_slice(part.as_bytes());
                while let Some(event) = reader.next(&mut buffer).unwrap() {
                    events.push(event);
                }
            }
            assert_eq!(events.len(), 4, "cut at {cut}");
            assert!(matches!(&events[0], StreamEvent::Header(h) if h.attr("id") == Some("1")));
            assert!(
                matches!(&events[1], StreamEvent::Element(e) if e.name == (STREAM_NS.into(), "features".into()))
            );
            let StreamEvent::Element(message) = &events[2] else { panic!("{events:?}") };
            assert_eq!(message.ns(), CLIENT_NS);
            assert_eq!(message.child("body").map(Element::text).as_deref(), Some("a & b<c>"));
            assert_eq!(events[3], StreamEvent::End);
        }
    }

    #[test]
    fn documents_stand_alone() {
        assert_eq!(Element::parse_document("<a xmlns='b'/>").unwrap().ns(), "b");
        assert!(Element::parse_document("<stream:features/>").is_err());
        assert_eq!(with_namespace("<a/>"), "<a xmlns='jabber:client'/>");
        assert_eq!(
            with_namespace("<a b='c'><d xmlns='e'/></a>"),
            "<a xmlns='jabber:client' b='c'><d xmlns='e'/></a>"
        );
        for whole in ["<a xmlns='b'/>", "<x:a xmlns:x='b'/>"] {
            assert_eq!(with_namespace(whole), whole);
        }
    }

    #[test]
    fn malformed_output_is_an_error() {
        for bad in [
            "<a></b>",
            "<p:a/>",
            "text<a/>",
            "<a x='1' x='2'/>",
            "<a>&nope;</a>",
            "<!DOCTYPE a><a/>",
            "<a x='<'/>",
        ] {
            assert!(Element::parse(bad, "").is_err(), "{bad}");
        }
    }
}

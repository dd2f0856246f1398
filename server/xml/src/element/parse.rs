//! Reading a tree from the bytes of one element. quick-xml cuts the bytes into tags and text; what names
//! and text mean is settled here. The bytes are expected to have passed a [`Framer`](crate::Framer): what
//! it would refuse may be refused or misread here, but never panics nor takes unbounded time.

use std::sync::Arc;

use quick_xml::Reader;
use quick_xml::events::attributes::Attribute;
use quick_xml::events::{BytesStart, Event};

use super::{Attr, Element, Node};
use crate::error::XmlError;
use crate::escape::{unescape, unescape_text};
use crate::limits::MAX_DEPTH;
use crate::ns;
use crate::scope::Scope;

impl Element {
    /// Reads one element. `default_ns` is the default namespace in force around it; no prefix but `xml` is.
    ///
    /// Refuses an element that writing would blow up ([`XmlError::StanzaTooBig`]): one of which the namespace
    /// declarations alone would take more than 64 KiB and more than eight times `bytes`.
    pub fn parse(bytes: &[u8], default_ns: &str) -> Result<Self, XmlError> {
        read(bytes, default_ns, &Scope::Empty)
    }

    /// Reads one element of a stream, with the declarations of its header in force.
    pub(crate) fn parse_in(bytes: &[u8], scope: &Scope) -> Result<Self, XmlError> {
        read(bytes, scope.default_namespace(), scope)
    }
}

fn read(bytes: &[u8], default_ns: &str, scope: &Scope) -> Result<Element, XmlError> {
    let text = std::str::from_utf8(bytes).map_err(|_| XmlError::NotWellFormed)?;
    let mut reader = Reader::from_str(text);
    let mut tree =
        Tree { scope, bindings: vec![("".into(), default_ns.into())], open: Vec::new(), root: None };
    loop {
        match reader.read_event().map_err(|_| XmlError::NotWellFormed)? {
            Event::Start(tag) => tree.start(&tag)?,
            Event::Empty(tag) => {
                tree.start(&tag)?;
                tree.end()?;
            }
            Event::End(_) => tree.end()?,
            Event::Text(text) => tree.text(&unescape_text(&text))?,
            Event::CData(text) => tree.text(&text.xml10_content())?,
            Event::GeneralRef(name) => tree.reference(&name)?,
            Event::Eof => break,
            Event::Comment(_) | Event::PI(_) | Event::DocType(_) => return Err(XmlError::Restricted),
            Event::Decl(_) => return Err(XmlError::NotWellFormed),
        }
    }
    // While an element is open there is no root.
    let root = tree.root.ok_or(XmlError::NotWellFormed)?;
    if root.may_be_written(bytes.len()) { Ok(root) } else { Err(XmlError::StanzaTooBig) }
}

struct Tree<'a> {
    scope: &'a Scope,
    /// Prefixes and what they are bound to; the empty prefix is the default namespace.
    bindings: Vec<(Box<str>, Arc<str>)>,
    /// Open elements, and how many bindings were in force outside of each.
    open: Vec<(Element, usize)>,
    root: Option<Element>,
}

impl Tree<'_> {
    fn start(&mut self, tag: &BytesStart<'_>) -> Result<(), XmlError> {
        if self.root.is_some() {
            return Err(XmlError::NotWellFormed);
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(XmlError::TooDeep);
        }
        let outer = self.bindings.len();
        for attribute in attributes(tag) {
            let attribute = attribute?;
            if let Some(prefix) = declared_prefix(attribute.key.0) {
                self.bindings.push((prefix.into(), Arc::from(&*unescape(&attribute.value))));
            }
        }
        let (prefix, name) = split(tag.name().0);
        if prefix == "xml" {
            return Err(XmlError::Restricted);
        }
        let mut element = Element {
            name: name.into(),
            namespace: self.lookup(prefix)?,
            attributes: Vec::new(),
            nodes: Vec::new(),
        };
        for attribute in attributes(tag) {
            let attribute = attribute?;
            if declared_prefix(attribute.key.0).is_none() {
                let (prefix, name) = split(attribute.key.0);
                element.attributes.push(Attr {
                    namespace: if prefix.is_empty() { None } else { Some(self.lookup(prefix)?) },
                    name: name.into(),
                    value: unescape(&attribute.value).into_owned(),
                });
            }
        }
        self.open.push((element, outer));
        Ok(())
    }

    fn end(&mut self) -> Result<(), XmlError> {
        let (element, outer) = self.open.pop().ok_or(XmlError::NotWellFormed)?;
        self.bindings.truncate(outer);
        match self.open.last_mut() {
            Some((parent, _)) => parent.nodes.push(Node::Element(element)),
            None => self.root = Some(element),
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), XmlError> {
        match self.open.last_mut() {
            Some((element, _)) => element.push_text(text),
            None if text.bytes().all(|b| b.is_ascii_whitespace()) => {}
            None => return Err(XmlError::NotWellFormed),
        }
        Ok(())
    }

    /// Text that stands as a reference: `name` is what is between `&` and `;`.
    fn reference(&mut self, name: &str) -> Result<(), XmlError> {
        let raw = format!("&{name};");
        let text = unescape_text(&raw);
        if text == raw { Err(XmlError::Restricted) } else { self.text(&text) }
    }

    fn lookup(&self, prefix: &str) -> Result<Arc<str>, XmlError> {
        if prefix == "xml" {
            return Ok(ns::XML.into());
        }
        if let Some((_, namespace)) = self.bindings.iter().rev().find(|(bound, _)| **bound == *prefix) {
            return Ok(Arc::clone(namespace));
        }
        self.scope.lookup(prefix.as_bytes()).map(Arc::from).ok_or(XmlError::NotWellFormed)
    }
}

/// The attributes of a tag. Repeated names were refused when the bytes were proven; looking for them here
/// would take quadratic time.
fn attributes<'a>(tag: &'a BytesStart<'_>) -> impl Iterator<Item = Result<Attribute<'a>, XmlError>> {
    let mut attributes = tag.attributes();
    attributes.with_checks(false);
    attributes.map(|attribute| attribute.map_err(|_| XmlError::NotWellFormed))
}

/// The prefix that an attribute declares: empty for `xmlns`, `None` if it is no declaration.
fn declared_prefix(name: &str) -> Option<&str> {
    match name.strip_prefix("xmlns") {
        Some("") => Some(""),
        Some(rest) => rest.strip_prefix(':'),
        None => None,
    }
}

fn split(name: &str) -> (&str, &str) {
    name.split_once(':').unwrap_or(("", name))
}

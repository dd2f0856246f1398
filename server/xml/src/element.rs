//! An owned tree of one element, for modules that read or make XML.
//!
//! A tree always writes as well-formed XML that reads back as the same tree: names that are no names and
//! characters that XML cannot express are replaced on the way in or out. Trees from [`Element::parse`] are
//! at most [`MAX_DEPTH`](crate::MAX_DEPTH) deep, so dropping, cloning and writing them, which recurse, use
//! a bounded stack.

mod parse;
mod write;

use std::sync::Arc;

use crate::chars;
use crate::ns;

/// A node of an [`Element`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// A child element.
    Element(Element),
    /// Character data, unescaped.
    Text(String),
}

/// An attribute of an [`Element`]; never a namespace declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attr {
    namespace: Option<Arc<str>>,
    name: Box<str>,
    value: String,
}

impl Attr {
    /// Namespace of a prefixed attribute; `None` for one without a prefix.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Value, unescaped.
    pub fn value(&self) -> &str {
        &self.value
    }
}

/// An element with all that it contains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    name: Box<str>,
    namespace: Arc<str>,
    attributes: Vec<Attr>,
    nodes: Vec<Node>,
}

impl Element {
    /// An empty element. An empty `namespace` stands for none. Characters that a name cannot hold become
    /// `_`.
    pub fn new(name: &str, namespace: &str) -> Self {
        // No element can be declared to be in these.
        let namespace = if matches!(namespace, ns::XMLNS | ns::XML) { "" } else { namespace };
        Self {
            name: valid_name(name),
            namespace: namespace.into(),
            attributes: Vec::new(),
            nodes: Vec::new(),
        }
    }

    /// The element with an attribute added or replaced; see [`set_attr`](Self::set_attr).
    #[must_use]
    pub fn with_attr(mut self, name: &str, value: impl Into<String>) -> Self {
        self.set_attr(name, value);
        self
    }

    /// The element with an attribute in a namespace added or replaced, such as `xml:lang`.
    #[must_use]
    pub fn with_attr_ns(mut self, name: &str, namespace: &str, value: impl Into<String>) -> Self {
        self.set_attr_ns(name, namespace, value);
        self
    }

    /// The element with a child added at the end.
    #[must_use]
    pub fn with_child(mut self, child: Element) -> Self {
        self.push(child);
        self
    }

    /// The element with children added at the end.
    #[must_use]
    pub fn with_children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.nodes.extend(children.into_iter().map(Node::Element));
        self
    }

    /// The element with text added at the end.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Self {
        self.push_text(text);
        self
    }

    /// Local name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Namespace name; empty for none.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether it has this name and namespace.
    pub fn is(&self, name: &str, namespace: &str) -> bool {
        *self.name == *name && *self.namespace == *namespace
    }

    /// The value of an attribute without a prefix.
    pub fn attr(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|a| a.namespace.is_none() && *a.name == *name).map(|a| a.value.as_str())
    }

    /// The value of an attribute in a namespace.
    pub fn attr_ns(&self, name: &str, namespace: &str) -> Option<&str> {
        self.attributes
            .iter()
            .find(|a| a.namespace.as_deref() == Some(namespace) && *a.name == *name)
            .map(|a| a.value.as_str())
    }

    /// The value of `xml:lang` on this very element.
    pub fn lang(&self) -> Option<&str> {
        self.attr_ns("lang", ns::XML)
    }

    /// All attributes, in the order of the wire.
    pub fn attrs(&self) -> impl Iterator<Item = &Attr> {
        self.attributes.iter()
    }

    /// Adds or replaces an attribute without a prefix. `xmlns` is no attribute: it is ignored.
    pub fn set_attr(&mut self, name: &str, value: impl Into<String>) {
        if name != "xmlns" {
            self.put(None, name, value.into());
        }
    }

    /// Adds or replaces an attribute in a namespace; an empty one stands for none.
    pub fn set_attr_ns(&mut self, name: &str, namespace: &str, value: impl Into<String>) {
        match namespace {
            "" => self.set_attr(name, value),
            ns::XMLNS => {}
            _ => self.put(Some(namespace.into()), name, value.into()),
        }
    }

    fn put(&mut self, namespace: Option<Arc<str>>, name: &str, value: String) {
        let name = valid_name(name);
        match self.attributes.iter_mut().find(|a| a.namespace == namespace && a.name == name) {
            Some(attribute) => attribute.value = value,
            None => self.attributes.push(Attr { namespace, name, value }),
        }
    }

    /// Removes an attribute without a prefix.
    pub fn remove_attr(&mut self, name: &str) {
        self.attributes.retain(|a| a.namespace.is_some() || *a.name != *name);
    }

    /// The first child element with this name and namespace.
    pub fn child(&self, name: &str, namespace: &str) -> Option<&Element> {
        self.children().find(|child| child.is(name, namespace))
    }

    /// All child elements.
    pub fn children(&self) -> impl Iterator<Item = &Element> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Element(child) => Some(child),
            Node::Text(_) => None,
        })
    }

    /// All child elements, to be changed.
    pub fn children_mut(&mut self) -> impl Iterator<Item = &mut Element> {
        self.nodes.iter_mut().filter_map(|node| match node {
            Node::Element(child) => Some(child),
            Node::Text(_) => None,
        })
    }

    /// Child elements and text, in order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The text directly within the element, without that of its children.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for node in &self.nodes {
            if let Node::Text(part) = node {
                text.push_str(part);
            }
        }
        text
    }

    /// Adds a child element at the end.
    pub fn push(&mut self, child: Element) {
        self.nodes.push(Node::Element(child));
    }

    /// Adds text at the end.
    pub fn push_text(&mut self, text: &str) {
        match self.nodes.last_mut() {
            _ if text.is_empty() => {}
            Some(Node::Text(last)) => last.push_str(text),
            _ => self.nodes.push(Node::Text(text.to_owned())),
        }
    }

    /// Keeps only the child elements for which `keep` is true; text stays.
    pub fn retain_children(&mut self, mut keep: impl FnMut(&Element) -> bool) {
        self.nodes.retain(|node| match node {
            Node::Element(child) => keep(child),
            Node::Text(_) => true,
        });
    }

    /// Moves the element from one content namespace to another, and with it all that it contains up to
    /// elements of other namespaces (RFC 6120 section 4.8.3, "re-scope").
    pub fn rescope(&mut self, from: &str, to: &str) {
        self.rescope_to(from, &Arc::from(to));
    }

    fn rescope_to(&mut self, from: &str, to: &Arc<str>) {
        if *self.namespace == *from {
            self.namespace = Arc::clone(to);
            for child in self.children_mut() {
                child.rescope_to(from, to);
            }
        }
    }
}

/// `name` with what makes it no `NCName` replaced.
fn valid_name(name: &str) -> Box<str> {
    if chars::is_ncname(name) {
        return name.into();
    }
    let mut valid = String::with_capacity(name.len() + 1);
    for c in name.chars() {
        if valid.is_empty() && !chars::is_name_start(c.into()) {
            valid.push('_');
        }
        valid.push(if chars::is_name_char(c.into()) { c } else { '_' });
    }
    if valid.is_empty() {
        valid.push('_');
    }
    valid.into_boxed_str()
}

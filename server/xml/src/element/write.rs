//! Writing a tree: every element declares its namespace as the default one where it differs from its
//! parent's, so only attributes ever need a prefix.

use super::{Element, Node};
use crate::escape::{escape_attr, escape_text};
use crate::ns;

/// Most that writing a parsed element may add: so many times the bytes that it was parsed from ...
const MAX_GROWTH: usize = 8;
/// ... but this much is always fine.
const SMALL: usize = 65_536;

impl Element {
    /// Appends the element. `inherited_default_ns` is the default namespace at the place it is written to:
    /// the content namespace of the stream, or empty outside of any stream.
    pub fn write(&self, out: &mut Vec<u8>, inherited_default_ns: &str) {
        self.write_in(out, inherited_default_ns, &mut Vec::new());
    }

    /// The element as text; see [`write`](Self::write).
    pub fn to_vec(&self, inherited_default_ns: &str) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, inherited_default_ns);
        out
    }

    /// `prefixed` holds the namespaces that have a prefix here: `ns` and the position.
    fn write_in<'a>(&'a self, out: &mut Vec<u8>, inherited_default_ns: &str, prefixed: &mut Vec<&'a str>) {
        let outer = prefixed.len();
        out.push(b'<');
        out.extend_from_slice(self.name.as_bytes());
        if *self.namespace != *inherited_default_ns {
            out.extend_from_slice(b" xmlns='");
            escape_attr(&self.namespace, out);
            out.push(b'\'');
        }
        self.write_attributes(out, prefixed);
        if self.nodes.is_empty() {
            out.extend_from_slice(b"/>");
        } else {
            out.push(b'>');
            for node in &self.nodes {
                match node {
                    Node::Element(child) => child.write_in(out, &self.namespace, prefixed),
                    Node::Text(text) => escape_text(text, out),
                }
            }
            out.extend_from_slice(b"</");
            out.extend_from_slice(self.name.as_bytes());
            out.push(b'>');
        }
        prefixed.truncate(outer);
    }

    fn write_attributes<'a>(&'a self, out: &mut Vec<u8>, prefixed: &mut Vec<&'a str>) {
        for attribute in &self.attributes {
            match attribute.namespace() {
                None => out.push(b' '),
                Some(ns::XML) => out.extend_from_slice(b" xml:"),
                Some(namespace) => {
                    let known = prefixed.iter().position(|known| *known == namespace);
                    let prefix = format!("ns{}", known.unwrap_or(prefixed.len()));
                    if known.is_none() {
                        prefixed.push(namespace);
                        out.extend_from_slice(b" xmlns:");
                        out.extend_from_slice(prefix.as_bytes());
                        out.extend_from_slice(b"='");
                        escape_attr(namespace, out);
                        out.push(b'\'');
                    }
                    out.push(b' ');
                    out.extend_from_slice(prefix.as_bytes());
                    out.push(b':');
                }
            }
            out.extend_from_slice(attribute.name.as_bytes());
            out.extend_from_slice(b"='");
            escape_attr(&attribute.value, out);
            out.push(b'\'');
        }
    }

    /// Whether the element, parsed from so many bytes, may be written. A long namespace name declared once and
    /// used by thousands of elements would have to be written thousands of times.
    pub(super) fn may_be_written(&self, parsed_from: usize) -> bool {
        self.declared_bytes(&self.namespace) <= parsed_from.saturating_mul(MAX_GROWTH).max(SMALL)
    }

    /// No fewer bytes than all namespace declarations take, before escaping.
    fn declared_bytes(&self, default: &str) -> usize {
        let own = if *self.namespace == *default { 0 } else { self.namespace.len() };
        let attributes: usize = self.attributes.iter().filter_map(|a| a.namespace()).map(str::len).sum();
        let children: usize = self.children().map(|child| child.declared_bytes(&self.namespace)).sum();
        own + attributes + children
    }
}

//! Writing a tree: every element declares its namespace as the default one where it differs from its
//! parent's, so no prefix is ever needed but for attributes.

use super::{Element, Node};
use crate::escape::{escape_attr, escape_text};
use crate::ns;

impl Element {
    /// Appends the element. `inherited_default_ns` is the default namespace at the place it is written to:
    /// the content namespace of the stream, or empty outside of any stream.
    pub fn write(&self, out: &mut Vec<u8>, inherited_default_ns: &str) {
        // Only the prefix `xml` can name this one (Namespaces in XML section 3).
        let in_xml = *self.namespace == *ns::XML;
        let default = if in_xml { inherited_default_ns } else { &self.namespace };
        out.push(b'<');
        self.write_name(out, in_xml);
        if default != inherited_default_ns {
            out.extend_from_slice(b" xmlns='");
            escape_attr(default, out);
            out.push(b'\'');
        }
        self.write_attributes(out);
        if self.nodes.is_empty() {
            out.extend_from_slice(b"/>");
            return;
        }
        out.push(b'>');
        for node in &self.nodes {
            match node {
                Node::Element(child) => child.write(out, default),
                Node::Text(text) => escape_text(text, out),
            }
        }
        out.extend_from_slice(b"</");
        self.write_name(out, in_xml);
        out.push(b'>');
    }

    /// The element as text; see [`write`](Self::write).
    pub fn to_vec(&self, inherited_default_ns: &str) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, inherited_default_ns);
        out
    }

    fn write_name(&self, out: &mut Vec<u8>, in_xml: bool) {
        if in_xml {
            out.extend_from_slice(b"xml:");
        }
        out.extend_from_slice(self.name.as_bytes());
    }

    fn write_attributes(&self, out: &mut Vec<u8>) {
        // Namespaces that this element declares a prefix for: `ns` and the position here.
        let mut declared: Vec<&str> = Vec::new();
        for attribute in &self.attributes {
            match attribute.namespace() {
                None => out.push(b' '),
                Some(ns::XML) => out.extend_from_slice(b" xml:"),
                Some(namespace) => {
                    let known = declared.iter().position(|declared| *declared == namespace);
                    let prefix = format!("ns{}", known.unwrap_or(declared.len()));
                    if known.is_none() {
                        declared.push(namespace);
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
}

//! What happens where a start tag ends: namespace declarations come into force, names are resolved,
//! attributes are compared, and the head takes note.

use smallvec::SmallVec;

use crate::error::XmlError;
use crate::head::{Attribute, ChildHead, Ns, NsName, Span};
use crate::limits::MAX_NAMESPACES;
use crate::ns;
use crate::scanner::{Binding, Context, Open, Place, Scanner, Unit};
use crate::scope::{Scope, owned};
use crate::tokens::split_name;

/// Up to how many attributes comparing each with each is cheaper than sorting.
const FEW_ATTRIBUTES: usize = 8;

impl Scanner {
    /// Ends the start tag whose `>` is just before `at`.
    pub(crate) fn end_start_tag(
        &mut self,
        data: &[u8],
        at: usize,
        self_closing: bool,
        context: Context<'_>,
    ) -> Result<Option<Unit>, XmlError> {
        let scope = context.scope;
        let outer_bindings = self.bindings.len() as u16;
        let first = self.head_attributes;
        if self.marks.is_special {
            self.declare(data, first, scope)?;
            self.check_prefixes(data, first, scope)?;
        }
        if self.marks.may_repeat {
            self.check_repeated(data, first)?;
        }
        let (prefix, local) = split_name(self.name, self.name_colon);
        let depth = self.stack.len();
        let mut resolved = Resolved::Scope;
        // Deeper down, the default namespace need not be known.
        if !prefix.is_empty() || (depth <= 1 && !self.bindings.is_empty()) {
            resolved = self.resolve(data, prefix, scope)?;
            if resolved == Resolved::Xml {
                // Well-formed, but meaningless, and some parsers (roxmltree) refuse it.
                return Err(XmlError::Restricted);
            }
            self.head.reserialise |= resolved == Resolved::Scope && !prefix.is_empty();
        }
        match depth {
            0 => {
                self.head.prefix = prefix;
                self.head.name = local;
                (self.head.namespace_name, self.head.namespace) =
                    self.namespace(data, resolved, prefix, scope);
                self.head.reserialise |= !prefix.is_empty();
                self.head.open_end = at - 1 - usize::from(self_closing);
                self.head.self_closing = self_closing;
                self.head_attributes = self.head.attributes.len();
                if matches!(context.place, Place::Start | Place::Prolog) {
                    return Ok(Some(Unit::Header(at)));
                }
                if self_closing {
                    self.head.close_start = at;
                    return Ok(Some(Unit::Stanza(at)));
                }
            }
            1 => {
                self.head.children += 1;
                if self.head.child.is_none() {
                    let (namespace_name, namespace) = self.namespace(data, resolved, prefix, scope);
                    let start = self.name.start as usize - 1;
                    self.head.child = Some(ChildHead { name: local, namespace, namespace_name, start });
                }
            }
            _ => {}
        }
        self.head.attributes.truncate(self.head_attributes);
        if self_closing {
            self.bindings.truncate(usize::from(outer_bindings));
        } else {
            self.stack.push(Open { name: self.name, outer_bindings });
        }
        Ok(None)
    }

    /// Brings the namespace declarations among the attributes from `first` on into force.
    fn declare(&mut self, data: &[u8], first: usize, scope: &Scope) -> Result<(), XmlError> {
        for index in first..self.head.attributes.len() {
            let attribute = self.head.attributes[index];
            if !attribute.is_declaration {
                continue;
            }
            let is_default = attribute.prefix.is_empty();
            let prefix = if is_default { Span::default() } else { attribute.local };
            let uri = attribute.value(data);
            let prefix_text = prefix.slice(data);
            // Namespaces in XML 1.0, section 3, "Reserved Prefixes and Namespace Names", and section 2.2 on
            // undeclaring prefixes.
            let is_xml = uri == ns::XML;
            if prefix_text == b"xmlns"
                || (prefix_text == b"xml") != is_xml
                || uri == ns::XMLNS
                || (uri.is_empty() && !is_default)
            {
                return Err(XmlError::NotWellFormed);
            }
            let known = Ns::of(&uri);
            let name = match uri {
                std::borrow::Cow::Borrowed(_) => NsName::Span(attribute.value),
                std::borrow::Cow::Owned(uri) => owned(&uri),
            };
            self.head.reserialise |= if is_default {
                known.is_content()
                    && match self.stack.len() {
                        0 => scope.content().is_some_and(|content| content != known),
                        1 => true,
                        _ => false,
                    }
            } else {
                known.is_content() || prefix_text == b"stream"
            };
            // Default namespaces are bounded by the depth.
            if !is_default && self.bindings.iter().filter(|b| !b.prefix.is_empty()).count() >= MAX_NAMESPACES
            {
                return Err(XmlError::TooManyNamespaces);
            }
            self.bindings.push(Binding { prefix, name });
        }
        Ok(())
    }

    /// Checks that the prefixes of the attributes from `first` on are bound, and that no two attributes
    /// with a prefix have the same name as resolved (Namespaces in XML section 6.3).
    fn check_prefixes(&mut self, data: &[u8], first: usize, scope: &Scope) -> Result<(), XmlError> {
        let mut prefixed: SmallVec<[(&[u8], &[u8]); 4]> = SmallVec::new();
        let mut from_header = false;
        let attributes = &self.head.attributes[first..];
        for attribute in attributes.iter().filter(|a| !a.is_declaration && !a.prefix.is_empty()) {
            let resolved = self.resolve(data, attribute.prefix, scope)?;
            from_header |= resolved == Resolved::Scope;
            let uri = match resolved {
                Resolved::Xml => ns::XML.as_bytes(),
                Resolved::Binding(index) => self.bindings[index].name.bytes(data),
                Resolved::Scope => scope.lookup(attribute.prefix.slice(data)).unwrap_or_default().as_bytes(),
            };
            prefixed.push((attribute.local.slice(data), uri));
        }
        prefixed.sort_unstable();
        if prefixed.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(XmlError::NotWellFormed);
        }
        self.head.reserialise |= from_header;
        Ok(())
    }

    /// Checks that no two attributes from `first` on have the same name as written (XML 1.0 section 3.1).
    fn check_repeated(&self, data: &[u8], first: usize) -> Result<(), XmlError> {
        let attributes = &self.head.attributes[first..];
        let repeated = if attributes.len() <= FEW_ATTRIBUTES {
            attributes
                .iter()
                .enumerate()
                .any(|(index, a)| attributes[..index].iter().any(|b| same_name(a, b, data)))
        } else {
            let mut names: Vec<&[u8]> = attributes.iter().map(|a| raw_name(a, data)).collect();
            names.sort_unstable();
            names.windows(2).any(|pair| pair[0] == pair[1])
        };
        if repeated { Err(XmlError::NotWellFormed) } else { Ok(()) }
    }

    /// Finds what binds a prefix, or the default namespace if the prefix is empty.
    fn resolve(&self, data: &[u8], prefix: Span, scope: &Scope) -> Result<Resolved, XmlError> {
        let prefix = prefix.slice(data);
        if prefix == b"xml" {
            return Ok(Resolved::Xml);
        }
        if let Some(index) = self.bindings.iter().rposition(|b| b.prefix.slice(data) == prefix) {
            return Ok(Resolved::Binding(index));
        }
        if prefix.is_empty() || scope.lookup(prefix).is_some() {
            return Ok(Resolved::Scope);
        }
        Err(XmlError::NotWellFormed)
    }

    #[inline(always)]
    fn namespace(&self, data: &[u8], resolved: Resolved, prefix: Span, scope: &Scope) -> (NsName, Ns) {
        let name = match resolved {
            Resolved::Xml => NsName::Known(ns::XML),
            Resolved::Binding(index) => self.bindings[index].name.clone(),
            Resolved::Scope if prefix.is_empty() => return scope.default_name(),
            Resolved::Scope => owned(scope.lookup(prefix.slice(data)).unwrap_or_default()),
        };
        let namespace = Ns::of_bytes(name.bytes(data));
        (name, namespace)
    }
}

/// What a name's prefix is bound by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resolved {
    /// The prefix `xml`, always.
    Xml,
    /// A declaration on an open element.
    Binding(usize),
    /// The stream header; or nothing, if there is no prefix.
    Scope,
}

fn same_name(a: &Attribute, b: &Attribute, data: &[u8]) -> bool {
    let (a, b) = (name_span(a), name_span(b));
    a.len() == b.len() && a.slice(data) == b.slice(data)
}

fn raw_name<'a>(attribute: &Attribute, data: &'a [u8]) -> &'a [u8] {
    name_span(attribute).slice(data)
}

fn name_span(attribute: &Attribute) -> Span {
    let start = if attribute.prefix.is_empty() { attribute.local.start } else { attribute.prefix.start };
    Span { start, end: attribute.local.end }
}

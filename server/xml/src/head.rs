//! The index of a top-level element: where its name, attributes and first child are.
//!
//! A [`Head`] holds offsets into the element's bytes and nothing of the reader that made it, so it can be
//! cloned and kept with a copy of those bytes. Offsets always lie on UTF-8 boundaries of those bytes;
//! used with other bytes they give wrong or empty text, never a panic.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::escape::unescape;
use crate::ns;

/// A range of bytes of a top-level element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset after the last byte.
    pub end: u32,
}

impl Span {
    /// A span of offsets that fit, because limits keep elements under 1 GiB.
    pub(crate) fn new(start: usize, end: usize) -> Self {
        Self { start: start as u32, end: end as u32 }
    }

    /// Length in bytes.
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Whether it covers no byte.
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// The bytes it covers; empty if it does not lie within `bytes`.
    pub fn slice(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// The text it covers; empty if it does not lie within `bytes` or is not UTF-8 there.
    pub fn text(self, bytes: &[u8]) -> &str {
        std::str::from_utf8(self.slice(bytes)).unwrap_or_default()
    }
}

/// The namespaces that the core of a server tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Ns {
    /// `jabber:client`
    Client,
    /// `jabber:server`
    Server,
    /// `http://etherx.jabber.org/streams`
    Streams,
    /// `urn:ietf:params:xml:ns:xmpp-tls`
    Tls,
    /// `urn:ietf:params:xml:ns:xmpp-sasl`
    Sasl,
    /// `urn:xmpp:sm:3` (XEP-0198)
    StreamManagement,
    /// Any other namespace, or none.
    #[default]
    Other,
}

impl Ns {
    /// Tells a namespace name (after attribute-value normalisation) apart.
    pub fn of(name: &str) -> Self {
        Self::of_bytes(name.as_bytes())
    }

    pub(crate) fn of_bytes(name: &[u8]) -> Self {
        const KNOWN: [(&str, Ns); 6] = [
            (ns::CLIENT, Ns::Client),
            (ns::SERVER, Ns::Server),
            (ns::STREAMS, Ns::Streams),
            (ns::TLS, Ns::Tls),
            (ns::SASL, Ns::Sasl),
            (ns::STREAM_MANAGEMENT, Ns::StreamManagement),
        ];
        KNOWN.iter().find(|(known, _)| known.as_bytes() == name).map_or(Self::Other, |(_, ns)| *ns)
    }

    /// Whether it is a content namespace: `jabber:client` or `jabber:server`.
    pub fn is_content(self) -> bool {
        matches!(self, Self::Client | Self::Server)
    }
}

/// A namespace name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NsName {
    /// One that the program knows.
    Known(&'static str),
    /// As declared within the element itself.
    Span(Span),
    /// Declared with references or on the stream header.
    Owned(Box<str>),
}

impl Default for NsName {
    fn default() -> Self {
        Self::Known("")
    }
}

impl NsName {
    /// The namespace name, after attribute-value normalisation. Empty for "no namespace".
    pub fn get<'a>(&'a self, bytes: &'a [u8]) -> &'a str {
        match self {
            Self::Known(name) => name,
            Self::Span(span) => span.text(bytes),
            Self::Owned(name) => name,
        }
    }

    pub(crate) fn bytes<'a>(&'a self, bytes: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Span(span) => span.slice(bytes),
            other => other.get(bytes).as_bytes(),
        }
    }
}

/// An attribute of a start tag.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attribute {
    /// Prefix without the colon; empty if there is none.
    pub prefix: Span,
    /// Local name. For `xmlns:p` the prefix is `xmlns` and the local name is `p`.
    pub local: Span,
    /// Value between the quotes, as on the wire.
    pub value: Span,
    /// The value holds a reference or a tab, line feed or carriage return: its raw form differs from what it
    /// means, see [`unescape`].
    pub has_entities: bool,
    /// A namespace declaration: `xmlns` or `xmlns:p`.
    pub is_declaration: bool,
}

impl Attribute {
    /// The value after unescaping and attribute-value normalisation.
    pub fn value<'a>(&self, bytes: &'a [u8]) -> Cow<'a, str> {
        let raw = self.value.text(bytes);
        if self.has_entities { unescape(raw) } else { Cow::Borrowed(raw) }
    }

    /// The name as written, with its prefix.
    pub fn qualified_name<'a>(&self, bytes: &'a [u8]) -> &'a str {
        if self.prefix.is_empty() {
            self.local.text(bytes)
        } else {
            Span { start: self.prefix.start, end: self.local.end }.text(bytes)
        }
    }

    /// The part of the start tag from the first byte of the name to the closing quote.
    pub fn raw<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let start = if self.prefix.is_empty() { self.local.start } else { self.prefix.start };
        Span { start, end: self.value.end + 1 }.slice(bytes)
    }
}

/// The first child element of a top-level element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChildHead {
    /// Local name.
    pub name: Span,
    /// Which of the well-known namespaces it is in.
    pub namespace: Ns,
    /// The namespace itself.
    pub namespace_name: NsName,
    /// Offset of its `<`.
    pub start: usize,
}

impl ChildHead {
    /// Local name.
    pub fn name<'a>(&self, bytes: &'a [u8]) -> &'a str {
        self.name.text(bytes)
    }

    /// Namespace name.
    pub fn namespace<'a>(&'a self, bytes: &'a [u8]) -> &'a str {
        self.namespace_name.get(bytes)
    }
}

/// The index of a top-level element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Local name.
    pub name: Span,
    /// Prefix of the name without the colon; empty if there is none.
    pub prefix: Span,
    /// Which of the well-known namespaces it is in.
    pub namespace: Ns,
    /// The namespace itself.
    pub namespace_name: NsName,
    /// Attributes and namespace declarations in the order of the wire.
    pub attributes: SmallVec<[Attribute; 8]>,
    /// Offset of the `>`, or of the `/` of `/>`, that ends the attributes.
    pub open_end: usize,
    /// Offset of the `</` that ends the element; the length of the element if it is self-closing.
    pub close_start: usize,
    /// Whether the element is `<name/>`.
    pub self_closing: bool,
    /// The first child element.
    pub child: Option<ChildHead>,
    /// How many child elements it has.
    pub children: u32,
    /// Relaying the tail as it is under another stream header would change what it means, or what a
    /// careless parser takes it for: parse and write it anew ([`Frame::element`](crate::Frame::element)).
    ///
    /// True when the element is prefixed; when it declares `jabber:client` or `jabber:server` other than
    /// as the content namespace of its own stream, or a child declares one of them; when a prefix is bound
    /// to one of them, or `stream` is bound, anywhere; when it uses a prefix declared on the stream header;
    /// when it holds a CDATA section.
    pub reserialise: bool,
}

impl Head {
    /// Local name.
    pub fn name<'a>(&self, bytes: &'a [u8]) -> &'a str {
        self.name.text(bytes)
    }

    /// Namespace name.
    pub fn namespace<'a>(&'a self, bytes: &'a [u8]) -> &'a str {
        self.namespace_name.get(bytes)
    }

    /// The attribute without a prefix that is named `name`.
    pub fn attribute(&self, bytes: &[u8], name: &str) -> Option<&Attribute> {
        self.attributes
            .iter()
            .find(|a| a.prefix.is_empty() && !a.is_declaration && a.local.slice(bytes) == name.as_bytes())
    }

    /// The unescaped value of the attribute without a prefix that is named `name`.
    pub fn attr<'a>(&self, bytes: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
        self.attribute(bytes, name).map(|a| a.value(bytes))
    }

    /// The unescaped value of `xml:lang`.
    pub fn lang<'a>(&self, bytes: &'a [u8]) -> Option<Cow<'a, str>> {
        self.attributes
            .iter()
            .find(|a| a.prefix.slice(bytes) == b"xml" && a.local.slice(bytes) == b"lang")
            .map(|a| a.value(bytes))
    }

    /// The bytes between the start tag and the end tag; empty if self-closing.
    pub fn tail<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        if self.self_closing {
            return &[];
        }
        bytes.get(self.open_end + 1..self.close_start).unwrap_or_default()
    }
}

//! Why the reader refused its input, and the stream error that says so.
//!
//! Every variant maps to one RFC 6120 section 4.9.3 condition. No variant carries text from the wire, so
//! an error can be logged and sent as it is.

/// Why a stream, a frame or a stanza was refused. Fatal to the stream it was read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum XmlError {
    /// Violates XML 1.0 or Namespaces in XML 1.0 (RFC 6120 section 11.3).
    #[error("XML is not well-formed")]
    NotWellFormed,
    /// A comment, processing instruction, DTD or entity reference (RFC 6120 section 11.1).
    #[error("comments, processing instructions, DTDs and entity references are not allowed")]
    Restricted,
    /// The stream is declared as, or looks like, something else than UTF-8 (RFC 6120 section 11.6).
    #[error("only UTF-8 is supported")]
    UnsupportedEncoding,
    /// The stream namespace has a prefix that is not supported (RFC 6120 section 4.8.5).
    #[error("the stream namespace prefix is not supported")]
    BadNamespacePrefix,
    /// The stream header is not in the stream namespace (RFC 6120 section 4.8.1).
    #[error("the stream namespace is not valid")]
    InvalidNamespace,
    /// Well-formed, but not what a stream may hold here, such as text between stanzas.
    #[error("XML cannot be processed at this place of a stream")]
    BadFormat,
    /// Well-formed, but violates the schema (RFC 6120 section 4.9.3.11).
    #[error("XML is not valid")]
    InvalidXml,
    /// More bytes than [`Limits::max_stanza_bytes`](crate::Limits::max_stanza_bytes).
    #[error("element is too large")]
    StanzaTooBig,
    /// Deeper than [`Limits::max_depth`](crate::Limits::max_depth).
    #[error("elements are nested too deeply")]
    TooDeep,
    /// More elements than [`Limits::max_elements`](crate::Limits::max_elements).
    #[error("too many elements")]
    TooManyElements,
    /// More attributes on an element than [`Limits::max_attributes`](crate::Limits::max_attributes).
    #[error("too many attributes")]
    TooManyAttributes,
    /// More namespace declarations in scope at once than [`MAX_NAMESPACES`](crate::MAX_NAMESPACES).
    #[error("too many namespace declarations")]
    TooManyNamespaces,
}

impl XmlError {
    /// The RFC 6120 section 4.9.3 condition that closes the stream.
    pub fn condition(self) -> &'static str {
        match self {
            Self::NotWellFormed => "not-well-formed",
            Self::Restricted => "restricted-xml",
            Self::UnsupportedEncoding => "unsupported-encoding",
            Self::BadNamespacePrefix => "bad-namespace-prefix",
            Self::InvalidNamespace => "invalid-namespace",
            Self::BadFormat => "bad-format",
            Self::InvalidXml => "invalid-xml",
            Self::StanzaTooBig
            | Self::TooDeep
            | Self::TooManyElements
            | Self::TooManyAttributes
            | Self::TooManyNamespaces => "policy-violation",
        }
    }

    /// A sentence for people: the `<text/>` of the stream error.
    pub fn text(self) -> &'static str {
        match self {
            Self::NotWellFormed => "XML is not well-formed",
            Self::Restricted => {
                "Comments, processing instructions, DTDs and entity references are not allowed"
            }
            Self::UnsupportedEncoding => "Only UTF-8 is supported",
            Self::BadNamespacePrefix => "The stream namespace prefix is not supported",
            Self::InvalidNamespace => "The stream namespace is not valid",
            Self::BadFormat => "XML cannot be processed at this place of a stream",
            Self::InvalidXml => "XML is not valid",
            Self::StanzaTooBig => "Element is too large",
            Self::TooDeep => "Elements are nested too deeply",
            Self::TooManyElements => "Too many elements",
            Self::TooManyAttributes => "Too many attributes",
            Self::TooManyNamespaces => "Too many namespace declarations",
        }
    }
}

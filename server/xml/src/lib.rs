//! Bytes to stanzas and back: the XML layer of Waystation. No I/O.
//!
//! [`Framer`] cuts a byte stream into top-level elements and proves every byte of them well-formed
//! (XML 1.0, Namespaces in XML 1.0, RFC 6120 section 11), so that they can be relayed as they came.
//! [`Head`] indexes an element without copying it. [`Element`] is a tree, for those who look inside.
//!
//! What the framer refuses although XML allows it: comments, processing instructions, DTDs and entities
//! other than the five predefined ones; encodings other than UTF-8 and versions other than 1.0;
//! `standalone='no'`; names that only the fifth edition of XML 1.0 allows (expat refuses them); elements in the
//! namespace of `xml:` (some parsers refuse them); text between stanzas; stream headers in other namespaces or larger than [`MAX_HEADER_BYTES`]; more than
//! [`MAX_NAMESPACES`] namespace declarations in scope; and what exceeds the [`Limits`].

mod chars;
mod declaration;
mod element;
mod error;
mod escape;
mod framer;
#[doc(hidden)]
pub mod fuzzing;
mod head;
mod limits;
pub mod ns;
mod scanner;
mod scope;
mod tag;
mod tokens;

pub use element::{Attr, Element, Node};
pub use error::XmlError;
pub use escape::{escape_attr, escape_text, unescape, unescape_text};
pub use framer::{Event, Frame, Framer};
pub use head::{Attribute, ChildHead, Head, Ns, NsName, Span};
pub use limits::{Limits, MAX_DEPTH, MAX_HEADER_BYTES, MAX_NAMESPACES};
pub use scope::StreamOpen;

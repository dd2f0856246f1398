//! What a stream header leaves in force for all that follows on the stream: namespace declarations and the
//! name that ends the stream. The usual headers are kept without any heap.

use crate::error::XmlError;
use crate::head::{Head, Ns, NsName};
use crate::ns;

/// A stream header that was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamOpen {
    /// The `to` attribute, unescaped; not checked to be an address.
    pub to: Option<String>,
    /// The `from` attribute, unescaped; not checked to be an address.
    pub from: Option<String>,
    /// The `id` attribute, unescaped.
    pub id: Option<String>,
    /// The `version` attribute, unescaped; not checked.
    pub version: Option<String>,
    /// The `xml:lang` attribute, unescaped; not checked.
    pub lang: Option<String>,
    /// The default namespace of what follows; empty if the header declares none but the stream namespace
    /// (RFC 6120 section 4.8.2).
    pub content_namespace: String,
    /// The stream namespace has the prefix `stream` or none, as RFC 6120 section 4.8.5 lets a server demand
    /// (`bad-namespace-prefix` otherwise).
    pub stream_prefix_ok: bool,
}

impl StreamOpen {
    /// True for version 1.0 and above, which is answered with 1.0 (RFC 6120 section 4.7.5). A version below,
    /// or none, is another protocol.
    pub fn is_version_1(&self) -> bool {
        let major = self.version.as_deref().and_then(|v| {
            let (major, minor) = v.split_once('.')?;
            minor.parse::<u16>().ok()?;
            major.parse::<u16>().ok()
        });
        major.is_some_and(|major| major >= 1)
    }
}

/// Declarations in force outside of any top-level element.
#[derive(Clone, Debug, Default)]
pub(crate) enum Scope {
    /// Frames: nothing is declared.
    #[default]
    Empty,
    /// `xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'`, root `stream:stream`.
    Client,
    /// The same with `jabber:server`.
    Server,
    /// Anything else.
    Custom(Box<Custom>),
}

/// What an unusual stream header declares.
#[derive(Clone, Debug)]
pub(crate) struct Custom {
    /// Name of the root with its prefix, as its end tag must repeat it.
    root: Box<[u8]>,
    default: Box<str>,
    prefixes: Vec<(Box<[u8]>, Box<str>)>,
}

impl Scope {
    /// Reads a stream header. `bytes` is its start tag and `head` the index of it.
    pub(crate) fn open(bytes: &[u8], head: &Head) -> Result<(Self, StreamOpen), XmlError> {
        if head.namespace != Ns::Streams {
            return Err(XmlError::InvalidNamespace);
        }
        if head.name.slice(bytes) != b"stream" {
            return Err(XmlError::BadFormat);
        }
        let mut default = String::new();
        let mut prefixes = Vec::new();
        for attribute in head.attributes.iter().filter(|a| a.is_declaration) {
            let uri = attribute.value(bytes).into_owned();
            if attribute.prefix.is_empty() {
                default = uri;
            } else {
                prefixes.push((attribute.local.slice(bytes).into(), uri.into_boxed_str()));
            }
        }
        let prefix = head.prefix.slice(bytes);
        let attr = |name| head.attr(bytes, name).map(|value| value.into_owned());
        let open = StreamOpen {
            to: attr("to"),
            from: attr("from"),
            id: attr("id"),
            version: attr("version"),
            lang: head.lang(bytes).map(|value| value.into_owned()),
            content_namespace: if default == ns::STREAMS { String::new() } else { default.clone() },
            stream_prefix_ok: prefix.is_empty() || prefix == b"stream",
        };
        let usual = prefix == b"stream" && prefixes.len() == 1;
        let scope = match Ns::of(&default) {
            Ns::Client if usual => Self::Client,
            Ns::Server if usual => Self::Server,
            _ => {
                let end = head.name.end as usize;
                let start = if prefix.is_empty() { head.name.start } else { head.prefix.start } as usize;
                Self::Custom(Box::new(Custom {
                    root: bytes[start..end].into(),
                    default: default.into_boxed_str(),
                    prefixes,
                }))
            }
        };
        Ok((scope, open))
    }

    /// The name that the end tag of the stream must have.
    pub(crate) fn root(&self) -> &[u8] {
        match self {
            Self::Empty => b"",
            Self::Client | Self::Server => b"stream:stream",
            Self::Custom(custom) => &custom.root,
        }
    }

    /// The default namespace; empty if there is none.
    pub(crate) fn default_namespace(&self) -> &str {
        match self {
            Self::Empty => "",
            Self::Client => ns::CLIENT,
            Self::Server => ns::SERVER,
            Self::Custom(custom) => &custom.default,
        }
    }

    /// The default namespace, for a head that outlives the scope.
    pub(crate) fn default_name(&self) -> (NsName, Ns) {
        match self {
            Self::Empty => (NsName::Known(""), Ns::Other),
            Self::Client => (NsName::Known(ns::CLIENT), Ns::Client),
            Self::Server => (NsName::Known(ns::SERVER), Ns::Server),
            Self::Custom(custom) => (owned(&custom.default), Ns::of(&custom.default)),
        }
    }

    /// What a prefix is bound to.
    pub(crate) fn lookup(&self, prefix: &[u8]) -> Option<&str> {
        match self {
            Self::Empty => None,
            Self::Client | Self::Server => (prefix == b"stream").then_some(ns::STREAMS),
            Self::Custom(custom) => {
                custom.prefixes.iter().find(|(p, _)| **p == *prefix).map(|(_, uri)| &**uri)
            }
        }
    }

    /// The content namespace, if the header declares one that XMPP defines.
    pub(crate) fn content(&self) -> Option<Ns> {
        Some(Ns::of(self.default_namespace())).filter(|ns| ns.is_content())
    }
}

/// A namespace name that outlives what it was read from.
pub(crate) fn owned(name: &str) -> NsName {
    for known in [ns::CLIENT, ns::SERVER, ns::STREAMS, ns::XML, ""] {
        if name == known {
            return NsName::Known(known);
        }
    }
    NsName::Owned(name.into())
}

//! The stanza: a parsed head, an untouched tail (RFC 6120 8, RFC 6121).
//!
//! What must hold: `head` + `tail` is one well-formed element that means the same under any
//! stream whose content namespace is `jabber:client`; `head` ends before the `>` or `/>` of
//! the start tag; the tail is shared, so that a copy for another recipient costs a new head
//! at most.

use std::sync::Arc;

use bytes::Bytes;
use waystation_xml::{Element, Limits, escape_attr, escape_text};

use crate::error::StanzaError;
use crate::jid::Jid;
use crate::parts::{ChildName, EMPTY, Head, Parts, quotable};
use crate::signs::{Sign, Signs};

/// Content namespace of client streams.
pub const NS_CLIENT: &str = "jabber:client";

/// Limits for what the server itself wrote: those of a client's stanza, and room for what the
/// server adds to one.
pub(crate) const SERVER_MADE: Limits = Limits {
    max_stanza_bytes: 64 * 1024 * 1024,
    max_depth: 1_024,
    max_elements: 1_000_000,
    max_attributes: 1_024,
};

/// Which of the three stanzas it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// `<message/>`
    Message,
    /// `<presence/>`
    Presence,
    /// `<iq/>`
    Iq,
}

impl Kind {
    /// The element's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Message => "message",
            Self::Presence => "presence",
            Self::Iq => "iq",
        }
    }
}

/// Kind and type attribute of a stanza.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StanzaType {
    /// A message (RFC 6121 5.2.2).
    Message(MessageType),
    /// Presence (RFC 6121 4.7.1).
    Presence(PresenceType),
    /// An iq (RFC 6120 8.2.3).
    Iq(IqType),
}

/// Message types; an unknown one counts as normal (RFC 6121 5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageType {
    /// The default.
    Normal,
    /// One-to-one conversation.
    Chat,
    /// Sent to or by a room.
    Groupchat,
    /// An alert that expects no reply and is not stored.
    Headline,
    /// An error reply.
    Error,
}

/// Presence types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PresenceType {
    /// No type attribute.
    Available,
    /// No longer available.
    Unavailable,
    /// Request for a subscription.
    Subscribe,
    /// A subscription is granted.
    Subscribed,
    /// End of the sender's subscription.
    Unsubscribe,
    /// A subscription is refused or withdrawn.
    Unsubscribed,
    /// Request for the current presence; servers only.
    Probe,
    /// An error reply.
    Error,
}

/// Iq types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IqType {
    /// Asks for data.
    Get,
    /// Changes data.
    Set,
    /// Answers a get or set.
    Result,
    /// Refuses a get or set.
    Error,
}

impl StanzaType {
    /// Which of the three stanzas.
    pub fn kind(self) -> Kind {
        match self {
            Self::Message(_) => Kind::Message,
            Self::Presence(_) => Kind::Presence,
            Self::Iq(_) => Kind::Iq,
        }
    }

    /// The type attribute's value; `None` when the default leaves it out.
    pub fn attribute(self) -> Option<&'static str> {
        Some(match self {
            Self::Message(MessageType::Normal) | Self::Presence(PresenceType::Available) => return None,
            Self::Message(MessageType::Chat) => "chat",
            Self::Message(MessageType::Groupchat) => "groupchat",
            Self::Message(MessageType::Headline) => "headline",
            Self::Message(MessageType::Error)
            | Self::Presence(PresenceType::Error)
            | Self::Iq(IqType::Error) => "error",
            Self::Presence(PresenceType::Unavailable) => "unavailable",
            Self::Presence(PresenceType::Subscribe) => "subscribe",
            Self::Presence(PresenceType::Subscribed) => "subscribed",
            Self::Presence(PresenceType::Unsubscribe) => "unsubscribe",
            Self::Presence(PresenceType::Unsubscribed) => "unsubscribed",
            Self::Presence(PresenceType::Probe) => "probe",
            Self::Iq(IqType::Get) => "get",
            Self::Iq(IqType::Set) => "set",
            Self::Iq(IqType::Result) => "result",
        })
    }

    /// Reads a type attribute; `None` when the kind does not define it.
    pub fn parse(kind: Kind, attribute: Option<&str>) -> Option<Self> {
        Self::of_bytes(kind, attribute.map(str::as_bytes))
    }

    pub(crate) fn of_bytes(kind: Kind, attribute: Option<&[u8]>) -> Option<Self> {
        Some(match kind {
            Kind::Message => Self::Message(match attribute {
                Some(b"chat") => MessageType::Chat,
                Some(b"groupchat") => MessageType::Groupchat,
                Some(b"headline") => MessageType::Headline,
                Some(b"error") => MessageType::Error,
                _ => MessageType::Normal,
            }),
            Kind::Presence => Self::Presence(match attribute {
                None => PresenceType::Available,
                Some(b"unavailable") => PresenceType::Unavailable,
                Some(b"subscribe") => PresenceType::Subscribe,
                Some(b"subscribed") => PresenceType::Subscribed,
                Some(b"unsubscribe") => PresenceType::Unsubscribe,
                Some(b"unsubscribed") => PresenceType::Unsubscribed,
                Some(b"probe") => PresenceType::Probe,
                Some(b"error") => PresenceType::Error,
                Some(_) => return None,
            }),
            Kind::Iq => Self::Iq(match attribute {
                Some(b"get") => IqType::Get,
                Some(b"set") => IqType::Set,
                Some(b"result") => IqType::Result,
                Some(b"error") => IqType::Error,
                _ => return None,
            }),
        })
    }

    /// The error type of the same kind.
    pub fn error_of(kind: Kind) -> Self {
        match kind {
            Kind::Message => Self::Message(MessageType::Error),
            Kind::Presence => Self::Presence(PresenceType::Error),
            Kind::Iq => Self::Iq(IqType::Error),
        }
    }

    /// True for type `error`.
    pub fn is_error(self) -> bool {
        self == Self::error_of(self.kind())
    }
}

/// A stanza on its way through the server. It never changes, so that a copy costs as much as a
/// pointer: on its way a message is copied half a dozen times and moved more often.
#[derive(Clone, Debug)]
pub struct Stanza(pub(crate) Arc<Parts>);

impl Stanza {
    /// Kind and type.
    pub fn stanza_type(&self) -> StanzaType {
        self.0.stanza_type
    }

    /// Which of the three stanzas.
    pub fn kind(&self) -> Kind {
        self.0.stanza_type.kind()
    }

    /// Sender.
    pub fn from(&self) -> Option<&Jid> {
        self.0.from.as_ref()
    }

    /// Recipient.
    pub fn to(&self) -> Option<&Jid> {
        self.0.to.as_ref()
    }

    /// The id as it stands in the attribute, still escaped.
    pub fn raw_id(&self) -> Option<&str> {
        // The head was proven UTF-8 by the framer or written from a `str`.
        self.0.id().and_then(|id| std::str::from_utf8(id).ok())
    }

    /// The id.
    pub fn id(&self) -> Option<std::borrow::Cow<'_, str>> {
        self.raw_id().map(waystation_xml::unescape)
    }

    /// The `xml:lang` attribute, still escaped.
    pub fn raw_lang(&self) -> Option<&str> {
        self.0.lang().and_then(|lang| std::str::from_utf8(lang).ok())
    }

    /// Name and namespace of the first child element.
    pub fn child(&self) -> Option<(&str, &str)> {
        self.0.child.as_ref().map(ChildName::parts)
    }

    /// The start tag up to its end, and the rest.
    pub fn wire(&self) -> (&Bytes, &Bytes) {
        (&self.0.head, &self.0.tail)
    }

    /// Length on the wire in bytes.
    pub fn len(&self) -> usize {
        self.0.head.len() + self.0.tail.len()
    }

    /// Never true: a stanza has a start tag.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes as one piece.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = Vec::with_capacity(self.len());
        out.extend_from_slice(&self.0.head);
        out.extend_from_slice(&self.0.tail);
        out.into()
    }

    /// The whole stanza as a tree, parsed anew: for modules, never on the relay path.
    ///
    /// # Errors
    /// Only when a bug built a stanza that is not well-formed.
    pub fn element(&self) -> Result<Element, waystation_xml::XmlError> {
        Element::parse(&self.to_bytes(), NS_CLIENT)
    }

    /// The same stanza with another sender, recipient or type; the tail stays shared.
    #[must_use]
    pub fn readdressed(&self, from: Option<Jid>, to: Option<Jid>) -> Self {
        Self(Arc::new(self.0.readdressed(from, to)))
    }

    /// The same stanza with another sender.
    #[must_use]
    pub fn with_from(&self, from: Jid) -> Self {
        self.readdressed(Some(from), self.0.to.clone())
    }

    /// The same stanza with another recipient.
    #[must_use]
    pub fn with_to(&self, to: Jid) -> Self {
        self.readdressed(self.0.from.clone(), Some(to))
    }

    /// The same stanza with an `xml:lang`, escaped already.
    #[must_use]
    pub fn with_raw_lang(&self, lang: &str) -> Self {
        Self(Arc::new(self.0.with_lang(lang.as_bytes())))
    }

    /// The same stanza with its namespace declared, to stand inside another element
    /// (XEP-0297 4).
    #[must_use]
    pub fn with_namespace(&self) -> Self {
        Self(Arc::new(self.0.with_attribute(b" xmlns='jabber:client'")))
    }

    /// False when none of these can be among its children: then there is no need to parse it to
    /// look for them.
    pub fn may_hold(&self, signs: &[Sign]) -> bool {
        // The start tag can declare namespaces, too.
        self.0.signs.any(signs, [self.0.extra(), &self.0.tail])
    }

    /// The same stanza with `xml` (well-formed elements that declare their own namespaces)
    /// added as its last children, for example a `<delay/>` stamp.
    #[must_use]
    pub fn with_appended(&self, xml: &str) -> Self {
        self.appended([xml.as_bytes()], self.0.signs.with(xml.as_bytes()))
    }

    /// The same, with `xml` in pieces and the signs that the outcome has. All is written once, into one
    /// buffer that is as long as what is in it, and of the parts only what stays is counted: of the
    /// 1,550 instructions that a stanza id costs otherwise, that spares 900.
    #[inline]
    pub(crate) fn appended<const N: usize>(&self, xml: [&[u8]; N], signs: Signs) -> Self {
        let parts = &*self.0;
        let old = &*parts.tail;
        let end: &[u8] = match self.kind() {
            Kind::Message => b"</message>",
            Kind::Presence => b"</presence>",
            Kind::Iq => b"</iq>",
        };
        let (start, content): (&[u8], &[u8]) = match old.strip_suffix(end) {
            Some(content) => (b"", content),
            // The tail of an empty stanza is `/>` alone, perhaps after white space.
            None if old.ends_with(EMPTY) && parts.child.is_none() && !old.contains(&b'<') => (b">", b""),
            // There is white space in the end tag.
            None => (b"", &old[..old.iter().rposition(|&b| b == b'<').unwrap_or(old.len())]),
        };
        let length = xml.iter().map(|piece| piece.len()).sum::<usize>();
        let mut tail = Vec::with_capacity(start.len() + content.len() + length + end.len());
        tail.extend_from_slice(start);
        tail.extend_from_slice(content);
        for piece in xml {
            tail.extend_from_slice(piece);
        }
        tail.extend_from_slice(end);
        Self(Arc::new(Parts {
            head: parts.head.clone(),
            tail: tail.into(),
            from: parts.from.clone(),
            to: parts.to.clone(),
            child: parts.child.clone(),
            spans: parts.spans,
            stanza_type: parts.stanza_type,
            signs,
        }))
    }

    pub(crate) fn signs(&self) -> &Signs {
        &self.0.signs
    }

    /// A stanza whose content is `inner`: well-formed elements in `jabber:client`, or with
    /// namespace declarations of their own.
    pub fn build(
        stanza_type: StanzaType,
        from: Option<Jid>,
        to: Option<Jid>,
        raw_id: Option<&str>,
        inner: impl AsRef<[u8]>,
    ) -> Self {
        let inner = inner.as_ref();
        let name = stanza_type.kind().as_str();
        let tail = if inner.is_empty() {
            Bytes::from_static(EMPTY)
        } else {
            [b">", inner, b"</", name.as_bytes(), b">"].concat().into()
        };
        let head = Head {
            stanza_type,
            from: from.as_ref().map(Jid::escaped),
            to: to.as_ref().map(Jid::escaped),
            id: raw_id.map(|id| quotable(id.as_bytes())),
            lang: None,
        };
        let (head, _, spans) = head.write(0, |_| {}, &[]);
        let child = ChildName::of_content(inner);
        let signs = Signs::default();
        Self(Arc::new(Parts { head: head.into(), tail, from, to, child, spans, stanza_type, signs }))
    }

    /// A stanza whose only child is `payload`.
    pub fn with_payload(
        stanza_type: StanzaType,
        from: Option<Jid>,
        to: Option<Jid>,
        raw_id: Option<&str>,
        payload: &Element,
    ) -> Self {
        let mut inner = Vec::new();
        payload.write(&mut inner, NS_CLIENT);
        Self::build(stanza_type, from, to, raw_id, &inner)
    }

    /// The reply of an iq: addresses swapped, same id, type result.
    #[must_use]
    pub fn result(&self, payload: Option<&Element>) -> Self {
        let mut inner = Vec::new();
        if let Some(payload) = payload {
            payload.write(&mut inner, NS_CLIENT);
        }
        Self::build(
            StanzaType::Iq(IqType::Result),
            self.0.to.clone(),
            self.0.from.clone(),
            self.raw_id(),
            &inner,
        )
    }

    /// The error reply (RFC 6120 8.3), or `None` for stanzas that must not be answered with
    /// one: errors and iq results (X18).
    #[must_use]
    pub fn error_reply(&self, error: &StanzaError) -> Option<Self> {
        if self.0.stanza_type.is_error() || self.0.stanza_type == StanzaType::Iq(IqType::Result) {
            return None;
        }
        let mut inner = Vec::new();
        error.write(&mut inner);
        Some(Self::build(
            StanzaType::error_of(self.kind()),
            self.0.to.clone(),
            self.0.from.clone(),
            self.raw_id(),
            &inner,
        ))
    }
}

/// A `<message/>` with a text body, for notices that the server itself sends.
pub fn text_message(from: Jid, to: Jid, id: &str, text: &str) -> Stanza {
    let mut inner = b"<body>".to_vec();
    escape_text(text, &mut inner);
    inner.extend_from_slice(b"</body>");
    let raw_id = escaped(id);
    Stanza::build(StanzaType::Message(MessageType::Normal), Some(from), Some(to), Some(&raw_id), &inner)
}

/// Text as an attribute value.
pub fn escaped(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    escape_attr(text, &mut out);
    // Escaping text gives text.
    String::from_utf8(out).unwrap_or_default()
}

//! What a stanza consists of, and how its start tag is written.
//!
//! What must hold: every span lies within the head, and is `None` where the head has no such
//! attribute; the extra attributes are the last ones; addresses and the type in the struct agree
//! with the head's attributes.

use std::borrow::Cow;
use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use waystation_xml::{Event, Frame, Framer};

use crate::jid::Jid;
use crate::signs::Signs;
use crate::stanza::{NS_CLIENT, SERVER_MADE, StanzaType};

/// What a stanza consists of. There is one behind every stanza that is under way or kept, so its
/// size counts: places in the head instead of slices of it, which would each be counted references.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) head: Bytes,
    pub(crate) tail: Bytes,
    pub(crate) from: Option<Jid>,
    pub(crate) to: Option<Jid>,
    pub(crate) child: Option<ChildName>,
    pub(crate) spans: Spans,
    pub(crate) stanza_type: StanzaType,
    pub(crate) signs: Signs,
}

/// Where in the head something stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    start: u32,
    /// Never zero: a head begins with `<`.
    end: NonZeroU32,
}

impl Span {
    /// `None` beyond 4 GiB, which no limit allows.
    fn new(start: usize, end: usize) -> Option<Self> {
        let end = u32::try_from(end).ok().and_then(NonZeroU32::new)?;
        Some(Self { start: u32::try_from(start).ok()?, end })
    }

    fn of(self, head: &[u8]) -> &[u8] {
        head.get(self.start as usize..self.end.get() as usize).unwrap_or_default()
    }
}

/// Where in the head the attributes stand that are not parsed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spans {
    /// The id's value, escaped.
    id: Option<Span>,
    /// The value of `xml:lang`, escaped.
    lang: Option<Span>,
    /// Attributes and namespace declarations besides the five of every stanza, verbatim, each with
    /// a space before it.
    extra: Option<Span>,
}

/// A tail that is shared by all stanzas without content.
pub(crate) const EMPTY: &[u8] = b"/>";

/// Name and namespace of a stanza's first child element. All copies of a stanza share it, and
/// the commonest one is no allocation.
#[derive(Clone, Debug)]
pub(crate) enum ChildName {
    /// `body` in `jabber:client`.
    Body,
    /// The local name, and behind it, from this byte on, the namespace.
    Other(Arc<str>, usize),
}

impl ChildName {
    pub(crate) fn parts(&self) -> (&str, &str) {
        match self {
            Self::Body => ("body", NS_CLIENT),
            Self::Other(text, end) => text.split_at(*end),
        }
    }

    /// That of the first element of a stanza's content.
    pub(crate) fn of_content(inner: &[u8]) -> Option<Self> {
        if inner.is_empty() {
            return None;
        }
        let wrapped = [b"<x xmlns='jabber:client'>", inner, b"</x>"].concat();
        let mut framer = Framer::new_frames(SERVER_MADE);
        let mut input = wrapped.as_slice();
        match framer.next(&mut input) {
            Ok(Event::Stanza(frame)) => Self::of_frame(&frame),
            _ => None,
        }
    }

    /// That of a stanza's first child. One in the stanza's own namespace, whether that is a client's or
    /// a server's, is in that of clients from here on.
    pub(crate) fn of_frame(frame: &Frame<'_>) -> Option<Self> {
        let child = frame.head.child.as_ref()?;
        let is_content = child.namespace.is_content() && child.namespace == frame.head.namespace;
        if is_content && child.name.slice(frame.bytes) == b"body" {
            return Some(Self::Body);
        }
        let name = child.name(frame.bytes);
        let namespace = if is_content { NS_CLIENT } else { child.namespace(frame.bytes) };
        Some(Self::Other([name, namespace].concat().into(), name.len()))
    }
}

/// What goes into a start tag.
pub(crate) struct Head<'a> {
    pub(crate) stanza_type: StanzaType,
    pub(crate) from: Option<Cow<'a, str>>,
    pub(crate) to: Option<Cow<'a, str>>,
    /// As [`quotable`] makes it.
    pub(crate) id: Option<Cow<'a, [u8]>>,
    /// As [`quotable`] makes it.
    pub(crate) lang: Option<Cow<'a, [u8]>>,
}

impl Head<'_> {
    /// Writes the start tag but for its end, with `extra` bytes of further attributes that are
    /// written by `write`, each with a space before it, and what comes behind the head. Returns how
    /// long the head is, and where things stand in it.
    ///
    /// The buffer is as long as what is in it: most stanzas are kept for a while. Each attribute has
    /// its own line, not its turn in a loop, so that what is constant is written without a call.
    pub(crate) fn write(
        &self,
        extra: usize,
        write: impl FnOnce(&mut Vec<u8>),
        behind: &[u8],
    ) -> (Vec<u8>, usize, Spans) {
        const FROM: &str = " from='";
        const TO: &str = " to='";
        const TYPE: &str = " type='";
        const ID: &str = " id='";
        const LANG: &str = " xml:lang='";
        let kind = self.stanza_type.kind().as_str();
        let from = self.from.as_ref().map(|from| from.as_bytes());
        let to = self.to.as_ref().map(|to| to.as_bytes());
        let stanza_type = self.stanza_type.attribute().map(str::as_bytes);
        let (id, lang) = (self.id.as_deref(), self.lang.as_deref());
        let needed = |start: &str, value: Option<&[u8]>| value.map_or(0, |v| start.len() + v.len() + 1);
        let length = 1 + kind.len() + extra + behind.len();
        let length = length + needed(FROM, from) + needed(TO, to) + needed(TYPE, stanza_type);
        let mut out = Vec::with_capacity(length + needed(ID, id) + needed(LANG, lang));
        out.push(b'<');
        out.extend_from_slice(kind.as_bytes());
        attribute(&mut out, FROM, from);
        attribute(&mut out, TO, to);
        attribute(&mut out, TYPE, stanza_type);
        let id = attribute(&mut out, ID, id);
        let lang = attribute(&mut out, LANG, lang);
        let began = out.len();
        let extra = match extra {
            0 => None,
            _ => {
                write(&mut out);
                Span::new(began, out.len())
            }
        };
        let head = out.len();
        out.extend_from_slice(behind);
        (out, head, Spans { id, lang, extra })
    }
}

/// Writes an attribute, if there is one, and tells where its value stands.
#[inline(always)]
fn attribute(out: &mut Vec<u8>, start: &str, value: Option<&[u8]>) -> Option<Span> {
    let value = value?;
    out.extend_from_slice(start.as_bytes());
    let began = out.len();
    out.extend_from_slice(value);
    let ended = out.len();
    out.push(b'\'');
    Span::new(began, ended)
}

/// A value that is escaped already, for single quotes: a raw value from the wire may have stood
/// between double quotes and hold an apostrophe.
pub(crate) fn quotable(value: &[u8]) -> Cow<'_, [u8]> {
    // Most are too short for a searcher to pay off.
    if !value.contains(&b'\'') {
        return Cow::Borrowed(value);
    }
    let mut out = Vec::with_capacity(value.len() + 16);
    for &b in value {
        if b == b'\'' { out.extend_from_slice(b"&apos;") } else { out.push(b) }
    }
    Cow::Owned(out)
}

impl Parts {
    /// The id, escaped.
    pub(crate) fn id(&self) -> Option<&[u8]> {
        self.spans.id.map(|span| span.of(&self.head))
    }

    /// The language, escaped.
    pub(crate) fn lang(&self) -> Option<&[u8]> {
        self.spans.lang.map(|span| span.of(&self.head))
    }

    /// The attributes besides the five of every stanza.
    pub(crate) fn extra(&self) -> &[u8] {
        self.spans.extra.map(|span| span.of(&self.head)).unwrap_or_default()
    }

    /// The same with other addresses; the tail stays shared.
    pub(crate) fn readdressed(&self, from: Option<Jid>, to: Option<Jid>) -> Self {
        self.rewritten(from, to, self.lang().map(Cow::Borrowed), &[])
    }

    /// The same with another `xml:lang`, escaped already.
    pub(crate) fn with_lang(&self, lang: &[u8]) -> Self {
        self.rewritten(self.from.clone(), self.to.clone(), Some(quotable(lang)), &[])
    }

    /// The same with this attribute, which has a space before it, before the others.
    pub(crate) fn with_attribute(&self, attribute: &[u8]) -> Self {
        self.rewritten(self.from.clone(), self.to.clone(), self.lang().map(Cow::Borrowed), attribute)
    }

    fn rewritten(
        &self,
        from: Option<Jid>,
        to: Option<Jid>,
        lang: Option<Cow<'_, [u8]>>,
        attribute: &[u8],
    ) -> Self {
        let head = Head {
            stanza_type: self.stanza_type,
            from: from.as_ref().map(Jid::escaped),
            to: to.as_ref().map(Jid::escaped),
            id: self.id().map(Cow::Borrowed),
            lang,
        };
        let extra = [attribute, self.extra()];
        let length = extra.iter().map(|part| part.len()).sum();
        let (bytes, _, spans) =
            head.write(length, |out| extra.into_iter().for_each(|part| out.extend_from_slice(part)), &[]);
        Self {
            head: bytes.into(),
            tail: self.tail.clone(),
            from,
            to,
            child: self.child.clone(),
            spans,
            stanza_type: self.stanza_type,
            signs: self.signs.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stanza::Kind;

    #[test]
    fn a_head_is_as_long_as_its_buffer() {
        let (from, to) = (Jid::parse("a@b/it's").unwrap(), Jid::parse("c@d").unwrap());
        let type_of = |attribute| StanzaType::parse(Kind::Message, attribute).unwrap();
        for (stanza_type, value) in
            [(type_of(None), ""), (type_of(Some("chat")), "it's"), (type_of(None), "'")]
        {
            for some in [false, true] {
                let head = Head {
                    stanza_type,
                    from: some.then(|| from.escaped()),
                    to: Some(to.escaped()),
                    id: Some(quotable(value.as_bytes())),
                    lang: some.then(|| quotable(value.as_bytes())),
                };
                let (all, length, spans) = head.write(6, |out| out.extend_from_slice(b" x='1'"), b"/>");
                assert_eq!((all.capacity(), length), (all.len(), all.len() - 2));
                let escaped = value.replace('\'', "&apos;");
                assert_eq!(spans.id.map(|id| id.of(&all)), Some(escaped.as_bytes()));
                assert_eq!(spans.lang.map(|lang| lang.of(&all)), some.then_some(escaped.as_bytes()));
                assert_eq!(spans.extra.map(|extra| extra.of(&all)), Some(&b" x='1'"[..]));
                let text = String::from_utf8(all).unwrap();
                assert!(text.ends_with(" x='1'/>") && text.contains(" to='c@d'"), "{text}");
                assert_eq!(text.contains(" from='a@b/it&apos;s'"), some, "{text}");
            }
        }
    }

    #[test]
    fn a_stanza_in_memory_is_small() {
        // With the two counters of an `Arc` it fits the allocator's class of 192 bytes.
        assert!(size_of::<Parts>() <= 176, "{}", size_of::<Parts>());
    }
}

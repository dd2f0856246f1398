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

    /// That of a stanza's first child.
    pub(crate) fn of_frame(frame: &Frame<'_>) -> Option<Self> {
        let child = frame.head.child.as_ref()?;
        let (name, namespace) = (child.name(frame.bytes), child.namespace(frame.bytes));
        if name == "body" && namespace == NS_CLIENT {
            return Some(Self::Body);
        }
        Some(Self::Other([name, namespace].concat().into(), name.len()))
    }
}

/// What goes into a start tag.
pub(crate) struct Head<'a> {
    pub(crate) stanza_type: StanzaType,
    pub(crate) from: Option<Cow<'a, str>>,
    pub(crate) to: Option<Cow<'a, str>>,
    /// Escaped already.
    pub(crate) id: Option<&'a [u8]>,
    /// Escaped already.
    pub(crate) lang: Option<&'a [u8]>,
}

impl Head<'_> {
    /// Writes the start tag but for its end, with `extra` bytes of further attributes that are
    /// written by `write`, each with a space before it, and what comes behind the head. Returns how
    /// long the head is, and where things stand in it.
    ///
    /// The buffer is as long as what is in it: most stanzas are kept for a while.
    pub(crate) fn write(
        &self,
        extra: usize,
        write: impl FnOnce(&mut Vec<u8>),
        behind: &[u8],
    ) -> (Vec<u8>, usize, Spans) {
        const START: [&str; 5] = [" from='", " to='", " type='", " id='", " xml:lang='"];
        let kind = self.stanza_type.kind().as_str();
        let values = [
            self.from.as_ref().map(|from| from.as_bytes()),
            self.to.as_ref().map(|to| to.as_bytes()),
            self.stanza_type.attribute().map(str::as_bytes),
            self.id,
            self.lang,
        ];
        let mut length = 1 + kind.len() + extra + behind.len();
        for (start, value) in START.iter().zip(values) {
            length += value.map_or(0, |value| start.len() + value.len() + 1);
        }
        let mut out = Vec::with_capacity(length);
        out.push(b'<');
        out.extend_from_slice(kind.as_bytes());
        let mut places = [None; 5];
        for ((start, value), place) in START.iter().zip(values).zip(&mut places) {
            let Some(value) = value else { continue };
            out.extend_from_slice(start.as_bytes());
            let began = out.len();
            escape_apostrophes(&mut out, value);
            *place = Span::new(began, out.len());
            out.push(b'\'');
        }
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
        let [_, _, _, id, lang] = places;
        (out, head, Spans { id, lang, extra })
    }
}

/// `value` is escaped already, but a raw value from the wire may have stood between double quotes
/// and hold an apostrophe.
fn escape_apostrophes(out: &mut Vec<u8>, value: &[u8]) {
    if memchr::memchr(b'\'', value).is_some() {
        for &b in value {
            if b == b'\'' { out.extend_from_slice(b"&apos;") } else { out.push(b) }
        }
    } else {
        out.extend_from_slice(value);
    }
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
        self.rewritten(from, to, self.lang(), &[])
    }

    /// The same with another `xml:lang`, escaped already.
    pub(crate) fn with_lang(&self, lang: &[u8]) -> Self {
        self.rewritten(self.from.clone(), self.to.clone(), Some(lang), &[])
    }

    /// The same with this attribute, which has a space before it, before the others.
    pub(crate) fn with_attribute(&self, attribute: &[u8]) -> Self {
        self.rewritten(self.from.clone(), self.to.clone(), self.lang(), attribute)
    }

    fn rewritten(&self, from: Option<Jid>, to: Option<Jid>, lang: Option<&[u8]>, attribute: &[u8]) -> Self {
        let head = Head {
            stanza_type: self.stanza_type,
            from: from.as_ref().map(Jid::escaped),
            to: to.as_ref().map(Jid::escaped),
            id: self.id(),
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

    #[test]
    fn a_stanza_in_memory_is_small() {
        // With the two counters of an `Arc` it fits the allocator's class of 192 bytes.
        assert!(size_of::<Parts>() <= 176, "{}", size_of::<Parts>());
    }
}

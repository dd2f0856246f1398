//! The pieces of markup: names, references, runs of characters, and the fast ways for those attributes and
//! end tags that look like most do. A fast way takes exactly what the state machine would take, or nothing.

use crate::chars::{self, Decoded, NAME, START, is};
use crate::error::XmlError;
use crate::head::{Attribute, Span};
use crate::limits::Bounds;
use crate::scanner::Scanner;

/// What was noted of a start tag's attributes as they came, so that most need no second look:
/// comparing the three of a chat message with each other costs 100 instructions more.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Marks {
    /// One declares a namespace or has a prefix.
    pub(crate) is_special: bool,
    /// Two may have the same name.
    pub(crate) may_repeat: bool,
    /// A bit for each name, the same for equal names.
    names: u64,
}

impl Marks {
    #[inline]
    fn add(&mut self, name: &[u8], is_special: bool) {
        self.is_special |= is_special;
        let first = name.first().copied().unwrap_or_default();
        let bit = 1 << ((usize::from(first) + 4 * name.len()) % 64);
        self.may_repeat |= self.names & bit != 0;
        self.names |= bit;
    }
}

impl Scanner {
    /// Goes on within a name that starts at `token`. True at its end, false where the data ends.
    pub(crate) fn scan_name(&mut self, data: &[u8], at: &mut usize) -> Result<bool, XmlError> {
        loop {
            let first = *at == self.token || *at == self.colon + 1;
            if !first {
                *at = chars::skip(data, *at, NAME);
            }
            let Some(&byte) = data.get(*at) else { return Ok(false) };
            match byte {
                0x80.. => match chars::decode(data, *at) {
                    Decoded::Partial => return Ok(false),
                    Decoded::Char(code, len)
                        if if first { chars::is_name_start(code) } else { chars::is_name_char(code) } =>
                    {
                        *at += len;
                    }
                    _ => return Err(XmlError::NotWellFormed),
                },
                _ if first && is(byte, START) => *at += 1,
                _ if first => return Err(XmlError::NotWellFormed),
                // A second colon makes it no qualified name (Namespaces in XML, section 4).
                b':' if self.colon == 0 => {
                    self.colon = *at;
                    *at += 1;
                }
                b':' => return Err(XmlError::NotWellFormed),
                _ => return Ok(true),
            }
        }
    }

    /// Takes the name of a start tag that has a letter of ASCII at `at`, if it is all ASCII, without a prefix,
    /// and all of it has arrived. Gives the offset after it.
    #[inline]
    pub(crate) fn plain_name(&mut self, data: &[u8], at: usize) -> Option<usize> {
        let end = chars::skip(data, at + 1, NAME);
        let plain = matches!(*data.get(end)?, b' ' | b'>' | b'/');
        self.name = Span::new(at, end);
        self.name_colon = 0;
        plain.then_some(end)
    }

    /// Takes an attribute as most are written, if that is what stands at `at` and all of it has arrived: a
    /// space, an ASCII name, `=`, and a value of plain ASCII. Gives the offset after it.
    #[inline]
    pub(crate) fn plain_attribute(&mut self, data: &[u8], at: usize, bounds: Bounds) -> Option<usize> {
        let start = at + 1;
        if *data.get(at)? != b' ' || !is(*data.get(start)?, START) {
            return None;
        }
        let mut end = chars::skip(data, start, NAME);
        let mut colon = 0;
        if *data.get(end)? == b':' && is(*data.get(end + 1)?, START) {
            colon = end;
            end = chars::skip(data, end + 1, NAME);
        }
        let quote = *data.get(end + 1)?;
        if data[end] != b'=' || (quote != b'\'' && quote != b'"') {
            return None;
        }
        let value = end + 2;
        let close = chars::skip_value(data, value, quote);
        let count = self.head.attributes.len() - self.head_attributes;
        if *data.get(close)? != quote || count >= usize::from(bounds.attributes) {
            return None;
        }
        self.push_attribute(data, Span::new(start, end), colon, Span::new(value, close));
        Some(close + 1)
    }

    /// The offset after the end tag of the innermost element, if it stands at `at`, without white space, and
    /// all of it has arrived.
    #[inline]
    pub(crate) fn plain_end_tag(&mut self, data: &[u8], at: usize) -> Option<usize> {
        let name = self.stack.last()?.name.slice(data);
        let rest = data[at..].strip_prefix(b"</")?.strip_prefix(name)?;
        if *rest.first()? != b'>' {
            return None;
        }
        if self.stack.len() == 1 {
            self.head.close_start = at;
        }
        Some(at + name.len() + 3)
    }

    /// Notes an attribute.
    #[inline(always)]
    pub(crate) fn push_attribute(&mut self, data: &[u8], name: Span, colon: usize, value: Span) {
        let (prefix, local) = split_name(name, colon);
        let declares = if prefix.is_empty() { local } else { prefix };
        let is_declaration = declares.slice(data) == b"xmlns";
        self.marks.add(name.slice(data), is_declaration || !prefix.is_empty());
        self.head.attributes.push(Attribute { prefix, local, value, has_entities: false, is_declaration });
    }
}

/// Splits a name at its colon into prefix and local name.
pub(crate) fn split_name(name: Span, colon: usize) -> (Span, Span) {
    if colon == 0 {
        return (Span { start: name.start, end: name.start }, name);
    }
    let colon = colon as u32;
    (Span { start: name.start, end: colon }, Span { start: colon + 1, end: name.end })
}

/// Skips characters beyond ASCII. False where the data ends within one.
pub(crate) fn skip_characters(data: &[u8], at: &mut usize) -> Result<bool, XmlError> {
    loop {
        match &data[*at..] {
            // Most characters need nothing more: no overlong form, surrogate or non-character among them.
            [0xC2..=0xDF, 0x80..=0xBF, ..] => *at += 2,
            [0xE1..=0xEC | 0xEE, 0x80..=0xBF, 0x80..=0xBF, ..] => *at += 3,
            [0x80..=0xFF, ..] => match chars::decode(data, *at) {
                Decoded::Char(_, len) => *at += len,
                Decoded::Partial => return Ok(false),
                Decoded::Invalid => return Err(XmlError::NotWellFormed),
            },
            _ => return Ok(true),
        }
    }
}

/// What stands after an `&`.
pub(crate) enum Reference {
    Partial,
    /// A predefined entity; its length with the semicolon.
    Named(usize),
    Decimal,
    Hexadecimal,
}

/// What follows an `&`. Looks at a handful of bytes at most.
pub(crate) fn reference(data: &[u8]) -> Result<Reference, XmlError> {
    match data {
        [] | [b'#'] => Ok(Reference::Partial),
        [b'#', b'x', ..] => Ok(Reference::Hexadecimal),
        [b'#', ..] => Ok(Reference::Decimal),
        [first, ..] => {
            for name in [&b"lt;"[..], b"gt;", b"amp;", b"apos;", b"quot;"] {
                if data.starts_with(name) {
                    return Ok(Reference::Named(name.len()));
                }
                if name.starts_with(data) {
                    return Ok(Reference::Partial);
                }
            }
            if is(*first, START) { Err(XmlError::Restricted) } else { Err(XmlError::NotWellFormed) }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Event, Framer, Limits, XmlError};

    /// Whether a start tag with these attributes is well-formed.
    fn is_read(names: &[&str]) -> bool {
        let attributes: String = names.iter().map(|name| format!(" {name}='{name}'")).collect();
        let plain = format!("<a{attributes}/>");
        // The same in a way that takes the state machine.
        let spaced = plain.replace(" ", "\n ").replace('=', " =");
        let [first, second] = [plain, spaced].map(|xml| {
            match Framer::new_frames(Limits::authenticated()).next(&mut xml.as_bytes()) {
                Ok(Event::Stanza(frame)) => frame.head.attributes.len() == names.len(),
                Err(XmlError::NotWellFormed) => false,
                other => panic!("{xml}: {other:?}"),
            }
        });
        assert_eq!(first, second, "{names:?}");
        first
    }

    #[test]
    fn names_repeat_exactly_where_two_are_equal() {
        // Some have the same length and begin alike; `e` and `ab` have the same mark, as have `to` and `x`.
        let names =
            ["to", "ab", "e", "type", "text", "id", "it", "from", "x", "xml:lang", "\u{e9}", "\u{e8}"];
        for (at, name) in names.iter().enumerate() {
            for other in &names[..at] {
                assert!(is_read(&[name, other]) && is_read(&[other, name]), "{name} {other}");
                assert!(!is_read(&[name, other, name]), "{name} {other}");
                assert!(!is_read(&[name, name, other]), "{name} {other}");
                assert!(!is_read(&[other, name, name]), "{name} {other}");
            }
            let mut all = names.to_vec();
            assert!(is_read(&all));
            all.push(name);
            assert!(!is_read(&all), "{name} twice");
        }
    }
}

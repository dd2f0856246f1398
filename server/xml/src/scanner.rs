//! The state machine that proves one unit of a stream well-formed: an XML declaration, a stream header, a
//! top-level element or the end tag of the stream.
//!
//! It is given all bytes of the unit that have arrived, and stops where they end; given more, it goes on
//! from there. So each byte is looked at a bounded number of times however the input is split, and what it
//! finds depends on the bytes alone, never on the split: every decision is made at the first byte that
//! allows it.

use smallvec::SmallVec;

use crate::chars::{self, SPACE, START, is};
use crate::declaration;
use crate::error::XmlError;
use crate::head::{Head, NsName, Span};
use crate::limits::Bounds;
use crate::scope::Scope;
use crate::tokens::{Marks, Reference, reference, skip_characters};

/// Where in a stream a unit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// At the very start, where an XML declaration may stand.
    Start,
    /// Before the stream header.
    Prolog,
    /// After the stream header.
    Stream,
    /// In a transport that sends complete elements without a stream header.
    Frames,
}

/// What a unit is read against.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) place: Place,
    pub(crate) bounds: Bounds,
    pub(crate) scope: &'a Scope,
}

/// What a unit turned out to be, and how many bytes it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Not complete yet.
    Partial,
    Declaration(usize),
    Header(usize),
    Stanza(usize),
    Close(usize),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// After `<`.
    #[default]
    Markup,
    /// Within the name of a start tag.
    Name,
    /// After the name of a start tag or an attribute value: white space or the end of the tag.
    AfterName,
    /// After white space in a start tag.
    BeforeAttribute,
    AttributeName,
    AfterAttributeName,
    BeforeValue,
    Value,
    /// After the `/` of an empty-element tag.
    EmptyEnd,
    EndName,
    AfterEndName,
    Content,
    /// After `&`.
    Reference,
    Decimal,
    Hexadecimal,
    /// After `<!`.
    Bang,
    CdataOpen,
    Cdata,
    /// After `<?`.
    Question,
    Declaration,
}

/// An open element.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Open {
    /// Name with prefix.
    pub(crate) name: Span,
    /// How many bindings were in force outside of it.
    pub(crate) outer_bindings: u16,
}

/// A namespace declaration in force. An empty prefix stands for the default namespace.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    pub(crate) prefix: Span,
    pub(crate) name: NsName,
}

/// The state of reading one unit. All offsets count from the `<` that starts the unit.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    /// Where to go on.
    at: usize,
    state: State,
    /// Start of the current name, value, or what follows `<`.
    pub(crate) token: usize,
    /// Start of what follows `&`.
    reference: usize,
    /// Offset of the colon in the current name; 0 if none was met.
    pub(crate) colon: usize,
    /// The number of the current character reference.
    code: u32,
    /// The quote around the current attribute value; 0 in content.
    quote: u8,
    /// Elements begun.
    elements: u32,
    /// Name of the current start tag, prefix included, and its colon.
    pub(crate) name: Span,
    pub(crate) name_colon: usize,
    /// What is known of its attributes.
    pub(crate) marks: Marks,
    pub(crate) stack: SmallVec<[Open; 8]>,
    pub(crate) bindings: SmallVec<[Binding; 4]>,
    /// Its `attributes` end with those of the tag being read; `head_attributes` are the head's own.
    pub(crate) head: Head,
    pub(crate) head_attributes: usize,
}

impl Scanner {
    /// Makes ready for another unit, keeping memory. What is not set here is set before it is used.
    pub(crate) fn reset(&mut self) {
        self.at = 0;
        self.state = State::Markup;
        self.quote = 0;
        self.elements = 0;
        self.stack.clear();
        self.bindings.clear();
        self.head.attributes.clear();
        self.head.child = None;
        self.head.children = 0;
        self.head.reserialise = false;
        self.head_attributes = 0;
    }

    /// Goes on reading. `data` is the unit from its first byte, `<`; it has at least the bytes of the call
    /// before.
    pub(crate) fn run(&mut self, data: &[u8], context: Context<'_>) -> Result<Unit, XmlError> {
        let mut at = self.at.max(1);
        let mut state = self.state;
        macro_rules! partial {
            () => {{
                self.at = at;
                self.state = state;
                return Ok(Unit::Partial);
            }};
        }
        macro_rules! byte {
            () => {
                match data.get(at) {
                    Some(&byte) => byte,
                    None => partial!(),
                }
            };
        }
        loop {
            match state {
                State::Content => {
                    if data.get(at) != Some(&b'<') {
                        at = chars::skip_text(data, at);
                    }
                    match byte!() {
                        b'<' => {
                            if let Some(end) = self.plain_end_tag(data, at) {
                                at = end;
                                if self.end_element() {
                                    return Ok(Unit::Stanza(at));
                                }
                            } else {
                                at += 1;
                                state = State::Markup;
                            }
                        }
                        b'&' => {
                            at += 1;
                            self.reference = at;
                            state = State::Reference;
                        }
                        // Brackets just before are literal text: all markup ends in `>` or `;`.
                        b'>' if !data[..at].ends_with(b"]]") => at += 1,
                        0x80.. => match skip_characters(data, &mut at)? {
                            true => {}
                            false => partial!(),
                        },
                        _ => return Err(XmlError::NotWellFormed),
                    }
                }
                State::Markup => match byte!() {
                    b if b >= 0x80 || is(b, START) => {
                        self.begin_element(context.bounds)?;
                        if b < 0x80
                            && let Some(end) = self.plain_name(data, at)
                        {
                            at = end;
                            state = State::AfterName;
                        } else {
                            self.token = at;
                            self.colon = 0;
                            state = State::Name;
                        }
                    }
                    b'/' => {
                        if self.stack.is_empty() && context.place != Place::Stream {
                            return Err(XmlError::NotWellFormed);
                        }
                        if self.stack.len() == 1 {
                            self.head.close_start = at - 1;
                        }
                        at += 1;
                        self.token = at;
                        state = State::EndName;
                    }
                    b'!' => {
                        self.token = at - 1;
                        at += 1;
                        state = State::Bang;
                    }
                    b'?' => {
                        at += 1;
                        self.token = at;
                        state = State::Question;
                    }
                    0 if context.place == Place::Start => return Err(XmlError::UnsupportedEncoding),
                    _ => return Err(XmlError::NotWellFormed),
                },
                State::Name => {
                    if !self.scan_name(data, &mut at)? {
                        partial!();
                    }
                    self.name = Span::new(self.token, at);
                    self.name_colon = self.colon;
                    state = State::AfterName;
                }
                State::AfterName | State::BeforeAttribute => {
                    if state == State::AfterName {
                        while let Some(end) = self.plain_attribute(data, at, context.bounds) {
                            at = end;
                        }
                    }
                    let start = at;
                    at = chars::skip(data, at, SPACE);
                    if at > start {
                        state = State::BeforeAttribute;
                    }
                    match byte!() {
                        b'>' => {
                            at += 1;
                            if let Some(unit) = self.end_start_tag(data, at, false, context)? {
                                return Ok(unit);
                            }
                            state = State::Content;
                        }
                        b'/' => {
                            at += 1;
                            state = State::EmptyEnd;
                        }
                        b if (b >= 0x80 || is(b, START)) && state == State::BeforeAttribute => {
                            let count = self.head.attributes.len() - self.head_attributes;
                            if count >= usize::from(context.bounds.attributes) {
                                return Err(XmlError::TooManyAttributes);
                            }
                            self.token = at;
                            self.colon = 0;
                            state = State::AttributeName;
                        }
                        _ => return Err(XmlError::NotWellFormed),
                    }
                }
                State::AttributeName => {
                    if !self.scan_name(data, &mut at)? {
                        partial!();
                    }
                    self.push_attribute(data, Span::new(self.token, at), self.colon, Span::default());
                    state = State::AfterAttributeName;
                }
                State::AfterAttributeName => {
                    at = chars::skip(data, at, SPACE);
                    if byte!() != b'=' {
                        return Err(XmlError::NotWellFormed);
                    }
                    at += 1;
                    state = State::BeforeValue;
                }
                State::BeforeValue => {
                    at = chars::skip(data, at, SPACE);
                    self.quote = byte!();
                    if self.quote != b'"' && self.quote != b'\'' {
                        return Err(XmlError::NotWellFormed);
                    }
                    at += 1;
                    self.token = at;
                    state = State::Value;
                }
                State::Value => {
                    at = chars::skip_value(data, at, self.quote);
                    match byte!() {
                        b if b == self.quote => {
                            if let Some(attribute) = self.head.attributes.last_mut() {
                                attribute.value = Span::new(self.token, at);
                            }
                            self.quote = 0;
                            at += 1;
                            state = State::AfterName;
                        }
                        b'&' => {
                            self.mark_entities();
                            at += 1;
                            self.reference = at;
                            state = State::Reference;
                        }
                        b'\t' | b'\n' | b'\r' => {
                            self.mark_entities();
                            at += 1;
                        }
                        0x80.. => match skip_characters(data, &mut at)? {
                            true => {}
                            false => partial!(),
                        },
                        _ => return Err(XmlError::NotWellFormed),
                    }
                }
                State::EmptyEnd => {
                    if byte!() != b'>' {
                        return Err(XmlError::NotWellFormed);
                    }
                    at += 1;
                    if let Some(unit) = self.end_start_tag(data, at, true, context)? {
                        return Ok(unit);
                    }
                    state = State::Content;
                }
                State::EndName => {
                    let expected = match self.stack.last() {
                        Some(open) => open.name.slice(data),
                        None => context.scope.root(),
                    };
                    let remaining = &expected[at - self.token..];
                    let arrived = &data[at..data.len().min(at + remaining.len())];
                    if !remaining.starts_with(arrived) {
                        return Err(XmlError::NotWellFormed);
                    }
                    at += arrived.len();
                    if arrived.len() < remaining.len() {
                        partial!();
                    }
                    state = State::AfterEndName;
                }
                State::AfterEndName => {
                    at = chars::skip(data, at, SPACE);
                    if byte!() != b'>' {
                        return Err(XmlError::NotWellFormed);
                    }
                    at += 1;
                    if self.stack.is_empty() {
                        return Ok(Unit::Close(at));
                    }
                    if self.end_element() {
                        return Ok(Unit::Stanza(at));
                    }
                    state = State::Content;
                }
                State::Reference => match reference(&data[self.reference..])? {
                    Reference::Partial => partial!(),
                    Reference::Named(len) => {
                        at = self.reference + len;
                        state = self.after_reference();
                    }
                    Reference::Decimal => {
                        at = self.reference + 1;
                        self.code = 0;
                        state = State::Decimal;
                    }
                    Reference::Hexadecimal => {
                        at = self.reference + 2;
                        self.code = 0;
                        state = State::Hexadecimal;
                    }
                },
                State::Decimal | State::Hexadecimal => {
                    let radix = if state == State::Decimal { 10 } else { 16 };
                    match byte!() {
                        // No digit at all makes zero, which is no character.
                        b';' if chars::is_xml_char(self.code) => {
                            at += 1;
                            state = self.after_reference();
                        }
                        b => {
                            let digit = (b as char).to_digit(radix).ok_or(XmlError::NotWellFormed)?;
                            self.code = self.code * radix + digit;
                            // Checked at each digit, so the number cannot overflow.
                            if self.code > 0x10FFFF {
                                return Err(XmlError::NotWellFormed);
                            }
                            at += 1;
                        }
                    }
                }
                State::Bang => match byte!() {
                    b'-' | b'A'..=b'Z' => return Err(XmlError::Restricted),
                    b'[' if !self.stack.is_empty() => state = State::CdataOpen,
                    b'[' if context.place == Place::Stream => return Err(XmlError::BadFormat),
                    _ => return Err(XmlError::NotWellFormed),
                },
                State::CdataOpen => {
                    let remaining = &b"<![CDATA["[at - self.token..];
                    let Some(expected) = remaining.first() else {
                        self.head.reserialise = true;
                        state = State::Cdata;
                        continue;
                    };
                    if byte!() != *expected {
                        return Err(XmlError::NotWellFormed);
                    }
                    at += 1;
                }
                State::Cdata => {
                    at = chars::skip_text(data, at);
                    match byte!() {
                        b'>' => {
                            if data[..at].ends_with(b"]]") {
                                state = State::Content;
                            }
                            at += 1;
                        }
                        b'<' | b'&' => at += 1,
                        0x80.. => match skip_characters(data, &mut at)? {
                            true => {}
                            false => partial!(),
                        },
                        _ => return Err(XmlError::NotWellFormed),
                    }
                }
                State::Question => {
                    let target = &data[self.token..];
                    let known = target.len().min(3);
                    if target[..known] != b"xml"[..known] {
                        return Err(XmlError::Restricted);
                    }
                    match target.get(3) {
                        None => partial!(),
                        Some(&b) if is(b, SPACE) || b == b'?' => {}
                        Some(_) => return Err(XmlError::Restricted),
                    }
                    if context.place != Place::Start {
                        return Err(XmlError::NotWellFormed);
                    }
                    at = self.token + 3;
                    state = State::Declaration;
                }
                State::Declaration => {
                    let Some(length) = memchr::memchr(b'>', &data[at..]) else {
                        at = data.len();
                        partial!();
                    };
                    at += length + 1;
                    declaration::check(&data[..at])?;
                    return Ok(Unit::Declaration(at));
                }
            }
        }
    }

    /// Ends the innermost element. True if it is the top-level one.
    #[inline]
    fn end_element(&mut self) -> bool {
        if let Some(open) = self.stack.pop() {
            self.bindings.truncate(usize::from(open.outer_bindings));
        }
        self.stack.is_empty()
    }

    fn begin_element(&mut self, bounds: Bounds) -> Result<(), XmlError> {
        self.elements += 1;
        if self.elements > bounds.elements {
            return Err(XmlError::TooManyElements);
        }
        if self.stack.len() >= usize::from(bounds.depth) {
            return Err(XmlError::TooDeep);
        }
        self.marks = Marks::default();
        Ok(())
    }

    fn mark_entities(&mut self) {
        if let Some(attribute) = self.head.attributes.last_mut() {
            attribute.has_entities = true;
        }
    }

    fn after_reference(&self) -> State {
        if self.quote == 0 { State::Content } else { State::Value }
    }
}

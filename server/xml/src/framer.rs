//! Cuts a byte stream into the stream header, top-level elements and the end of the stream, proving each
//! of them well-formed on the way. Does no I/O.
//!
//! An element that arrives whole is handed out as a slice of the input, and costs no heap. One that
//! arrives in parts is gathered in a buffer of at most the stanza limit. Between elements a framer holds
//! no heap, save what an unusual stream header declares: the working state comes from, and goes back to, a
//! spare per thread.

use std::cell::Cell;

use crate::chars::{SPACE, skip};
use crate::element::Element;
use crate::error::XmlError;
use crate::head::Head;
use crate::limits::{Bounds, Limits, MAX_HEADER_BYTES};
use crate::scanner::{Context, Place, Scanner, Unit};
use crate::scope::{Scope, StreamOpen};

/// How much input is added to the buffer at a time, which bounds what is copied beyond an element's end.
const STEP: usize = 4096;
/// The largest buffer that is kept as a thread's spare.
const SPARE_BUFFER: usize = 8192;
const BOM: &[u8] = b"\xEF\xBB\xBF";

/// What [`Framer::next`] came upon.
#[derive(Debug)]
pub enum Event<'a> {
    /// All input is used up; call again with more.
    NeedMore,
    /// So many bytes of white space outside of any element.
    Whitespace(usize),
    /// The stream header.
    Open(StreamOpen),
    /// A complete top-level element.
    Stanza(Frame<'a>),
    /// The end tag of the stream.
    Close,
}

/// A complete top-level element.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The element exactly as on the wire. It is UTF-8 and well-formed; it is namespace-well-formed given
    /// the declarations of the stream header.
    pub bytes: &'a [u8],
    /// The index of it.
    pub head: &'a Head,
    scope: &'a Scope,
}

impl Frame<'_> {
    /// Local name.
    pub fn name(&self) -> &str {
        self.head.name(self.bytes)
    }

    /// Namespace name.
    pub fn namespace(&self) -> &str {
        self.head.namespace(self.bytes)
    }

    /// The element as a tree, with the declarations of the stream header applied.
    pub fn element(&self) -> Result<Element, XmlError> {
        Element::parse_in(self.bytes, self.scope)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// So many bytes of a byte order mark were read.
    Bom(u8),
    /// Within a stream or before it.
    Reading(Place),
    /// The stream header was an empty-element tag: the stream ends where it starts.
    EmptyStream,
    /// After the end tag of the stream.
    Closed,
    Failed(XmlError),
}

/// Working state between the first and the last byte of a unit.
#[derive(Debug, Default)]
struct Work {
    scanner: Scanner,
    buffer: Vec<u8>,
}

thread_local! {
    static SPARE: Cell<Option<Box<Work>>> = const { Cell::new(None) };
}

impl Work {
    fn take() -> Box<Self> {
        SPARE.try_with(Cell::take).ok().flatten().unwrap_or_default()
    }

    fn give_back(mut self: Box<Self>) {
        self.clear();
        if self.buffer.capacity() <= SPARE_BUFFER {
            // Fails only while the thread ends.
            let _ = SPARE.try_with(|spare| spare.set(Some(self)));
        }
    }

    fn clear(&mut self) {
        self.scanner.reset();
        self.buffer.clear();
    }
}

/// An incremental reader of one XML stream.
#[derive(Debug)]
pub struct Framer {
    bounds: Bounds,
    phase: Phase,
    frames: bool,
    /// A unit has begun and not ended.
    in_unit: bool,
    scope: Scope,
    work: Option<Box<Work>>,
}

enum Step {
    NeedMore,
    Whitespace(usize),
    Open(Box<StreamOpen>),
    /// A stanza of so many bytes at the start of the input.
    InInput(usize),
    /// A stanza that fills the buffer.
    InBuffer,
    Close,
}

impl Framer {
    /// Reads a stream: an XML declaration perhaps, a stream header, top-level elements, an end tag.
    pub fn new(limits: Limits) -> Self {
        Self::start(limits.into(), false)
    }

    /// Reads complete elements without a stream header around them, as WebSocket (RFC 7395) and BOSH
    /// (XEP-0124) carry them.
    pub fn new_frames(limits: Limits) -> Self {
        Self::start(limits.into(), true)
    }

    fn start(bounds: Bounds, frames: bool) -> Self {
        let phase = if frames { Phase::Reading(Place::Frames) } else { Phase::Bom(0) };
        Self { bounds, phase, frames, in_unit: false, scope: Scope::Empty, work: None }
    }

    /// Changes the limits, for an element that has begun as well.
    pub fn set_limits(&mut self, limits: Limits) {
        self.bounds = limits.into();
    }

    /// Forgets all that was read: what follows is a new stream (or new frames). Only the limits stay.
    pub fn restart(&mut self) {
        *self = Self::start(self.bounds, self.frames);
    }

    /// Whether an element, or the stream header or end tag, has begun and not ended.
    pub fn is_mid_stanza(&self) -> bool {
        self.in_unit
    }

    /// Goes on reading at the start of `input`, and takes from it what it used. An error is final: it is
    /// given again on each call until [`restart`](Self::restart).
    pub fn next<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Event<'a>, XmlError> {
        let step = match self.step(input) {
            Ok(step) => step,
            Err(error) => {
                self.phase = Phase::Failed(error);
                self.in_unit = false;
                self.work = None;
                return Err(error);
            }
        };
        let bytes = match step {
            Step::NeedMore => return Ok(Event::NeedMore),
            Step::Whitespace(count) => return Ok(Event::Whitespace(count)),
            Step::Open(open) => return Ok(Event::Open(*open)),
            Step::Close => return Ok(Event::Close),
            Step::InInput(len) => {
                let (bytes, rest) = input.split_at(len);
                *input = rest;
                Some(bytes)
            }
            Step::InBuffer => None,
        };
        // A step that ends a stanza leaves its working state in place.
        let Some(work) = self.work.as_deref() else { return Ok(Event::NeedMore) };
        let bytes = bytes.unwrap_or(&work.buffer);
        Ok(Event::Stanza(Frame { bytes, head: &work.scanner.head, scope: &self.scope }))
    }

    fn step(&mut self, input: &mut &[u8]) -> Result<Step, XmlError> {
        if !self.in_unit
            && let Some(work) = &mut self.work
        {
            work.clear();
            if work.buffer.capacity() > SPARE_BUFFER {
                work.buffer = Vec::new();
            }
        }
        loop {
            if self.in_unit {
                match self.scan(input)? {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            match self.phase {
                Phase::Failed(error) => return Err(error),
                Phase::EmptyStream => {
                    self.phase = Phase::Closed;
                    return Ok(Step::Close);
                }
                _ => {}
            }
            let Some(&byte) = input.first() else {
                if let Some(work) = self.work.take() {
                    work.give_back();
                }
                return Ok(Step::NeedMore);
            };
            let place = match self.phase {
                Phase::Bom(read) if BOM.get(usize::from(read)) == Some(&byte) => {
                    *input = &input[1..];
                    let complete = usize::from(read) + 1 == BOM.len();
                    self.phase = if complete { Phase::Reading(Place::Start) } else { Phase::Bom(read + 1) };
                    continue;
                }
                Phase::Bom(0) => {
                    // Byte order marks of UTF-16, or its first ASCII character.
                    if matches!(byte, 0x00 | 0xFE | 0xFF) {
                        return Err(XmlError::UnsupportedEncoding);
                    }
                    self.phase = Phase::Reading(Place::Start);
                    Some(Place::Start)
                }
                Phase::Bom(_) => return Err(XmlError::NotWellFormed),
                Phase::Closed | Phase::EmptyStream | Phase::Failed(_) => None,
                Phase::Reading(place) => Some(place),
            };
            let spaces = skip(input, 0, SPACE);
            if spaces > 0 {
                *input = &input[spaces..];
                if place == Some(Place::Start) {
                    self.phase = Phase::Reading(Place::Prolog);
                }
                return Ok(Step::Whitespace(spaces));
            }
            match (byte, place) {
                (b'<', Some(_)) => self.in_unit = true,
                // Text between stanzas is well-formed but has no meaning; see `bad-format` in RFC 6120.
                (0x20.., Some(Place::Stream)) => return Err(XmlError::BadFormat),
                _ => return Err(XmlError::NotWellFormed),
            }
        }
    }

    /// Goes on with the unit at the start of `input`, or whose start is in the buffer. `None` after a unit
    /// that is no event.
    #[inline(always)]
    fn scan(&mut self, input: &mut &[u8]) -> Result<Option<Step>, XmlError> {
        let Phase::Reading(place) = self.phase else { return Err(XmlError::NotWellFormed) };
        let context = Context { place, bounds: self.bounds, scope: &self.scope };
        let limit = match place {
            Place::Start | Place::Prolog => (self.bounds.bytes as usize).min(MAX_HEADER_BYTES),
            Place::Stream | Place::Frames => self.bounds.bytes as usize,
        };
        let work = self.work.get_or_insert_with(Work::take);
        let Work { scanner, buffer } = &mut **work;
        if buffer.is_empty() {
            // What lies beyond the limit must not be looked at, so that the outcome does not depend on how
            // the input is split.
            let data = &input[..input.len().min(limit)];
            let unit = scanner.run(data, context)?;
            if unit == Unit::Partial {
                if data.len() == limit {
                    return Err(XmlError::StanzaTooBig);
                }
                gather(buffer, data, limit);
                *input = &[];
                return Ok(Some(Step::NeedMore));
            }
            return self.end_unit(unit, input, 0);
        }
        loop {
            let before = buffer.len();
            if before >= limit {
                return Err(XmlError::StanzaTooBig);
            }
            let data = &input[..input.len().min(limit - before).min(STEP)];
            if data.is_empty() {
                return Ok(Some(Step::NeedMore));
            }
            gather(buffer, data, limit);
            let unit = scanner.run(buffer, context)?;
            if unit != Unit::Partial {
                return self.end_unit(unit, input, before);
            }
            *input = &input[data.len()..];
        }
    }

    /// Ends a unit, `before` bytes of which came before `input`.
    #[inline(always)]
    fn end_unit(&mut self, unit: Unit, input: &mut &[u8], before: usize) -> Result<Option<Step>, XmlError> {
        self.in_unit = false;
        let Some(work) = self.work.as_deref_mut() else { return Err(XmlError::NotWellFormed) };
        let (len, is_stanza) = match unit {
            Unit::Partial => return Ok(None),
            Unit::Stanza(len) => (len, true),
            Unit::Declaration(len) | Unit::Header(len) | Unit::Close(len) => (len, false),
        };
        if is_stanza && before == 0 {
            return Ok(Some(Step::InInput(len)));
        }
        let used = &input[..len - before];
        *input = &input[len - before..];
        if is_stanza {
            work.buffer.truncate(len);
            return Ok(Some(Step::InBuffer));
        }
        let step = match unit {
            Unit::Header(_) => {
                let bytes = if before == 0 { used } else { &work.buffer[..len] };
                let (scope, open) = Scope::open(bytes, &work.scanner.head)?;
                self.scope = scope;
                let empty = work.scanner.head.self_closing;
                self.phase = if empty { Phase::EmptyStream } else { Phase::Reading(Place::Stream) };
                Some(Step::Open(Box::new(open)))
            }
            Unit::Close(_) => {
                self.phase = Phase::Closed;
                Some(Step::Close)
            }
            _ => {
                self.phase = Phase::Reading(Place::Prolog);
                None
            }
        };
        work.clear();
        Ok(step)
    }
}

/// Adds to a buffer that never needs more than `limit` bytes.
fn gather(buffer: &mut Vec<u8>, data: &[u8], limit: usize) {
    let needed = buffer.len() + data.len();
    if needed > buffer.capacity() {
        let capacity = needed.max(buffer.capacity().saturating_mul(2).min(limit));
        buffer.reserve_exact(capacity - buffer.len());
    }
    buffer.extend_from_slice(data);
}

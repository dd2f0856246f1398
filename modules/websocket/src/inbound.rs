//! From a client's frames to the bytes of its stream (RFC 7395 3.3).
//!
//! What must hold: an element goes on when its message has ended and held nothing else; `<open/>`
//! and `<close/>` become the tags of a stream, which cannot come from elsewhere, for an element that
//! is a stream header is refused. What is no such element goes on as a fault of the same kind, which
//! the server answers as it would over TCP: with a header if none was sent, an error and the end.

use waystation_core::xml::{Event, Frame, Framer, MAX_DEPTH, Ns, XmlError, escape_attr};

use crate::NS_FRAMING;
use crate::frame::{CloseCode, PIECE, Part, Reader};
use crate::utf8::Utf8;

/// What the client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Input<'a> {
    /// All input is used up.
    NeedMore,
    /// Bytes for the stream were added.
    Element,
    /// Such bytes were added, and nothing that follows counts.
    Fault,
    /// A frame that says nothing.
    Nothing,
    Ping(&'a [u8]),
    Close(Option<u16>),
}

/// What a client's messages are to the server.
pub(crate) struct Inbound {
    reader: Reader,
    framer: Framer,
    utf8: Utf8,
    /// The element of the present message, once complete.
    element: Vec<u8>,
    /// The present message has begun.
    begun: bool,
    /// What is wrong with it. Said at its end, so that the outcome does not depend on how it is cut.
    fault: Option<XmlError>,
    /// The server waits for the header of a stream: at first, and once more after authentication. At
    /// any other time it would take one for an element that does not end.
    restarts: bool,
}

impl Inbound {
    /// `limit` is the most bytes of a message.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            reader: Reader::new(limit),
            framer: Framer::new_frames(limits(limit)),
            utf8: Utf8::default(),
            element: Vec::new(),
            begun: false,
            fault: None,
            restarts: true,
        }
    }

    /// The client has been told that it is authenticated: a new stream begins, and from the next frame
    /// on a message may have `limit` bytes.
    pub(crate) fn authenticated(&mut self, limit: usize) {
        self.restarts = true;
        self.reader.set_limit(limit);
        self.framer.set_limits(limits(limit));
    }

    /// Goes on at the start of `input`, and takes from it what it used. Bytes for the stream are added
    /// to `stream`. An error is how the connection has to end.
    pub(crate) fn next<'a>(
        &'a mut self,
        input: &mut &[u8],
        scratch: &'a mut [u8; PIECE],
        stream: &mut Vec<u8>,
    ) -> Result<Input<'a>, CloseCode> {
        let Self { reader, framer, utf8, element, begun, fault, restarts } = self;
        let (bytes, empty, last) = match reader.next(input, scratch)? {
            Part::NeedMore => return Ok(Input::NeedMore),
            Part::Ping(payload) => return Ok(Input::Ping(payload)),
            Part::Pong => return Ok(Input::Nothing),
            Part::Close(code) => return Ok(Input::Close(code)),
            Part::Text { bytes, empty, last } => (bytes, empty, last),
        };
        if !utf8.add(bytes) || (last && !utf8.end()) {
            return Err(CloseCode::NoUtf8);
        }
        if fault.is_none() {
            *fault = add(framer, bytes, begun, restarts, element).err();
        }
        if !last {
            return Ok(if empty { Input::Nothing } else { Input::NeedMore });
        }
        if fault.is_none() && (element.is_empty() || framer.is_mid_stanza()) {
            *fault = Some(XmlError::NotWellFormed);
        }
        if let Some(error) = *fault {
            stream.extend_from_slice(fault_of(error).as_bytes());
            return Ok(Input::Fault);
        }
        *begun = false;
        if stream.is_empty() {
            *stream = std::mem::take(element);
        } else {
            stream.append(element);
            *element = Vec::new();
        }
        Ok(Input::Element)
    }

    /// Looks for nothing but a close frame; true as well for what are no frames.
    pub(crate) fn finds_close(&mut self, mut input: &[u8]) -> bool {
        let mut scratch = [0; PIECE];
        while !input.is_empty() {
            if matches!(self.reader.next(&mut input, &mut scratch), Ok(Part::Close(_)) | Err(_)) {
                return true;
            }
        }
        false
    }
}

/// Adds a piece of a message.
fn add(
    framer: &mut Framer,
    mut bytes: &[u8],
    begun: &mut bool,
    restarts: &mut bool,
    element: &mut Vec<u8>,
) -> Result<(), XmlError> {
    // RFC 7395 3.3.3: the first character is '<'.
    if !*begun && bytes.first().is_some_and(|byte| *byte != b'<') {
        return Err(XmlError::NotWellFormed);
    }
    *begun |= !bytes.is_empty();
    loop {
        match framer.next(&mut bytes)? {
            Event::NeedMore => return Ok(()),
            Event::Whitespace(_) => {}
            Event::Stanza(frame) if element.is_empty() => translate(&frame, restarts, element)?,
            // Frames have no stream header; and a message holds one element.
            Event::Stanza(_) | Event::Open(_) | Event::Close => return Err(XmlError::NotWellFormed),
        }
    }
}

/// The element as it stands in a stream.
fn translate(frame: &Frame<'_>, restarts: &mut bool, out: &mut Vec<u8>) -> Result<(), XmlError> {
    match (frame.name(), frame.namespace()) {
        ("open", NS_FRAMING) if !std::mem::take(restarts) => return Err(XmlError::NotWellFormed),
        ("open", NS_FRAMING) => header(frame, out),
        ("close", NS_FRAMING) => out.extend_from_slice(b"</stream:stream>"),
        // Section 3.3.2.
        ("stream", _) if frame.head.namespace == Ns::Streams => return Err(XmlError::InvalidNamespace),
        _ => out.extend_from_slice(frame.bytes),
    }
    Ok(())
}

/// The stream header that an `<open/>` stands for (section 3.3.1).
fn header(frame: &Frame<'_>, out: &mut Vec<u8>) {
    let (head, bytes) = (frame.head, frame.bytes);
    out.extend_from_slice(
        b"<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'",
    );
    let attributes = [
        ("to", head.attr(bytes, "to")),
        ("from", head.attr(bytes, "from")),
        ("version", head.attr(bytes, "version")),
        ("xml:lang", head.lang(bytes)),
    ];
    for (name, value) in attributes {
        let Some(value) = value else { continue };
        out.push(b' ');
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"='");
        escape_attr(&value, out);
        out.push(b'\'');
    }
    out.push(b'>');
}

/// What the server answers with the condition of `error`, wherever a stream stands.
fn fault_of(error: XmlError) -> String {
    match error {
        XmlError::Restricted => "<!-- -->".to_owned(),
        XmlError::InvalidNamespace => {
            format!("<stream:stream xmlns='jabber:client' xmlns:stream='{NS_FRAMING}'/>")
        }
        XmlError::StanzaTooBig
        | XmlError::TooDeep
        | XmlError::TooManyElements
        | XmlError::TooManyAttributes
        | XmlError::TooManyNamespaces => "<a>".repeat(MAX_DEPTH + 1),
        XmlError::NotWellFormed
        | XmlError::UnsupportedEncoding
        | XmlError::BadNamespacePrefix
        | XmlError::BadFormat
        | XmlError::InvalidXml => "<>".to_owned(),
    }
}

/// The stream's own limits judge all but the length, which is known only here before it is too late.
fn limits(bytes: usize) -> waystation_core::xml::Limits {
    waystation_core::xml::Limits {
        max_stanza_bytes: bytes,
        max_depth: MAX_DEPTH,
        max_elements: usize::MAX,
        max_attributes: usize::MAX,
    }
}

#[cfg(test)]
#[path = "inbound_tests.rs"]
mod tests;

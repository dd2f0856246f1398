//! WebSocket frames (RFC 6455 5): those of clients taken apart as they come in, our own written.
//!
//! What must hold: a header is judged with its last byte, before anything of its payload is kept
//! (the codec of actix-http judges a frame when it is complete, and keeps as much as the header
//! asks for until then); payload is handed on in pieces, so nothing but a control frame's is kept.

use bytes::{BufMut, BytesMut};

/// How a connection ends (RFC 6455 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CloseCode {
    Normal = 1000,
    Away = 1001,
    Protocol = 1002,
    Unsupported = 1003,
    NoUtf8 = 1007,
    Policy = 1008,
    TooBig = 1009,
    Internal = 1011,
}

/// Most bytes of payload handed on at once.
pub(crate) const PIECE: usize = 4096;
/// Most payload of a control frame (RFC 6455 5.5).
const MAX_CONTROL: usize = 125;

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// What [`Reader::next`] came upon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part<'a> {
    /// All input is used up.
    NeedMore,
    /// A piece of a text message.
    Text {
        bytes: &'a [u8],
        /// Nothing was in the frame that it is.
        empty: bool,
        /// The message is complete with it.
        last: bool,
    },
    Ping(&'a [u8]),
    Pong,
    /// With its status code, if it has one.
    Close(Option<u16>),
}

/// A frame's payload that has not been read yet.
#[derive(Clone, Copy)]
struct Payload {
    opcode: u8,
    last: bool,
    left: usize,
    /// Turned so that it begins with the byte for what is read next.
    mask: [u8; 4],
}

/// Takes a client's bytes apart.
pub(crate) struct Reader {
    /// Most bytes of a message.
    limit: usize,
    /// Bytes of the present message so far, its frame's under way included.
    message: usize,
    /// A message has begun and not ended.
    fragmented: bool,
    header: [u8; 14],
    header_len: usize,
    payload: Option<Payload>,
    control: [u8; MAX_CONTROL],
    control_len: usize,
}

impl Reader {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            message: 0,
            fragmented: false,
            header: [0; 14],
            header_len: 0,
            payload: None,
            control: [0; MAX_CONTROL],
            control_len: 0,
        }
    }

    /// Changes the limit, from the next frame on.
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// Goes on at the start of `input`, and takes from it what it used. After an error the rest makes
    /// no sense.
    pub(crate) fn next<'a>(
        &'a mut self,
        input: &mut &[u8],
        scratch: &'a mut [u8; PIECE],
    ) -> Result<Part<'a>, CloseCode> {
        loop {
            let Some(payload) = &mut self.payload else {
                let Some((&byte, rest)) = input.split_first() else { return Ok(Part::NeedMore) };
                *input = rest;
                self.header[self.header_len] = byte;
                self.header_len += 1;
                self.payload = self.judge()?;
                if let Some(payload) = self.payload {
                    self.header_len = 0;
                    if payload.left == 0 && payload.opcode < CLOSE {
                        self.payload = None;
                        return Ok(self.text(&[], true, payload.last));
                    }
                }
                continue;
            };
            let is_control = payload.opcode >= CLOSE;
            if payload.left > 0 {
                let count = payload.left.min(input.len()).min(PIECE);
                if count == 0 {
                    return Ok(Part::NeedMore);
                }
                let (masked, rest) = input.split_at(count);
                *input = rest;
                let target =
                    if is_control { &mut self.control[self.control_len..] } else { &mut scratch[..] };
                for (n, (target, masked)) in target.iter_mut().zip(masked).enumerate() {
                    *target = masked ^ payload.mask[n % 4];
                }
                payload.mask.rotate_left(count % 4);
                payload.left -= count;
                if is_control {
                    self.control_len += count;
                } else {
                    let last = payload.left == 0 && payload.last;
                    if payload.left == 0 {
                        self.payload = None;
                    }
                    return Ok(self.text(&scratch[..count], false, last));
                }
                continue;
            }
            let opcode = payload.opcode;
            self.payload = None;
            let control = &self.control[..std::mem::take(&mut self.control_len)];
            return match opcode {
                PING => Ok(Part::Ping(control)),
                PONG => Ok(Part::Pong),
                _ => close_code(control).map(Part::Close),
            };
        }
    }

    fn text<'a>(&mut self, bytes: &'a [u8], empty: bool, last: bool) -> Part<'a> {
        if last {
            self.message = 0;
        }
        Part::Text { bytes, empty, last }
    }

    /// Judges a header after each of its bytes, so that nothing is waited for in vain. What is said
    /// once complete is its payload.
    fn judge(&mut self) -> Result<Option<Payload>, CloseCode> {
        let (first, len) = (self.header[0], self.header_len);
        let (last, opcode) = (first & 0x80 != 0, first & 0x0F);
        let is_control = opcode >= CLOSE;
        if len == 1 {
            // No extension is agreed to that could give the reserved bits a meaning.
            let known = matches!(opcode, 0 | TEXT | BINARY | CLOSE | PING | PONG);
            if first & 0x70 != 0 || !known || (is_control && !last) {
                return Err(CloseCode::Protocol);
            }
            if !is_control && (opcode == 0) != self.fragmented {
                return Err(CloseCode::Protocol);
            }
            // RFC 7395 3.2: only text.
            return if opcode == BINARY { Err(CloseCode::Unsupported) } else { Ok(None) };
        }
        let short = usize::from(self.header[1] & 0x7F);
        if len == 2 && (self.header[1] & 0x80 == 0 || (is_control && short > MAX_CONTROL)) {
            return Err(CloseCode::Protocol);
        }
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if len < 2 + extended {
            return Ok(None);
        }
        let length = self.header[2..2 + extended].iter().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
        let length = if extended == 0 { short as u64 } else { length };
        if len == 2 + extended {
            let least = match extended {
                0 => 0,
                2 => 126,
                _ => 1 << 16,
            };
            // RFC 6455 5.2: the shortest form, and the first bit is 0.
            if length < least || length >> 63 != 0 {
                return Err(CloseCode::Protocol);
            }
            if !is_control && length > (self.limit.saturating_sub(self.message)) as u64 {
                return Err(CloseCode::TooBig);
            }
            return Ok(None);
        }
        if len < 2 + extended + 4 {
            return Ok(None);
        }
        // It is within the limit, which is a usize.
        let left = length as usize;
        if !is_control {
            self.message += left;
            self.fragmented = !last;
        }
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.header[2 + extended..len]);
        Ok(Some(Payload { opcode, last, left, mask }))
    }
}

/// The status code of a close frame (RFC 6455 5.5.1, 7.4).
fn close_code(payload: &[u8]) -> Result<Option<u16>, CloseCode> {
    let (code, reason) = match payload {
        [] => return Ok(None),
        [_] => return Err(CloseCode::Protocol),
        [high, low, reason @ ..] => (u16::from_be_bytes([*high, *low]), reason),
    };
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(CloseCode::Protocol);
    }
    std::str::from_utf8(reason).map_err(|_| CloseCode::NoUtf8)?;
    Ok(Some(code))
}

/// Writes a text message whose payload is the given pieces together.
pub(crate) fn write_text(pieces: &[&[u8]], out: &mut BytesMut) {
    write(TEXT, pieces, out);
}

/// Writes the answer to a ping.
pub(crate) fn write_pong(payload: &[u8], out: &mut BytesMut) {
    write(PONG, &[payload], out);
}

/// Writes a close frame.
pub(crate) fn write_close(code: u16, out: &mut BytesMut) {
    write(CLOSE, &[&code.to_be_bytes()], out);
}

fn write(opcode: u8, pieces: &[&[u8]], out: &mut BytesMut) {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    out.reserve(len + 10);
    out.put_u8(0x80 | opcode);
    match len {
        0..=125 => out.put_u8(len as u8),
        126..=0xFFFF => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
    for piece in pieces {
        out.put_slice(piece);
    }
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;

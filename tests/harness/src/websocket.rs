//! A client's stream over WebSocket (RFC 7395).
//!
//! Every element is a text message of its own and a whole document: what a
//! server sends is read as such, so that a namespace or a prefix that is not
//! declared within the message is an error, as it is for a browser. Frames are
//! made and read by hand: the load generator takes them from here as well, and
//! tests need those that no library would send.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha1::{Digest, Sha1};
use tokio::time::{Instant, timeout, timeout_at};

use crate::error::{Error, Result, show};
use crate::http::Connection;
use crate::negotiation::{Negotiation, element_of};
use crate::stream::{Opened, PATIENCE};
use crate::wire::Wire;
use crate::xml::{Element, StreamEvent, escape, with_namespace};

/// How much one read takes.
const CHUNK: usize = 16 * 1024;
/// Where Prosody, ejabberd and this project's server listen for WebSockets.
pub const PATH: &str = "/xmpp-websocket";
/// The namespace of `<open/>` and `<close/>`.
pub const FRAMING_NS: &str = "urn:ietf:params:xml:ns:xmpp-framing";

/// The kinds of frames (RFC 6455 section 5.2).
pub mod opcode {
    /// Continues the message before.
    pub const CONTINUATION: u8 = 0;
    /// Begins a message of text.
    pub const TEXT: u8 = 1;
    /// Begins a message of bytes.
    pub const BINARY: u8 = 2;
    /// Ends the connection.
    pub const CLOSE: u8 = 8;
    /// Asks for a pong.
    pub const PING: u8 = 9;
    /// Answers a ping.
    pub const PONG: u8 = 10;
}

/// Appends a frame as a client sends it: whole and masked.
pub fn put_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], mask: [u8; 4]) {
    const FINAL: u8 = 0x80;
    const MASKED: u8 = 0x80;
    out.push(FINAL | opcode);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(length @ 0..126), _) => out.push(MASKED | length),
        (_, Ok(length)) => {
            out.push(MASKED | 126);
            out.extend_from_slice(&length.to_be_bytes());
        }
        _ => {
            out.push(MASKED | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

/// A frame of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Whether it ends its message.
    pub last: bool,
    /// Its kind.
    pub opcode: u8,
    /// What it carries.
    pub payload: &'a [u8],
}

/// The first frame in `buffer` and how many bytes it is long; `None` when it is not complete yet, an
/// error when no server may send it.
pub fn read_frame(buffer: &[u8]) -> std::result::Result<Option<(Frame<'_>, usize)>, String> {
    let &[first, second, ref rest @ ..] = buffer else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(format!("reserved bits in {first:#x}"));
    }
    if second & 0x80 != 0 {
        return Err("the server masks a frame".to_owned());
    }
    let big_endian = |bytes: &[u8]| bytes.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let (length, skip) = match second {
        126 => (rest.get(..2).map(big_endian), 2),
        127 => (rest.get(..8).map(big_endian), 8),
        short => (Some(u64::from(short)), 0),
    };
    let Some(length) = length else { return Ok(None) };
    let length = usize::try_from(length).map_err(|_| format!("a frame of {length} bytes"))?;
    let Some(payload) = rest[skip..].get(..length) else { return Ok(None) };
    Ok(Some((Frame { last: first & 0x80 != 0, opcode: first & 0xf, payload }, 2 + skip + length)))
}

/// What came next on a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A message is complete.
    Message,
    /// A part of a message, or nothing of one.
    Part,
    /// The end of the connection.
    End,
}

/// A WebSocket below the stream: takes text messages out of what comes, and answers pings.
pub struct Socket {
    wire: Wire,
    inbox: Vec<u8>,
    /// How much of it was taken.
    taken: usize,
    /// Pongs that wait for room to be written.
    pongs: Vec<u8>,
    ended: bool,
}

impl Socket {
    /// Connects and shakes hands (RFC 6455 section 4, RFC 7395 section 3.1); `headers` are whole lines
    /// beside those that must be there.
    pub async fn connect(at: SocketAddr, path: &str, headers: &str) -> Result<Self> {
        const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
        let io = || Error::io(format!("WebSocket to {at}"));
        let mut http = Connection::connect(at).await.map_err(io())?;
        let key = BASE64.encode(random::<16>());
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost:{}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Protocol: xmpp\r\nSec-WebSocket-Version: 13\r\n\
             {headers}\r\n",
            at.port()
        );
        http.request(request.as_bytes());
        let Some(response) = http.exchange().await.map_err(io())? else {
            return Err(Error::Closed { what: "the WebSocket handshake".to_owned(), got: String::new() });
        };
        let proof = BASE64.encode(Sha1::digest(format!("{key}{MAGIC}")));
        let is = |name: &str, value: &str| response.head.header(name) == Some(value);
        if response.head.status != 101
            || !is("sec-websocket-accept", &proof)
            || !is("sec-websocket-protocol", "xmpp")
        {
            return Err(Error::unexpected("a switch to the protocol xmpp", format!("{:?}", response.head)));
        }
        let (wire, inbox) = http.into_wire();
        Ok(Self { wire, inbox, taken: 0, pongs: Vec::new(), ended: false })
    }

    /// Appends what comes next of a text message to `out`. A single read takes up to the length of
    /// `chunk`.
    pub fn poll_text(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Poll<Result<Step>> {
        loop {
            if let Some(step) = self.take(out)? {
                return Poll::Ready(Ok(step));
            }
            if self.ended {
                return Poll::Ready(Ok(Step::End));
            }
            self.inbox.drain(..std::mem::take(&mut self.taken));
            match ready!(self.wire.poll_read(cx, chunk, &mut self.inbox)) {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => self.ended = true,
                Err(e) => return Poll::Ready(Err(Error::io("read from a WebSocket")(e))),
            }
        }
    }

    fn take(&mut self, out: &mut Vec<u8>) -> Result<Option<Step>> {
        let rest = &self.inbox[self.taken..];
        let found = read_frame(rest)
            .map_err(|reason| Error::unexpected("a frame", format!("{reason}: {}", show(rest))))?;
        let Some((frame, used)) = found else { return Ok(None) };
        let step = match frame.opcode {
            opcode::TEXT | opcode::CONTINUATION => {
                out.extend_from_slice(frame.payload);
                if frame.last { Step::Message } else { Step::Part }
            }
            opcode::PING => {
                put_frame(&mut self.pongs, opcode::PONG, frame.payload, random());
                Step::Part
            }
            opcode::PONG => Step::Part,
            opcode::CLOSE => {
                self.ended = true;
                Step::End
            }
            other => return Err(Error::unexpected("text", format!("a frame of kind {other}"))),
        };
        self.taken += used;
        // What does not fit now goes before the next write.
        if !self.pongs.is_empty()
            && let Ok(written) = self.wire.tcp().try_write(&self.pongs)
        {
            self.pongs.drain(..written);
        }
        Ok(Some(step))
    }

    /// Writes frames as they are.
    pub async fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        if !self.pongs.is_empty() {
            let pongs = std::mem::take(&mut self.pongs);
            self.wire.write_all(&pongs).await?;
        }
        self.wire.write_all(frames).await
    }
}

/// A client's stream over a WebSocket.
pub struct WebSocket {
    socket: Socket,
    /// The message that is not complete yet.
    message: Vec<u8>,
    patience: Duration,
}

impl WebSocket {
    /// Connects to [`PATH`] and shakes hands.
    pub async fn connect(at: SocketAddr) -> Result<Self> {
        Self::connect_with(at, PATH, "").await
    }

    /// As [`WebSocket::connect`] with another path, and with further lines in the request's head.
    pub async fn connect_with(at: SocketAddr, path: &str, headers: &str) -> Result<Self> {
        let connecting = tokio::time::timeout(PATIENCE, Socket::connect(at, path, headers));
        let socket = connecting.await.map_err(|_| Error::Timeout {
            what: "WebSocket handshake".to_owned(),
            after: PATIENCE,
            got: String::new(),
        })??;
        Ok(Self { socket, message: Vec::new(), patience: PATIENCE })
    }

    /// Changes how long each later step may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Sends one element as one message, with the namespace of clients if it names none.
    pub async fn send(&mut self, xml: &str) -> Result<()> {
        self.send_frame(opcode::TEXT, with_namespace(xml).as_bytes()).await
    }

    /// Sends a whole frame of any kind.
    pub async fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut frame = Vec::with_capacity(payload.len() + 14);
        put_frame(&mut frame, opcode, payload, random());
        self.send_bytes(&frame).await
    }

    /// Sends bytes as they are, below the frames.
    pub async fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        match timeout(self.patience, self.socket.write(bytes)).await {
            Ok(done) => done.map_err(Error::io("send")),
            Err(_) => Err(self.timed_out("room to send")),
        }
    }

    /// The next text message; `None` at the end of the connection.
    pub async fn next_message(&mut self, what: &str) -> Result<Option<String>> {
        let deadline = Instant::now() + self.patience;
        let mut chunk = vec![0; CHUNK];
        loop {
            let step = poll_fn(|cx| self.socket.poll_text(cx, &mut chunk, &mut self.message));
            match timeout_at(deadline, step).await {
                Err(_) => return Err(self.timed_out(what)),
                Ok(step) => match step? {
                    Step::Part => {}
                    Step::End => return Ok(None),
                    Step::Message => {
                        let message = std::mem::take(&mut self.message);
                        return String::from_utf8(message)
                            .map(Some)
                            .map_err(|e| Error::unexpected("text", show(e.as_bytes())));
                    }
                },
            }
        }
    }

    /// The next event of the stream: `<open/>` is its header, `<close/>` its end.
    pub async fn next_event(&mut self, what: &str) -> Result<StreamEvent> {
        let Some(text) = self.next_message(what).await? else {
            return Err(Error::Closed { what: what.to_owned(), got: show(&self.message) });
        };
        // RFC 7395 section 3.3.3: the first character of each frame is '<'.
        if !text.starts_with('<') {
            return Err(Error::unexpected("a message that begins with '<'", show(text.as_bytes())));
        }
        let element = Element::parse_document(&text)?;
        Ok(match (element.ns(), element.local()) {
            (FRAMING_NS, "open") => StreamEvent::Header(element),
            (FRAMING_NS, "close") => StreamEvent::End,
            _ => StreamEvent::Element(element),
        })
    }

    /// Starts a new stream to `host` and waits for header and features.
    pub async fn open(&mut self, host: &str) -> Result<Opened> {
        let to = escape(host);
        self.send(&format!("<open xmlns='{FRAMING_NS}' to='{to}' version='1.0' xml:lang='en'/>")).await?;
        let header = match self.next_event("<open/>").await? {
            StreamEvent::Header(header) => header,
            other => return Err(Error::unexpected("<open/>", format!("{other:?}"))),
        };
        Opened::new(header, self.element("stream features").await?)
    }

    /// Ends the client's half of the stream.
    pub async fn end_stream(&mut self) -> Result<()> {
        self.send(&format!("<close xmlns='{FRAMING_NS}'/>")).await
    }

    /// After both halves have ended: closes the WebSocket, and waits for the server to do so, too.
    pub async fn finish(mut self) -> Result<()> {
        const NORMAL: [u8; 2] = 1000u16.to_be_bytes();
        // The server may have been faster; then there is nothing left to close.
        let _already_closed = self.send_frame(opcode::CLOSE, &NORMAL).await;
        match self.next_message("the end of the WebSocket").await? {
            None => Ok(()),
            Some(text) => Err(Error::unexpected("the end of the WebSocket", text)),
        }
    }

    /// Gives the socket away, for traffic that needs no stanza reader.
    pub fn into_socket(self) -> Socket {
        self.socket
    }

    /// The connection below.
    pub fn wire(&mut self) -> &mut Wire {
        &mut self.socket.wire
    }

    /// Breaks the connection without a word.
    pub fn reset(self) -> Result<()> {
        self.socket.wire.reset().map_err(Error::io("reset"))
    }

    fn timed_out(&self, what: &str) -> Error {
        Error::Timeout { what: what.to_owned(), after: self.patience, got: show(&self.message) }
    }
}

impl Negotiation for WebSocket {
    async fn put(&mut self, xml: &str) -> Result<()> {
        self.send(xml).await
    }

    async fn element(&mut self, what: &str) -> Result<Element> {
        let event = self.next_event(what).await?;
        element_of(event, what, &self.message)
    }
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has a random source");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unmasked(frame: &[u8]) -> Vec<u8> {
        let skip = match frame[1] & 0x7f {
            126 => 4,
            127 => 10,
            _ => 2,
        };
        let (mask, payload) = frame[skip..].split_at(4);
        payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()
    }

    /// RFC 6455 section 5.7.
    #[test]
    fn frames_are_those_of_the_rfc() {
        let mut hello = Vec::new();
        put_frame(&mut hello, opcode::TEXT, b"Hello", [0x37, 0xfa, 0x21, 0x3d]);
        assert_eq!(hello, [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58]);
        let (frame, used) = read_frame(&[0x01, 0x03, 0x48, 0x65, 0x6c, 0x80]).unwrap().unwrap();
        assert_eq!((frame, used), (Frame { last: false, opcode: opcode::TEXT, payload: b"Hel" }, 5));
    }

    #[test]
    fn lengths_have_three_forms() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let payload = vec![b'x'; length];
            let mut frame = Vec::new();
            put_frame(&mut frame, opcode::TEXT, &payload, [1, 2, 3, 4]);
            assert_eq!(unmasked(&frame), payload, "{length}");
            let header = frame.len() - length - 4;
            let mut served = frame[..header].to_vec();
            served[1] &= 0x7f;
            served.extend_from_slice(&payload);
            assert_eq!(read_frame(&served[..served.len() - 1]).unwrap(), None, "{length}");
            let (frame, used) = read_frame(&served).unwrap().unwrap();
            assert_eq!((frame.payload.len(), used), (length, served.len()));
        }
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        assert!(read_frame(&[0xc1, 0x00]).is_err(), "a reserved bit");
        assert!(read_frame(&[0x81, 0x80, 0, 0, 0, 0]).is_err(), "a mask");
    }
}

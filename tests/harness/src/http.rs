//! The client's half of HTTP/1.1: as little of it as the web transports need.
//!
//! Reading and writing are polls over buffers that the connection keeps, so
//! that nothing is lost when whoever waits gives up: a request that was begun
//! is written to its end by the next poll, and half a response stays where it is.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use crate::wire::Wire;

/// How much one read of [`Connection::exchange`] takes.
const CHUNK: usize = 16 * 1024;
/// The most bytes of a head that are read before it is taken for none.
const MAX_HEAD: usize = 64 * 1024;

/// The head of a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    headers: Vec<(String, String)>,
}

impl Head {
    /// The first header with this name, which is given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str, token: &str) -> bool {
        self.header(name).is_some_and(|v| v.split(',').any(|part| part.trim().eq_ignore_ascii_case(token)))
    }
}

/// A response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its head.
    pub head: Head,
    /// Its body, whether it came in chunks or not.
    pub body: Vec<u8>,
}

/// A connection on which one request after the other is made.
pub struct Connection {
    wire: Wire,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    ended: bool,
}

impl Connection {
    /// Connects over plain TCP.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let wire = Wire::connect(addr).await?;
        Ok(Self { wire, inbox: Vec::new(), outbox: Vec::new(), ended: false })
    }

    /// Makes a request of these bytes. It is written by [`Connection::poll_flush`].
    pub fn request(&mut self, bytes: &[u8]) {
        self.outbox.extend_from_slice(bytes);
    }

    /// Makes a request of this head, up to the line before `Content-Length`, and of this body.
    pub fn post(&mut self, head: &[u8], body: &[u8]) {
        self.request(head);
        self.request(format!("Content-Length: {}\r\n\r\n", body.len()).as_bytes());
        self.request(body);
    }

    /// Writes what is to be written and waits for the next response; `None` when there is none.
    pub async fn exchange(&mut self) -> io::Result<Option<Response>> {
        poll_fn(|cx| self.poll_flush(cx)).await?;
        let mut chunk = vec![0; CHUNK];
        poll_fn(|cx| self.poll_response(cx, &mut chunk)).await
    }

    /// Writes what is to be written.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outbox.is_empty() {
            match self.wire.tcp().try_write(&self.outbox) {
                Ok(n) => drop(self.outbox.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.wire.tcp().poll_write_ready(cx))?;
                }
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The next response; `None` when the server has closed the connection. A single read takes up
    /// to the length of `chunk`.
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
    ) -> Poll<io::Result<Option<Response>>> {
        loop {
            if let Some(response) = take_response(&mut self.inbox)? {
                self.ended |= response.head.has("connection", "close");
                return Poll::Ready(Ok(Some(response)));
            }
            if ready!(self.wire.poll_read(cx, chunk, &mut self.inbox))? == 0 {
                self.ended = true;
                return Poll::Ready(Ok(None));
            }
        }
    }

    /// Whether no other request can be made on it.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Gives up HTTP: the connection, and what came after the last response.
    pub fn into_wire(self) -> (Wire, Vec<u8>) {
        (self.wire, self.inbox)
    }
}

/// Takes a whole response off the front of `inbox`.
fn take_response(inbox: &mut Vec<u8>) -> io::Result<Option<Response>> {
    let Some((head, length)) = read_head(inbox)? else { return Ok(None) };
    let rest = &inbox[length..];
    let (body, used) = if head.has("transfer-encoding", "chunked") {
        let Some(found) = read_chunks(rest)? else { return Ok(None) };
        found
    } else {
        let size = match head.header("content-length").map(str::parse::<usize>) {
            Some(Ok(size)) => size,
            None if matches!(head.status, 101 | 204 | 304) => 0,
            _ => return Err(bad("neither a length nor chunks", inbox)),
        };
        let Some(body) = rest.get(..size) else { return Ok(None) };
        (body.to_vec(), size)
    };
    inbox.drain(..length + used);
    Ok(Some(Response { head, body }))
}

/// A head, and how many bytes it is long.
fn read_head(inbox: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let Some(end) = find(inbox, b"\r\n\r\n") else {
        return if inbox.len() > MAX_HEAD { Err(bad("no end of the head", inbox)) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&inbox[..end]).map_err(|_| bad("not text", inbox))?;
    let mut lines = text.split("\r\n");
    let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok());
    let status = status.ok_or_else(|| bad("no status line", inbox))?;
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    };
    let headers = lines.map(header).collect::<Option<_>>().ok_or_else(|| bad("no header", inbox))?;
    Ok(Some((Head { status, headers }, end + 4)))
}

/// The body that comes in chunks, and how many bytes these take.
fn read_chunks(mut rest: &[u8]) -> io::Result<Option<(Vec<u8>, usize)>> {
    let whole = rest.len();
    let mut body = Vec::new();
    loop {
        let Some(end) = find(rest, b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&rest[..end]).unwrap_or_default();
        let digits = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(digits, 16).map_err(|_| bad("no size of a chunk", rest))?;
        let Some(chunk) = rest[end + 2..].get(..size.saturating_add(2)) else { return Ok(None) };
        if !chunk.ends_with(b"\r\n") {
            return Err(bad("a chunk without its end", rest));
        }
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[end + 2 + size + 2..];
        if size == 0 {
            return Ok(Some((body, whole - rest.len())));
        }
    }
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|w| w == part)
}

fn bad(what: &str, got: &[u8]) -> io::Error {
    io::Error::other(format!("no HTTP response: {what}: {}", crate::error::show(got)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_cut_at_any_byte() {
        let text = b"HTTP/1.1 200 OK\r\nContent-length: 5\r\nX: y\r\n\r\nhello\
                     HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
                     3;a=b\r\nwor\r\n2\r\nld\r\n0\r\n\r\n";
        for cut in 0..text.len() {
            let mut inbox = text[..cut].to_vec();
            let mut all = Vec::new();
            while let Some(response) = take_response(&mut inbox).unwrap() {
                all.push(response);
            }
            inbox.extend_from_slice(&text[cut..]);
            while let Some(response) = take_response(&mut inbox).unwrap() {
                all.push(response);
            }
            let got: Vec<_> = all.iter().map(|r| (r.head.status, r.body.as_slice())).collect();
            assert_eq!(got, [(200, &b"hello"[..]), (404, b"world")], "cut at {cut}");
            assert_eq!(all[0].head.header("x"), Some("y"));
            assert!(all[1].head.has("connection", "close") && inbox.is_empty());
        }
    }

    #[test]
    fn what_is_no_response_is_an_error() {
        for bad in [
            "nonsense\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
            "HTTP/1.1 200 OK\r\nno header\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
        ] {
            assert!(take_response(&mut bad.as_bytes().to_vec()).is_err(), "{bad:?}");
        }
    }
}

//! How the stanzas of a load go between a user and the server: over TCP, a WebSocket, or BOSH.
//!
//! What is read is appended to an inbox as bare stanzas, whatever they were
//! wrapped in, so that a load looks for them in the same way on every
//! transport; and what is written together goes with as few system calls as the
//! transport allows.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use waystation_harness::exchange::Exchange;
use waystation_harness::websocket::{Socket, Step, opcode, put_frame};
use waystation_harness::wire::Wire;
use waystation_harness::{Link, Transport};

use crate::load::Ground;

/// A user's way to the server and back.
pub(crate) struct Channel {
    way: Way,
    outbox: Vec<u8>,
    /// One stanza, before it is put into a frame.
    stanza: Vec<u8>,
    /// Of the last frame.
    mask: u32,
}

enum Way {
    Tcp(Wire),
    WebSocket(Socket),
    Bosh(Box<Exchange>),
}

impl Channel {
    /// Over a connection of its own.
    pub(crate) fn tcp(wire: Wire) -> Self {
        Self::new(Way::Tcp(wire))
    }

    /// Over whatever the stream went until now.
    pub(crate) fn of(link: Link) -> Self {
        Self::new(match link {
            Link::Tcp(raw) => Way::Tcp(raw.into_wire().0),
            Link::WebSocket(socket) => Way::WebSocket(socket.into_socket()),
            Link::Bosh(bosh) => Way::Bosh(Box::new(bosh.into_exchange())),
        })
    }

    fn new(way: Way) -> Self {
        Self { way, outbox: Vec::new(), stanza: Vec::new(), mask: 1 }
    }

    /// Puts a stanza, which `append` appends, to what is written next. On the web it must name its
    /// namespace.
    pub(crate) fn put(&mut self, append: impl FnOnce(&mut Vec<u8>)) {
        if !matches!(self.way, Way::WebSocket(_)) {
            return append(&mut self.outbox);
        }
        self.stanza.clear();
        append(&mut self.stanza);
        // Another mask for each frame, as a server sees them, but none that costs the generator time.
        self.mask = self.mask.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        put_frame(&mut self.outbox, opcode::TEXT, &self.stanza, self.mask.to_be_bytes());
    }

    /// Writes what was put.
    pub(crate) async fn write(&mut self) -> io::Result<()> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        match &mut self.way {
            Way::Tcp(wire) => wire.write_all(&self.outbox).await?,
            Way::WebSocket(socket) => socket.write(&self.outbox).await?,
            Way::Bosh(exchange) => {
                exchange.post(&self.outbox);
                exchange.flush().await?;
            }
        }
        self.outbox.clear();
        Ok(())
    }

    /// Appends what has arrived to `inbox` and returns how many bytes that were; 0 is the end. Waiting
    /// may be given up.
    pub(crate) async fn fill(&mut self, ground: &Ground, inbox: &mut Vec<u8>) -> io::Result<usize> {
        let before = inbox.len();
        match &mut self.way {
            Way::Tcp(wire) => return ground.fill(wire, inbox).await,
            Way::WebSocket(socket) => {
                poll_fn(|cx| {
                    loop {
                        // All frames that came with one read are taken at once.
                        match socket.poll_text(cx, &mut ground.scratch(), inbox) {
                            Poll::Ready(Ok(Step::Message | Step::Part)) => {}
                            Poll::Ready(Ok(Step::End)) => return Poll::Ready(Ok(())),
                            Poll::Ready(Err(e)) => return Poll::Ready(Err(io::Error::other(e))),
                            Poll::Pending if inbox.len() > before => return Poll::Ready(Ok(())),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                })
                .await?;
            }
            Way::Bosh(exchange) => loop {
                if !exchange.is_open() && !exchange.has_answers() {
                    break;
                }
                exchange.prepare().await?;
                if let Some(body) = poll_fn(|cx| exchange.poll_next(cx, &mut ground.scratch())).await? {
                    inbox.extend_from_slice(&body);
                    break;
                }
            },
        }
        Ok(inbox.len() - before)
    }
}

/// What a stanza of a client says about its namespace: nothing on a stream that does.
pub(crate) fn namespace(transport: Transport) -> &'static str {
    match transport {
        Transport::Tcp => "",
        Transport::WebSocket | Transport::Bosh => " xmlns='jabber:client'",
    }
}

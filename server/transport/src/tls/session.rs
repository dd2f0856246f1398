//! One TLS session, of either side: rustls' unbuffered connection, driven over buffers that belong to the thread.
//!
//! What must stay true:
//! - `pending` is exactly the ciphertext that rustls has not released: it may refer to it, so every call gets
//!   it at the front of its buffer. The one exception is `unread`: then `pending` holds what rustls has not
//!   seen, it refers to nothing, and a call that only writes gets an empty buffer.
//! - `wire_out` is ciphertext that precedes anything encrypted later.
//! - An idle session holds neither.
//! - That there are two sides costs a session of the server's no memory, and a call one comparison.

use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{EncryptError, WriteTraffic};
use rustls::{CommonState, ProtocolVersion};

use super::drive::State;
use super::info::{TlsInfo, TlsVersion};
use super::probe::Probe;
use crate::connection::Flow;
use crate::error::TransportError;
use crate::scratch::MAX_PENDING;

/// Most bytes a peer may send before the handshake is complete.
const MAX_HANDSHAKE: usize = 64 * 1024;
/// Room for an encrypted alert.
const ALERT_ROOM: usize = 128;

/// Takes each decrypted chunk, and says whether to go on.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Flow + 'a;

pub(crate) struct TlsSession {
    side: Side,
    state: State,
}

/// Which side is ours.
enum Side {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

pub(super) enum Phase {
    Handshake {
        /// `None` on the client's side, of which nothing is asked that rustls does not report.
        probe: Option<Arc<Probe>>,
        received: usize,
    },
    Open(TlsInfo),
}

/// What one pass over a buffer did.
pub(crate) struct Progress {
    /// Bytes at the front of the buffer that are done with.
    pub(crate) consumed: usize,
    /// Decrypted bytes handed out.
    pub(crate) plain: usize,
}

/// What is to be encrypted.
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    Data(&'a [u8]),
    CloseNotify,
}

impl Output<'_> {
    /// Encrypts it into `cipher`; returns the length.
    pub(super) fn encrypt<Data>(
        self,
        traffic: &mut WriteTraffic<'_, Data>,
        cipher: &mut [u8],
    ) -> Result<usize, EncryptError> {
        match self {
            Self::Data(plain) => traffic.encrypt(plain, cipher),
            Self::CloseNotify => traffic.queue_close_notify(cipher),
        }
    }
}

impl TlsSession {
    /// The server's side of a session that begins.
    pub(crate) fn server(connection: UnbufferedServerConnection, probe: Arc<Probe>) -> Self {
        let phase = Phase::Handshake { probe: Some(probe), received: 0 };
        Self { side: Side::Server(connection), state: State::new(phase) }
    }

    /// The client's side of a session that begins: nothing is sent before [`TlsSession::process_handshake`]
    /// was called once, without input.
    pub(crate) fn client(connection: UnbufferedClientConnection) -> Self {
        let phase = Phase::Handshake { probe: None, received: 0 };
        Self { side: Side::Client(connection), state: State::new(phase) }
    }

    fn common(&self) -> &CommonState {
        match &self.side {
            Side::Server(connection) => connection,
            Side::Client(connection) => connection,
        }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self.state.phase, Phase::Handshake { .. })
    }

    pub(crate) fn info(&self) -> Option<&TlsInfo> {
        match &self.state.phase {
            Phase::Open(info) => Some(info),
            Phase::Handshake { .. } => None,
        }
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.common().alpn_protocol()
    }

    pub(crate) fn peer_certificates(&self) -> &[rustls_pki_types::CertificateDer<'static>] {
        self.common().peer_certificates().unwrap_or_default()
    }

    /// True once the peer sent close_notify: there is nothing more to read.
    pub(crate) fn peer_closed(&self) -> bool {
        self.state.peer_closed
    }

    /// True after an error; an alert may still be in `wire_out`.
    pub(crate) fn failed(&self) -> bool {
        self.state.failed
    }

    /// True if decrypted or complete undecrypted data may be waiting, so that a read need not wait for the
    /// socket.
    pub(crate) fn has_unread(&self) -> bool {
        self.state.unread || !self.state.early.is_empty()
    }

    /// Bytes that are pending.
    pub(crate) fn pending_len(&self) -> usize {
        self.state.pending.len()
    }

    /// Copies what is pending to the front of `buffer`; returns how much.
    pub(crate) fn load_pending(&mut self, buffer: &mut [u8]) -> usize {
        let pending = std::mem::take(&mut self.state.pending);
        buffer[..pending.len()].copy_from_slice(&pending);
        pending.len()
    }

    /// Keeps what a pass left over.
    pub(crate) fn keep_pending(&mut self, rest: &[u8]) -> Result<(), TransportError> {
        debug_assert!(self.state.pending.is_empty(), "pending was loaded before");
        if rest.len() > MAX_PENDING {
            self.state.failed = true;
            return Err(TransportError::FragmentsTooLarge);
        }
        if !rest.is_empty() {
            self.state.pending = rest.to_vec();
        }
        Ok(())
    }

    /// Puts bytes that arrived with the end of the plain stream in front of what TLS reads.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        if self.state.pending.len() + bytes.len() > MAX_PENDING {
            return Err(TransportError::HandshakeTooLarge);
        }
        self.state.pending.extend_from_slice(bytes);
        self.state.unread = !self.state.pending.is_empty();
        Ok(())
    }

    /// Hands out data that was decrypted before anybody read.
    pub(crate) fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state.early)
    }

    /// Ciphertext for the socket, to be sent before anything else.
    pub(crate) fn wire_out(&self) -> &[u8] {
        &self.state.wire_out[self.state.wire_out_start..]
    }

    /// Adds bytes for the socket behind those waiting there.
    pub(crate) fn push_wire(&mut self, bytes: &[u8]) {
        self.state.only_tickets = false;
        self.state.wire_out.extend_from_slice(bytes);
    }

    pub(crate) fn advance_wire(&mut self, n: usize) {
        self.state.wire_out_start += n;
        if self.state.wire_out_start >= self.state.wire_out.len() {
            self.state.wire_out = Vec::new();
            self.state.wire_out_start = 0;
            self.state.only_tickets = false;
        }
    }

    /// True while what waits for the socket is tickets alone: no client waits for them, so that they may
    /// leave in one write with the first data.
    pub(crate) fn has_only_tickets(&self) -> bool {
        self.state.only_tickets
    }

    /// Forgets the output, which can no longer be sent.
    pub(crate) fn abandon_wire(&mut self) {
        self.state.wire_out = Vec::new();
        self.state.wire_out_start = 0;
        self.state.only_tickets = false;
        self.state.failed = true;
    }

    /// Runs rustls over `buffer` until it needs more, the sink stops, or the peer has closed.
    pub(crate) fn process(
        &mut self,
        buffer: &mut [u8],
        sink: &mut Sink<'_>,
    ) -> Result<Progress, TransportError> {
        match &mut self.side {
            Side::Server(connection) => self.state.process(connection, buffer, sink),
            Side::Client(connection) => self.state.process(connection, buffer, sink),
        }
    }

    /// One pass of the handshake over `buffer`, into which `received` bytes were read anew. Returns what was
    /// consumed and whether the handshake is complete.
    pub(crate) fn process_handshake(
        &mut self,
        buffer: &mut [u8],
        received: usize,
    ) -> Result<(usize, bool), TransportError> {
        if let Phase::Handshake { received: so_far, .. } = &mut self.state.phase {
            *so_far += received;
            if *so_far > MAX_HANDSHAKE {
                self.state.failed = true;
                return Err(TransportError::HandshakeTooLarge);
            }
        }
        let mut early = Vec::new();
        let progress = self.process(buffer, &mut |data| {
            early.extend_from_slice(data);
            // The reader takes over from here; what follows stays encrypted until then.
            Flow::Stop
        })?;
        self.state.early.append(&mut early);
        if self.common().is_handshaking() {
            if self.state.peer_closed {
                self.state.failed = true;
                return Err(TransportError::HandshakeTruncated);
            }
            return Ok((progress.consumed, false));
        }
        self.finish_handshake()?;
        Ok((progress.consumed, true))
    }

    fn finish_handshake(&mut self) -> Result<(), TransportError> {
        let Phase::Handshake { probe, .. } = &self.state.phase else { return Ok(()) };
        let (Some(suite), Some(version)) =
            (self.common().negotiated_cipher_suite(), self.common().protocol_version())
        else {
            self.state.failed = true;
            return Err(TransportError::HandshakeIncomplete);
        };
        // The rest of the server's flight was sent before the client's could be read.
        self.state.only_tickets = matches!(self.side, Side::Server(_)) && version == ProtocolVersion::TLSv1_3;
        let info = TlsInfo {
            version: match version {
                ProtocolVersion::TLSv1_3 => TlsVersion::Tls13,
                _ => TlsVersion::Tls12,
            },
            cipher_suite: suite.suite(),
            resumed: self.common().handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            server_name: probe.as_ref().and_then(|probe| probe.server_name()),
            exporter: probe.as_ref().and_then(|probe| probe.tls_exporter(suite)),
            server_end_point: probe.as_ref().and_then(|probe| probe.server_end_point()),
        };
        self.state.phase = Phase::Open(info);
        Ok(())
    }

    /// Encrypts `plain` (at most one record's worth) into `cipher`; returns the length.
    pub(crate) fn encrypt(&mut self, plain: &[u8], cipher: &mut [u8]) -> Result<usize, TransportError> {
        self.write(Output::Data(plain), cipher)
    }

    /// Puts a close_notify into `wire_out`.
    pub(crate) fn close_notify(&mut self) -> Result<(), TransportError> {
        let mut alert = [0; ALERT_ROOM];
        let len = self.write(Output::CloseNotify, &mut alert)?;
        self.state.wire_out.extend_from_slice(&alert[..len]);
        Ok(())
    }

    fn write(&mut self, output: Output<'_>, cipher: &mut [u8]) -> Result<usize, TransportError> {
        match &mut self.side {
            Side::Server(connection) => self.state.write(connection, output, cipher),
            Side::Client(connection) => self.state.write(connection, output, cipher),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_side_costs_a_session_of_the_servers_no_memory() {
        assert_eq!(size_of::<Side>(), size_of::<UnbufferedServerConnection>());
    }
}

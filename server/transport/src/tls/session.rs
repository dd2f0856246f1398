//! One TLS session: rustls' unbuffered connection, driven over buffers that belong to the thread.
//!
//! What must stay true:
//! - `pending` is exactly the ciphertext that rustls has not released: it may refer to it, so every call gets
//!   it at the front of its buffer. The one exception is `unread`: then `pending` holds what rustls has not
//!   seen, it refers to nothing, and a call that only writes gets an empty buffer.
//! - `wire_out` is ciphertext that precedes anything encrypted later.
//! - An idle session holds neither.

use std::sync::Arc;

use rustls::ProtocolVersion;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};

use super::info::{TlsInfo, TlsVersion};
use super::probe::Probe;
use crate::connection::Flow;
use crate::error::TransportError;
use crate::scratch::MAX_PENDING;

/// Most bytes a client may send before its handshake is complete.
const MAX_HANDSHAKE: usize = 64 * 1024;
/// Room for an encrypted alert.
const ALERT_ROOM: usize = 128;

/// Takes each decrypted chunk, and says whether to go on.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> Flow + 'a;

pub(crate) struct TlsSession {
    connection: UnbufferedServerConnection,
    pending: Vec<u8>,
    wire_out: Vec<u8>,
    wire_out_start: usize,
    /// Data decrypted while nobody was reading: what followed the handshake, at most a record per write.
    early: Vec<u8>,
    phase: Phase,
    /// `pending` may hold complete records that were not looked at.
    unread: bool,
    peer_closed: bool,
    failed: bool,
}

enum Phase {
    Handshake { probe: Arc<Probe>, received: usize },
    Open(TlsInfo),
}

/// What one pass over a buffer did.
pub(crate) struct Progress {
    /// Bytes at the front of the buffer that are done with.
    pub(crate) consumed: usize,
    /// Decrypted bytes handed out.
    pub(crate) plain: usize,
}

impl TlsSession {
    pub(crate) fn new(connection: UnbufferedServerConnection, probe: Arc<Probe>) -> Self {
        Self {
            connection,
            pending: Vec::new(),
            wire_out: Vec::new(),
            wire_out_start: 0,
            early: Vec::new(),
            phase: Phase::Handshake { probe, received: 0 },
            unread: false,
            peer_closed: false,
            failed: false,
        }
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        matches!(self.phase, Phase::Handshake { .. })
    }

    pub(crate) fn info(&self) -> Option<&TlsInfo> {
        match &self.phase {
            Phase::Open(info) => Some(info),
            Phase::Handshake { .. } => None,
        }
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.connection.alpn_protocol()
    }

    pub(crate) fn peer_certificates(&self) -> &[rustls_pki_types::CertificateDer<'static>] {
        self.connection.peer_certificates().unwrap_or_default()
    }

    /// True once the peer sent close_notify: there is nothing more to read.
    pub(crate) fn peer_closed(&self) -> bool {
        self.peer_closed
    }

    /// True after an error; an alert may still be in `wire_out`.
    pub(crate) fn failed(&self) -> bool {
        self.failed
    }

    /// True if decrypted or complete undecrypted data may be waiting, so that a read need not wait for the
    /// socket.
    pub(crate) fn has_unread(&self) -> bool {
        self.unread || !self.early.is_empty()
    }

    /// Bytes that are pending.
    pub(crate) fn pending_len(&self) -> usize {
        self.pending.len()
    }

    /// Copies what is pending to the front of `buffer`; returns how much.
    pub(crate) fn load_pending(&mut self, buffer: &mut [u8]) -> usize {
        let pending = std::mem::take(&mut self.pending);
        buffer[..pending.len()].copy_from_slice(&pending);
        pending.len()
    }

    /// Keeps what a pass left over.
    pub(crate) fn keep_pending(&mut self, rest: &[u8]) -> Result<(), TransportError> {
        debug_assert!(self.pending.is_empty(), "pending was loaded before");
        if rest.len() > MAX_PENDING {
            self.failed = true;
            return Err(TransportError::FragmentsTooLarge);
        }
        if !rest.is_empty() {
            self.pending = rest.to_vec();
        }
        Ok(())
    }

    /// Puts bytes that arrived with the end of the plain stream in front of what TLS reads.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), TransportError> {
        if self.pending.len() + bytes.len() > MAX_PENDING {
            return Err(TransportError::HandshakeTooLarge);
        }
        self.pending.extend_from_slice(bytes);
        self.unread = !self.pending.is_empty();
        Ok(())
    }

    /// Hands out data that was decrypted before anybody read.
    pub(crate) fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }

    /// Ciphertext for the socket, to be sent before anything else.
    pub(crate) fn wire_out(&self) -> &[u8] {
        &self.wire_out[self.wire_out_start..]
    }

    /// Adds bytes for the socket behind those waiting there.
    pub(crate) fn push_wire(&mut self, bytes: &[u8]) {
        self.wire_out.extend_from_slice(bytes);
    }

    pub(crate) fn advance_wire(&mut self, n: usize) {
        self.wire_out_start += n;
        if self.wire_out_start >= self.wire_out.len() {
            self.wire_out = Vec::new();
            self.wire_out_start = 0;
        }
    }

    /// Forgets the output, which can no longer be sent.
    pub(crate) fn abandon_wire(&mut self) {
        self.wire_out = Vec::new();
        self.wire_out_start = 0;
        self.failed = true;
    }

    /// Runs rustls over `buffer` until it needs more, the sink stops, or the peer has closed.
    pub(crate) fn process(
        &mut self,
        buffer: &mut [u8],
        sink: &mut Sink<'_>,
    ) -> Result<Progress, TransportError> {
        if self.failed {
            return Err(TransportError::Closed);
        }
        self.unread = false;
        let mut consumed = 0;
        let mut plain = 0;
        loop {
            let UnbufferedStatus { mut discard, state } =
                self.connection.process_tls_records(&mut buffer[consumed..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.wire_out)?.inspect(|record| {
                        if let Phase::Handshake { probe, .. } = &self.phase {
                            probe.sent(record);
                        }
                    });
                }
                // The bytes are in `wire_out`, which is sent before anything else.
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        plain += record.payload.len();
                        if !record.payload.is_empty() && sink(record.payload) == Flow::Stop {
                            self.unread = true;
                            done = true;
                        }
                    }
                }
                Ok(ConnectionState::PeerClosed) => {
                    self.peer_closed = true;
                    // RFC 8446 section 6.1: what follows a close_notify is ignored.
                    return Ok(Progress { consumed: buffer.len(), plain });
                }
                Ok(ConnectionState::Closed) => return Ok(Progress { consumed: buffer.len(), plain }),
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => done = true,
                // Early data is not enabled (`ServerConfig::max_early_data_size` is 0).
                Ok(_) => {
                    self.failed = true;
                    return Err(TransportError::Tls(rustls::Error::General("unexpected state".into())));
                }
                Err(error) => {
                    self.failed = true;
                    self.collect_alert();
                    return Err(TransportError::Tls(error));
                }
            }
            consumed += discard;
            if done {
                return Ok(Progress { consumed, plain });
            }
        }
    }

    /// Moves the alert that goes with an error, and what was to be sent before it, to `wire_out`.
    fn collect_alert(&mut self) {
        // While something is to be sent, rustls returns that before it looks at its input: so the input,
        // which it may still refer to, need not be given. Without anything to send it would be looked at.
        while self.connection.wants_write() {
            match self.connection.process_tls_records(&mut []).state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    if encode(data, &mut self.wire_out).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::ReadTraffic(mut traffic)) => while traffic.next_record().is_some() {},
                _ => return,
            }
        }
    }

    /// One pass of the handshake over `buffer`, into which `received` bytes were read anew. Returns what was
    /// consumed and whether the handshake is complete.
    pub(crate) fn process_handshake(
        &mut self,
        buffer: &mut [u8],
        received: usize,
    ) -> Result<(usize, bool), TransportError> {
        if let Phase::Handshake { received: so_far, .. } = &mut self.phase {
            *so_far += received;
            if *so_far > MAX_HANDSHAKE {
                self.failed = true;
                return Err(TransportError::HandshakeTooLarge);
            }
        }
        let mut early = Vec::new();
        let progress = self.process(buffer, &mut |data| {
            early.extend_from_slice(data);
            // The reader takes over from here; what follows stays encrypted until then.
            Flow::Stop
        })?;
        self.early.append(&mut early);
        if self.connection.is_handshaking() {
            if self.peer_closed {
                self.failed = true;
                return Err(TransportError::HandshakeTruncated);
            }
            return Ok((progress.consumed, false));
        }
        self.finish_handshake()?;
        Ok((progress.consumed, true))
    }

    fn finish_handshake(&mut self) -> Result<(), TransportError> {
        let Phase::Handshake { probe, .. } = &self.phase else { return Ok(()) };
        let (Some(suite), Some(version)) =
            (self.connection.negotiated_cipher_suite(), self.connection.protocol_version())
        else {
            self.failed = true;
            return Err(TransportError::HandshakeIncomplete);
        };
        let info = TlsInfo {
            version: match version {
                ProtocolVersion::TLSv1_3 => TlsVersion::Tls13,
                _ => TlsVersion::Tls12,
            },
            cipher_suite: suite.suite(),
            resumed: self.connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
            server_name: probe.server_name(),
            exporter: probe.tls_exporter(suite),
            server_end_point: probe.server_end_point(),
        };
        self.phase = Phase::Open(info);
        Ok(())
    }

    /// Encrypts `plain` (at most one record's worth) into `cipher`; returns the length.
    pub(crate) fn encrypt(&mut self, plain: &[u8], cipher: &mut [u8]) -> Result<usize, TransportError> {
        self.with_write(|write| write.encrypt(plain, cipher))?.map_err(|error| encrypt_error(&error))
    }

    /// Puts a close_notify into `wire_out`.
    pub(crate) fn close_notify(&mut self) -> Result<(), TransportError> {
        let mut alert = [0; ALERT_ROOM];
        let len = self
            .with_write(|write| write.queue_close_notify(&mut alert))?
            .map_err(|error| encrypt_error(&error))?;
        self.wire_out.extend_from_slice(&alert[..len]);
        Ok(())
    }

    fn with_write<R>(
        &mut self,
        mut write: impl FnMut(&mut WriteTraffic<'_, ServerConnectionData>) -> R,
    ) -> Result<R, TransportError> {
        if self.failed {
            return Err(TransportError::Closed);
        }
        loop {
            let buffer: &mut [u8] = if self.unread { &mut [] } else { &mut self.pending };
            let UnbufferedStatus { mut discard, state } = self.connection.process_tls_records(buffer);
            let mut result = None;
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => result = Some(write(&mut traffic)),
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.wire_out)?;
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => transmit.done(),
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        self.early.extend_from_slice(record.payload);
                    }
                }
                Ok(ConnectionState::PeerClosed) => self.peer_closed = true,
                Ok(ConnectionState::BlockedHandshake) => return Err(TransportError::HandshakeIncomplete),
                Ok(_) => return Err(TransportError::Closed),
                Err(error) => {
                    self.failed = true;
                    self.collect_alert();
                    return Err(TransportError::Tls(error));
                }
            }
            if !self.unread {
                self.pending.drain(..discard);
            }
            if let Some(result) = result {
                return Ok(result);
            }
        }
    }
}

/// Appends a record of rustls' own to `wire_out`; returns it.
fn encode<'a>(
    mut data: EncodeTlsData<'_, ServerConnectionData>,
    wire_out: &'a mut Vec<u8>,
) -> Result<Option<&'a [u8]>, TransportError> {
    let required = match data.encode(&mut []) {
        Ok(_) => return Ok(None),
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(EncodeError::AlreadyEncoded) => return Ok(None),
    };
    let start = wire_out.len();
    wire_out.resize(start + required, 0);
    match data.encode(&mut wire_out[start..]) {
        Ok(written) => {
            wire_out.truncate(start + written);
            Ok(Some(&wire_out[start..]))
        }
        // Cannot happen, as the size is the one just asked for; the connection ends if it does.
        Err(_) => Err(TransportError::Tls(rustls::Error::General("record not encoded".into()))),
    }
}

fn encrypt_error(error: &EncryptError) -> TransportError {
    match error {
        EncryptError::EncryptExhausted => TransportError::KeysExhausted,
        EncryptError::InsufficientSize(_) => {
            TransportError::Tls(rustls::Error::General("record larger than its buffer".into()))
        }
    }
}

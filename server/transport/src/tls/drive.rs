//! The loops around rustls' unbuffered connection, the same for both sides of TLS.
//!
//! What must stay true is said in `session`, whose state this is; each loop is compiled for either side, so
//! that neither pays for the other.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus};

use super::session::{Output, Phase, Progress, Sink};
use crate::connection::Flow;
use crate::error::TransportError;

/// One side's connection of rustls.
pub(super) trait Engine {
    type Data;

    /// Looks at `tls`, and says what is to be done.
    fn turn<'c, 'i>(&'c mut self, tls: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// True while it has records of its own to be sent.
    fn has_output(&self) -> bool;
}

impl Engine for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    #[inline]
    fn turn<'c, 'i>(&'c mut self, tls: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(tls)
    }

    fn has_output(&self) -> bool {
        self.wants_write()
    }
}

impl Engine for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    #[inline]
    fn turn<'c, 'i>(&'c mut self, tls: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(tls)
    }

    fn has_output(&self) -> bool {
        self.wants_write()
    }
}

/// What a session holds beside the connection of rustls.
pub(super) struct State {
    pub(super) pending: Vec<u8>,
    pub(super) wire_out: Vec<u8>,
    pub(super) wire_out_start: usize,
    /// All of `wire_out` is tickets, which no peer waits for.
    pub(super) only_tickets: bool,
    /// Data decrypted while nobody was reading: what followed the handshake, at most a record per write.
    pub(super) early: Vec<u8>,
    pub(super) phase: Phase,
    /// `pending` may hold complete records that were not looked at.
    pub(super) unread: bool,
    pub(super) peer_closed: bool,
    pub(super) failed: bool,
}

impl State {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            pending: Vec::new(),
            wire_out: Vec::new(),
            wire_out_start: 0,
            only_tickets: false,
            early: Vec::new(),
            phase,
            unread: false,
            peer_closed: false,
            failed: false,
        }
    }

    /// Runs rustls over `buffer` until it needs more, the sink stops, or the peer has closed.
    pub(super) fn process<E: Engine>(
        &mut self,
        engine: &mut E,
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
            let UnbufferedStatus { mut discard, state } = engine.turn(&mut buffer[consumed..]);
            let mut done = false;
            match state {
                Ok(ConnectionState::EncodeTlsData(data)) => {
                    encode(data, &mut self.wire_out)?.inspect(|record| {
                        if let Phase::Handshake { probe: Some(probe), .. } = &self.phase {
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
                    self.collect_alert(engine);
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
    fn collect_alert<E: Engine>(&mut self, engine: &mut E) {
        // While something is to be sent, rustls returns that before it looks at its input: so the input,
        // which it may still refer to, need not be given. Without anything to send it would be looked at.
        while engine.has_output() {
            match engine.turn(&mut []).state {
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

    /// Encrypts `output` into `cipher`; returns the length.
    pub(super) fn write<E: Engine>(
        &mut self,
        engine: &mut E,
        output: Output<'_>,
        cipher: &mut [u8],
    ) -> Result<usize, TransportError> {
        if self.failed {
            return Err(TransportError::Closed);
        }
        loop {
            let buffer: &mut [u8] = if self.unread { &mut [] } else { &mut self.pending };
            let UnbufferedStatus { mut discard, state } = engine.turn(buffer);
            let mut result = None;
            match state {
                Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                    result = Some(output.encrypt(&mut traffic, cipher))
                }
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
                    self.collect_alert(engine);
                    return Err(TransportError::Tls(error));
                }
            }
            if !self.unread {
                self.pending.drain(..discard);
            }
            if let Some(result) = result {
                return result.map_err(|error| encrypt_error(&error));
            }
        }
    }
}

/// Appends a record of rustls' own to `wire_out`; returns it.
fn encode<'a, Data>(
    mut data: EncodeTlsData<'_, Data>,
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

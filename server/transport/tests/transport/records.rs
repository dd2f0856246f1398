//! Hand-made TLS records: what no well-behaved client sends, and what a damaged or hostile one might.

use proptest::prelude::*;
use rustls::crypto::cipher::{MessageEncrypter, OutboundChunks, OutboundPlainMessage};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConnection, ConnectionTrafficSecrets, ContentType, ProtocolVersion, SupportedCipherSuite,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waystation_transport::{Connection, Flow, ReadOutcome, TransportError};

use crate::common::*;

/// The sending half of a TLS 1.3 client after its handshake, for records of any content.
struct RecordWriter {
    stream: TcpStream,
    encrypter: Box<dyn MessageEncrypter>,
    sequence: u64,
}

impl RecordWriter {
    async fn connect(certificates: &Certificates) -> (Connection, Self) {
        let mut config = client_config(&[&TLS13]);
        config.enable_secret_extraction = true;
        let (server, client) = tls_pair(&certificates.acceptor(), config).await;
        let (stream, tls) = client.into_inner();
        let Some(SupportedCipherSuite::Tls13(suite)) = tls.negotiated_cipher_suite() else { unreachable!() };
        let (sequence, secrets) = tls.dangerous_extract_secrets().unwrap().tx;
        let (ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv }) = secrets
        else {
            unreachable!()
        };
        let encrypter = suite.aead_alg.encrypter(key, iv);
        (server, Self { stream, encrypter, sequence })
    }

    async fn send(&mut self, typ: ContentType, payload: &[u8]) -> std::io::Result<()> {
        let record = OutboundPlainMessage {
            typ,
            version: ProtocolVersion::TLSv1_2,
            payload: OutboundChunks::Single(payload),
        };
        let record = self.encrypter.encrypt(record, self.sequence).unwrap().encode();
        self.sequence += 1;
        self.stream.write_all(&record).await
    }
}

async fn read_once(server: &mut Connection) -> Result<ReadOutcome, TransportError> {
    server.read_some(100_000, &mut |_| Flow::Continue).await
}

#[test]
fn t9_writing_while_a_handshake_message_is_half_read() {
    const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
    let certificates = Certificates::new(&["localhost"]);
    for cut in 1..KEY_UPDATE.len() {
        run(async {
            let (mut server, mut client) = RecordWriter::connect(&certificates).await;
            client.send(ContentType::Handshake, &KEY_UPDATE[..cut]).await.unwrap();
            let read = read_once(&mut server).await.unwrap();
            assert!(matches!(read, ReadOutcome::Data { bytes: 0, more: false, .. }), "{read:?}");
            server.queue_slice(b"written in between");
            server.flush().await.unwrap();
            client.send(ContentType::Handshake, &KEY_UPDATE[cut..]).await.unwrap();
            let read = read_once(&mut server).await.unwrap();
            assert!(matches!(read, ReadOutcome::Data { bytes: 0, .. }), "{read:?}");
            assert_ne!(client.stream.read(&mut [0; 100]).await.unwrap(), 0);
            tokio::join!(server.close(PATIENCE), async move { drop(client) });
        });
    }
}

#[test]
fn t9_handshake_fragments_without_end_are_bounded() {
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (mut server, mut client) = RecordWriter::connect(&certificates).await;
        let flood = async {
            // A message said to be 65,535 bytes long, one byte of it per record.
            client.send(ContentType::Handshake, &[24, 0, 0xff, 0xff]).await.unwrap();
            let mut sent = 0;
            while sent < 65_000 && client.send(ContentType::Handshake, &[0]).await.is_ok() {
                sent += 1;
            }
        };
        let defence = async {
            let outcome = read_until(&mut server, |_| false).await;
            drop(server);
            outcome
        };
        let (outcome, ()) = tokio::join!(defence, flood);
        assert!(matches!(outcome, Err(TransportError::FragmentsTooLarge)), "{outcome:?}");
    });
}

#[test]
fn t9_records_of_the_wrong_kind_end_the_connection() {
    let certificates = Certificates::new(&["localhost"]);
    let half_a_message: &[(ContentType, &[u8])] =
        &[(ContentType::Handshake, &[24, 0, 0]), (ContentType::ApplicationData, b"x")];
    let cases: [&[(ContentType, &[u8])]; 5] = [
        half_a_message,
        &[(ContentType::Handshake, &[1, 0, 0, 4, 0, 0, 0, 0])],
        &[(ContentType::Alert, &[2, 40])],
        &[(ContentType::Alert, &[1])],
        &[(ContentType::Unknown(99), b"x")],
    ];
    for records in cases {
        run(async {
            let (mut server, mut client) = RecordWriter::connect(&certificates).await;
            for (typ, payload) in records {
                client.send(*typ, payload).await.unwrap();
            }
            let outcome = read_until(&mut server, |_| false).await;
            assert!(matches!(outcome, Err(TransportError::Tls(_))), "{records:?}: {outcome:?}");
            assert!(matches!(read_once(&mut server).await, Err(TransportError::Closed)));
            server.queue_slice(b"after the end");
            assert!(server.flush().await.is_err());
            tokio::join!(server.close(PATIENCE), async move { drop(client) });
        });
    }
}

#[derive(Debug, Clone)]
enum Damage {
    Flip { at: prop::sample::Index, bit: u8 },
    Cut { at: prop::sample::Index },
    Repeat { at: prop::sample::Index, len: usize },
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
}

fn damage() -> impl Strategy<Value = Damage> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), 0..8u8).prop_map(|(at, bit)| Damage::Flip { at, bit }),
        1 => at().prop_map(|at| Damage::Cut { at }),
        1 => (at(), 1..200usize).prop_map(|(at, len)| Damage::Repeat { at, len }),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..50))
            .prop_map(|(at, bytes)| Damage::Insert { at, bytes }),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Flip { at, bit } => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Self::Cut { at } => bytes.truncate(at.index(bytes.len())),
            Self::Repeat { at, len } => {
                let at = at.index(bytes.len());
                let piece = bytes[at..bytes.len().min(at + len)].to_vec();
                bytes.splice(at..at, piece);
            }
            Self::Insert { at, bytes: new } => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, new.iter().copied());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, ..ProptestConfig::default() })]

    /// Whatever becomes of a client's bytes on the way, at whichever flight: an outcome, never a panic, and
    /// never data that the client did not send.
    #[test]
    fn t9_damaged_flights_have_an_outcome(
        damages in prop::collection::vec(damage(), 1..4),
        flight in 0..3usize,
        tls13 in any::<bool>(),
        fragment in prop::option::of(32..200usize),
        step in 1..3000usize,
    ) {
        let certificates = Certificates::new(&["localhost"]);
        run(async {
            let acceptor = certificates.acceptor();
            let (server, mut client) = socket_pair().await;
            let mut server = connection(server);
            let mut config = client_config(&[if tls13 { &TLS13 } else { &TLS12 }]);
            config.max_fragment_size = fragment;
            let mut tls = ClientConnection::new(std::sync::Arc::new(config), "localhost".try_into().unwrap()).unwrap();
            let attack = async move {
                let mut buffer = vec![0; 16 * 1024];
                for n in 0..3 {
                    let mut out = Vec::new();
                    while tls.wants_write() {
                        tls.write_tls(&mut out).unwrap();
                    }
                    if n == flight {
                        damages.iter().for_each(|damage| damage.apply(&mut out));
                    }
                    for piece in out.chunks(step) {
                        if client.write_all(piece).await.is_err() {
                            return;
                        }
                        tokio::task::yield_now().await;
                    }
                    if n == flight {
                        let _ = client.shutdown().await;
                        return;
                    }
                    if tls.is_handshaking() {
                        let n = client.read(&mut buffer).await.unwrap_or(0);
                        let mut input = &buffer[..n];
                        while !input.is_empty() {
                            tls.read_tls(&mut input).unwrap();
                            if tls.process_new_packets().is_err() {
                                return;
                            }
                        }
                    }
                    if !tls.is_handshaking() {
                        std::io::Write::write_all(&mut tls.writer(), b"<presence/>").unwrap();
                    }
                }
            };
            let defence = async {
                let mut data = Vec::new();
                if server.handshake(&acceptor, None, b"").await.is_ok() {
                    server.queue_slice(b"features");
                    let _ = server.flush().await;
                    if let Ok((got, _)) = read_until(&mut server, |_| false).await {
                        data = got;
                    }
                    server.queue_slice(b"more");
                    let _ = server.flush().await;
                }
                tokio::join!(server.close(std::time::Duration::from_millis(20)));
                data
            };
            let (data, ()) = tokio::join!(defence, attack);
            assert!(b"<presence/><presence/>".starts_with(data.as_slice()), "{data:?}");
        });
    }
}

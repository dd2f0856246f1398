//! Data in both directions: order, limits, back-pressure, moving between threads, and the end.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use waystation_transport::{Connection, Flow, ReadOutcome};

use crate::common::*;

/// Bytes that tell where they belong.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

/// Makes the socket take little at once. The receiving side is left alone: tiny windows would make TCP wait for delayed acknowledgements.
pub(crate) fn small_send_buffer(stream: &TcpStream) {
    socket2::SockRef::from(stream).set_send_buffer_size(4096).unwrap();
}

/// Sends everything queued and reads until `expected` bytes arrived, both at once, as a session does.
pub(crate) async fn exchange(server: &mut Connection, expected: usize) -> Vec<u8> {
    let mut got = Vec::new();
    poll_fn(|cx| {
        let flushed = server.poll_flush(cx).map(Result::unwrap).is_ready();
        while got.len() < expected {
            let read = server.poll_read(cx, 10_000, &mut |bytes| {
                got.extend_from_slice(bytes);
                Flow::Continue
            });
            match read {
                Poll::Pending => break,
                Poll::Ready(read) => assert!(matches!(read.unwrap(), ReadOutcome::Data { .. })),
            }
        }
        if flushed && got.len() >= expected { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    got
}

async fn client_exchange(client: impl AsyncRead + AsyncWrite, sent: &[u8], expected: usize) -> Vec<u8> {
    let (mut read, mut write) = tokio::io::split(client);
    let mut got = vec![0; expected];
    let (wrote, read) = tokio::join!(
        async {
            write.write_all(sent).await?;
            write.flush().await
        },
        read.read_exact(&mut got)
    );
    wrote.unwrap();
    read.unwrap();
    got
}

#[test]
fn large_transfers_both_ways_through_tiny_socket_buffers() {
    const SIZE: usize = 2_000_000;
    let certificates = Certificates::new(&["localhost"]);
    let data = pattern(SIZE);
    for version in [None, Some(&TLS13), Some(&TLS12)] {
        run(async {
            let (server, client) = socket_pair().await;
            small_send_buffer(&server);
            small_send_buffer(&client);
            let mut server = connection(server);
            let client: Box<dyn Stream> = match version {
                None => Box::new(client),
                Some(version) => {
                    let acceptor = certificates.acceptor();
                    let (accepted, client) = tokio::join!(
                        server.handshake(&acceptor, None, b""),
                        tls_client(client, client_config(&[version]), "localhost")
                    );
                    accepted.unwrap();
                    Box::new(client.unwrap())
                }
            };
            // Large shared pieces and small copied ones, in turn.
            let shared = Bytes::from(data.clone());
            let mut at = 0;
            for size in [1, 100, 5000, 20_000, 1024, 1025, 100_000].into_iter().cycle() {
                let end = (at + size).min(SIZE);
                if size % 2 == 0 {
                    server.queue(&shared.slice(at..end));
                } else {
                    server.queue_slice(&data[at..end]);
                }
                at = end;
                if at == SIZE {
                    break;
                }
            }
            assert_eq!(server.queued_bytes(), SIZE);
            let (got, answer) =
                tokio::join!(exchange(&mut server, SIZE), client_exchange(client, &data, SIZE));
            assert!(got == data, "the server got something else");
            assert!(answer == data, "the client got something else");
            assert_eq!(server.queued_bytes(), 0);
        });
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

#[derive(Debug, Clone)]
enum Step {
    ServerQueues(usize),
    ClientSends(usize),
    ClientUpdatesKeys,
    ClientCutsARecord(usize),
    ServerFlushes,
    ServerReads { budget: usize, stop: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1..40_000usize).prop_map(Step::ServerQueues),
        (1..200usize).prop_map(Step::ServerQueues),
        (1..40_000usize).prop_map(Step::ClientSends),
        (1..200usize).prop_map(Step::ClientSends),
        Just(Step::ClientUpdatesKeys),
        (1..300usize).prop_map(Step::ClientCutsARecord),
        Just(Step::ServerFlushes),
        (1..50_000usize, any::<bool>()).prop_map(|(budget, stop)| Step::ServerReads { budget, stop }),
    ];
    prop::collection::vec(step, 1..40)
}

/// A rustls client driven by hand, whose ciphertext can be sent in pieces.
struct HandClient {
    stream: TcpStream,
    tls: rustls::ClientConnection,
    unsent: Vec<u8>,
    received: Vec<u8>,
}

impl HandClient {
    /// Sends up to `limit` bytes of what there is to send, as far as the socket takes them; reads what there is.
    fn turn(&mut self, limit: usize) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.unsent).unwrap();
        }
        let end = self.unsent.len().min(limit);
        if let Ok(n) = self.stream.try_write(&self.unsent[..end]) {
            self.unsent.drain(..n);
        }
        let mut buffer = [0; 8192];
        while let Ok(n) = self.stream.try_read(&mut buffer) {
            assert_ne!(n, 0, "the server closed");
            let mut input = &buffer[..n];
            while !input.is_empty() {
                self.tls.read_tls(&mut input).unwrap();
                let state = self.tls.process_new_packets().unwrap();
                let start = self.received.len();
                self.received.resize(start + state.plaintext_bytes_to_read(), 0);
                std::io::Read::read_exact(&mut self.tls.reader(), &mut self.received[start..]).unwrap();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever the order of reading, stopping, writing, key updates and records cut in pieces: both sides
    /// get exactly what was sent.
    #[test]
    fn both_directions_keep_their_bytes(steps in steps(), tls13 in any::<bool>()) {
        let certificates = Certificates::new(&["localhost"]);
        run(async {
            let version = if tls13 { &TLS13 } else { &TLS12 };
            let (mut server, client) = tls_pair(&certificates.acceptor(), client_config(&[version])).await;
            let (stream, tls) = client.into_inner();
            let mut client = HandClient { stream, tls, unsent: Vec::new(), received: Vec::new() };
            client.tls.set_buffer_limit(None);
            let (mut to_client, mut to_server, mut got) = (Vec::new(), Vec::new(), Vec::new());
            let mut updates = 0;
            let finish = [Step::ServerFlushes, Step::ServerReads { budget: 100_000, stop: false }];
            for step in steps.into_iter().chain(finish) {
                match step {
                    Step::ServerQueues(n) => {
                        let data = pattern(n);
                        server.queue_slice(&data);
                        to_client.extend_from_slice(&data);
                    }
                    Step::ClientSends(n) => {
                        let data = pattern(n);
                        std::io::Write::write_all(&mut client.tls.writer(), &data).unwrap();
                        to_server.extend_from_slice(&data);
                        client.turn(usize::MAX);
                        updates = 0;
                    }
                    Step::ClientUpdatesKeys => {
                        if tls13 && updates < 30 {
                            updates += 1;
                            client.tls.refresh_traffic_keys().unwrap();
                        }
                    }
                    Step::ClientCutsARecord(n) => client.turn(n),
                    Step::ServerFlushes => {
                        poll_fn(|cx| Poll::Ready(server.poll_flush(cx).map(Result::unwrap))).await.is_ready();
                    }
                    Step::ServerReads { budget, stop } => {
                        let flow = if stop { Flow::Stop } else { Flow::Continue };
                        let _ = poll_fn(|cx| Poll::Ready(server.poll_read(cx, budget, &mut |bytes| {
                            got.extend_from_slice(bytes);
                            flow
                        }).map(Result::unwrap))).await;
                    }
                }
                tokio::task::yield_now().await;
            }
            while got.len() < to_server.len()
                || client.received.len() < to_client.len()
                || server.queued_bytes() > 0
            {
                client.turn(usize::MAX);
                poll_fn(|cx| {
                    let _ = server.poll_flush(cx).map(Result::unwrap);
                    let _ = server.poll_read(cx, 16_384, &mut |bytes| {
                        got.extend_from_slice(bytes);
                        Flow::Continue
                    }).map(Result::unwrap);
                    Poll::Ready(())
                }).await;
                tokio::task::yield_now().await;
            }
            assert!(got == to_server, "the server got something else");
            assert!(client.received == to_client, "the client got something else");
        });
    }
}

#[test]
fn a_read_keeps_to_its_budget_and_says_that_there_is_more() {
    let certificates = Certificates::new(&["localhost"]);
    for secure in [false, true] {
        run(async {
            let data = pattern(100_000);
            let (mut server, _client) = if secure {
                let (server, mut client) = tls_pair(&certificates.acceptor(), any_version()).await;
                client.write_all(&data).await.unwrap();
                client.flush().await.unwrap();
                (server, Box::new(client) as Box<dyn AsyncWrite + Unpin>)
            } else {
                let (server, mut client) = socket_pair().await;
                client.write_all(&data).await.unwrap();
                (connection(server), Box::new(client) as Box<dyn AsyncWrite + Unpin>)
            };
            let mut got = Vec::new();
            let mut said_more = 0;
            while got.len() < data.len() {
                let before = got.len();
                let read = server
                    .read_some(3000, &mut |bytes| {
                        got.extend_from_slice(bytes);
                        Flow::Continue
                    })
                    .await
                    .unwrap();
                let ReadOutcome::Data { bytes, wire, more } = read else { panic!("{read:?}") };
                assert_eq!(bytes, got.len() - before);
                assert!(wire <= 3000, "{wire}");
                said_more += usize::from(more);
            }
            assert!(got == data);
            assert!(said_more >= 30, "{said_more}");
        });
    }
}

#[test]
fn a_sink_that_stops_gets_the_rest_later_and_writing_goes_on_meanwhile() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let (mut server, mut client) =
                tls_pair(&certificates.acceptor(), client_config(&[version])).await;
            for n in 0..10u8 {
                client.write_all(&[n; 50]).await.unwrap();
                client.flush().await.unwrap();
            }
            for n in 0..10u8 {
                let mut got = Vec::new();
                let read = server
                    .read_some(100_000, &mut |bytes| {
                        got.extend_from_slice(bytes);
                        Flow::Stop
                    })
                    .await
                    .unwrap();
                assert!(matches!(read, ReadOutcome::Data { bytes: 50, more: true, .. }), "{read:?}");
                assert_eq!(got, [n; 50]);
                server.queue_slice(&[n]);
                server.flush().await.unwrap();
                assert_eq!(client.read_u8().await.unwrap(), n);
            }
        });
    }
}

#[test]
fn a_blocked_socket_gets_at_most_one_record_encrypted_ahead() {
    const SIZE: usize = 16_000_000;
    let certificates = Certificates::new(&["localhost"]);
    run(async {
        let (server, client) = socket_pair().await;
        small_send_buffer(&server);
        small_send_buffer(&client);
        let mut server = connection(server);
        let acceptor = certificates.acceptor();
        let (accepted, client) = tokio::join!(
            server.handshake(&acceptor, None, b""),
            tls_client(client, any_version(), "localhost")
        );
        accepted.unwrap();
        let _client = client.unwrap();
        server.queue(&Bytes::from(vec![b'x'; SIZE]));
        assert!(pin!(server.flush()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        // What waits as ciphertext is counted too: it can be larger than its plaintext only by its overhead.
        let waiting = server.queued_bytes();
        assert!(waiting < SIZE && waiting > SIZE / 4, "{waiting}");
    });
}

#[test]
fn a_flush_lets_others_run() {
    run(async {
        let (server, client) = socket_pair().await;
        let mut server = connection(server);
        socket2::SockRef::from(&client).set_recv_buffer_size(4_000_000).unwrap();
        server.queue(&Bytes::from(vec![0; 2_000_000]));
        let mut longest = 0;
        let mut drain = vec![0; 2_000_000];
        loop {
            let before = server.queued_bytes();
            let done = poll_fn(|cx| Poll::Ready(server.poll_flush(cx).is_ready())).await;
            longest = longest.max(before - server.queued_bytes());
            if done {
                break;
            }
            let _ = client.try_read(&mut drain);
            tokio::task::yield_now().await;
        }
        assert!(longest <= 256 * 1024, "{longest} bytes in one turn");
    });
}

#[test]
fn a_connection_moves_to_another_thread_with_all_it_holds() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [&TLS13, &TLS12] {
        run(async {
            let (mut server, client) = tls_pair(&certificates.acceptor(), client_config(&[version])).await;
            let exporter = *server.tls_info().unwrap().tls_exporter().unwrap();
            let (mut stream, mut tls) = client.into_inner();
            std::io::Write::write_all(&mut tls.writer(), b"split in two").unwrap();
            let mut record = Vec::new();
            tls.write_tls(&mut record).unwrap();
            let (first, second) = record.split_at(10);
            stream.write_all(first).await.unwrap();
            let read = server.read_some(1000, &mut |_| panic!("no whole record")).await.unwrap();
            assert_eq!(read, ReadOutcome::Data { bytes: 0, wire: 10, more: false });
            server.queue_slice(b"queued before");
            let detached = server.detach().unwrap();
            let moved = std::thread::spawn(move || {
                run(async move {
                    let mut server = detached.attach().unwrap();
                    assert_eq!(server.tls_info().unwrap().tls_exporter(), Some(&exporter));
                    server.flush().await.unwrap();
                    read_until(&mut server, |got| got.len() >= 12).await.unwrap().0
                })
            });
            stream.write_all(second).await.unwrap();
            let mut answer = Vec::new();
            while answer.len() < 13 {
                let mut buffer = [0; 1024];
                let n = stream.read(&mut buffer).await.unwrap();
                let mut input = &buffer[..n];
                while !input.is_empty() {
                    tls.read_tls(&mut input).unwrap();
                    let waiting = tls.process_new_packets().unwrap().plaintext_bytes_to_read();
                    let start = answer.len();
                    answer.resize(start + waiting, 0);
                    std::io::Read::read_exact(&mut tls.reader(), &mut answer[start..]).unwrap();
                }
            }
            assert_eq!(answer, b"queued before");
            assert_eq!(moved.join().unwrap(), b"split in two");
        });
    }
}

#[test]
fn closing_delivers_the_last_words_although_the_peer_is_still_sending() {
    let certificates = Certificates::new(&["localhost"]);
    for version in [None, Some(&TLS13), Some(&TLS12)] {
        run(async {
            let last_words = pattern(100_000);
            let chatter = pattern(50_000);
            let got = match version {
                None => {
                    let (server, mut client) = socket_pair().await;
                    let mut server = connection(server);
                    client.write_all(&chatter).await.unwrap();
                    server.queue_slice(&last_words);
                    let mut got = Vec::new();
                    let client = async move {
                        client.read_to_end(&mut got).await.unwrap();
                        got
                    };
                    tokio::join!(server.close(PATIENCE), client).1
                }
                Some(version) => {
                    let (mut server, mut client) =
                        tls_pair(&certificates.acceptor(), client_config(&[version])).await;
                    client.write_all(&chatter).await.unwrap();
                    client.flush().await.unwrap();
                    server.queue_slice(&last_words);
                    let mut got = Vec::new();
                    let client = async move {
                        // Fails without close_notify.
                        client.read_to_end(&mut got).await.unwrap();
                        got
                    };
                    tokio::join!(server.close(PATIENCE), client).1
                }
            };
            assert!(got == last_words, "{} bytes", got.len());
        });
    }
}

#[test]
fn closing_ends_with_the_deadline_when_the_peer_does_nothing() {
    run(async {
        let (server, _client) = socket_pair().await;
        let mut server = connection(server);
        server.queue(&Bytes::from(vec![0; 50_000_000]));
        let began = std::time::Instant::now();
        server.close(std::time::Duration::from_millis(100)).await;
        assert!(began.elapsed().as_millis() >= 100);
    });
}

#[test]
fn nothing_is_queued_once_closing_began() {
    run(async {
        let (server, mut client) = socket_pair().await;
        let mut server = connection(server);
        server.queue_slice(b"bye");
        let _ = poll_fn(|cx| Poll::Ready(server.poll_shutdown(cx))).await;
        server.queue_slice(b"too late");
        assert_eq!(server.queued_bytes(), 0);
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"bye");
    });
}

#[test]
fn a_reset_is_an_error_after_the_data_before_it() {
    run(async {
        let (server, mut client) = socket_pair().await;
        let mut server = connection(server);
        client.write_all(b"last").await.unwrap();
        let (got, _) = read_until(&mut server, |got| got.len() >= 4).await.unwrap();
        assert_eq!(got, b"last");
        socket2::SockRef::from(&client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        assert!(server.read_some(100, &mut |_| Flow::Continue).await.is_err());
        server.queue_slice(b"to nobody");
        assert!(server.flush().await.is_err());
        assert_eq!(server.queued_bytes(), 0, "what can never be sent is not kept");
    });
}

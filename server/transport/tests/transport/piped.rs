//! In-process connections: they behave as sockets do, within their bounds.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};
use std::thread;

use bytes::Bytes;
use proptest::prelude::*;
use waystation_transport::{
    Connection, DetachedConnection, Flow, PipeClosed, PipeEnd, ReadOutcome, TransportError, pipe,
};

use crate::common::*;

const PEER: ([u8; 4], u16) = ([192, 0, 2, 1], 4711);

fn piped(capacity: usize) -> (Connection, PipeEnd) {
    let (detached, end) = pipe(PEER.into(), true, capacity);
    (detached.attach().unwrap(), end)
}

async fn read_once(server: &mut Connection, budget: usize) -> (Vec<u8>, ReadOutcome) {
    let mut got = Vec::new();
    let outcome = server
        .read_some(budget, &mut |bytes| {
            got.extend_from_slice(bytes);
            Flow::Continue
        })
        .await;
    (got, outcome.unwrap())
}

async fn read_all(server: &mut Connection) -> (Vec<u8>, ReadOutcome) {
    let mut got = Vec::new();
    loop {
        let (bytes, outcome) = read_once(server, 10_000).await;
        got.extend(bytes);
        if !matches!(outcome, ReadOutcome::Data { .. }) {
            return (got, outcome);
        }
    }
}

async fn read_end(end: &mut PipeEnd) -> Vec<u8> {
    let mut got = Vec::new();
    while end.read(&mut got).await.is_some() {}
    got
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

#[test]
fn a_pipe_says_who_is_there_and_has_no_tls() {
    let certificates = Certificates::new(&["localhost"]);
    for secure in [true, false] {
        let (detached, _end) = pipe(PEER.into(), secure, 100);
        assert_eq!(detached.peer(), PEER.into());
        let mut server = detached.attach().unwrap();
        assert_eq!(server.peer(), PEER.into());
        assert_eq!((server.is_encrypted(), server.is_tls(), server.can_start_tls()), (secure, false, false));
        assert!(server.tls_info().is_none() && server.local_addr().is_err());
        let refused = server.start_tls(&certificates.acceptor(), None, b"");
        assert!(matches!(refused, Err(TransportError::NoSocket)), "{refused:?}");
    }
}

#[test]
fn both_directions_are_bounded_and_waiting_ends_with_room() {
    const CAPACITY: usize = 1000;
    run(async {
        let (mut server, mut end) = piped(CAPACITY);
        let cx = &mut Context::from_waker(Waker::noop());
        let data = pattern(2500);

        assert_eq!(end.poll_write(cx, &data), Poll::Ready(Ok(CAPACITY)));
        assert_eq!(end.poll_write(cx, &data[CAPACITY..]), Poll::Pending);
        assert_eq!(end.poll_write(cx, b""), Poll::Ready(Ok(0)), "nothing needs no room");
        let (got, outcome) = read_once(&mut server, 300).await;
        assert_eq!(
            (&got[..], outcome),
            (&data[..300], ReadOutcome::Data { bytes: 300, wire: 300, more: true })
        );
        assert_eq!(end.poll_write(cx, &data[CAPACITY..]), Poll::Ready(Ok(300)));
        let (got, outcome) = read_once(&mut server, 10_000).await;
        assert_eq!(got, &data[300..1300]);
        assert_eq!(outcome, ReadOutcome::Data { bytes: 1000, wire: 1000, more: false });

        // In one piece, and in many that are written together.
        for pieces in [&[2500][..], &[1100, 1400]] {
            let mut rest = &data[..];
            for piece in pieces {
                server.queue(&Bytes::copy_from_slice(&rest[..*piece]));
                rest = &rest[*piece..];
            }
            let mut got = Vec::new();
            for left in [1500, 500, 0] {
                assert_eq!(server.poll_flush(cx).is_ready(), left == 0);
                assert_eq!(server.queued_bytes(), left);
                assert_eq!(end.poll_read(cx, &mut got), Poll::Ready(Some(())));
            }
            assert!(got == data);
            assert_eq!(end.poll_read(cx, &mut got), Poll::Pending);
        }
    });
}

/// Sends `data` through and back, with `turns` between two threads when the pipe is small.
fn echo_on_another_thread(detached: DetachedConnection, len: usize) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        run(async move {
            let mut server = detached.attach().unwrap();
            let mut echoed = 0;
            while echoed < len {
                let (got, outcome) = read_once(&mut server, 4096).await;
                assert!(matches!(outcome, ReadOutcome::Data { .. }));
                echoed += got.len();
                server.queue_slice(&got);
                server.flush().await.unwrap();
            }
            assert_eq!(read_all(&mut server).await, (Vec::new(), ReadOutcome::Closed));
        });
    })
}

#[test]
fn whoever_waits_is_woken_by_the_other_thread() {
    for capacity in [1, 7, 4096, 1 << 20] {
        let len = if capacity == 1 { 20_000 } else { 1_000_000 };
        let data = pattern(len);
        let (detached, mut end) = pipe(PEER.into(), true, capacity);
        let server = echo_on_another_thread(detached, len);
        let got = run(async move {
            let mut got = Vec::new();
            let mut sent = 0;
            poll_fn(|cx| {
                while sent < data.len() {
                    match end.poll_write(cx, &data[sent..]) {
                        Poll::Ready(written) => sent += written.unwrap(),
                        Poll::Pending => break,
                    }
                }
                while got.len() < data.len() {
                    match end.poll_read(cx, &mut got) {
                        Poll::Ready(read) => read.unwrap(),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                Poll::Ready(())
            })
            .await;
            end.close();
            got
        });
        server.join().unwrap();
        assert!(got == pattern(len), "capacity {capacity}");
    }
}

#[test]
fn an_orderly_end_and_a_loss_differ_for_the_server_and_both_come_after_the_data() {
    for (orderly, outcome) in [(true, ReadOutcome::Closed), (false, ReadOutcome::Truncated)] {
        run(async {
            let (mut server, mut end) = piped(1000);
            end.write_all(b"last words").await.unwrap();
            server.queue_slice(b"nobody hears this");
            server.flush().await.unwrap();
            if orderly {
                end.close()
            } else {
                drop(end)
            }
            for found in [&b"last words"[..], b""] {
                assert_eq!(read_all(&mut server).await, (found.to_vec(), outcome), "it keeps saying so");
            }
            server.queue_slice(b"nor this");
            assert!(matches!(server.flush().await, Err(TransportError::Io(_))));
            assert_eq!(server.queued_bytes(), 0, "what can never be sent is not kept");
            // The end of a connection whose peer is gone does not wait for anything.
            server.close(PATIENCE * 2).await;
        });
    }
}

#[test]
fn an_end_wakes_the_server_that_reads_or_waits_for_room() {
    for waits_for_room in [false, true] {
        let (detached, end) = pipe(PEER.into(), true, 10);
        let server = thread::spawn(move || {
            run(async move {
                let mut server = detached.attach().unwrap();
                if waits_for_room {
                    server.queue_slice(&[0; 100]);
                    return server.flush().await.is_err();
                }
                read_all(&mut server).await == (Vec::new(), ReadOutcome::Truncated)
            })
        });
        // Whether it waits already or not, it must find out.
        thread::yield_now();
        drop(end);
        assert!(server.join().unwrap());
    }
}

#[test]
fn the_client_gets_the_last_words_and_knows_a_shutdown_from_a_loss() {
    run(async {
        let (mut server, mut end) = piped(100);
        server.queue_slice(&pattern(5000));
        let client = async {
            let got = read_end(&mut end).await;
            let lost = end.is_lost();
            assert_eq!(end.read(&mut Vec::new()).await, None, "it keeps saying so");
            // The server still listens, as on a socket that is half closed.
            let _ = end.write_all(&[0; 50]).await;
            end.close();
            (got, lost)
        };
        let (got, lost) = tokio::join!(client, server.close(PATIENCE * 2)).0;
        assert!(got == pattern(5000) && !lost);

        let (mut server, mut end) = piped(100);
        server.queue_slice(b"last");
        server.flush().await.unwrap();
        drop(server);
        assert_eq!((read_end(&mut end).await, end.is_lost()), (b"last".to_vec(), true));
        assert_eq!(end.write_all(b"x").await, Err(PipeClosed));
    });
}

#[test]
fn a_server_that_is_dropped_wakes_the_client_in_either_wait() {
    for writes in [false, true] {
        let (detached, mut end) = pipe(PEER.into(), true, 10);
        let client = thread::spawn(move || {
            run(async move {
                if writes {
                    end.write_all(&[0; 100]).await == Err(PipeClosed)
                } else {
                    end.read(&mut Vec::new()).await.is_none() && end.is_lost()
                }
            })
        });
        thread::yield_now();
        drop(detached);
        assert!(client.join().unwrap());
    }
}

#[test]
fn a_pipe_moves_to_another_thread_with_all_that_is_under_way() {
    run(async {
        let (mut server, mut end) = piped(1000);
        end.write_all(b"first ").await.unwrap();
        // A waker of this thread is registered, and must not be the one that counts.
        let (got, _) = read_once(&mut server, 2).await;
        assert_eq!(got, b"fi");
        server.queue_slice(b"queued before");
        let detached = server.detach().unwrap();
        let moved = thread::spawn(move || {
            run(async move {
                let mut server = detached.attach().unwrap();
                server.flush().await.unwrap();
                read_all(&mut server).await
            })
        });
        let mut got = Vec::new();
        while got.len() < 13 {
            end.read(&mut got).await.unwrap();
        }
        assert_eq!(got, b"queued before");
        end.write_all(b"second").await.unwrap();
        end.close();
        assert_eq!(moved.join().unwrap(), (b"rst second".to_vec(), ReadOutcome::Closed));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the steps, each side gets what the other sent, in order, and no more waits than may.
    #[test]
    fn any_interleaving_keeps_order_and_bounds(
        capacity in 1usize..50,
        steps in prop::collection::vec((0u8..4, 0usize..60), 1..200),
    ) {
        run(async move {
            let (mut server, mut end) = piped(capacity);
            let cx = &mut Context::from_waker(Waker::noop());
            let data = pattern(20_000);
            let (mut sent, mut arrived) = (0, Vec::new());
            let (mut queued, mut answered) = (0, Vec::new());
            for (step, n) in steps {
                match step {
                    0 => if let Poll::Ready(written) = end.poll_write(cx, &data[sent..sent + n]) {
                        sent += written.unwrap();
                    },
                    1 => {
                        let _ = server.poll_read(cx, n.max(1), &mut |bytes| {
                            arrived.extend_from_slice(bytes);
                            Flow::Continue
                        });
                    }
                    2 => {
                        server.queue_slice(&data[queued..queued + n]);
                        queued += n;
                        let _ = server.poll_flush(cx);
                    }
                    _ => {
                        let before = answered.len();
                        let _ = end.poll_read(cx, &mut answered);
                        assert!(answered.len() - before <= capacity);
                    }
                }
                assert!(sent - arrived.len() <= capacity);
                assert!(queued - answered.len() <= capacity + server.queued_bytes());
                assert!(data.starts_with(&arrived) && data.starts_with(&answered));
            }
        });
    }
}

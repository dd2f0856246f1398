//! Clients that take their time: SECURITY M15 (slowloris), X19, M7 (a body of one byte a second).

use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use waystation_transport::AddressLimits;

use crate::common::*;

/// Longer than what [`hasty`] allows, with room for a machine that stalls.
const FAR: Duration = Duration::from_secs(30);

#[actix_rt::test]
async fn x19_a_connection_that_sends_nothing_is_closed() {
    let server = hasty(|deadlines, short| deadlines.head = short).start();
    let began = Instant::now();
    assert_eq!(server.exchange("").await, "");
    assert!(began.elapsed() >= Duration::from_millis(400) && began.elapsed() < FAR);
}

#[actix_rt::test]
async fn m15_a_head_that_never_ends_is_cut_off() {
    let server = hasty(|deadlines, short| deadlines.head = short).start();
    let mut stream = server.connect().await;
    let (mut read, mut write) = stream.split();
    let trickle = async {
        for byte in "GET /info HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'x'))
        {
            if write.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let began = Instant::now();
    tokio::select! {
        response = until_closed(&mut read) => assert!(!response.contains("200"), "{response}"),
        () = trickle => {}
    }
    assert!(began.elapsed() < FAR);
}

#[actix_rt::test]
async fn m15_a_later_head_has_a_deadline_of_its_own() {
    let server = hasty(|deadlines, short| deadlines.head = short).start();
    let mut stream = server.connect().await;
    assert_eq!(status(&ask(&mut stream, "/info").await), 200);
    stream.write_all(b"GET /in").await.unwrap();
    let began = Instant::now();
    // Idle connections may stay for more than a minute; this one is not idle.
    assert_eq!(until_closed(&mut stream).await, "");
    assert!(began.elapsed() < FAR);
}

#[actix_rt::test]
async fn an_idle_connection_is_closed_and_may_be_used_until_then() {
    let server = hasty(|deadlines, short| deadlines.idle = short * 2).start();
    let mut stream = server.connect().await;
    for _ in 0..5 {
        assert_eq!(status(&ask(&mut stream, "/info").await), 200);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    let began = Instant::now();
    assert_eq!(until_closed(&mut stream).await, "");
    assert!(began.elapsed() < FAR);
}

#[actix_rt::test]
async fn a_request_that_waits_for_its_answer_is_not_idle() {
    let server = hasty(|deadlines, short| {
        deadlines.idle = short;
        deadlines.head = short;
        deadlines.body = short;
    })
    .start();
    let mut stream = server.connect().await;
    for _ in 0..2 {
        let response = ask(&mut stream, "/wait").await;
        assert_eq!(body(&response), "waited");
    }
}

async fn upgrade(stream: &mut TcpStream) {
    stream
        .write_all(b"GET /raw HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let mut head = vec![];
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    assert_eq!(status(std::str::from_utf8(&head).unwrap()), 101);
}

#[actix_rt::test]
async fn an_upgraded_connection_that_takes_nothing_is_given_up_in_the_end() {
    let server = hasty(|deadlines, short| deadlines.owned_write = short).start();
    let mut stream = server.connect().await;
    upgrade(&mut stream).await;
    // All of it comes back, and is not read.
    let flood = async { while stream.write_all(&[b'x'; 64 * 1024]).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, flood).await.unwrap();
}

#[actix_rt::test]
async fn an_upgraded_connection_has_no_deadline() {
    let server = hasty(|deadlines, short| {
        deadlines.idle = short;
        deadlines.head = short;
        deadlines.body = short;
        deadlines.grace = short;
    })
    .start();
    let mut stream = server.connect().await;
    upgrade(&mut stream).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    stream.write_all(b"still here").await.unwrap();
    let mut back = vec![];
    while !String::from_utf8_lossy(&back).contains("still here") {
        let byte = tokio::time::timeout(DEADLINE, stream.read_u8()).await.unwrap();
        back.push(byte.unwrap());
    }
}

/// A client that goes on sending is disconnected, with an error if with any answer.
async fn refused(read: &mut (impl AsyncRead + Unpin), sending: impl Future<Output = ()>) {
    let began = Instant::now();
    tokio::select! {
        response = until_closed(read) => assert!(status(&response) != 200, "{response}"),
        () = sending => {}
    }
    assert!(began.elapsed() < FAR);
}

#[actix_rt::test]
async fn m7_a_body_of_one_byte_a_second_is_cut_off() {
    let server = hasty(|deadlines, short| {
        deadlines.grace = short;
        deadlines.rate = 1000;
    })
    .start();
    let mut stream = server.connect().await;
    stream.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    let (mut read, mut write) = stream.split();
    let trickle = async {
        while write.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    refused(&mut read, trickle).await;
}

#[actix_rt::test]
async fn m7_a_body_in_chunks_without_end_is_cut_off() {
    let server = hasty(|deadlines, short| {
        deadlines.body = short;
        deadlines.head = short;
    })
    .start();
    let mut stream = server.connect().await;
    let head = b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let (mut read, mut write) = stream.split();
    let trickle = async {
        while write.write_all(b"64\r\n".as_slice()).await.is_ok()
            && write.write_all(&[b'x'; 100]).await.is_ok()
            && write.write_all(b"\r\n").await.is_ok()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    refused(&mut read, trickle).await;
}

#[actix_rt::test]
async fn m15_an_unwanted_body_in_chunks_holds_nothing() {
    let server = hasty(|deadlines, short| {
        deadlines.idle = short;
        deadlines.head = short;
        deadlines.linger = short;
    })
    .start();
    let mut stream = server.connect().await;
    let head = b"GET /info HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe";
    stream.write_all(head).await.unwrap();
    let began = Instant::now();
    assert_eq!(status(&until_closed(&mut stream).await), 200);
    assert!(began.elapsed() < FAR);
}

#[actix_rt::test]
async fn m15_a_client_that_takes_no_answer_is_disconnected() {
    let server = hasty(|deadlines, short| deadlines.write = short).start();
    let stream = server.connect().await;
    let (_read, mut write) = stream.into_split();
    let body = vec![b'x'; 60_000];
    let request =
        [b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n".as_slice(), &body].concat();
    // The server reads no further while it cannot answer; then it closes.
    let flood = async { while write.write_all(&request).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, flood).await.expect("the connection was not closed");
}

#[actix_rt::test]
async fn m7_m15_hoarded_connections_are_limited_by_address() {
    let limits = AddressLimits { connections: 10, rate: 0.0, burst: 0, tracked: 10 };
    let server = Wanted { limits, ..Wanted::default() }.start();
    let mut hoarded = Vec::new();
    for _ in 0..10 {
        let mut stream = server.connect().await;
        assert_eq!(status(&ask(&mut stream, "/info").await), 200);
        hoarded.push(stream);
    }
    assert_eq!(server.exchange("").await, "");
    hoarded.pop();
    // The place is free once the server has seen the end.
    let end = Instant::now() + DEADLINE;
    while status(&server.request("GET /info", &[]).await) != 200 {
        assert!(Instant::now() < end, "the place was not given back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

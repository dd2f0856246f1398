//! The end of the server.

use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::common::*;

#[actix_rt::test]
async fn idle_connections_end_at_once_and_answers_are_still_given() {
    let server = Wanted::default().start();
    let mut idle = server.connect().await;
    assert_eq!(status(&ask(&mut idle, "/info").await), 200);
    let mut half = server.connect().await;
    half.write_all(b"GET /in").await.unwrap();
    let mut waiting = server.connect().await;
    assert_eq!(status(&ask(&mut waiting, "/info").await), 200);
    waiting.write_all(b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    // So that it has arrived.
    tokio::time::sleep(Duration::from_millis(300)).await;

    let began = Instant::now();
    let (left, answer) = tokio::join!(server.drain.drain(DEADLINE), until_closed(&mut waiting));
    assert_eq!(left, 0);
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(body(&answer), "waited");
    assert_eq!(header(&answer, "connection"), Some("close"));
    assert_eq!(until_closed(&mut idle).await, "");
    assert_eq!(until_closed(&mut half).await, "");
    assert!(TcpStream::connect(server.address).await.is_err(), "still listening");
}

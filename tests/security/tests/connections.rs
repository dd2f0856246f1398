//! SECURITY.md row X19: connections that come and go, that drip, and that are too many.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use waystation_harness::stream::stream_header;
use waystation_harness::{Config, RawClient, tls};
use waystation_security::{HEADER, World, auth, sasl};

/// Connections at once, and how often.
const BATCH: usize = 40;
const BATCHES: usize = 500;
/// The first one is the warm-up.
const ROUNDS: usize = 5;
/// What a connection may leave behind, in bytes.
const SLOPE: u64 = 64;

/// One connection of each way to go without having logged in.
async fn come_and_go(world: &World, hello: &[u8], n: usize) {
    let at = world.server.endpoint();
    match n % 8 {
        // Nothing is said; an orderly end or a reset.
        0 => drop(world.connect().await),
        1 => world.connect().await.reset().unwrap(),
        // In the middle of the header.
        2 => {
            let mut raw = world.connect().await;
            raw.send(&HEADER[..40]).await.unwrap();
            raw.reset().unwrap();
        }
        // A stream that is opened and left, or closed.
        3 => world.open().await.reset().unwrap(),
        4 => world.open().await.close().await.unwrap(),
        // In the middle of an exchange.
        5 => {
            let mut raw = world.open().await;
            let first = auth("SCRAM-SHA-1", format!("n,,n=nobody{n},r=abcdefgh"));
            assert_eq!(sasl(&mut raw, &first).await, "challenge");
            raw.reset().unwrap();
        }
        // What is no XML.
        6 => {
            let mut raw = world.connect().await;
            raw.send("GET / HTTP/1.1\r\n\r\n").await.unwrap();
            raw.read_until("</stream:stream>").await.unwrap();
            raw.reset().unwrap();
        }
        // In the middle of a handshake.
        _ => {
            let mut raw = RawClient::connect(at.c2s_tls).await.unwrap();
            raw.send(&hello[..hello.len() / 2]).await.unwrap();
            raw.reset().unwrap();
        }
    }
}

#[tokio::test]
async fn x19_connections_that_come_and_go_leave_nothing_behind() {
    // The count of an address is kept: places that are not given back would soon be missed.
    let config = Config::default().with("limits.connection_rate", "0");
    let config = config.with("limits.connections_per_address", "500");
    // An exchange that is broken off counts as a failed login.
    let world = World::alone(config.with("limits.login_failures_per_address", "1000000"));
    let hello = tls::client_hello(tls::client_config(&[b"xmpp-client"]), "localhost").unwrap();
    let before = world.server.sample().unwrap();
    let mut rss = Vec::new();
    let began = Instant::now();
    for _ in 0..ROUNDS {
        for batch in 0..BATCHES {
            let mut open = Vec::new();
            for _ in 0..BATCH / 2 {
                open.push(world.connect().await);
            }
            for n in 0..BATCH / 2 {
                come_and_go(&world, &hello, batch * BATCH + n).await;
            }
            // By resets: an orderly end would occupy the client's port for a while.
            open.into_iter().for_each(|raw| raw.reset().unwrap());
        }
        let end = Instant::now() + Duration::from_secs(5);
        let after = loop {
            let now = world.server.sample().unwrap();
            if now.fds <= before.fds {
                break now;
            }
            assert!(Instant::now() < end, "descriptors are left: {before:?}, {now:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        rss.push(after.rss);
    }
    let count = ((ROUNDS - 1) * BATCHES * BATCH) as u64;
    let grown = rss[ROUNDS - 1].saturating_sub(rss[0]);
    println!("{count} connections, {grown} bytes, {:?}; after each round {rss:?}", began.elapsed());
    assert!(grown < SLOPE * count, "{grown} bytes for {count} connections: {rss:?}");
    world.end();
}

/// How a client drips: what it sends at once, what follows byte by byte, and where.
struct Drip {
    name: &'static str,
    first: String,
    then: Vec<u8>,
    direct_tls: bool,
}

fn drips() -> Vec<Drip> {
    let hello = tls::client_hello(tls::client_config(&[b"xmpp-client"]), "localhost").unwrap();
    let drip = |name, first: &str, then: &[u8], direct_tls| Drip {
        name,
        first: first.to_owned(),
        then: then.to_vec(),
        direct_tls,
    };
    let header = stream_header("localhost");
    vec![
        drip("the header", "", HEADER.as_bytes(), false),
        drip("white space before the header", "", &[b' '; 200], false),
        drip("white space on the stream", &header, &[b' '; 200], false),
        drip("an element without an end", &format!("{header}<auth mechanism='"), &[b'x'; 200], false),
        drip("base64 without an end", &format!("{header}{}", auth_start()), &[b'A'; 200], false),
        drip("a handshake", "", &hello, true),
    ]
}

fn auth_start() -> String {
    auth("PLAIN", "").replace("</auth>", "")
}

/// Sends a byte now and then until the connection ends; what came, and how long it took.
async fn drip(raw: &mut RawClient, then: &[u8], since: Instant) -> (String, Duration) {
    let (mut bytes, mut received) = (then.iter().cycle(), Vec::new());
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let wire = raw.wire();
    loop {
        tokio::select! {
            _ = tick.tick() => {
                // The server may have closed it a moment ago; then that is read next.
                let _ = wire.write_tcp(&[*bytes.next().unwrap()]).await;
            }
            read = wire.read(&mut received) => {
                if matches!(read, Ok(0) | Err(_)) {
                    return (String::from_utf8_lossy(&received).into_owned(), since.elapsed());
                }
            }
        }
        assert!(since.elapsed() < Duration::from_secs(20), "it never ends");
    }
}

#[tokio::test]
async fn x19_connections_that_drip_end_at_the_deadline() {
    const EACH: usize = 50;
    const DEADLINE: Duration = Duration::from_secs(3);
    // Nothing else would end them before `drip` gives up; the machine may be busy.
    const LATE: Duration = Duration::from_secs(10);
    let config = Config::default().with("limits.unauthenticated_timeout", "'3s'");
    let config = config.with("limits.connection_rate", "0").with("limits.connections_per_address", "0");
    let world = World::alone(config);
    let mut tasks = Vec::new();
    for Drip { name, first, then, direct_tls } in drips() {
        for _ in 0..EACH {
            let at = world.server.endpoint();
            let at = if direct_tls { at.c2s_tls } else { at.c2s };
            let since = Instant::now();
            let mut raw = RawClient::connect(at).await.unwrap();
            let (first, then) = (first.clone(), then.clone());
            tasks.push(tokio::spawn(async move {
                raw.send(first).await.unwrap();
                let (got, time) = drip(&mut raw, &then, since).await;
                (name, direct_tls, got, time)
            }));
        }
    }
    // Others are served while all of these drip.
    let mut romeo = world.login("romeo", "r").await;
    assert!(romeo.drain().await.unwrap().is_empty());
    for task in tasks {
        let (name, direct_tls, got, time) = task.await.unwrap();
        assert!(time >= DEADLINE && time < DEADLINE + LATE, "{name}: closed after {time:?}");
        // Before TLS is up there is nothing that could be said in XML.
        assert!(direct_tls || got.contains("<connection-timeout "), "{name}: {got}");
        assert!(direct_tls || got.trim_end().ends_with("</stream:stream>"), "{name}: {got}");
    }
    assert!(romeo.drain().await.unwrap().is_empty(), "who is logged in has no such deadline");
    romeo.close().await.unwrap();
    world.end();
}

/// A connection that comes from another address of this machine, with an open stream.
async fn from_elsewhere(to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut tcp = socket.connect(to).await.unwrap();
    tcp.write_all(HEADER.as_bytes()).await.unwrap();
    let mut received = Vec::new();
    while !String::from_utf8_lossy(&received).contains("</stream:features>") {
        assert!(tcp.read_buf(&mut received).await.unwrap() > 0, "refused");
    }
    tcp
}

#[tokio::test]
async fn x19_an_address_has_so_many_connections_and_no_more() {
    const CAP: usize = 40;
    let config = Config::default().with("limits.connection_rate", "0");
    let world = World::with(config.with("limits.connections_per_address", "40"));
    let at = world.server.endpoint();
    // The witness has one of them. Silent ones count like others, and both ports count together.
    let mut held = Vec::new();
    for n in 0..CAP - 2 {
        let port = if n % 2 == 0 { at.c2s } else { at.c2s_tls };
        held.push(RawClient::connect(port).await.unwrap());
    }
    let mut last = world.open().await;
    for port in [at.c2s, at.c2s_tls].repeat(50) {
        let mut refused = RawClient::connect(port).await.unwrap();
        assert_eq!(refused.read_to_end().await.unwrap(), "", "one more than the cap");
    }
    // Who is in is served, and so is another address.
    let login = auth("PLAIN", "").replace("PLAIN", "NONSENSE");
    assert_eq!(sasl(&mut last, &login).await, "invalid-mechanism");
    let other = from_elsewhere(at.c2s).await;
    // A place that becomes free can be taken.
    drop((last, other));
    let end = Instant::now() + Duration::from_secs(5);
    while world.connect().await.open("localhost").await.is_err() {
        assert!(Instant::now() < end, "the place was not given back");
    }
    drop(held);
    world.end();
}

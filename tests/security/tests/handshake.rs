//! SECURITY.md rows T4, T5 and T9: what can be done with TLS itself.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use waystation_harness::process::cpu_time;
use waystation_harness::{Client, Config, Login, RawClient, Security, tls};
use waystation_security::openssl::s_client;
use waystation_security::{HEADER, World};

/// The alerts of RFC 8446 6.
const PROTOCOL_VERSION: u8 = 70;
const HANDSHAKE_FAILURE: u8 = 40;

/// A ClientHello that offers one version and no extensions but the usual ones of its time.
fn hello(version: [u8; 2], ciphers: &[u16]) -> Vec<u8> {
    let mut body = version.to_vec();
    body.extend_from_slice(&[7; 32]);
    body.push(0);
    body.extend_from_slice(&(ciphers.len() as u16 * 2).to_be_bytes());
    body.extend(ciphers.iter().flat_map(|c| c.to_be_bytes()));
    body.extend_from_slice(&[1, 0]);
    let groups = [0, 10, 0, 4, 0, 2, 0, 23];
    let points = [0, 11, 0, 2, 1, 0];
    let signatures = [0, 13, 0, 8, 0, 6, 4, 3, 4, 1, 8, 4];
    let extensions = [&groups[..], &points, &signatures].concat();
    body.extend_from_slice(&(extensions.len() as u16).to_be_bytes());
    body.extend_from_slice(&extensions);
    let mut record = vec![22, version[0], version[1].min(1)];
    record.extend_from_slice(&(body.len() as u16 + 4).to_be_bytes());
    record.extend_from_slice(&[1, 0]);
    record.extend_from_slice(&(body.len() as u16).to_be_bytes());
    record.extend_from_slice(&body);
    record
}

/// Sends bytes to the port for direct TLS and reads to the end of the connection.
async fn answer(world: &World, bytes: &[u8]) -> Vec<u8> {
    let raw = RawClient::connect(world.server.endpoint().c2s_tls).await.unwrap();
    let (wire, _) = raw.into_wire();
    // The server may close before it has read everything.
    let _ = wire.write_tcp(bytes).await;
    read_tcp_to_end(&wire).await
}

async fn read_tcp_to_end(wire: &waystation_harness::wire::Wire) -> Vec<u8> {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    let reading = async {
        // A reset is an end like any other.
        while let Ok(n @ 1..) = wire.read_tcp(&mut chunk).await {
            all.extend_from_slice(&chunk[..n]);
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.expect("the server closes the connection");
    all
}

/// The description of a fatal alert, when the answer is one.
fn alert(answer: &[u8]) -> Option<u8> {
    match answer {
        [21, 3, _, 0, 2, 2, description] => Some(*description),
        _ => None,
    }
}

#[tokio::test]
async fn t4_versions_before_1_2_are_refused() {
    let world = World::new();
    // AES with forward secrecy, so that nothing but the version can be the reason.
    let ciphers = [0xc009, 0xc00a, 0xc013, 0xc014, 0x002f, 0x0035];
    for (name, version) in [("SSLv3", [3, 0]), ("TLS 1.0", [3, 1]), ("TLS 1.1", [3, 2])] {
        let got = answer(&world, &hello(version, &ciphers)).await;
        assert_eq!(alert(&got), Some(PROTOCOL_VERSION), "{name}: {got:?}");
    }
    // SSLv2's own form of the message is no TLS at all.
    let got = answer(&world, b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80").await;
    assert!(got.len() <= 7 && got.first().is_none_or(|kind| *kind == 21), "{got:?}");
    world.end();
}

#[tokio::test]
async fn t4_weak_ciphers_are_refused() {
    let world = World::new();
    // RFC 5246 A.5, RFC 4492: no encryption, export, RC4, DES, 3DES, anonymous, RSA key exchange,
    // CBC with HMAC.
    let weak: [&[u16]; 8] = [
        &[0x0001, 0x0002, 0x003b, 0xc006, 0xc010],
        &[0x0003, 0x0006, 0x0008, 0x000b, 0x000e, 0x0011, 0x0014, 0x0017, 0x0019],
        &[0x0004, 0x0005, 0xc007, 0xc011],
        &[0x0009, 0x000c, 0x000f, 0x0012, 0x0015],
        &[0x000a, 0x0016, 0xc008, 0xc012],
        &[0x0018, 0x001b, 0x0034, 0x006c, 0x00a6, 0xc017, 0xc018],
        &[0x002f, 0x0035, 0x003c, 0x003d, 0x009c, 0x009d],
        &[0xc009, 0xc00a, 0xc013, 0xc014, 0xc023, 0xc027],
    ];
    for ciphers in weak {
        let got = answer(&world, &hello([3, 3], ciphers)).await;
        assert_eq!(alert(&got), Some(HANDSHAKE_FAILURE), "{ciphers:04x?}: {got:?}");
    }
    // The same message with a good cipher is answered: what was refused above was the cipher.
    let raw = RawClient::connect(world.server.endpoint().c2s_tls).await.unwrap();
    let (wire, _) = raw.into_wire();
    wire.write_tcp(&hello([3, 3], &[0xc02b, 0xc02f])).await.unwrap();
    let mut first = [0; 3];
    assert_eq!(wire.read_tcp(&mut first).await.unwrap(), 3);
    assert_eq!(first, [22, 3, 3], "a ServerHello of TLS 1.2");
    drop(wire);
    world.end();
}

#[test]
fn t4_openssl_gets_in_by_1_2_and_1_3_only() {
    let world = World::new();
    let at = world.server.endpoint().c2s;
    for (option, version) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let Some(said) = s_client(at, &["-brief", option], "") else { return world.end() };
        assert!(said.contains("CONNECTION ESTABLISHED") && said.contains(version), "{option}: {said}");
    }
    for options in [
        &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
        &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "kRSA:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0"],
        &["-tls1_2", "-cipher", "PSK:SRP:CAMELLIA:ARIA:@SECLEVEL=0"],
    ] {
        let Some(said) = s_client(at, &[&["-brief"][..], options].concat(), "") else { return world.end() };
        assert!(!said.contains("CONNECTION ESTABLISHED"), "{options:?}: {said}");
        // An openssl that does not know a version or cipher any more would show nothing.
        assert!(said.contains("alert"), "{options:?}: the server was not asked: {said}");
    }
    world.end();
}

#[test]
fn t5_renegotiation_is_refused() {
    let world = World::alone(Config::default());
    let at = world.server.endpoint().c2s;
    let before = cpu_time(world.server.pid()).unwrap();
    const TRIES: u32 = 20;
    for _ in 0..TRIES {
        let Some(said) = s_client(at, &["-tls1_2"], "R\n") else { return world.end() };
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    }
    // A connection with one handshake each, and none besides.
    let used = cpu_time(world.server.pid()).unwrap() - before;
    assert!(used < Duration::from_millis(30) * TRIES, "{used:?} for {TRIES} refusals");
    world.end();
}

#[tokio::test]
async fn t5_a_flood_of_key_updates_costs_little() {
    let world = World::alone(Config::default());
    let login = Login::resource("keys").over(Security::Direct);
    let session =
        async || Client::login(world.server.endpoint(), world.server.account("romeo"), &login).await.unwrap();
    // Nothing but key updates: the connection is closed before they cost anything.
    let mut romeo = session().await;
    let before = cpu_time(world.server.pid()).unwrap();
    let flood = async {
        for _ in 0..100_000 {
            romeo.raw().wire().update_keys()?;
            romeo.raw().wire().write_all(b"").await?;
        }
        std::io::Result::Ok(())
    };
    let outcome =
        tokio::time::timeout(Duration::from_secs(20), flood).await.expect("neither taken nor refused");
    let used = cpu_time(world.server.pid()).unwrap() - before;
    assert!(outcome.is_err(), "100,000 key updates in a row were taken");
    assert!(used < Duration::from_millis(500), "{used:?}");
    drop(romeo);
    // As many as are allowed between two bytes: each costs little, and the session goes on.
    const UPDATES: u32 = 6_000;
    let mut romeo = session().await;
    let before = cpu_time(world.server.pid()).unwrap();
    for n in 0..UPDATES {
        romeo.raw().wire().update_keys().unwrap();
        romeo.raw().wire().write_all(if n % 30 == 0 { b" " } else { b"" }).await.unwrap();
    }
    assert!(romeo.drain().await.unwrap().is_empty());
    let used = cpu_time(world.server.pid()).unwrap() - before;
    assert!(used < UPDATES * Duration::from_micros(200), "{used:?} for {UPDATES} key updates");
    romeo.close().await.unwrap();
    world.end();
}

/// Forwards what a client sends to the server, one byte at a time, and the answers as they are.
async fn relay_byte_by_byte(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = TcpStream::connect(to).await.unwrap();
        server.set_nodelay(true).unwrap();
        let (mut up, mut down) = ([0; 1], [0; 4096]);
        loop {
            tokio::select! {
                Ok(1) = client.read(&mut up) => if server.write_all(&up).await.is_err() { return },
                Ok(n @ 1..) = server.read(&mut down) => if client.write_all(&down[..n]).await.is_err() { return },
                else => return,
            }
        }
    });
    at
}

#[tokio::test]
async fn t9_a_handshake_in_single_bytes_works() {
    let world = World::new();
    let mut endpoint = world.server.endpoint().clone();
    endpoint.c2s_tls = relay_byte_by_byte(endpoint.c2s_tls).await;
    let login = Login::resource("r").over(Security::Direct);
    let romeo = Client::login(&endpoint, world.server.account("romeo"), &login).await.unwrap();
    romeo.close().await.unwrap();
    let mut endpoint = world.server.endpoint().clone();
    endpoint.c2s = relay_byte_by_byte(endpoint.c2s).await;
    let login = Login::resource("r").over(Security::StartTls);
    let romeo = Client::login(&endpoint, world.server.account("romeo"), &login).await.unwrap();
    romeo.close().await.unwrap();
    world.end();
}

#[tokio::test]
async fn t9_garbage_instead_of_a_handshake() {
    // Some of it is the beginning of a long record, of which the rest might still come.
    let world = World::with(Config::default().with("tls.handshake_timeout", "'1s'"));
    let good = tls::client_hello(tls::client_config(&[b"xmpp-client"]), "localhost").unwrap();
    let cut = |n: usize| [&good[..n], &[0xff; 200]].concat();
    let close_notify = b"\x15\x03\x03\x00\x02\x01\x00";
    let mut huge = b"\x16\x03\x01\x40\x00\x01\xff\xff\xff".to_vec();
    huge.resize(64 << 10, 0);
    for (what, bytes) in [
        ("the first bytes of a record, again and again", b"\x16\x03\x01".repeat(21_846)),
        ("a message of 16 MiB", huge),
        ("empty records", b"\x16\x03\x01\x00\x00".repeat(13_000)),
        ("a record beyond the limit", [&b"\x16\x03\x01\xff\xff"[..], &[1; 65_536]].concat()),
        ("other content", b"\x17\x03\x03\x00\x10garbage garbage!".to_vec()),
        ("XML", HEADER.as_bytes().to_vec()),
        ("a header with nonsense in it", cut(5)),
        ("half a ClientHello, then nonsense", cut(good.len() / 2)),
        ("close_notify at once", close_notify.to_vec()),
        ("close_notify behind the ClientHello", [&good[..], close_notify].concat()),
        ("an alert in the middle of the ClientHello", [&good[..40], close_notify, &good[40..]].concat()),
        ("two of them", good.repeat(2)),
    ] {
        let got = answer(&world, &bytes).await;
        let echoed = got.windows(7).any(|w| w == b"garbage" || w == b"<stream" || w == b"jabber:");
        assert!(!echoed, "{what}: {got:?}");
    }
    world.end();
}

#[tokio::test]
async fn t9_a_handshake_that_stalls_ends_at_its_deadline() {
    let world = World::with(Config::default().with("tls.handshake_timeout", "'1s'"));
    let good = tls::client_hello(tls::client_config(&[b"xmpp-client"]), "localhost").unwrap();
    for (what, sent) in
        [("nothing", 0), ("half a ClientHello", good.len() / 2), ("a ClientHello", good.len())]
    {
        let raw = RawClient::connect(world.server.endpoint().c2s_tls).await.unwrap();
        let (wire, _) = raw.into_wire();
        let began = Instant::now();
        wire.write_tcp(&good[..sent]).await.unwrap();
        read_tcp_to_end(&wire).await;
        let took = began.elapsed();
        assert!((900..5_000).contains(&took.as_millis()), "{what}: closed after {took:?}");
    }
    // A byte now and then does not put the deadline off; it holds for STARTTLS as well.
    let mut raw = world.open().await;
    raw.send("<starttls xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
    raw.read_until("<proceed xmlns='urn:ietf:params:xml:ns:xmpp-tls'/>").await.unwrap();
    let (wire, _) = raw.into_wire();
    let began = Instant::now();
    let drip = async {
        for byte in good[..60].chunks(1) {
            if wire.write_tcp(byte).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        _ = read_tcp_to_end(&wire) => {}
        () = drip => panic!("60 bytes in 6 seconds were waited for"),
    }
    assert!(began.elapsed() >= Duration::from_millis(900));
    drop(wire);
    world.end();
}

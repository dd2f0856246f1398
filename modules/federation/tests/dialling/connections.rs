//! Which of a server's addresses is taken.

use std::net::Ipv6Addr;
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

use super::*;

/// An address that answers nothing: a listener whose queue is full, to which the system is silent. What fills
/// the queue lives with it.
struct BlackHole {
    address: SocketAddr,
    _sockets: Vec<Socket>,
}

fn black_hole(address: SocketAddr) -> BlackHole {
    let domain = Domain::for_address(address);
    let listening = Socket::new(domain, Type::STREAM, None).expect("a socket");
    listening.bind(&address.into()).expect("the port is free");
    listening.listen(0).expect("it listens");
    let address = listening.local_addr().ok().as_ref().and_then(SockAddr::as_socket).expect("bound");
    let mut sockets = vec![listening];
    for _ in 0..64 {
        let filling = Socket::new(domain, Type::STREAM, None).expect("a socket");
        let full = filling.connect_timeout(&address.into(), Duration::from_secs(2)).is_err();
        sockets.push(filling);
        if full {
            return BlackHole { address, _sockets: sockets };
        }
    }
    panic!("the queue of a listener that takes nothing is never full");
}

/// SECURITY M11: IPv6 is dead and IPv4 is not.
#[tokio::test]
async fn m11_a_dead_address_costs_less_than_a_second() {
    let (_listener, port) = listener().await;
    let _hole = black_hole(at(Ipv6Addr::LOCALHOST, port));
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org SRV 0 0 {port} x.example
         x.example A 127.0.0.1
         x.example AAAA ::1"
    ));
    let resolver = resolver(&dns);
    // The machine stalls at times: one of a few must show it, and all of them end where they should.
    let mut fastest = PATIENCE;
    for _ in 0..5 {
        let begun = Instant::now();
        let dialled = dial(&resolver, "example.org").await.unwrap();
        fastest = fastest.min(begun.elapsed());
        assert_eq!(dialled.connection.peer(), at(Ipv4Addr::LOCALHOST, port));
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");
    assert!(fastest >= Duration::from_millis(240), "IPv6 goes first, and has its time: {fastest:?}");
}

#[tokio::test]
async fn ipv6_goes_first_and_the_other_address_is_left_for_when_it_does_not_do() {
    let (_four, port) = listener().await;
    let _six = TcpListener::bind(at(Ipv6Addr::LOCALHOST, port)).await.unwrap();
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org SRV 0 0 {port} x.example
         x.example A 127.0.0.1
         x.example AAAA ::1"
    ));
    let resolver = resolver(&dns);
    let mut dialling = resolver.dial("example.org");
    for ip in [IpAddr::from(Ipv6Addr::LOCALHOST), Ipv4Addr::LOCALHOST.into()] {
        let dialled = timeout(PATIENCE, dialling.next()).await.unwrap().unwrap();
        assert_eq!(dialled.connection.peer(), at(ip, port));
    }
    assert!(timeout(PATIENCE, dialling.next()).await.unwrap().is_err());
}

#[tokio::test]
async fn an_address_that_was_slower_is_tried_again_when_the_faster_one_does_not_do() {
    let (_listener, port) = listener().await;
    let _hole = black_hole(at(Ipv6Addr::LOCALHOST, port));
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org SRV 0 0 {port} x.example
         x.example A 127.0.0.1
         x.example AAAA ::1"
    ));
    let settings = Settings { connect_timeout: Duration::from_secs(5), ..settings(&dns) };
    let resolver = Resolver::new(&settings).unwrap();
    let mut dialling = resolver.dial("example.org");
    let first = timeout(PATIENCE, dialling.next()).await.unwrap().unwrap();
    assert_eq!(first.connection.peer(), at(Ipv4Addr::LOCALHOST, port));
    let error = timeout(PATIENCE, dialling.next()).await.unwrap().map(|d| d.target).unwrap_err();
    failed(
        &error,
        &format!("127.0.0.1:{port} (x.example) did not do; [::1]:{port} (x.example): no answer within 5s"),
    );
}

#[tokio::test]
async fn an_address_has_the_time_of_the_settings_and_the_next_server_follows() {
    let (_listener, port) = listener().await;
    let hole = black_hole(at(Ipv4Addr::LOCALHOST, 0));
    let dead = hole.address.port();
    let dns = dns(&format!(
        "_xmpp-server._tcp.dead.example  SRV 0 0 {dead} x.example
         _xmpp-server._tcp.other.example SRV 0 0 {dead} x.example
         _xmpp-server._tcp.other.example SRV 1 0 {port} x.example
         x.example A 127.0.0.1"
    ));
    let settings = Settings { connect_timeout: Duration::from_millis(500), ..settings(&dns) };
    let resolver = Resolver::new(&settings).unwrap();
    let begun = Instant::now();
    let error = unreached(&resolver, "dead.example").await;
    failed(&error, &format!("127.0.0.1:{dead} (x.example): no answer within 500ms"));
    let took = begun.elapsed();
    assert!((Duration::from_millis(500)..Duration::from_secs(30)).contains(&took), "{took:?}");
    assert_eq!(reached(&resolver, "other.example").await, port);
}

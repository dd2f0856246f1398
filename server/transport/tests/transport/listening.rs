//! Listeners: what is accepted, refused, and reported.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use waystation_transport::{AddressLimits, Admission, BindError, DetachedConnection, Listener};

use crate::common::*;

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

struct Running {
    address: SocketAddr,
    accepted: Rc<RefCell<Vec<DetachedConnection>>>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

fn start(admission: Admission) -> Running {
    let listener = Listener::bind(LOOPBACK, admission).unwrap();
    let address = listener.local_addr();
    let accepted = Rc::new(RefCell::new(Vec::new()));
    let (stop, stopped) = oneshot::channel();
    let keep = accepted.clone();
    let task = tokio::task::spawn_local(listener.run(
        async {
            stopped.await.unwrap();
        },
        move |connection| keep.borrow_mut().push(connection),
    ));
    Running { address, accepted, stop, task }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

#[test]
fn accepted_connections_work_and_stopping_stops() {
    run(async {
        let running = start(Admission::new(AddressLimits::unlimited()));
        let mut client = TcpStream::connect(running.address).await.unwrap();
        until(|| !running.accepted.borrow().is_empty()).await;
        let accepted = running.accepted.borrow_mut().pop().unwrap();
        assert_eq!(accepted.peer(), client.local_addr().unwrap());
        let mut server = accepted.attach().unwrap();
        assert_eq!(server.local_addr().unwrap(), running.address);
        client.write_all(b"hello").await.unwrap();
        assert_eq!(read_until(&mut server, |got| got.len() >= 5).await.unwrap().0, b"hello");

        running.stop.send(()).unwrap();
        running.task.await.unwrap().unwrap();
        assert!(TcpStream::connect(running.address).await.is_err(), "still listening");
        server.queue_slice(b"still here");
        server.flush().await.unwrap();
        let mut answer = [0; 10];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"still here");
    });
}

#[test]
fn accepted_sockets_do_not_wait_to_send_and_notice_a_peer_that_vanished() {
    run(async {
        let admission = Admission::new(AddressLimits::unlimited());
        let listener = Listener::bind(LOOPBACK, admission).unwrap();
        let address = listener.local_addr();
        let (sender, mut accepted) = tokio::sync::mpsc::channel(1);
        tokio::task::spawn_local(listener.run_streams(std::future::pending(), move |one| {
            sender.try_send(one.stream).unwrap();
        }));
        let _client = TcpStream::connect(address).await.unwrap();
        let stream = accepted.recv().await.unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 600);
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 60);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 5);
    });
}

#[test]
fn an_address_has_no_more_connections_than_allowed() {
    run(async {
        let limits = AddressLimits { connections: 3, rate: 0.0, burst: 0, tracked: 10 };
        let admission = Admission::new(limits);
        let running = start(admission.clone());
        let mut held = Vec::new();
        for n in 1..=3 {
            held.push(TcpStream::connect(running.address).await.unwrap());
            until(|| running.accepted.borrow().len() == n).await;
        }
        let mut refused = TcpStream::connect(running.address).await.unwrap();
        assert_eq!(refused.read(&mut [0; 1]).await.unwrap(), 0, "closed at once");
        assert_eq!(admission.connections(LOOPBACK.ip()), 3);

        // The place is given back when the server's side ends, in whatever form it is then.
        let one = running.accepted.borrow_mut().pop().unwrap().attach().unwrap();
        assert_eq!(admission.connections(LOOPBACK.ip()), 3);
        drop(one.detach().unwrap().attach().unwrap());
        assert_eq!(admission.connections(LOOPBACK.ip()), 2);
        held.push(TcpStream::connect(running.address).await.unwrap());
        until(|| running.accepted.borrow().len() == 3).await;
    });
}

#[test]
fn connecting_too_fast_is_refused() {
    run(async {
        let limits = AddressLimits { connections: 0, rate: 0.001, burst: 5, tracked: 10 };
        let running = start(Admission::new(limits));
        let mut open = Vec::new();
        for n in 1..=5 {
            open.push(TcpStream::connect(running.address).await.unwrap());
            until(|| running.accepted.borrow().len() == n).await;
        }
        for _ in 0..20 {
            let mut refused = TcpStream::connect(running.address).await.unwrap();
            assert_eq!(refused.read(&mut [0; 1]).await.unwrap(), 0);
        }
        assert_eq!(running.accepted.borrow().len(), 5);
    });
}

#[test]
fn a_used_port_is_reported_with_its_address() {
    let first = Listener::bind(LOOPBACK, Admission::new(AddressLimits::unlimited())).unwrap();
    let second = Listener::bind(first.local_addr(), Admission::new(AddressLimits::unlimited()));
    let Err(error @ BindError::InUse { .. }) = second else { panic!("bound twice") };
    assert_eq!(
        error.to_string(),
        format!("{} is in use by another program; stop it or choose another port", first.local_addr())
    );
}

#[test]
fn an_address_of_another_machine_is_reported() {
    let foreign: SocketAddr = "192.0.2.1:0".parse().unwrap();
    let bound = Listener::bind(foreign, Admission::new(AddressLimits::unlimited()));
    assert!(matches!(bound, Err(BindError::NotLocal { .. })));
}

#[test]
fn both_address_families_share_a_port() {
    let Ok(v6) = Listener::bind("[::1]:0".parse().unwrap(), Admission::new(AddressLimits::unlimited()))
    else {
        // A machine without IPv6: then there is nothing to share.
        return;
    };
    let any_v4 = SocketAddr::from(([0, 0, 0, 0], v6.local_addr().port()));
    match Listener::bind(any_v4, Admission::new(AddressLimits::unlimited())) {
        Ok(_) => {}
        // The port was chosen for IPv6; something else may hold it for IPv4.
        Err(BindError::InUse { .. }) => {
            assert!(std::net::TcpStream::connect(("127.0.0.1", v6.local_addr().port())).is_ok());
        }
        Err(error) => panic!("{error}"),
    }
}

//! Running out of file descriptors. In a process of its own, since the limit holds for all its threads.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use nix::sys::time::TimeValLike;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use waystation_transport::{AddressLimits, Admission, Listener};

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

#[test]
fn the_listener_survives_without_spinning_and_turns_clients_away() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    let test = async {
        let listener =
            Listener::bind("127.0.0.1:0".parse().unwrap(), Admission::new(AddressLimits::unlimited()))
                .unwrap();
        let address = listener.local_addr();
        let accepted = Rc::new(RefCell::new(Vec::new()));
        let keep = accepted.clone();
        let task = tokio::task::spawn_local(
            listener.run(std::future::pending(), move |connection| keep.borrow_mut().push(connection)),
        );
        tokio::task::yield_now().await;

        // Sockets for the clients first, so that it is the server's side that finds no descriptor.
        let clients: Vec<_> = (0..8).map(|_| tokio::net::TcpSocket::new_v4().unwrap()).collect();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 256.min(hard), hard).unwrap();
        let mut fillers = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            fillers.push(file);
        }

        let mut connected = Vec::new();
        for client in clients {
            connected.push(client.connect(address).await.unwrap());
        }
        let (began, cpu) = (Instant::now(), cpu_time());
        // Each client is told, one about every 100 ms.
        for client in &mut connected[..4] {
            assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
        }
        assert!(began.elapsed() >= Duration::from_millis(250), "no pause: {:?}", began.elapsed());
        assert!(cpu_time() - cpu < began.elapsed() / 2, "spinning");
        assert!(accepted.borrow().is_empty());
        assert!(!task.is_finished());

        drop(fillers);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let _client = TcpStream::connect(address).await.unwrap();
        while accepted.borrow().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    runtime.block_on(local.run_until(async {
        tokio::time::timeout(Duration::from_secs(20), test).await.expect("test takes too long");
    }));
}

//! Commands beside a server that really runs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::Place;

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(60);

struct Server {
    place: Place,
    child: Child,
}

impl Server {
    fn start(storage: &str) -> Self {
        let place = Place::new();
        let config = format!(
            "storage.engine = \"{storage}\"\nsasl.iterations = 4096\n\
             [listen]\nc2s = [\"127.0.0.1:0\"]\nc2s_tls = []\ns2s = []\ns2s_tls = []\nhttp = []\nhttps = []\n"
        );
        place.write("w.toml", &config);
        let log = std::fs::File::create(place.file("log")).unwrap();
        let child = place.command(&["--config", "w.toml"]).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let mut server = Self { place, child };
        let end = Instant::now() + DEADLINE;
        while server.run(&["status"]).code != Some(0) {
            assert_eq!(server.child.try_wait().unwrap(), None, "{}", server.log());
            assert!(Instant::now() < end, "the server did not start: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    fn run(&self, args: &[&str]) -> support::Run {
        self.run_with(args, "")
    }

    fn run_with(&self, args: &[&str], stdin: &str) -> support::Run {
        self.place.run_with(&[args, &["--config", "w.toml"]].concat(), stdin)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.place.file("log")).unwrap()
    }

    fn stop(mut self) -> String {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.log());
        assert!(!self.place.file("data/admin.sock").exists());
        self.log()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already when the test passed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_running_server_is_administered_through_its_socket() {
    let server = Server::start("fjall");
    let add = ["user", "add", "ann@localhost", "--password-stdin"];
    assert_eq!(server.run_with(&add, "CANARY-secret\n").ok(), "added ann@localhost\n");
    assert!(server.run_with(&add, "x").fails(1).contains("the account exists already"));
    let lines: String = (0..600).map(|n| format!("u{n:03}@localhost CANARY-{n}\n")).collect();
    assert_eq!(server.run_with(&["user", "add", "--bulk", "-"], &lines).ok(), "added 600 accounts\n");
    assert_eq!(server.run(&["user", "list"]).ok().lines().count(), 601);
    server.run_with(&["user", "passwd", "ann@localhost", "--password-stdin"], "CANARY-new\n").ok();
    let shown: Value =
        serde_json::from_str(&server.run(&["user", "show", "ann@localhost", "--json"]).ok()).unwrap();
    assert_eq!(shown["sessions"], serde_json::json!([]));
    assert_eq!(server.run(&["session", "list", "--json"]).ok(), "[]\n");
    assert!(server.run(&["session", "kick", "ann@localhost"]).fails(1).contains("has no session"));
    server.run(&["reload"]).ok();
    server.run(&["user", "remove", "ann@localhost"]).ok();
    assert!(server.run(&["user", "show", "ann@localhost"]).fails(1).contains("there is no account"));
    let status: Value = serde_json::from_str(&server.run(&["status", "--json"]).ok()).unwrap();
    assert_eq!(status["pid"], server.child.id());
    assert_eq!(status["durability"], "fsync");
    assert!(status["memory"].as_u64().unwrap() > 1 << 20 && status["descriptors"].as_u64().unwrap() > 5);
    let status: Value = serde_json::from_str(&server.run(&["status", "--timers", "--json"]).ok()).unwrap();
    let timers = status["timers"].as_array().unwrap();
    assert!(!timers.is_empty(), "each thread is measured");
    assert!(timers.iter().all(|t| t["p99_us"].as_u64() <= t["worst_us"].as_u64()), "{timers:?}");
    let log = server.stop();
    assert!(!log.contains("CANARY"), "{log}");
}

#[test]
fn accounts_of_a_server_in_memory_are_made_through_its_socket() {
    let server = Server::start("memory");
    server.run_with(&["user", "add", "ann@localhost", "--password-stdin"], "x").ok();
    assert_eq!(server.run(&["user", "list"]).ok(), "ann@localhost\n");
    server.stop();
}

#[test]
fn what_the_server_stored_is_there_when_it_has_stopped_and_the_other_way_round() {
    let server = Server::start("fjall");
    server.run_with(&["user", "add", "ann@localhost", "--password-stdin"], "x").ok();
    let data = server.place.file("data");
    kill(Pid::from_raw(server.child.id().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let mut server = server;
    server.child.wait().unwrap();
    assert!(data.join("admin.sock").exists(), "the killed server left its socket behind");
    assert_eq!(server.run(&["user", "list"]).ok(), "ann@localhost\n");
    server.run_with(&["user", "add", "bob@localhost", "--password-stdin"], "x").ok();
    assert_eq!(server.run(&["user", "list"]).ok(), "ann@localhost\nbob@localhost\n");
}

#[test]
fn a_second_server_on_one_folder_is_refused() {
    let server = Server::start("fjall");
    let error = server.run(&["serve"]).fails(1);
    assert!(error.contains("is in use by the process"), "{error}");
    server.stop();
}

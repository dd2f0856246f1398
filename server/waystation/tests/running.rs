//! Commands beside a running server, which is played here line by line.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

use serde_json::{Value, json};
use support::{Place, Run};

/// A place with a server that answers each request with the next line.
struct Served {
    place: Place,
    thread: JoinHandle<Vec<Value>>,
}

impl Served {
    fn new(answers: Vec<String>) -> Self {
        let place = Place::new();
        std::fs::create_dir(place.file("data")).unwrap();
        let listener = UnixListener::bind(place.file("data/admin.sock")).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let mut answers = answers.into_iter();
            let mut requests = Vec::new();
            while answers.len() > 0
                && let Some(Ok(line)) = lines.next()
            {
                requests.push(serde_json::from_str(&line).unwrap());
                (&stream).write_all(answers.next().unwrap().as_bytes()).unwrap();
            }
            requests
        });
        Self { place, thread }
    }

    fn answering(answers: &[Value]) -> Self {
        let line = |answer: &Value| format!("{}\n", json!({ "version": 1, "response": answer }));
        Self::new(answers.iter().map(line).collect())
    }

    fn run(self, args: &[&str], stdin: &str) -> (Run, Vec<Value>) {
        let run = self.place.run_with(args, stdin);
        (run, self.thread.join().unwrap())
    }
}

fn session(resource: &str, priority: Option<i8>) -> Value {
    json!({ "jid": format!("ann@localhost/{resource}"), "address": "192.0.2.1:5000", "security": "TLSv1_3",
            "since": 1_700_000_000, "priority": priority })
}

#[test]
fn an_account_is_made_by_the_server_that_runs() {
    let served = Served::answering(&[json!({ "result": "added", "errors": [null] })]);
    let (run, requests) = served.run(&["user", "add", "ann@localhost", "--password-stdin"], "secret\n");
    assert_eq!(run.ok(), "added ann@localhost\n");
    let users = json!([{ "jid": "ann@localhost", "password": "secret" }]);
    assert_eq!(requests, [json!({ "version": 1, "request": { "op": "add_users", "users": users } })]);
}

#[test]
fn many_accounts_go_in_batches() {
    let answer = |count: usize| json!({ "result": "added", "errors": vec![Value::Null; count] });
    let served = Served::answering(&[answer(500), answer(1)]);
    let lines: String = (0..501).map(|n| format!("u{n}@localhost x\n")).collect();
    let (run, requests) = served.run(&["user", "add", "--bulk", "-"], &lines);
    assert_eq!(run.ok(), "added 501 accounts\n");
    assert_eq!(requests.len(), 2);
}

#[test]
fn sessions_are_listed_and_closed() {
    let sessions = json!([session("phone", Some(5)), session("\u{1b}[2J\u{202e}", None)]);
    let served = Served::answering(&[json!({ "result": "sessions", "sessions": sessions, "more": false })]);
    let (run, _) = served.run(&["session", "list"], "");
    assert_eq!(
        run.ok(),
        "ann@localhost/phone                      192.0.2.1:5000        TLSv1_3  2023-11-14T22:13:20Z priority 5\n\
         ann@localhost/\\u{1b}[2J\\u{202e}          192.0.2.1:5000        TLSv1_3  2023-11-14T22:13:20Z unavailable\n"
    );
    let served = Served::answering(&[json!({ "result": "kicked", "sessions": 2 })]);
    let args = ["session", "kick", "ann@localhost", "--condition", "not-authorized", "--text", "bye"];
    let (run, requests) = served.run(&args, "");
    assert_eq!(run.ok(), "closed 2 sessions\n");
    let request =
        json!({ "op": "kick", "jid": "ann@localhost", "condition": "not-authorized", "text": "bye" });
    assert_eq!(requests[0]["request"], request);

    let served = Served::answering(&[json!({ "result": "kicked", "sessions": 0 })]);
    let (run, _) = served.run(&["session", "kick", "ann@localhost/x"], "");
    assert_eq!(run.fails(1), "waystation: ann@localhost/x has no session\n");
}

#[test]
fn sessions_are_listed_as_json_page_by_page() {
    let page = |resource: &str, more| json!({ "result": "sessions", "sessions": [session(resource, None)], "more": more });
    let served = Served::answering(&[page("a", true), page("b", false)]);
    let (run, requests) = served.run(&["session", "list", "ann@localhost", "--json"], "");
    let listed: Value = serde_json::from_str(&run.ok()).unwrap();
    assert_eq!(listed, json!([session("a", None), session("b", None)]));
    assert_eq!(requests[1]["request"]["after"], "ann@localhost/a");
    assert_eq!(requests[1]["request"]["jid"], "ann@localhost");
}

#[test]
fn status_and_reload() {
    let status = json!({ "result": "status", "version": "0.1.0", "pid": 7, "uptime": 60, "hosts": ["localhost"],
                         "storage": "fjall", "durability": "fsync", "sessions": 3, "routes": 4,
                         "memory": 20_000_000, "descriptors": 30 });
    let (run, requests) = Served::answering(std::slice::from_ref(&status)).run(&["status"], "");
    assert_eq!(requests[0]["request"], json!({ "op": "status", "timers": false }));
    assert_eq!(
        run.ok(),
        "waystation 0.1.0, process 7\nup         60 s\nhosts      localhost\nsessions   3, account routes 4\n\
         memory     20 MiB, open descriptors 30\nstorage    fjall, durability fsync\n"
    );
    let (run, _) = Served::answering(std::slice::from_ref(&status)).run(&["status", "--json"], "");
    let shown: Value = serde_json::from_str(&run.ok()).unwrap();
    assert_eq!((&shown["pid"], &shown["routes"]), (&json!(7), &json!(4)));
    assert_eq!((shown.get("timers"), shown.get("commits")), (None, None));
    let mut measured = status;
    measured["memory"] = Value::Null;
    measured["commits"] = json!({ "count": 4_096, "median_us": 199, "p99_us": 1_371 });
    measured["timers"] = json!([{ "arbiter": 0, "p99_us": 1_020, "worst_us": 20_003 }]);
    let (run, requests) = Served::answering(std::slice::from_ref(&measured)).run(&["status", "--timers"], "");
    assert_eq!(requests[0]["request"], json!({ "op": "status", "timers": true }));
    let shown = run.ok();
    let queue = "queue      the last 4096 commits took 0.199 ms in the median, p99 1.371 ms\n";
    assert!(shown.contains(queue), "{shown}");
    assert!(shown.ends_with("timers     arbiter 0: p99 1.020 ms late, worst 20.003 ms late\n"), "{shown}");
    assert!(shown.contains("memory     unknown, open descriptors 30\n"), "{shown}");
    let (run, _) = Served::answering(&[measured]).run(&["status", "--timers", "--json"], "");
    assert_eq!(serde_json::from_str::<Value>(&run.ok()).unwrap()["timers"][0]["worst_us"], 20_003);
    let reloaded = json!({ "result": "reloaded", "warnings": ["a.pem: ends soon"] });
    let (run, _) = Served::answering(&[reloaded]).run(&["reload"], "");
    assert_eq!(run.err, "a.pem: ends soon\n");
    assert_eq!(run.ok(), "certificates were read again; new connections use them\n");
}

#[test]
fn refusals_and_strange_answers_are_told() {
    let refusal = json!({ "version": 1, "error": { "kind": "failed", "message": "the disk is full" } });
    let (run, _) = Served::new(vec![format!("{refusal}\n")]).run(&["user", "list"], "");
    assert_eq!(run.fails(1), "waystation: the disk is full\n");

    let release = "use the command of the same release";
    for answer in ["x\n", "{}\n", "{\"version\":1}\n", "{\"version\":2,\"response\":{\"result\":\"done\"}}\n"]
    {
        let (run, _) = Served::new(vec![answer.to_owned()]).run(&["user", "list"], "");
        let error = run.fails(4);
        assert!(error.contains(release), "{answer}: {error}");
    }
    let (run, _) = Served::answering(&[json!({ "result": "kicked", "sessions": 1 })]).run(&["status"], "");
    assert!(run.fails(4).contains(release));
    let (run, _) = Served::new(vec!["{\"version\":1".to_owned()]).run(&["status"], "");
    assert!(run.fails(4).contains("the server does not answer on its admin socket"));
}

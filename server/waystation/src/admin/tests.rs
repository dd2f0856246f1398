//! The admin socket with a backend that keeps accounts in memory.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::protocol::{MAX_REQUEST, RequestLine};
use super::*;

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Memory {
    accounts: Mutex<BTreeMap<String, String>>,
    kicked: Mutex<Vec<(Jid, StreamError)>>,
}

fn not_found() -> AdminError {
    AdminError::new(ErrorKind::NotFound, "there is no such account")
}

fn session(resource: usize) -> SessionRow {
    SessionRow {
        jid: format!("ann@localhost/r{resource:05}"),
        address: "127.0.0.1:1".into(),
        security: "TLSv1_3".into(),
        since: 1_700_000_000,
        priority: Some(1),
    }
}

fn domain(remote: &str) -> DomainRow {
    DomainRow {
        local: "localhost".into(),
        remote: remote.into(),
        state: "backoff".into(),
        waiting: 3,
        bytes: 900,
        oldest: Some(1_700_000_000),
        last_error: Some("no answer".into()),
        next_try: Some(1_700_000_100),
        handed: 5,
        bounced: 1,
        stream: None,
    }
}

impl AdminBackend for Memory {
    fn hosts(&self) -> Vec<String> {
        vec!["localhost".into(), "b.example".into()]
    }

    fn add_users(&self, users: Vec<NewAccount>) -> BoxFuture<'_, Vec<Result<(), AdminError>>> {
        Box::pin(async move {
            let mut accounts = self.accounts.lock().unwrap();
            let add = |user: NewAccount| {
                if user.password.reveal() == "bad" {
                    return Err(AdminError::new(ErrorKind::BadPassword, "bad password"));
                }
                match accounts.insert(user.jid.to_string(), user.password.reveal().to_owned()) {
                    None => Ok(()),
                    Some(_) => Err(AdminError::new(ErrorKind::Exists, "the account exists already")),
                }
            };
            users.into_iter().map(add).collect()
        })
    }

    fn set_password(&self, account: Jid, password: Password) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            let mut accounts = self.accounts.lock().unwrap();
            let stored = accounts.get_mut(account.as_str()).ok_or_else(not_found)?;
            *stored = password.reveal().to_owned();
            Ok(())
        })
    }

    fn remove_user(&self, account: Jid) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            self.accounts.lock().unwrap().remove(account.as_str()).map(|_| ()).ok_or_else(not_found)
        })
    }

    fn list_users(
        &self,
        host: Jid,
        after: Option<Jid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Jid>, AdminError>> {
        Box::pin(async move {
            let accounts = self.accounts.lock().unwrap();
            let jids = accounts.keys().map(|jid| Jid::parse(jid).unwrap());
            Ok(jids
                .filter(|jid| jid.domain() == host.as_str() && after.as_ref().is_none_or(|after| jid > after))
                .take(limit)
                .collect())
        })
    }

    fn show_user(&self, account: Jid) -> BoxFuture<'_, Result<UserDetails, AdminError>> {
        Box::pin(async move {
            if account.local() == Some("slow") {
                tokio::time::sleep(Duration::from_secs(3600)).await;
            }
            let accounts = self.accounts.lock().unwrap();
            let (jid, _) = accounts.get_key_value(account.as_str()).ok_or_else(not_found)?;
            Ok(UserDetails {
                jid: jid.clone(),
                admin: false,
                offline_messages: 3,
                sessions: vec![session(1)],
            })
        })
    }

    fn list_sessions(&self, account: Option<Jid>) -> BoxFuture<'_, Result<Vec<SessionRow>, AdminError>> {
        let count = if account.is_some() { 1 } else { MAX_PAGE + 3 };
        Box::pin(async move { Ok((0..count).map(session).collect()) })
    }

    fn kick(&self, target: Jid, error: StreamError) -> BoxFuture<'_, Result<usize, AdminError>> {
        self.kicked.lock().unwrap().push((target, error));
        Box::pin(async { Ok(1) })
    }

    fn list_domains(&self, remote: Option<Jid>) -> BoxFuture<'_, Result<Vec<DomainRow>, AdminError>> {
        let rows = match remote {
            Some(remote) if remote.as_str() != "far.example" => Vec::new(),
            Some(_) => vec![domain("far.example")],
            None => vec![domain("far.example"), domain("near.example")],
        };
        Box::pin(async { Ok(rows) })
    }

    fn retry_domain(&self, remote: Jid) -> BoxFuture<'_, Result<usize, AdminError>> {
        Box::pin(async move { Ok(usize::from(remote.as_str() == "far.example")) })
    }

    fn flush_domain(&self, _: Jid) -> BoxFuture<'_, Result<u64, AdminError>> {
        Box::pin(async { Ok(7) })
    }

    fn reload_certificates(&self) -> BoxFuture<'_, Result<Vec<String>, AdminError>> {
        Box::pin(async { Ok(vec!["soon".into()]) })
    }

    fn status(&self, _: bool) -> BoxFuture<'_, Result<Status, AdminError>> {
        // Far more than a response may have.
        let version = "x".repeat(protocol::MAX_RESPONSE);
        let (storage, durability) = ("memory".to_owned(), "memory".to_owned());
        let status = Status {
            version,
            pid: 1,
            uptime: 2,
            hosts: self.hosts(),
            storage,
            durability,
            sessions: 3,
            routes: 4,
            memory: None,
            descriptors: None,
            commits: None,
            timers: None,
        };
        Box::pin(async { Ok(status) })
    }
}

/// A server on a thread of its own.
struct Fixture {
    folder: tempfile::TempDir,
    backend: Arc<Memory>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Arc::new(Memory::default());
        let socket = AdminSocket::bind(folder.path()).unwrap();
        let dispatcher = Dispatcher::new(backend.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let stopped = async move { stopped.await.unwrap_or(()) };
            runtime.block_on(serve(socket, dispatcher, stopped)).unwrap();
        });
        Self { folder, backend, stop: Some(stop), thread: Some(thread) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("admin.sock")
    }

    fn client(&self) -> Client {
        Client::connect(self.folder.path()).unwrap().unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// What the server answers to bytes after which nothing more comes.
    fn answer_to(&self, bytes: &[u8]) -> String {
        let mut stream = self.raw();
        // The server may have hung up before all is written.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().unwrap().join().unwrap();
        assert!(!self.path().exists(), "the socket was left behind");
    }
}

fn add(client: &mut Client, users: &[(&str, &str)]) -> Vec<Option<ErrorKind>> {
    let users = users
        .iter()
        .map(|(jid, password)| NewUser { jid: (*jid).into(), password: Password::new((*password).into()) });
    match client.ask(&Request::AddUsers { users: users.collect() }).unwrap() {
        Response::Added { errors } => errors.into_iter().map(|error| error.map(|error| error.kind)).collect(),
        other => panic!("{other:?}"),
    }
}

fn refused(client: &mut Client, request: &Request) -> AdminError {
    match client.ask(request).unwrap_err() {
        ClientError::Refused(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn accounts_are_made_one_by_one_and_each_has_its_result() {
    let server = Fixture::new();
    let mut client = server.client();
    let results = add(
        &mut client,
        &[
            ("Ann@LocalHost", "a"),
            ("no jid@", "b"),
            ("bob@localhost", "bad"),
            ("ann@localhost", "c"),
            ("c@b.example", "d"),
        ],
    );
    assert_eq!(
        results,
        [None, Some(ErrorKind::BadRequest), Some(ErrorKind::BadPassword), Some(ErrorKind::Exists), None]
    );
    assert_eq!(
        server.backend.accounts.lock().unwrap().keys().collect::<Vec<_>>(),
        ["ann@localhost", "c@b.example"]
    );
    let users = (0..=MAX_ADD)
        .map(|n| NewUser { jid: format!("u{n}@localhost"), password: Password::new("x".into()) });
    let error = refused(&mut client, &Request::AddUsers { users: users.collect() });
    assert_eq!(error.kind, ErrorKind::BadRequest);
}

#[test]
fn accounts_are_changed_shown_and_removed() {
    let server = Fixture::new();
    let mut client = server.client();
    add(&mut client, &[("ann@localhost", "a")]);
    let jid = || "ann@localhost".to_owned();
    let new = Request::SetPassword { jid: jid(), password: Password::new("new".into()) };
    assert_eq!(client.ask(&new).unwrap(), Response::Done {});
    assert_eq!(server.backend.accounts.lock().unwrap()["ann@localhost"], "new");
    match client.ask(&Request::ShowUser { jid: jid() }).unwrap() {
        Response::User(user) => assert_eq!((user.offline_messages, user.sessions), (3, vec![session(1)])),
        other => panic!("{other:?}"),
    }
    assert_eq!(client.ask(&Request::RemoveUser { jid: jid() }).unwrap(), Response::Done {});
    assert_eq!(refused(&mut client, &Request::RemoveUser { jid: jid() }).kind, ErrorKind::NotFound);
}

#[test]
fn only_accounts_of_this_server_are_asked_for() {
    let server = Fixture::new();
    let mut client = server.client();
    for (jid, message) in [
        (
            "ann@other.example",
            "\"other.example\" is no host of this server; its hosts are: localhost, b.example",
        ),
        ("localhost", "\"localhost\" is no account; one looks like \"name@localhost\""),
        ("ann@localhost/x", "\"ann@localhost/x\" is a session; the account is \"ann@localhost\""),
        ("@", "\"@\" is no JID: a part of the address is empty"),
    ] {
        let error = refused(&mut client, &Request::ShowUser { jid: jid.into() });
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::BadRequest, message));
    }
}

#[test]
fn only_domains_of_other_servers_are_asked_for() {
    let server = Fixture::new();
    let mut client = server.client();
    let ask = |domain: &str| Request::ShowDomain { domain: domain.to_owned() };
    for (text, message) in [
        ("localhost", "\"localhost\" is served here"),
        ("ann@far.example", "\"ann@far.example\" is no domain; this one is \"far.example\""),
        ("", "\"\" is no domain: a part of the address is empty"),
    ] {
        let error = refused(&mut client, &ask(text));
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::BadRequest, message));
    }
    let Response::Domains { domains } = client.ask(&Request::ListDomains {}).unwrap() else { panic!() };
    assert_eq!(domains.len(), 2);
    let Response::Domains { domains } = client.ask(&ask("Far.Example")).unwrap() else { panic!() };
    assert_eq!(domains, [domain("far.example")]);
    assert_eq!(refused(&mut client, &ask("near.example")).kind, ErrorKind::NotFound);
    let retry = |domain: &str| Request::RetryDomain { domain: domain.to_owned() };
    assert_eq!(client.ask(&retry("far.example")).unwrap(), Response::Retried { pairs: 1 });
    assert_eq!(refused(&mut client, &retry("near.example")).kind, ErrorKind::NotFound);
    let flush = Request::FlushDomain { domain: "near.example".to_owned() };
    assert_eq!(client.ask(&flush).unwrap(), Response::Flushed { stanzas: 7 });
}

/// Walks through all pages.
fn all_users(client: &mut Client, host: Option<&str>, limit: usize) -> Vec<String> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let request = Request::ListUsers { host: host.map(str::to_owned), after, limit };
        let Response::Users { jids, more } = client.ask(&request).unwrap() else { panic!() };
        assert!(jids.len() <= limit && !(more && jids.is_empty()));
        all.extend(jids);
        after = all.last().cloned();
        if !more {
            return all;
        }
    }
}

#[test]
fn pages_of_every_size_give_every_account_once() {
    let server = Fixture::new();
    let mut client = server.client();
    assert_eq!(all_users(&mut client, None, 5), [""; 0]);
    let names: Vec<String> =
        (0..7).flat_map(|n| [format!("u{n}@localhost"), format!("u{n}@b.example")]).collect();
    let users: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    add(&mut client, &users);
    let mut sorted = names.clone();
    sorted.sort_by_key(|jid| jid.split('@').rev().map(str::to_owned).collect::<Vec<_>>());
    for limit in 1..=15 {
        assert_eq!(all_users(&mut client, None, limit), sorted, "{limit}");
        assert_eq!(all_users(&mut client, Some("localhost"), limit), sorted[7..], "{limit}");
    }
    for limit in [0, MAX_PAGE + 1] {
        let error = refused(&mut client, &Request::ListUsers { host: None, after: None, limit });
        assert_eq!(error.kind, ErrorKind::BadRequest);
    }
}

#[test]
fn sessions_are_listed_by_pages_and_closed() {
    let server = Fixture::new();
    let mut client = server.client();
    let mut page =
        |after| match client.ask(&Request::ListSessions { jid: None, after, limit: MAX_PAGE }).unwrap() {
            Response::Sessions { sessions, more } => (sessions, more),
            other => panic!("{other:?}"),
        };
    let (first, more) = page(None);
    assert!(first.len() == MAX_PAGE && more);
    let (second, more) = page(Some(first[MAX_PAGE - 1].jid.clone()));
    assert!(second == [session(MAX_PAGE), session(MAX_PAGE + 1), session(MAX_PAGE + 2)] && !more);

    let kick = Request::Kick {
        jid: "Ann@localhost/r1".into(),
        condition: Condition::NotAuthorized,
        text: Some("out".into()),
    };
    assert_eq!(client.ask(&kick).unwrap(), Response::Kicked { sessions: 1 });
    let (jid, error) = server.backend.kicked.lock().unwrap().pop().unwrap();
    assert_eq!(jid.as_str(), "ann@localhost/r1");
    assert_eq!(error, StreamError::new(waystation_core::StreamCondition::NotAuthorized).with_text("out"));
    assert_eq!(
        client.ask(&Request::Reload {}).unwrap(),
        Response::Reloaded { warnings: vec!["soon".into()] }
    );
}

#[test]
fn lines_that_are_no_requests_are_refused_without_quoting_them() {
    let server = Fixture::new();
    for line in [
        "\n",
        "secret\n",
        "{}\n",
        "[1]\n",
        "{\"version\":1}\n",
        "{\"version\":1,\"request\":{\"op\":\"secret\"}}\n",
        "{\"version\":1,\"request\":{\"op\":\"status\"},\"secret\":1}\n",
        "{\"version\":1,\"request\":{\"op\":\"show_user\",\"jid\":\"a@b\",\"secret\":1}}\n",
        "{\"version\":1,\"request\":{\"op\":\"set_password\",\"jid\":\"ann@localhost\",\"password\":[\"secret\"]}}\n",
        "\u{1}\u{0}\n",
    ] {
        let answer = server.answer_to(line.as_bytes());
        assert!(answer.contains("\"kind\":\"bad_request\""), "{line:?}: {answer}");
        assert!(!answer.contains("secret"), "{line:?}: {answer}");
    }
    let answer = server.answer_to(b"{\"version\":2,\"request\":{\"op\":\"from the future\"}}\n");
    assert!(answer.contains("\"kind\":\"version\""), "{answer}");
    assert_eq!(server.answer_to(b"{\"version\":1"), "", "nobody waits for the answer to half a line");
    // Several requests on one connection, one of them wrong.
    let status = "{\"version\":1,\"request\":{\"op\":\"reload\"}}\n";
    let answer = server.answer_to(format!("{status}x\n{status}").as_bytes());
    assert_eq!(answer.lines().count(), 3, "{answer}");
}

#[test]
fn lines_have_a_limit() {
    let server = Fixture::new();
    let answer = server.answer_to(&vec![b' '; MAX_REQUEST + 10]);
    assert!(answer.contains("longer than 1048576 bytes"), "{answer}");
    assert_eq!(
        refused(&mut server.client(), &Request::Status { timers: false }).message,
        "the answer is too long; ask for less at once"
    );
    // The largest request that is allowed passes.
    let users: Vec<NewUser> = (0..MAX_ADD)
        .map(|n| NewUser { jid: format!("u{n}@localhost"), password: Password::new("x".repeat(1023)) })
        .collect();
    let request = Request::AddUsers { users };
    assert!(serde_json::to_vec(&RequestLine { version: 1, request: &request }).unwrap().len() < MAX_REQUEST);
    assert!(matches!(server.client().ask(&request).unwrap(), Response::Added { .. }));
}

#[test]
fn connections_have_a_limit_and_a_silent_one_costs_only_its_own_place() {
    let server = Fixture::new();
    let ping = |client: &mut Client| client.ask(&Request::Reload {});
    let mut clients: Vec<Client> = (0..16).map(|_| server.client()).collect();
    for client in &mut clients {
        ping(client).unwrap();
    }
    let error = refused(&mut server.client(), &Request::Reload {});
    assert_eq!(error.kind, ErrorKind::Busy);
    clients.pop();
    let start = std::time::Instant::now();
    while ping(&mut server.client()).is_err() {
        assert!(start.elapsed() < DEADLINE, "the place was never freed");
    }
}

#[test]
fn a_stop_does_not_wait_for_requests() {
    let server = Fixture::new();
    let mut stream = server.raw();
    stream
        .write_all(b"{\"version\":1,\"request\":{\"op\":\"show_user\",\"jid\":\"slow@localhost\"}}\n")
        .unwrap();
    // Answered after it on another connection, so the slow one has been read.
    let _ = server.client().ask(&Request::Reload {}).unwrap();
    drop(server);
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_has_a_deadline() {
    let dispatcher = Dispatcher::new(Arc::new(Memory::default()));
    let error = dispatcher.answer(Request::ShowUser { jid: "slow@localhost".into() }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
}

#[test]
fn a_server_that_is_gone_is_an_error() {
    let server = Fixture::new();
    let mut client = server.client();
    let folder = server.folder.path().to_owned();
    drop(server);
    assert!(matches!(client.ask(&Request::Reload {}), Err(ClientError::Io(_))));
    assert!(Client::connect(Path::new(&folder)).unwrap().is_none());
}

#[test]
fn m16_passwords_do_not_show() {
    let user = NewUser { jid: "a@b".into(), password: Password::new("CANARY".into()) };
    let request = Request::AddUsers { users: vec![user] };
    let account = NewAccount { jid: Jid::parse("a@b").unwrap(), password: Password::new("CANARY".into()) };
    assert!(!format!("{request:?} {account:?}").contains("CANARY"));
}

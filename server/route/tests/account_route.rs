//! The account route as an actor: its order, its limits, its failures.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use waystation_core::account::{
    AccountPresence, Effects, IqHandler, IqRequest, LiveSession, Persist, PresenceLogic, Relation,
};
use waystation_core::archive::{Archive, Archived};
use waystation_core::module::{AccountRegistry, IqRegistration, RegistryError, Requests, Scope};
use waystation_core::queue::RecordId;
use waystation_core::storage::{Batch, BoxFuture, Durability, Row, ScanRange, Space, Storage, StorageError};
use waystation_core::{
    Element, IqType, Jid, MessageType, PresenceType, SessionId, Sessions, Stanza, StanzaError, StanzaType,
    StreamCondition,
};
use waystation_route::router::RouterParts;
use waystation_route::{
    AccountMail, BindError, BindRequest, Detachment, Intake, IqTable, OrderToken, Origin, Outbound, Passage,
    Receipts, ResumeRequest, Routed, Router, RouterConfig, SessionMail,
};
use waystation_runtime::{Arbiters, Inlet, outlet};

/// Available presence makes a session available; `subscribe` commits something and then echoes
/// itself to the sender; one from another account is delivered and commits something. No roster.
struct Logic {
    fail_load: Arc<AtomicBool>,
    loads: Arc<AtomicUsize>,
}
struct Account;

impl PresenceLogic for Logic {
    fn load(&self, _: Jid) -> BoxFuture<'static, Result<Box<dyn AccountPresence>, StorageError>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let fail = self.fail_load.load(Ordering::SeqCst);
        Box::pin(async move {
            if fail { Err(StorageError::Io("broken".into())) } else { Ok(Box::new(Account) as _) }
        })
    }
    fn iq_namespaces(&self) -> &'static [&'static str] {
        &["urn:roster"]
    }
}

impl AccountPresence for Account {
    fn outbound(&mut self, sessions: &mut Sessions, id: SessionId, presence: Stanza, effects: &mut Effects) {
        let Some(session) = sessions.get_mut(id) else { return };
        match presence.stanza_type() {
            StanzaType::Presence(PresenceType::Available) => session.presence = Some(presence),
            StanzaType::Presence(PresenceType::Unavailable) => session.presence = None,
            _ => {
                let echo = waystation_core::account::Effect::ToSession(id, presence.clone());
                let batch =
                    Batch::new().put(Space("test"), Bytes::from_static(b"k"), Bytes::from_static(b"v"));
                effects.persist(Persist { batch, then: vec![echo], request: Some(presence) });
            }
        }
    }
    fn inbound(&mut self, sessions: &mut Sessions, presence: Stanza, effects: &mut Effects) {
        if presence.stanza_type() == StanzaType::Presence(PresenceType::Subscribe) {
            sessions.iter().for_each(|session| effects.deliver(session.id, presence.clone()));
            let batch = Batch::new().put(Space("test"), Bytes::from_static(b"k"), Bytes::from_static(b"w"));
            return effects.persist(Persist { batch, then: Vec::new(), request: Some(presence) });
        }
        let resource = presence.to().and_then(|to| to.resource());
        if let Some(session) = resource.and_then(|r| sessions.by_resource(r)) {
            effects.to_session(session.id, presence);
        }
    }
    fn iq(&mut self, _: &mut Sessions, id: SessionId, iq: Stanza, effects: &mut Effects) {
        effects.to_session(id, iq.result(None));
    }
    fn session_closed(&mut self, _: &mut Sessions, _: LiveSession, _: &mut Effects) {}
    fn relation(&self, jid: &Jid) -> Relation {
        if jid.bare_str() == "a@h" { Relation::Own } else { Relation::Stranger }
    }
    fn account_removed(&mut self, _: &mut Sessions, _: &mut Effects) {}
}

struct Registry;
impl AccountRegistry for Registry {
    fn exists(&self, account: Jid) -> BoxFuture<'static, Result<bool, StorageError>> {
        Box::pin(async move { Ok(account.local() != Some("nobody")) })
    }
    fn create(&self, _: Jid, _: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Ok(false) })
    }
    fn set_password(&self, _: Jid, _: String) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Ok(false) })
    }
    fn remove(&self, _: Jid, _: Option<SessionId>) -> BoxFuture<'static, Result<bool, RegistryError>> {
        Box::pin(async { Ok(false) })
    }
}

/// Commits take 20 ms, or fail.
struct SlowStorage(Arc<AtomicBool>);
impl Storage for SlowStorage {
    fn get(&self, _: Space, _: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(async { Ok(None) })
    }
    fn scan(&self, _: Space, _: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
    fn commit(&self, _: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        let fail = self.0.load(Ordering::SeqCst);
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            if fail { Err(StorageError::Full) } else { Ok(()) }
        })
    }
    fn durability(&self) -> Durability {
        Durability::Memory
    }
    fn name(&self) -> &'static str {
        "slow"
    }
    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(async { Ok(()) })
    }
}

struct Answers(&'static str);
impl IqHandler for Answers {
    fn handle(&self, _: IqRequest) -> BoxFuture<'static, Result<Option<Element>, StanzaError>> {
        let what = self.0;
        Box::pin(async move {
            assert!(what != "panic", "as the test wants it");
            if what == "slow" {
                std::future::pending::<()>().await;
            }
            Ok(Some(Element::new("answer", "urn:t")))
        })
    }
}

struct World {
    router: Arc<Router>,
    intake: Arc<Intake>,
    fail_load: Arc<AtomicBool>,
    fail_commit: Arc<AtomicBool>,
    loads: Arc<AtomicUsize>,
}

/// Remembers what it was given, or fails.
#[derive(Default)]
struct Shelf {
    fail: AtomicBool,
    failures: AtomicUsize,
    bodies: Mutex<Vec<String>>,
}

impl Archive for Shelf {
    fn add(&self, account: Jid, messages: Vec<Archived>) -> BoxFuture<'static, Result<(), StorageError>> {
        // Some belong to the senders' archives.
        let result = if account.as_str() == "a@h" && self.fail.load(Ordering::SeqCst) {
            self.failures.fetch_add(1, Ordering::SeqCst);
            Err(StorageError::Full)
        } else {
            if account.as_str() == "a@h" {
                self.bodies.lock().unwrap().extend(messages.iter().map(|message| describe(&message.stanza)));
            }
            Ok(())
        };
        Box::pin(async move { result })
    }
    fn newest(&self, _: Jid) -> BoxFuture<'static, Result<Option<RecordId>, StorageError>> {
        Box::pin(async { Ok(None) })
    }
}

async fn world() -> World {
    world_with(None).await
}

async fn world_with(archive: Option<Arc<dyn Archive>>) -> World {
    let (fail_load, fail_commit, loads) = <(Arc<AtomicBool>, Arc<AtomicBool>, Arc<AtomicUsize>)>::default();
    let intake = Intake::new(waystation_queue::memory()).await.unwrap();
    let mut iqs = IqTable::new(Duration::from_millis(200));
    for (element, what) in [("panic", "panic"), ("fine", "fine"), ("slow", "slow")] {
        iqs.add(IqRegistration {
            namespace: "urn:t",
            element,
            scope: Scope::Host,
            requests: Requests::Both,
            handler: Arc::new(Answers(what)),
        })
        .unwrap();
    }
    let router = Router::new(RouterParts {
        hosts: vec!["h".into()],
        config: RouterConfig { linger: Duration::ZERO, sessions_per_account: 3, ..RouterConfig::default() },
        arbiters: Arc::new(Arbiters::start(1)),
        iqs,
        storage: Arc::new(SlowStorage(fail_commit.clone())),
        presence: Arc::new(Logic { fail_load: fail_load.clone(), loads: loads.clone() }),
        intake: intake.clone(),
        archive,
        accounts: Arc::new(Registry),
        observers: Vec::new(),
    });
    actix_rt::spawn(intake.clone().run(Arc::downgrade(&router)));
    World { router, intake, fail_load, fail_commit, loads }
}

struct Bound {
    id: SessionId,
    jid: Jid,
}

struct Client {
    router: Arc<Router>,
    bound: Bound,
    inlet: Inlet<SessionMail>,
    done: Arc<AtomicU64>,
    waiting: VecDeque<SessionMail>,
}

fn jid(s: &str) -> Jid {
    Jid::parse(s).unwrap()
}

async fn bind(world: &World, account: &str, resource: &str, items: usize) -> Result<Client, BindError> {
    let (outlet, inlet) = outlet(1 << 20, items);
    let request = BindRequest {
        account: jid(account),
        resource: Some(resource.into()),
        outlet,
        inlet,
        peer: "127.0.0.1:1".parse().unwrap(),
        security: "none",
    };
    let (id, jid, inlet) = world.router.bind(request).await?.start();
    Ok(Client {
        router: world.router.clone(),
        bound: Bound { id, jid },
        inlet,
        done: Arc::default(),
        waiting: VecDeque::new(),
    })
}

impl Client {
    fn presence(&self, kind: PresenceType) -> u64 {
        let stanza =
            Stanza::build(StanzaType::Presence(kind), Some(self.bound.jid.clone()), None, Some("p"), "");
        self.outbound(stanza)
    }

    fn outbound(&self, stanza: Stanza) -> u64 {
        let before = self.done.load(Ordering::SeqCst);
        let outbound = Outbound { token: OrderToken::new(self.done.clone()), receipt: None, stream: None };
        let mail = AccountMail::Outbound(self.bound.id, stanza, outbound);
        assert!(self.router.to_account(&self.bound.jid, mail).is_ok());
        before + 1
    }

    /// Everything that has arrived, in words: bodies of messages, types of the rest.
    async fn next(&mut self) -> String {
        let wait = async {
            while self.waiting.is_empty() {
                self.waiting.extend(poll_fn(|cx| self.inlet.poll_take(cx)).await);
            }
        };
        tokio::time::timeout(Duration::from_secs(5), wait).await.expect("nothing arrived");
        match self.waiting.pop_front().unwrap() {
            SessionMail::Close(error) => error.condition.as_str().to_owned(),
            SessionMail::Yield => "yield".to_owned(),
            mail @ (SessionMail::Stanza(_) | SessionMail::Record(..)) => {
                self.inlet.release(waystation_runtime::Weigh::weight(&mail), 1);
                if let SessionMail::Record(_, id) = mail {
                    self.router.control(&self.bound.jid, AccountMail::Confirmed(self.bound.id, id));
                }
                describe(&mail.into_stanza().unwrap())
            }
        }
    }

    fn unbind(self) {
        drop(self);
    }
}

/// Like a session, a client unbinds whatever ends it.
impl Drop for Client {
    fn drop(&mut self) {
        let mut left: Vec<_> = self.waiting.drain(..).collect();
        left.extend(self.inlet.close());
        let leftovers = waystation_route::mail::leftovers(left);
        self.router.control(&self.bound.jid, AccountMail::Unbind(self.bound.id, leftovers));
    }
}

fn describe(stanza: &Stanza) -> String {
    let element = stanza.element().unwrap();
    if let Some(body) = element.child("body", "jabber:client") {
        return body.text();
    }
    let error = element.child("error", "jabber:client").and_then(|e| e.children().next());
    error.map_or_else(|| stanza.stanza_type().attribute().unwrap_or("").to_owned(), |e| e.name().to_owned())
}

fn send(world: &World, from: &str, to: &str, body: &str) -> Routed {
    let inner = format!("<body>{body}</body>");
    let kind = StanzaType::Message(MessageType::Chat);
    let stanza = Stanza::build(kind, Some(jid(from)), Some(jid(to)), None, &inner);
    world.router.route(stanza, Origin::Server, Passage::default())
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// What waits in the queue of `a@h`.
async fn waiting(world: &World) -> Vec<String> {
    let read = world.intake.backend().read("a/a@h".into(), None, 1_000, usize::MAX).await.unwrap();
    read.iter().map(|record| describe(&Stanza::parse(&record.payload).unwrap())).collect()
}

async fn until_waiting(world: &World, count: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let waiting = waiting(world).await.len();
        if waiting == count {
            return;
        }
        assert!(Instant::now() < deadline, "{waiting} wait, not {count}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[actix_rt::test]
async fn stored_messages_come_first_and_newer_ones_stay_behind_them() {
    let world = world().await;
    for i in 0..150 {
        send(&world, "x@h/r", "a@h", &format!("old{i}"));
    }
    until_waiting(&world, 150).await;
    let mut client = bind(&world, "a@h", "r", 10_000).await.unwrap();
    client.presence(PresenceType::Available);
    for i in 0..50 {
        send(&world, "x@h/r", "a@h", &format!("new{i}"));
        tokio::task::yield_now().await;
    }
    for i in 0..150 {
        assert_eq!(client.next().await, format!("old{i}"));
    }
    for i in 0..50 {
        assert_eq!(client.next().await, format!("new{i}"));
    }
    // Each left the queue when it was confirmed, and not before.
    until_waiting(&world, 0).await;
}

#[actix_rt::test]
async fn a_client_that_does_not_read_is_closed_and_nothing_is_lost_or_reordered() {
    let world = world().await;
    let slow = bind(&world, "a@h", "slow", 3).await.unwrap();
    slow.presence(PresenceType::Available);
    until("presence is handled", || slow.done.load(Ordering::SeqCst) == 1).await;
    for i in 0..6 {
        send(&world, "x@h/r", "a@h", &i.to_string());
    }
    // The route waits for the session's end before it goes on.
    let mut slow = slow;
    let mut mails = Vec::new();
    while mails.len() < 4 {
        mails.extend(poll_fn(|cx| slow.inlet.poll_take(cx)).await);
    }
    assert!(
        matches!(mails.last(), Some(SessionMail::Close(e)) if e.condition == StreamCondition::PolicyViolation),
        "{mails:?}"
    );
    slow.waiting.extend(mails);
    slow.unbind();
    until("the route has let go of them", || world.router.routes() == 0).await;
    assert_eq!(waiting(&world).await, ["0", "1", "2", "3", "4", "5"]);
    // The next session gets them in order, and what came last, last.
    let mut next = bind(&world, "a@h", "next", 100).await.unwrap();
    next.presence(PresenceType::Available);
    for i in 0..6 {
        assert_eq!(next.next().await, i.to_string());
    }
    until_waiting(&world, 0).await;
}

#[actix_rt::test]
async fn m13_a_newer_bind_takes_the_resource_and_a_stale_unbind_changes_nothing() {
    let world = world().await;
    let mut old = bind(&world, "a@h", "r", 100).await.unwrap();
    let (id, account) = (old.bound.id, old.bound.jid.clone());
    let mut new = bind(&world, "a@h", "r", 100).await.unwrap();
    assert_eq!(old.next().await, "conflict");
    old.unbind();
    world.router.control(&account, AccountMail::Unbind(id, Vec::new()));
    send(&world, "x@h/r", "a@h/r", "hello");
    assert_eq!(new.next().await, "hello");
    assert_eq!(world.router.sessions(Some(&account)).await.len(), 1);
    let _others =
        (bind(&world, "a@h", "s", 100).await.unwrap(), bind(&world, "a@h", "t", 100).await.unwrap());
    assert_eq!(bind(&world, "a@h", "u", 100).await.err(), Some(BindError::TooMany));
    // A conflict takes no new place; the route waits for what the older session still holds.
    let (newest, _) = tokio::join!(bind(&world, "a@h", "r", 100), async {
        assert_eq!(new.next().await, "conflict");
        new.unbind();
    });
    newest.unwrap();
    drop(_others);
    assert_eq!(bind(&world, "a@h", "\u{0}", 100).await.err(), Some(BindError::Malformed));
    assert_eq!(bind(&world, "nobody@h", "r", 100).await.err(), Some(BindError::NoAccount));
}

#[actix_rt::test]
async fn a_state_that_cannot_be_loaded_is_told_and_does_not_last() {
    let world = world().await;
    let mut witness = bind(&world, "w@h", "r", 100).await.unwrap();
    world.fail_load.store(true, Ordering::SeqCst);
    // What nothing keeps is refused; a message is in the queue, and stays there.
    let iq = Stanza::build(
        StanzaType::Iq(IqType::Get),
        Some(witness.bound.jid.clone()),
        Some(jid("a@h")),
        Some("1"),
        "<fine xmlns='urn:t'/>",
    );
    world.router.route(iq, Origin::Session(witness.bound.id), Passage::default());
    assert_eq!(witness.next().await, "internal-server-error");
    send(&world, "w@h/r", "a@h", "kept");
    until_waiting(&world, 1).await;
    assert_eq!(bind(&world, "a@h", "r", 100).await.err(), Some(BindError::Unavailable));
    world.fail_load.store(false, Ordering::SeqCst);
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    client.presence(PresenceType::Available);
    assert_eq!(client.next().await, "kept");
}

#[actix_rt::test]
async fn what_follows_a_commit_waits_for_it() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    let mut friend = bind(&world, "b@h", "r", 100).await.unwrap();
    client.presence(PresenceType::Subscribe);
    let done = client.presence(PresenceType::Available);
    assert_eq!(client.done.load(Ordering::SeqCst), 0, "nothing is done before the commit");
    assert_eq!(client.next().await, "subscribe");
    until("both are done", || client.done.load(Ordering::SeqCst) == done + 1).await;
    // A message sent the same way is routed like any other.
    let kind = StanzaType::Message(MessageType::Chat);
    let message =
        Stanza::build(kind, Some(client.bound.jid.clone()), Some(jid("b@h/r")), None, "<body>hi</body>");
    client.outbound(message);
    assert_eq!(friend.next().await, "hi");
}

#[actix_rt::test]
async fn a_message_does_not_overtake_a_subscription_request_whose_commit_is_slow() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    for number in 0..5 {
        let kind = StanzaType::Presence(PresenceType::Subscribe);
        let request = Stanza::build(kind, Some(jid("b@h")), Some(jid("a@h")), None, "");
        world.router.route(request, Origin::Server, Passage::default());
        send(&world, "b@h/r", "a@h/r", &number.to_string());
    }
    for number in 0..5 {
        assert_eq!(client.next().await, "subscribe");
        assert_eq!(client.next().await, number.to_string());
    }
}

#[actix_rt::test]
async fn a_failed_commit_is_told_and_the_state_is_read_anew() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    let loads = world.loads.load(Ordering::SeqCst);
    world.fail_commit.store(true, Ordering::SeqCst);
    client.presence(PresenceType::Subscribe);
    // Worked out while the commit is under way, from a state that will not have been stored.
    let done = client.presence(PresenceType::Subscribe);
    client.presence(PresenceType::Available);
    assert_eq!(client.next().await, "resource-constraint");
    assert_eq!(client.next().await, "resource-constraint", "the second is refused, not committed");
    until("all are done", || client.done.load(Ordering::SeqCst) > done).await;
    until("the state is read anew", || world.loads.load(Ordering::SeqCst) == loads + 1).await;
    send(&world, "x@h/r", "a@h/r", "still here");
    assert_eq!(client.next().await, "still here");
}

#[actix_rt::test]
async fn a_panic_or_a_stall_in_a_handler_costs_one_iq() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    for (inner, expected) in [
        ("<panic xmlns='urn:t'/>", "internal-server-error"),
        ("<slow xmlns='urn:t'/>", "remote-server-timeout"),
        ("<fine xmlns='urn:t'/>", "result"),
        ("<unknown xmlns='urn:t'/>", "service-unavailable"),
    ] {
        let iq = StanzaType::Iq(IqType::Get);
        let stanza = Stanza::build(iq, Some(client.bound.jid.clone()), Some(jid("h")), Some("1"), inner);
        world.router.route(stanza, Origin::Session(client.bound.id), Passage::default());
        assert_eq!(client.next().await, expected, "{inner}");
    }
}

#[actix_rt::test]
async fn a_route_that_nobody_needs_ends() {
    let world = world().await;
    send(&world, "x@h/r", "nobody@h", "hello?");
    let client = bind(&world, "a@h", "r", 100).await.unwrap();
    assert!(world.router.routes() >= 1);
    client.unbind();
    until("no route is left", || world.router.routes() == 0).await;
}

#[actix_rt::test]
async fn a_full_route_gives_the_stanza_back() {
    let world = world().await;
    // The route is started but has not had its turn, so it takes nothing out.
    let mut refused = 0;
    for _ in 0..RouterConfig::default().route_items + 5 {
        let to = Some(jid("a@h"));
        let headline =
            Stanza::build(StanzaType::Message(MessageType::Headline), Some(jid("x@h/r")), to, None, "");
        if let Routed::Busy(..) = world.router.route(headline, Origin::Server, Passage::default()) {
            refused += 1;
        }
    }
    assert_eq!(refused, 5);
}

#[actix_rt::test]
async fn a_full_route_reads_the_log_itself_and_misses_nothing() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 20_000).await.unwrap();
    client.presence(PresenceType::Available);
    until("presence is handled", || client.done.load(Ordering::SeqCst) == 1).await;
    // More than the route has room for, committed before it has its turn.
    let count = RouterConfig::default().route_items + 500;
    for i in 0..count {
        send(&world, "x@h/r", "a@h", &i.to_string());
    }
    for i in 0..count {
        assert_eq!(client.next().await, i.to_string());
    }
    until_waiting(&world, 0).await;
}

#[actix_rt::test]
async fn confirmed_records_leave_the_queue_and_others_wait_for_the_next_session() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    client.presence(PresenceType::Available);
    until("presence is handled", || client.done.load(Ordering::SeqCst) == 1).await;
    for i in 0..4 {
        send(&world, "x@h/r", "a@h", &i.to_string());
    }
    assert_eq!(client.next().await, "0");
    assert_eq!(client.next().await, "1");
    until_waiting(&world, 2).await;
    // It ends without having read the rest, also what it had taken over.
    client.unbind();
    let mut next = bind(&world, "a@h", "r", 100).await.unwrap();
    next.presence(PresenceType::Available);
    assert_eq!(next.next().await, "2");
    assert_eq!(next.next().await, "3");
    until_waiting(&world, 0).await;
}

/// Without an archive, and with nobody to copy it for, a message concerns its recipient alone.
#[actix_rt::test]
async fn a_sender_is_told_whether_anybody_wants_copies() {
    let world = world().await;
    let a = bind(&world, "a@h", "1", 100).await.unwrap();
    until("the only session is alone", || a.inlet.hint()).await;
    let b = bind(&world, "a@h", "2", 100).await.unwrap();
    until("a session that wants no copies changes nothing", || a.inlet.hint() && b.inlet.hint()).await;
    let enable = Stanza::parse(
        b"<iq from='a@h/2' to='a@h' type='set' id='c'><enable xmlns='urn:xmpp:carbons:2'/></iq>",
    );
    let enable = AccountMail::Inbound(enable.unwrap(), Some(b.bound.id));
    assert!(world.router.to_account(&a.bound.jid, enable).is_ok());
    until("copies are wanted, but by the second of itself", || !a.inlet.hint() && b.inlet.hint()).await;
    let third = bind(&world, "a@h", "3", 100).await.unwrap();
    assert!(!third.inlet.hint(), "until it is told otherwise a session is not alone");
    b.unbind();
    until("nobody is left who wants them", || a.inlet.hint() && third.inlet.hint()).await;
}

#[actix_rt::test]
async fn what_concerns_nobody_else_is_in_its_recipients_queue_alone() {
    let world = world().await;
    let mut recipient = bind(&world, "x@h", "r", 100).await.unwrap();
    recipient.presence(PresenceType::Available);
    until("presence is handled", || recipient.done.load(Ordering::SeqCst) == 1).await;
    for (alone, expected) in [(false, 1), (true, 0), (false, 1)] {
        let kind = StanzaType::Message(MessageType::Chat);
        let stanza = Stanza::build(kind, Some(jid("a@h/r")), Some(jid("x@h/r")), None, "<body>hi</body>");
        let passage = Passage { alone, ..Passage::default() };
        assert!(matches!(world.router.route(stanza, Origin::Server, passage), Routed::Done));
        assert_eq!(recipient.next().await, "hi");
        // The sender's route is done with it at once, but the queue learns that with the next commit.
        assert_eq!(waiting(&world).await.len(), expected, "alone: {alone}");
    }
}

/// A message that the archive could not take was left out of it for good once a later one was taken.
#[actix_rt::test]
async fn what_the_archive_could_not_take_comes_before_what_follows() {
    let shelf = Arc::new(Shelf::default());
    shelf.fail.store(true, Ordering::SeqCst);
    let world = world_with(Some(shelf.clone())).await;
    let mut client = bind(&world, "a@h", "r", 1_000).await.unwrap();
    client.presence(PresenceType::Available);
    until("presence is handled", || client.done.load(Ordering::SeqCst) == 1).await;
    let bodies: Vec<String> = (0..300).map(|i| i.to_string()).collect();
    for (i, body) in bodies.iter().enumerate() {
        send(&world, "x@h/r", "a@h", body);
        // Delivered and confirmed all the same.
        assert_eq!(client.next().await, *body);
        if i == 1 {
            until("the archive has failed", || shelf.failures.load(Ordering::SeqCst) > 0).await;
        }
    }
    assert_eq!(waiting(&world).await, bodies);
    shelf.fail.store(false, Ordering::SeqCst);
    until("the archive has them", || shelf.bodies.lock().unwrap().len() >= bodies.len()).await;
    until_waiting(&world, 0).await;
    assert_eq!(*shelf.bodies.lock().unwrap(), bodies);
}

/// What a connection had received waited behind its presence; the session was resumed meanwhile
/// under a new identity, the message was taken for that of a session that has ended, dropped, and
/// acknowledged: lost.
#[actix_rt::test]
async fn what_was_received_before_a_resumption_is_routed_after_it() {
    let world = world().await;
    let client = bind(&world, "a@h", "r", 100).await.unwrap();
    client.presence(PresenceType::Available);
    let (reply, enabled) = tokio::sync::oneshot::channel();
    world
        .router
        .control(&jid("a@h"), AccountMail::Enable(client.bound.id, 7, Duration::from_secs(60), reply));
    enabled.await.unwrap().unwrap();
    let state = Detachment {
        unconfirmed: VecDeque::new(),
        sent: 0,
        confirmed: 0,
        received: 2,
        receipts: Receipts::default(),
        marked: 0,
        notes: VecDeque::new(),
        lang: None,
    };
    world.router.control(&jid("a@h"), AccountMail::Detach(client.bound.id, Box::new(state)));
    let (outlet, inlet) = outlet(1 << 20, 100);
    let peer = "127.0.0.1:2".parse().unwrap();
    let request = ResumeRequest { account: jid("a@h"), key: 7, h: 0, outlet, inlet, peer, security: "none" };
    let resumed = world.router.resume(request).await.map_err(|_| "not resumed").unwrap();
    assert_ne!(resumed.id, client.bound.id);
    let kind = StanzaType::Message(MessageType::Chat);
    let (from, to) = (Some(client.bound.jid.clone()), Some(jid("a@h")));
    client.outbound(Stanza::build(kind, from, to, None, "<body>late</body>"));
    until_waiting(&world, 1).await;
    assert_eq!(waiting(&world).await, ["late"]);
}

/// A message met a session that was closing: the session's end was handled before its last word of
/// what the client had, which was then delivered once more.
#[actix_rt::test]
async fn what_a_closing_session_confirms_is_not_delivered_again() {
    let world = world().await;
    let mut client = bind(&world, "a@h", "r", 100).await.unwrap();
    client.presence(PresenceType::Available);
    until("presence is handled", || client.done.load(Ordering::SeqCst) == 1).await;
    send(&world, "x@h/r", "a@h", "had");
    let mails = poll_fn(|cx| client.inlet.poll_take(cx)).await;
    let Some(SessionMail::Record(_, had)) = mails.into_iter().next() else { panic!("no record") };
    // It takes no more, and has not said so yet.
    drop(client.inlet.close());
    send(&world, "x@h/r", "a@h", "new");
    until_waiting(&world, 2).await;
    world.router.control(&client.bound.jid, AccountMail::Confirmed(client.bound.id, had));
    client.unbind();
    until_waiting(&world, 1).await;
    assert_eq!(waiting(&world).await, ["new"]);
}

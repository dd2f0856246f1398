//! A server without clients' connections, and a peer that the tests play.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use waystation_core::module::{AccountRegistry, Module, RegistryError};
use waystation_core::queue::QueueBackend;
use waystation_core::storage::{BoxFuture, StorageError};
use waystation_core::{Jid, SessionId, Stanza};
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::domain::{DomainConfig, DomainInfo};
use waystation_route::remote::StreamRequest;
use waystation_route::router::RouterParts;
use waystation_route::{
    AccountMail, BindRequest, Intake, IqTable, OrderToken, Origin, Outbound, Passage, Receipts, Routed,
    Router, RouterConfig, SessionMail,
};
use waystation_runtime::{Arbiters, Inlet, Weigh, outlet};

use crate::peer::{Peer, Streams};
use crate::stores::{Queue, Rows};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

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

pub(crate) struct World {
    pub(crate) router: Arc<Router>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) receipts: Receipts,
    sent: AtomicU64,
}

/// Times that suit a test.
pub(crate) fn quick() -> DomainConfig {
    DomainConfig {
        retry_min: Duration::from_millis(20),
        retry_max: Duration::from_millis(100),
        new_domains: 1_000,
        ..DomainConfig::default()
    }
}

pub(crate) async fn world(config: DomainConfig) -> World {
    world_on(waystation_queue::memory(), config).await
}

/// A world whose queue is in a folder, and can be started again.
pub(crate) async fn world_in(folder: &Path, config: DomainConfig) -> World {
    let queue = waystation_queue::open(folder, &waystation_queue::Options::default()).unwrap();
    let world = world_on(queue, config).await;
    world.router.start_domains().await.unwrap();
    world
}

pub(crate) async fn world_on(inner: Arc<dyn QueueBackend>, config: DomainConfig) -> World {
    world_with(1, inner, config).await
}

/// A world whose actors live on so many threads.
pub(crate) async fn world_with(arbiters: usize, inner: Arc<dyn QueueBackend>, config: DomainConfig) -> World {
    let [full, slow, late] = [(); 3].map(|()| AtomicBool::new(false));
    let [takes, commits, read] = [(); 3].map(|()| AtomicU64::new(0));
    let queue = Arc::new(Queue { inner, full, slow, late, takes, commits, read });
    let intake = Intake::new(queue.clone()).await.unwrap();
    let storage = Arc::new(Rows::default());
    let roster = RosterModule::new(storage.clone(), RosterConfig::default());
    let router = Router::new(RouterParts {
        hosts: vec!["h".into(), "h2".into()],
        config: RouterConfig { linger: Duration::ZERO, domains: config, ..RouterConfig::default() },
        arbiters: Arc::new(Arbiters::start(arbiters)),
        iqs: IqTable::new(Duration::from_millis(500)),
        storage,
        presence: roster.registration().presence.unwrap(),
        intake: intake.clone(),
        archive: None,
        accounts: Arc::new(Registry),
        observers: Vec::new(),
    });
    let streams = Arc::new(Streams::default());
    router.set_remote_streams(streams.clone());
    actix_rt::spawn(intake.clone().run(Arc::downgrade(&router)));
    World { router, intake, queue, streams, receipts: Receipts::default(), sent: AtomicU64::new(0) }
}

pub(crate) fn jid(s: &str) -> Jid {
    Jid::parse(s).unwrap()
}

pub(crate) fn stanza(xml: &str) -> Stanza {
    Stanza::parse(xml.as_bytes()).unwrap()
}

pub(crate) fn message(from: &str, to: &str, body: &str) -> Stanza {
    stanza(&format!("<message type='chat' from='{from}' to='{to}' id='{body}'><body>{body}</body></message>"))
}

/// The body of a message, the condition of an error, the id of an iq, or the kind of presence and its
/// sender's resource.
pub(crate) fn describe(stanza: &Stanza) -> String {
    let element = stanza.element().unwrap();
    let error = element.child("error", "jabber:client").and_then(|error| error.children().next());
    if let Some(error) = error {
        return format!("{} {}", error.name(), stanza.id().unwrap_or_default());
    }
    if let Some(body) = element.child("body", "jabber:client") {
        return body.text();
    }
    match stanza.kind() {
        waystation_core::Kind::Presence => {
            let kind = stanza.stanza_type().attribute().unwrap_or("available");
            format!("{kind} {}", stanza.from().unwrap())
        }
        _ => stanza.id().unwrap_or_default().into_owned(),
    }
}

impl World {
    /// Sends a stanza of a session's.
    pub(crate) fn send(&self, stanza: Stanza) {
        self.send_as(stanza, Origin::Session(SessionId(7)));
    }

    pub(crate) fn send_as(&self, stanza: Stanza, origin: Origin) {
        let number = self.sent.fetch_add(1, Ordering::SeqCst) + 1;
        let behind = !self.receipts.is_clear();
        let passage = Passage { receipt: Some(self.receipts.issue(number)), behind, ..Passage::default() };
        match self.router.route(stanza, origin, passage) {
            Routed::Done => {}
            Routed::Busy(..) => panic!("busy"),
        }
    }

    pub(crate) fn message(&self, body: &str) {
        self.send(message("a@h/r", "b@remote.test", body));
    }

    pub(crate) fn iq(&self, id: &str) {
        self.send(stanza(&format!(
            "<iq type='get' from='a@h/r' to='b@remote.test' id='{id}'><ping xmlns='urn:xmpp:ping'/></iq>"
        )));
    }

    pub(crate) fn presence(&self, from: &str, kind: &str) {
        self.send(stanza(&format!("<presence from='{from}' to='b@remote.test' {kind}/>")));
    }

    /// Resolves when everything that was sent is accepted.
    pub(crate) async fn accepted(&self) {
        until("all is accepted", || self.receipts.is_clear()).await;
        assert!(!self.receipts.has_failed());
    }

    /// The next stream that is asked for.
    pub(crate) async fn asked(&self) -> Peer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(request) = self.streams.requests.lock().unwrap().pop_front() {
                let StreamRequest { pair, inlet, events, resume } = request;
                let resume = resume.and_then(|resume| resume.downcast::<u32>().ok()).map(|resume| *resume);
                let waiting = VecDeque::new();
                return Peer { pair, inlet, events: Some(events), waiting, taken: 0, resume };
            }
            assert!(Instant::now() < deadline, "no stream was asked for");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The next stream, which is up.
    pub(crate) async fn up(&self) -> Peer {
        let peer = self.asked().await;
        peer.up(None);
        peer
    }

    /// What is in a queue.
    pub(crate) async fn queued(&self, queue: &str) -> Vec<String> {
        let page = self.intake.backend().read(queue.into(), None, 100_000, usize::MAX).await.unwrap();
        page.iter().map(|record| describe(&Stanza::parse(&record.payload).unwrap())).collect()
    }

    /// Waits until so much is in the queue of `remote.test`.
    pub(crate) async fn until_queued(&self, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let queued = self.queued("d/h/remote.test").await.len();
            if queued == count {
                return;
            }
            assert!(Instant::now() < deadline, "{queued} are queued, not {count}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub(crate) async fn info(&self) -> Option<DomainInfo> {
        self.router.domain_info("remote.test").await.pop()
    }

    /// Ends the world as a server does; what its queue holds is there for the next one.
    pub(crate) async fn shut_down(self) {
        self.router
            .close_all(&waystation_core::StreamError::new(waystation_core::StreamCondition::SystemShutdown));
        self.router.settle(PATIENCE).await;
        assert_eq!(self.router.domain_routes(), 0, "a route did not end");
        self.close().await;
    }

    /// Ends the world in the middle of whatever it does.
    pub(crate) async fn close(self) {
        self.intake.settle().await;
        self.intake.stop();
        self.queue.close().await.unwrap();
    }
}

pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A client's session.
pub(crate) struct Client {
    router: Arc<Router>,
    pub(crate) id: SessionId,
    pub(crate) jid: Jid,
    inlet: Inlet<SessionMail>,
    waiting: VecDeque<SessionMail>,
}

pub(crate) async fn bind(world: &World, account: &str) -> Client {
    let (outlet, inlet) = outlet(16 << 20, 30_000);
    let request = BindRequest {
        account: jid(account),
        resource: Some("r".into()),
        outlet,
        inlet,
        peer: "127.0.0.1:1".parse().unwrap(),
        security: "none",
    };
    let (id, jid, inlet) = world.router.bind(request).await.unwrap().start();
    Client { router: world.router.clone(), id, jid, inlet, waiting: VecDeque::new() }
}

impl Client {
    pub(crate) async fn stanza(&mut self) -> Stanza {
        let wait = async {
            while self.waiting.is_empty() {
                self.waiting.extend(poll_fn(|cx| self.inlet.poll_take(cx)).await);
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("nothing arrived");
        let mail = self.waiting.pop_front().unwrap();
        self.inlet.release(mail.weight(), 1);
        if let SessionMail::Record(_, id) = &mail {
            self.router.control(&self.jid, AccountMail::Confirmed(self.id, *id));
        }
        mail.into_stanza().expect("the session was told to end")
    }

    pub(crate) async fn next(&mut self) -> String {
        describe(&self.stanza().await)
    }

    /// Resolves when the session was told to end, and ends it.
    pub(crate) async fn told_to_end(mut self) {
        let wait = async {
            while !self.waiting.iter().any(|mail| matches!(mail, SessionMail::Close(_))) {
                self.waiting.extend(poll_fn(|cx| self.inlet.poll_take(cx)).await);
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the session was not told to end");
    }

    /// Everything that has arrived.
    pub(crate) fn take_all(&mut self) -> Vec<String> {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(mails) = self.inlet.poll_take(&mut cx) {
            self.waiting.extend(mails);
        }
        let mails: Vec<_> = self.waiting.drain(..).collect();
        mails.into_iter().filter_map(SessionMail::into_stanza).map(|stanza| describe(&stanza)).collect()
    }

    /// Sends presence, by way of the account's route.
    pub(crate) fn presence(&self, attributes: &str) {
        let token = OrderToken::new(Arc::default());
        let outbound = Outbound { token, receipt: None, stream: None };
        let presence = stanza(&format!("<presence from='{}' {attributes}/>", self.jid));
        let mail = AccountMail::Outbound(self.id, presence, outbound);
        assert!(self.router.to_account(&self.jid, mail).is_ok());
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let mut left: Vec<_> = self.waiting.drain(..).collect();
        left.extend(self.inlet.close());
        let leftovers = waystation_route::mail::leftovers(left);
        self.router.control(&self.jid, AccountMail::Unbind(self.id, leftovers));
    }
}

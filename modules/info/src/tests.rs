use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use waystation_core::module::SessionObserver;
use waystation_core::storage::{Batch, Durability, Row, ScanRange, Space, StorageError};
use waystation_core::{IqType, Jid, Stanza, StanzaType};
use waystation_storage::{DataDir, Kind, Options};

use super::*;

const LAST: Space = Space("last_activity");

struct Server {
    storage: Arc<dyn Storage>,
    registration: Registration,
    _folder: tempfile::TempDir,
}

fn server(software: Option<Software>) -> Server {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = DataDir::lock(folder.path()).unwrap();
    let options = Options { kind: Kind::Memory, ..Options::default() };
    let storage = waystation_storage::open(&data_dir, &options).unwrap();
    let registration = Info::new(software, storage.clone()).registration();
    Server { storage, registration, _folder: folder }
}

fn jid(text: &str) -> Jid {
    Jid::parse(text).unwrap()
}

fn request(target: &str, relation: Relation, available: bool, payload: Element) -> IqRequest {
    let (from, target) = (jid("romeo@montague.example/a"), jid(target));
    let iq = StanzaType::Iq(IqType::Get);
    let stanza = Stanza::with_payload(iq, Some(from.clone()), Some(target.clone()), Some("1"), &payload);
    IqRequest { stanza, from, target, set: false, payload, relation, session: None, available }
}

impl Server {
    async fn ask(&self, request: IqRequest) -> Result<Option<Element>, StanzaError> {
        let scope = if request.target.local().is_some() { Scope::Account } else { Scope::Host };
        let wanted = |iq: &&IqRegistration| {
            iq.scope == scope && request.payload.is(iq.element, iq.namespace) && iq.requests == Requests::Get
        };
        self.registration.iqs.iter().find(wanted).expect("a handler").handler.handle(request).await
    }

    async fn host(&self, element: &str, namespace: &str) -> Option<Element> {
        let payload = Element::new(element, namespace);
        self.ask(request("capulet.example", Relation::Stranger, false, payload)).await.unwrap()
    }

    async fn last(&self, relation: Relation, available: bool) -> Result<Element, StanzaError> {
        let payload = Element::new("query", NS_LAST);
        let reply = self.ask(request("juliet@capulet.example", relation, available, payload)).await;
        reply.map(|payload| payload.unwrap())
    }

    fn observer(&self) -> &dyn SessionObserver {
        &**self.registration.observer.as_ref().unwrap()
    }

    fn goes(&self, others: usize, status: Option<&str>) {
        let presence = status.map(|status| {
            let inner = format!("<show>away</show><status>{status}</status>");
            let xml =
                format!("<presence type='unavailable' from='juliet@capulet.example/b'>{inner}</presence>");
            Stanza::parse(xml.as_bytes()).unwrap()
        });
        self.observer().session_unavailable(&jid("juliet@capulet.example/b"), others, presence.as_ref());
    }

    /// Waits until all that was queued so far is stored.
    async fn settle(&self) {
        self.storage.commit(Batch::new().delete(LAST, "none")).await.unwrap();
    }
}

fn software() -> Software {
    Software { name: "Waystation".into(), version: "1.2.3".into(), os: None }
}

#[tokio::test]
async fn the_version_is_told_without_the_system_unless_configured() {
    let shown = server(Some(software())).host("query", NS_VERSION).await.unwrap();
    let text = |query: &Element, name| query.child(name, NS_VERSION).map(Element::text);
    assert_eq!(text(&shown, "name").as_deref(), Some("Waystation"));
    assert_eq!(text(&shown, "version").as_deref(), Some("1.2.3"));
    assert_eq!(text(&shown, "os"), None);
    let with_os = server(Some(Software { os: Some("Linux".into()), ..software() }));
    assert_eq!(text(&with_os.host("query", NS_VERSION).await.unwrap(), "os").as_deref(), Some("Linux"));
}

#[tokio::test]
async fn a_hidden_version_is_not_offered() {
    let hidden = server(None).registration;
    assert!(hidden.iqs.iter().all(|iq| iq.namespace != NS_VERSION));
    assert!(hidden.features.iter().all(|feature| feature.var != NS_VERSION));
    assert!(hidden.specs.iter().all(|spec| spec.id != "XEP-0092"));
}

#[tokio::test]
async fn every_service_is_advertised_where_it_answers() {
    let registration = server(Some(software())).registration;
    for iq in &registration.iqs {
        let feature = Feature { scope: iq.scope, var: iq.namespace };
        assert!(registration.features.contains(&feature), "{feature:?}");
    }
    assert_eq!(registration.iqs.len(), registration.features.len());
}

#[tokio::test]
async fn the_time_is_told_in_utc() {
    let before = Timestamp::now();
    let time = server(None).host("time", NS_TIME).await.unwrap();
    assert_eq!(time.child("tzo", NS_TIME).unwrap().text(), "+00:00");
    let utc = Timestamp::parse(&time.child("utc", NS_TIME).unwrap().text()).unwrap();
    assert!(before <= utc && utc <= Timestamp::now());
}

#[tokio::test]
async fn a_host_tells_its_uptime() {
    let started = Instant::now().checked_sub(Duration::from_secs(123_456)).unwrap();
    let handler = Uptime(started);
    let payload = Element::new("query", NS_LAST);
    let reply = handler
        .handle(request("capulet.example", Relation::Stranger, false, payload))
        .await
        .unwrap()
        .unwrap();
    let seconds: u64 = reply.attr("seconds").unwrap().parse().unwrap();
    assert!((123_456..123_556).contains(&seconds));
    assert_eq!(server(None).host("query", NS_LAST).await.unwrap().attr("seconds"), Some("0"));
}

#[tokio::test]
async fn pings_are_answered_by_hosts_and_for_accounts() {
    let server = server(None);
    assert_eq!(server.host("ping", NS_PING).await, None);
    for relation in [Relation::Own, Relation::Subscriber] {
        let ping = request("juliet@capulet.example", relation, true, Element::new("ping", NS_PING));
        assert_eq!(server.ask(ping).await, Ok(None));
    }
}

#[tokio::test]
async fn an_absent_account_tells_when_it_left_and_what_it_said() {
    let server = server(None);
    let mut record = (Timestamp::now().unix_millis() - 903_500).to_be_bytes().to_vec();
    record.extend_from_slice(b"Heading Home");
    server.storage.commit(Batch::new().put(LAST, "juliet@capulet.example", record)).await.unwrap();
    for relation in [Relation::Own, Relation::Subscriber] {
        let query = server.last(relation, false).await.unwrap();
        let seconds: u64 = query.attr("seconds").unwrap().parse().unwrap();
        assert!((903..960).contains(&seconds));
        assert_eq!(query.text(), "Heading Home");
    }
}

#[tokio::test]
async fn an_available_account_was_active_just_now() {
    let server = server(None);
    server.goes(0, Some("gone"));
    server.settle().await;
    let query = server.last(Relation::Subscriber, true).await.unwrap();
    assert_eq!(query, Element::new("query", NS_LAST).with_attr("seconds", "0"));
}

#[tokio::test]
async fn the_last_session_to_leave_counts() {
    let server = server(None);
    server.goes(1, Some("one of two"));
    server.settle().await;
    let never = server.last(Relation::Own, false).await.unwrap_err();
    assert_eq!(never, StanzaError::new(Condition::ServiceUnavailable));
    server.goes(0, Some("first"));
    server.goes(0, Some("a &lt; b"));
    server.settle().await;
    assert_eq!(server.last(Relation::Own, false).await.unwrap().text(), "a < b");
    server.goes(0, None);
    server.settle().await;
    assert_eq!(server.last(Relation::Own, false).await.unwrap().text(), "");
}

/// A store that never gets round to anything.
struct Stuck;

impl Storage for Stuck {
    fn get(&self, _: Space, _: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        Box::pin(ready(Ok(None)))
    }

    fn scan(&self, _: Space, _: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        Box::pin(ready(Ok(Vec::new())))
    }

    fn commit(&self, _: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        Box::pin(std::future::pending())
    }

    fn durability(&self) -> Durability {
        Durability::Memory
    }

    fn name(&self) -> &'static str {
        "stuck"
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        Box::pin(ready(Ok(())))
    }
}

#[tokio::test]
async fn what_is_on_its_way_to_the_store_is_seen() {
    let storage: Arc<dyn Storage> = Arc::new(Stuck);
    let registration = Info::new(None, storage.clone()).registration();
    let server = Server { storage, registration, _folder: tempfile::tempdir().unwrap() };
    server.goes(0, Some("first"));
    server.goes(0, Some("second"));
    assert_eq!(server.last(Relation::Own, false).await.unwrap().text(), "second");
    let removal = server.registration.on_account_removed.as_ref().unwrap();
    drop(removal.account_removed(jid("juliet@capulet.example")));
    assert!(server.last(Relation::Own, false).await.is_err());
}

#[tokio::test]
async fn a_long_status_is_cut_between_characters() {
    let server = server(None);
    server.goes(0, Some(&format!("x{}", "é".repeat(2_000))));
    server.settle().await;
    let text = server.last(Relation::Own, false).await.unwrap().text();
    assert_eq!(text, format!("x{}", "é".repeat(511)));
}

#[tokio::test]
async fn a5_strangers_get_for_an_account_what_they_get_for_none() {
    let server = server(None);
    server.goes(0, Some("secret"));
    server.settle().await;
    let nonexistent = StanzaError::new(Condition::ServiceUnavailable);
    for available in [true, false] {
        assert_eq!(server.last(Relation::Stranger, available).await.unwrap_err(), nonexistent);
        let ping = Element::new("ping", NS_PING);
        let ping = request("juliet@capulet.example", Relation::Stranger, available, ping);
        assert_eq!(server.ask(ping).await.unwrap_err(), nonexistent);
    }
}

#[tokio::test]
async fn nothing_remains_of_a_removed_account() {
    let server = server(None);
    server.goes(0, Some("before"));
    let removal = server.registration.on_account_removed.as_ref().unwrap();
    removal.account_removed(jid("juliet@capulet.example")).await.unwrap();
    // The session that asked for the removal ends only now.
    server.goes(0, Some("after"));
    server.settle().await;
    assert!(server.last(Relation::Own, false).await.is_err());
    // A new account of the same name is an account like any other.
    server.observer().session_opened(&jid("juliet@capulet.example/new"));
    server.goes(0, Some("new"));
    server.settle().await;
    assert_eq!(server.last(Relation::Own, false).await.unwrap().text(), "new");
}

#[tokio::test]
async fn a_damaged_record_is_an_error_for_one_request_only() {
    let server = server(None);
    for damaged in [&b"short"[..], &[0x7f; 9], &[0, 0, 0, 0, 0, 0, 0, 0, 0xff]] {
        server
            .storage
            .commit(Batch::new().put(LAST, "juliet@capulet.example", damaged.to_vec()))
            .await
            .unwrap();
        let error = server.last(Relation::Own, false).await.unwrap_err();
        assert_eq!(error.condition, Condition::InternalServerError);
    }
    server.goes(0, None);
    server.settle().await;
    assert!(server.last(Relation::Own, false).await.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]
    #[test]
    fn no_payload_panics(children in proptest::collection::vec(("[a-z]{1,6}", "\\PC{0,9}"), 0..4), place in 0usize..6) {
        let server = server(Some(software()));
        let iq = &server.registration.iqs[place];
        let mut payload = Element::new(iq.element, iq.namespace);
        for (name, text) in children {
            payload.set_attr(&name, &text);
            payload.push(Element::new(&name, iq.namespace).with_text(&text));
        }
        let target = if iq.scope == Scope::Host { "capulet.example" } else { "juliet@capulet.example" };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _ = runtime.block_on(iq.handler.handle(request(target, Relation::Own, false, payload)));
    }
}

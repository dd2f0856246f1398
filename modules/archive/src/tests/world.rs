//! A server with an archive, as an account's sessions see it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use waystation_core::account::{IqRequest, Relation, SessionId};
use waystation_core::archive::{Archive, Archived, stanza_id};
use waystation_core::datetime::Timestamp;
use waystation_core::module::{Module, Registration, ServerHandle};
use waystation_core::queue::RecordId;
use waystation_core::storage::{Batch, BoxFuture, Durability, Row, ScanRange, Space, Storage, StorageError};
use waystation_core::{Condition, Element, IqType, Jid, Stanza, StanzaError, StanzaType, StreamError};

use super::store::TestStorage;
use crate::chunk::{Chunk, MAX_BYTES, MAX_ROWS, ROWS, WITH};
use crate::row;
use crate::state::STATES;
use crate::store::Archives;
use crate::{Config, MessageArchive, NS_MAM};

/// Messages of a full chunk.
pub(super) const FULL: u64 = MAX_ROWS as u64;

pub(super) const JULIET: &str = "juliet@capulet.example";
pub(super) const BALCONY: &str = "juliet@capulet.example/balcony";
pub(super) const NS_RSM: &str = "http://jabber.org/protocol/rsm";

/// Collects what is sent to sessions.
#[derive(Default)]
pub(super) struct Sessions(Mutex<Vec<Stanza>>);

impl ServerHandle for Sessions {
    fn route(&self, stanza: Stanza) {
        panic!("routed: {stanza:?}");
    }

    fn to_session(&self, stanza: Stanza) {
        self.0.lock().unwrap().push(stanza);
    }

    fn close_sessions(&self, _account: &Jid, _except: Option<SessionId>, _error: StreamError) {}

    fn is_local_host(&self, domain: &str) -> bool {
        domain == "capulet.example"
    }
}

pub(super) struct World<S: Storage = TestStorage> {
    pub(super) storage: Arc<S>,
    pub(super) registration: Registration,
    pub(super) archives: Arc<Archives>,
    pub(super) module: MessageArchive,
    sessions: Arc<Sessions>,
}

/// A store that is known only by its trait, as one with a name of its own.
pub(super) struct Shared(pub(super) Arc<dyn Storage>);

impl Storage for Shared {
    fn get(&self, space: Space, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>, StorageError>> {
        self.0.get(space, key)
    }

    fn scan(&self, space: Space, range: ScanRange) -> BoxFuture<'_, Result<Vec<Row>, StorageError>> {
        self.0.scan(space, range)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'static, Result<(), StorageError>> {
        self.0.commit(batch)
    }

    fn durability(&self) -> Durability {
        self.0.durability()
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn close(&self) -> BoxFuture<'_, Result<(), StorageError>> {
        self.0.close()
    }
}

/// The answer to a query.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) results: Vec<Stanza>,
    pub(super) fin: Element,
}

pub(super) fn jid(text: &str) -> Jid {
    Jid::parse(text).unwrap()
}

pub(super) fn id(position: u64) -> String {
    stanza_id(RecordId(position))
}

/// Milliseconds since 1970 as the server's clock.
pub(super) fn at(millis: i64) -> SystemTime {
    let distance = Duration::from_millis(millis.unsigned_abs());
    if millis < 0 { SystemTime::UNIX_EPOCH - distance } else { SystemTime::UNIX_EPOCH + distance }
}

/// A message of `attributes`, accepted at a moment.
pub(super) fn message(position: u64, stamp: &str, attributes: &str, inner: &str) -> Archived {
    let xml = format!("<message {attributes}>{inner}</message>");
    let stanza = Stanza::parse(xml.as_bytes()).unwrap();
    let millis = Timestamp::parse(stamp).unwrap().unix_millis();
    Archived { id: RecordId(position), at: at(millis), stanza, contact: false }
}

/// Romeo's message to Juliet at the second of its position.
pub(super) fn plain(position: u64) -> Archived {
    let inner = format!("<body>{position}</body>");
    let from_romeo = "from='romeo@montague.example/orchard' to='juliet@capulet.example' type='chat'";
    let mut message = message(position, "2010-07-10T23:00:00Z", from_romeo, &inner);
    message.at += Duration::from_secs(position);
    message
}

/// The form of a query with these fields.
pub(super) fn form(fields: &[(&str, &str)]) -> String {
    let fields: String = fields
        .iter()
        .map(|(var, value)| format!("<field var='{var}'><value>{value}</value></field>"))
        .collect();
    format!(
        "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'>\
         <value>{NS_MAM}</value></field>{fields}</x>"
    )
}

pub(super) fn set(inner: &str) -> String {
    format!("<set xmlns='{NS_RSM}'>{inner}</set>")
}

pub(super) fn world() -> World {
    with_config(Config::default())
}

pub(super) fn with_config(config: Config) -> World {
    over(Arc::new(TestStorage::default()), config)
}

/// What is added does not wait for more.
pub(super) fn over<S: Storage>(storage: Arc<S>, mut config: Config) -> World<S> {
    config.gather = Duration::ZERO;
    gathering(storage, config)
}

pub(super) fn gathering<S: Storage>(storage: Arc<S>, config: Config) -> World<S> {
    let sessions = Arc::new(Sessions::default());
    let server: Arc<OnceLock<Arc<dyn ServerHandle>>> = Arc::default();
    let _ = server.set(sessions.clone());
    let module = MessageArchive::new(storage.clone(), config, server);
    let (registration, archives) = (module.registration(), module.archives.clone());
    World { storage, registration, archives, module, sessions }
}

impl<S: Storage> World<S> {
    pub(super) fn archive(&self) -> &dyn Archive {
        &**self.registration.archive.as_ref().unwrap()
    }

    pub(super) async fn add(&self, messages: Vec<Archived>) -> Result<(), StorageError> {
        self.archive().add(jid(JULIET), messages).await
    }

    /// An archive with messages at these positions.
    pub(super) async fn fill(&self, positions: impl IntoIterator<Item = u64>) {
        self.add(positions.into_iter().map(plain).collect()).await.unwrap();
    }

    /// Commits what Juliet's archive has gathered.
    pub(super) fn flush(&self) {
        let account = self.archives.account(&jid(JULIET));
        self.archives.flush(&account, &mut account.lock());
    }

    pub(super) async fn newest(&self) -> Option<u64> {
        self.newest_of(JULIET).await.unwrap()
    }

    pub(super) async fn newest_of(&self, account: &str) -> Result<Option<u64>, StorageError> {
        Ok(self.archive().newest(jid(account)).await?.map(|id| id.0))
    }

    /// An iq of the session `from` to `target`.
    pub(super) fn request(&self, from: &str, target: &str, set: bool, payload: &str) -> IqRequest {
        let payload = Element::parse(payload.as_bytes(), "").unwrap();
        let (from, target) = (jid(from), jid(target));
        let kind = StanzaType::Iq(if set { IqType::Set } else { IqType::Get });
        let stanza =
            Stanza::with_payload(kind, Some(from.clone()), Some(target.clone()), Some("1"), &payload);
        let own = from.bare_eq(&target);
        let relation = if own { Relation::Own } else { Relation::Stranger };
        let session = own.then_some(SessionId(1));
        IqRequest { stanza, from, target, set, payload, relation, session, available: true }
    }

    pub(super) async fn handle(&self, request: IqRequest) -> Result<Option<Element>, StanzaError> {
        let wanted = |payload: &Element| payload.name().to_owned();
        let handlers = &self.registration.iqs;
        let entry = handlers.iter().find(|iq| iq.element == wanted(&request.payload)).expect("a handler");
        entry.handler.handle(request).await
    }

    pub(super) async fn iq(&self, set: bool, payload: &str) -> Result<Element, StanzaError> {
        let answer = self.handle(self.request(BALCONY, JULIET, set, payload)).await;
        answer.map(|payload| payload.expect("a payload"))
    }

    /// A query with this content.
    pub(super) async fn query(&self, inner: &str) -> Result<Answer, StanzaError> {
        let payload = format!("<query xmlns='{NS_MAM}' queryid='f27'>{inner}</query>");
        let fin = self.iq(true, &payload).await?;
        Ok(Answer { results: self.sent(), fin })
    }

    pub(super) async fn refused(&self, inner: &str) -> Condition {
        let error = self.query(inner).await.expect_err(inner);
        assert!(self.sent().is_empty(), "results before an error: {inner}");
        error.condition
    }

    /// What the session got since the last time.
    pub(super) fn sent(&self) -> Vec<Stanza> {
        std::mem::take(&mut *self.sessions.0.lock().unwrap())
    }

    /// Positions of the whole archive, page by page.
    pub(super) async fn positions(&self) -> Vec<u64> {
        let mut all = Vec::new();
        let mut after = String::new();
        loop {
            let answer = self.query(&set(&after)).await.unwrap();
            all.extend(answer.positions());
            if answer.is_complete() {
                return all;
            }
            after = format!("<after>{}</after>", answer.last().unwrap());
        }
    }
}

impl World {
    /// Positions of Juliet's archive as its chunks have them.
    pub(super) fn positions_of_store(&self) -> Vec<u64> {
        let prefix = row::prefix(&jid(JULIET));
        let chunks = self.storage.range(ROWS, &prefix);
        let chunks = chunks
            .iter()
            .map(|(key, value)| Chunk::decode(row::position_of(key, &prefix).unwrap(), value).unwrap());
        chunks
            .flat_map(|chunk| chunk.entries().map(|entry| entry.unwrap().position).collect::<Vec<_>>())
            .collect()
    }

    /// What must hold of Juliet's chunks, their index and the counts.
    pub(super) fn check_store(&self) {
        let storage = &self.storage;
        let account = jid(JULIET);
        let prefix = row::prefix(&account);
        let (mut last, mut messages, mut bytes, mut index) = (0, 0, 0, BTreeSet::new());
        for (key, value) in storage.range(ROWS, &prefix) {
            let chunk = Chunk::decode(row::position_of(&key, &prefix).unwrap(), &value).unwrap();
            assert!(chunk.head.first > last, "chunks overlap");
            last = chunk.head.last;
            let entries: Vec<_> = chunk.entries().map(Result::unwrap).collect();
            let largest = entries.last().map_or(0, |entry| entry.stanza_len() as usize);
            assert!((1..=MAX_ROWS).contains(&entries.len()));
            assert!(chunk.size() < MAX_BYTES + largest + 100, "{} bytes", chunk.size());
            for entry in entries {
                messages += 1;
                bytes += entry.stanza_len();
                let with = row::with_hash_bytes(chunk.with(&entry));
                index.insert(row::key(&row::with_hash_prefix(&account, with), chunk.head.first));
            }
        }
        let stored: BTreeSet<_> = storage.range(WITH, &prefix).into_iter().map(|(key, _)| key).collect();
        assert_eq!(stored, index, "the index does not fit the chunks");
        let states = storage.range(STATES, &crate::state::State::key(&account));
        let state = states.first().map(|(_, state)| crate::state::State::decode(state).unwrap());
        let state = state.unwrap_or_default();
        assert_eq!((state.messages, state.bytes), (messages, bytes));
        assert!(state.newest >= last);
    }
}

impl Answer {
    /// The `<result/>` elements.
    pub(super) fn elements(&self) -> Vec<Element> {
        let result = |stanza: &Stanza| stanza.element().unwrap().child("result", NS_MAM).cloned().unwrap();
        self.results.iter().map(result).collect()
    }

    /// Positions of the results as they came.
    pub(super) fn positions(&self) -> Vec<u64> {
        let position = |result: &Element| waystation_core::archive::position(result.attr("id").unwrap());
        self.elements().iter().map(|result| position(result).unwrap().0).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        match self.fin.attr("complete") {
            None => false,
            Some("true") => true,
            Some(other) => panic!("complete='{other}'"),
        }
    }

    fn page(&self, name: &str) -> Option<String> {
        self.fin.child("set", NS_RSM).unwrap().child(name, NS_RSM).map(Element::text)
    }

    pub(super) fn first(&self) -> Option<String> {
        self.page("first")
    }

    pub(super) fn last(&self) -> Option<String> {
        self.page("last")
    }

    pub(super) fn count(&self) -> Option<usize> {
        self.page("count").map(|count| count.parse().unwrap())
    }

    pub(super) fn index(&self) -> Option<usize> {
        let first = self.fin.child("set", NS_RSM).unwrap().child("first", NS_RSM)?;
        first.attr("index").map(|index| index.parse().unwrap())
    }
}

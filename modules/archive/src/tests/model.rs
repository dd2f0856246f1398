//! Paging and filtering against a plain list, while messages come and go between the pages.

use std::sync::Arc;

use proptest::prelude::*;
use tokio::task::JoinHandle;
use waystation_core::archive::Archived;
use waystation_core::datetime::Timestamp;
use waystation_core::queue::RecordId;
use waystation_core::storage::StorageError;
use waystation_core::{Condition, Jid, Stanza};

use super::store::TestStorage;
use super::world::*;
use crate::driver::Job;
use crate::retention::Goal;
use crate::{Config, NS_MAM};

/// Sender, recipient and type of messages.
const KINDS: [(&str, &str, &str); 6] = [
    ("romeo@montague.example/a", JULIET, "chat"),
    ("juliet@capulet.example/b", "romeo@montague.example", "chat"),
    ("romeo@montague.example/z", BALCONY, "normal"),
    (BALCONY, JULIET, "chat"),
    ("hall@rooms.example/romeo", BALCONY, "groupchat"),
    ("capulet.example", JULIET, "normal"),
];

const WITH: [&str; 8] = [
    "romeo@montague.example",
    "romeo@montague.example/a",
    JULIET,
    BALCONY,
    "hall@rooms.example",
    "capulet.example",
    "nobody@capulet.example",
    "hall@rooms.example/romeo",
];

const BASE: i64 = 1_278_802_800_000;

/// A message of the plain list.
#[derive(Clone, Debug)]
struct Entry {
    position: u64,
    millis: i64,
    kind: usize,
}

impl Entry {
    fn archived(&self) -> Archived {
        let (from, to, kind) = KINDS[self.kind];
        let xml = format!("<message from='{from}' to='{to}' type='{kind}'><body>x</body></message>");
        let stanza = Stanza::parse(xml.as_bytes()).unwrap();
        Archived { id: RecordId(self.position), at: at(self.millis), stanza, contact: false }
    }
}

/// Positions are picked by place, so that most of them exist.
#[derive(Clone, Debug, Default)]
struct Asked {
    with: Option<usize>,
    start: Option<i64>,
    end: Option<i64>,
    after_id: Option<usize>,
    before_id: Option<usize>,
    ids: Option<Vec<usize>>,
    groupchat: Option<bool>,
    max: Option<usize>,
    after: Option<usize>,
    before: Option<Option<usize>>,
    index: Option<usize>,
    flip: bool,
}

#[derive(Clone, Debug)]
enum Step {
    /// Messages with gaps between positions, times and kinds.
    Add(Vec<(u64, i64, usize)>),
    /// What has gathered is committed.
    Flush,
    /// The server ends without doing so; what was not committed is handed over again.
    Crash,
    /// Retention does its work.
    Trim,
    Query(Box<Asked>),
}

fn query() -> impl Strategy<Value = Asked> {
    let place = || proptest::option::weighted(0.2, 0usize..200);
    // Milliseconds since the first message.
    let moment = || proptest::option::weighted(0.3, -100_000i64..4_000_000);
    let filter = (
        proptest::option::weighted(0.4, 0..WITH.len()),
        moment(),
        moment(),
        place(),
        place(),
        proptest::option::weighted(0.1, proptest::collection::vec(0usize..200, 1..5)),
        proptest::option::weighted(0.2, any::<bool>()),
    );
    let page = (
        proptest::option::of(0usize..12),
        place(),
        proptest::option::weighted(0.4, place()),
        proptest::option::weighted(0.2, 0usize..30),
        any::<bool>(),
    );
    (filter, page).prop_map(|((with, start, end, after_id, before_id, ids, groupchat), page)| {
        let (max, after, before, index, flip) = page;
        let index = index.filter(|_| after.is_none() && before.is_none());
        let (start, end) = match (start, end) {
            (Some(start), Some(end)) => (Some(start.min(end)), Some(start.max(end))),
            either => either,
        };
        Asked { with, start, end, after_id, before_id, ids, groupchat, max, after, before, index, flip }
    })
}

fn messages(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(u64, i64, usize)>> {
    // Mostly forward in time, often a little out of order, now and then set back by far.
    let jump = prop_oneof![20 => 0i64..60_000, 20 => -25_000i64..30_000, 1 => -900_000i64..-100_000];
    proptest::collection::vec((1u64..5, jump, 0..KINDS.len()), count)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => messages(1..8).prop_map(Step::Add),
        1 => Just(Step::Trim),
        2 => Just(Step::Flush),
        1 => Just(Step::Crash),
        12 => query().prop_map(|asked| Step::Query(Box::new(asked))),
    ]
}

/// The plain list, and the archive that must agree with it.
struct Model {
    world: World,
    entries: Vec<Entry>,
    last: (u64, i64),
    limit: usize,
    config: Config,
    /// Calls whose messages are not known to be stored.
    calls: Vec<JoinHandle<Result<(), StorageError>>>,
}

impl Model {
    fn new(config: Config) -> Self {
        let limit = config.max_messages.map_or(usize::MAX, |max| max as usize);
        let world = gathering(Arc::default(), config.clone());
        Self { world, entries: Vec::new(), last: (0, BASE), limit, config, calls: Vec::new() }
    }

    async fn add(&mut self, messages: &[(u64, i64, usize)]) {
        let mut added = Vec::new();
        for &(gap, jump, kind) in messages {
            self.last = (self.last.0 + gap, self.last.1 + jump);
            added.push(Entry { position: self.last.0, millis: self.last.1, kind });
        }
        self.hand_over(&added);
        self.entries.extend(added);
    }

    fn hand_over(&mut self, entries: &[Entry]) {
        let messages = entries.iter().map(Entry::archived).collect();
        self.calls.push(tokio::spawn(self.world.archive().add(jid(JULIET), messages)));
    }

    async fn trim(&mut self) {
        let goal = Goal::Limits { before: None };
        while self.world.archives.ask(&jid(JULIET), |reply| Job::Trim { goal, reply }).await.unwrap() {}
        let gone = self.entries.len().saturating_sub(self.limit);
        self.entries.drain(..gone);
    }

    async fn crash(&mut self) {
        // Calls that were made are on their way at least, so that some are committed.
        tokio::task::yield_now().await;
        for call in std::mem::take(&mut self.calls) {
            if call.is_finished() {
                call.await.unwrap().unwrap();
            } else {
                call.abort();
            }
        }
        let ended = std::mem::replace(
            &mut self.world,
            gathering(Arc::new(TestStorage::default()), self.config.clone()),
        );
        // A copy, for what is still on its way in the old one may reach its store.
        self.world = gathering(Arc::new(ended.storage.copy()), self.config.clone());
        let newest = self.world.newest().await.unwrap_or(0);
        let (there, lost): (Vec<_>, Vec<_>) =
            self.entries.iter().cloned().partition(|entry| entry.position <= newest);
        // Some of what is there as well, which changes nothing.
        self.hand_over(&[&there[there.len().saturating_sub(3)..], &lost].concat());
    }

    /// All calls end well once everything is committed.
    async fn finish(&mut self) {
        self.world.newest().await;
        for call in std::mem::take(&mut self.calls) {
            call.await.unwrap().unwrap();
        }
    }

    /// The position at a place; places past the end name none that exist.
    fn position(&self, place: usize) -> u64 {
        self.entries.get(place).map_or(1 << 60 | place as u64, |entry| entry.position)
    }

    fn exists(&self, place: usize) -> bool {
        place < self.entries.len()
    }

    fn matches(&self, asked: &Asked) -> Vec<u64> {
        let holds = |entry: &&Entry| {
            let (from, to, kind) = KINDS[entry.kind];
            let (from, to): (Jid, Jid) = (jid(from), jid(to));
            let own = jid(JULIET);
            asked.with.is_none_or(|with| {
                let with = jid(WITH[with]);
                match (with.is_bare(), with == own) {
                    (true, true) => from.bare_eq(&own) && to.bare_eq(&own),
                    (true, false) => from.bare_eq(&with) || to.bare_eq(&with),
                    (false, _) => from == with || to == with,
                }
            }) && asked.start.is_none_or(|start| entry.millis >= BASE + start)
                && asked.end.is_none_or(|end| entry.millis <= BASE + end)
                && asked.after_id.is_none_or(|place| entry.position > self.position(place))
                && asked.before_id.is_none_or(|place| entry.position < self.position(place))
                && asked.groupchat.is_none_or(|wanted| wanted || kind != "groupchat")
                && asked
                    .ids
                    .as_ref()
                    .is_none_or(|ids| ids.iter().any(|id| self.position(*id) == entry.position))
        };
        self.entries.iter().filter(holds).map(|entry| entry.position).collect()
    }

    fn query_xml(&self, asked: &Asked) -> String {
        let stamp = |millis: i64| Timestamp::from_unix_millis(BASE + millis).unwrap().to_string();
        let named = |place: usize| id(self.position(place));
        let mut fields = Vec::new();
        let mut field = |var, value: Option<String>| fields.extend(value.map(|value| (var, value)));
        field("with", asked.with.map(|with| WITH[with].to_owned()));
        field("start", asked.start.map(stamp));
        field("end", asked.end.map(stamp));
        field("after-id", asked.after_id.map(named));
        field("before-id", asked.before_id.map(named));
        let ids = asked.ids.as_ref().map(|ids| ids.iter().map(|id| named(*id)).collect::<Vec<_>>());
        field("ids", ids.map(|ids| ids.join("</value><value>")));
        field("include-groupchat", asked.groupchat.map(|wanted| wanted.to_string()));
        let fields: Vec<_> = fields.iter().map(|(var, value)| (*var, value.as_str())).collect();
        let element = |name: &str, text: Option<String>| {
            text.map_or_else(String::new, |text| format!("<{name}>{text}</{name}>"))
        };
        let page = element("max", asked.max.map(|max| max.to_string()))
            + &element("after", asked.after.map(named))
            + &element("before", asked.before.map(|before| before.map_or_else(String::new, named)))
            + &element("index", asked.index.map(|index| index.to_string()));
        let flip = if asked.flip { format!("<flip-page xmlns='{NS_MAM}'/>") } else { String::new() };
        form(&fields) + &set(&page) + &flip
    }

    async fn check(&self, asked: &Asked) -> Result<(), TestCaseError> {
        let outcome = self.world.query(&self.query_xml(asked)).await;
        let before = asked.before.flatten();
        let single = [asked.after_id, asked.before_id, asked.after, before];
        let named = single.into_iter().flatten().chain(asked.ids.iter().flatten().copied());
        if named.into_iter().any(|place| !self.exists(place)) {
            prop_assert_eq!(outcome.unwrap_err().condition, Condition::ItemNotFound);
            return Ok(());
        }
        let answer = outcome.unwrap();
        let all = self.matches(asked);
        let mut left: Vec<_> = all.clone();
        left.retain(|position| asked.after.is_none_or(|place| *position > self.position(place)));
        left.retain(|position| before.is_none_or(|place| *position < self.position(place)));
        let skip = asked.index.unwrap_or(0).min(left.len());
        let left = &left[skip..];
        let size = asked.max.unwrap_or(100).min(100).min(left.len());
        let page = if asked.before.is_some() { &left[left.len() - size..] } else { &left[..size] };
        let mut sent = answer.positions();
        if asked.flip {
            sent.reverse();
        }
        prop_assert_eq!(&sent, page);
        prop_assert_eq!(answer.is_complete(), left.len() == size);
        prop_assert_eq!(answer.first(), page.first().map(|position| id(*position)));
        prop_assert_eq!(answer.last(), page.last().map(|position| id(*position)));
        prop_assert!(answer.count().is_none_or(|count| count == all.len()), "{:?}", answer.count());
        if let Some(index) = answer.index() {
            prop_assert_eq!(all.get(index), page.first());
        }
        Ok(())
    }

    /// Pages through all matches; between the pages messages come.
    async fn page_through(
        &mut self,
        asked: &Asked,
        backward: bool,
        coming: &[(u64, i64, usize)],
    ) -> Vec<u64> {
        let (mut found, mut edge, mut coming) = (Vec::new(), String::new(), coming.chunks(2));
        let base =
            self.query_xml(&Asked { max: None, after: None, before: None, index: None, ..asked.clone() });
        let (form, _) = base.split_once("<set").unwrap();
        let max = asked.max.unwrap_or(5).max(1);
        loop {
            let page = match (backward, edge.is_empty()) {
                (true, _) => format!("<before>{edge}</before>"),
                (false, true) => String::new(),
                (false, false) => format!("<after>{edge}</after>"),
            };
            let answer = self
                .world
                .query(&format!("{form}{}", set(&format!("<max>{max}</max>{page}"))))
                .await
                .unwrap();
            let mut positions = answer.positions();
            if backward {
                positions.reverse();
            }
            found.extend(positions);
            if answer.is_complete() {
                break;
            }
            edge = if backward { answer.first() } else { answer.last() }.expect("where to go on");
            if let Some(messages) = coming.next() {
                self.add(messages).await;
            }
        }
        found
    }
}

fn run(work: impl Future<Output = Result<(), TestCaseError>>) -> Result<(), TestCaseError> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn pages_agree_with_a_plain_list(
        first in messages(0..160),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        run(async {
            let mut model = Model::new(Config { max_messages: Some(120), ..Config::default() });
            model.add(&first).await;
            for step in &steps {
                match step {
                    Step::Add(messages) => model.add(messages).await,
                    Step::Flush => model.world.flush(),
                    Step::Crash => model.crash().await,
                    Step::Trim => model.trim().await,
                    Step::Query(asked) => model.check(asked).await?,
                }
            }
            model.finish().await;
            prop_assert_eq!(model.world.positions().await, model.matches(&Asked::default()));
            model.world.check_store();
            Ok(())
        })?;
    }

    /// Whatever the bounds on pages and rows, nobody who pages through misses or repeats any.
    #[test]
    fn paging_through_gives_every_match_once(
        first in messages(0..120),
        coming in messages(0..12),
        asked in query(),
        backward in any::<bool>(),
        rows_per_query in 1usize..40,
    ) {
        run(async {
            let mut model = Model::new(Config { rows_per_query, ..Config::default() });
            model.add(&first).await;
            let asked = Asked { after_id: None, before_id: None, ids: None, ..asked };
            let at_first = model.matches(&asked);
            let mut found = model.page_through(&asked, backward, &coming).await;
            if backward {
                // What comes lies behind the pages.
                found.reverse();
                prop_assert_eq!(found, at_first);
            } else {
                // What came after the last page was read is not seen any more.
                let at_last = model.matches(&asked);
                prop_assert!(at_last.starts_with(&found) && found.len() >= at_first.len());
            }
            Ok(())
        })?;
    }

    /// In whatever order messages are handed over, spans of time find exactly what is stamped so.
    #[test]
    fn late_messages_are_found_by_their_stamps(
        all in messages(70..160),
        turns in proptest::collection::vec(0usize..6, 160),
        spans in proptest::collection::vec((-100_000i64..4_000_000, 0i64..1_000_000), 1..8),
    ) {
        run(async {
            let world = world();
            let (mut position, mut millis) = (0, BASE);
            let mut calls = vec![Vec::new(); 6];
            for ((gap, jump, kind), turn) in all.iter().zip(&turns) {
                (position, millis) = (position + gap, millis + jump);
                calls[*turn].push(Entry { position, millis, kind: *kind });
            }
            for call in &calls {
                world.add(call.iter().map(Entry::archived).collect()).await.unwrap();
            }
            let mut stamped = Vec::new();
            while stamped.len() < all.len() {
                let after = stamped.last().map(|(position, _)| format!("<after>{}</after>", id(*position)));
                let answer = world.query(&set(&after.unwrap_or_default())).await.unwrap();
                let stamps = answer.elements().into_iter().map(|result| {
                    let forwarded = result.child("forwarded", "urn:xmpp:forward:0").cloned().unwrap();
                    let delay = forwarded.child("delay", "urn:xmpp:delay").unwrap();
                    Timestamp::parse(delay.attr("stamp").unwrap()).unwrap().unix_millis()
                });
                stamped.extend(answer.positions().into_iter().zip(stamps));
            }
            prop_assert!(stamped.windows(2).all(|pair| pair[0].0 < pair[1].0));
            world.check_store();
            for (start, length) in spans {
                let (start, end) = (BASE + start, BASE + start + length);
                let stamp = |millis| Timestamp::from_unix_millis(millis).unwrap().to_string();
                let answer = world.query(&form(&[("start", &stamp(start)), ("end", &stamp(end))])).await.unwrap();
                let inside = stamped.iter().filter(|(_, at)| (start..=end).contains(at));
                let expected: Vec<_> = inside.map(|(position, _)| *position).take(100).collect();
                prop_assert_eq!(answer.positions(), expected);
            }
            Ok(())
        })?;
    }
}

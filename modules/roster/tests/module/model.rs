//! Models: two accounts that subscribe to each other in every order, and clients that keep a copy
//! of a roster.

use std::collections::BTreeMap;

use proptest::prelude::*;
use waystation_core::account::Relation;
use waystation_core::{PresenceType, StanzaType};

use crate::world::{World, stanza};

const ACCOUNTS: [&str; 2] = ["romeo@example.org", "juliet@example.org"];

#[derive(Clone, Debug)]
enum Action {
    Send(usize, &'static str),
    AddItem(usize),
    RemoveItem(usize),
    Available(usize),
    Unavailable(usize),
    /// The oldest stanza for the account arrives.
    Arrive(usize),
    /// The account is evicted and loaded again.
    Reload(usize),
    FailNextCommit,
}

fn action(failures: bool) -> impl Strategy<Value = Action> {
    let who = 0..2usize;
    let kind = prop_oneof![Just("subscribe"), Just("subscribed"), Just("unsubscribe"), Just("unsubscribed")];
    prop_oneof![
        8 => (who.clone(), kind).prop_map(|(who, kind)| Action::Send(who, kind)),
        1 => who.clone().prop_map(Action::AddItem),
        1 => who.clone().prop_map(Action::RemoveItem),
        1 => who.clone().prop_map(Action::Available),
        1 => who.clone().prop_map(Action::Unavailable),
        8 => who.clone().prop_map(Action::Arrive),
        1 => who.prop_map(Action::Reload),
        u32::from(failures) => Just(Action::FailNextCommit),
    ]
}

struct Pair {
    world: World,
}

impl Pair {
    fn new() -> Self {
        let mut world = World::new();
        for account in ACCOUNTS {
            world.login(&format!("{account}/r"));
        }
        Self { world }
    }

    /// Does one action, and checks what must hold after each.
    fn act(&mut self, action: &Action) {
        let world = &mut self.world;
        let full = |who: usize| format!("{}/r", ACCOUNTS[who]);
        let set = |who: usize, attribute: &str| {
            let other = ACCOUNTS[1 - who];
            format!(
                "<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='{other}' {attribute}/></query></iq>"
            )
        };
        let waiting = world.wire.len();
        let mut arrived = 0;
        match *action {
            Action::Send(who, kind) => {
                world.send(&full(who), &format!("<presence to='{}' type='{kind}'/>", ACCOUNTS[1 - who]));
            }
            Action::AddItem(who) => world.send(&full(who), &set(who, "name='x'")),
            Action::RemoveItem(who) => world.send(&full(who), &set(who, "subscription='remove'")),
            Action::Available(who) => world.send(&full(who), "<presence/>"),
            Action::Unavailable(who) => world.send(&full(who), "<presence type='unavailable'/>"),
            Action::Arrive(who) => arrived = usize::from(world.let_one_through(ACCOUNTS[who])),
            Action::Reload(who) => world.reload(ACCOUNTS[who]),
            Action::FailNextCommit => world.fail_next_commit(),
        }
        for stanza in world.wire.iter().skip(waiting - arrived) {
            if stanza.stanza_type() == StanzaType::Presence(PresenceType::Available) {
                let (from, to) = (stanza.from().unwrap().bare_str(), stanza.to().unwrap().as_str());
                assert_eq!(world.relation(from, to), Relation::Subscriber, "leak: {stanza:?}");
            }
        }
        for account in ACCOUNTS {
            assert_eq!(world.roster(account), world.stored_version_and_roster(account));
            assert_eq!(world.greeting(account), world.stored_greeting(account));
        }
    }

    fn settle(&mut self) {
        self.world.settle();
    }

    /// How `who` sees its own subscription: `none`, `asked` or `subscribed`.
    fn to(&mut self, who: usize) -> &'static str {
        let (_, items) = self.world.roster(ACCOUNTS[who]);
        match () {
            () if items.contains("ask='subscribe'") => "asked",
            () if ["'to'", "'both'"].iter().any(|s| items.contains(s)) => "subscribed",
            () => "none",
        }
    }

    /// How `who` sees the other's subscription.
    fn from(&mut self, who: usize) -> &'static str {
        let (_, items) = self.world.roster(ACCOUNTS[who]);
        let asks = format!("<presence from='{}' to='{}' type='subscribe'", ACCOUNTS[1 - who], ACCOUNTS[who]);
        match () {
            () if self.world.greeting(ACCOUNTS[who]).iter().any(|s| s.starts_with(&asks)) => "asked",
            () if ["'from'", "'both'"].iter().any(|s| items.contains(s)) => "subscribed",
            () => "none",
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// While no two stanzas cross, both sides always agree.
    #[test]
    fn both_sides_agree_when_stanzas_do_not_cross(actions in proptest::collection::vec(action(false), 1..40)) {
        let mut pair = Pair::new();
        for action in &actions {
            pair.act(action);
            pair.settle();
            for who in 0..2 {
                prop_assert_eq!(pair.to(who), pair.from(1 - who), "after {:?}", action);
            }
        }
    }

    /// Stanzas that cross may leave one side granting what the other gave up (the tables allow no
    /// more), but nobody believes in a subscription that the other does not grant; and one that is
    /// granted is there for the asking.
    #[test]
    fn who_is_subscribed_is_granted_it_whatever_crosses(actions in proptest::collection::vec(action(false), 1..60)) {
        let mut pair = Pair::new();
        for action in &actions {
            pair.act(action);
        }
        pair.settle();
        for who in 0..2 {
            if pair.to(who) == "subscribed" {
                prop_assert_eq!(pair.from(1 - who), "subscribed");
            }
        }
        for who in 0..2 {
            if pair.from(1 - who) == "subscribed" {
                pair.act(&Action::Send(who, "subscribe"));
                pair.settle();
                prop_assert_eq!(pair.to(who), "subscribed");
            }
            prop_assert_eq!(pair.to(who) == "subscribed", pair.from(1 - who) == "subscribed");
        }
    }

    /// Commits that fail lose stanzas; the probes of the next login make both sides agree again.
    #[test]
    fn probes_repair_what_failed_commits_broke(actions in proptest::collection::vec(action(true), 1..60)) {
        let mut pair = Pair::new();
        for action in &actions {
            pair.act(action);
        }
        pair.world.store.failures.store(0, std::sync::atomic::Ordering::SeqCst);
        pair.settle();
        for who in 0..2 {
            pair.act(&Action::Unavailable(who));
            pair.act(&Action::Available(who));
            pair.settle();
        }
        for who in 0..2 {
            if pair.to(who) == "subscribed" {
                prop_assert_eq!(pair.from(1 - who), "subscribed");
            }
        }
    }
}

/// What a client does with the roster of `me@example.org`.
#[derive(Clone, Debug)]
enum Step {
    Set(usize, String),
    Remove(usize),
    Presence(usize, &'static str),
    Inbound(usize, &'static str),
    Reload,
    /// The second client connects, or loses its connection.
    Connect,
    Disconnect,
}

fn step() -> impl Strategy<Value = Step> {
    let item = 0..6usize;
    let kind = prop_oneof![Just("subscribe"), Just("subscribed"), Just("unsubscribe"), Just("unsubscribed")];
    prop_oneof![
        4 => (item.clone(), "[a-c]{0,1}").prop_map(|(item, name)| Step::Set(item, name)),
        2 => item.clone().prop_map(Step::Remove),
        3 => (item.clone(), kind.clone()).prop_map(|(item, kind)| Step::Presence(item, kind)),
        3 => (item, kind).prop_map(|(item, kind)| Step::Inbound(item, kind)),
        1 => Just(Step::Reload),
        2 => Just(Step::Connect),
        2 => Just(Step::Disconnect),
    ]
}

/// A client's copy of the roster.
#[derive(Default)]
struct Cache {
    version: String,
    items: BTreeMap<String, String>,
}

impl Cache {
    fn take(&mut self, stanzas: &[String]) {
        for text in stanzas {
            let element = stanza(text).element().unwrap();
            let Some(query) = element.child("query", "jabber:iq:roster") else { continue };
            let version = query.attr("ver").unwrap().to_owned();
            let push = element.attr("type") == Some("set");
            if push {
                let number = |version: &str| u64::from_str_radix(version, 16).unwrap_or(0);
                assert!(
                    number(&version) > number(&self.version),
                    "versions grow: {} {version}",
                    self.version
                );
                assert_eq!(query.children().count(), 1);
            } else {
                self.items.clear();
            }
            self.version = version;
            for item in query.children() {
                let jid = item.attr("jid").unwrap().to_owned();
                if item.attr("subscription") == Some("remove") {
                    self.items.remove(&jid);
                } else {
                    self.items.insert(jid, String::from_utf8(item.to_vec("jabber:iq:roster")).unwrap());
                }
            }
        }
    }

    fn text(&self) -> String {
        self.items.values().map(String::as_str).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A client that follows pushes, and one that comes back with an old version, both end up
    /// with the roster that the server has (RFC 6121 2.6).
    #[test]
    fn s2_6_caches_of_clients_equal_the_roster(steps in proptest::collection::vec(step(), 1..60)) {
        const FIRST: &str = "me@example.org/first";
        const SECOND: &str = "me@example.org/second";
        let mut world = World::new();
        world.bind(FIRST);
        let (mut always, mut sometimes) = (Cache::default(), Cache::default());
        let get = |version: &str| {
            format!("<iq type='get' id='g'><query xmlns='jabber:iq:roster' ver='{version}'/></iq>")
        };
        world.send(FIRST, &get(""));
        let mut connected = false;
        for step in steps {
            let contact = |item: usize| format!("c{item}@example.net");
            let set = |item: usize, rest: &str| {
                format!("<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='{}' {rest}/></query></iq>", contact(item))
            };
            match step {
                Step::Set(item, name) => world.send(FIRST, &set(item, &format!("name='{name}'"))),
                Step::Remove(item) => world.send(FIRST, &set(item, "subscription='remove'")),
                Step::Presence(item, kind) => {
                    world.send(FIRST, &format!("<presence to='{}' type='{kind}'/>", contact(item)));
                }
                Step::Inbound(item, kind) => world.receive(&format!(
                    "<presence from='{}' to='me@example.org' type='{kind}'/>", contact(item)
                )),
                Step::Reload => world.reload("me@example.org"),
                Step::Connect if !connected => {
                    connected = true;
                    world.bind(SECOND);
                    world.send(SECOND, &get(&sometimes.version));
                }
                Step::Disconnect if connected => {
                    connected = false;
                    world.close(SECOND);
                }
                Step::Connect | Step::Disconnect => {}
            }
            always.take(&world.got(FIRST));
            let (version, items) = world.roster("me@example.org");
            prop_assert_eq!((&always.version, always.text()), (&version, items.clone()));
            if connected {
                sometimes.take(&world.got(SECOND));
                prop_assert_eq!((&sometimes.version, sometimes.text()), (&version, items));
            }
        }
    }
}

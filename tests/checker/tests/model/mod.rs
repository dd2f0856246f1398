//! A model of a correct server and of its clients, which makes random clean histories.
//!
//! The server keeps all promises of the contract and uses all its freedom:
//! stanzas in flight are lost with a connection, redelivery repeats what was not
//! acknowledged, a crash takes ephemeral stanzas, sessions expire, full queues bounce.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, VecDeque};

use waystation_checker::history::{Class, Ctx, Ev, Event, HARNESS, History, How};
use waystation_checker::rng::Rng;

mod server;

const ROOM: &str = "room@conference.x";

/// What the history is about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Random steps before the end is prepared.
    pub(crate) steps: usize,
    /// Accounts; every second one has two resources when there are archives.
    pub(crate) accounts: usize,
    /// Whether there are archives.
    pub(crate) archive: bool,
    /// Whether there is a room.
    pub(crate) room: bool,
}

impl Shape {
    /// A small random one.
    pub(crate) fn random(rng: &mut Rng) -> Self {
        let steps = usize::try_from(rng.between(20, 160)).unwrap();
        Self { steps, accounts: 2 + rng.index(3), archive: rng.percent(70), room: rng.percent(50) }
    }
}

#[derive(Debug, Clone)]
struct Message {
    uid: String,
    from: String,
    to: String,
    class: Class,
    kind: &'static str,
    hash: String,
}

/// A stanza on its way to a client.
#[derive(Debug, Clone)]
struct Out {
    number: u64,
    message: Message,
    from: String,
    ctx: Ctx,
    id: String,
    by: String,
    delay: bool,
}

/// A client, and what the server keeps for its resource.
#[derive(Debug)]
struct Peer {
    name: String,
    account: usize,
    jid: String,
    managed: bool,
    events: Vec<Event>,
    session: u32,
    connected: bool,
    // The client's half of the stream.
    stream: String,
    seq: u64,
    unacked: VecDeque<(u64, Message)>,
    received: u64,
    up: VecDeque<(u64, Message)>,
    down: VecDeque<Out>,
    // The server's half; `alive` while the stream can be resumed or is connected.
    alive: bool,
    handled: u64,
    reported: u64,
    queue: VecDeque<Out>,
    out: u64,
    in_room: bool,
}

#[derive(Debug, Default)]
struct Account {
    jid: String,
    archive: Vec<(String, Message)>,
    offline: Vec<Out>,
    roster: BTreeMap<String, String>,
    resources: usize,
}

/// The world of one history.
pub(crate) struct World {
    rng: Rng,
    shape: Shape,
    now: u64,
    ids: u64,
    uids: u64,
    accounts: Vec<Account>,
    room: Account,
    peers: Vec<Peer>,
    harness: Vec<Event>,
}

/// Makes the clean history of this seed.
pub(crate) fn clean(seed: u64) -> History {
    let mut rng = Rng::new(seed);
    let shape = Shape::random(&mut rng);
    with_shape(seed, shape)
}

/// Makes a clean history of this shape.
pub(crate) fn with_shape(seed: u64, shape: Shape) -> History {
    let mut world = World::new(Rng::fork(seed, 1), shape);
    for _ in 0..shape.steps {
        world.step();
    }
    world.quiesce();
    let mut history = History::default();
    for peer in world.peers {
        history.clients.insert(peer.name, peer.events);
    }
    history.clients.insert(HARNESS.to_owned(), world.harness);
    history
}

impl World {
    fn new(mut rng: Rng, shape: Shape) -> Self {
        let mut accounts = Vec::new();
        let mut peers = Vec::new();
        for n in 0..shape.accounts {
            let jid = format!("user{n}@x");
            let resources = if shape.archive && n % 2 == 1 { 2 } else { 1 };
            for r in 0..resources {
                peers.push(Peer::new(format!("user{n}-{r}"), n, format!("{jid}/r{r}"), rng.percent(70)));
            }
            accounts.push(Account { jid, resources, ..Account::default() });
        }
        let room = Account { jid: ROOM.to_owned(), ..Account::default() };
        Self { rng, shape, now: 0, ids: 0, uids: 0, accounts, room, peers, harness: Vec::new() }
    }

    fn tick(&mut self) -> u64 {
        self.now += self.rng.between(1_000_000, 150_000_000);
        self.now
    }

    fn note(&mut self, peer: usize, ev: Ev) {
        let t = self.tick();
        let peer = &mut self.peers[peer];
        peer.events.push(Event { t, s: peer.session, ev });
    }

    fn step(&mut self) {
        if self.rng.percent(2) {
            self.crash();
        }
        let p = self.rng.index(self.peers.len());
        if !self.peers[p].connected {
            if self.rng.percent(25) {
                self.expire(p);
            }
            return self.connect(p, true);
        }
        match self.rng.below(100) {
            0..45 => self.send(p),
            45..60 => self.process(p, usize::MAX),
            60..75 => self.deliver(p, usize::MAX),
            75..82 => self.request(p),
            82..86 => self.acknowledge(p),
            86..89 => self.cut(p),
            89..92 => self.close(p),
            92..96 => self.change_roster(p),
            96..98 => self.read_roster(p),
            _ => self.join_or_leave(p),
        }
    }

    fn send(&mut self, p: usize) {
        let account = self.peers[p].account;
        let others: Vec<usize> = (0..self.accounts.len()).filter(|a| *a != account).collect();
        let other = others[self.rng.index(others.len())];
        let class = if self.rng.percent(90) { Class::D } else { Class::E };
        let (to, kind) = if self.peers[p].in_room && self.rng.percent(60) {
            (ROOM.to_owned(), "groupchat")
        } else {
            (self.accounts[other].jid.clone(), if class == Class::D { "chat" } else { "headline" })
        };
        let class = if kind == "groupchat" { Class::D } else { class };
        self.uids += 1;
        let uid = format!("m/{}/{}", self.peers[p].name, self.uids);
        let hash = format!("{:016x}", self.rng.next_u64());
        let message = Message { uid, from: self.peers[p].jid.clone(), to, class, kind, hash };
        self.transmit(p, message);
    }

    /// Sends a message for the first time on this stream.
    fn transmit(&mut self, p: usize, message: Message) {
        self.peers[p].seq += 1;
        let seq = self.peers[p].seq;
        self.transmit_as(p, seq, message.clone());
        if self.peers[p].managed {
            self.peers[p].unacked.push_back((seq, message));
        }
    }

    fn transmit_as(&mut self, p: usize, seq: u64, message: Message) {
        let Message { uid, to, class, kind, hash, .. } = message.clone();
        self.note(p, Ev::Send { uid, seq, to, cls: class, kind: kind.to_owned(), hash });
        self.peers[p].up.push_back((seq, message));
    }

    fn connect(&mut self, p: usize, may_resume: bool) {
        self.peers[p].session += 1;
        self.peers[p].connected = true;
        self.note(p, Ev::Connect { node: "n1".into() });
        let peer = &self.peers[p];
        let mut resend = Vec::new();
        if may_resume && peer.managed && !peer.stream.is_empty() {
            let (previd, h) = (peer.stream.clone(), u32::try_from(peer.received).unwrap());
            self.note(p, Ev::Resume { previd, h });
            if self.peers[p].alive {
                return self.resume(p);
            }
            let known = self.rng.percent(70);
            let handled = self.peers[p].handled;
            self.note(p, Ev::Smfail { h: known.then(|| u32::try_from(handled).unwrap()) });
            if known {
                resend.extend(
                    self.peers[p].unacked.drain(..).filter(|(seq, _)| *seq > handled).map(|(_, m)| m),
                );
            }
        }
        self.bind(p);
        for message in resend {
            self.transmit(p, message);
        }
    }

    fn resume(&mut self, p: usize) {
        let handled = self.peers[p].handled;
        self.note(p, Ev::Resumed { h: u32::try_from(handled).unwrap() });
        let peer = &mut self.peers[p];
        let received = peer.received;
        peer.queue.retain(|o| o.number > received);
        peer.queue.iter_mut().for_each(|o| o.delay = true);
        peer.down = peer.queue.clone();
        peer.reported = handled;
        peer.unacked.retain(|(seq, _)| *seq > handled);
        for (seq, message) in peer.unacked.clone() {
            self.transmit_as(p, seq, message);
        }
    }

    fn bind(&mut self, p: usize) {
        self.expire(p);
        let stream = format!("sm{}", self.next_id());
        let peer = &mut self.peers[p];
        (peer.seq, peer.received, peer.handled, peer.reported, peer.out) = (0, 0, 0, 0, 0);
        (peer.alive, peer.in_room) = (true, false);
        peer.unacked.clear();
        peer.stream.clear();
        let jid = peer.jid.clone();
        self.note(p, Ev::Bound { jid });
        if self.peers[p].managed {
            self.peers[p].stream.clone_from(&stream);
            self.note(p, Ev::Smon { id: stream });
        }
        self.flush_offline(p);
    }

    /// The client receives up to `count` stanzas.
    fn deliver(&mut self, p: usize, count: usize) {
        for _ in 0..count {
            let Some(out) = self.peers[p].down.pop_front() else { return };
            self.peers[p].received = out.number;
            self.note(
                p,
                Ev::Recv {
                    uid: out.message.uid,
                    sid: Some(out.id),
                    by: Some(out.by),
                    from: out.from,
                    to: Some(out.message.to),
                    delay: out.delay,
                    ctx: out.ctx,
                    hash: out.message.hash,
                },
            );
        }
    }

    /// `<r/>`, and an answer that covers some of what was handled.
    fn request(&mut self, p: usize) {
        if !self.peers[p].managed {
            return;
        }
        self.note(p, Ev::ROut);
        let peer = &mut self.peers[p];
        let h = self.rng.between(peer.reported, peer.handled);
        peer.reported = h;
        peer.unacked.retain(|(seq, _)| *seq > h);
        self.note(p, Ev::AIn { h: u32::try_from(h).unwrap() });
    }

    fn acknowledge(&mut self, p: usize) {
        if self.peers[p].managed {
            let h = self.peers[p].received;
            self.note(p, Ev::AOut { h: u32::try_from(h).unwrap() });
            self.peers[p].queue.retain(|o| o.number > h);
        }
    }

    /// The connection breaks: of what was in flight, some arrives.
    fn cut(&mut self, p: usize) {
        let (up, down) = (self.peers[p].up.len() as u64, self.peers[p].down.len() as u64);
        let (up, down) = (self.rng.between(0, up), self.rng.between(0, down));
        self.process(p, usize::try_from(up).unwrap());
        self.deliver(p, usize::try_from(down).unwrap());
        self.note(p, Ev::Close { how: How::Eof });
        let peer = &mut self.peers[p];
        peer.connected = false;
        peer.up.clear();
        peer.down.clear();
        if !peer.managed {
            self.expire(p);
        }
    }

    fn close(&mut self, p: usize) {
        self.acknowledge(p);
        self.process(p, usize::MAX);
        self.deliver(p, usize::MAX);
        self.note(p, Ev::Close { how: How::Clean });
        let peer = &mut self.peers[p];
        peer.connected = false;
        if !peer.managed {
            // What a stream without management had flushed when it closed in order is delivered.
            peer.queue.clear();
        }
        peer.stream.clear();
        peer.unacked.clear();
        self.expire(p);
    }

    fn change_roster(&mut self, p: usize) {
        self.uids += 1;
        let uid = format!("m/{}/{}", self.peers[p].name, self.uids);
        let account = self.peers[p].account;
        let key = format!("friend{}@x", self.rng.below(4));
        let value = self.rng.percent(70).then(|| format!("name {}", self.uids));
        let scope = self.accounts[account].jid.clone();
        let what = "roster".to_owned();
        self.note(p, Ev::Set { uid: uid.clone(), what, scope, key: key.clone(), value: value.clone() });
        if self.rng.percent(90) {
            match value {
                Some(value) => _ = self.accounts[account].roster.insert(key, value),
                None => _ = self.accounts[account].roster.remove(&key),
            }
            if self.rng.percent(90) {
                return self.note(p, Ev::Done { uid });
            }
        }
        self.cut(p);
    }

    fn read_roster(&mut self, p: usize) {
        let since = self.tick();
        let account = &self.accounts[self.peers[p].account];
        let (scope, items) = (account.jid.clone(), account.roster.clone());
        self.note(p, Ev::State { what: "roster".into(), scope, since, items });
    }

    fn join_or_leave(&mut self, p: usize) {
        if self.shape.room {
            // The room's answer comes in the stream's order: behind what was on its way.
            self.deliver(p, usize::MAX);
            let room = ROOM.to_owned();
            self.peers[p].in_room = !self.peers[p].in_room;
            let joined = self.peers[p].in_room;
            self.note(p, if joined { Ev::Join { room } } else { Ev::Leave { room } });
        }
    }

    fn crash(&mut self) {
        let (t, kind, node) = (self.tick(), "kill9".to_owned(), "n1".to_owned());
        self.harness.push(Event {
            t,
            s: 0,
            ev: Ev::Fault { kind: kind.clone(), node: node.clone(), on: true },
        });
        for p in 0..self.peers.len() {
            if self.peers[p].connected {
                self.cut(p);
            }
            self.peers[p].queue.retain(|o| o.message.class == Class::D);
        }
        let t = self.tick();
        self.harness.push(Event { t, s: 0, ev: Ev::Fault { kind, node, on: false } });
    }

    /// Everyone settles what is open, comes back with a new session, reads everything, leaves.
    fn quiesce(&mut self) {
        for p in 0..self.peers.len() {
            if !self.peers[p].connected {
                self.connect(p, true);
            }
            self.process(p, usize::MAX);
            self.request(p);
            if self.rng.percent(50) { self.close(p) } else { self.cut(p) }
        }
        for p in 0..self.peers.len() {
            self.connect(p, false);
            self.request(p);
            self.deliver(p, usize::MAX);
            self.read_roster(p);
            if self.shape.archive {
                let account = self.peers[p].account;
                let (of, archive) =
                    (self.accounts[account].jid.clone(), self.accounts[account].archive.clone());
                self.read_archive(p, &of, &archive);
                if p == 0 && self.shape.room {
                    let archive = self.room.archive.clone();
                    self.read_archive(p, ROOM, &archive);
                }
            }
            self.close(p);
        }
    }

    fn read_archive(&mut self, p: usize, of: &str, archive: &[(String, Message)]) {
        for (idx, (id, message)) in (0u64..).zip(archive) {
            let (arch, id, hash) = (of.to_owned(), id.clone(), message.hash.clone());
            let from = if of == ROOM { format!("{ROOM}/nick") } else { message.from.clone() };
            let uid = Some(message.uid.clone());
            self.note(p, Ev::Mam { arch, idx, id, uid, from: Some(from), hash, complete: false });
        }
        let (arch, idx) = (of.to_owned(), archive.len() as u64);
        let (id, hash) = (String::new(), String::new());
        self.note(p, Ev::Mam { arch, idx, id, uid: None, from: None, hash, complete: true });
    }
}

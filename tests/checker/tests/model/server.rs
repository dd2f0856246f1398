//! The model's server: what it does with an accepted stanza, and with sessions that end.

use super::{Message, Out, Peer, ROOM, World};
use std::collections::VecDeque;
use waystation_checker::history::{Class, Ctx, Ev};

impl Peer {
    pub(super) fn new(name: String, account: usize, jid: String, managed: bool) -> Self {
        Self {
            name,
            account,
            jid,
            managed,
            events: Vec::new(),
            session: 0,
            connected: false,
            stream: String::new(),
            seq: 0,
            unacked: VecDeque::new(),
            received: 0,
            up: VecDeque::new(),
            down: VecDeque::new(),
            alive: false,
            handled: 0,
            reported: 0,
            queue: VecDeque::new(),
            out: 0,
            in_room: false,
        }
    }
}

impl World {
    pub(super) fn next_id(&mut self) -> String {
        self.ids += 1;
        format!("{:08}", self.ids)
    }

    /// The server handles up to `count` stanzas of the client.
    pub(super) fn process(&mut self, p: usize, count: usize) {
        for _ in 0..count {
            let Some((seq, message)) = self.peers[p].up.pop_front() else { return };
            self.peers[p].handled = seq;
            self.accept(p, &message);
        }
    }

    fn accept(&mut self, p: usize, message: &Message) {
        if message.kind == "groupchat" {
            return self.reflect(message);
        }
        let sender = self.peers[p].account;
        let recipient = self.accounts.iter().position(|a| a.jid == message.to).unwrap();
        if message.class == Class::D && self.rng.percent(3) {
            let ev = Ev::Err {
                uid: message.uid.clone(),
                cond: "resource-constraint".into(),
                r#type: "wait".into(),
                from: message.to.clone(),
            };
            return self.note(p, ev);
        }
        let (sent_id, id) = (self.next_id(), self.next_id());
        if message.class == Class::D {
            if self.shape.archive {
                self.accounts[sender].archive.push((sent_id.clone(), message.clone()));
                self.accounts[recipient].archive.push((id.clone(), message.clone()));
            }
            let others: Vec<usize> = self.live(sender).filter(|&o| o != p).collect();
            for other in others {
                self.push(other, message, Ctx::Carbon, &sent_id, sender);
            }
        }
        let live: Vec<usize> = self.live(recipient).collect();
        let Some((&first, rest)) = live.split_first() else {
            if message.class == Class::D {
                let out = self.out(message, Ctx::Offline, &id, &message.to);
                self.accounts[recipient].offline.push(Out { delay: true, ..out });
            }
            return;
        };
        self.push(first, message, Ctx::Live, &id, recipient);
        for &other in rest {
            if message.class == Class::D {
                self.push(other, message, Ctx::Carbon, &id, recipient);
            }
        }
    }

    fn reflect(&mut self, message: &Message) {
        let id = self.next_id();
        self.room.archive.push((id.clone(), message.clone()));
        let occupants: Vec<usize> =
            (0..self.peers.len()).filter(|&o| self.peers[o].alive && self.peers[o].in_room).collect();
        for o in occupants {
            let out = self.out(message, Ctx::Room(ROOM.into()), &id, ROOM);
            self.enqueue(o, Out { from: format!("{ROOM}/nick"), ..out });
        }
    }

    fn live(&self, account: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.peers.len()).filter(move |&o| self.peers[o].account == account && self.peers[o].alive)
    }

    fn out(&self, message: &Message, ctx: Ctx, id: &str, by: &str) -> Out {
        let (id, by, from) = (id.to_owned(), by.to_owned(), message.from.clone());
        Out { number: 0, message: message.clone(), from, ctx, id, by, delay: false }
    }

    fn push(&mut self, p: usize, message: &Message, ctx: Ctx, id: &str, account: usize) {
        let by = self.accounts[account].jid.clone();
        let out = self.out(message, ctx, id, &by);
        self.enqueue(p, out);
    }

    fn enqueue(&mut self, p: usize, out: Out) {
        let peer = &mut self.peers[p];
        peer.out += 1;
        let out = Out { number: peer.out, ..out };
        peer.queue.push_back(out.clone());
        if peer.connected {
            peer.down.push_back(out);
        }
    }

    pub(super) fn flush_offline(&mut self, p: usize) {
        let account = self.peers[p].account;
        for out in std::mem::take(&mut self.accounts[account].offline) {
            self.enqueue(p, out);
        }
    }

    /// The server gives the session up: what was not acknowledged is stored.
    pub(super) fn expire(&mut self, p: usize) {
        let peer = &mut self.peers[p];
        (peer.alive, peer.in_room) = (false, false);
        let queue = std::mem::take(&mut peer.queue);
        let account = &mut self.accounts[peer.account];
        // With several resources the archive keeps it: the offline store would mix their orders.
        if account.resources == 1 {
            let durable = |o: &Out| o.message.class == Class::D && matches!(o.ctx, Ctx::Live | Ctx::Offline);
            account.offline.extend(queue.into_iter().filter(durable).map(|o| Out {
                delay: true,
                ctx: Ctx::Offline,
                ..o
            }));
            account.offline.sort_by(|a, b| a.id.cmp(&b.id));
        }
    }
}

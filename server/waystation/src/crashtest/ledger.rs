//! What became of every message, and what that says of the server.
//!
//! What must hold: a message is lost when the server acknowledged it and neither delivered nor
//! returned it; nothing is blamed on the server that its contract leaves to it: a message may
//! come again after the recipient's stream broke, and where the server could not say what it had
//! (`<failed/>` without `h`) the client sends blindly.

use std::collections::HashMap;

/// How many lost messages are named.
const NAMED: usize = 20;

/// What is known of a message.
#[derive(Debug, Default)]
struct Message {
    to: usize,
    acknowledged: bool,
    returned: bool,
    /// It was sent again although the server may have had it.
    is_blind: bool,
    /// The recipient's connection that saw it last.
    seen_on: Option<u32>,
    /// The id that the server gave it.
    id: Option<String>,
}

/// A message as a recipient saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// Its sender.
    pub(super) from: usize,
    /// Its number among those of the sender.
    pub(super) number: usize,
    /// The sender's session in which it was sent.
    pub(super) session: u32,
    /// The id that the server gave it (XEP-0359).
    pub(super) id: Option<String>,
}

/// The sums.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Tally {
    /// Messages that clients sent; sending again does not count.
    pub(crate) sent: u64,
    /// Messages that the server acknowledged.
    pub(crate) acknowledged: u64,
    /// Messages that their recipients saw.
    pub(crate) delivered: u64,
    /// Messages that came back as errors.
    pub(crate) returned: u64,
    /// Messages that were acknowledged, and neither delivered nor returned.
    pub(crate) lost: u64,
    /// Copies that came although the recipient's stream had not broken since the one before.
    pub(crate) doubled: u64,
    /// First copies that came behind a later message of the same session.
    pub(crate) out_of_order: u64,
    /// Messages that were stored twice although the client sent again only what it was told to.
    pub(crate) stored_twice: u64,
    /// Stanzas that the server had acknowledged and did not know of when the session was resumed.
    pub(crate) taken_back: u64,
    /// Copies that came after the recipient's stream had broken, which is allowed.
    pub(crate) redelivered: u64,
    /// Messages that were never sent, or not to whom they came.
    pub(crate) strange: u64,
}

/// All messages of a run.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    senders: Vec<Vec<Message>>,
    /// The last first delivery by sender, its session, and recipient.
    order: HashMap<(usize, u32, usize), usize>,
    tally: Tally,
}

impl Ledger {
    /// An empty ledger for so many clients.
    pub(super) fn new(clients: usize) -> Self {
        Self { senders: (0..clients).map(|_| Vec::new()).collect(), ..Self::default() }
    }

    /// A new message; returns its number.
    pub(super) fn sent(&mut self, from: usize, to: usize) -> usize {
        self.tally.sent += 1;
        self.senders[from].push(Message { to, ..Message::default() });
        self.senders[from].len() - 1
    }

    /// The server acknowledged a message.
    pub(super) fn acknowledged(&mut self, from: usize, number: usize) {
        let message = &mut self.senders[from][number];
        if !std::mem::replace(&mut message.acknowledged, true) {
            self.tally.acknowledged += 1;
        }
    }

    /// A message is sent again although nobody knows whether the server has it.
    pub(super) fn sent_blindly(&mut self, from: usize, number: usize) {
        self.senders[from][number].is_blind = true;
    }

    /// The server takes back so many acknowledgements.
    pub(super) fn taken_back(&mut self, count: u64) {
        self.tally.taken_back += count;
    }

    /// A message came back as an error.
    pub(super) fn returned(&mut self, from: usize, number: usize) {
        match self.senders[from].get_mut(number) {
            Some(message) if !message.returned => {
                message.returned = true;
                self.tally.returned += 1;
            }
            Some(_) => {}
            None => self.tally.strange += 1,
        }
    }

    /// `recipient` saw a message on its connection of this number.
    pub(super) fn seen(&mut self, recipient: usize, connection: u32, seen: Seen) {
        let Seen { from, number, session, id } = seen;
        let message = self.senders.get_mut(from).and_then(|messages| messages.get_mut(number));
        let Some(message) = message.filter(|message| message.to == recipient) else {
            self.tally.strange += 1;
            return;
        };
        match message.seen_on.replace(connection) {
            None => {
                self.tally.delivered += 1;
                message.id = id;
                let last = self.order.entry((from, session, recipient)).or_insert(number);
                if *last > number {
                    self.tally.out_of_order += 1;
                }
                *last = number.max(*last);
            }
            // A second message, as far as the server can know.
            Some(_) if message.is_blind => self.tally.redelivered += 1,
            Some(before) => {
                if before == connection {
                    self.tally.doubled += 1;
                } else {
                    self.tally.redelivered += 1;
                }
                if message.id != id {
                    self.tally.stored_twice += 1;
                }
            }
        }
    }

    /// The sums as they stand.
    pub(super) fn tally(&self) -> Tally {
        let lost = self.missing().count() as u64;
        Tally { lost, ..self.tally.clone() }
    }

    /// The first lost messages, by name.
    pub(super) fn named(&self) -> Vec<String> {
        let name = |(from, number, to): (usize, usize, usize)| {
            format!("message {number} of client {from} to client {to}")
        };
        self.missing().take(NAMED).map(name).collect()
    }

    /// True when the server owes neither an acknowledgement nor a delivery.
    pub(super) fn is_settled(&self) -> bool {
        self.senders.iter().flatten().all(|message| message.acknowledged) && self.missing().next().is_none()
    }

    fn missing(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let of = |(from, messages): (usize, &'_ Vec<Message>)| {
            let missing =
                |message: &Message| message.acknowledged && message.seen_on.is_none() && !message.returned;
            let found = messages.iter().enumerate().filter(move |(_, message)| missing(message));
            found.map(|(number, message)| (from, number, message.to)).collect::<Vec<_>>()
        };
        self.senders.iter().enumerate().flat_map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(number: usize, session: u32) -> Seen {
        Seen { from: 0, number, session, id: Some(format!("id-{number}")) }
    }

    /// Client 0 has sent so many messages to client 1, all acknowledged.
    fn ledger(count: usize) -> Ledger {
        let mut ledger = Ledger::new(2);
        for number in 0..count {
            assert_eq!(ledger.sent(0, 1), number);
            ledger.acknowledged(0, number);
        }
        ledger
    }

    fn tally(sent: u64) -> Tally {
        Tally { sent, acknowledged: sent, ..Tally::default() }
    }

    #[test]
    fn what_was_acknowledged_and_never_seen_is_lost() {
        let mut ledger = ledger(3);
        ledger.seen(1, 1, seen(0, 1));
        ledger.returned(0, 2);
        ledger.sent(0, 1);
        assert!(!ledger.is_settled());
        assert_eq!(
            ledger.tally(),
            Tally { sent: 4, delivered: 1, returned: 1, lost: 1, ..tally(3) },
            "what was never acknowledged may be gone"
        );
        assert_eq!(ledger.named(), ["message 1 of client 0 to client 1"]);
    }

    #[test]
    fn copies_are_allowed_after_a_break_only() {
        let mut ledger = ledger(2);
        for (connection, number) in [(1, 0), (2, 0), (2, 0), (2, 1)] {
            ledger.seen(1, connection, seen(number, 1));
        }
        assert_eq!(ledger.tally(), Tally { delivered: 2, redelivered: 1, doubled: 1, ..tally(2) });
        assert!(ledger.is_settled());
    }

    #[test]
    fn another_id_is_another_stored_message() {
        let mut ledger = ledger(2);
        for number in 0..2 {
            ledger.seen(1, 1, seen(number, 1));
            ledger.seen(1, 2, Seen { id: Some("other".to_owned()), ..seen(number, 2) });
            ledger.sent_blindly(0, 1);
        }
        assert_eq!(
            ledger.tally(),
            Tally { delivered: 2, redelivered: 2, stored_twice: 1, ..tally(2) },
            "who sends blindly makes two messages of one"
        );
    }

    #[test]
    fn order_is_promised_within_a_session() {
        let mut ledger = ledger(4);
        for (number, session) in [(1, 1), (0, 1), (3, 2), (2, 1)] {
            ledger.seen(1, 1, seen(number, session));
        }
        assert_eq!(ledger.tally(), Tally { delivered: 4, out_of_order: 1, ..tally(4) });
    }

    #[test]
    fn what_nobody_sent_is_strange() {
        let mut ledger = ledger(1);
        ledger.seen(0, 1, seen(0, 1));
        ledger.seen(1, 1, seen(1, 1));
        ledger.seen(1, 1, Seen { from: 7, ..seen(0, 1) });
        assert_eq!(ledger.tally(), Tally { strange: 3, lost: 1, ..tally(1) });
    }
}

//! A client that knows what its server has taken, by stream management (XEP-0198), and how its numbered
//! messages are read elsewhere.
//!
//! What must stay true: what [`Sender::settle`] returned for was acknowledged, so it may not be lost.

use std::ops::Range;

use waystation_harness::xml::Element;
use waystation_harness::{Client, Login, Server};

use crate::Talker;

const SM_NS: &str = "urn:xmpp:sm:3";

/// A client under stream management that sends.
pub struct Sender {
    client: Client,
    sent: u32,
}

impl Sender {
    /// Logs in and turns stream management on.
    pub async fn enter(server: &Server, user: &str) -> Self {
        let login = Login::resource("sender");
        let mut client = Client::login(server.endpoint(), server.account(user), &login).await.unwrap();
        client.send(format!("<enable xmlns='{SM_NS}'/>")).await.unwrap();
        let enabled = client.next("<enabled/>").await.unwrap();
        assert_eq!(enabled.local(), "enabled", "{enabled}");
        client.send("<presence/>").await.unwrap();
        Self { client, sent: 1 }
    }

    /// The full JID.
    pub fn jid(&self) -> String {
        self.client.jid().to_owned()
    }

    /// Sends the messages with these numbers and waits until the server has taken them.
    pub async fn say(&mut self, to: &str, numbers: Range<usize>) {
        for number in numbers {
            let message =
                format!("<message to='{to}' type='chat' id='n{number}'><body>{number}</body></message>");
            self.client.send(message).await.unwrap();
            self.sent += 1;
        }
        self.settle().await;
    }

    /// Waits until the server has acknowledged all that was sent.
    pub async fn settle(&mut self) {
        self.client.send(format!("<r xmlns='{SM_NS}'/>")).await.unwrap();
        loop {
            let next = self.client.next("the acknowledgement of all").await.unwrap();
            let h = next.attr("h").filter(|_| next.local() == "a" && next.ns() == SM_NS);
            match h.map(|h| h.parse::<u32>().unwrap()) {
                Some(h) if h == self.sent => return,
                Some(_) => self.client.send(format!("<r xmlns='{SM_NS}'/>")).await.unwrap(),
                None => assert_ne!(next.attr("type"), Some("error"), "{next}"),
            }
        }
    }

    /// The next message with a body.
    pub async fn hear(&mut self) -> Element {
        loop {
            let next = self.client.next("a message").await.unwrap();
            if next.local() == "message" && next.child("body").is_some() {
                return next;
            }
        }
    }

    /// Leaves in order.
    pub async fn leave(self) {
        self.client.close().await.unwrap();
    }
}

/// Reads the messages with these numbers, in order and without a gap. Returns how many came again.
///
/// # Panics
/// When one is missing, or comes before its turn.
pub async fn read_in_order(reader: &mut Talker, numbers: Range<usize>) -> usize {
    let mut again = 0;
    let mut next = numbers.start;
    while next < numbers.end {
        let message = reader.message().await;
        assert_eq!(message.attr("type"), Some("chat"), "{message}");
        let number: usize = message.child("body").unwrap().text().parse().unwrap();
        assert_eq!(message.attr("id"), Some(format!("n{number}").as_str()));
        assert!(number <= next, "{number} came before {next}");
        if number == next {
            next += 1;
        } else {
            again += 1;
        }
    }
    again
}

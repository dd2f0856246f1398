//! A client that waits for what it is told to, and keeps what came before it.
//!
//! What must stay true: nothing that came is lost: what one step has not waited for, a later one finds, in
//! the order in which it came.

use std::collections::VecDeque;

use waystation_harness::xml::{Element, escape};
use waystation_harness::{Client, Login, Server};

/// A client with a memory.
pub struct Talker {
    client: Client,
    kept: VecDeque<Element>,
    requests: u64,
}

impl Talker {
    /// Logs in, asks for the roster as a client does that wants to hear of it, and becomes available.
    pub async fn enter(server: &Server, user: &str, resource: &str) -> Self {
        let mut talker = Self::enter_unseen(server, user, resource).await;
        talker.appear().await;
        talker
    }

    /// The same without becoming available.
    pub async fn enter_unseen(server: &Server, user: &str, resource: &str) -> Self {
        let login = Login::resource(resource);
        let client = Client::login(server.endpoint(), server.account(user), &login).await.unwrap();
        let mut talker = Self { client, kept: VecDeque::new(), requests: 0 };
        talker.request("get", "", "<query xmlns='jabber:iq:roster'/>").await;
        talker
    }

    /// Becomes available.
    pub async fn appear(&mut self) {
        let before = self.client.become_available().await.unwrap();
        self.kept.extend(before);
    }

    /// The full JID.
    pub fn jid(&self) -> String {
        self.client.jid().to_owned()
    }

    /// The bare JID.
    pub fn bare(&self) -> String {
        self.client.bare().to_owned()
    }

    /// The domain.
    pub fn host(&self) -> String {
        self.client.host().to_owned()
    }

    /// The client itself, for what takes no part in waiting.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Sends XML as it is.
    pub async fn send(&mut self, xml: impl AsRef<[u8]>) {
        self.client.send(xml).await.unwrap();
    }

    /// The first stanza, of those that were kept and those that come, for which `wanted` holds.
    ///
    /// # Panics
    /// When none comes in time; what came instead is told.
    pub async fn expect(&mut self, what: &str, wanted: impl Fn(&Element) -> bool) -> Element {
        if let Some(at) = self.kept.iter().position(&wanted) {
            return self.kept.remove(at).unwrap();
        }
        loop {
            match self.client.next(what).await {
                Ok(stanza) if wanted(&stanza) => return stanza,
                Ok(stanza) => self.kept.push_back(stanza),
                Err(e) => panic!("{}: {e}; came instead: {}", self.jid(), self.show()),
            }
        }
    }

    /// A presence of this type (`None` for available) from this JID.
    pub async fn presence(&mut self, kind: Option<&str>, from: &str) -> Element {
        let what = format!("presence {kind:?} from {from}");
        self.expect(&what, |s| {
            s.local() == "presence" && s.attr("type") == kind && s.attr("from") == Some(from)
        })
        .await
    }

    /// The next message with a body that is not an own one come back as an error.
    pub async fn message(&mut self) -> Element {
        let is_message = |s: &Element| {
            s.local() == "message" && s.attr("type") != Some("error") && s.child("body").is_some()
        };
        self.expect("a message", is_message).await
    }

    /// Sends a request and waits for its answer, whatever it says; without `to`, to the own account.
    pub async fn request(&mut self, kind: &str, to: &str, payload: &str) -> Element {
        self.requests += 1;
        let id = format!("request-{}", self.requests);
        let to = if to.is_empty() { String::new() } else { format!(" to='{}'", escape(to)) };
        self.send(format!("<iq type='{kind}' id='{id}'{to}>{payload}</iq>")).await;
        let is_answer = |s: &Element| {
            s.local() == "iq"
                && s.attr("id") == Some(&id)
                && matches!(s.attr("type"), Some("result" | "error"))
        };
        self.expect(&format!("the answer to {payload}"), is_answer).await
    }

    /// The same for a request that must succeed.
    pub async fn ask(&mut self, kind: &str, to: &str, payload: &str) -> Element {
        let answer = self.request(kind, to, payload).await;
        assert_eq!(answer.attr("type"), Some("result"), "{} asked {to} {payload}: {answer}", self.jid());
        answer
    }

    /// All that came and was waited for by nobody, up to what the own server has sent until now.
    pub async fn rest(&mut self) -> Vec<Element> {
        let more = self.client.drain().await.unwrap();
        self.kept.extend(more);
        self.kept.drain(..).collect()
    }

    /// Leaves in order.
    pub async fn leave(self) {
        self.client.close().await.unwrap();
    }

    fn show(&self) -> String {
        self.kept.iter().map(|s| format!("\n  {s}")).collect()
    }
}

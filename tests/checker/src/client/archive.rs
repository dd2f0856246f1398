//! Requests of a client and their replies, and the reading of archives page by page (XEP-0313).
//!
//! What must stay true: an archive is noted as complete only when the server
//! said so, and its entries in the order in which the server gave them.

use std::time::{Duration, Instant};

use waystation_harness::xml::{Element, escape};

use super::{Lost, Outgoing, Peer, Step};
use crate::body;
use crate::history::{Class, Ev};

/// The namespace of archives.
pub const MAM_NS: &str = "urn:xmpp:mam:2";
const RSM_NS: &str = "http://jabber.org/protocol/rsm";
const FORWARD_NS: &str = "urn:xmpp:forward:0";
const DISCO_NS: &str = "http://jabber.org/protocol/disco#info";
const PAGE: usize = 100;
/// How long a request may wait for its reply.
const REPLY: Duration = Duration::from_secs(20);

/// For how long a query is repeated that the server cannot answer yet, and how soon.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(200);

/// One result of a query.
#[derive(Debug)]
pub(super) struct Found {
    id: String,
    from: Option<String>,
    body: Option<body::Body>,
}

impl Found {
    pub(super) fn read(result: &Element) -> Option<Self> {
        let message = result.child_in(FORWARD_NS)?.child("message")?;
        Some(Self {
            id: result.attr("id")?.to_owned(),
            from: message.attr("from").map(str::to_owned),
            body: message.child("body").map(|b| body::read(&b.text())),
        })
    }
}

impl Peer {
    /// Sends a request and waits for its reply; none when there is no reply in time.
    pub async fn request(&mut self, kind: &str, to: &str, payload: &str) -> Result<Option<Element>, Lost> {
        let id = self.ask_for(kind, to, payload).await?;
        self.reply(&id).await
    }

    /// Sends a request and returns its id.
    pub async fn ask_for(&mut self, kind: &str, to: &str, payload: &str) -> Result<String, Lost> {
        let id = self.next_uid();
        let addressed = if to.is_empty() { String::new() } else { format!(" to='{}'", escape(to)) };
        let xml = format!("<iq type='{kind}' id='{id}'{addressed}>{payload}</iq>");
        let (to, hash) = (to.to_owned(), String::new());
        self.send(Outgoing { uid: id.clone(), to, class: Class::E, kind: "iq", hash, xml }).await?;
        Ok(id)
    }

    /// Waits for the reply to a request.
    pub async fn reply(&mut self, id: &str) -> Result<Option<Element>, Lost> {
        let deadline = Instant::now() + REPLY;
        loop {
            match self.step(deadline).await? {
                Step::Reply(reply) if reply.attr("id") == Some(id) => return Ok(Some(reply)),
                Step::Idle => return Ok(None),
                Step::Handled | Step::Reply(_) => {}
            }
        }
    }

    /// Whether the account has an archive.
    pub async fn has_archive(&mut self) -> Result<bool, Lost> {
        let account = self.bare();
        let reply = self.request("get", &account, &format!("<query xmlns='{DISCO_NS}'/>")).await?;
        let features = reply.as_ref().and_then(|r| r.child_in(DISCO_NS));
        Ok(features.is_some_and(|f| f.children().any(|c| c.attr("var") == Some(MAM_NS))))
    }

    /// Reads the account's archive to its end.
    pub async fn read_archive(&mut self) -> Result<(), Lost> {
        let arch = self.bare();
        let (mut idx, mut after) = (0, String::new());
        let end = Instant::now() + PATIENCE;
        loop {
            self.queries += 1;
            self.results.clear();
            let payload = format!(
                "<query xmlns='{MAM_NS}' queryid='q{}'><set xmlns='{RSM_NS}'><max>{PAGE}</max>{after}</set></query>",
                self.queries
            );
            let reply = self.request("set", "", &payload).await?;
            let error = reply.as_ref().and_then(|reply| reply.child("error"));
            if error.is_some_and(|error| error.attr("type") == Some("wait")) && Instant::now() < end {
                // What a full disk refused may still be on its way into the archive.
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            let Some(fin) = reply.as_ref().and_then(|r| r.child_in(MAM_NS)) else { return Ok(()) };
            for Found { id, from, body } in std::mem::take(&mut self.results) {
                let (uid, hash) = body.map(|b| (b.uid, b.hash)).unzip();
                let (arch, hash) = (arch.clone(), hash.unwrap_or_default());
                self.note(Ev::Mam { arch, idx, id, uid, from, hash, complete: false });
                idx += 1;
            }
            if matches!(fin.attr("complete"), Some("true" | "1")) {
                let (id, hash) = (String::new(), String::new());
                self.note(Ev::Mam { arch, idx, id, uid: None, from: None, hash, complete: true });
                return Ok(());
            }
            // A page that names no last entry leads nowhere: the archive stays incomplete.
            let last = fin.child_in(RSM_NS).and_then(|s| s.child("last")).map(Element::text);
            let Some(last) = last else { return Ok(()) };
            after = format!("<after>{}</after>", escape(&last));
        }
    }
}

//! How a client gets a stream: a new one, the one that it had, or the session that sleeps.
//!
//! What must stay true: what the server may have handled is not sent again, and
//! a stream that nothing is known of is tried again before it is given up.

use std::time::{Duration, Instant};

use waystation_harness::stream::Opened;
use waystation_harness::xml::escape;
use waystation_harness::{Error, Link, Login};

use super::{Lost, Managed, Outgoing, Peer, SM_NS, closed};
use crate::history::{Class, Ev};

/// How long a step of a login, or a clean close, may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

impl Peer {
    /// One attempt to connect, resuming the stream if there is one.
    pub async fn connect(&mut self) -> Result<(), Lost> {
        if let Some(mut bosh) = self.asleep.take() {
            let held = bosh.hold().await;
            self.raw = Some(Link::Bosh(bosh));
            return held.map_err(|e| self.lost(&e));
        }
        self.session += 1;
        self.resumed = false;
        self.note(Ev::Connect { node: self.place.node.clone() });
        match self.log_in().await {
            Ok(()) => Ok(()),
            Err(e) => Err(self.lost(&e)),
        }
    }

    /// Attempts until it is connected or the deadline has passed.
    pub async fn connect_until(&mut self, deadline: Instant) -> Result<(), Lost> {
        const PAUSE: Duration = Duration::from_millis(50);
        while self.raw.is_none() {
            if self.connect().await.is_ok() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(Lost);
            }
            // The server is being restarted: there is nothing to wait for but its port.
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn log_in(&mut self) -> Result<(), Error> {
        let (mut raw, opened) =
            Link::authenticate(self.manner.over, &self.place.at, &self.account, &Login::default()).await?;
        raw.set_patience(PATIENCE);
        let offers_management = opened.features.child_in(SM_NS).is_some_and(|f| f.local() == "sm");
        let mut resend = Vec::new();
        if let Some(managed) = self.managed.take().filter(|m| m.resumable && offers_management) {
            match self.resume(&mut raw, managed).await? {
                Resumption::Done(rest) => {
                    self.raw = Some(raw);
                    return self.resend(rest).await;
                }
                Resumption::Failed(rest) => resend = rest,
            }
        }
        self.bind(raw, &opened).await?;
        // P4: what the server says it has not handled is sent again, as new stanzas of this stream.
        for outgoing in resend.into_iter().filter(|o| !matches!(o.kind, "presence" | "iq")) {
            self.send(outgoing).await.map_err(|Lost| closed())?;
        }
        Ok(())
    }

    async fn resume(&mut self, raw: &mut Link, mut managed: Managed) -> Result<Resumption, Error> {
        let (id, h) = (managed.id.clone(), managed.received);
        self.note(Ev::Resume { previd: id.clone(), h });
        let answer =
            match raw.send(&format!("<resume xmlns='{SM_NS}' previd='{}' h='{h}'/>", escape(&id))).await {
                Ok(()) => raw.next_element("the answer to <resume/>").await,
                Err(e) => Err(e),
            };
        let answer = match answer {
            Ok(answer) => answer,
            Err(e) => {
                // Nothing is known: it is tried again with the next connection.
                self.managed = Some(managed);
                return Err(e);
            }
        };
        let h: Option<u32> = answer.attr("h").and_then(|h| h.parse().ok());
        match (answer.local(), h) {
            ("resumed", Some(h)) => {
                self.note(Ev::Resumed { h });
                managed.acked(h);
                let rest = managed.unacked.iter().cloned().collect();
                (managed.told, managed.since_asked, managed.asked) = (managed.received, 0, None);
                self.managed = Some(managed);
                self.resumed = true;
                Ok(Resumption::Done(rest))
            }
            ("failed", h) => {
                self.note(Ev::Smfail { h });
                // Without h nobody knows what was handled, and nothing may be sent again.
                let Some(h) = h else { return Ok(Resumption::Failed(Vec::new())) };
                managed.acked(h);
                Ok(Resumption::Failed(managed.unacked.into_iter().map(|(_, o)| o).collect()))
            }
            _ => Err(Error::Unexpected {
                expected: "<resumed/> or <failed/>".to_owned(),
                got: answer.to_string(),
            }),
        }
    }

    /// Sends what the server has not handled once more, with the same numbers.
    async fn resend(&mut self, rest: Vec<(u64, Outgoing)>) -> Result<(), Error> {
        for (seq, outgoing) in rest {
            self.note_send(seq, &outgoing);
            self.write(&outgoing.xml).await.map_err(|Lost| closed())?;
        }
        Ok(())
    }

    async fn bind(&mut self, mut raw: Link, opened: &Opened) -> Result<(), Error> {
        self.jid = raw.bind(Some(&self.resource)).await?;
        self.note(Ev::Bound { jid: self.jid.clone() });
        self.plain_sent = 0;
        let offers = opened.features.child_in(SM_NS).is_some_and(|f| f.local() == "sm");
        if let Link::Bosh(bosh) = &raw {
            let id = format!("{}#{}", self.name, self.session);
            self.note(Ev::Smon { id: id.clone() });
            self.managed = Some(Managed { before: Some(bosh.sent()), ..Managed::new(id, false) });
        } else if self.manner.managed && offers {
            raw.send(&format!("<enable xmlns='{SM_NS}' resume='true'/>")).await?;
            let answer = raw.next_element("<enabled/>").await?;
            if answer.local() != "enabled" {
                return Err(Error::Unexpected { expected: "<enabled/>".into(), got: answer.to_string() });
            }
            let resumable = matches!(answer.attr("resume"), Some("true" | "1"));
            let given = answer.attr("id").filter(|_| resumable).map(str::to_owned);
            let id = given.unwrap_or_else(|| format!("{}#{}", self.name, self.session));
            self.note(Ev::Smon { id: id.clone() });
            self.managed = Some(Managed::new(id, resumable));
        }
        self.raw = Some(raw);
        let uid = self.next_uid();
        let presence = Outgoing {
            uid,
            to: String::new(),
            class: Class::E,
            kind: "presence",
            hash: String::new(),
            xml: "<presence/>".to_owned(),
        };
        self.send(presence).await.map_err(|Lost| closed())
    }
}

enum Resumption {
    Done(Vec<(u64, Outgoing)>),
    Failed(Vec<Outgoing>),
}

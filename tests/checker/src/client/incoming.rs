//! What comes in: acknowledgements, messages in all their wrappings, requests.
//!
//! What must stay true: every stanza is counted once, before anything else is
//! done with it, and what was received is noted before its acknowledgement is.

use waystation_harness::exchange::BIND_NS;
use waystation_harness::xml::{CLIENT_NS, Element, STREAM_NS, escape};

use super::archive::{Found, MAM_NS};
use super::{Lost, Outgoing, Peer, SM_NS};
use crate::body;
use crate::history::{Class, Ctx, Ev, How};

const CARBONS_NS: &str = "urn:xmpp:carbons:2";
const FORWARD_NS: &str = "urn:xmpp:forward:0";
const DELAY_NS: &str = "urn:xmpp:delay";
const SID_NS: &str = "urn:xmpp:sid:0";
pub(super) const PING_NS: &str = "urn:xmpp:ping";
const STANZAS_NS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// After how many stanzas it acknowledges without being asked.
const TELL_EVERY: u32 = 50;

/// The condition of a stream error, from its text in an error of the harness.
pub(super) fn stream_error(text: &str) -> Option<String> {
    let element = Element::parse(text, CLIENT_NS).ok()?;
    match (element.ns(), element.local()) {
        (STREAM_NS, "error") => Some(condition_of(&element)),
        // The end of a session over BOSH (XEP-0124 section 17.2).
        (BIND_NS, "body") => element.attr("condition").map(str::to_owned),
        _ => None,
    }
}

fn condition_of(error: &Element) -> String {
    error.children().find(|c| c.local() != "text").map_or("undefined-condition", Element::local).to_owned()
}

fn is_stanza(element: &Element) -> bool {
    element.ns() == CLIENT_NS && matches!(element.local(), "message" | "presence" | "iq")
}

impl Peer {
    pub(super) async fn handle(&mut self, element: Element) -> Result<Option<Element>, Lost> {
        if element.ns() == SM_NS {
            match element.local() {
                "r" => self.acknowledge().await?,
                "a" => self.acked(&element),
                _ => {}
            }
            return Ok(None);
        }
        if element.ns() == STREAM_NS && element.local() == "error" {
            self.note(Ev::Close { how: How::Error(condition_of(&element)) });
            // The connection is of no more use; its end was just noted.
            self.raw = None;
            return Err(Lost);
        }
        if !is_stanza(&element) {
            return Ok(None);
        }
        self.count();
        let mut reply = None;
        match (element.local(), element.attr("type")) {
            ("message", _) => self.message(&element),
            ("iq", Some("get" | "set")) => self.answer(&element).await?,
            ("iq", _) => reply = Some(element),
            _ => {}
        }
        if self.managed.as_ref().is_some_and(|m| m.received.wrapping_sub(m.told) >= TELL_EVERY) {
            self.acknowledge().await?;
        }
        Ok(reply)
    }

    /// After its own end of the stream a client writes nothing more, but takes what comes.
    pub(super) fn receive_after_close(&mut self, element: &Element) -> Result<(), Lost> {
        if element.ns() == STREAM_NS && element.local() == "error" {
            self.note(Ev::Close { how: How::Error(condition_of(element)) });
            self.raw = None;
            return Err(Lost);
        }
        if element.ns() == SM_NS && element.local() == "a" {
            self.acked(element);
        } else if is_stanza(element) {
            self.count();
            if element.local() == "message" {
                self.message(element);
            }
        }
        Ok(())
    }

    fn count(&mut self) {
        if let Some(managed) = &mut self.managed {
            managed.received = managed.received.wrapping_add(1);
        }
    }

    fn acked(&mut self, element: &Element) {
        let Some(h) = element.attr("h").and_then(|h| h.parse().ok()) else { return };
        self.note(Ev::AIn { h });
        if let Some(managed) = &mut self.managed {
            managed.acked(h);
        }
    }

    /// Answers a request: pings as asked, pushes with a result, the rest as unknown.
    async fn answer(&mut self, iq: &Element) -> Result<(), Lost> {
        let id = escape(iq.attr("id").unwrap_or_default());
        let from = iq.attr("from").unwrap_or_default();
        let to = if from.is_empty() { String::new() } else { format!(" to='{}'", escape(from)) };
        let known = iq.attr("type") == Some("set") || iq.child_in(PING_NS).is_some();
        let xml = if known {
            format!("<iq type='result' id='{id}'{to}/>")
        } else {
            format!(
                "<iq type='error' id='{id}'{to}><error type='cancel'>\
                 <service-unavailable xmlns='{STANZAS_NS}'/></error></iq>"
            )
        };
        let uid = self.next_uid();
        let (to, hash) = (from.to_owned(), String::new());
        self.send(Outgoing { uid, to, class: Class::E, kind: "iq", hash, xml }).await
    }

    fn message(&mut self, message: &Element) {
        if message.attr("type") == Some("error") {
            return self.bounce(message);
        }
        if let Some(result) = message.child_in(MAM_NS).filter(|r| r.local() == "result") {
            self.results.extend(Found::read(result));
            return;
        }
        if let Some(copy) = message.child_in(CARBONS_NS) {
            let inner = copy.child_in(FORWARD_NS).and_then(|f| f.child("message"));
            // Only the own account may send carbons (XEP-0280 section 11).
            let genuine = message.attr("from").is_none_or(|from| from == self.bare());
            if let (Some(inner), true) = (inner, genuine) {
                self.receive(inner, Some(Ctx::Carbon));
            }
            return;
        }
        self.receive(message, None);
    }

    fn receive(&mut self, message: &Element, wrapped: Option<Ctx>) {
        let Some(text) = message.child("body").map(Element::text) else { return };
        let from = message.attr("from").unwrap_or_default().to_owned();
        let room = from.split('/').next().unwrap_or_default();
        let delay = message.children().any(|c| c.ns() == DELAY_NS);
        let ctx = match wrapped {
            Some(ctx) => ctx,
            None if message.attr("type") == Some("groupchat") => Ctx::Room(room.to_owned()),
            // After a resumption the delay tells of redelivery, not of the offline store.
            None if delay && !self.resumed => Ctx::Offline,
            None => Ctx::Live,
        };
        // Only ids of the own account, or of the room, mean anything (XEP-0359 section 6).
        let trusted = if matches!(ctx, Ctx::Room(_)) { room.to_owned() } else { self.bare() };
        let sid = message
            .children()
            .find(|c| c.ns() == SID_NS && c.local() == "stanza-id" && c.attr("by") == Some(&trusted))
            .and_then(|c| c.attr("id"))
            .map(str::to_owned);
        let by = sid.is_some().then_some(trusted);
        let to = message.attr("to").map(str::to_owned);
        let read = body::read(&text);
        self.note(Ev::Recv { uid: read.uid, sid, by, from, to, delay, ctx, hash: read.hash });
    }

    fn bounce(&mut self, message: &Element) {
        let error = message.child("error");
        let cond = error.and_then(|e| e.child_in(STANZAS_NS)).map_or("none", Element::local).to_owned();
        let r#type = error.and_then(|e| e.attr("type")).unwrap_or("none").to_owned();
        let uid = message.attr("id").unwrap_or_default().to_owned();
        let from = message.attr("from").unwrap_or_default().to_owned();
        self.note(Ev::Err { uid, cond, r#type, from });
    }
}

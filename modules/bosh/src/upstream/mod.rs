//! The client's side of the stream behind a session: what it is sent, what it says, and stream
//! management on it (XEP-0198), whose client the gateway is. No I/O.
//!
//! What must hold: the gateway enables stream management as soon as a resource is bound, so that
//! it learns which stanzas of a request are safe and the server which stanzas the client has got.
//! A client that manages its stream itself gets answers as if it were alone: they are made from
//! the gateway's own numbers, shifted to where the client began to count.
//!
//! What is acknowledged to the server at once is only what nobody misses when it is lost: answers
//! and presence. Otherwise a page of results would use up what the server keeps for a session.
//!
//! Stanzas for the client are counted once and for all, also over a restart of the server, after
//! which the stream counts anew from the number it is resumed with: [`Numbers`] holds both. What
//! the server sends once more although it is in a response that may be asked for again is known
//! by its identity and left out.

mod numbers;
mod own;

use std::collections::VecDeque;
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use waystation_core::Jid;
use waystation_core::xml::{Element, Event as XmlEvent, Frame, Framer, Limits, Ns, escape_attr};

use crate::body::{NS_CLIENT, NS_STREAMS, Payload};
pub(crate) use numbers::Identity;
use numbers::Numbers;

const NS_SM: &str = "urn:xmpp:sm:3";
const NS_SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
const NS_BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
const NS_ARCHIVE: &str = "urn:xmpp:mam:2";
const NS_STANZAS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const REQUEST: &[u8] = b"<r xmlns='urn:xmpp:sm:3'/>";

/// What the server's stream brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// Something for the client.
    Payload(Payload),
    /// The session was resumed: see [`Upstream::resume`].
    Resumed,
    /// It could not be. True: there is no such session.
    NotResumed(bool),
    /// Stream features, while a session is resumed.
    Features,
    /// A stream error, ready to be handed on. True: the server stops.
    Error(Payload, bool),
    /// The end of the stream.
    Closed,
    /// What no server says.
    Garbled,
}

/// Stream management of the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Management {
    Off,
    /// `<enable/>` was sent.
    Asked,
    /// With the identifier for resumption, if there is any.
    On(Option<String>),
    /// The server does not want it: nothing is counted.
    Refused,
}

/// Where a client that manages its stream itself began to count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counting {
    /// Stanzas that it had sent.
    pub(crate) sent: u64,
    /// Stanzas that it had got.
    pub(crate) got: u64,
}

/// What a session that is resumed has to know.
#[derive(Clone, Debug)]
pub(crate) struct Resumption {
    pub(crate) account: Jid,
    pub(crate) id: String,
    /// Stanzas that the client sent with requests that were answered.
    pub(crate) sent: u64,
    /// Stanzas that the client is known to have got.
    pub(crate) confirmed: u64,
    /// What was acknowledged, as the stream counts.
    pub(crate) acknowledged: u64,
    /// Stanzas in responses.
    pub(crate) got: u64,
    /// Those of them that are not confirmed: their numbers and what they are known by.
    pub(crate) expected: VecDeque<(u64, Identity)>,
    pub(crate) counting: Option<Counting>,
}

/// The stream.
pub(crate) struct Upstream {
    framer: Framer,
    /// How long the session is to be resumable.
    max: Duration,
    /// Authentication has just succeeded: a new stream may follow.
    may_restart: bool,
    account: Option<Jid>,
    management: Management,
    /// Stanzas sent since stream management was enabled.
    sent: u64,
    /// Of those, how many the server has accepted; what comes again up to there is not sent.
    safe: u64,
    numbers: Numbers,
    confirmed: u64,
    /// Numbers of stanzas that may be acknowledged only when they are confirmed, in order.
    owed: VecDeque<u64>,
    expected: VecDeque<(u64, Identity)>,
    resuming: Option<u64>,
    counting: Option<Counting>,
    /// The client wants to count: when, and whether it wants to be able to resume.
    enabling: Option<(u64, bool)>,
    /// It has asked for a number, after so many stanzas.
    asked: Option<u64>,
    /// It resumes a session of its own, of which it has got so many stanzas.
    client_resumes: Option<u64>,
}

impl Upstream {
    /// The stream of a new session. `max` is how long it is to be resumable.
    pub(crate) fn new(limits: Limits, max: Duration) -> Self {
        Self {
            framer: Framer::new(limits),
            max,
            may_restart: false,
            account: None,
            management: Management::Off,
            sent: 0,
            safe: 0,
            numbers: Numbers::default(),
            confirmed: 0,
            owed: VecDeque::new(),
            expected: VecDeque::new(),
            resuming: None,
            counting: None,
            enabling: None,
            asked: None,
            client_resumes: None,
        }
    }

    /// The stream of a session that is taken up again, authenticated already.
    pub(crate) fn resuming(limits: Limits, max: Duration, resumption: Resumption) -> Self {
        let Resumption { account, id, sent, confirmed, acknowledged, got, expected, counting } = resumption;
        let numbers = Numbers { count: got, resumed_at: acknowledged, base: got, again: Vec::new() };
        Self {
            account: Some(account),
            management: Management::On(Some(id)),
            sent,
            safe: sent,
            numbers,
            confirmed,
            expected,
            resuming: Some(sent),
            counting,
            ..Self::new(limits, max)
        }
    }

    /// Asks for the session to be taken up.
    pub(crate) fn resume(&self, out: &mut Vec<u8>) {
        if let Management::On(Some(id)) = &self.management {
            let h = (self.numbers.resumed_at as u32).to_string();
            let element = Element::new("resume", NS_SM).with_attr("previd", id.as_str()).with_attr("h", h);
            element.write(out, NS_CLIENT);
        }
    }

    /// Stanzas that the client has sent, since they are counted.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    fn counts(&self) -> bool {
        matches!(self.management, Management::Asked | Management::On(_))
    }

    /// Stanzas of the client that are safe. All are while nothing is counted.
    pub(crate) fn safe(&self) -> u64 {
        if self.management == Management::Refused { u64::MAX } else { self.safe }
    }

    /// Stanzas that the client is known to have got.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// How many stanzas have been or may be acknowledged, as the stream counts.
    pub(crate) fn acknowledged(&self) -> u64 {
        let last = self.owed.front().map_or(self.numbers.count, |owed| owed - 1);
        self.numbers.on_stream(last)
    }

    /// Where the client counts from.
    pub(crate) fn counting(&self) -> Option<Counting> {
        self.counting
    }

    /// Whose session it is and how it can be resumed, once it can be.
    pub(crate) fn resumable(&self) -> Option<(&Jid, &str)> {
        match (&self.account, &self.management) {
            (Some(account), Management::On(Some(id))) => Some((account, id)),
            _ => None,
        }
    }

    /// True once the stream is a session's.
    pub(crate) fn is_bound(&self) -> bool {
        self.management != Management::Off
    }

    /// True between a resource being bound and the server saying how the session can be resumed.
    pub(crate) fn is_enabling(&self) -> bool {
        self.management == Management::Asked
    }

    /// Writes a stream header (XEP-0206 4 and 5).
    pub(crate) fn open(&mut self, to: &str, from: Option<&str>, lang: Option<&str>, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.may_restart) {
            self.framer.restart();
        }
        out.extend_from_slice(b"<?xml version='1.0'?><stream:stream xmlns='jabber:client' xmlns:stream='");
        out.extend_from_slice(NS_STREAMS.as_bytes());
        out.extend_from_slice(b"' version='1.0'");
        for (name, value) in [("to", Some(to)), ("from", from), ("xml:lang", lang)] {
            if let Some(value) = value {
                out.extend_from_slice(format!(" {name}='").as_bytes());
                escape_attr(value, out);
                out.push(b'\'');
            }
        }
        out.push(b'>');
    }

    /// Ends the stream. Says before what the client has got, as XEP-0198 4 recommends.
    pub(crate) fn close(&self, out: &mut Vec<u8>) {
        if self.counts() {
            self.acknowledge(out);
        }
        out.extend_from_slice(b"</stream:stream>");
    }

    /// Sends a payload of the client; what it gets in return at once.
    pub(crate) fn send(&mut self, payload: &Element, out: &mut Vec<u8>) -> Option<Payload> {
        if payload.namespace() == NS_SM {
            if self.is_bound() {
                return self.manage(payload, out);
            }
            if payload.name() == "resume" {
                self.client_resumes = payload.attr("h").and_then(|h| h.trim().parse().ok());
            }
        }
        if payload.namespace() == NS_CLIENT && self.counts() {
            self.sent += 1;
            if self.sent <= self.safe {
                // The request was carried out up to here before the server was restarted.
                return None;
            }
        }
        payload.write(out, NS_CLIENT);
        None
    }

    /// All of a request was sent.
    pub(crate) fn end_request(&mut self, out: &mut Vec<u8>) {
        if self.counts() && self.sent > self.safe {
            out.extend_from_slice(REQUEST);
        } else if self.is_bound() {
            // A sign of life: a client that only asks for payloads need not be pinged.
            out.push(b' ');
        }
    }

    /// The client is known to have got so many stanzas.
    pub(crate) fn confirm(&mut self, count: u64, out: &mut Vec<u8>) {
        let count = count.min(self.numbers.count);
        if count > self.confirmed {
            self.confirmed = count;
            let owed = self.owed.len();
            self.owed.retain(|number| *number > count);
            if self.resuming.is_none() && self.owed.len() < owed {
                self.acknowledge(out);
            }
        }
    }

    fn acknowledge(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = write!(out, "<a xmlns='{NS_SM}' h='{}'/>", self.acknowledged() as u32);
    }

    /// What the server has sent. `out` is what it gets in return.
    pub(crate) fn receive(&mut self, mut input: &[u8], out: &mut Vec<u8>, events: &mut Vec<Event>) {
        // It is borrowed while elements are read.
        let limits = Limits::authenticated();
        let mut framer = std::mem::replace(&mut self.framer, Framer::new(limits));
        loop {
            match framer.next(&mut input) {
                Ok(XmlEvent::NeedMore) => break,
                Ok(XmlEvent::Whitespace(_) | XmlEvent::Open(_)) => {}
                Ok(XmlEvent::Close) => events.push(Event::Closed),
                Ok(XmlEvent::Stanza(frame)) => self.element(&frame, out, events),
                Err(error) => {
                    tracing::error!(%error, "what the server sent on a stream of its own is not valid");
                    events.push(Event::Garbled);
                    break;
                }
            }
        }
        self.framer = framer;
    }

    fn element(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>, events: &mut Vec<Event>) {
        match frame.head.namespace {
            Ns::Client => self.stanza(frame, out, events),
            Ns::StreamManagement if self.management != Management::Off => {
                self.answer(frame, out, events);
            }
            Ns::StreamManagement => {
                events.push(Event::Payload(self.payload(frame)));
                if let Some(got) = self.client_resumes.take()
                    && frame.name() == "resumed"
                {
                    // Whose it is was not heard: it cannot be taken up after a restart.
                    let h = frame.head.attr(frame.bytes, "h").and_then(|h| h.trim().parse().ok());
                    (self.sent, self.safe) = (h.unwrap_or(0), h.unwrap_or(0));
                    self.numbers = Numbers { count: got, resumed_at: got, base: got, again: Vec::new() };
                    self.confirmed = got;
                    self.counting = Some(Counting { sent: 0, got: 0 });
                    self.management = Management::On(None);
                }
            }
            Ns::Streams if frame.name() == "error" => {
                let stops = frame.element().is_ok_and(|error| {
                    error.child("system-shutdown", "urn:ietf:params:xml:ns:xmpp-streams").is_some()
                });
                events.push(Event::Error(self.payload(frame), stops));
            }
            Ns::Streams if self.resuming.is_some() => events.push(Event::Features),
            _ => {
                if frame.name() == "success" && frame.namespace() == NS_SASL {
                    self.may_restart = true;
                }
                events.push(Event::Payload(self.payload(frame)));
            }
        }
    }

    fn stanza(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>, events: &mut Vec<Event>) {
        if matches!(self.management, Management::On(_)) {
            if !self.expected.is_empty() && self.came_again(frame) {
                return;
            }
            self.numbers.count += 1;
            if self.is_missed(frame) {
                self.owed.push_back(self.numbers.count);
            }
        }
        events.push(Event::Payload(self.payload(frame)));
        if self.management == Management::Off && frame.name() == "iq" {
            let bound = frame.element().ok().and_then(|iq| {
                let jid = iq.child("bind", NS_BIND)?.child("jid", NS_BIND)?.text();
                (iq.attr("type") == Some("result")).then(|| Jid::parse(&jid).ok()).flatten()
            });
            if let Some(jid) = bound {
                self.account = Some(jid.to_bare());
                self.management = Management::Asked;
                let enable = Element::new("enable", NS_SM)
                    .with_attr("resume", "true")
                    .with_attr("max", self.max.as_secs().to_string());
                enable.write(out, NS_CLIENT);
            }
        }
    }

    /// True for a stanza that somebody would miss: when the client does not get it, the server
    /// hands it to another session, or tells its sender.
    fn is_missed(&self, frame: &Frame<'_>) -> bool {
        let attr = |name| frame.head.attr(frame.bytes, name);
        let kind = attr("type");
        match (frame.name(), kind.as_deref()) {
            ("iq", Some("result" | "error")) | ("presence", None | Some("unavailable" | "error")) => false,
            ("message", _) => {
                let own = |from: &str| self.account.as_ref().is_some_and(|account| account.as_str() == from);
                let result = frame.head.child.as_ref().is_some_and(|child| {
                    child.name(frame.bytes) == "result" && child.namespace(frame.bytes) == NS_ARCHIVE
                });
                // One that claims to be the account's own result comes from the server.
                !(result && attr("from").is_none_or(|from| own(&from)))
            }
            _ => true,
        }
    }

    /// True for a stanza that is in a response already; it keeps its number.
    fn came_again(&mut self, frame: &Frame<'_>) -> bool {
        let (Ok(element), Some(account)) = (frame.element(), &self.account) else { return false };
        let identity = Identity::of(&element, account);
        let found = self.expected.iter().position(|(_, expected)| *expected == identity);
        // What has no identifier could be a new one that looks the same.
        let certain = matches!(identity, Identity::Id(_)) || self.numbers.count == self.numbers.base;
        let Some((number, _)) = found.filter(|_| certain).and_then(|index| self.expected.remove(index))
        else {
            return false;
        };
        self.numbers.again.push(number);
        if number > self.confirmed {
            let place = self.owed.partition_point(|owed| *owed < number);
            self.owed.insert(place, number);
        }
        true
    }

    /// An element of stream management, which is for the gateway.
    fn answer(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>, events: &mut Vec<Event>) {
        let attr = |name| frame.head.attr(frame.bytes, name);
        let h = || attr("h").and_then(|h| h.trim().parse::<u32>().ok());
        match frame.name() {
            "r" => self.acknowledge(out),
            "a" => {
                if let Some(h) = h() {
                    let more = u64::from(h.wrapping_sub(self.safe as u32));
                    if self.safe + more <= self.sent {
                        self.safe += more;
                    }
                }
                if self.asked.is_some_and(|asked| self.safe >= asked)
                    && let Some(counting) = self.counting
                {
                    self.asked = None;
                    events.push(Event::Payload(self.number(counting)));
                }
            }
            "enabled" if self.management == Management::Asked => {
                let resume = attr("resume").is_some_and(|resume| matches!(&*resume, "true" | "1"));
                let id = attr("id").filter(|_| resume).map(|id| id.into_owned());
                self.management = Management::On(id);
                events.extend(self.enabled().map(Event::Payload));
            }
            "resumed" if self.resuming.is_some() => {
                let sent = self.resuming.take().unwrap_or(0);
                // Never fewer than what was said to be safe.
                let more = h().map_or(0, |h| h.wrapping_sub(sent as u32));
                if i32::try_from(more).is_err() {
                    events.push(Event::NotResumed(true));
                } else {
                    self.safe = sent + u64::from(more);
                    events.push(Event::Resumed);
                }
            }
            "failed" if self.resuming.is_some() => {
                let gone = frame.element().is_ok_and(|f| f.child("item-not-found", NS_STANZAS).is_some());
                events.push(Event::NotResumed(gone));
            }
            "failed" if self.management == Management::Asked => {
                // No server does this to its own gateway; the session goes on without.
                tracing::error!("stream management was refused to the gateway");
                self.management = Management::Refused;
                if self.enabling.take().is_some() {
                    events.push(Event::Payload(self.unexpected()));
                }
            }
            _ => {}
        }
    }

    /// An element as it stands in a wrapper, whose default namespace is another one.
    fn payload(&self, frame: &Frame<'_>) -> Payload {
        let number = self.numbers.count;
        let is_stream = frame.head.prefix.slice(frame.bytes) == b"stream";
        if frame.head.reserialise
            && !is_stream
            && let Ok(element) = frame.element()
        {
            return Payload { bytes: element.to_vec("").into(), is_stream: false, number };
        }
        let declares = frame.head.attributes.iter().any(|a| a.is_declaration && a.prefix.is_empty());
        if declares || is_stream {
            return Payload { bytes: Bytes::copy_from_slice(frame.bytes), is_stream, number };
        }
        let (name, rest) = frame.bytes.split_at(frame.head.name.end as usize);
        let bytes = [name, b" xmlns='jabber:client'", rest].concat().into();
        Payload { bytes, is_stream, number }
    }
}

#[cfg(test)]
mod tests;

//! A server for the other end of the streams: it authenticates everyone, manages streams, and
//! remembers over restarts what it has accepted and what it has to deliver.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use waystation_core::Jid;
use waystation_core::xml::{Element, Event, Framer, Limits};
use waystation_transport::{Connection, DetachedConnection, Flow, ReadOutcome};
use waystation_web::Streams;

const FEATURES: &str = "<stream:features><mechanisms xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>\
    <mechanism>PLAIN</mechanism></mechanisms></stream:features>";
const BIND: &str = "<stream:features><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/><sm xmlns='urn:xmpp:sm:3'/>\
    </stream:features>";

/// A session that can be resumed.
#[derive(Default)]
pub(super) struct Kept {
    /// Stanzas accepted.
    pub(super) handled: u32,
    /// Messages sent and not acknowledged.
    pub(super) unacked: Vec<(u32, String)>,
    sent: u32,
}

#[derive(Default)]
pub(super) struct State {
    /// IDs of the stanzas accepted, in order.
    pub(super) accepted: Vec<String>,
    pub(super) kept: HashMap<String, Kept>,
    /// Stanzas are taken in and not acknowledged.
    pub(super) silent: bool,
    /// Nothing is read.
    pub(super) deaf: bool,
    /// Stream management is not enabled before [`Fake::enable`].
    pub(super) slow_to_enable: bool,
    /// What says that it is, and was not sent.
    pub(super) enabling: Option<String>,
    /// After so many stanzas none is accepted any more: it has died.
    pub(super) dies_after: Option<usize>,
    pub(super) ended_in_order: u32,
    /// Messages that were not acknowledged by then.
    pub(super) left_over: usize,
    pub(super) lost: u32,
    pub(super) resumed: u32,
    /// To the stream that was begun last.
    stream: Option<mpsc::Sender<String>>,
    keys: u32,
    pub(super) headers: Vec<(Option<String>, Option<String>)>,
}

pub(super) struct Fake {
    state: Mutex<State>,
    changed: Notify,
    incoming: mpsc::Sender<(DetachedConnection, Option<Jid>)>,
}

impl Streams for Fake {
    fn accept(&self, connection: DetachedConnection) {
        self.incoming.try_send((connection, None)).unwrap();
    }

    fn accept_authenticated(&self, connection: DetachedConnection, account: &Jid) {
        self.incoming.try_send((connection, Some(account.clone()))).unwrap();
    }

    fn serves(&self, domain: &str) -> bool {
        domain == "example.org"
    }
}

impl Fake {
    pub(super) fn start() -> Arc<Self> {
        let (incoming, mut arrivals) = mpsc::channel(1_000);
        let fake = Arc::new(Self { state: Mutex::default(), changed: Notify::new(), incoming });
        let weak = Arc::downgrade(&fake);
        actix_rt::spawn(async move {
            while let Some((connection, account)) = arrivals.recv().await {
                let Some(fake) = weak.upgrade() else { return };
                let (sender, receiver) = mpsc::channel(100);
                fake.state().stream = Some(sender);
                actix_rt::spawn(
                    async move { fake.serve(connection.attach().unwrap(), account, receiver).await },
                );
            }
        });
        fake
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Waits until something is so.
    pub(super) async fn until(&self, what: &str, is_so: impl Fn(&State) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if is_so(&self.state()) {
                    return;
                }
                changed.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), wait)
            .await
            .unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Reads on.
    pub(super) fn listen(&self) {
        self.state().deaf = false;
        self.changed.notify_waiters();
    }

    /// Sends something on the last stream. `m1` and the like are messages, kept until they are
    /// acknowledged.
    pub(super) async fn send(&self, what: &str) {
        let stream = self.state().stream.clone().unwrap();
        stream.send(what.to_owned()).await.unwrap();
    }

    /// Says on the last stream that its management is enabled.
    pub(super) async fn enable(&self) {
        let enabled = self.state().enabling.take().unwrap();
        self.send(&enabled).await;
    }

    async fn serve(
        self: Arc<Self>,
        mut conn: Connection,
        mut account: Option<Jid>,
        mut orders: mpsc::Receiver<String>,
    ) {
        let mut framer = Framer::new(Limits::authenticated());
        let mut key: Option<String> = None;
        let mut buffer = Vec::new();
        loop {
            while self.state().deaf {
                self.changed.notified().await;
            }
            let mut sink = |chunk: &[u8]| {
                buffer.extend_from_slice(chunk);
                Flow::Continue
            };
            let outcome = tokio::select! {
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    let end = order.contains("stream:error");
                    let text = self.order(&order, key.as_deref());
                    conn.queue_slice(text.as_bytes());
                    conn.flush().await.unwrap();
                    if end {
                        conn.close(Duration::from_secs(5)).await;
                        return;
                    }
                    continue;
                }
                outcome = conn.read_some(4096, &mut sink) => outcome,
            };
            match outcome {
                Ok(ReadOutcome::Data { .. }) => {}
                _ => {
                    self.state().lost += 1;
                    return self.changed.notify_waiters();
                }
            }
            let mut input = &buffer[..];
            let mut out = String::new();
            let mut restart = false;
            loop {
                match framer.next(&mut input).unwrap() {
                    Event::NeedMore => break,
                    Event::Whitespace(_) => {}
                    Event::Open(open) => {
                        self.state().headers.push((open.to, open.lang));
                        out += "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
                            xmlns:stream='http://etherx.jabber.org/streams' id='1' version='1.0'>";
                        out += if account.is_some() { BIND } else { FEATURES };
                    }
                    Event::Close => {
                        self.ended(key.as_deref());
                        out += "</stream:stream>";
                        conn.queue_slice(out.as_bytes());
                        conn.close(Duration::from_secs(5)).await;
                        return self.changed.notify_waiters();
                    }
                    Event::Stanza(frame) => {
                        let element = frame.element().unwrap();
                        out += &self.element(&element, &mut account, &mut key);
                        if element.name() == "auth" {
                            restart = true;
                            break;
                        }
                    }
                }
            }
            buffer = input.to_vec();
            if restart {
                framer.restart();
            }
            conn.queue_slice(out.as_bytes());
            if conn.flush().await.is_err() {
                return;
            }
            self.changed.notify_waiters();
        }
    }

    fn ended(&self, key: Option<&str>) {
        let mut state = self.state();
        state.ended_in_order += 1;
        let kept = state.kept.remove(key.unwrap_or_default());
        state.left_over += kept.map_or(0, |kept| kept.unacked.len());
    }

    fn order(&self, order: &str, key: Option<&str>) -> String {
        let mut state = self.state();
        match key.and_then(|key| state.kept.get_mut(key)) {
            Some(kept) if order.starts_with('m') => {
                kept.sent += 1;
                kept.unacked.push((kept.sent, order.to_owned()));
                format!("{}<r xmlns='urn:xmpp:sm:3'/>", message(order))
            }
            Some(kept) if order.starts_with("<presence") => {
                kept.sent += 1;
                order.to_owned()
            }
            _ => order.to_owned(),
        }
    }

    fn element(&self, element: &Element, account: &mut Option<Jid>, key: &mut Option<String>) -> String {
        let mut state = self.state();
        let number = |name| element.attr(name).and_then(|h| h.parse::<u32>().ok()).unwrap_or(0);
        match element.name() {
            "auth" => {
                *account = Some(Jid::parse("juliet@example.org").unwrap());
                "<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>".into()
            }
            "enable" => {
                state.keys += 1;
                let id = format!("key{}", state.keys);
                state.kept.insert(id.clone(), Kept::default());
                *key = Some(id.clone());
                let enabled = format!("<enabled xmlns='urn:xmpp:sm:3' id='{id}' resume='true' max='150'/>");
                if state.slow_to_enable {
                    state.enabling = Some(enabled);
                    return String::new();
                }
                enabled
            }
            "resume" => {
                let id = element.attr("previd").unwrap().to_owned();
                let Some(kept) = state.kept.get_mut(&id) else {
                    return "<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>".into();
                };
                // As after a crash: only messages are left, and they are counted anew.
                let h = number("h");
                kept.unacked.retain(|(number, _)| *number > h);
                kept.sent = h;
                let mut out = format!("<resumed xmlns='urn:xmpp:sm:3' previd='{id}' h='{}'/>", kept.handled);
                for (number, name) in &mut kept.unacked {
                    kept.sent += 1;
                    *number = kept.sent;
                    out += &message(name);
                }
                state.resumed += 1;
                *key = Some(id);
                out
            }
            "r" if !state.silent => {
                let handled = key.as_ref().map_or(0, |key| state.kept[key].handled);
                format!("<a xmlns='urn:xmpp:sm:3' h='{handled}'/>")
            }
            "a" => {
                let h = number("h");
                if let Some(kept) = key.as_ref().and_then(|key| state.kept.get_mut(key)) {
                    kept.unacked.retain(|(number, _)| *number > h);
                }
                String::new()
            }
            "iq" | "message" | "presence" => {
                if state.dies_after == Some(state.accepted.len()) {
                    return String::new();
                }
                if let Some(kept) = key.as_ref().and_then(|key| state.kept.get_mut(key)) {
                    kept.handled += 1;
                }
                let id = element.attr("id").unwrap_or_default();
                state.accepted.push(id.to_owned());
                if key.is_none() && element.children().any(|child| child.name() == "bind") {
                    return format!(
                        "<iq type='result' id='{id}'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
                        <jid>juliet@example.org/b</jid></bind></iq>"
                    );
                }
                String::new()
            }
            _ => String::new(),
        }
    }
}

/// A message as the server delivers it.
fn message(id: &str) -> String {
    format!(
        "<message id='{id}'><body>hi</body><stanza-id xmlns='urn:xmpp:sid:0' by='juliet@example.org' id='s{id}'/></message>"
    )
}

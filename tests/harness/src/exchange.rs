//! BOSH below the stream (XEP-0124): numbered requests over a few HTTP connections, and their
//! answers in order.
//!
//! What must stay true: a request keeps its number and its bytes until it is
//! answered, whatever happens to the connection it was made on; requests are
//! made and answers given out in the order of their numbers; and no more are
//! open than the server allows. Waiting can be given up at any time: nothing is
//! lost by it. A broken connection is reported once; whoever then waits again
//! has everything that is unanswered sent again over new connections.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use crate::http::Connection;

/// Where Prosody, ejabberd and this project's server listen for BOSH.
pub const PATH: &str = "/http-bind";
/// The namespace of `<body/>`.
pub const BIND_NS: &str = "http://jabber.org/protocol/httpbind";
/// The namespace of what XEP-0206 adds.
pub const XBOSH_NS: &str = "urn:xmpp:xbosh";

/// Bytes of stanzas that go into one request, unless a single one is longer.
const MAX_PAYLOAD: usize = 32 * 1024;
/// Answered requests that are kept, to be repeated.
const KEPT: usize = 4;
/// The most connections; more requests than that are never open.
const CONNECTIONS: usize = 2;

/// A BOSH session's requests and answers.
pub struct Exchange {
    at: SocketAddr,
    /// The head of every request, up to its length.
    head: Vec<u8>,
    sid: String,
    next_rid: u64,
    /// The number of the request whose answer comes next.
    next_answer: u64,
    /// How many requests may be open.
    window: usize,
    acknowledges: bool,
    posts: VecDeque<Post>,
    unanswered: VecDeque<Request>,
    answered: VecDeque<Request>,
    /// Calls of [`Exchange::post`] whose request is answered.
    confirmed: u64,
    early: BTreeMap<u64, (Vec<u8>, u64)>,
    answers: VecDeque<Vec<u8>>,
    slots: Vec<Slot>,
    /// The client has asked for the end.
    ending: bool,
    terminated: bool,
}

/// What is to be sent.
struct Post {
    attributes: String,
    payload: Vec<u8>,
    /// How many calls of [`Exchange::post`] it is made of.
    count: u64,
    /// Whether nothing may be added to it.
    alone: bool,
}

#[derive(Clone)]
struct Request {
    rid: u64,
    body: Vec<u8>,
    count: u64,
    under_way: bool,
}

struct Slot {
    connection: Connection,
    /// The request that is open on it.
    rid: Option<u64>,
}

impl Exchange {
    /// A session that is not created yet; `rid` is the number of its first request.
    pub fn new(at: SocketAddr, path: &str, rid: u64) -> Self {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost:{}\r\nContent-Type: text/xml; charset=utf-8\r\n",
            at.port()
        );
        Self {
            at,
            head: head.into_bytes(),
            sid: String::new(),
            next_rid: rid,
            next_answer: rid,
            window: 1,
            acknowledges: false,
            posts: VecDeque::new(),
            unanswered: VecDeque::new(),
            answered: VecDeque::new(),
            confirmed: 0,
            early: BTreeMap::new(),
            answers: VecDeque::new(),
            slots: Vec::new(),
            ending: false,
            terminated: false,
        }
    }

    /// The session has this id from now on, and this many requests may be open.
    pub fn created(&mut self, sid: &str, requests: usize) {
        sid.clone_into(&mut self.sid);
        self.window = requests.clamp(1, CONNECTIONS);
    }

    /// The session's id; empty before it is created.
    pub fn sid(&self) -> &str {
        &self.sid
    }

    /// From now on requests tell which answers have come (XEP-0124 section 9.2).
    pub fn acknowledge(&mut self) {
        self.acknowledges = true;
    }

    /// Queues stanzas, which go as soon as a request may be made.
    pub fn post(&mut self, payload: &[u8]) {
        match self.posts.back_mut() {
            Some(last) if !last.alone && last.payload.len() + payload.len() <= MAX_PAYLOAD => {
                last.payload.extend_from_slice(payload);
                last.count += 1;
            }
            _ => self.posts.push_back(Post {
                attributes: String::new(),
                payload: payload.to_vec(),
                count: 1,
                alone: false,
            }),
        }
    }

    /// Queues a request of its own, whose `<body/>` has these attributes and holds nothing.
    pub fn post_body(&mut self, attributes: &str) {
        self.posts.push_back(Post {
            attributes: format!(" {attributes}"),
            payload: Vec::new(),
            count: 0,
            alone: true,
        });
    }

    /// Queues the request that ends the session, after what was queued before.
    pub fn terminate(&mut self) {
        self.ending = true;
        self.post_body("type='terminate'");
    }

    /// Bytes of stanzas that no request was made of yet.
    pub fn queued(&self) -> usize {
        self.posts.iter().map(|post| post.payload.len()).sum()
    }

    /// How many calls of [`Exchange::post`], from the first one on, went with requests that are answered.
    /// A server may answer before it has done anything with them (XEP-0124 section 8); what else an
    /// answer means is between it and its clients.
    pub fn confirmed(&self) -> u64 {
        self.confirmed
    }

    /// Whether a session was created and not ended by the server.
    pub fn is_open(&self) -> bool {
        !self.sid.is_empty() && !self.terminated
    }

    /// Whether an answer has come that was not given out yet.
    pub fn has_answers(&self) -> bool {
        !self.answers.is_empty()
    }

    /// The numbers of the requests that are not answered, oldest first.
    pub fn unanswered(&self) -> impl Iterator<Item = u64> {
        self.unanswered.iter().map(|request| request.rid)
    }

    /// Makes the requests that may be made and writes them, without waiting for an answer.
    ///
    /// # Errors
    /// When a connection breaks or none can be made.
    pub async fn flush(&mut self) -> io::Result<()> {
        self.dispatch(false).await?;
        self.write().await
    }

    /// As [`Exchange::flush`]; if the server would hold no request then, an empty one is made.
    ///
    /// # Errors
    /// As those of [`Exchange::flush`].
    pub async fn hold(&mut self) -> io::Result<()> {
        self.dispatch(true).await?;
        self.write().await
    }

    async fn write(&mut self) -> io::Result<()> {
        let written = poll_fn(|cx| {
            let mut all = Poll::Ready(Ok(()));
            for slot in &mut self.slots {
                match slot.connection.poll_flush(cx) {
                    Poll::Ready(Ok(())) => {}
                    Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                    Poll::Pending => all = Poll::Pending,
                }
            }
            all
        });
        let written: io::Result<()> = written.await;
        written.inspect_err(|_| self.break_off())
    }

    /// The next answer: a `<body/>`, whole. While it waits it keeps a request with the server, and
    /// sends what is queued. A single read takes up to the length of `chunk`.
    ///
    /// # Errors
    /// When a connection breaks or none can be made; when an answer is no HTTP, or not of status 200.
    pub async fn next(&mut self, chunk: &mut [u8]) -> io::Result<Vec<u8>> {
        loop {
            self.prepare().await?;
            if let Some(answer) = poll_fn(|cx| self.poll_next(cx, chunk)).await? {
                return Ok(answer);
            }
        }
    }

    /// What [`Exchange::next`] does before each poll, for who polls with a buffer that many share.
    ///
    /// # Errors
    /// When no connection can be made.
    pub async fn prepare(&mut self) -> io::Result<()> {
        if self.answers.is_empty() { self.dispatch(true).await } else { Ok(()) }
    }

    /// The next answer; `None` when [`Exchange::prepare`] is to be called again.
    pub fn poll_next(&mut self, cx: &mut Context<'_>, chunk: &mut [u8]) -> Poll<io::Result<Option<Vec<u8>>>> {
        if let Some(answer) = self.answers.pop_front() {
            return Poll::Ready(Ok(Some(answer)));
        }
        match self.poll_slots(cx, chunk) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => Poll::Ready(Ok(self.answers.pop_front())),
            Poll::Ready(Err(e)) => {
                self.break_off();
                Poll::Ready(Err(e))
            }
        }
    }

    /// Sends an exact copy of an earlier request over a connection of its own and returns the answer to
    /// it, which is given to nobody else. The last four that were answered can be repeated, and those
    /// that are open.
    ///
    /// # Errors
    /// When there is no such request, or its connection fails.
    pub async fn repeat(&self, rid: u64) -> io::Result<Vec<u8>> {
        let known = self.answered.iter().chain(&self.unanswered).find(|request| request.rid == rid);
        let request = known.ok_or_else(|| io::Error::other(format!("no request {rid} to be repeated")))?;
        let mut connection = Connection::connect(self.at).await?;
        connection.post(&self.head, &request.body);
        match connection.exchange().await? {
            Some(response) if response.head.status == 200 => Ok(response.body),
            other => Err(io::Error::other(format!("the answer to {rid} is {other:?}"))),
        }
    }

    /// Breaks all connections without a word. The session goes on when someone waits again.
    pub fn reset(&mut self) {
        for slot in std::mem::take(&mut self.slots) {
            // What fails here fails on a socket that is gone already.
            let _gone = slot.connection.into_wire().0.reset();
        }
        self.break_off();
    }

    /// Shuts all connections in order, after what was written. The session goes on when someone waits
    /// again.
    pub async fn shut(&mut self) {
        for slot in std::mem::take(&mut self.slots) {
            let (mut wire, mut rest) = slot.connection.into_wire();
            // What fails here fails on a socket that is gone already.
            let _gone = wire.shutdown().await;
            // Only after the server has read to the end is no reset sent for what this side leaves unread.
            while matches!(wire.read(&mut rest).await, Ok(n) if n > 0) {}
        }
        self.break_off();
    }

    fn break_off(&mut self) {
        self.slots.clear();
        for request in &mut self.unanswered {
            request.under_way = false;
        }
    }

    /// Makes requests of what is queued, as far as they may be made, and gives them to connections.
    async fn dispatch(&mut self, hold: bool) -> io::Result<()> {
        let mut open = usize::try_from(self.next_rid - self.next_answer).unwrap_or(usize::MAX);
        while open < self.window && !self.terminated {
            let post = match self.posts.pop_front() {
                Some(post) => post,
                None if hold && open == 0 && self.is_open() => {
                    Post { attributes: String::new(), payload: Vec::new(), count: 0, alone: true }
                }
                None => break,
            };
            let request = self.request(&post);
            self.unanswered.push_back(request);
            open += 1;
        }
        for index in 0..self.unanswered.len() {
            if self.unanswered[index].under_way {
                continue;
            }
            self.slots.retain(|slot| slot.rid.is_some() || !slot.connection.has_ended());
            let free = match self.slots.iter().position(|slot| slot.rid.is_none()) {
                Some(free) => free,
                None => {
                    let connection = Connection::connect(self.at).await?;
                    self.slots.push(Slot { connection, rid: None });
                    self.slots.len() - 1
                }
            };
            let request = &mut self.unanswered[index];
            request.under_way = true;
            let slot = &mut self.slots[free];
            slot.rid = Some(request.rid);
            slot.connection.post(&self.head, &request.body);
        }
        Ok(())
    }

    fn request(&mut self, post: &Post) -> Request {
        let rid = self.next_rid;
        self.next_rid += 1;
        let mut attributes = format!("rid='{rid}'");
        if !self.sid.is_empty() {
            attributes.push_str(&format!(" sid='{}'", crate::xml::escape(&self.sid)));
            if self.acknowledges && self.next_answer < rid {
                attributes.push_str(&format!(" ack='{}'", self.next_answer - 1));
            }
        }
        let mut body = format!("<body {attributes} xmlns='{BIND_NS}'{}", post.attributes).into_bytes();
        if post.payload.is_empty() {
            body.extend_from_slice(b"/>");
        } else {
            body.push(b'>');
            body.extend_from_slice(&post.payload);
            body.extend_from_slice(b"</body>");
        }
        Request { rid, body, count: post.count, under_way: false }
    }

    /// Writes and reads; ready when something has come.
    fn poll_slots(&mut self, cx: &mut Context<'_>, chunk: &mut [u8]) -> Poll<io::Result<()>> {
        let mut came = Poll::Pending;
        for index in (0..self.slots.len()).rev() {
            let Slot { connection, rid } = &mut self.slots[index];
            if let Poll::Ready(Err(e)) = connection.poll_flush(cx) {
                return Poll::Ready(Err(e));
            }
            match (connection.poll_response(cx, chunk), *rid) {
                (Poll::Pending, _) => {}
                (Poll::Ready(Ok(Some(response))), Some(answered)) if response.head.status == 200 => {
                    *rid = None;
                    self.take(answered, response.body);
                    came = Poll::Ready(Ok(()));
                }
                // A connection without a request may be closed at any time.
                (Poll::Ready(Ok(None)), None) => drop(self.slots.swap_remove(index)),
                (Poll::Ready(Ok(None)), Some(_)) => {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                (Poll::Ready(Ok(Some(response))), _) => {
                    return Poll::Ready(Err(io::Error::other(format!("unexpected: {response:?}"))));
                }
                (Poll::Ready(Err(_)), None) => drop(self.slots.swap_remove(index)),
                (Poll::Ready(Err(e)), Some(_)) => return Poll::Ready(Err(e)),
            }
        }
        came
    }

    fn take(&mut self, rid: u64, body: Vec<u8>) {
        let Some(at) = self.unanswered.iter().position(|request| request.rid == rid) else { return };
        let kind = kind(&body);
        if kind == Kind::Error {
            // XEP-0124 section 17.3: the request is to be made again, and those before it.
            for request in self.unanswered.iter_mut().take(at + 1) {
                request.under_way &= self.slots.iter().any(|slot| slot.rid == Some(request.rid));
            }
            return;
        }
        let Some(request) = self.unanswered.remove(at) else { return };
        if let Kind::Terminate { orderly } = kind {
            self.terminated = true;
            // The others are answered with nothing, or not at all (XEP-0124 section 13).
            let others: u64 = self.early.values().map(|(_, count)| count).sum();
            let open: u64 = self.unanswered.drain(..).map(|request| request.count).sum();
            if orderly && self.ending {
                self.confirmed += others + open + request.count;
            }
            self.answers.extend(std::mem::take(&mut self.early).into_values().map(|(body, _)| body));
            self.answers.push_back(body);
            return;
        }
        self.early.insert(rid, (body, request.count));
        self.answered.push_back(request);
        if self.answered.len() > KEPT {
            self.answered.pop_front();
        }
        while let Some((body, count)) = self.early.remove(&self.next_answer) {
            self.answers.push_back(body);
            self.confirmed += count;
            self.next_answer += 1;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Normal,
    Error,
    Terminate {
        /// Without a condition.
        orderly: bool,
    },
}

/// The kind of a `<body/>`, from its start tag.
fn kind(body: &[u8]) -> Kind {
    let tag = body.split(|b| *b == b'>').next().unwrap_or_default();
    let has = |value: &str| {
        contains(tag, &format!(" type='{value}'")) || contains(tag, &format!(" type=\"{value}\""))
    };
    match (has("terminate"), has("error")) {
        (true, _) => Kind::Terminate { orderly: !contains(tag, " condition=") },
        (_, true) => Kind::Error,
        _ => Kind::Normal,
    }
}

fn contains(text: &[u8], part: &str) -> bool {
    text.windows(part.len()).any(|w| w == part.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange() -> Exchange {
        let mut exchange = Exchange::new(([127, 0, 0, 1], 1).into(), PATH, 7);
        exchange.created("s", 2);
        exchange
    }

    fn make(exchange: &mut Exchange, payload: &[u8]) -> String {
        exchange.post(payload);
        let post = exchange.posts.pop_front().unwrap();
        let request = exchange.request(&post);
        exchange.unanswered.push_back(request.clone());
        String::from_utf8(request.body).unwrap()
    }

    #[test]
    fn answers_come_in_order() {
        let mut exchange = exchange();
        assert_eq!(
            make(&mut exchange, b"<a/>"),
            "<body rid='7' sid='s' xmlns='http://jabber.org/protocol/httpbind'><a/></body>"
        );
        make(&mut exchange, b"<b/>");
        exchange.take(8, b"<body n='8'/>".to_vec());
        assert!(exchange.answers.is_empty());
        exchange.take(7, b"<body n='7'/>".to_vec());
        assert_eq!(exchange.answers, [&b"<body n='7'/>"[..], b"<body n='8'/>"]);
        assert_eq!((exchange.next_answer, exchange.unanswered().count()), (9, 0));
        assert_eq!(exchange.confirmed(), 2);
    }

    #[test]
    fn acknowledgements_name_what_came_last() {
        let mut exchange = exchange();
        exchange.acknowledge();
        assert!(!make(&mut exchange, b"<a/>").contains("ack"));
        assert!(make(&mut exchange, b"<b/>").contains(" ack='6'"));
        exchange.take(7, b"<body/>".to_vec());
        assert!(make(&mut exchange, b"<c/>").contains(" ack='7'"));
    }

    #[test]
    fn an_error_has_requests_made_again() {
        let mut exchange = exchange();
        make(&mut exchange, b"<a/>");
        make(&mut exchange, b"<b/>");
        exchange.unanswered.iter_mut().for_each(|request| request.under_way = true);
        exchange.take(7, b"<body type='error'/>".to_vec());
        assert!(!exchange.unanswered[0].under_way && exchange.unanswered[1].under_way);
        exchange.take(7, b"<body type=\"terminate\"><x type='error'/></body>".to_vec());
        assert!(!exchange.is_open() && exchange.unanswered.is_empty());
        assert_eq!(kind(b"<body><x type='error'/></body>"), Kind::Normal);
    }

    #[test]
    fn only_an_orderly_end_confirms_what_is_open() {
        for (end, confirmed) in [
            (&b"<body type='terminate'/>"[..], 2),
            (b"<body type='terminate' condition='item-not-found'/>", 0),
        ] {
            let mut exchange = exchange();
            make(&mut exchange, b"<a/>");
            make(&mut exchange, b"<b/>");
            exchange.terminate();
            exchange.take(7, end.to_vec());
            assert_eq!((exchange.confirmed(), exchange.is_open()), (confirmed, false));
        }
    }

    #[test]
    fn payloads_are_joined_up_to_a_limit() {
        let mut exchange = exchange();
        exchange.post(&vec![b'x'; MAX_PAYLOAD - 1]);
        exchange.post(b"y");
        exchange.post(b"z");
        exchange.post_body("a='b'");
        exchange.post(b"t");
        let lengths: Vec<usize> = exchange.posts.iter().map(|post| post.payload.len()).collect();
        assert_eq!(lengths, [MAX_PAYLOAD, 1, 0, 1]);
        assert_eq!(exchange.queued(), MAX_PAYLOAD + 2);
    }
}

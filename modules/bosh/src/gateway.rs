//! What drives a session: the task between its requests, its stream and the store.
//!
//! What must hold, whatever moment the server is killed at:
//!
//! - A response leaves only after the stanzas of its request are safe, which the stream has
//!   acknowledged, and after the response itself is stored together with the number of stanzas
//!   that the client has sent up to it. Before that the client has no response, and repeats the
//!   request to the next server:
//!   - Killed before the stanzas were accepted: the stream, once resumed, has not counted them,
//!     and they are sent again.
//!   - Killed when some were accepted and the response was not stored: the stream has counted
//!     them; the number in the record says how many of the repeated request's stanzas those are,
//!     and only the others are sent.
//!   - Killed after the response was stored, sent or not: the repeated request is older than the
//!     record, and gets the stored response.
//! - The stream hears that the client has got messages only when a later request tells so, never
//!   because a response was stored or sent: the server keeps them until then, and hands them to
//!   another session if the client does not come back. What it sends again after a resumption
//!   although it is in a stored response is left out, so that the client does not get it twice.
//! - A record is written when the stream can be resumed, with each response, and is removed when
//!   the session ends. From the binding of a resource until then no request is answered: whoever
//!   knows that it is bound has a session that goes on. Sessions that do not survive the server are those that have not bound a
//!   resource, and those in which the client itself resumed a stream.
//! - Presence and answers to requests that were on their way when the server was killed are lost,
//!   as for any client; messages are not.

use std::future::{pending, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout};
use waystation_core::xml::Element;
use waystation_transport::{AddressSlot, PipeEnd, pipe};

use crate::body::{self, NS_CLIENT};
use crate::record::{Identity, Record, SidHash};
use crate::registry::Shared;
use crate::request::{Condition, Request};
use crate::session::{Forward, Over, Response, Session, StreamEnd, refusal};
use crate::upstream::{self, Event, Resumption, Upstream};

/// Bytes that wait in each direction between a session and its stream.
const PIPE: usize = 64 * 1024;
/// Bytes that wait for the stream to take them, above which no request is taken.
const MAX_OUT: usize = 1024 * 1024;
/// How long a session may take to be taken up again.
const RESUME: Duration = Duration::from_secs(30);
/// How long the last words to a stream may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Where a response goes, with the value of its header Content-Type.
pub(crate) type Ticket = oneshot::Sender<(Response, Option<String>)>;

/// A request on its way to its session.
pub(crate) struct Mail {
    pub(crate) request: Request,
    pub(crate) info: waystation_web::ClientInfo,
    pub(crate) ticket: Ticket,
}

/// What a session's task works with.
pub(crate) struct Gateway {
    shared: Arc<Shared>,
    hash: SidHash,
    identity: Identity,
    session: Session<Ticket>,
    upstream: Upstream,
    /// `None` once the stream has ended.
    pipe: Option<PipeEnd>,
    /// To be written to it.
    out: Vec<u8>,
    mail: mpsc::Receiver<Mail>,
    /// A record is in the store, with the responses to these requests.
    recorded: bool,
    stored: Vec<u64>,
    _slot: Option<AddressSlot>,
}

enum Wake {
    Mail(Option<Box<Mail>>),
    Input(Vec<u8>),
    StreamGone,
    Tick,
}

impl Gateway {
    /// A new session, on a new stream.
    pub(crate) fn create(
        shared: Arc<Shared>,
        hash: SidHash,
        identity: Identity,
        session: Session<Ticket>,
        info: &waystation_web::ClientInfo,
        mail: mpsc::Receiver<Mail>,
        slot: Option<AddressSlot>,
    ) -> Self {
        let (connection, pipe) = pipe(info.peer, identity.secure, PIPE);
        let mut upstream = Upstream::new(shared.upstream_limits(), shared.resumable_for());
        let mut out = Vec::new();
        upstream.open(&identity.host, identity.from.as_deref(), identity.lang.as_deref(), &mut out);
        shared.streams.accept(connection);
        Self {
            shared,
            hash,
            identity,
            session,
            upstream,
            pipe: Some(pipe),
            out,
            mail,
            recorded: false,
            stored: Vec::new(),
            _slot: slot,
        }
    }

    /// Takes up a session of a former server, for the request that has just come, or refuses it.
    pub(crate) async fn revive(
        shared: Arc<Shared>,
        hash: SidHash,
        info: waystation_web::ClientInfo,
        mail: mpsc::Receiver<Mail>,
        slot: Option<AddressSlot>,
    ) {
        let record = match Record::load(&*shared.storage, &hash, Instant::now()).await {
            Ok(Some(record)) => record,
            Ok(None) => {
                return shared.forget(&hash, mail, &refusal(false, Some(Condition::ItemNotFound))).await;
            }
            Err(error) => {
                tracing::error!(%error, "a BOSH session cannot be read");
                return shared.forget(&hash, mail, &Response::Retry).await;
            }
        };
        let legacy = record.terms.legacy;
        let stored = record.answered.iter().map(|answered| answered.rid).collect();
        let (connection, pipe) = pipe(info.peer, record.identity.secure, PIPE);
        shared.streams.accept_authenticated(connection, &record.account);
        let resumption = Resumption {
            account: record.account.clone(),
            id: record.stream.clone(),
            sent: record.snapshot.sent,
            confirmed: record.snapshot.confirmed,
            acknowledged: record.acknowledged,
            got: record.snapshot.got,
            expected: unconfirmed(&record),
            counting: record.counting,
        };
        let upstream = Upstream::resuming(shared.upstream_limits(), shared.resumable_for(), resumption);
        let mut gateway = Self {
            session: Session::revive(record.terms, record.snapshot, record.answered, Instant::now()),
            shared,
            hash,
            identity: record.identity,
            upstream,
            pipe: Some(pipe),
            out: Vec::new(),
            mail,
            recorded: true,
            stored,
            _slot: slot,
        };
        match timeout(RESUME, gateway.resume()).await {
            Ok(Ok(())) => {
                tracing::info!(account = %record.account, "a BOSH session goes on after a restart");
                gateway.run().await;
            }
            Ok(Err(true)) => {
                tracing::info!(account = %record.account, "a BOSH session could not be resumed");
                gateway.remove_record().await;
                let refused = refusal(legacy, Some(Condition::ItemNotFound));
                gateway.shared.clone().forget(&hash, gateway.mail, &refused).await;
            }
            Ok(Err(false)) | Err(_) => {
                tracing::warn!(account = %record.account, "a BOSH session could not be resumed yet");
                gateway.shared.clone().forget(&hash, gateway.mail, &Response::Retry).await;
            }
        }
    }

    /// Resumes the stream. `Err(true)`: it cannot be resumed, ever.
    async fn resume(&mut self) -> Result<(), bool> {
        let Self { identity, upstream, out, .. } = self;
        upstream.open(&identity.host, identity.from.as_deref(), identity.lang.as_deref(), out);
        loop {
            let input = match self.stream_turn().await {
                Some(input) => input,
                None => return Err(false),
            };
            let mut events = Vec::new();
            self.upstream.receive(&input, &mut self.out, &mut events);
            let mut resumed = false;
            for event in events {
                match event {
                    Event::Features => self.upstream.resume(&mut self.out),
                    Event::Resumed => resumed = true,
                    Event::NotResumed(gone) => return Err(gone),
                    event if resumed => self.stream_event(event),
                    Event::Error(_, stops) => return Err(!stops),
                    Event::Closed | Event::Garbled => return Err(false),
                    Event::Payload(_) => {}
                }
            }
            if resumed {
                return Ok(());
            }
        }
    }

    /// Runs the session to its end.
    pub(crate) async fn run(mut self) {
        loop {
            self.settle().await;
            if let Some(over) = self.session.over() {
                return self.finish(over).await;
            }
            match self.next().await {
                Wake::Mail(Some(mail)) => self.mail(*mail),
                // Nobody can reach this session any more.
                Wake::Mail(None) => self.session.suspend(),
                Wake::Input(input) => {
                    let mut events = Vec::new();
                    self.upstream.receive(&input, &mut self.out, &mut events);
                    for event in events {
                        self.stream_event(event);
                    }
                }
                Wake::StreamGone => {
                    self.pipe = None;
                    self.out = Vec::new();
                    self.session.stream_ended(StreamEnd::Lost);
                }
                Wake::Tick => {}
            }
        }
    }

    fn mail(&mut self, Mail { request, info, ticket }: Mail) {
        if self.identity.secure && !info.secure {
            // XEP-0124 19.1: not this session's business, which must not suffer from it.
            let _ = ticket.send((Response::Status(403), None));
            return;
        }
        self.session.request(request, ticket, Instant::now());
    }

    fn stream_event(&mut self, event: Event) {
        match event {
            Event::Payload(payload) => self.session.outbound(payload),
            Event::Error(_, true) if self.recorded => {
                self.shared.stops();
                self.session.suspend();
            }
            Event::Error(error, _) => self.session.stream_ended(StreamEnd::Error(error)),
            Event::Closed => self.session.stream_ended(StreamEnd::Closed),
            Event::Garbled => self.session.stream_ended(StreamEnd::Internal),
            Event::Resumed | Event::NotResumed(_) | Event::Features => {}
        }
    }

    /// What happens next.
    async fn next(&mut self) -> Wake {
        let deadline = self.session.deadline();
        let reads = self.session.has_room();
        // Not all that clients send is acknowledged, and a stream may be slow.
        let takes = self.out.len() < MAX_OUT;
        let Self { pipe, out, mail, .. } = self;
        let stream = async {
            match pipe {
                Some(pipe) => turn(pipe, out, reads, takes).await,
                None => pending().await,
            }
        };
        let tick = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            mail = mail.recv(), if takes => Wake::Mail(mail.map(Box::new)),
            input = stream => input.map_or(Wake::StreamGone, Wake::Input),
            () = tick => Wake::Tick,
        }
    }

    /// Reads the stream while it writes to it; `None` at its end.
    async fn stream_turn(&mut self) -> Option<Vec<u8>> {
        turn(self.pipe.as_mut()?, &mut self.out, true, true).await
    }

    /// Carries out what the session wants, and gives the responses that are due.
    async fn settle(&mut self) {
        // Before anything that ends the stream.
        self.upstream.confirm(self.session.confirmed(), &mut self.out);
        while let Some(forward) = self.session.next_forward() {
            self.forward(forward);
        }
        self.session.safe(self.upstream.safe());
        // The client must not know that it is bound before the session outlives the server.
        self.session.withhold(self.upstream.is_enabling());
        self.session.pump(Instant::now());
        if let Some(pipe) = &mut self.pipe {
            // The stream works on it while the record is being stored.
            poll_fn(|cx| {
                let _ = write(pipe, &mut self.out, cx);
                Poll::Ready(())
            })
            .await;
        }
        if self.session.over().is_none_or(|over| over == Over::Suspended) {
            self.store().await;
        }
        for (ticket, response) in self.session.take_responses() {
            // A client that has gone repeats its request.
            let _ = ticket.send((response, Some(self.identity.content.clone())));
        }
    }

    fn forward(&mut self, forward: Forward) {
        match forward {
            Forward::Payload(payload) => {
                if let Some(answer) = self.upstream.send(&payload, &mut self.out) {
                    self.session.outbound(answer);
                }
            }
            Forward::Restart { to, lang } => {
                let to = to.unwrap_or_else(|| self.identity.host.clone());
                let lang = lang.or_else(|| self.identity.lang.clone());
                self.upstream.open(&to, self.identity.from.as_deref(), lang.as_deref(), &mut self.out);
            }
            Forward::End(rid) => {
                self.upstream.end_request(&mut self.out);
                self.session.forwarded(rid, self.upstream.sent());
            }
            Forward::Close => self.upstream.close(&mut self.out),
        }
    }

    /// Stores the session if there is anything new about it.
    async fn store(&mut self) {
        let changed = self.session.take_changed();
        let Some((account, stream)) = self.upstream.resumable() else { return };
        if self.recorded && !changed {
            return;
        }
        let mut snapshot = self.session.snapshot().clone();
        snapshot.confirmed = snapshot.confirmed.max(self.upstream.confirmed());
        let record = Record {
            identity: self.identity.clone(),
            terms: self.session.terms().clone(),
            snapshot,
            answered: self.session.answered().clone(),
            account: account.clone(),
            stream: stream.to_owned(),
            acknowledged: self.upstream.acknowledged(),
            counting: self.upstream.counting(),
        };
        self.recorded = true;
        let batch = record.put(&self.hash, &mut self.stored);
        if let Err(error) = self.shared.storage.commit(batch).await {
            tracing::error!(%error, account = %record.account, "a BOSH session could not be stored");
            self.session.abort();
        }
    }

    async fn remove_record(&mut self) {
        if !std::mem::take(&mut self.recorded) {
            return;
        }
        let batch = Record::delete(&self.hash, &self.stored);
        if let Err(error) = self.shared.storage.commit(batch).await {
            // It is found expired by the next server.
            tracing::warn!(%error, "a BOSH session could not be removed from the store");
        }
    }

    async fn finish(mut self, over: Over) {
        tracing::debug!(?over, account = ?self.upstream.resumable().map(|(account, _)| account.as_str()), "BOSH session ended");
        if over != Over::Suspended {
            self.remove_record().await;
        }
        if let Some(mut pipe) = self.pipe.take()
            && over == Over::Ended
        {
            let mut out = std::mem::take(&mut self.out);
            if !self.session.is_closing() {
                self.upstream.close(&mut out);
            }
            // A stream that takes nothing any more is lost.
            if let Ok(Ok(())) = timeout(LAST_WORDS, pipe.write_all(&out)).await {
                pipe.close();
            }
        }
        let response = match over {
            Over::Suspended => Response::Retry,
            Over::Ended | Over::Lost => refusal(self.session.terms().legacy, Some(Condition::ItemNotFound)),
        };
        self.shared.forget(&self.hash, self.mail, &response).await;
    }
}

/// Stanzas in the responses of a record of which it is not known that the client got them.
fn unconfirmed(record: &Record) -> std::collections::VecDeque<(u64, upstream::Identity)> {
    let mut expected = std::collections::VecDeque::new();
    for answered in &record.answered {
        if answered.got <= record.snapshot.confirmed {
            continue;
        }
        let Ok(body) = body::parse(
            &answered.body,
            waystation_core::xml::Limits {
                max_stanza_bytes: usize::MAX,
                max_depth: usize::MAX,
                max_elements: usize::MAX,
                max_attributes: usize::MAX,
            },
        ) else {
            continue;
        };
        let stanzas: Vec<&Element> =
            body.children().filter(|payload| payload.namespace() == NS_CLIENT).collect();
        // The last one of a response has its number; those before stanzas were counted have none.
        for (stanza, number) in stanzas.iter().rev().zip((1..=answered.got).rev()) {
            if number > record.snapshot.confirmed {
                expected.push_back((number, upstream::Identity::of(stanza, &record.account)));
            }
        }
    }
    expected.make_contiguous().sort_by_key(|(number, _)| *number);
    expected
}

/// Writes what there is room for.
fn write(pipe: &mut PipeEnd, out: &mut Vec<u8>, cx: &mut std::task::Context<'_>) -> Poll<Result<(), ()>> {
    while !out.is_empty() {
        match pipe.poll_write(cx, out) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(written)) if written == out.len() => *out = Vec::new(),
            Poll::Ready(Ok(written)) => drop(out.drain(..written)),
            Poll::Ready(Err(_)) => {
                // What the server said last may still be read.
                out.clear();
                return Poll::Ready(Err(()));
            }
        }
    }
    Poll::Ready(Ok(()))
}

/// Writes, and reads if that is wanted, until there is input; `None` at the stream's end. Unless
/// requests are taken anyway, there is nothing as soon as they may be.
async fn turn(pipe: &mut PipeEnd, out: &mut Vec<u8>, reads: bool, takes: bool) -> Option<Vec<u8>> {
    let mut input = Vec::new();
    poll_fn(|cx| {
        let written = write(pipe, out, cx);
        if !takes && out.len() < MAX_OUT {
            return Poll::Ready(Some(()));
        }
        if !reads {
            return if matches!(written, Poll::Ready(Err(()))) { Poll::Ready(None) } else { Poll::Pending };
        }
        pipe.poll_read(cx, &mut input)
    })
    .await
    .map(|()| input)
}

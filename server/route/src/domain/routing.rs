//! The router's way to remote domains: what may go there, by way of the domain's queue or past it.
//!
//! What must hold: a stanza for a remote domain is queued there, given to its route, or answered; what one
//! remote domain sends is never passed on to another; at a limit (DELIVERY 4) the sender is told, and
//! nothing that waits gives way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use waystation_core::queue::{QueueError, RecordId};
use waystation_core::{
    Condition, IqType, MessageType, PresenceType, Stanza, StanzaError, StanzaType, storable,
};
use waystation_runtime::{Offer, outlet};

use super::entry::{Claim, NoRoom, parse_queue};
use super::limits::Cost;
use super::link::refusal;
use super::{DOMAIN_QUEUES, Domain, DomainMail, DomainRoute, MAIL_BYTES, MAIL_ITEMS, Reservation, no_room};
use crate::intake::{Concerned, Item, Pass};
use crate::receipt::Receipt;
use crate::recent::Recent;
use crate::remote::{Pair, RemoteStreams};
use crate::router::{Origin, Passage, Routed, Router};

/// Routes that are started before others have their turn, when the server starts.
const STARTED_AT_ONCE: usize = 50;
const START_PAUSE: Duration = Duration::from_millis(50);

/// Why there is no route.
enum Refused {
    With(StanzaError),
    /// The server has stopped.
    Stopped,
}

/// What it costs the sender to be the first who writes to a domain. Answers cost nothing, for others cause
/// them.
fn cost(stanza: &Stanza) -> Cost {
    match stanza.stanza_type() {
        kind if kind.is_error() => Cost::Nothing,
        StanzaType::Iq(IqType::Result) => Cost::Nothing,
        StanzaType::Presence(PresenceType::Subscribe)
        | StanzaType::Message(MessageType::Normal | MessageType::Chat | MessageType::Groupchat)
        | StanzaType::Message(MessageType::Headline)
        | StanzaType::Iq(_) => Cost::Whole,
        _ => Cost::Tenth,
    }
}

impl Router {
    /// Streams to remote domains, from now on; the first call counts. Without them no remote domain can be
    /// reached.
    pub fn set_remote_streams(&self, streams: Arc<dyn RemoteStreams>) {
        // A second call would be a mistake of the server's start, and harmless.
        let _ = self.remote.set(streams);
    }

    pub(super) fn remote_streams(&self) -> Option<&Arc<dyn RemoteStreams>> {
        self.remote.get()
    }

    /// To a remote domain: by way of its queue what must be durable. `in_any_case`: there is no sender who
    /// could wait.
    pub(crate) fn to_remote(
        self: &Arc<Self>,
        stanza: Stanza,
        origin: Origin,
        passage: Passage,
        recent: Option<&mut Option<Box<Recent>>>,
        in_any_case: bool,
    ) -> Routed {
        let Some((local, remote)) = self.addresses(&stanza, origin) else {
            // RFC 6120 10.4 has nothing of relaying. A sender that is remote is told by nobody: the answer
            // would be another stanza between two domains that are not ours.
            self.refuse(&stanza, &Condition::ServiceUnavailable.into());
            self.accept_refused(passage);
            return Routed::Done;
        };
        let durable = storable::durable(&stanza) || passage.durable_error;
        let wait = !in_any_case && self.intake.is_full();
        if wait && ((durable && origin != Origin::Server) || (!durable && passage.behind)) {
            return Routed::Busy(stanza, passage);
        }
        let error = match self.permitted(&local, &remote) {
            Err(error) => error,
            Ok(()) if durable => match self.room_for(&local, &remote, &stanza) {
                Ok(reservation) => {
                    let Some(to) = stanza.to().cloned() else { return Routed::Done };
                    let recent = recent.map(|recent| &mut **recent.get_or_insert_default());
                    let to_whom = Concerned::Domain(reservation);
                    let record = self.new_record_for(to_whom, stanza, &to, passage, recent);
                    self.intake.offer(Item::Record(Box::new(record)));
                    return Routed::Done;
                }
                Err(Refused::Stopped) => return Routed::Busy(stanza, passage),
                Err(Refused::With(error)) => error,
            },
            Ok(()) => match self.domain_for(&local, &remote, &stanza) {
                Ok(domain) => return self.to_domain(&domain, stanza, passage, in_any_case),
                Err(Refused::Stopped) => return Routed::Busy(stanza, passage),
                Err(Refused::With(error)) => error,
            },
        };
        self.refuse(&stanza, &error);
        self.accept_refused(passage);
        Routed::Done
    }

    /// The pair of domains of a stanza, if it may go from the one to the other.
    fn addresses(&self, stanza: &Stanza, origin: Origin) -> Option<(Box<str>, Box<str>)> {
        let (from, to) = (stanza.from()?.domain(), stanza.to()?.domain());
        let may = origin != Origin::Remote && self.is_local(from) && !self.is_local(to);
        may.then(|| (from.into(), to.into()))
    }

    fn permitted(&self, local: &str, remote: &str) -> Result<(), StanzaError> {
        let streams = self.remote.get().ok_or(Condition::RemoteServerNotFound)?;
        streams.permits(&Pair::new(local, remote)).map_err(|forbidden| refusal(forbidden).into())
    }

    /// A stanza that nothing keeps.
    fn to_domain(
        self: &Arc<Self>,
        domain: &Arc<Domain>,
        mut stanza: Stanza,
        passage: Passage,
        in_any_case: bool,
    ) -> Routed {
        if passage.behind {
            self.intake.offer(Item::pass_domain(domain.clone(), stanza));
            if let Some(receipt) = passage.receipt {
                self.intake.offer(Item::After(receipt));
            }
            return Routed::Done;
        }
        let mut newer: Option<Claim> = None;
        loop {
            match newer.as_deref().unwrap_or(domain).offer(stanza, in_any_case) {
                Offer::Accepted => break,
                Offer::Full(stanza) => return Routed::Busy(stanza, passage),
                Offer::Gone(returned) => stanza = returned,
            }
            // It ended while this stanza was in the intake: a new one is started.
            newer = self.domain_in_any_case(&domain.pair);
            if newer.is_none() {
                return Routed::Busy(stanza, passage);
            }
        }
        passage.receipt.into_iter().for_each(Receipt::accept);
        Routed::Done
    }

    /// The route of a pair, started when there is none and `admit` lets another one in.
    fn domain(
        self: &Arc<Self>,
        local: &str,
        remote: &str,
        admit: impl FnOnce() -> Result<(), StanzaError>,
    ) -> Result<Claim, Refused> {
        self.domains.find_or_start(local, remote, || {
            admit().map_err(Refused::With)?;
            let (outlet, inlet) = outlet(MAIL_BYTES, MAIL_ITEMS);
            let domain = Domain::begin(Arc::new(Pair::new(local, remote)), outlet);
            let place = self.arbiters.place(&domain.queue);
            let (router, own) = (self.clone(), Arc::clone(&domain));
            self.domains.set_pending(&domain, true);
            if self.arbiters.run_on(place, move || DomainRoute::start(router, own, inlet)) {
                return Ok(domain);
            }
            self.domains.set_pending(&domain, false);
            Err(Refused::Stopped)
        })
    }

    /// The route for a stanza, within the limits of new domains.
    fn domain_for(self: &Arc<Self>, local: &str, remote: &str, stanza: &Stanza) -> Result<Claim, Refused> {
        self.domain(local, remote, || {
            let limits = &self.config.domains;
            if self.domains.pending() >= limits.pending_domains {
                return Err(no_room().with_text("too many domains cannot be reached"));
            }
            let sender = stanza.from().filter(|from| from.local().is_some());
            let may = sender.is_none_or(|sender| {
                let account = sender.bare_text();
                self.new_domains.take(&account, cost(stanza), limits.new_domains, Instant::now())
            });
            if may { Ok(()) } else { Err(no_room().with_text("too many new domains in a short time")) }
        })
    }

    fn domain_in_any_case(self: &Arc<Self>, pair: &Pair) -> Option<Claim> {
        self.domain(&pair.local, &pair.remote, || Ok(())).ok()
    }

    /// Room in the queue of a pair.
    fn room_for(
        self: &Arc<Self>,
        local: &str,
        remote: &str,
        stanza: &Stanza,
    ) -> Result<Reservation, Refused> {
        loop {
            let domain = self.domain_for(local, remote, stanza)?;
            match domain.reserve(stanza.len(), Some(&self.config.domains)) {
                Ok(reservation) => return Ok(reservation),
                Err(NoRoom::Full) => {
                    return Err(Refused::With(no_room().with_text("too much waits for that domain")));
                }
                // A panic has ended it just now, and its entry goes with it.
                Err(NoRoom::Gone) => {}
            }
        }
    }

    /// Whom an error that replaces a record goes to: an account, or a remote domain with room for it.
    /// `None`: nobody who could be told durably.
    pub(crate) fn party_to(self: &Arc<Self>, reply: &Stanza) -> Option<Concerned> {
        let to = reply.to()?;
        if self.is_local(to.domain()) {
            return to.local().map(|_| self.concerned(to));
        }
        let (local, remote) = self.addresses(reply, Origin::Server)?;
        self.permitted(&local, &remote).ok()?;
        self.room_for(&local, &remote, reply).ok().map(Concerned::Domain)
    }

    /// A record of a remote domain was committed.
    pub(crate) fn domain_record(
        self: &Arc<Self>,
        reservation: Reservation,
        id: RecordId,
        stanza: &Stanza,
        at: SystemTime,
    ) {
        let bytes = stanza.len();
        let mut domain = reservation.commit(id);
        // A route with something in its queue ends only with the server, or in a panic.
        while !domain.record(id, stanza.clone(), at) {
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            let Some(newer) = self.domain_in_any_case(&domain.pair) else { return };
            if let Ok(reservation) = newer.reserve(bytes, None) {
                reservation.commit(id);
            }
            domain = Arc::clone(&newer);
        }
    }

    /// What only passed through the intake has come to its turn.
    pub(crate) fn pass(self: &Arc<Self>, pass: Pass) {
        match pass {
            Pass::Account(account, mail) => self.control(&account, mail),
            Pass::Domain(domain, stanza) => {
                if let Routed::Busy(..) = self.to_domain(&domain, stanza, Passage::default(), true) {
                    tracing::debug!("the server has stopped: nobody takes this stanza");
                }
            }
        }
    }

    /// A remote domain has just connected to us: what waits for it is tried at once.
    pub fn domain_alive(&self, pair: &Pair) {
        if let Some(domain) = self.domains.find(&pair.local, &pair.remote) {
            // Gone: nothing waited.
            let _ = domain.outlet.offer_control(DomainMail::Alive);
        }
    }

    /// Starts the routes of all domains whose queues hold something, some at a time.
    ///
    /// # Errors
    /// When the queues cannot be listed.
    pub async fn start_domains(self: &Arc<Self>) -> Result<(), QueueError> {
        let mut after = None;
        loop {
            let backend = self.intake.backend();
            let names = backend.queues(DOMAIN_QUEUES.to_owned(), after.clone(), STARTED_AT_ONCE).await?;
            let Some(last) = names.last().cloned() else { return Ok(()) };
            for name in names {
                match parse_queue(&name) {
                    Some(pair) if self.is_local(&pair.local) => {
                        // There is none only when the server has stopped.
                        let _ = self.domain_in_any_case(&pair);
                    }
                    // Its senders cannot be told. It is kept until the domain is served again.
                    _ => tracing::warn!(queue = &*name, "a queue of a domain that is not served here"),
                }
            }
            after = Some(last);
            tokio::time::sleep(START_PAUSE).await;
        }
    }

    /// Ends the streams to remote domains in order; what is left is in their queues.
    pub(crate) async fn stop_domains(&self, deadline: Instant) {
        for domain in self.domains.all(None) {
            // Gone: it has ended.
            let _ = domain.outlet.offer_control(DomainMail::Stop);
        }
        while self.domains.len() > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many domains something waits for.
    pub fn pending_domains(&self) -> usize {
        self.domains.pending()
    }

    /// How many routes of remote domains are live.
    pub fn domain_routes(&self) -> usize {
        self.domains.len()
    }
}

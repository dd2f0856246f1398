//! A message from socket to socket: framing, stanza, routing, delivery and writing in real sessions.
//!
//! What must hold: both clients are logged in without TLS and stream management; the recipient
//! answers what it is asked, as clients do. The clients' reading and writing, twice a round, is
//! counted as well; what the kernel does is not.

use std::future::poll_fn;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use memchr::memmem;
use waystation_auth::{FailureLimits, FailureTracker, SaslPolicy};
use waystation_c2s::{C2s, Limits, Rate, RecipientLimit, Recipients};
use waystation_core::xml;
use waystation_harness::wire::Wire;
use waystation_harness::{Account, Client, Endpoint, Login};
use waystation_runtime::Drain;
use waystation_transport::{AddressLimits, Admission, Listener};

use crate::world::{HOST, World};
use crate::{Failure, PATIENCE, ROUND, in_time, message, on_this_thread};

/// Ten messages with one write; as many read, with however many reads.
pub(crate) fn session(messages: usize) -> Result<(), Failure> {
    on_this_thread(run(messages))
}

async fn run(messages: usize) -> Result<(), Failure> {
    let world = World::start(None).await?;
    let drain = Drain::default();
    let at = listen(&world, &drain)?;
    let sent = in_time(send_all(&world, &at, messages)).await;
    // The clients are gone. No session may outlive this thread's system, on which its route is.
    match drain.drain(PATIENCE).await {
        0 => sent,
        left => Err(format!("{left} sessions did not end").into()),
    }
}

async fn send_all(world: &World, at: &Endpoint, messages: usize) -> Result<(), Failure> {
    let users = ["romeo", "juliet"].map(Account::new);
    for user in &users {
        world.create(&user.user, &user.password).await?;
    }
    let [romeo, juliet] = &users;
    let mut romeo = log_in(at, romeo, "orchard").await?;
    let wire = log_in(at, juliet, "balcony").await?;
    let mut juliet = Reader { wire, chunk: vec![0; 64 * 1024], inbox: Vec::new() };
    let written = message().repeat(ROUND);
    for _ in 0..messages / ROUND {
        romeo.write_all(written.as_bytes()).await?;
        juliet.read(ROUND).await?;
    }
    Ok(())
}

fn listen(world: &World, drain: &Drain) -> Result<Endpoint, Failure> {
    let failures = FailureLimits::disabled();
    let shared = Arc::new(C2s {
        hosts: vec![HOST.to_owned()],
        limits: Limits {
            bytes: Rate::NONE,
            broadcasts: Rate::NONE,
            presence: Rate::NONE,
            pre_auth: xml::Limits::pre_auth(),
            authenticated: xml::Limits::authenticated(),
            unauthenticated: Duration::from_secs(60),
            idle_ping: Duration::ZERO,
            ping_timeout: Duration::from_secs(60),
            outbound_bytes: 4 << 20,
            outbound_stanzas: 1_000,
            resume: Duration::ZERO,
            failures: failures.clone(),
        },
        tls: None,
        tls_required: false,
        tls_loopback_exempt: false,
        sasl: SaslPolicy { require_encryption: false, ..SaslPolicy::default() },
        accounts: world.accounts.clone(),
        failures: FailureTracker::new(&failures),
        recipients: Recipients::new(RecipientLimit::NONE),
        pre_auth: None,
        stream_features: String::new(),
        router: world.router.clone(),
        arbiters: world.arbiters.clone(),
        drain: drain.signal(),
    });
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Listener::bind(any, Admission::new(AddressLimits::unlimited()))?;
    let at = listener.local_addr();
    let mut stop = drain.signal();
    actix_rt::spawn(async move {
        let stopped = async move { stop.started().await };
        let accepted = |connection| waystation_c2s::accept(shared.clone(), connection, false);
        // It would be seen by the clients.
        let _failed = listener.run(stopped, accepted).await;
    });
    Ok(Endpoint { host: HOST.to_owned(), c2s: at, c2s_tls: at, http: at, s2s: at, s2s_tls: at })
}

async fn log_in(at: &Endpoint, user: &Account, resource: &str) -> Result<Wire, Failure> {
    let mut client = Client::login(at, user, &Login::resource(resource)).await?;
    client.become_available().await?;
    Ok(client.into_wire())
}

/// A client that looks at what it is sent no closer than it must.
struct Reader {
    wire: Wire,
    chunk: Vec<u8>,
    inbox: Vec<u8>,
}

impl Reader {
    /// Reads so many messages.
    async fn read(&mut self, messages: usize) -> Result<(), Failure> {
        let mut found = 0;
        while found < messages {
            let Self { wire, chunk, inbox } = self;
            if poll_fn(|cx| wire.poll_read(cx, chunk, inbox)).await? == 0 {
                return Err("the server closed a session".into());
            }
            let mut used = 0;
            while let Some(end) = memmem::find(&self.inbox[used..], b"</message>") {
                found += 1;
                used += end + b"</message>".len();
            }
            if let Some((answer, end)) = answer(&self.inbox) {
                self.wire.write_all(&answer).await?;
                used = used.max(end);
            }
            self.inbox.drain(..used);
        }
        Ok(())
    }
}

/// The answer to the request in what was read, by which the server learns what has arrived, and where
/// that request ends.
fn answer(read: &[u8]) -> Option<(Vec<u8>, usize)> {
    let end = memmem::find(read, b"</iq>")?;
    let start = memmem::rfind(&read[..end], b"<iq ")?;
    let id = &read[start + memmem::find(&read[start..end], b" id='")? + b" id='".len()..];
    let id = &id[..memchr::memchr(b'\'', id)?];
    Some(([b"<iq type='result' id='", id, b"'/>"].concat(), end + b"</iq>".len()))
}

//! What the kernel and the cryptography cost alone: a stand-in for a server that answers the loads of presence and
//! of logins with bytes of the usual lengths, and does nothing else.
//!
//! It parses nothing, knows nobody and keeps nothing. So no server that writes each contact's copy when it comes,
//! or makes a full handshake and as many exchanges a login, does more of them in a second of CPU time on the same
//! machine; how far it is from the peers says how far anyone can get from them.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use rustls::crypto::ring;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsAcceptor;
use waystation_harness::process::{own_cpu_time, pin_to_core, thread_cpu_time};
use waystation_harness::tls::client_config;
use waystation_harness::wire::Wire;
use waystation_harness::{Security, Transport};

use crate::load::{Ground, until_measured};
use crate::meter::Cost;
use crate::suite::Outcome;
use crate::workloads::{Load, Workload};
use crate::{Failure, SERVER_CORE, logins, presence};

/// A copy of a presence change, about as long as servers write it.
const COPY: [u8; 160] = [b'p'; 160];
/// Another change of a user.
const CHANGE: [u8; 64] = [b'c'; 64];
/// The host in the certificate.
const HOST: &str = "localhost";
/// How long connections may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a client says and is answered, in bytes: a stream's header and its features.
const OPEN: (usize, usize) = (130, 480);
/// STARTTLS.
const PROCEED: (usize, usize) = (51, 50);
/// SCRAM (two exchanges), the stream's new header, binding, the end.
const LOGIN: [(usize, usize); 5] = [(120, 150), (220, 90), OPEN, (110, 150), (16, 16)];

/// The longest of these.
const LONGEST: usize = 480;

/// Whether there is something to be measured for this load.
pub(crate) fn has(load: Load) -> bool {
    matches!(load, Load::Presence(_) | Load::Logins(_))
}

/// Puts a load on the stand-in.
pub(crate) async fn run(workload: &Workload) -> Result<Outcome, Failure> {
    match (workload.load, workload.transport) {
        (Load::Presence(shape), Transport::Tcp) => presence(shape).await.map(Outcome::Presence),
        (Load::Logins(shape), Transport::Tcp) => {
            let starttls = workload.security == Security::StartTls;
            logins(shape, starttls).await.map(Outcome::Logins)
        }
        _ => Err(Failure::Load("there is no stand-in for this load".to_owned())),
    }
}

/// Where the answer goes to.
type Ask = oneshot::Sender<io::Result<Duration>>;

/// The stand-in: a thread on the servers' core, which tells its CPU time when it is asked. It ends with this.
struct StandIn {
    at: SocketAddr,
    asks: mpsc::Sender<Ask>,
    thread: JoinHandle<()>,
}

impl StandIn {
    /// Starts `serve` on a thread of its own with a listener.
    fn start<F: Future<Output = io::Result<()>>>(
        serve: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> Result<Self, Failure> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let at = listener.local_addr()?;
        let (asks, mut asked) = mpsc::channel::<Ask>(1);
        let thread = std::thread::spawn(move || {
            let served = || {
                pin_to_core(SERVER_CORE)?;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                LocalSet::new().block_on(&runtime, async {
                    tokio::select! {
                        served = serve(TcpListener::from_std(listener)?) => served,
                        () = async {
                            while let Some(reply) = asked.recv().await {
                                // Whoever asked may have given up.
                                let _ = reply.send(thread_cpu_time());
                            }
                        } => Ok(()),
                    }
                })
            };
            if let Err(error) = served() {
                eprintln!("the stand-in failed: {error}");
            }
        });
        Ok(Self { at, asks, thread })
    }

    async fn cpu_time(&self) -> Result<Duration, Failure> {
        let (reply, answer) = oneshot::channel();
        let gone = || Failure::Load("the stand-in has ended".to_owned());
        self.asks.send(reply).await.map_err(|_| gone())?;
        Ok(answer.await.map_err(|_| gone())??)
    }

    /// What so much time costs, and what `count` counted meanwhile.
    async fn measure(&self, seconds: f64, count: impl Fn() -> u64) -> Result<(u64, Cost), Failure> {
        let (server, all, before, began) = (self.cpu_time().await?, own_cpu_time()?, count(), Instant::now());
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        let done = count() - before;
        let server_cpu = (self.cpu_time().await? - server).as_secs_f64();
        // Both are threads of this process.
        let generator_cpu = (own_cpu_time()? - all).as_secs_f64() - server_cpu;
        Ok((done, Cost { wall: began.elapsed().as_secs_f64(), server_cpu, generator_cpu }))
    }

    fn end(self) -> Result<(), Failure> {
        drop(self.asks);
        self.thread.join().map_err(|_| Failure::Load("the stand-in panicked".to_owned()))
    }
}

/// Each change of a user is written to all contacts, as it comes.
async fn presence(shape: presence::Shape) -> Result<presence::Outcome, Failure> {
    let (users, contacts) = (shape.users, shape.contacts);
    let stand_in = StandIn::start(move |listener| async move {
        let mut all = Vec::new();
        while all.len() < users + contacts {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            all.push(stream);
        }
        let contacts = Rc::new(all.split_off(users));
        let mut tasks = JoinSet::new();
        for user in all {
            tasks.spawn_local(copy(user, Rc::clone(&contacts)));
        }
        while let Some(ended) = tasks.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    })?;
    // Connections come in the order in which they were made.
    let mut wires = Vec::new();
    for _ in 0..users + contacts {
        wires.push(
            tokio::time::timeout(PATIENCE, Wire::connect(stand_in.at)).await.map_err(io::Error::from)??,
        );
    }
    let contacts = wires.split_off(users);
    let ground = Rc::new(Ground::new(64 * 1024));
    let arrived = Rc::new(Arrived::default());
    let (local, mut readers) = (LocalSet::new(), JoinSet::new());
    let bytes = (users * contacts.len() * COPY.len()) as u64;
    for contact in contacts {
        readers.spawn_local_on(read(contact, Rc::clone(&ground), Rc::clone(&arrived)), &local);
    }
    let changing = {
        let (ground, arrived) = (Rc::clone(&ground), Rc::clone(&arrived));
        async move {
            loop {
                let sent = ground.now();
                let wanted = arrived.bytes.get() + bytes;
                for wire in &mut wires {
                    wire.write_all(&CHANGE).await?;
                }
                while arrived.bytes.get() < wanted {
                    arrived.some.notified().await;
                }
                ground.record(sent, ground.now());
            }
        }
    };
    readers.spawn_local_on(changing, &local);
    let measured = async {
        tokio::time::sleep(Duration::from_secs_f64(shape.warm_up)).await;
        ground.take_latencies();
        let copies = || arrived.bytes.get() / COPY.len() as u64;
        let (copies, cost) = stand_in.measure(shape.seconds, copies).await?;
        let latencies = ground.take_latencies();
        Ok(presence::Outcome { copies, p50_ms: latencies.p50_ms, p99_ms: latencies.p99_ms, cost })
    };
    let outcome = until_measured(local, readers, measured).await?;
    stand_in.end()?;
    Ok(outcome)
}

/// What has come to the contacts.
#[derive(Default)]
struct Arrived {
    bytes: Cell<u64>,
    some: tokio::sync::Notify,
}

async fn read(mut wire: Wire, ground: Rc<Ground>, arrived: Rc<Arrived>) -> io::Result<()> {
    let mut inbox = Vec::new();
    loop {
        let n = ground.fill(&mut wire, &mut inbox).await?;
        if n == 0 {
            return Ok(());
        }
        inbox.clear();
        arrived.bytes.set(arrived.bytes.get() + n as u64);
        arrived.some.notify_one();
    }
}

/// A write to every contact for every change.
async fn copy(mut user: TcpStream, contacts: Rc<Vec<TcpStream>>) -> io::Result<()> {
    let mut change = [0; CHANGE.len()];
    loop {
        if user.read_exact(&mut change).await.is_err() {
            return Ok(());
        }
        for contact in contacts.iter() {
            match contact.try_write(&COPY) {
                Ok(n) if n == COPY.len() => {}
                // All read what they get before the next change comes.
                Ok(_) => return Err(io::ErrorKind::WriteZero.into()),
                // The measurement is over.
                Err(_) => return Ok(()),
            }
        }
    }
}

/// Connections with the exchanges of a login, one after the other, on as many as the load has at a time.
async fn logins(shape: logins::Shape, starttls: bool) -> Result<logins::Outcome, Failure> {
    let acceptor = if starttls { Some(TlsAcceptor::from(server_config()?)) } else { None };
    let stand_in = StandIn::start(move |listener| async move {
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let acceptor = acceptor.clone();
            tokio::task::spawn_local(async move {
                // The client sees that its connection has ended.
                let _ = answer(stream, acceptor).await;
            });
        }
    })?;
    let done = Rc::new(Cell::new(0_u64));
    let client = starttls.then(|| client_config(&[]));
    let (local, mut workers) = (LocalSet::new(), JoinSet::new());
    for _ in 0..logins::CONCURRENCY {
        let (done, client, at) = (Rc::clone(&done), client.clone(), stand_in.at);
        let work = async move {
            loop {
                login(at, client.clone()).await?;
                done.set(done.get() + 1);
            }
        };
        workers.spawn_local_on(work, &local);
    }
    let measured = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (logins, cost) = stand_in.measure(shape.seconds, || done.get()).await?;
        Ok(logins::Outcome { logins, cost })
    };
    let outcome = until_measured(local, workers, measured).await?;
    stand_in.end()?;
    Ok(outcome)
}

/// As this project's server has it, without tickets, which cost another record.
fn server_config() -> Result<Arc<ServerConfig>, Failure> {
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()])
        .map_err(|e| Failure::Load(format!("a certificate: {e}")))?;
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let mut provider = ring::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key.into())
        })
        .map_err(|e| Failure::Load(format!("TLS: {e}")))?;
    config.ignore_client_order = true;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

async fn answer(mut stream: TcpStream, acceptor: Option<TlsAcceptor>) -> io::Result<()> {
    if let Some(acceptor) = acceptor {
        exchanges(&mut stream, &[OPEN, PROCEED]).await?;
        let mut stream = acceptor.accept(stream).await?;
        exchanges(&mut stream, &[OPEN]).await?;
        exchanges(&mut stream, &LOGIN).await
    } else {
        exchanges(&mut stream, &[OPEN]).await?;
        exchanges(&mut stream, &LOGIN).await
    }
}

async fn exchanges(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    all: &[(usize, usize)],
) -> io::Result<()> {
    let mut said = [0; LONGEST];
    for (asked, answered) in all {
        stream.read_exact(&mut said[..*asked]).await?;
        stream.write_all(&[b'a'; LONGEST][..*answered]).await?;
    }
    stream.flush().await
}

async fn login(at: SocketAddr, tls: Option<Arc<rustls::ClientConfig>>) -> io::Result<()> {
    let mut wire = Wire::connect(at).await?;
    let mut inbox = Vec::with_capacity(LONGEST);
    if let Some(tls) = tls {
        ask(&mut wire, &mut inbox, &[OPEN, PROCEED]).await?;
        wire.start_tls(tls, HOST).await?;
    }
    ask(&mut wire, &mut inbox, &[OPEN]).await?;
    ask(&mut wire, &mut inbox, &LOGIN).await
}

async fn ask(wire: &mut Wire, inbox: &mut Vec<u8>, all: &[(usize, usize)]) -> io::Result<()> {
    for (asked, answered) in all {
        wire.write_all(&[b'q'; LONGEST][..*asked]).await?;
        inbox.clear();
        while inbox.len() < *answered {
            if wire.read(inbox).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_load_that_it_has_gives_figures() {
        let presence = presence::Shape { users: 2, contacts: 5, warm_up: 0.05, seconds: 0.2 };
        let outcome = super::presence(presence).await.unwrap();
        assert!(outcome.copies > 10 && outcome.cost.server_cpu > 0.0, "{outcome:?}");
        for starttls in [false, true] {
            let outcome = super::logins(logins::Shape { users: 1, seconds: 0.3 }, starttls).await.unwrap();
            assert!(outcome.logins > 10 && outcome.cost.server_cpu > 0.0, "{outcome:?}");
        }
    }
}

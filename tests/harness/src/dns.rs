//! A name server for tests, on a random port of loopback: UDP and TCP, with the records that it is given.
//!
//! It stands for the whole of DNS: what is not in its [`Zone`] does not exist anywhere. It runs on a thread of
//! its own, so that it answers whatever the test is doing, and ends with its value. Zones, faults and counts
//! can be changed and read while it runs.

mod message;
mod zone;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};

use message::{Question, code};
pub use zone::{Data, Found, Record, Zone};

/// Attempts to find a port that is free for both protocols.
const ATTEMPTS: usize = 20;
/// The questions that are worked on at once; more wait in the socket.
const AT_ONCE: usize = 1024;
/// Who sends no question over TCP for so long is left.
const IDLE: Duration = Duration::from_secs(30);
/// The bytes of the largest answer over TCP.
const LARGEST: usize = 65535;

/// What goes wrong with questions about a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// They are not answered.
    Silent,
    /// The answer is that the server has failed.
    ServerFailure,
    /// The answer is that it is refused.
    Refused,
    /// The answer comes after so long.
    Delay(Duration),
    /// The answer has another question's id, as that of somebody who guesses.
    WrongId,
    /// The answer ends in its middle.
    CutOff,
    /// Of a chain of aliases the answer has the first one alone, as that of a server that knows no more.
    FirstAlias,
}

/// A name server that is running.
#[derive(Debug)]
pub struct DnsServer {
    /// Where it can be asked, over UDP and over TCP.
    pub address: SocketAddr,
    state: Arc<State>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    inner: Mutex<Inner>,
    places: Semaphore,
}

#[derive(Debug, Default)]
struct Inner {
    zone: Zone,
    faults: HashMap<String, Fault>,
    counts: HashMap<(String, u16), usize>,
    over_tcp: usize,
    now: usize,
    peak: usize,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DnsServer {
    /// Starts one.
    ///
    /// # Errors
    /// What the system says when there is no port for it.
    pub fn start(zone: Zone) -> io::Result<Self> {
        let (tcp, udp) = bind()?;
        let address = tcp.local_addr()?;
        let inner = Mutex::new(Inner { zone, ..Inner::default() });
        let state = Arc::new(State { inner, places: Semaphore::new(AT_ONCE) });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::Builder::new().name("test-dns".into()).spawn({
            let state = state.clone();
            move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        end = serve(tcp, udp, &state) => if let Err(e) = end {
                            eprintln!("the name server of the test has ended: {e}");
                        }
                    }
                });
            }
        })?;
        Ok(Self { address, state, stop: Some(stop), thread: Some(thread) })
    }

    /// From now on it knows this, and nothing else.
    pub fn set(&self, zone: Zone) {
        self.state.lock().zone = zone;
    }

    /// Changes what it knows.
    pub fn change(&self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.state.lock().zone);
    }

    /// What goes wrong with questions about a name, of whatever type, from now on; with all names that have
    /// no fault of their own when it is `*`. `None` for nothing.
    pub fn fault(&self, name: &str, fault: Option<Fault>) {
        let mut inner = self.state.lock();
        let name = name.to_ascii_lowercase();
        match fault {
            Some(fault) => inner.faults.insert(name, fault),
            None => inner.faults.remove(&name),
        };
    }

    /// How many questions came, of whatever kind, over both protocols.
    pub fn questions(&self) -> usize {
        self.state.lock().counts.values().sum()
    }

    /// How many questions about a name came, of whatever type.
    pub fn asked(&self, name: &str) -> usize {
        let inner = self.state.lock();
        inner.counts.iter().filter(|((n, _), _)| n.eq_ignore_ascii_case(name)).map(|(_, count)| count).sum()
    }

    /// How many questions came over TCP.
    pub fn over_tcp(&self) -> usize {
        self.state.lock().over_tcp
    }

    /// The most questions that waited for their answer at once.
    pub fn peak(&self) -> usize {
        self.state.lock().peak
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A port that both protocols have.
fn bind() -> io::Result<(std::net::TcpListener, std::net::UdpSocket)> {
    let mut last = io::Error::other("no attempt was made");
    for _ in 0..ATTEMPTS {
        let tcp = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        match std::net::UdpSocket::bind(tcp.local_addr()?) {
            Ok(udp) => {
                tcp.set_nonblocking(true)?;
                udp.set_nonblocking(true)?;
                return Ok((tcp, udp));
            }
            Err(e) => last = e,
        }
    }
    Err(last)
}

async fn serve(tcp: std::net::TcpListener, udp: std::net::UdpSocket, state: &Arc<State>) -> io::Result<()> {
    let tcp = TcpListener::from_std(tcp)?;
    let udp = Arc::new(UdpSocket::from_std(udp)?);
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                let (stream, _) = accepted?;
                tokio::spawn(converse(stream, state.clone()));
            }
            received = udp.recv_from(&mut buffer) => {
                let (length, peer) = received?;
                let Some(question) = Question::read(&buffer[..length]) else { continue };
                let (state, udp) = (state.clone(), udp.clone());
                tokio::spawn(async move {
                    let limit = question.limit();
                    if let Some(answer) = answer(&state, &question, limit).await {
                        // Whoever has gone meanwhile needs no answer.
                        let _ = udp.send_to(&answer, peer).await;
                    }
                });
            }
        }
    }
}

/// A connection's questions, one after the other, each with its length before it.
async fn converse(mut stream: TcpStream, state: Arc<State>) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut message = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut message)).await??;
        let Some(question) = Question::read(&message) else { return Ok(()) };
        state.lock().over_tcp += 1;
        if let Some(answer) = answer(&state, &question, LARGEST).await {
            stream.write_u16(u16::try_from(answer.len()).unwrap_or(u16::MAX)).await?;
            stream.write_all(&answer).await?;
        }
    }
}

/// The answer to a question, at its time; `None` when there is to be none.
async fn answer(state: &State, question: &Question, limit: usize) -> Option<Vec<u8>> {
    let name = question.name.to_ascii_lowercase();
    let fault = {
        let mut inner = state.lock();
        *inner.counts.entry((name.clone(), question.kind)).or_default() += 1;
        inner.now += 1;
        inner.peak = inner.peak.max(inner.now);
        inner.faults.get(&name).or_else(|| inner.faults.get("*")).copied()
    };
    let place = state.places.acquire().await;
    if let Some(Fault::Delay(time)) = fault {
        tokio::time::sleep(time).await;
    }
    let mut inner = state.lock();
    inner.now -= 1;
    drop(place);
    match fault {
        Some(Fault::Silent) => None,
        Some(Fault::ServerFailure) => Some(question.failed(code::SERVER_FAILURE)),
        Some(Fault::Refused) => Some(question.failed(code::REFUSED)),
        _ if !question.is_ordinary() => Some(question.failed(code::NOT_IMPLEMENTED)),
        other => {
            let mut found = inner.zone.find(&name, question.kind);
            if other == Some(Fault::FirstAlias) && found.records.len() > 1 {
                found = Found { records: found.records[..1].to_vec(), exists: true };
            }
            let mut answer = question.answer(&found, limit);
            match other {
                Some(Fault::WrongId) => answer[..2].copy_from_slice(&(!question.id).to_be_bytes()),
                Some(Fault::CutOff) => answer.truncate(answer.len() - 5),
                _ => {}
            }
            Some(answer)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::UdpSocket as StdUdp;

    use super::*;

    /// A question with the id 7 for a name and a type, with an extension record for so large an answer.
    fn question(name: &str, kind: u8, size: u16) -> Vec<u8> {
        let mut out = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(size > 0)];
        for label in name.split('.') {
            out.push(u8::try_from(label.len()).unwrap());
            out.extend_from_slice(label.as_bytes());
        }
        out.extend_from_slice(&[0, 0, kind, 0, 1]);
        if size > 0 {
            out.extend_from_slice(&[0, 0, 41]);
            out.extend_from_slice(&size.to_be_bytes());
            out.extend_from_slice(&[0; 6]);
        }
        out
    }

    fn ask(server: &DnsServer, question: &[u8]) -> Vec<u8> {
        let socket = StdUdp::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        socket.send_to(question, server.address).unwrap();
        let mut answer = vec![0; LARGEST];
        let length = socket.recv(&mut answer).unwrap();
        answer.truncate(length);
        answer
    }

    /// Id, code, truncation and the number of answers.
    fn head(answer: &[u8]) -> (u8, u8, bool, usize) {
        let count = usize::from(u16::from_be_bytes([answer[6], answer[7]]));
        (answer[1], answer[3] & 15, answer[2] & 2 != 0, count)
    }

    #[test]
    fn questions_are_answered_counted_and_told_apart() {
        let server = DnsServer::start("a.example A 127.0.0.2".parse().unwrap()).unwrap();
        let answer = ask(&server, &question("A.Example", 1, 0));
        assert_eq!(head(&answer), (7, 0, false, 1));
        assert_eq!(&answer[answer.len() - 4..], [127, 0, 0, 2]);
        assert_eq!(head(&ask(&server, &question("a.example", 28, 1232))), (7, 0, false, 0), "no data");
        assert_eq!(head(&ask(&server, &question("example", 1, 0))), (7, 0, false, 0), "a name between");
        assert_eq!(head(&ask(&server, &question("b.example", 1, 0))), (7, 3, false, 0), "no such name");
        server.change(|zone| zone.add("b.example", Data::A(Ipv4Addr::LOCALHOST)));
        assert_eq!(head(&ask(&server, &question("b.example", 1, 0))), (7, 0, false, 1));
        server.fault("*", Some(Fault::ServerFailure));
        server.fault("b.example", Some(Fault::WrongId));
        assert_eq!(head(&ask(&server, &question("a.example", 1, 0))), (7, 2, false, 0));
        assert_eq!(head(&ask(&server, &question("b.example", 1, 0))).0, !7);
        assert_eq!((server.asked("a.example"), server.questions()), (3, 7));
    }

    #[test]
    fn what_is_too_large_for_udp_comes_over_tcp() {
        let mut zone = Zone::new();
        for last in 0..100 {
            zone.add("a.example", Data::A(Ipv4Addr::new(127, 0, 0, last)));
        }
        let server = DnsServer::start(zone).unwrap();
        let asked = question("a.example", 1, 0);
        assert_eq!(head(&ask(&server, &asked)), (7, 0, true, 0));
        assert_eq!(head(&ask(&server, &question("a.example", 1, 4096))), (7, 0, false, 100));
        let mut stream = std::net::TcpStream::connect(server.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&[&[0, u8::try_from(asked.len()).unwrap()], &asked[..]].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(head(&answer), (7, 0, false, 100));
        assert_eq!(server.over_tcp(), 1);
    }
}

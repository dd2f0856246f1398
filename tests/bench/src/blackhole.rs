//! Messages within a server and to another one, while ten thousand wait for a domain that says nothing.
//!
//! The domain is in DNS, and its address drops every packet that would open a
//! connection: a socket listens there whose queue is full. Both latencies are
//! measured on the same servers with the same users, first without and then with
//! it: only what waits differs. A message counts as waiting when the server has
//! acknowledged it to its sender (XEP-0198); at the end the domain comes up
//! elsewhere, and each of them must arrive.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use waystation_harness::process::Sample;
use waystation_harness::{Account, Client, Config, Server};

use crate::Failure;
use crate::federation::Sides;
use crate::pairs::{self, Game, Stretch};
use crate::sessions::{self, Access};

/// The domain that is not there.
const DARK: &str = "dark.test";
/// Who is written to there.
const NOBODY: &str = "nobody";
/// Messages that the sender sends before it waits for the server.
const CHUNK: usize = 50;
/// Bytes of text in a body.
const BODY: usize = 100;
/// How long a connection may take before it counts as dropped; on loopback it takes microseconds.
const DROPPED: Duration = Duration::from_millis(500);
/// Connections that the queue of a socket may take although it is to have no room.
const MOST: usize = 16;
/// How long what waits may take to begin to arrive, and then to go on: the server's own pauses count.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until the server is told again to try.
const AGAIN: Duration = Duration::from_secs(2);

/// The shape of the load.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Shape {
    /// Who talks: so many pairs with a user on each side, and so many within the first server.
    pub(crate) pairs: pairs::Shape,
    /// Messages a second, of each of the two kinds.
    pub(crate) rate: f64,
    /// Messages that wait.
    pub(crate) waiting: usize,
}

impl Shape {
    /// Accounts that it needs on each side; the last one writes to the domain that is not there.
    pub(crate) fn users(&self) -> usize {
        self.pairs.pairs * 3 + 1
    }
}

/// Both kinds of messages, measured at the same time.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Point {
    /// Those to the other server, and from it.
    pub(crate) across: Stretch,
    /// Those within the first server.
    pub(crate) within: Stretch,
    /// Resident memory of the first server, in bytes, at the end.
    pub(crate) rss: u64,
}

/// What came out.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    /// While nothing waits.
    pub(crate) without: Point,
    /// While the messages wait.
    pub(crate) with: Point,
    /// Messages a second of each kind that were wanted.
    pub(crate) rate: f64,
    /// Messages that wait, as the server counts them.
    pub(crate) waiting: u64,
    /// Messages that were sent or waited and never arrived.
    pub(crate) lost: u64,
    /// Messages that waited and came twice.
    pub(crate) surplus: u64,
}

impl Outcome {
    /// How many times as long messages to the other server take while others wait: 99 of 100.
    pub(crate) fn across_ratio(&self) -> f64 {
        self.with.across.p99_ms / self.without.across.p99_ms
    }

    /// The same within the server.
    pub(crate) fn within_ratio(&self) -> f64 {
        self.with.within.p99_ms / self.without.within.p99_ms
    }

    /// Whether the rate was kept: else latencies were those of another load.
    pub(crate) fn kept_rate(&self) -> bool {
        let kept = |s: &Stretch| s.cost.per_second(s.delivered) > 0.95 * self.rate;
        [&self.without, &self.with].iter().all(|point| kept(&point.across) && kept(&point.within))
    }
}

/// Runs the load against two servers.
pub(crate) async fn run(sides: &Sides, access: Access, shape: Shape) -> Result<Outcome, Failure> {
    let server = &sides.servers()[0];
    let hole = Hole::dig().await?;
    sides.place(DARK, hole.port()?);
    let (pids, count) = (sides.pids(), shape.pairs.pairs);
    let across = sides.talkers(access, 0..count).await?;
    let within = sessions::talkers(server.endpoint(), access, count..count * 3, false).await?;
    let mut writer = sessions::open(server.endpoint(), access, count * 3..count * 3 + 1).await?;
    sessions::manage(&mut writer[0]).await?;
    let transport = access.transport;
    let mut body = async |across: &Game, within: &Game| {
        across.set_rate(Some(shape.rate));
        within.set_rate(Some(shape.rate));
        let measure = async || {
            let (across, within) = tokio::try_join!(across.measure(), within.measure())?;
            Ok::<_, Failure>(Point { across, within, rss: Sample::of(server.pid())?.rss })
        };
        let without = measure().await?;
        write(&mut writer[0], shape.waiting).await?;
        let waiting = waiting(server)?;
        let with = measure().await?;
        let lost = across.stop().await + within.stop().await;
        Ok(Outcome { without, with, rate: shape.rate, waiting, lost, surplus: 0 })
    };
    let both = async |across: &Game| {
        let inner = async |within: &Game| body(across, within).await;
        Box::pin(pairs::talk(within, &pids, transport, shape.pairs, inner)).await
    };
    let outcome = Box::pin(pairs::talk(across, &pids, transport, shape.pairs, both)).await?;
    let (came, surplus) = arrive(sides, hole, access, shape.waiting).await?;
    // What came back to its sender instead would be among what is missing.
    let missing = (shape.waiting as u64).saturating_sub(came);
    Ok(Outcome { lost: outcome.lost + missing, surplus, ..outcome })
}

/// Sends so many numbered messages to the domain that is not there, and waits until the server has
/// acknowledged them all.
async fn write(writer: &mut Client, count: usize) -> Result<(), Failure> {
    writer.set_patience(PATIENCE);
    let body = "x".repeat(BODY);
    for start in (0..count).step_by(CHUNK) {
        let end = (start + CHUNK).min(count);
        let message =
            |n| format!("<message to='{NOBODY}@{DARK}' type='chat' id='n{n}'><body>{body}</body></message>");
        let mut chunk: String = (start..end).map(message).collect();
        chunk.push_str("<r xmlns='urn:xmpp:sm:3'/>");
        writer.send(chunk).await?;
        loop {
            let next = writer.next("an acknowledgement").await?;
            let handled = next.attr("h").filter(|_| next.local() == "a").and_then(|h| h.parse().ok());
            match handled {
                Some(handled) if end <= handled => break,
                Some(_) => writer.send("<r xmlns='urn:xmpp:sm:3'/>").await?,
                None if next.attr("type") == Some("error") => {
                    return Err(Failure::Load(format!("a message does not wait: {next}")));
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// How many messages wait for the domain, as the server's administrators see it.
fn waiting(server: &Server) -> Result<u64, Failure> {
    let output = server.command(&["federation", "show", DARK, "--json"], "")?;
    let rows: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let count = rows.get(0).and_then(|row| row.get("waiting")?.as_u64());
    count.ok_or_else(|| Failure::Load(format!("no figure for {DARK} in {rows}")))
}

/// Brings the domain up, and returns how many of the messages arrive there and how many of them again.
async fn arrive(sides: &Sides, hole: Hole, access: Access, count: usize) -> Result<(u64, u64), Failure> {
    let account = Account::at(NOBODY, DARK);
    // All comes at once, to a client that has other things to do meanwhile.
    let patient = [("limits.outbound_stanzas", "1_000_000"), ("limits.outbound_bytes", "'256MiB'")];
    let there = sides.further(Config {
        hosts: vec![DARK.to_owned()],
        accounts: vec![account.clone()],
        settings: patient.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
        ..Config::default()
    })?;
    let mut client = Client::login(there.endpoint(), &account, &access.login()).await?;
    client.become_available().await?;
    sides.place(DARK, there.endpoint().s2s.port());
    drop(hole);
    let mut seen = vec![false; count];
    let (mut came, mut surplus) = (0usize, 0u64);
    let mut quiet_until = Instant::now() + PATIENCE;
    while came < count && Instant::now() < quiet_until {
        if came == 0 {
            let _its_outcome_shows = sides.servers()[0].command(&["federation", "retry", DARK], "")?;
        }
        let Ok(stanza) = tokio::time::timeout(AGAIN, client.next("what waited")).await else { continue };
        let stanza = stanza?;
        let number = stanza.attr("id").and_then(|id| id.strip_prefix('n')?.parse::<usize>().ok());
        let Some(place) = number.and_then(|n| seen.get_mut(n)) else { continue };
        surplus += u64::from(*place);
        came += usize::from(!*place);
        *place = true;
        quiet_until = Instant::now() + PATIENCE;
    }
    client.close().await?;
    Ok((came as u64, surplus))
}

/// An address that drops what would open a connection: Linux does so when a listening socket's queue is full.
struct Hole {
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Hole {
    async fn dig() -> Result<Self, Failure> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let listener = socket.listen(0)?;
        let at = listener.local_addr()?;
        let mut queued = Vec::new();
        for _ in 0..MOST {
            match tokio::time::timeout(DROPPED, TcpStream::connect(at)).await {
                Ok(connected) => queued.push(connected?),
                Err(_dropped) => return Ok(Self { listener, _queued: queued }),
            }
        }
        Err(Failure::Load("connections are taken although nobody accepts them".to_owned()))
    }

    fn port(&self) -> io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Cost;

    #[tokio::test]
    async fn a_hole_answers_nobody() {
        let hole = Hole::dig().await.unwrap();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, hole.port().unwrap()));
        assert!(tokio::time::timeout(DROPPED, TcpStream::connect(at)).await.is_err());
    }

    #[test]
    fn ratios_are_of_both_kinds() {
        let stretch = |delivered, p99_ms| Stretch {
            delivered,
            p50_ms: 0.0,
            p99_ms,
            cost: Cost { wall: 1.0, server_cpu: 1.0, generator_cpu: 0.0 },
        };
        let point =
            |across, within| Point { across: stretch(100, across), within: stretch(100, within), rss: 0 };
        let (without, with) = (point(2.0, 1.0), point(3.0, 1.1));
        let outcome = Outcome { without, with, rate: 100.0, waiting: 1, lost: 0, surplus: 0 };
        assert!((outcome.across_ratio() - 1.5).abs() < 1e-9);
        assert!((outcome.within_ratio() - 1.1).abs() < 1e-9);
        assert!(outcome.kept_rate());
        assert!(!Outcome { rate: 200.0, ..outcome }.kept_rate());
    }
}

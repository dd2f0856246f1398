//! Two servers that talk to each other, and their users.
//!
//! What must stay true: both are found by the test's own name server and proven by
//! its own authority, in one mode for all pairs of servers; who talks has been
//! heard on the other side before, so that no figure holds the making of a stream.

use std::ops::Range;
use std::time::{Duration, Instant};

use waystation_harness::dns::Data;
use waystation_harness::{Client, Config, Mode, Network, Proof, Server, Way};

use crate::sessions::{self, Access, Talker};
use crate::{Failure, pairs};

/// The domains of the two servers.
pub(crate) const DOMAINS: [&str; 2] = ["a.test", "b.test"];

/// How they meet: STARTTLS, and SASL EXTERNAL with certificates of the test's authority. Prosody as packaged
/// does not use a stream in both directions.
const MODE: Mode = Mode { way: Way::StartTls, proof: Proof::Certificate, bidi: false };

/// How long it may take until the first message arrives.
const PATIENCE: Duration = Duration::from_secs(60);
/// Until it is sent again: one that comes too early may come back.
const AGAIN: Duration = Duration::from_secs(1);
/// Seconds that the place of a domain that moves is kept.
const MOVING: u32 = 1;

/// Two servers, and the network that they are on.
pub(crate) struct Sides {
    network: Network,
    servers: Vec<Server>,
}

impl Sides {
    /// Starts a server for each of [`DOMAINS`]; `config` makes what one is started with.
    pub(crate) fn start(config: [impl Fn(&str) -> Config; 2]) -> Result<Self, Failure> {
        let mut sides = Self { network: Network::new(MODE)?, servers: Vec::new() };
        for (domain, config) in DOMAINS.iter().zip(config) {
            let mut config = sides.network.join(config(domain));
            if let Some(federation) = &mut config.federation {
                // As without federation: only what this project's server has too.
                federation.rooms = false;
            }
            let server = Server::start(config)?;
            sides.network.announce(&server);
            sides.servers.push(server);
        }
        Ok(sides)
    }

    /// The two servers.
    pub(crate) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Their process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.servers.iter().map(Server::pid).collect()
    }

    /// Starts one more server, like the first one but for its domain, accounts and further settings; nobody finds it yet.
    pub(crate) fn further(&self, config: Config) -> Result<Server, Failure> {
        let mut settings = self.servers[0].config().settings.clone();
        settings.extend(config.settings);
        let first = self.servers[0].config().clone();
        Ok(Server::start(Config { hosts: config.hosts, accounts: config.accounts, settings, ..first })?)
    }

    /// Says that a domain is at this port of loopback, for now.
    pub(crate) fn place(&self, domain: &str, port: u16) {
        let name = format!("_xmpp-server._tcp.{domain}");
        self.network.dns().change(|zone| {
            zone.remove(&name);
            zone.add_for(&name, MOVING, Data::Srv(0, 5, port, "localhost".to_owned()));
        });
    }

    /// Logs the users with these numbers in on both sides. Neighbours are those with the same number.
    pub(crate) async fn talkers(&self, access: Access, users: Range<usize>) -> Result<Vec<Talker>, Failure> {
        let [a, b] = [self.servers[0].endpoint(), self.servers[1].endpoint()];
        let first = users.start..users.start + 1;
        let left = sessions::open(a, access, first.clone()).await?.pop();
        let right = sessions::open(b, access, first).await?.pop();
        if let (Some(mut left), Some(mut right)) = (left, right) {
            meet(&mut left, &mut right).await?;
            meet(&mut right, &mut left).await?;
            // What is on its way to them, a question of the server's among it, ends with these sessions.
            left.close().await?;
            right.close().await?;
        }
        let left = sessions::open(a, access, users.clone()).await?;
        let right = sessions::open(b, access, users).await?;
        let pairs = left.into_iter().zip(right);
        Ok(pairs.flat_map(|(left, right)| [Talker::of(left), Talker::of(right)]).collect())
    }
}

/// Puts the load on both: each pair has one user on each side.
pub(crate) async fn run(
    sides: &Sides,
    access: Access,
    shape: pairs::Shape,
) -> Result<pairs::Outcome, Failure> {
    let talkers = sides.talkers(access, 0..shape.pairs).await?;
    pairs::talk(talkers, &sides.pids(), access.transport, shape, pairs::Game::once).await
}

/// Makes sure that messages arrive.
async fn meet(from: &mut Client, to: &mut Client) -> Result<(), Failure> {
    let end = Instant::now() + PATIENCE;
    let hello = format!("<message to='{}' type='chat'><body>hello</body></message>", to.jid());
    while Instant::now() < end {
        from.send(&hello).await?;
        let heard = async {
            loop {
                let stanza = to.next("a message from the other side").await?;
                if stanza.local() == "message" && stanza.attr("from") == Some(from.jid()) {
                    return Ok::<_, Failure>(());
                }
            }
        };
        match tokio::time::timeout(AGAIN, heard).await {
            Ok(heard) => return heard,
            Err(_later) => {}
        }
    }
    Err(Failure::Load(format!("no message of {} arrives at {}", from.jid(), to.jid())))
}

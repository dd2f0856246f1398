//! A network of servers on loopback, with DNS and an authority of its own.
//!
//! What must stay true: two networks share nothing, so that tests run side by side; a server is announced in
//! DNS only with the port that the mode means, so that it is reached in that way or not at all.

use std::net::Ipv4Addr;

use crate::dns::{Data, DnsServer, Zone};
use crate::error::{Error, Result};
use crate::federation::{Authority, Federation, Proof, rooms};
use crate::server::{Account, Config, Kind, Server};

/// The one machine of all servers. ejabberd looks for services with its own resolver and for addresses with
/// that of the system, which knows this name everywhere.
const HERE: &str = "localhost";

/// How servers reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    /// TLS by STARTTLS, announced as `_xmpp-server`.
    StartTls,
    /// TLS from the first byte, announced as `_xmpps-server` (XEP-0368).
    Direct,
}

/// How the servers of a network meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mode {
    /// How they reach each other.
    pub way: Way,
    /// How they prove who they are.
    pub proof: Proof,
    /// Whether peers that can use one stream for both directions do (XEP-0288).
    pub bidi: bool,
}

impl Mode {
    /// The modes that tests go through.
    pub const ALL: [Self; 5] = [
        Self { way: Way::StartTls, proof: Proof::Dialback, bidi: false },
        Self { way: Way::StartTls, proof: Proof::Certificate, bidi: false },
        Self { way: Way::Direct, proof: Proof::Dialback, bidi: false },
        Self { way: Way::Direct, proof: Proof::Certificate, bidi: false },
        Self { way: Way::StartTls, proof: Proof::Certificate, bidi: true },
    ];

    /// A name for tests.
    pub fn name(self) -> String {
        let way = match self.way {
            Way::StartTls => "starttls",
            Way::Direct => "direct_tls",
        };
        let proof = match self.proof {
            Proof::Certificate => "external",
            Proof::Dialback => "dialback",
        };
        format!("{proof}_{way}{}", if self.bidi { "_bidi" } else { "" })
    }
}

/// A name server and an authority, and the mode of the servers that trust them.
pub struct Network {
    dns: DnsServer,
    authority: Authority,
    mode: Mode,
}

impl Network {
    /// One without a server.
    pub fn new(mode: Mode) -> Result<Self> {
        let dns = DnsServer::start(Zone::new()).map_err(Error::io("start the name server"))?;
        Ok(Self { dns, authority: Authority::new()?, mode })
    }

    /// The mode.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The name server.
    pub fn dns(&self) -> &DnsServer {
        &self.dns
    }

    /// `config` as that of a server of this network.
    pub fn join(&self, config: Config) -> Config {
        let federation = Federation {
            nameserver: self.dns.address,
            authority: self.authority.clone(),
            proof: self.mode.proof,
            bidi: self.mode.bidi,
            rooms: config.kind != Kind::Waystation,
        };
        Config { federation: Some(federation), ..config }
    }

    /// What a server of this network is started with.
    pub fn config(&self, kind: Kind, domain: &str, users: &[&str]) -> Config {
        self.join(Config {
            kind,
            hosts: vec![domain.to_owned()],
            accounts: users.iter().map(|user| Account::at(user, domain)).collect(),
            ..Config::default()
        })
    }

    /// Starts a server and announces it.
    pub fn start(&self, kind: Kind, domain: &str, users: &[&str]) -> Result<Server> {
        let server = Server::start(self.config(kind, domain, users))?;
        self.announce(&server);
        Ok(server)
    }

    /// Lets others find a server; one that is not announced can find others and be answered on the streams
    /// that it has opened, if these are used in both directions.
    pub fn announce(&self, server: &Server) {
        let at = server.endpoint();
        let (service, port) = match self.mode.way {
            Way::StartTls => ("_xmpp-server", at.s2s.port()),
            Way::Direct => ("_xmpps-server", at.s2s_tls.port()),
        };
        self.dns.change(|zone| {
            for domain in [at.host.clone(), rooms(&at.host)] {
                let name = format!("{service}._tcp.{domain}");
                zone.remove(&name);
                zone.add(&name, Data::Srv(0, 5, port, HERE.to_owned()));
            }
            zone.remove(HERE);
            zone.add(HERE, Data::A(Ipv4Addr::LOCALHOST));
        });
    }
}

//! The servers of a run: one, or two that find each other.
//!
//! What must stay true: clients are on them in turns by their numbers, so that neighbours in a ring of an
//! even number of clients are never on the same one of two.

use waystation_harness::{Account, Config, Mode, Network, Proof, Server, Way};

use super::nemesis::Field;
use super::{CLIENTS, Failure, Workload};
use crate::client::Place;

/// One of them, and its name in the history.
pub(super) struct Node {
    pub(super) name: &'static str,
    pub(super) server: Server,
}

/// All of them.
pub(super) struct Servers {
    pub(super) nodes: Vec<Node>,
    /// What they find each other by: it lives as long as they do.
    _network: Option<Network>,
}

impl Servers {
    /// Starts what the workload needs. It blocks.
    pub(super) fn start(workload: Workload, config: &Config, field: &Field) -> Result<Self, Failure> {
        if workload != Workload::Federation {
            let accounts = (0..CLIENTS).map(|n| Account::at(&user(n), "localhost")).collect();
            let config = Config { accounts, ..config.clone() };
            let server = Server::start_in(config, field.folder()?)?;
            return Ok(Self { nodes: vec![Node { name: "n1", server }], _network: None });
        }
        let network = Network::new(Mode { way: Way::StartTls, proof: Proof::Certificate, bidi: false })?;
        let mut nodes = Vec::new();
        for (number, (name, host)) in [("n1", "one.test"), ("n2", "two.test")].into_iter().enumerate() {
            let mut config = config.clone();
            config.hosts = vec![host.to_owned()];
            config.accounts =
                (0..CLIENTS).filter(|n| n % 2 == number).map(|n| Account::at(&user(n), host)).collect();
            let server = Server::start_in(network.join(config), field.folder()?)?;
            network.announce(&server);
            nodes.push(Node { name, server });
        }
        Ok(Self { nodes, _network: Some(network) })
    }

    fn node_of(&self, client: usize) -> &Node {
        &self.nodes[client % self.nodes.len()]
    }

    /// The account of the client with this number.
    pub(super) fn account(&self, client: usize) -> Account {
        Account::at(&user(client), &self.node_of(client).server.endpoint().host)
    }

    /// Where the client with this number goes.
    pub(super) fn place(&self, client: usize) -> Place {
        let Node { name, server } = self.node_of(client);
        Place { node: (*name).to_owned(), at: server.endpoint().clone() }
    }

    /// The first panic that one of them logged.
    pub(super) fn panic(&self) -> Option<String> {
        let of = |node: &Node| {
            let log = node.server.log();
            log.lines().find(|line| line.contains("panicked at")).map(str::to_owned)
        };
        self.nodes.iter().find_map(of)
    }
}

/// The localpart of the client with this number.
pub(super) fn user(number: usize) -> String {
    format!("user{number}")
}

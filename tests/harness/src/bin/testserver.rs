//! Starts a server for tests that are not written in Rust, and keeps it until standard input ends.
//!
//! One line of JSON on standard output says where it listens, which accounts it has
//! and where its log is. The line `kill` on standard input kills the server as a crash would, `start`
//! starts it again on the same ports and the same data; each is answered by a line. With `--peer` there is a
//! second server, which the first one finds; the line describes it as well.
//! At the end the same is asserted as after a Rust test: a leak, a panic
//! or an unclean exit is a failure of this program.

use std::io::Write;

use clap::Parser;
use serde_json::{Value, json};
use waystation_harness::process::raise_file_limit;
use waystation_harness::sasl::Hash;
use waystation_harness::{Config, Kind, Mode, Network, Proof, Server, Way};

#[derive(Debug, Parser)]
#[command(about = "Starts a server for tests and keeps it until standard input ends")]
struct Options {
    /// waystation, prosody or ejabberd; by default as WAYSTATION_TEST_SERVER says, or waystation.
    #[arg(long, value_parser = parse_kind)]
    server: Option<Kind>,
    /// Localparts of the accounts to make, on `localhost` where there is no peer.
    #[arg(long, value_delimiter = ',')]
    users: Vec<String>,
    /// Refuse logins without TLS.
    #[arg(long)]
    tls_required: bool,
    /// Store accounts of Prosody and ejabberd for SCRAM-SHA-256 instead of SCRAM-SHA-1.
    #[arg(long)]
    sha256: bool,
    /// A second server with the same accounts, which talks to the first: waystation, prosody or ejabberd. Their
    /// domains are `SERVER.test` and `PEER.peer.test`.
    #[arg(long, value_parser = parse_kind)]
    peer: Option<Kind>,
    /// Further keys for Waystation: KEY=TOML.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

fn parse_kind(name: &str) -> Result<Kind, String> {
    Kind::from_name(name).ok_or_else(|| format!("no such server: {name}"))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::parse();
    raise_file_limit()?;
    let mut config = Config::default().with_users(options.users.iter().map(String::as_str));
    config.kind = options.server.unwrap_or(config.kind);
    config.tls_required = options.tls_required;
    if options.sha256 {
        config.hash = Hash::Sha256;
    }
    for setting in &options.settings {
        let (key, value) = setting.split_once('=').ok_or_else(|| format!("--set {setting}: no '='"))?;
        config = config.with(key, value);
    }
    // What they find each other by goes after them.
    let network;
    let peer = match options.peer {
        None => None,
        Some(kind) => {
            network = Network::new(Mode { way: Way::StartTls, proof: Proof::Dialback, bidi: false })?;
            let users: Vec<&str> = options.users.iter().map(String::as_str).collect();
            let domain = format!("{}.test", config.kind.name());
            let first = network.config(config.kind, &domain, &users);
            let second = network.config(kind, &format!("{}.peer.test", kind.name()), &users);
            let peer =
                Server::start(Config { tls_required: config.tls_required, hash: config.hash, ..second })?;
            network.announce(&peer);
            config = Config {
                hosts: first.hosts,
                accounts: first.accounts,
                federation: first.federation,
                ..config
            };
            Some((&network, peer))
        }
    };
    let mut server = Server::start(config)?;
    let mut about = describe(&server);
    if let Some((network, peer)) = &peer {
        network.announce(&server);
        about["peer"] = describe(peer);
    }
    say(&about)?;
    for order in std::io::stdin().lines() {
        match order?.as_str() {
            "kill" => {
                server.kill()?;
                say(&json!({ "killed": true }))?;
            }
            "start" => {
                server.start_again()?;
                say(&describe(&server))?;
            }
            other => return Err(format!("no such order: {other}").into()),
        }
    }
    // The peer first: then nobody has a connection to the server, which is looked at.
    if let Some((_, peer)) = peer {
        peer.end();
    }
    server.finish();
    Ok(())
}

/// Where it listens, which accounts it has, and where its log is.
fn describe(server: &Server) -> Value {
    let at = server.endpoint();
    let accounts: serde_json::Map<String, Value> = server
        .config()
        .accounts
        .iter()
        .map(|account| (account.user.clone(), json!({ "jid": account.jid(), "password": account.password })))
        .collect();
    json!({
        "server": server.config().kind.name(), "pid": server.pid(), "host": at.host,
        "c2s": at.c2s.to_string(), "c2s_tls": at.c2s_tls.to_string(), "accounts": accounts,
        "log": server.folder().join("server.log"),
    })
}

fn say(line: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}")?;
    out.flush()
}

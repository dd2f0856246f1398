//! Mistakes that only show when values are seen together, or beside the machine that they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;

use waystation_core::storage::Durability;

use crate::federation::{Authorities, Peer};
use crate::kinds::{Engine, Host, Named};
use crate::reader::Reader;
use crate::schema::Config;

/// A PEM file is never larger; one that is larger is something else.
const MAX_PEM: u64 = 1024 * 1024;

/// Reports what does not fit together, and lowers the durability that nobody set to what the
/// engine can keep.
pub(crate) fn check(config: &mut Config, reader: &mut Reader<'_>) {
    if reader.is_sound(&["hosts"]) {
        hosts(config, reader);
    }
    if reader.is_sound(&["hosts", "admins"]) {
        admins(config, reader);
    }
    listeners(config, reader);
    if reader.is_sound(&["storage.engine", "durability"]) {
        durability(config, reader);
    }
    if reader.is_sound(&["hosts", "tls.certificates"]) {
        certificates(config, reader);
    }
    if reader.is_sound(&["hosts", "federation.authorities", "federation.peers"]) {
        federation(config, reader);
    }
    if reader.is_sound(&["limits.stanza_size", "limits.stanza_size_unauthenticated", "limits.outbound_bytes"])
    {
        limits(config, reader);
    }
    if reader.is_sound(&["sasl.mechanisms"]) && config.sasl.mechanisms.is_empty() {
        let message = "found no mechanism, expected at least one: nobody could log in".to_owned();
        reader.reject("sasl.mechanisms", message, None);
    }
}

fn hosts(config: &Config, reader: &mut Reader<'_>) {
    if config.hosts.is_empty() {
        reader.reject("hosts", "found no host, expected at least one".to_owned(), None);
    }
    let mut seen = BTreeSet::new();
    for host in &config.hosts {
        if !seen.insert(host) {
            reader.reject(
                "hosts",
                format!("found \"{}\" twice, expected each host once", host.as_str()),
                None,
            );
        }
    }
}

fn admins(config: &Config, reader: &mut Reader<'_>) {
    for admin in &config.admins {
        if !config.hosts.iter().any(|host| host.as_str() == admin.domain()) {
            let message = format!(
                "found \"{}\", expected accounts of the hosts ({})",
                admin.as_str(),
                list(&config.hosts)
            );
            reader.reject("admins", message, None);
        }
    }
}

fn list(hosts: &[Host]) -> String {
    hosts.iter().map(|host| host.as_str()).collect::<Vec<_>>().join(", ")
}

fn listeners(config: &Config, reader: &mut Reader<'_>) {
    let listen = &config.listen;
    let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
    for (key, addresses) in [
        ("listen.c2s", &listen.c2s),
        ("listen.c2s_tls", &listen.c2s_tls),
        ("listen.s2s", &listen.s2s),
        ("listen.s2s_tls", &listen.s2s_tls),
        ("listen.http", &listen.http),
        ("listen.https", &listen.https),
    ] {
        for address in addresses {
            if let Some((other, first)) = taken.iter().find(|(_, t)| overlap(t, address)) {
                let place =
                    if first == address { format!("{other} has it") } else { format!("{other} has {first}") };
                let help = "use another port, or a single address instead of all".to_owned();
                reader.reject(key, format!("found {address}, which is taken: {place} already"), Some(help));
            }
            taken.push((key, *address));
        }
    }
}

/// True when both cannot be listened on at once. IPv6 listeners take IPv6 only.
fn overlap(a: &SocketAddr, b: &SocketAddr) -> bool {
    a.port() != 0
        && a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn durability(config: &mut Config, reader: &mut Reader<'_>) {
    let rank = |durability| match durability {
        Durability::Memory => 0,
        Durability::Os => 1,
        Durability::Fsync => 2,
    };
    let best = match config.storage.engine {
        Engine::Fjall => Durability::Fsync,
        // It asks the system to write, but not the device to flush.
        Engine::Sled => Durability::Os,
        Engine::Memory => Durability::Memory,
    };
    if rank(config.durability) <= rank(best) {
        return;
    }
    if reader.is_set("durability") {
        let (engine, best) = (config.storage.engine.as_name(), best.as_name());
        let message = format!(
            "found \"{}\", which storage.engine \"{engine}\" cannot promise, expected \"{best}\" or less",
            config.durability.as_name()
        );
        let help = format!("write durability = \"{best}\", or storage.engine = \"fjall\"");
        reader.reject("durability", message, Some(help));
    } else {
        config.durability = best;
    }
}

fn certificates(config: &Config, reader: &mut Reader<'_>) {
    const KEY: &str = "tls.certificates";
    let mut owners: BTreeMap<&Host, &Path> = BTreeMap::new();
    for certificate in &config.tls.certificates {
        if certificate.hosts.is_empty() {
            let message = format!("{} has no hosts, expected at least one", certificate.chain.display());
            reader.reject(KEY, message, None);
        }
        for host in &certificate.hosts {
            if !config.hosts.contains(host) {
                let message = format!(
                    "found \"{}\", expected hosts of this server ({})",
                    host.as_str(),
                    list(&config.hosts)
                );
                reader.reject(KEY, message, Some("add it to hosts, or leave it out here".to_owned()));
            }
            if let Some(other) = owners.insert(host, &certificate.chain) {
                let message = format!(
                    "\"{}\" has two certificates, {} and {}, expected one",
                    host.as_str(),
                    other.display(),
                    certificate.chain.display()
                );
                reader.reject(KEY, message, None);
            }
        }
        pem(KEY, &certificate.chain, "certificate", is_certificate, reader);
        pem(KEY, &certificate.key, "private key", |label| label.ends_with("PRIVATE KEY"), reader);
    }
}

fn is_certificate(label: &str) -> bool {
    label == "CERTIFICATE"
}

fn federation(config: &Config, reader: &mut Reader<'_>) {
    if let Authorities::File(path) = &config.federation.authorities {
        pem("federation.authorities", path, "certificate", is_certificate, reader);
    }
    let local = |peer: &&Peer| config.hosts.iter().any(|host| host.as_str() == peer.domain.as_str());
    for peer in config.federation.peers.iter().filter(local) {
        let message =
            format!("found \"{}\", which is served here, expected other domains", peer.domain.as_str());
        reader.reject("federation.peers", message, None);
    }
}

/// Reports a file that cannot be read or that holds no PEM block of the kind.
fn pem(key: &str, path: &Path, what: &str, wanted: impl Fn(&str) -> bool, reader: &mut Reader<'_>) {
    let mut bytes = Vec::new();
    if let Err(error) = File::open(path).and_then(|file| file.take(MAX_PEM).read_to_end(&mut bytes)) {
        reader.reject(key, format!("{} cannot be read: {error}", path.display()), None);
        return;
    }
    let text = String::from_utf8_lossy(&bytes);
    let found = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
        .any(wanted);
    if !found {
        let message = format!("{} holds no {what}, expected one in PEM form", path.display());
        reader.reject(key, message, None);
    }
}

fn limits(config: &Config, reader: &mut Reader<'_>) {
    let limits = &config.limits;
    if limits.stanza_size_unauthenticated > limits.stanza_size {
        let message = format!(
            "found {}, expected no more than limits.stanza_size, which is {}",
            limits.stanza_size_unauthenticated, limits.stanza_size
        );
        reader.reject("limits.stanza_size_unauthenticated", message, None);
    }
    if limits.stanza_size > limits.outbound_bytes {
        let message = format!(
            "found {}, expected at least limits.stanza_size, which is {}: such a stanza could never be delivered",
            limits.outbound_bytes, limits.stanza_size
        );
        reader.reject("limits.outbound_bytes", message, None);
    }
}

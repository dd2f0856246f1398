//! Kinds of values of federation: domains with their subdomains, what differs for single domains, authorities.

use std::net::IpAddr;
use std::path::PathBuf;

use waystation_core::Jid;

use crate::kinds::{Host, unknown_keys};
use crate::value::{Bounds, Fault, Leaf, Value, quote};

/// A domain, or with `*.` before it all of its subdomains (itself not included).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DomainPattern(String);

impl DomainPattern {
    /// The domain, prepared, perhaps with `*.` before it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn new(text: &str) -> Option<Self> {
        let (star, domain) = text.strip_prefix("*.").map_or(("", text), |domain| ("*.", domain));
        let host = Host::parse(domain)?;
        Some(Self([star, host.as_str()].concat()))
    }
}

impl Leaf for DomainPattern {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a domain such as \"example.org\", or \"*.example.org\" for its subdomains".to_owned()
    }

    fn plural() -> &'static str {
        "domains such as \"example.org\" or \"*.example.org\""
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        value.get_ref().as_str().and_then(Self::new)
    }

    fn toml(&self) -> String {
        quote(&self.0)
    }
}

/// A server: a host name or an IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// The name, or the address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Leaf for ServerAddress {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a host and a port such as \"xmpp.example.org:5269\"".to_owned()
    }

    fn plural() -> &'static str {
        "hosts with ports"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let (host, port) = value.get_ref().as_str()?.rsplit_once(':')?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0)?;
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = match bare {
            Some(address) => address.parse::<IpAddr>().ok().filter(IpAddr::is_ipv6)?.to_string(),
            // One that looks like an address without brackets is a slip.
            None if host.contains(':') => return None,
            None => Jid::parse(host).ok().filter(|jid| jid.local().is_none() && jid.is_bare())?.to_string(),
        };
        Some(Self { host, port })
    }

    fn toml(&self) -> String {
        match self.host.contains(':') {
            true => quote(&format!("[{}]:{}", self.host, self.port)),
            false => quote(&format!("{}:{}", self.host, self.port)),
        }
    }

    fn help() -> Option<&'static str> {
        Some("an IPv6 address stands in brackets: \"[2001:db8::1]:5269\"")
    }
}

/// Which authorities are trusted to say whose a certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Authorities {
    /// Those that the system trusts.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

impl Leaf for Authorities {
    fn expected(_: Bounds<'_, Self>) -> String {
        "\"system\" or the path of a PEM file".to_owned()
    }

    fn plural() -> &'static str {
        "paths"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        match value.get_ref().as_str()? {
            "" => None,
            "system" => Some(Self::System),
            path => Some(Self::File(path.into())),
        }
    }

    fn toml(&self) -> String {
        match self {
            Self::System => quote("system"),
            Self::File(path) => path.toml(),
        }
    }
}

/// What is different for one remote domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The domain, or all subdomains of one.
    pub domain: DomainPattern,
    /// Whether streams must be encrypted; `None`: as for all.
    pub require_tls: Option<bool>,
    /// Whether its certificate must be valid; `None`: as for all.
    pub require_certificate: Option<bool>,
    /// Where its server is; `None`: where DNS says.
    pub server: Option<ServerAddress>,
    /// That server speaks TLS from the first byte.
    pub direct_tls: bool,
}

impl Peer {
    const KEYS: [&str; 5] = ["domain", "require_tls", "require_certificate", "server", "direct_tls"];
}

impl Leaf for Peer {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a table with domain, and any of require_tls, require_certificate, server and direct_tls".to_owned()
    }

    fn plural() -> &'static str {
        "tables with domain, and any of require_tls, require_certificate, server and direct_tls"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        Self::parse(value, None, &mut Vec::new())
    }

    fn parse(value: &Value<'_>, bounds: Bounds<'_, Self>, faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            faults.push(Fault::unexpected(value, &Self::expected(bounds), None));
            return None;
        };
        faults.extend(unknown_keys(table, &Self::KEYS, &Self::KEYS.join(", ")));
        let before = faults.len();
        let member = |name: &str| table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value);
        let domain = member("domain").map(|v| DomainPattern::parse(v, None, faults));
        if domain.is_none() {
            let message = format!("the entry has no `domain`, expected {}", Self::expected(None));
            faults.push(Fault { span: value.span(), message, help: None });
        }
        let mut flag = |name: &str| member(name).and_then(|v| bool::parse(v, None, faults));
        let (require_tls, require_certificate) = (flag("require_tls"), flag("require_certificate"));
        let direct_tls = flag("direct_tls").unwrap_or(false);
        let server = member("server").and_then(|v| ServerAddress::parse(v, None, faults));
        if direct_tls && member("server").is_none() {
            let message = "found direct_tls without a server, expected both or neither".to_owned();
            let help = Some("where DNS says where the server is, it says this as well".to_owned());
            faults.push(Fault { span: value.span(), message, help });
        }
        let domain = domain.flatten()?;
        (faults.len() == before).then_some(Self {
            domain,
            require_tls,
            require_certificate,
            server,
            direct_tls,
        })
    }

    fn toml(&self) -> String {
        let mut entries = vec![format!("domain = {}", self.domain.toml())];
        let flags = [("require_tls", self.require_tls), ("require_certificate", self.require_certificate)];
        entries.extend(flags.iter().filter_map(|(name, flag)| Some(format!("{name} = {}", (*flag)?))));
        entries.extend(self.server.as_ref().map(|server| format!("server = {}", server.toml())));
        if self.direct_tls {
            entries.push("direct_tls = true".to_owned());
        }
        format!("{{ {} }}", entries.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::{parse, round_trip};

    #[test]
    fn patterns_are_domains_that_are_prepared() {
        assert_eq!(parse::<DomainPattern>("\"*.Example.ORG\"", None).unwrap().as_str(), "*.example.org");
        assert_eq!(parse::<DomainPattern>("\"Example.org.\"", None).unwrap().as_str(), "example.org");
        for bad in ["\"\"", "\"*\"", "\"*.\"", "\"a@b\"", "\"a b\"", "1"] {
            parse::<DomainPattern>(bad, None).unwrap_err();
        }
        round_trip(&DomainPattern("*.example.org".to_owned()));
    }

    #[test]
    fn servers_have_a_host_and_a_port() {
        for (text, host) in
            [("X.example:5269", "x.example"), ("[::1]:1", "::1"), ("192.0.2.1:9", "192.0.2.1")]
        {
            let server = parse::<ServerAddress>(&quote(text), None).unwrap();
            assert_eq!(server.host, host);
            round_trip(&server);
        }
        for bad in ["x", "x:", "x:0", "x:65536", "::1:5269", "[x]:1", "a@b:1", ":1"] {
            parse::<ServerAddress>(&quote(bad), None).unwrap_err();
        }
    }

    #[test]
    fn authorities_are_the_systems_or_a_file() {
        assert_eq!(parse::<Authorities>("\"system\"", None), Ok(Authorities::System));
        round_trip(&Authorities::File("ca.pem".into()));
        parse::<Authorities>("\"\"", None).unwrap_err();
    }

    #[test]
    fn entries_name_what_is_missing_unknown_or_alone() {
        let good =
            "{ domain = \"*.a.example\", require_tls = false, server = \"b.example:1\", direct_tls = true }";
        let peer = parse::<Peer>(good, None).unwrap();
        assert_eq!((peer.require_tls, peer.require_certificate, peer.direct_tls), (Some(false), None, true));
        round_trip(&peer);
        let messages = |text: &str| -> Vec<String> {
            parse::<Peer>(text, None).unwrap_err().into_iter().map(|fault| fault.message).collect()
        };
        assert_eq!(
            messages("{ domains = \"a.example\" }"),
            [
                "unknown key `domains`, expected domain, require_tls, require_certificate, server, direct_tls",
                "the entry has no `domain`, expected a table with domain, and any of require_tls, \
                 require_certificate, server and direct_tls",
            ]
        );
        assert_eq!(
            messages("{ domain = \"a.example\", direct_tls = true }"),
            ["found direct_tls without a server, expected both or neither"]
        );
        assert_eq!(messages("{ domain = \"a.example\", require_tls = 1 }").len(), 1);
    }
}

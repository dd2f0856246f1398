//! Which domains may be talked to, what is asked of them, and which addresses may be dialled for them.
//!
//! What must hold: everything here depends on the configuration alone, so that it can be asked for each
//! stanza; `deny` wins over `allow`; a domain served here is never another server's (SECURITY F9); of an
//! address that is not known to be one of the public Internet nothing is dialled (SECURITY M11).

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use waystation_core::prep;
use waystation_route::remote::{Forbidden, Pair};

use crate::settings::{DomainPolicy, Settings};

/// Ports below this one belong to other services than XMPP.
const SYSTEM_PORTS: u16 = 1024;
/// Direct TLS shares this one with the web (XEP-0368).
const HTTPS: u16 = 443;

/// Networks that are no part of the public Internet (IANA's registry of special-purpose addresses, RFC 6890).
const SPECIAL_V4: [Ipv4Net; 15] = [
    v4([0, 0, 0, 0], 8),     // this network, and the unspecified address, which is this machine
    v4([10, 0, 0, 0], 8),    // private
    v4([100, 64, 0, 0], 10), // behind a carrier's translation
    v4([127, 0, 0, 0], 8),   // this machine
    v4([169, 254, 0, 0], 16), // link-local, where clouds serve their instances' secrets
    v4([172, 16, 0, 0], 12), // private
    v4([192, 0, 0, 0], 24),  // of protocols
    v4([192, 0, 2, 0], 24),  // documentation
    v4([192, 88, 99, 0], 24), // relays of 6to4
    v4([192, 168, 0, 0], 16), // private
    v4([198, 18, 0, 0], 15), // benchmarks
    v4([198, 51, 100, 0], 24), // documentation
    v4([203, 0, 113, 0], 24), // documentation
    v4([224, 0, 0, 0], 4),   // multicast
    v4([240, 0, 0, 0], 4),   // reserved, and broadcast
];

/// Where public addresses are: whatever else there is, of links, sites and machines, lies outside.
const PUBLIC_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
/// What of it is special nevertheless.
const SPECIAL_V6: [Ipv6Net; 3] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // of protocols: Teredo, benchmarks, identifiers
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];
/// Addresses that stand for those of IPv4 in their last 32 bits: mapped ones and those of NAT64.
const TRANSLATED: [Ipv6Net; 2] =
    [v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96), v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96)];
/// Addresses of 6to4, which have those of IPv4 behind their first 16 bits.
const SIX_TO_FOUR: Ipv6Net = v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16);

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

/// The administrators' wishes, in a form that is quick to ask.
#[derive(Clone, Debug)]
pub struct Policy {
    hosts: HashSet<String>,
    allow: List,
    deny: List,
    /// The most special ones first.
    domains: Vec<(Pattern, DomainPolicy)>,
    require_tls: bool,
    require_certificate: bool,
    private_targets: bool,
}

/// A domain, or with `below` those below it: what that says of the domain itself is up to whoever asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    domain: String,
    below: bool,
}

impl Pattern {
    /// Reads `example.org` or `*.example.org`, prepared like domains of JIDs; what cannot be prepared, and
    /// hence never be a domain, matches nothing.
    fn new(text: &str) -> Self {
        let (domain, below) = match text.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let domain =
            prep::domain(domain).map_or_else(|_| domain.to_owned(), |prepared| prepared.into_owned());
        Self { domain, below }
    }

    fn is_above(&self, domain: &str) -> bool {
        domain.strip_suffix(self.domain.as_str()).is_some_and(|rest| rest.ends_with('.'))
    }
}

/// Domains, each with whether those below it are meant as well. Lists may be long, so that the domain is looked
/// for, and not each of them.
#[derive(Clone, Debug, Default)]
struct List(HashMap<String, bool>);

impl List {
    fn new(texts: &[String]) -> Self {
        let mut list = HashMap::with_capacity(texts.len());
        for Pattern { domain, below } in texts.iter().map(|text| Pattern::new(text)) {
            *list.entry(domain).or_default() |= below;
        }
        Self(list)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the domain is on the list, or is below one that is there with those below it.
    fn covers(&self, domain: &str) -> bool {
        let parents = domain.match_indices('.').map(|(dot, _)| &domain[dot + 1..]);
        self.0.contains_key(domain)
            || parents.map(|parent| self.0.get(parent)).any(|below| below == Some(&true))
    }
}

impl Policy {
    /// The policy of these settings.
    pub fn new(settings: &Settings) -> Self {
        let mut domains: Vec<_> =
            settings.domains.iter().map(|d| (Pattern::new(&d.domain), d.clone())).collect();
        domains.sort_by_key(|(pattern, _)| (pattern.below, std::cmp::Reverse(pattern.domain.len())));
        Self {
            hosts: settings.hosts.iter().map(|host| Pattern::new(host).domain).collect(),
            allow: List::new(&settings.allow),
            deny: List::new(&settings.deny),
            domains,
            require_tls: settings.require_tls,
            require_certificate: settings.require_certificate,
            private_targets: settings.private_targets,
        }
    }

    /// Whether the pair's remote domain may be talked to.
    ///
    /// # Errors
    /// [`Forbidden::NoServer`] for what cannot be another server's domain: one that is served here, an IP
    /// address and, unless private targets are allowed, a name without a dot. [`Forbidden::Policy`] for what
    /// the administrators have denied or not allowed.
    pub fn permits(&self, pair: &Pair) -> Result<(), Forbidden> {
        self.permits_domain(&pair.remote)
    }

    /// As [`Policy::permits`], whichever domain of ours it is for.
    ///
    /// # Errors
    /// As there.
    pub fn permits_domain(&self, domain: &str) -> Result<(), Forbidden> {
        if self.hosts.contains(domain) {
            return Err(Forbidden::NoServer);
        }
        if !self.private_targets && (is_address(domain) || !domain.contains('.')) {
            return Err(Forbidden::NoServer);
        }
        if self.deny.covers(domain) || !self.allow.is_empty() && !self.allow.covers(domain) {
            return Err(Forbidden::Policy);
        }
        Ok(())
    }

    /// Whether streams with the domain must be encrypted.
    pub fn requires_tls(&self, domain: &str) -> bool {
        self.of(domain).find_map(|d| d.require_tls).unwrap_or(self.require_tls)
    }

    /// Whether the domain must prove itself by a certificate that is valid.
    pub fn requires_certificate(&self, domain: &str) -> bool {
        self.of(domain).find_map(|d| d.require_certificate).unwrap_or(self.require_certificate)
    }

    /// Where the domain's server is when the administrators have said so: a name or an address, a port, and
    /// whether it speaks TLS from the first byte.
    pub fn server(&self, domain: &str) -> Option<(String, u16, bool)> {
        self.of(domain).find_map(|d| d.server.clone().map(|(host, port)| (host, port, d.direct_tls)))
    }

    /// Whether an address that DNS has given may be dialled: one of the public Internet, unless private
    /// targets are allowed.
    pub fn may_dial(&self, address: IpAddr) -> bool {
        self.private_targets || is_public(address)
    }

    /// Whether a port that DNS has given may be dialled. 0 is none; those below 1024 other than 443 belong to
    /// services that are not XMPP, and are for private targets only.
    pub(crate) fn may_dial_port(&self, port: u16) -> bool {
        port >= SYSTEM_PORTS || port == HTTPS || port != 0 && self.private_targets
    }

    /// What is said of the domain: what is said of it alone, then of the nearest domain above it.
    fn of(&self, domain: &str) -> impl Iterator<Item = &DomainPolicy> {
        let meant = move |pattern: &Pattern| match pattern.below {
            true => pattern.is_above(domain),
            false => pattern.domain == domain,
        };
        self.domains.iter().filter(move |(pattern, _)| meant(pattern)).map(|(_, policy)| policy)
    }
}

/// Whether a prepared domain is an IP address, however it is written. No name of DNS ends in a label of
/// digits (RFC 3696 2), and software that takes it for an address takes `127.1` and `0x7f.1` too.
fn is_address(domain: &str) -> bool {
    let last = domain.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    domain.starts_with('[') || hex || !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit())
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !SPECIAL_V4.iter().any(|net| net.contains(&address)),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [.., a, b, c, d] = address.octets();
    if TRANSLATED.iter().any(|net| net.contains(&address)) {
        return is_public(Ipv4Addr::new(a, b, c, d).into());
    }
    if SIX_TO_FOUR.contains(&address) {
        let [_, _, a, b, c, d, ..] = address.octets();
        return is_public(Ipv4Addr::new(a, b, c, d).into());
    }
    PUBLIC_V6.contains(&address) && !SPECIAL_V6.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(change: impl FnOnce(&mut Settings)) -> Policy {
        let mut settings = Settings { hosts: vec!["ours.example".to_owned()], ..Settings::default() };
        change(&mut settings);
        Policy::new(&settings)
    }

    fn permits(policy: &Policy, domain: &str) -> Result<(), Forbidden> {
        policy.permits(&Pair::new("ours.example", domain))
    }

    #[test]
    fn deny_wins_over_allow_and_both_reach_below() {
        let lists = policy(|s| {
            s.allow = vec!["*.Example.org".to_owned(), "one.test".to_owned()];
            s.deny = vec!["bad.example.org".to_owned(), "*.worse.example.org".to_owned()];
        });
        for domain in ["example.org", "a.example.org", "a.b.example.org", "one.test", "a.bad.example.org"] {
            assert_eq!(permits(&lists, domain), Ok(()), "{domain}");
        }
        for domain in ["two.test", "a.one.test", "notexample.org", "bad.example.org", "worse.example.org"] {
            assert_eq!(permits(&lists, domain), Err(Forbidden::Policy), "{domain}");
        }
        assert_eq!(permits(&lists, "a.worse.example.org"), Err(Forbidden::Policy));
        assert_eq!(permits(&policy(|_| ()), "anything.test"), Ok(()), "no list allows all");
        let unicode = policy(|s| s.deny = vec!["*.XN--BCHER-KVA.example".to_owned()]);
        assert_eq!(permits(&unicode, "a.bücher.example"), Err(Forbidden::Policy), "lists are prepared");
    }

    /// SECURITY F9.
    #[test]
    fn our_own_domains_addresses_and_bare_names_are_no_other_servers() {
        let closed = policy(|s| s.hosts.push("Alias.example".to_owned()));
        let literals = ["[::1]", "[2001:4860:4860::8888]", "127.0.0.1", "8.8.8.8", "127.1", "1", "0x7f.0x1"];
        for domain in literals.iter().chain(&["localhost", "ours.example", "alias.example"]) {
            assert_eq!(permits(&closed, domain), Err(Forbidden::NoServer), "{domain}");
        }
        let open = policy(|s| s.private_targets = true);
        for domain in ["[::1]", "127.0.0.1", "localhost"] {
            assert_eq!(permits(&open, domain), Ok(()), "{domain}");
        }
        assert_eq!(permits(&open, "ours.example"), Err(Forbidden::NoServer), "ours whatever is allowed");
    }

    #[test]
    fn the_nearest_word_about_a_domain_counts() {
        let said = |domain: &str, tls, certificate| DomainPolicy {
            domain: domain.to_owned(),
            require_tls: tls,
            require_certificate: certificate,
            server: None,
            direct_tls: false,
        };
        let policy = policy(|s| {
            s.domains = vec![
                said("*.example.org", Some(false), Some(true)),
                said("*.a.example.org", Some(true), None),
                DomainPolicy {
                    server: Some(("192.0.2.1".to_owned(), 5270)),
                    direct_tls: true,
                    ..said("b.example.org", None, Some(false))
                },
            ];
        });
        let asked = |domain: &str| (policy.requires_tls(domain), policy.requires_certificate(domain));
        assert_eq!(asked("other.test"), (true, false));
        assert_eq!(asked("example.org"), (true, false), "below it, not itself");
        assert_eq!(asked("c.example.org"), (false, true));
        assert_eq!(asked("c.a.example.org"), (true, true));
        assert_eq!(asked("b.example.org"), (false, false));
        assert_eq!(policy.server("b.example.org"), Some(("192.0.2.1".to_owned(), 5270, true)));
        assert_eq!(policy.server("c.example.org"), None);
    }

    /// SECURITY M11, the first and last addresses of each network and their neighbours.
    #[test]
    fn only_addresses_of_the_public_internet_are_dialled() {
        let closed = policy(|_| ());
        let open = policy(|s| s.private_targets = true);
        for refused in [
            "0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 127.0.0.1",
            "127.255.255.255 169.254.0.0 169.254.169.254 172.16.0.0 172.31.255.255 192.0.0.1 192.0.2.1",
            "192.88.99.1 192.168.0.0 192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1",
            "224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::7f00:1 ::8.8.8.8",
            "::ffff:127.0.0.1 ::ffff:10.1.2.3 ::ffff:169.254.169.254 ::ffff:0:8.8.8.8 64:ff9b::10.0.0.1",
            "64:ff9b:1::8.8.8.8 2002:7f00:1:: 2002:a00:1::5 2002:c0a8:101:: 2001::1 2001:db8::1 3fff::1",
            "100::1 fc00::1 fdff::1 fe80::1 febf::1 fec0::1 feff::1 ff02::1 ff0e::1 5f00::1 1fff::1 4000::1",
        ]
        .iter()
        .flat_map(|line| line.split(' '))
        {
            let address = refused.parse().unwrap();
            assert!(!closed.may_dial(address), "{refused}");
            assert!(open.may_dial(address), "{refused}");
        }
        for public in [
            "1.0.0.0 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 169.253.0.1",
            "169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0 198.17.255.255",
            "198.20.0.0 223.255.255.255 2001:200::1 2001:4860:4860::8888 2a00:1450::1 2003::1 3ffe:ffff::1",
            "::ffff:8.8.8.8 64:ff9b::8.8.8.8 2002:808:808::1",
        ]
        .iter()
        .flat_map(|line| line.split(' '))
        {
            assert!(closed.may_dial(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn ports_of_other_services_are_not_dialled() {
        let closed = policy(|_| ());
        let open = policy(|s| s.private_targets = true);
        for (port, publicly, privately) in [
            (0, false, false),
            (25, false, true),
            (80, false, true),
            (1023, false, true),
            (443, true, true),
            (1024, true, true),
            (5269, true, true),
        ] {
            assert_eq!(
                (closed.may_dial_port(port), open.may_dial_port(port)),
                (publicly, privately),
                "{port}"
            );
        }
    }
}

//! Who sent a request, and how it came here.
//!
//! What must hold: headers of proxies count only when the connection comes from a trusted one; of the
//! addresses in `X-Forwarded-For` the right-most that is no trusted proxy's is the client's, since what is left
//! of it is the client's own claim; an authority is made of letters, digits and few signs, so
//! that it can be written into headers and documents.

use std::net::{IpAddr, SocketAddr};

use actix_http::RequestHead;
use actix_web::http::header::{self, HeaderMap, HeaderName};
use waystation_transport::IpNet;

use crate::service::ClientInfo;
use crate::settings::{PlainLogin, Settings};

/// Headers by which a proxy gives itself away.
const PROXY_HEADERS: [&str; 6] =
    ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "via"];
/// Addresses in `X-Forwarded-For` that are looked at, from the right.
const MAX_HOPS: usize = 16;
/// The longest host name (RFC 1035 2.3.4), with room for brackets and a port.
const MAX_AUTHORITY: usize = 263;

/// The ends of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) peer: SocketAddr,
    pub(crate) local: SocketAddr,
    pub(crate) tls: bool,
}

/// A request without a usable authority.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadAuthority;

/// Puts together what is known of the client. `serves` tells which hosts are ours.
pub(crate) fn client_info(
    settings: &Settings,
    serves: &dyn Fn(&str) -> bool,
    ends: Ends,
    head: &RequestHead,
) -> Result<ClientInfo, BadAuthority> {
    let trusted = |address: IpAddr| is_in(&settings.trusted_proxies, address);
    let through_proxy = trusted(ends.peer.ip());
    let said = |name: &str| if through_proxy { last(&head.headers, name) } else { None };
    let authority = match said("x-forwarded-host") {
        Some(host) => Authority::parse(host)?,
        None => authority(head, ends.local)?,
    };
    let encrypted = match said("x-forwarded-proto") {
        Some(scheme) => scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("wss"),
        None => ends.tls,
    };
    let peer = match through_proxy {
        true => SocketAddr::new(forwarded_for(&head.headers, ends.peer.ip(), &trusted), 0),
        false => ends.peer,
    };
    let secure = encrypted
        || match settings.plain_login {
            PlainLogin::Always => true,
            PlainLogin::Never => false,
            PlainLogin::Loopback => {
                is_loopback(ends.peer.ip())
                    && is_loopback(ends.local.ip())
                    && !PROXY_HEADERS.iter().any(|name| head.headers.contains_key(*name))
                    && (authority.is_local() || serves(&authority.host))
            }
        };
    let scheme = if encrypted { "https" } else { "http" };
    Ok(ClientInfo { peer, secure, base: format!("{scheme}://{}", authority.text()) })
}

fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The elements of a header that is a list, from the right.
fn elements<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let values: Vec<&str> = HeaderName::try_from(name)
        .map(|name| headers.get_all(name).map(|value| value.to_str().unwrap_or("")).collect())
        .unwrap_or_default();
    values.into_iter().rev().flat_map(|value| value.rsplit(',')).map(str::trim)
}

/// What the nearest proxy wrote: the last element.
fn last<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    elements(headers, name).next()
}

/// The client's address behind a trusted proxy. What cannot be read ends the search: the proxy that is
/// known stands for it.
fn forwarded_for(headers: &HeaderMap, proxy: IpAddr, trusted: &dyn Fn(IpAddr) -> bool) -> IpAddr {
    let mut nearest = proxy;
    for element in elements(headers, "x-forwarded-for").take(MAX_HOPS) {
        let Some(address) = address(element) else { return nearest };
        nearest = address;
        if !trusted(address) {
            return address;
        }
    }
    nearest
}

/// An address as proxies write it, with a port or without.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let parsed = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|both| both.ip()));
    parsed.map(|address: IpAddr| address.to_canonical())
}

/// A host with a port, if it was given.
struct Authority {
    /// Lower-case, an IPv6 address without brackets.
    host: String,
    port: Option<u16>,
}

impl Authority {
    /// RFC 3986 3.2.2, without user information and without percent-encoding.
    fn parse(text: &str) -> Result<Self, BadAuthority> {
        if text.is_empty() || text.len() > MAX_AUTHORITY {
            return Err(BadAuthority);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or(BadAuthority)?;
                host.parse::<std::net::Ipv6Addr>().map_err(|_| BadAuthority)?;
                (host, port)
            }
            None => {
                let (host, port) = text.split_at(text.find(':').unwrap_or(text.len()));
                let name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
                if host.is_empty() || !host.bytes().all(name) {
                    return Err(BadAuthority);
                }
                (host, port)
            }
        };
        let port = match port.strip_prefix(':') {
            None if port.is_empty() => None,
            Some("") => None,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| BadAuthority)?)
            }
            _ => return Err(BadAuthority),
        };
        Ok(Self { host: host.to_ascii_lowercase(), port })
    }

    fn text(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match self.port {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }

    /// True for names of this machine (RFC 6761 6.3) and its own addresses.
    fn is_local(&self) -> bool {
        let name = self.host.trim_end_matches('.');
        name == "localhost"
            || name.ends_with(".localhost")
            || self.host.parse::<IpAddr>().is_ok_and(is_loopback)
    }
}

/// The authority that a client asked for: RFC 9112 3.2.2 prefers that of the request line. HTTP/1.0 may
/// go without.
fn authority(head: &RequestHead, local: SocketAddr) -> Result<Authority, BadAuthority> {
    if let Some(authority) = head.uri.authority() {
        return Authority::parse(authority.as_str());
    }
    match head.headers.get(header::HOST) {
        Some(host) => Authority::parse(host.to_str().map_err(|_| BadAuthority)?.trim()),
        None => Ok(Authority { host: local.ip().to_string(), port: Some(local.port()) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&'static str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in headers {
            head.headers.append(HeaderName::from_static(name), value.parse().unwrap());
        }
        head
    }

    fn ends(peer: &str, local: &str, tls: bool) -> Ends {
        Ends { peer: peer.parse().unwrap(), local: local.parse().unwrap(), tls }
    }

    fn info(settings: &Settings, ends: Ends, headers: &[(&'static str, &str)]) -> ClientInfo {
        client_info(settings, &|host| host == "served.example", ends, &head(headers)).unwrap()
    }

    #[test]
    fn m15_authorities_are_checked() {
        for good in ["a", "A.example:5280", "127.0.0.1", "[::1]:80", "[::1]", "a:", "a_b.c-d"] {
            assert!(Authority::parse(good).is_ok(), "{good}");
        }
        let long = "a".repeat(300);
        for bad in [
            "", ":80", "a b", "a/b", "a@b", "a:b", "a:80:80", "a:65536", "a:-1", "a:+1", "[::1", "[x]:1",
            "::1", "a\"b", "<a>", "[::1]80", "a%20", "a\u{7f}", &long,
        ] {
            assert!(Authority::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(Authority::parse("EXAMPLE.org:5280").unwrap().text(), "example.org:5280");
        assert_eq!(Authority::parse("[2001:DB8::1]").unwrap().text(), "[2001:db8::1]");
    }

    #[test]
    fn what_an_untrusted_peer_says_is_not_believed() {
        let settings = Settings::default();
        let public = ends("192.0.2.7:4000", "198.51.100.1:5280", false);
        let found = info(
            &settings,
            public,
            &[
                ("host", "a.example"),
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil.example"),
            ],
        );
        let peer = "192.0.2.7:4000".parse().unwrap();
        assert_eq!(found, ClientInfo { peer, secure: false, base: "http://a.example".into() });
    }

    #[test]
    fn a_trusted_proxy_is_believed_up_to_the_first_address_that_is_not() {
        let settings = Settings {
            trusted_proxies: vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()],
            ..Settings::default()
        };
        let proxied = ends("10.0.0.1:4000", "10.0.0.2:5280", false);
        let client = |list: &str| {
            info(&settings, proxied, &[("host", "a"), ("x-forwarded-for", list)]).peer.to_string()
        };
        assert_eq!(client("192.0.2.7"), "192.0.2.7:0");
        assert_eq!(client("203.0.113.1, 192.0.2.7, 10.9.9.9"), "192.0.2.7:0");
        assert_eq!(client("127.0.0.1, 192.0.2.7:4711"), "192.0.2.7:0");
        assert_eq!(client("[2001:db8::1]:4711"), "[2001:db8::1]:0");
        assert_eq!(client("::ffff:192.0.2.9"), "192.0.2.9:0");
        assert_eq!(client("192.0.2.7, unknown, 10.9.9.9"), "10.9.9.9:0");
        assert_eq!(client(""), "10.0.0.1:0");
        let twice = &[("host", "a"), ("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "192.0.2.2")];
        assert_eq!(info(&settings, proxied, twice).peer.to_string(), "192.0.2.2:0");

        let found = info(
            &settings,
            proxied,
            &[
                ("host", "inside:5280"),
                ("x-forwarded-host", "chat.example"),
                ("x-forwarded-proto", "http, https"),
            ],
        );
        assert!(found.secure);
        assert_eq!(found.base, "https://chat.example");
        // It says that the client came without encryption, and it knows.
        let tls = Ends { tls: true, ..proxied };
        assert!(!info(&settings, tls, &[("host", "a"), ("x-forwarded-proto", "http")]).secure);
    }

    #[test]
    fn plain_http_is_secure_on_loopback_only() {
        let settings = Settings::default();
        let own = ends("127.0.0.1:4000", "127.0.0.1:5280", false);
        let secure = |ends, headers: &[(&'static str, &str)]| info(&settings, ends, headers).secure;
        for host in ["localhost:5280", "127.0.0.1:5280", "[::1]:5280", "chat.localhost", "served.example"] {
            assert!(secure(own, &[("host", host)]), "{host}");
        }
        // A name that a page elsewhere made point to this machine.
        assert!(!secure(own, &[("host", "rebound.example")]));
        for header in PROXY_HEADERS {
            assert!(!secure(own, &[("host", "localhost"), (header, "x")]), "{header}");
        }
        assert!(!secure(ends("192.0.2.7:1", "127.0.0.1:5280", false), &[("host", "localhost")]));
        assert!(!secure(ends("127.0.0.1:1", "192.0.2.7:5280", false), &[("host", "localhost")]));
        assert!(secure(ends("192.0.2.7:1", "192.0.2.8:5281", true), &[("host", "any.example")]));

        let never = Settings { plain_login: PlainLogin::Never, ..Settings::default() };
        assert!(!info(&never, own, &[("host", "localhost")]).secure);
        let always = Settings { plain_login: PlainLogin::Always, ..Settings::default() };
        assert!(info(&always, ends("192.0.2.7:1", "192.0.2.8:2", false), &[("host", "a")]).secure);
    }

    #[test]
    fn the_request_line_prevails_over_the_host_header() {
        let mut asked = head(&[("host", "other.example")]);
        asked.uri = "http://served.example:80/x".parse().unwrap();
        let own = ends("127.0.0.1:4000", "127.0.0.1:5280", false);
        let found = client_info(&Settings::default(), &|_| false, own, &asked).unwrap();
        assert_eq!(found.base, "http://served.example:80");
        let none = client_info(&Settings::default(), &|_| false, own, &head(&[])).unwrap();
        assert_eq!(none.base, "http://127.0.0.1:5280");
    }
}

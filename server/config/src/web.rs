//! Kinds of values of the HTTP services: networks, origins, addresses of this server.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::kinds::{Named, choice};
use crate::value::{Bounds, Leaf, Value, quote};

/// A network of IP addresses; a single address is one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(pub IpNet);

impl Leaf for Network {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a network such as \"192.0.2.0/24\", or an IP address".to_owned()
    }

    fn plural() -> &'static str {
        "networks such as \"192.0.2.0/24\""
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let text = value.get_ref().as_str()?;
        let network = text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
        network.map(|network: IpNet| Self(network.trunc()))
    }

    fn toml(&self) -> String {
        quote(&self.0.to_string())
    }

    fn help() -> Option<&'static str> {
        Some("one address is \"192.0.2.1\", a network \"192.0.2.0/24\" or \"2001:db8::/32\"")
    }
}

/// An origin of web pages as browsers send it (RFC 6454 section 6.2), or `*` for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebOrigin(String);

impl WebOrigin {
    /// All origins.
    pub(crate) fn any() -> Self {
        Self("*".to_owned())
    }

    /// The origin.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Leaf for WebOrigin {
    fn expected(_: Bounds<'_, Self>) -> String {
        "an origin such as \"https://example.org\", or \"*\"".to_owned()
    }

    fn plural() -> &'static str {
        "origins such as \"https://example.org\""
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let text = value.get_ref().as_str()?;
        (text == "*" || is_base(text, |_| true)).then(|| Self(text.to_ascii_lowercase()))
    }

    fn toml(&self) -> String {
        quote(&self.0)
    }

    fn help() -> Option<&'static str> {
        Some("an origin has no path and no slash at its end, and a port only where it is not the usual one")
    }
}

/// By which scheme and authority clients reach the HTTP services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExternalUrl {
    /// That which the client used.
    Auto,
    /// This one.
    Fixed(String),
}

impl Leaf for ExternalUrl {
    fn expected(_: Bounds<'_, Self>) -> String {
        "\"auto\" or the start of a URL such as \"https://chat.example.org\"".to_owned()
    }

    fn plural() -> &'static str {
        "URLs such as \"https://chat.example.org\""
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        let text = value.get_ref().as_str()?;
        match text {
            "auto" => Some(Self::Auto),
            _ => is_base(text, |scheme| matches!(scheme, "http" | "https"))
                .then(|| Self::Fixed(text.to_ascii_lowercase())),
        }
    }

    fn toml(&self) -> String {
        match self {
            Self::Auto => quote("auto"),
            Self::Fixed(url) => quote(url),
        }
    }

    fn help() -> Option<&'static str> {
        Some("scheme, host and port only, without a slash at the end")
    }
}

/// True for a scheme and an authority without anything behind.
fn is_base(text: &str, wanted: impl Fn(&str) -> bool) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    let authority_ok = !authority.is_empty()
        && authority
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b':' | b'[' | b']'));
    scheme_ok && authority_ok && text.len() <= 1024 && wanted(&scheme.to_ascii_lowercase())
}

/// When clients may log in over HTTP without encryption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlainLogin {
    /// From this machine.
    Loopback,
    /// Never.
    Never,
    /// Always.
    Always,
}

choice!(PlainLogin, "policies", {
    Self::Loopback => "loopback", Self::Never => "never", Self::Always => "always"
});

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::{parse, round_trip};

    #[test]
    fn networks_are_addresses_with_a_length() {
        for (text, network) in [
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("::1", "::1/128"),
            ("192.0.2.1", "192.0.2.1/32"),
            ("::/0", "::/0"),
        ] {
            let read = parse::<Network>(&quote(text), None).unwrap();
            assert_eq!(read.0.to_string(), network);
            round_trip(&read);
        }
        for bad in ["localhost", "10.0.0.0/33", "10/8", "10.0.0.0/", ""] {
            assert!(parse::<Network>(&quote(bad), None).unwrap_err()[0].help.is_some(), "{bad}");
        }
    }

    #[test]
    fn origins_and_addresses_have_no_path() {
        for good in
            ["*", "https://Example.org", "http://localhost:8080", "moz-extension://1a-2b", "http://[::1]:1"]
        {
            round_trip(&parse::<WebOrigin>(&quote(good), None).unwrap());
        }
        for bad in [
            "example.org",
            "https://example.org/",
            "https://",
            "://x",
            "https://ü",
            "https://a b",
            "https://*",
        ] {
            parse::<WebOrigin>(&quote(bad), None).unwrap_err();
            parse::<ExternalUrl>(&quote(bad), None).unwrap_err();
        }
        round_trip(&ExternalUrl::Auto);
        round_trip(&parse::<ExternalUrl>("\"https://chat.example:444\"", None).unwrap());
        parse::<ExternalUrl>("\"wss://chat.example\"", None).unwrap_err();
        round_trip(&PlainLogin::Loopback);
    }
}

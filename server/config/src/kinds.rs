//! Kinds of values that the server knows: hosts, accounts, addresses, certificates, named choices.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;

use toml::de::DeTable;
use waystation_core::Jid;
use waystation_core::storage::Durability;

use crate::suggest;
use crate::units::Size;
use crate::value::{Bounds, Fault, Leaf, Value, quote};

/// A domain that this server serves, prepared (RFC 7622 3.2).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host(Jid);

/// The bare JID of an account.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account(Jid);

macro_rules! jid_kind {
    ($name:ident, $expected:literal, $plural:literal, $accept:expr) => {
        impl $name {
            /// The address, when it is one of this kind.
            pub fn parse(text: &str) -> Option<Self> {
                Jid::parse(text).ok().filter($accept).map(Self)
            }
        }
        impl Deref for $name {
            type Target = Jid;
            fn deref(&self) -> &Jid {
                &self.0
            }
        }
        impl Leaf for $name {
            fn expected(_: Bounds<'_, Self>) -> String {
                $expected.to_owned()
            }
            fn plural() -> &'static str {
                $plural
            }
            fn read(value: &Value<'_>) -> Option<Self> {
                value.get_ref().as_str().and_then(Self::parse)
            }
            fn toml(&self) -> String {
                quote(self.0.as_str())
            }
        }
    };
}

jid_kind!(Host, "a domain such as \"example.org\"", "domains such as \"example.org\"", |jid: &Jid| jid
    .local()
    .is_none()
    && jid.is_bare());
jid_kind!(
    Account,
    "a bare JID such as \"admin@example.org\"",
    "bare JIDs such as \"admin@example.org\"",
    |jid: &Jid| jid.local().is_some() && jid.is_bare()
);

impl Leaf for SocketAddr {
    fn expected(_: Bounds<'_, Self>) -> String {
        "an IP address with a port".to_owned()
    }

    fn plural() -> &'static str {
        "addresses such as \"127.0.0.1:5222\""
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        value.get_ref().as_str()?.parse().ok()
    }

    fn toml(&self) -> String {
        quote(&self.to_string())
    }

    fn help() -> Option<&'static str> {
        Some(
            "one address is \"192.0.2.1:5222\" or \"[2001:db8::1]:5222\", all are \"0.0.0.0:5222\" or \"[::]:5222\"",
        )
    }
}

/// The address of people, as a URI (XEP-0157): `xmpp:`, `mailto:`, `https:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContactUri(String);

impl ContactUri {
    /// The URI.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Leaf for ContactUri {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a URI such as \"mailto:abuse@example.org\"".to_owned()
    }

    fn plural() -> &'static str {
        "URIs such as \"mailto:abuse@example.org\""
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        // RFC 3986 3.1: a scheme; the rest must be visible ASCII (2: other characters are encoded).
        let text = value.get_ref().as_str()?;
        let (scheme, rest) = text.split_once(':')?;
        let scheme_ok = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'));
        let rest_ok = !rest.is_empty()
            && rest.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'<' | b'>' | b'\\' | b'`'));
        (scheme_ok && rest_ok && text.len() <= 1024).then(|| Self(text.to_owned()))
    }

    fn toml(&self) -> String {
        quote(&self.0)
    }
}

/// A kind with a fixed set of names.
macro_rules! choice {
    ($name:ident, $plural:literal, { $($variant:path => $text:literal),* $(,)? }) => {
        impl Leaf for $name {
            fn expected(_: Bounds<'_, Self>) -> String {
                let names = [$(concat!("\"", $text, "\"")),*];
                let (last, others) = names.split_last().unwrap_or((&"", &[]));
                format!("{} or {last}", others.join(", "))
            }
            fn plural() -> &'static str {
                $plural
            }
            fn read(value: &Value<'_>) -> Option<Self> {
                match value.get_ref().as_str()? {
                    $($text => Some($variant),)*
                    _ => None,
                }
            }
            fn toml(&self) -> String {
                quote(self.as_name())
            }
        }
        impl Named for $name {
            fn as_name(&self) -> &'static str {
                match self { $($variant => $text),* }
            }
        }
    };
}

pub(crate) use choice;

/// A value with a name, as it is written in the configuration.
pub trait Named {
    /// The name.
    fn as_name(&self) -> &'static str;
}

/// The storage engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// fjall, the default.
    Fjall,
    /// sled 0.34.
    Sled,
    /// Memory: everything is gone when the server ends.
    Memory,
}

/// What is archived for accounts that have set no preferences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchivePolicy {
    /// Everything.
    Always,
    /// Nothing.
    Never,
    /// What is exchanged with contacts in the roster.
    Roster,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Which events are logged: those of this level and the more severe ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Nothing.
    Off,
    /// What failed and needs someone.
    Error,
    /// What is wrong but was coped with.
    Warn,
    /// What the server does: starts, stops, sessions.
    Info,
    /// How it does it.
    Debug,
    /// Each step.
    Trace,
}

/// A SASL mechanism (RFC 4616, RFC 5802, RFC 7677).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// SCRAM-SHA-256 bound to the TLS channel.
    ScramSha256Plus,
    /// SCRAM-SHA-1 bound to the TLS channel.
    ScramSha1Plus,
    /// SCRAM-SHA-256.
    ScramSha256,
    /// SCRAM-SHA-1.
    ScramSha1,
    /// PLAIN, offered with TLS only.
    Plain,
}

choice!(ArchivePolicy, "policies", {
    Self::Always => "always", Self::Never => "never", Self::Roster => "roster"
});
choice!(Engine, "engines", { Self::Fjall => "fjall", Self::Sled => "sled", Self::Memory => "memory" });
choice!(LogFormat, "formats", { Self::Text => "text", Self::Json => "json" });
choice!(Level, "levels", {
    Self::Off => "off",
    Self::Error => "error",
    Self::Warn => "warn",
    Self::Info => "info",
    Self::Debug => "debug",
    Self::Trace => "trace",
});
choice!(Mechanism, "SASL mechanisms such as \"SCRAM-SHA-256\"", {
    Self::ScramSha256Plus => "SCRAM-SHA-256-PLUS",
    Self::ScramSha1Plus => "SCRAM-SHA-1-PLUS",
    Self::ScramSha256 => "SCRAM-SHA-256",
    Self::ScramSha1 => "SCRAM-SHA-1",
    Self::Plain => "PLAIN",
});
choice!(Durability, "durabilities", {
    Self::Fsync => "fsync",
    Self::Os => "os",
    Self::Memory => "memory",
});

/// How much of the disk must stay free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinFree {
    /// 5 % of the device, at most 512 MiB.
    Auto,
    /// So much.
    Fixed(Size),
}

impl Leaf for MinFree {
    fn expected(_: Bounds<'_, Self>) -> String {
        "\"auto\" or a size".to_owned()
    }

    fn plural() -> &'static str {
        "sizes"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        match value.get_ref().as_str() {
            Some("auto") => Some(Self::Auto),
            _ => Size::read(value).map(Self::Fixed),
        }
    }

    fn toml(&self) -> String {
        match self {
            Self::Auto => quote("auto"),
            Self::Fixed(size) => size.toml(),
        }
    }

    fn help() -> Option<&'static str> {
        Size::help()
    }
}

/// A level for single parts of the server: the longest name that an event's target begins with counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogModules(pub BTreeMap<String, Level>);

impl LogModules {
    fn is_target(name: &str) -> bool {
        !name.is_empty()
            && name
                .split("::")
                .all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
    }
}

impl Leaf for LogModules {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a table of levels such as { waystation_c2s = \"debug\" }".to_owned()
    }

    fn plural() -> &'static str {
        "tables of levels"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        Self::parse(value, None, &mut Vec::new())
    }

    fn parse(value: &Value<'_>, bounds: Bounds<'_, Self>, faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            faults.push(Fault::unexpected(value, &Self::expected(bounds), None));
            return None;
        };
        let before = faults.len();
        let mut levels = BTreeMap::new();
        for (name, level) in table {
            if !Self::is_target(name.get_ref()) {
                faults.push(Fault {
                    span: name.span(),
                    message: format!(
                        "found `{}`, expected the name of a part of the server as log lines show it, \
                                      such as waystation_c2s or \"waystation_c2s::session\"",
                        name.get_ref()
                    ),
                    help: None,
                });
            }
            if let Some(level) = Level::parse(level, None, faults) {
                levels.insert(name.get_ref().clone().into_owned(), level);
            }
        }
        (faults.len() == before).then_some(Self(levels))
    }

    fn toml(&self) -> String {
        let entries: Vec<String> =
            self.0.iter().map(|(name, level)| format!("{} = {}", quote(name), level.toml())).collect();
        if entries.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", entries.join(", ")) }
    }

    /// Levels of single names are added to those of earlier sources.
    fn over(self, mut earlier: Self) -> Self {
        earlier.0.extend(self.0);
        earlier
    }
}

/// A fault for each key of a table that has none of the names `known`, which are `listed` for the reader.
pub(crate) fn unknown_keys(table: &DeTable<'_>, known: &'static [&'static str], listed: &str) -> Vec<Fault> {
    let unknown = table.keys().filter(|name| !known.contains(&&**name.get_ref()));
    unknown
        .map(|name| {
            let help = suggest::nearest(name.get_ref(), known.iter().copied())
                .map(|known| format!("did you mean `{known}`?"));
            let message = format!("unknown key `{}`, expected {listed}", name.get_ref());
            Fault { span: name.span(), message, help }
        })
        .collect()
}

/// The certificate of some hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The hosts that it is shown for.
    pub hosts: Vec<Host>,
    /// A PEM file: the certificate, then the ones that signed it.
    pub chain: PathBuf,
    /// A PEM file: the private key.
    pub key: PathBuf,
}

impl Certificate {
    const KEYS: [&str; 3] = ["hosts", "chain", "key"];
}

impl Leaf for Certificate {
    fn expected(_: Bounds<'_, Self>) -> String {
        "a table with hosts, chain and key".to_owned()
    }

    fn plural() -> &'static str {
        "tables with hosts, chain and key"
    }

    fn read(value: &Value<'_>) -> Option<Self> {
        Self::parse(value, None, &mut Vec::new())
    }

    fn parse(value: &Value<'_>, bounds: Bounds<'_, Self>, faults: &mut Vec<Fault>) -> Option<Self> {
        let Some(table) = value.get_ref().as_table() else {
            faults.push(Fault::unexpected(value, &Self::expected(bounds), None));
            return None;
        };
        faults.extend(unknown_keys(table, &Self::KEYS, "hosts, chain and key"));
        let mut member = |name: &str| {
            let found = table.iter().find(|(key, _)| key.get_ref() == name).map(|(_, value)| value);
            if found.is_none() {
                faults.push(Fault {
                    span: value.span(),
                    message: format!("the certificate has no `{name}`, expected {}", Self::expected(None)),
                    help: None,
                });
            }
            found
        };
        let (hosts, chain, key) = (member("hosts"), member("chain"), member("key"));
        let hosts = hosts.and_then(|v| Vec::parse(v, None, faults));
        let chain = chain.and_then(|v| PathBuf::parse(v, None, faults));
        let key = key.and_then(|v| PathBuf::parse(v, None, faults));
        Some(Self { hosts: hosts?, chain: chain?, key: key? })
    }

    fn toml(&self) -> String {
        format!(
            "{{ hosts = {}, chain = {}, key = {} }}",
            self.hosts.toml(),
            self.chain.toml(),
            self.key.toml()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::tests::{message, parse, round_trip};

    #[test]
    fn hosts_and_accounts_are_prepared() {
        assert_eq!(parse::<Host>("\"LocalHost.\"", None).unwrap().as_str(), "localhost");
        assert_eq!(parse::<Host>("\"xn--bcher-kva.example\"", None).unwrap().as_str(), "bücher.example");
        assert_eq!(parse::<Account>("\"Ann@Example.org\"", None).unwrap().as_str(), "ann@example.org");
        for bad in ["\"\"", "\"a@b\"", "\"a b\"", "\"a/b\"", "1"] {
            parse::<Host>(bad, None).unwrap_err();
        }
        for bad in ["\"b\"", "\"a@b/c\"", "\"@b\"", "\"a@\""] {
            parse::<Account>(bad, None).unwrap_err();
        }
    }

    #[test]
    fn addresses_have_an_ip_address_and_a_port() {
        for good in ["127.0.0.1:0", "[::1]:5222", "0.0.0.0:65535"] {
            parse::<SocketAddr>(&quote(good), None).unwrap();
        }
        for bad in ["localhost:5222", "127.0.0.1", "*:5222", ":5222", "::1:5222", "127.0.0.1:65536"] {
            assert!(parse::<SocketAddr>(&quote(bad), None).unwrap_err()[0].help.is_some(), "{bad}");
        }
    }

    #[test]
    fn contacts_are_uris() {
        for good in ["mailto:a@b.example", "xmpp:a@b", "https://b.example/x?y=%20", "tel:+1"] {
            parse::<ContactUri>(&quote(good), None).unwrap();
        }
        for bad in ["a@b.example", "mailto:", ":x", "mailto:a b", "1x:y", "https://ü.example", "x:<y>"] {
            parse::<ContactUri>(&quote(bad), None).unwrap_err();
        }
    }

    #[test]
    fn choices_list_their_names() {
        assert_eq!(
            message::<Engine>("\"rocksdb\"", None),
            "found the string \"rocksdb\", expected \"fjall\", \"sled\" or \"memory\""
        );
        assert_eq!(
            message::<LogFormat>("\"JSON\"", None),
            "found the string \"JSON\", expected \"text\" or \"json\""
        );
        assert_eq!(parse::<Mechanism>("\"SCRAM-SHA-256-PLUS\"", None), Ok(Mechanism::ScramSha256Plus));
    }

    #[test]
    fn levels_of_several_sources_are_joined() {
        let first = parse::<LogModules>("{ a = \"info\", \"b::c\" = \"off\" }", None).unwrap();
        let second = parse::<LogModules>("{ a = \"trace\" }", None).unwrap();
        let both = second.over(first);
        assert_eq!(both.0, [("a".into(), Level::Trace), ("b::c".into(), Level::Off)].into());
        round_trip(&both);
        assert_eq!(parse::<LogModules>("{ \"\" = \"info\", \"x-y\" = 1 }", None).unwrap_err().len(), 3);
    }

    #[test]
    fn certificates_name_what_is_missing_and_what_is_unknown() {
        let good = "{ hosts = [\"a.example\"], chain = \"c.pem\", key = \"k.pem\" }";
        let certificate = parse::<Certificate>(good, None).unwrap();
        round_trip(&certificate);
        let faults = parse::<Certificate>("{ host = [\"a\"], chain = 1 }", None).unwrap_err();
        let messages: Vec<&str> = faults.iter().map(|f| f.message.as_str()).collect();
        assert_eq!(
            messages,
            [
                "unknown key `host`, expected hosts, chain and key",
                "the certificate has no `hosts`, expected a table with hosts, chain and key",
                "the certificate has no `key`, expected a table with hosts, chain and key",
                "found the number 1, expected a path, as a string",
            ]
        );
        assert_eq!(faults[0].help.as_deref(), Some("did you mean `hosts`?"));
    }

    #[test]
    fn kinds_are_written_as_they_are_read() {
        round_trip(&Host::parse("bücher.example").unwrap());
        round_trip(&Durability::Fsync);
        round_trip(&MinFree::Auto);
        round_trip(&MinFree::Fixed(Size::mib(3)));
        round_trip(&Level::Warn);
        round_trip(&"[::1]:5222".parse::<SocketAddr>().unwrap());
    }
}

//! Every key: its name, kind, default, bounds and text. The only place where a key is declared.
//!
//! What must hold: the defaults are a working server on localhost; keys stand before sections in
//! [`Config`], as TOML wants it; `config/waystation.toml` is this file as people read it.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use waystation_core::storage::Durability;

use crate::federation::{Authorities, DomainPattern, Peer};
use crate::kinds::{
    Account, ArchivePolicy, Certificate, ContactUri, Engine, Host, Level, LogFormat, LogModules, Mechanism,
    MinFree,
};
use crate::node::{Item, ItemKind, Node, section};
use crate::suggest;
use crate::units::Size;
use crate::web::{ExternalUrl, Network, PlainLogin, WebOrigin};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn hours(n: u64) -> Duration {
    secs(n * 3600)
}

fn loopback(port: u16) -> Vec<SocketAddr> {
    vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port))]
}

section! {
    /// The whole configuration.
    pub struct Config {
        /// Folder of everything that the server keeps: accounts, rosters, messages, the development
        /// certificate, the admin socket. It is made on the first start, and one server at a time
        /// uses it. Here and everywhere, a relative path starts at the folder in which the server
        /// is started.
        data_dir: PathBuf = PathBuf::from("data");
        /// The domains that are served: the part of an address after the @.
        hosts: Vec<Host> = Host::parse("localhost").into_iter().collect();
        /// Accounts of these hosts that administer the server.
        admins: Vec<Account> = Vec::new();
        /// What data survives once the server has confirmed it. "fsync": power loss. "os": a crash
        /// of the server, but not of the machine. "memory": nothing. Where this key is not set, an
        /// engine that promises less (see storage.engine) lowers it to what it can keep.
        durability: Durability = Durability::Fsync;
        /// Threads that serve sessions; 0 is one for each processor core.
        threads: u32 = 0, 0 => 1024;

        /// Where clients and servers connect: lists of IP addresses with ports; an empty list
        /// switches a listener off, and port 0 takes any free port.
        listen: Listen = Listen::default();
        /// How data is kept.
        storage: Storage = Storage::default();
        /// Encryption. Until a host has a certificate here, it uses one that the server makes
        /// itself in data_dir, which no client trusts without being told to.
        tls: Tls = Tls::default();
        /// How clients prove who they are.
        sasl: Sasl = Sasl::default();
        /// What a single client may cost.
        limits: Limits = Limits::default();
        /// The messages of each account, kept for its clients to read again (XEP-0313).
        archive: Archive = Archive::default();
        /// Registration by clients (XEP-0077).
        registration: Registration = Registration::default();
        /// Other domains: which this server talks to, how it knows them, and what waits for them.
        federation: Federation = Federation::default();
        /// HTTP services, for clients in browsers.
        web: Web = Web::default();
        /// Addresses of the people who run the server, shown to other servers and to clients
        /// (XEP-0157), as URIs: "mailto:abuse@example.org", "xmpp:admin@example.org".
        contact: Contact = Contact::default();
        /// What the server says of itself (XEP-0092).
        info: Info = Info::default();
        /// What is logged, to standard error.
        log: Log = Log::default();
        /// How the server ends.
        shutdown: Shutdown = Shutdown::default();
    }
}

section! {
    /// Where clients and servers connect.
    pub struct Listen {
        /// Clients, with STARTTLS.
        c2s: Vec<SocketAddr> = loopback(5222);
        /// Clients, with TLS from the first byte (XEP-0368).
        c2s_tls: Vec<SocketAddr> = loopback(5223);
        /// Other servers, with STARTTLS; see [federation].
        s2s: Vec<SocketAddr> = loopback(5269);
        /// Other servers, with TLS from the first byte (XEP-0368).
        s2s_tls: Vec<SocketAddr> = loopback(5270);
        /// HTTP, for browsers and for a proxy in front of the server: the chat page, WebSocket
        /// (RFC 7395), BOSH (XEP-0124) and their discovery (XEP-0156); see [web].
        http: Vec<SocketAddr> = loopback(5280);
        /// The same by HTTPS, with the certificates of the hosts. HTTP/1.1 only.
        https: Vec<SocketAddr> = loopback(5281);
        /// Networks of proxies whose connections to c2s, c2s_tls, http and https begin with a
        /// PROXY header (version 1 or 2) that names the client. A connection from there without
        /// one is closed; from elsewhere a header is not looked for.
        proxy_protocol: Vec<Network> = Vec::new();
    }
}

section! {
    /// How data is kept.
    pub struct Storage {
        /// "sled" cannot promise that data survives a power loss; "memory" forgets everything when
        /// the server ends.
        engine: Engine = Engine::Fjall;
        /// Memory for what was read from disk.
        cache: Size = Size::mib(32), Size::mib(1) => Size::gib(1024);
        /// Memory of fjall for what was written and is in no table yet, of all kinds of data
        /// together. At the limit writes wait until a table is written, and with them their
        /// senders; none fails. More makes large archives cheaper to write.
        write_buffer: Size = Size::mib(16), Size::mib(4) => Size::gib(64);
        /// Space on the disk that must stay free: below it nothing new is stored, senders are told
        /// to try later, and what is stored can be read and removed. "auto" is 5 % of the disk,
        /// at most 512 MiB.
        min_free: MinFree = MinFree::Auto;
    }
}

section! {
    /// Encryption.
    pub struct Tls {
        /// Clients must encrypt before they log in.
        required: bool = true;
        /// Clients on the same machine (127.0.0.0/8, ::1) need not encrypt, although others must.
        /// Leave it off where a proxy on this machine passes on the connections of others.
        loopback_exempt: bool = false;
        /// Certificates of hosts, as PEM files: the chain begins with the host's own certificate.
        /// Changed files are read again on SIGHUP and by `waystation reload`.
        ///
        ///   certificates = [
        ///     { hosts = ["example.org"], chain = "example.org.pem", key = "example.org.key" },
        ///   ]
        certificates: Vec<Certificate> = Vec::new();
        /// Time that a client has for the handshake.
        handshake_timeout: Duration = secs(10), secs(1) => secs(60);
        /// Handshakes at once; more wait for their turn.
        handshakes: u32 = 256, 1 => 65_536;
    }
}

section! {
    /// How clients prove who they are.
    pub struct Sasl {
        /// The mechanisms that are offered. Those that end in -PLUS bind the login to the TLS
        /// channel; PLAIN is only offered with TLS.
        mechanisms: Vec<Mechanism> = vec![
            Mechanism::ScramSha256Plus,
            Mechanism::ScramSha1Plus,
            Mechanism::ScramSha256,
            Mechanism::ScramSha1,
            Mechanism::Plain,
        ];
        /// Rounds of hashing for passwords that are set from now on (RFC 5802). More rounds make
        /// stolen keys harder to use, and each login of a client slower.
        iterations: u32 = 10_000, 4_096 => 1_000_000;
    }
}

section! {
    /// What a single client may cost.
    pub struct Limits {
        /// Switches the limits on rates, connections, sessions and failed logins off, for
        /// benchmarks. Sizes of stanzas and queues stay limited.
        disabled: bool = false;

        /// New connections a second from one address (an IPv6 /64 counts as one), after a burst;
        /// more are closed. 0 switches the limit off.
        connection_rate: u32 = 20, 0 => 1_000_000;
        /// New connections that may come at once from one address.
        connection_burst: u32 = 100, 1 => 1_000_000;
        /// Connections at once from one address; more are closed. 0 switches the limit off.
        connections_per_address: u32 = 200, 0 => 1_000_000;
        /// Time from connecting to being logged in; then the connection is closed.
        unauthenticated_timeout: Duration = secs(30), secs(1) => secs(600);

        /// Failed logins on one connection; then it is closed. RFC 6120 6.4.5 wants 2 to 5.
        login_failures_per_connection: u32 = 5, 1 => 100;
        /// Failed logins from one address (an IPv6 /64 counts as one), for all accounts together;
        /// then logins from there are refused, but for so many in each window, evenly spread.
        login_failures_per_address: u32 = 100, 1 => 1_000_000;
        /// Failed logins from one address for one account; then logins from there to this account
        /// are refused, but for so many in each window. Logins from elsewhere are not.
        login_failures_per_account: u32 = 10, 1 => 1_000_000;
        /// The window.
        login_failure_window: Duration = secs(600), secs(1) => hours(24);

        /// Bytes a second that are read from one connection in the long run. More are not lost:
        /// they wait in the network until they may be read.
        inbound_rate: Size = Size::kib(16), Size::kib(1) => Size::gib(1);
        /// Bytes that may come at once before the rate counts.
        inbound_burst: Size = Size::kib(256), Size::kib(1) => Size::gib(1);
        /// The largest stanza. RFC 6120 13.12 wants at least 10000 bytes. A larger one ends the stream.
        stanza_size: Size = Size::kib(256), Size(10_000) => Size::mib(16);
        /// The largest element before the client is logged in.
        stanza_size_unauthenticated: Size = Size::kib(8), Size::kib(4) => Size::mib(1);
        /// Elements in one stanza.
        stanza_elements: u32 = 4_096, 32 => 1_000_000;
        /// Elements in one element of the stream before the client is logged in.
        stanza_elements_unauthenticated: u32 = 32, 16 => 10_000;
        /// Levels of elements within elements in one stanza.
        stanza_depth: u32 = 128, 16 => 256;
        /// Attributes on one element, namespace declarations included.
        stanza_attributes: u32 = 256, 16 => 10_000;

        /// Sessions of one account at once; a further one is refused.
        sessions_per_account: u32 = 20, 1 => 1_000;
        /// Bytes that wait for one session which reads too slowly; then it is closed, and messages
        /// that it did not get are stored for the account.
        outbound_bytes: Size = Size::mib(4), Size::kib(512) => Size::gib(1);
        /// Stanzas that wait for one session; as above.
        outbound_stanzas: u32 = 1_000, 16 => 1_000_000;
        /// A session that was silent for so long is pinged (XEP-0199). "0s" never pings.
        ping_interval: Duration = secs(300), secs(0) => hours(24);
        /// A session that does not answer a ping for so long is closed.
        ping_timeout: Duration = secs(60), secs(1) => hours(1);
        /// Time that the server's own services have to answer an iq; then the client is told that
        /// they did not.
        iq_timeout: Duration = secs(30), secs(1) => secs(600);

        /// Contacts in one account's roster; further ones are refused.
        roster_items: u32 = 1_000, 10 => 4_000;
        /// Bytes of one account's roster; as above.
        roster_bytes: Size = Size::mib(1), Size::kib(64) => Size::mib(16);
        /// Requests for subscription that wait for one account's answer; further ones are not
        /// kept, as if they had not arrived.
        subscription_requests: u32 = 500, 1 => 4_000;
        /// The largest presence that a session may broadcast: it is sent to every contact.
        presence_size: Size = Size::kib(16), Size::kib(1) => Size::mib(1);
        /// Presence a second that one session may send to all of its contacts, after a burst. More
        /// is not lost: the session is read more slowly. 0 switches the limit off.
        presence_broadcast_rate: u32 = 1, 0 => 1_000_000;
        /// Such presence that may come at once.
        presence_broadcast_burst: u32 = 30, 1 => 1_000_000;
        /// Presence a second that one session may send to single addresses, requests for
        /// subscription included; as above.
        presence_rate: u32 = 10, 0 => 1_000_000;
        /// Such presence that may come at once.
        presence_burst: u32 = 300, 1 => 1_000_000;
        /// Addresses that an account has not sent presence to lately and may send it to at once;
        /// so many more in each window, evenly spread. Beyond it presence to a further one is
        /// refused, and the client told when to try again. 0 switches the limit off.
        presence_recipients: u32 = 500, 0 => 1_000_000;
        /// The window.
        presence_recipient_window: Duration = secs(3600), secs(1) => hours(24);
        /// Messages that are stored for one account that is offline. Further ones are refused and
        /// their senders are told; none is removed to make room.
        offline_messages: u32 = 10_000, 0 => 10_000_000;
        /// Bytes of these messages; as above.
        offline_bytes: Size = Size::mib(64), Size(0) => Size::gib(64);
        /// How long a session whose connection was lost waits for its client to come back
        /// (XEP-0198); 0 for not at all.
        resume_timeout: Duration = secs(600), secs(0) => secs(86_400);
        /// Sessions of one account that wait so. The oldest gives way.
        detached_sessions: u32 = 10, 1 => 1_000;
    }
}

section! {
    /// Archives of messages.
    pub struct Archive {
        /// Messages are archived, and clients may read them.
        enabled: bool = true;
        /// What is archived for accounts that have set no preferences: everything, nothing, or
        /// what is exchanged with contacts in the roster.
        default: ArchivePolicy = ArchivePolicy::Always;
        /// Messages older than this are removed; 0 keeps them for ever.
        max_age: Duration = secs(0), secs(0) => hours(24 * 36_500);
        /// The oldest messages of an account beyond this number are removed; 0 for no limit.
        max_messages: u32 = 0, 0 => u32::MAX;
        /// The same in bytes of messages; 0 for no limit.
        max_bytes: Size = Size(0), Size(0) => Size::gib(1024);
    }
}

section! {
    /// Registration by clients.
    pub struct Registration {
        /// Anyone who can connect may make an account.
        enabled: bool = false;
        /// Time until the same address (an IPv6 /64 counts as one) may make another account.
        interval: Duration = secs(600), secs(0) => hours(24);
        /// Refuses names that mix alphabets as no language does, such as Latin and Cyrillic: they
        /// are made to look like other names. Counts for accounts that administrators make as well.
        refuse_mixed_scripts: bool = true;
        /// Users may change their password.
        password_change: bool = true;
        /// Users may remove their account with all that is kept of it.
        removal: bool = true;
    }
}

section! {
    /// Other domains.
    pub struct Federation {
        /// Users may write to other domains, and be written to from there. Without it the listeners
        /// of other servers are not opened either.
        enabled: bool = true;
        /// Streams with other servers must be encrypted.
        require_tls: bool = true;
        /// Other servers must have a certificate that is valid for their domain. Otherwise those
        /// without one may prove who they are by dialback (XEP-0220), for which DNS is relied on.
        require_certificate: bool = false;
        /// The only domains to talk to; empty for all. "*.example.org" means all subdomains.
        allow: Vec<DomainPattern> = Vec::new();
        /// Domains not to talk to, whatever allow says.
        deny: Vec<DomainPattern> = Vec::new();
        /// What is different for single domains. The first entry that fits counts.
        ///
        ///   peers = [
        ///     { domain = "old.example", require_tls = false },
        ///     { domain = "*.bank.example", require_certificate = true },
        ///     { domain = "near.example", server = "10.0.0.7:5270", direct_tls = true },
        ///   ]
        peers: Vec<Peer> = Vec::new();
        /// Who is trusted to sign certificates of other servers: "system", or a PEM file.
        authorities: Authorities = Authorities::System;
        /// Name servers to ask for the servers of other domains; empty for those of the system.
        nameservers: Vec<SocketAddr> = Vec::new();
        /// Servers of other domains may be in private networks and on this machine, and domains may
        /// be IP addresses and names without a dot: for closed networks and for tests. Otherwise
        /// whoever has a domain could make this server connect to what only it can reach.
        private_targets: bool = false;

        /// How long a message waits for a domain that cannot be reached; then its sender gets it back.
        message_ttl: Duration = hours(24), secs(10) => hours(24 * 30);
        /// After so long its sender is told that it waits, once; 0 never tells.
        delay_notice: Duration = secs(300), secs(0) => hours(24 * 30);
        /// A domain that cannot be reached is tried again after ever longer pauses, up to this one.
        retry_max: Duration = secs(600), secs(1) => hours(24);
        /// Messages that wait for one domain. Further ones are refused and their senders are told.
        queue_messages: u32 = 20_000, 1 => 100_000_000;
        /// Bytes of these messages; as above.
        queue_bytes: Size = Size::mib(256), Size::kib(64) => Size::gib(1024);
        /// Domains that something waits for and that cannot be reached. What is for further ones is
        /// refused.
        pending_domains: u32 = 500, 1 => 1_000_000;
        /// Domains a minute that one account may write to and that the server has no stream with;
        /// beyond it what the account writes to further ones is refused. 0 switches the limit off.
        new_domains: u32 = 10, 0 => 1_000_000;

        /// Time to connect to one address of a server.
        connect_timeout: Duration = secs(10), secs(1) => secs(60);
        /// Time from connecting until both sides have proven who they are.
        negotiation_timeout: Duration = secs(60), secs(5) => secs(600);
        /// A stream that carries nothing for so long is closed.
        idle_timeout: Duration = secs(600), secs(30) => hours(24);
        /// The largest stanza that another server may send. A larger one ends the stream.
        stanza_size: Size = Size::kib(512), Size(10_000) => Size::mib(16);
        /// Bytes a second that are read from one domain in the long run, all its streams together.
        /// More are not lost: they wait in the network until they may be read.
        inbound_rate: Size = Size::kib(256), Size::kib(1) => Size::gib(4);
        /// Bytes that may come at once before the rate counts.
        inbound_burst: Size = Size::mib(4), Size::kib(64) => Size::gib(4);
        /// Streams at once from one address; more are closed. 0 switches the limit off.
        streams_per_address: u32 = 50, 0 => 1_000_000;
    }
}

section! {
    /// HTTP services, for clients in browsers.
    pub struct Web {
        /// Serves a chat client, Converse.js, as a page at /. It is part of this program, and
        /// the page loads nothing from anywhere else.
        chat_page: bool = true;
        /// When users may log in over HTTP without encryption. "loopback": from a browser on this
        /// machine. "never": behind HTTPS only. "always": their passwords and messages can be
        /// read on the way. Choose "never" where a proxy on this machine passes on connections
        /// without telling so by X-Forwarded-For.
        plain_login: PlainLogin = PlainLogin::Loopback;
        /// Where clients find WebSocket and BOSH, as told by /.well-known/host-meta: "auto" is
        /// where they asked. Set it where they are reached under another name than the domain's.
        external_url: ExternalUrl = ExternalUrl::Auto;
        /// Origins of web pages elsewhere whose clients may connect by WebSocket and BOSH; pages
        /// of this server always may. "*" is safe: the server uses no cookies, so that a page can
        /// do no more than a program with the user's password could.
        origins: Vec<WebOrigin> = vec![WebOrigin::any()];
        /// Networks of HTTP proxies that are believed when X-Forwarded-For, X-Forwarded-Proto and
        /// X-Forwarded-Host say who the client is. Their connections are not limited in number.
        trusted_proxies: Vec<Network> = Vec::new();
    }
}

section! {
    /// Addresses of the people who run the server.
    pub struct Contact {
        /// For reports of abuse.
        abuse: Vec<ContactUri> = Vec::new();
        /// Of the administrators.
        admin: Vec<ContactUri> = Vec::new();
        /// For praise and complaints.
        feedback: Vec<ContactUri> = Vec::new();
        /// For sales.
        sales: Vec<ContactUri> = Vec::new();
        /// For reports of security problems.
        security: Vec<ContactUri> = Vec::new();
        /// Where the state of the service is shown.
        status: Vec<ContactUri> = Vec::new();
        /// For help.
        support: Vec<ContactUri> = Vec::new();
    }
}

section! {
    /// What the server says of itself.
    pub struct Info {
        /// Tells its version to whoever asks.
        show_version: bool = true;
        /// Tells the operating system.
        show_os: bool = false;
    }
}

section! {
    /// What is logged.
    pub struct Log {
        /// Events of this level and of the more severe ones, which stand before it in the list.
        level: Level = Level::Info;
        /// "text" is for people, "json" for programs: one object a line.
        format: LogFormat = LogFormat::Text;
        /// Levels of single parts of the server, named as in the log lines:
        /// { waystation_c2s = "debug", "waystation_c2s::session" = "trace" }.
        modules: LogModules = LogModules::default();
    }
}

section! {
    /// How the server ends.
    pub struct Shutdown {
        /// On SIGTERM or SIGINT: time that clients have to take what is already on its way to
        /// them; then the server ends.
        drain: Duration = secs(10), secs(0) => secs(3600);
    }
}

impl Config {
    /// All sections and keys with the values that they have here, in the order of the file.
    pub(crate) fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        self.list("", &[], None, &mut items);
        // The first is the root itself, which has no name.
        items.split_off(1)
    }
}

/// The names of all sections and keys.
pub(crate) struct Schema {
    sections: Vec<String>,
    keys: Vec<String>,
}

impl Schema {
    pub(crate) fn new() -> Self {
        let (mut sections, mut keys) = (Vec::new(), Vec::new());
        for item in Config::default().items() {
            match item.kind {
                ItemKind::Section => sections.push(item.key),
                ItemKind::Key { .. } => keys.push(item.key),
            }
        }
        Self { sections, keys }
    }

    pub(crate) fn is_key(&self, name: &str) -> bool {
        self.keys.iter().any(|key| key == name)
    }

    pub(crate) fn is_section(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section == name)
    }

    /// The key or section that is most like an unknown name.
    pub(crate) fn nearest(&self, name: &str) -> Option<&str> {
        suggest::nearest(name, self.keys.iter().chain(&self.sections).map(String::as_str))
    }
}

//! The HTTP services, put together.
//!
//! What must hold: no logic of its own; a service that is switched off is not announced either; nothing
//! here keeps the server from ending.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use waystation_bosh::Bosh;
use waystation_c2s::C2s;
use waystation_chat::Chat;
use waystation_config::{Config, ExternalUrl, Network};
use waystation_core::Jid;
use waystation_core::storage::Storage;
use waystation_runtime::{Arbiters, Drain};
use waystation_transport::{Admission, BindError, DetachedConnection, IpNet, Listener, TlsAcceptor};
use waystation_web::{HostMeta, Links, PlainLogin, Settings, Streams, Web, WebModule};
use waystation_websocket::WebSocket;

use crate::limits::stanza_limits;

/// The listeners that HTTP is to be served on, bound and not yet accepting.
pub(crate) struct WebListeners {
    listeners: Vec<(Listener, bool)>,
}

impl WebListeners {
    /// Binds what the configuration names.
    pub(crate) fn bind(config: &Config, admission: &Admission) -> Result<Self, BindError> {
        let proxies = networks(&config.listen.proxy_protocol);
        let plain = config.listen.http.iter().map(|address| (*address, false));
        let wanted = plain.chain(config.listen.https.iter().map(|address| (*address, true)));
        let listeners = wanted
            .map(|(address, tls)| {
                Ok((Listener::bind(address, admission.clone())?.with_proxies(&proxies), tls))
            })
            .collect::<Result<_, BindError>>()?;
        Ok(Self { listeners })
    }

    /// The addresses, and whether they are of HTTPS.
    pub(crate) fn addresses(&self) -> Vec<(SocketAddr, bool)> {
        self.listeners.iter().map(|(listener, tls)| (listener.local_addr(), *tls)).collect()
    }

    /// Begins to accept; ends with the drain.
    pub(crate) fn serve(
        self,
        config: &Config,
        c2s: &Arc<C2s>,
        storage: &Arc<dyn Storage>,
        tls: &TlsAcceptor,
        arbiters: &Arbiters,
        drain: &Drain,
    ) {
        let streams: Arc<dyn Streams> = Arc::new(ClientStreams::new(c2s));
        let web = Web::new(settings(config), streams.clone(), modules(config, &streams, storage));
        for (listener, encrypted) in self.listeners {
            web.start(listener, encrypted.then_some(tls), arbiters, drain.signal());
        }
    }
}

/// Where clients in browsers connect: the paths of Prosody and ejabberd.
const BOSH: &str = "/http-bind";
/// As above.
const WEBSOCKET: &str = "/xmpp-websocket";

/// All HTTP services, as the configuration wants them.
fn modules(
    config: &Config,
    streams: &Arc<dyn Streams>,
    storage: &Arc<dyn Storage>,
) -> Vec<Box<dyn WebModule>> {
    let links = Links {
        bosh: Some(BOSH.to_owned()),
        websocket: Some(WEBSOCKET.to_owned()),
        external: match &config.web.external_url {
            ExternalUrl::Auto => None,
            ExternalUrl::Fixed(url) => Some(url.clone()),
        },
    };
    let mut modules: Vec<Box<dyn WebModule>> = Vec::new();
    if config.web.chat_page {
        modules.push(Box::new(Chat::new(waystation_chat::Settings {
            hosts: config.hosts.iter().map(|host| host.as_str().to_owned()).collect(),
            registration: config.registration.enabled,
            websocket: links.websocket.clone(),
            bosh: links.bosh.clone(),
        })));
    }
    let bosh = waystation_bosh::Settings {
        path: BOSH.to_owned(),
        sessions_per_address: match config.limits.disabled {
            true => 0,
            false => config.limits.connections_per_address,
        },
        limits: stanza_limits(config),
        ..waystation_bosh::Settings::default()
    };
    modules.push(Box::new(Bosh::new(streams.clone(), storage.clone(), bosh)));
    let websocket = waystation_websocket::Settings {
        path: WEBSOCKET.to_owned(),
        origins: origins(config),
        max_frame: config.limits.stanza_size.bytes(),
        max_frame_pre_auth: config.limits.stanza_size_unauthenticated.bytes(),
    };
    modules.push(Box::new(WebSocket::new(streams.clone(), websocket)));
    modules.push(Box::new(HostMeta::new(links, streams.clone())));
    modules
}

fn settings(config: &Config) -> Settings {
    let web = &config.web;
    Settings {
        trusted_proxies: networks(&web.trusted_proxies),
        plain_login: match web.plain_login {
            waystation_config::PlainLogin::Loopback => PlainLogin::Loopback,
            waystation_config::PlainLogin::Never => PlainLogin::Never,
            waystation_config::PlainLogin::Always => PlainLogin::Always,
        },
        origins: origins(config),
        // Browsers have a rule of their own for WebSocket, which the module follows.
        cross_origin: vec![BOSH.to_owned()],
        strict_hosts: config
            .tls
            .certificates
            .iter()
            .flat_map(|certificate| &certificate.hosts)
            .map(|host| host.as_str().to_owned())
            .collect(),
        ..Settings::default()
    }
}

/// Origins whose pages may connect.
fn origins(config: &Config) -> Vec<String> {
    config.web.origins.iter().map(|origin| origin.as_str().to_owned()).collect()
}

/// Networks as the listeners take them.
pub(crate) fn networks(configured: &[Network]) -> Vec<IpNet> {
    configured.iter().map(|network| network.0).collect()
}

/// Where a browser on this machine finds the chat page, if there is one.
pub(crate) fn chat_page(config: &Config, listening: &[(SocketAddr, bool)]) -> Option<String> {
    let (address, tls) = listening.first().filter(|_| config.web.chat_page)?;
    let scheme = if *tls { "https" } else { "http" };
    let host = match address.ip() {
        ip if ip.is_loopback() || ip.is_unspecified() => "localhost".to_owned(),
        std::net::IpAddr::V6(ip) => format!("[{ip}]"),
        ip => ip.to_string(),
    };
    Some(format!("{scheme}://{host}:{}/", address.port()))
}

/// Client streams as web transports see them.
struct ClientStreams {
    hosts: Vec<String>,
    /// Weak, since the server ends only when nobody has it.
    c2s: Weak<C2s>,
}

impl ClientStreams {
    fn new(c2s: &Arc<C2s>) -> Self {
        Self { hosts: c2s.hosts.clone(), c2s: Arc::downgrade(c2s) }
    }
}

impl Streams for ClientStreams {
    /// Drops the connection when the server is stopping.
    fn accept(&self, connection: DetachedConnection) {
        if let Some(c2s) = self.c2s.upgrade() {
            waystation_c2s::accept_gateway(c2s, connection);
        }
    }

    /// Drops the connection when the server is stopping.
    fn accept_authenticated(&self, connection: DetachedConnection, account: &Jid) {
        if let Some(c2s) = self.c2s.upgrade() {
            waystation_c2s::accept_authenticated(c2s, connection, account);
        }
    }

    fn serves(&self, domain: &str) -> bool {
        self.hosts.iter().any(|host| host == domain)
    }
}

//! Federation, put together.
//!
//! What must hold: no logic of its own; nothing here keeps the server from ending.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use waystation_config::{Authorities, Config};
use waystation_core::xml;
use waystation_federation::{DomainPolicy, Federation, FederationParts, Settings};
use waystation_route::Router;
use waystation_route::domain::DomainConfig;
use waystation_route::remote::{Forbidden, Pair, RemoteStreams, StreamRequest};
use waystation_runtime::{Arbiters, Drain};
use waystation_transport::{Listener, TlsAcceptor};

use crate::limits::{admission, stanza_limits};

/// Listeners of other servers, bound and not yet accepting, and what serves them; `None` without federation.
pub(crate) struct FederationListeners {
    federation: Arc<Federation>,
    listeners: Vec<(Listener, bool)>,
}

impl FederationListeners {
    /// Makes federation and binds what the configuration names; from now on the router can reach remote
    /// domains.
    ///
    /// # Errors
    /// When an address is taken, or the configuration cannot be followed.
    pub(crate) fn bind(
        config: &Config,
        router: &Arc<Router>,
        tls: &TlsAcceptor,
        drain: &Drain,
    ) -> Result<Option<Self>, Box<dyn Error>> {
        if !config.federation.enabled {
            return Ok(None);
        }
        let federation = Federation::new(FederationParts {
            settings: settings(config),
            tls: tls.clone(),
            router: router.clone(),
            drain: drain.signal(),
        })?;
        router.set_remote_streams(Arc::new(ToServers(Arc::downgrade(&federation))));
        // Of their own, so that a flood of new ones costs clients nothing; federation counts the streams itself.
        let admission = admission(config, 0);
        let plain = config.listen.s2s.iter().map(|address| (*address, false));
        let wanted = plain.chain(config.listen.s2s_tls.iter().map(|address| (*address, true)));
        let listeners = wanted
            .map(|(address, direct_tls)| Ok((Listener::bind(address, admission.clone())?, direct_tls)))
            .collect::<Result<_, Box<dyn Error>>>()?;
        Ok(Some(Self { federation, listeners }))
    }

    /// The addresses.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().map(|(listener, _)| listener.local_addr()).collect()
    }

    /// Begins to accept, until the drain. What is returned ends federation when it is dropped.
    pub(crate) fn serve(self, arbiters: &Arc<Arbiters>, drain: &Drain) -> Arc<Federation> {
        for (listener, direct_tls) in self.listeners {
            // Weak, since the server ends only when nobody has it.
            let (federation, arbiters) = (Arc::downgrade(&self.federation), arbiters.clone());
            let mut stop = drain.signal();
            actix_rt::spawn(async move {
                let stopped = async move { stop.started().await };
                let address = listener.local_addr();
                let accepted = |connection| {
                    let Some(federation) = federation.upgrade() else { return };
                    arbiters.run_in_turn(move || {
                        waystation_federation::accept(federation, connection, direct_tls);
                    });
                };
                if let Err(error) = listener.run(stopped, accepted).await {
                    tracing::error!(%address, %error, "the listener of other servers failed");
                }
            });
        }
        self.federation
    }
}

/// What the router has of federation, which has the router.
struct ToServers(Weak<Federation>);

impl RemoteStreams for ToServers {
    fn permits(&self, pair: &Pair) -> Result<(), Forbidden> {
        // Once the server stops, what is to be kept is kept.
        self.0.upgrade().map_or(Ok(()), |federation| federation.permits(pair))
    }

    fn open(&self, request: StreamRequest) {
        // Dropped, the request says that it has failed.
        if let Some(federation) = self.0.upgrade() {
            federation.open(request);
        }
    }
}

fn settings(config: &Config) -> Settings {
    let federation = &config.federation;
    let patterns = |list: &[waystation_config::DomainPattern]| {
        list.iter().map(|pattern| pattern.as_str().to_owned()).collect()
    };
    let unlimited = config.limits.disabled;
    Settings {
        hosts: config.hosts.iter().map(|host| host.as_str().to_owned()).collect(),
        require_tls: federation.require_tls,
        require_certificate: federation.require_certificate,
        allow: patterns(&federation.allow),
        deny: patterns(&federation.deny),
        domains: federation
            .peers
            .iter()
            .map(|peer| DomainPolicy {
                domain: peer.domain.as_str().to_owned(),
                require_tls: peer.require_tls,
                require_certificate: peer.require_certificate,
                server: peer.server.as_ref().map(|server| (server.host.clone(), server.port)),
                direct_tls: peer.direct_tls,
            })
            .collect(),
        private_targets: federation.private_targets,
        nameservers: federation.nameservers.clone(),
        authorities: match &federation.authorities {
            Authorities::System => None,
            Authorities::File(path) => Some(path.clone()),
        },
        connect_timeout: federation.connect_timeout,
        negotiation_timeout: federation.negotiation_timeout,
        idle: federation.idle_timeout,
        resume: config.limits.resume_timeout,
        limits: xml::Limits { max_stanza_bytes: federation.stanza_size.bytes(), ..stanza_limits(config) },
        inbound_rate: if unlimited { 0 } else { federation.inbound_rate.0 },
        inbound_burst: federation.inbound_burst.0,
        streams_per_address: if unlimited { 0 } else { federation.streams_per_address },
        ..Settings::default()
    }
}

/// The limits of the routes of remote domains.
pub(crate) fn domain_config(config: &Config) -> DomainConfig {
    let federation = &config.federation;
    let disabled = config.limits.disabled;
    DomainConfig {
        message_ttl: federation.message_ttl,
        retry_max: federation.retry_max,
        delay_notice: federation.delay_notice,
        idle: federation.idle_timeout,
        queue_records: u64::from(federation.queue_messages),
        queue_bytes: federation.queue_bytes.0,
        pending_domains: federation.pending_domains as usize,
        new_domains: if disabled { 0 } else { federation.new_domains },
        ..DomainConfig::default()
    }
}

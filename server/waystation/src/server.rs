//! The server: its parts put together, listening, and stopped in order.
//!
//! What must hold: no logic of its own; everything that can fail because of the configuration
//! fails before the first connection is accepted; on a stop nobody new is let in, sessions are
//! told, and the store is closed last.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};
use waystation_archive::{MessageArchive, Policy};
use waystation_auth::{Accounts, AccountsConfig, FailureTracker, PasswordWorkers, SaslPolicy};
use waystation_c2s::{C2s, Recipients};
use waystation_config::{ArchivePolicy, Config};
use waystation_core::disco::{Contacts, FeatureTable};
use waystation_core::module::{Module, Registration};
use waystation_core::storage::Storage;
use waystation_core::{StreamCondition, StreamError};
use waystation_disco::Disco;
use waystation_federation::Federation;
use waystation_info::{Info, Software};
use waystation_registration::InBandRegistration;
use waystation_roster::{RosterConfig, RosterModule};
use waystation_route::router::RouterParts;
use waystation_route::{Intake, IqTable, Router, RouterConfig};
use waystation_runtime::{Arbiters, Drain, DrainSignal};
use waystation_storage::DataDir;
use waystation_transport::{
    Admission, DevelopmentOrigin, HostCertificate, Listener, TlsAcceptor, TlsSettings,
    ensure_development_certificate,
};

use crate::admin::{self, AdminSocket, Backend, Dispatcher, storage_options};
use crate::federation::{FederationListeners, domain_config};
use crate::limits::{admission, c2s_limits, failure_limits, recipient_limit};
use crate::queue::Committing;
use crate::registry::{Handle, Registry};
use crate::web::{WebListeners, chat_page, networks};

/// Runs the server until it is told to stop.
///
/// # Errors
/// When it cannot start, with what to do about it.
pub(crate) async fn run(config: &Config) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let data_dir = DataDir::lock(&config.data_dir)?;
    let tls = tls(config, data_dir.path())?;
    let arbiters = Arc::new(Arbiters::start(threads(config)));
    crate::memory::give_back(&arbiters);
    let drain = Drain::default();
    let storage = waystation_storage::open(&data_dir, &storage_options(config))?;
    let queue = crate::queue::open(config, &data_dir)?;
    let intake = Intake::new(queue.clone()).await?;
    let workers = PasswordWorkers::default();
    let accounts_config = AccountsConfig {
        iterations: config.sasl.iterations,
        refuse_mixed_scripts: config.registration.refuse_mixed_scripts,
    };
    let accounts = Accounts::open(storage.clone(), workers, accounts_config).await?;

    let table = Arc::new(OnceLock::new());
    let registration_server = Arc::new(OnceLock::new());
    let limits = &config.limits;
    let archive_server = waystation_archive::Server::default();
    let mut modules = modules(config, &storage, &table, &registration_server);
    let archive = archive(config, &storage, &archive_server);
    let limits_of_archives = archive.as_ref().map(|archive| archive.enforce_limits());
    let stop_gathering = archive.as_ref().map(MessageArchive::stop_gathering);
    modules.extend(archive.map(|archive| Box::new(archive) as Box<dyn Module>));
    let mut registrations: Vec<Registration> = modules.iter().map(|m| m.registration()).collect();
    registrations.push(waystation_route::registration());
    let features =
        FeatureTable::from_registrations(&registrations, "Waystation", &contacts(config), Vec::new());
    let mut stream_features = features.stream_feature();
    // Set once, here.
    let _ = table.set(features);
    let mut iqs = IqTable::new(limits.iq_timeout);
    for registration in &mut registrations {
        for iq in registration.iqs.drain(..) {
            iqs.add(iq)?;
        }
        for feature in &registration.stream_features {
            stream_features.push_str(feature);
        }
    }
    let presence = registrations.iter().find_map(|r| r.presence.clone()).ok_or("no module keeps presence")?;
    let removed = registrations.iter().filter_map(|r| r.on_account_removed.clone()).collect();
    let registry = Arc::new(Registry::new(accounts.clone(), removed));
    let hosts: Vec<String> = config.hosts.iter().map(|host| host.as_str().to_owned()).collect();
    let router = Router::new(RouterParts {
        hosts: hosts.clone(),
        config: RouterConfig {
            sessions_per_account: if limits.disabled {
                usize::MAX
            } else {
                limits.sessions_per_account as usize
            },
            waiting_messages: u64::from(limits.offline_messages),
            waiting_bytes: limits.offline_bytes.0,
            detached_sessions: limits.detached_sessions as usize,
            detached_stanzas: limits.outbound_stanzas as usize,
            detached_bytes: limits.outbound_bytes.bytes(),
            domains: domain_config(config),
            ..RouterConfig::default()
        },
        arbiters: arbiters.clone(),
        iqs,
        storage: storage.clone(),
        presence,
        intake: intake.clone(),
        archive: registrations.iter().find_map(|r| r.archive.clone()),
        accounts: registry.clone(),
        observers: registrations.iter().filter_map(|r| r.observer.clone()).collect(),
    });
    registry.connect(&router);
    let committing = Committing::start(&intake, &router, &arbiters)?;
    let server = waystation_registration::Server {
        registry: registry.clone(),
        handle: Arc::new(Handle::new(&router)),
    };
    if registration_server.set(server).is_err() {
        return Err("the server was put together twice".into());
    }
    // Set once, here.
    let _ = archive_server.set(Arc::new(Handle::new(&router)));
    if let Some(enforced) = limits_of_archives {
        actix_rt::spawn(enforced);
    }
    let failures = failure_limits(config);
    let c2s = Arc::new(C2s {
        hosts: hosts.clone(),
        limits: c2s_limits(config, failures.clone()),
        tls: Some(tls.clone()),
        tls_required: config.tls.required,
        tls_loopback_exempt: config.tls.loopback_exempt,
        sasl: SaslPolicy {
            mechanisms: config.sasl.mechanisms.iter().filter_map(|m| mechanism(*m)).collect(),
            require_encryption: config.tls.required,
        },
        accounts: accounts.clone(),
        failures: FailureTracker::new(&failures),
        recipients: Recipients::new(recipient_limit(config)),
        pre_auth: registrations.iter().find_map(|r| r.pre_auth.clone()),
        stream_features,
        router: router.clone(),
        arbiters: arbiters.clone(),
        drain: drain.signal(),
    });
    let backend = Backend {
        hosts,
        admins: config.admins.iter().map(|admin| waystation_core::Jid::clone(admin)).collect(),
        accounts,
        registry,
        router: router.clone(),
        queue: queue.clone(),
        storage: storage.clone(),
        tls: Some(tls.clone()),
        arbiters: arbiters.clone(),
        started,
    };

    // The drain waits for whoever holds a signal; what the server itself holds must not count.
    let admission = admission(config, config.limits.connections_per_address);
    let web = WebListeners::bind(config, &admission)?;
    let web_listening = web.addresses();
    let federation = FederationListeners::bind(config, &router, &tls, &drain)?;
    let servers_listening = federation.as_ref().map(FederationListeners::addresses).unwrap_or_default();
    let listening = listen(config, &c2s, &admission, &drain)?;
    if listening.is_empty() && web_listening.is_empty() {
        return Err("listen.c2s, c2s_tls, http and https are all empty: no client could connect".into());
    }
    web.serve(config, &c2s, &storage, &tls, &arbiters, &drain);
    let federation = federation.map(|federation| federation.serve(&arbiters, &drain));
    if federation.is_some() {
        start_domains(&router);
    }
    let socket = AdminSocket::bind(data_dir.path())?;
    let mut stop = drain.signal();
    let admin = actix_rt::spawn(admin::serve(socket, Dispatcher::new(Arc::new(backend)), async move {
        stop.started().await;
    }));
    let mut signals = Signals::new()?;
    // The tasks that were started have their first turn, so that ready means ready.
    tokio::task::yield_now().await;
    for address in &listening {
        tracing::info!(%address, "listening");
    }
    for (address, encrypted) in &web_listening {
        tracing::info!(%address, encrypted, "listening for HTTP");
    }
    for address in &servers_listening {
        tracing::info!(%address, "listening for other servers");
    }
    tracing::info!(version = env!("CARGO_PKG_VERSION"), storage = storage.name(), "ready");
    greet(config, &listening, chat_page(config, &web_listening));

    let failed = tokio::select! {
        () = signals.until_stop(&tls) => false,
        () = intake.failure() => true,
    };
    tracing::info!("stopping: no new connections, sessions are told");
    drop(c2s);
    if let Some(stop_gathering) = stop_gathering {
        stop_gathering();
    }
    stop_sessions(&router, federation, &drain, config).await;
    // The socket's task ends with the drain; a failure of it was logged when it happened.
    let _ = admin.await;
    intake.settle().await;
    drop(router);
    committing.stop(&intake).await;
    if failed {
        return Err("the queue has failed; what it acknowledged is in the data folder, and the next start \
                    reads it back"
            .into());
    }
    queue.close().await?;
    storage.close().await?;
    arbiters.stop();
    tracing::info!("stopped");
    Ok(())
}

/// All modules, as the configuration wants them.
fn modules(
    config: &Config,
    storage: &Arc<dyn Storage>,
    table: &Arc<OnceLock<FeatureTable>>,
    registration_server: &Arc<OnceLock<waystation_registration::Server>>,
) -> Vec<Box<dyn Module>> {
    let limits = &config.limits;
    let roster = RosterConfig {
        max_items: limits.roster_items as usize,
        max_roster_bytes: limits.roster_bytes.bytes(),
        max_requests: limits.subscription_requests as usize,
        max_presence_bytes: limits.presence_size.bytes(),
        ..RosterConfig::default()
    };
    let registration = waystation_registration::Config {
        enabled: config.registration.enabled,
        interval: if limits.disabled { std::time::Duration::ZERO } else { config.registration.interval },
        allow_mixed_scripts: !config.registration.refuse_mixed_scripts,
        ..waystation_registration::Config::default()
    };
    vec![
        Box::new(RosterModule::new(storage.clone(), roster)),
        Box::new(Disco::new(table.clone())),
        Box::new(Info::new(software(config), storage.clone())),
        Box::new(InBandRegistration::new(registration, registration_server.clone())),
    ]
}

/// The archive, if there is to be one.
fn archive(
    config: &Config,
    storage: &Arc<dyn Storage>,
    server: &waystation_archive::Server,
) -> Option<MessageArchive> {
    let archive = &config.archive;
    let settings = waystation_archive::Config {
        max_age: Some(archive.max_age).filter(|age| !age.is_zero()),
        max_messages: Some(u64::from(archive.max_messages)).filter(|n| *n > 0),
        max_bytes: Some(archive.max_bytes.0).filter(|n| *n > 0),
        default_policy: match archive.default {
            ArchivePolicy::Always => Policy::Always,
            ArchivePolicy::Never => Policy::Never,
            ArchivePolicy::Roster => Policy::Roster,
        },
        ..waystation_archive::Config::default()
    };
    archive.enabled.then(|| MessageArchive::new(storage.clone(), settings, server.clone()))
}

fn threads(config: &Config) -> usize {
    match config.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n as usize,
    }
}

/// Certificates as configured; hosts without one get a development certificate.
fn tls(config: &Config, data_dir: &Path) -> Result<TlsAcceptor, Box<dyn Error>> {
    let mut hosts = Vec::new();
    for host in &config.hosts {
        let configured = config.tls.certificates.iter().find(|c| c.hosts.contains(host));
        hosts.push(match configured {
            Some(certificate) => HostCertificate {
                host: host.as_str().to_owned(),
                chain: certificate.chain.clone(),
                key: certificate.key.clone(),
            },
            None => {
                let made = ensure_development_certificate(&data_dir.join("certs"), host.as_str())?;
                let what = match made.origin {
                    DevelopmentOrigin::Reused => "using the development certificate",
                    DevelopmentOrigin::Created => {
                        "made a development certificate: clients must trust its fingerprint"
                    }
                    DevelopmentOrigin::Renewed => "renewed the development certificate, which had expired",
                };
                tracing::info!(host = host.as_str(), sha256 = %made.fingerprint, "{what}");
                made.files
            }
        });
    }
    let default = config.hosts.first().map(|host| host.as_str().to_owned()).unwrap_or_default();
    let mut settings = TlsSettings::new(hosts, default);
    settings.concurrent_handshakes = config.tls.handshakes as usize;
    settings.handshake_deadline = config.tls.handshake_timeout;
    let (acceptor, warnings) = TlsAcceptor::new(settings)?;
    for warning in warnings {
        tracing::warn!(%warning, "certificate");
    }
    Ok(acceptor)
}

fn software(config: &Config) -> Option<Software> {
    config.info.show_version.then(|| Software {
        name: "Waystation".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        os: config.info.show_os.then(|| std::env::consts::OS.to_owned()),
    })
}

fn contacts(config: &Config) -> Contacts {
    let uris =
        |list: &[waystation_config::ContactUri]| list.iter().map(|uri| uri.as_str().to_owned()).collect();
    let contact = &config.contact;
    Contacts {
        abuse: uris(&contact.abuse),
        admin: uris(&contact.admin),
        feedback: uris(&contact.feedback),
        sales: uris(&contact.sales),
        security: uris(&contact.security),
        status: uris(&contact.status),
        support: uris(&contact.support),
    }
}

fn mechanism(named: waystation_config::Mechanism) -> Option<waystation_auth::Mechanism> {
    use waystation_config::Named;
    named.as_name().parse().ok()
}

/// Opens the listeners of clients, then begins to accept.
fn listen(
    config: &Config,
    c2s: &Arc<C2s>,
    admission: &Admission,
    drain: &Drain,
) -> Result<Vec<std::net::SocketAddr>, Box<dyn Error>> {
    let proxies = networks(&config.listen.proxy_protocol);
    let wanted =
        config.listen.c2s.iter().map(|a| (*a, false)).chain(config.listen.c2s_tls.iter().map(|a| (*a, true)));
    let mut listeners = Vec::new();
    for (address, direct_tls) in wanted {
        let listener = Listener::bind(address, admission.clone())?.with_proxies(&proxies);
        listeners.push((listener, direct_tls));
    }
    let addresses = listeners.iter().map(|(listener, _)| listener.local_addr()).collect();
    for (listener, direct_tls) in listeners {
        let c2s = c2s.clone();
        let mut stop: DrainSignal = drain.signal();
        actix_rt::spawn(async move {
            let stopped = async move { stop.started().await };
            let address = listener.local_addr();
            let accepted = |connection| {
                let shared = c2s.clone();
                // An account's arbiter is known only once the client has logged in.
                c2s.arbiters.run_in_turn(move || waystation_c2s::accept(shared, connection, direct_tls));
            };
            if let Err(error) = listener.run(stopped, accepted).await {
                tracing::error!(%address, %error, "the listener failed");
            }
        });
    }
    Ok(addresses)
}

/// How to begin, for a person who has just started the server on its defaults.
fn greet(config: &Config, listening: &[std::net::SocketAddr], chat_page: Option<String>) {
    use std::io::IsTerminal;
    if !std::io::stderr().is_terminal() {
        return;
    }
    let Some(host) = config.hosts.first() else { return };
    let (host, data_dir) = (host.as_str(), config.data_dir.display());
    let page = chat_page.map(|url| format!("To chat in a browser, open {url}\n\n")).unwrap_or_default();
    let clients = match listening.first() {
        Some(address) => format!("with any XMPP client, which finds the server on {address}"),
        None => "with a client in a browser".to_owned(),
    };
    // Nobody may be reading.
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!(
            "\n{page}Waystation serves {host}. In another terminal, make an account:\n\
             \n    waystation user add alice@{host} --data-dir {data_dir}\n\
             \nand log in as alice@{host} there, or {clients}. Ctrl-C stops the server.\n\n"
        ),
    );
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves when the server is to stop; meanwhile SIGHUP reads certificates anew.
    async fn until_stop(&mut self, tls: &TlsAcceptor) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => match tls.reload() {
                    Ok(warnings) => {
                        tracing::info!("certificates read anew");
                        for warning in warnings {
                            tracing::warn!(%warning, "certificate");
                        }
                    }
                    Err(error) => tracing::error!(%error, "the old certificates remain in use"),
                },
            }
        }
    }
}

/// What waits for other domains since the last run is tried.
fn start_domains(router: &Arc<Router>) {
    let router = router.clone();
    actix_rt::spawn(async move {
        if let Err(error) = router.start_domains().await {
            tracing::error!(%error, "what waits for other domains cannot be listed: it waits for the next start");
        }
    });
}

/// Closes all sessions and waits for them, and for routes that still store something.
async fn stop_sessions(
    router: &Arc<Router>,
    federation: Option<Arc<Federation>>,
    drain: &Drain,
    config: &Config,
) {
    let error = StreamError::new(StreamCondition::SystemShutdown);
    let limit = config.shutdown.drain;
    let deadline = Instant::now() + limit;
    router.close_all(&error);
    drop(federation);
    let left = drain.drain(limit).await;
    if left > 0 {
        tracing::warn!(connections = left, "connections did not end in time");
    }
    router.settle(deadline.saturating_duration_since(Instant::now())).await;
}

#[cfg(test)]
mod tests {
    use waystation_storage::{Kind, Options};

    use super::*;

    #[test]
    fn the_readme_names_every_specification_with_its_version() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = DataDir::lock(folder.path()).unwrap();
        let options = Options { kind: Kind::Memory, ..Options::default() };
        let storage = waystation_storage::open(&data_dir, &options).unwrap();
        let config = Config::default();
        let mut modules = modules(&config, &storage, &Arc::default(), &Arc::default());
        let archive = archive(&config, &storage, &waystation_archive::Server::default());
        modules.extend(archive.map(|archive| Box::new(archive) as Box<dyn Module>));
        let registered = modules.iter().flat_map(|m| m.registration().specs);
        let readme = include_str!("../../../README.md");
        let built_in = waystation_c2s::SPECS
            .iter()
            .chain(waystation_route::SPECS)
            .chain(waystation_federation::SPECS)
            .chain(waystation_web::SPECS)
            .chain(&waystation_bosh::SPECS)
            .chain(waystation_websocket::SPECS)
            .copied();
        for spec in registered.chain(built_in) {
            let row = format!("| {} | {}", spec.id, spec.version);
            assert!(readme.contains(row.trim_end()), "the README has no row that begins with {row:?}");
        }
    }
}

//! What administrators ask for, done with the parts of a server: one that serves, or one that was
//! put together around a data folder for administration alone.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::stream::{self, StreamExt};
use waystation_auth::{AccountError, Accounts};
use waystation_config::{Durability, Named};
use waystation_core::module::{AccountRegistry, RegistryError};
use waystation_core::queue::QueueBackend;
use waystation_core::storage::{BoxFuture, Storage};
use waystation_core::{Jid, StreamCondition, StreamError};
use waystation_route::domain::DomainInfo;
use waystation_route::intake::account_queue;
use waystation_route::mail::CloseWhich;
use waystation_route::remote::Authenticated;
use waystation_route::{CommitTimes, Router, SessionInfo};
use waystation_runtime::{Arbiters, lateness};
use waystation_transport::TlsAcceptor;

use super::{
    AdminBackend, AdminError, ArbiterTimers, Commits, DomainRow, ErrorKind, NewAccount, Password, SessionRow,
    Status, StreamRow, UserDetails, process,
};

/// Accounts that are made at once: enough to share a commit among several.
const PARALLEL: usize = 16;
/// How often an account is tried again that had to stand back for logins.
const BUSY_TRIES: usize = 100;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// The parts of a server.
pub(crate) struct Backend {
    /// The domains that are served, prepared.
    pub(crate) hosts: Vec<String>,
    /// Accounts that administer the server.
    pub(crate) admins: Vec<Jid>,
    /// Accounts and their keys.
    pub(crate) accounts: Accounts,
    /// Removes accounts with all that is kept of them.
    pub(crate) registry: Arc<dyn AccountRegistry>,
    /// Where the sessions are.
    pub(crate) router: Arc<Router>,
    /// The durable queue, which also keeps what waits for accounts.
    pub(crate) queue: Arc<dyn QueueBackend>,
    /// The store.
    pub(crate) storage: Arc<dyn Storage>,
    /// Holds the certificates, when there is TLS.
    pub(crate) tls: Option<TlsAcceptor>,
    /// The threads of the server.
    pub(crate) arbiters: Arc<Arbiters>,
    /// When the server was started.
    pub(crate) started: Instant,
}

impl Backend {
    /// Messages that wait for an account.
    async fn waiting(&self, account: &Jid) -> Result<usize, AdminError> {
        let stats = self.queue.stats(account_queue(account)).await.map_err(failed)?;
        Ok(usize::try_from(stats.pending).unwrap_or(usize::MAX))
    }
}

fn failed(error: impl std::fmt::Display) -> AdminError {
    AdminError::new(ErrorKind::Failed, error.to_string())
}

fn not_found(account: &Jid) -> AdminError {
    AdminError::new(
        ErrorKind::NotFound,
        format!("there is no account {account}; `waystation user list` shows all"),
    )
}

impl From<AccountError> for AdminError {
    fn from(error: AccountError) -> Self {
        let kind = match &error {
            AccountError::Exists => ErrorKind::Exists,
            AccountError::Unknown => ErrorKind::NotFound,
            AccountError::Password => ErrorKind::BadPassword,
            AccountError::Name(_) | AccountError::MixedScripts => ErrorKind::BadRequest,
            AccountError::Busy(_) => ErrorKind::Busy,
            AccountError::Random(_) | AccountError::Storage(_) => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<RegistryError> for AdminError {
    fn from(error: RegistryError) -> Self {
        let kind = match &error {
            RegistryError::BadPassword => ErrorKind::BadPassword,
            RegistryError::Storage(_) => ErrorKind::Failed,
        };
        Self::new(kind, error.to_string())
    }
}

/// The localpart; the dispatcher lets no JID through that has none.
fn local(account: &Jid) -> &str {
    account.local().unwrap_or_default()
}

fn row(session: &SessionInfo) -> SessionRow {
    SessionRow {
        jid: session.jid.to_string(),
        address: session.peer.to_string(),
        security: session.security.to_owned(),
        since: seconds(session.since),
        priority: session.priority,
    }
}

/// Seconds since 1970. A clock before that is no reason to fail.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn domain_row(domain: &DomainInfo) -> DomainRow {
    DomainRow {
        local: domain.pair.local.to_string(),
        remote: domain.pair.remote.to_string(),
        state: domain.state.as_str().to_owned(),
        waiting: domain.depth,
        bytes: domain.bytes,
        oldest: domain.oldest.map(seconds),
        last_error: domain.last_error.clone(),
        next_try: domain.next_try.map(seconds),
        handed: domain.handed,
        bounced: domain.bounced,
        stream: domain.stream.as_ref().map(|stream| StreamRow {
            peer: stream.peer.to_string(),
            security: stream.security.to_owned(),
            proven_by: match stream.authenticated {
                Authenticated::Certificate => "certificate".to_owned(),
                Authenticated::Dialback => "dialback".to_owned(),
            },
            certificate: stream.certificate.clone(),
            acknowledges: stream.acknowledges,
            bidirectional: stream.bidirectional,
            since: seconds(stream.since),
        }),
    }
}

/// A time beyond the range of the type would be half a million years.
fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

async fn measure_timers(arbiters: &Arbiters) -> Result<Vec<ArbiterTimers>, AdminError> {
    let measured = lateness::measure(arbiters).await.into_iter().enumerate();
    measured
        .map(|(arbiter, late)| {
            let late = late.ok_or_else(|| failed("the server is stopping"))?;
            Ok(ArbiterTimers { arbiter, p99_us: micros(late.p99), worst_us: micros(late.worst) })
        })
        .collect()
}

impl Backend {
    async fn sessions(&self, account: Option<&Jid>) -> Vec<SessionRow> {
        let mut rows: Vec<SessionRow> = self.router.sessions(account).await.iter().map(row).collect();
        rows.sort_by(|a, b| a.jid.cmp(&b.jid));
        rows
    }
}

impl AdminBackend for Backend {
    fn hosts(&self) -> Vec<String> {
        self.hosts.clone()
    }

    fn add_users(&self, users: Vec<NewAccount>) -> BoxFuture<'_, Vec<Result<(), AdminError>>> {
        let add = async |NewAccount { jid, password }: NewAccount| {
            let mut tries = 0;
            loop {
                match self.accounts.create(jid.domain(), local(&jid), password.reveal()).await {
                    Err(AccountError::Busy(_)) if tries < BUSY_TRIES => {
                        tries += 1;
                        tokio::time::sleep(BUSY_PAUSE).await;
                    }
                    result => return result.map(drop).map_err(AdminError::from),
                }
            }
        };
        Box::pin(stream::iter(users).map(add).buffered(PARALLEL).collect())
    }

    fn set_password(&self, account: Jid, password: Password) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            self.accounts.set_password(account.domain(), local(&account), password.reveal()).await.map_err(
                |error| match error {
                    AccountError::Unknown => not_found(&account),
                    error => error.into(),
                },
            )?;
            // Row A12: whoever logged in with the old password has to log in again.
            let error =
                StreamError::new(StreamCondition::NotAuthorized).with_text("the password was changed");
            self.router.close_sessions(&account, CloseWhich::All, error);
            Ok(())
        })
    }

    fn remove_user(&self, account: Jid) -> BoxFuture<'_, Result<(), AdminError>> {
        Box::pin(async move {
            if self.registry.remove(account.clone(), None).await? { Ok(()) } else { Err(not_found(&account)) }
        })
    }

    fn list_users(
        &self,
        host: Jid,
        after: Option<Jid>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<Jid>, AdminError>> {
        Box::pin(async move {
            let mut jids: Vec<Jid> = Vec::new();
            // The store's pages are smaller than an administrator's may be.
            while jids.len() < limit {
                let after = jids.last().or(after.as_ref()).and_then(Jid::local);
                let page = self.accounts.list(host.as_str(), after, limit - jids.len()).await?;
                if page.is_empty() {
                    break;
                }
                for name in page {
                    jids.push(Jid::new(Some(&name), host.as_str(), None).map_err(failed)?);
                }
            }
            Ok(jids)
        })
    }

    fn show_user(&self, account: Jid) -> BoxFuture<'_, Result<UserDetails, AdminError>> {
        Box::pin(async move {
            if !self.accounts.exists(account.domain(), local(&account)).await.map_err(failed)? {
                return Err(not_found(&account));
            }
            Ok(UserDetails {
                jid: account.to_string(),
                admin: self.admins.contains(&account),
                offline_messages: self.waiting(&account).await?,
                sessions: self.sessions(Some(&account)).await,
            })
        })
    }

    fn list_sessions(&self, account: Option<Jid>) -> BoxFuture<'_, Result<Vec<SessionRow>, AdminError>> {
        Box::pin(async move { Ok(self.sessions(account.as_ref()).await) })
    }

    fn kick(&self, target: Jid, error: StreamError) -> BoxFuture<'_, Result<usize, AdminError>> {
        Box::pin(async move {
            let account = target.to_bare();
            let is_meant = |session: &SessionInfo| target.is_bare() || session.jid == target;
            let count = self.router.sessions(Some(&account)).await.iter().filter(|s| is_meant(s)).count();
            let which = match target.resource() {
                Some(resource) => CloseWhich::Resource(resource.to_owned()),
                None => CloseWhich::All,
            };
            self.router.close_sessions(&account, which, error);
            Ok(count)
        })
    }

    fn list_domains(&self, remote: Option<Jid>) -> BoxFuture<'_, Result<Vec<DomainRow>, AdminError>> {
        Box::pin(async move {
            let domains = match remote {
                Some(remote) => self.router.domain_info(remote.domain()).await,
                None => self.router.domains().await,
            };
            Ok(domains.iter().map(domain_row).collect())
        })
    }

    fn retry_domain(&self, remote: Jid) -> BoxFuture<'_, Result<usize, AdminError>> {
        Box::pin(async move { Ok(self.router.retry_domain(remote.domain())) })
    }

    fn flush_domain(&self, remote: Jid) -> BoxFuture<'_, Result<u64, AdminError>> {
        Box::pin(async move { Ok(self.router.flush_domain(remote.domain()).await) })
    }

    fn reload_certificates(&self) -> BoxFuture<'_, Result<Vec<String>, AdminError>> {
        Box::pin(async move {
            let Some(tls) = &self.tls else { return Ok(Vec::new()) };
            let warnings = tls.reload().map_err(|error| {
                failed(format!("{error}; the certificates that were in use remain in use"))
            })?;
            Ok(warnings.iter().map(ToString::to_string).collect())
        })
    }

    fn status(&self, timers: bool) -> BoxFuture<'_, Result<Status, AdminError>> {
        Box::pin(async move {
            let durability: Durability = self.storage.durability();
            let timers = if timers { Some(measure_timers(&self.arbiters).await?) } else { None };
            Ok(Status {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime: self.started.elapsed().as_secs(),
                hosts: self.hosts.clone(),
                storage: self.storage.name().to_owned(),
                durability: durability.as_name().to_owned(),
                sessions: self.router.sessions(None).await.len(),
                routes: self.router.routes(),
                memory: process::memory(),
                descriptors: process::descriptors(),
                commits: self.router.intake().commit_times().map(commits),
                timers,
            })
        })
    }
}

fn commits(times: CommitTimes) -> Commits {
    Commits { count: times.commits, median_us: micros(times.median), p99_us: micros(times.p99) }
}

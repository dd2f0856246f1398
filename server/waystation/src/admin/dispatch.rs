//! Answers requests: checks them, asks the backend, and makes pages of what it says.

use std::sync::Arc;
use std::time::Duration;

use waystation_core::{Jid, StreamCondition, StreamError};

use super::protocol::{Condition, MAX_ADD, MAX_PAGE};
use super::{AdminBackend, AdminError, ErrorKind, NewAccount, NewUser, Request, Response};

/// Time that a request may take. Making [`MAX_ADD`] accounts takes seconds.
const DEADLINE: Duration = Duration::from_secs(120);

/// Answers the requests of administrators.
#[derive(Clone)]
pub(crate) struct Dispatcher {
    backend: Arc<dyn AdminBackend>,
}

impl Dispatcher {
    /// A dispatcher for a backend.
    pub(crate) fn new(backend: Arc<dyn AdminBackend>) -> Self {
        Self { backend }
    }

    /// Answers a request within the deadline.
    ///
    /// # Errors
    /// [`AdminError`].
    pub(crate) async fn answer(&self, request: Request) -> Result<Response, AdminError> {
        tokio::time::timeout(DEADLINE, self.dispatch(request)).await.unwrap_or_else(|_| {
            Err(AdminError::new(
                ErrorKind::Timeout,
                format!(
                    "no answer within {} seconds; it may still happen, look before you try again",
                    DEADLINE.as_secs()
                ),
            ))
        })
    }

    async fn dispatch(&self, request: Request) -> Result<Response, AdminError> {
        let backend = &self.backend;
        match request {
            Request::Status { timers } => backend.status(timers).await.map(Response::Status),
            Request::Reload {} => {
                let warnings = backend.reload_certificates().await?;
                Ok(Response::Reloaded { warnings })
            }
            Request::AddUsers { users } => self.add_users(users).await,
            Request::SetPassword { jid, password } => {
                backend.set_password(self.account(&jid)?, password).await?;
                Ok(Response::Done {})
            }
            Request::RemoveUser { jid } => {
                backend.remove_user(self.account(&jid)?).await?;
                Ok(Response::Done {})
            }
            Request::ListUsers { host, after, limit } => self.list_users(host, after, page(limit)?).await,
            Request::ShowUser { jid } => backend.show_user(self.account(&jid)?).await.map(Response::User),
            Request::ListSessions { jid, after, limit } => {
                let account = jid.map(|jid| self.account(&jid)).transpose()?;
                let limit = page(limit)?;
                let after = after.map(|after| self.local(&after)).transpose()?;
                let mut sessions = backend.list_sessions(account).await?;
                if let Some(after) = after {
                    sessions.retain(|session| session.jid.as_str() > after.as_str());
                }
                let more = sessions.len() > limit;
                sessions.truncate(limit);
                Ok(Response::Sessions { sessions, more })
            }
            Request::Kick { jid, condition, text } => {
                let error = StreamError::new(stream_condition(condition));
                let error = match text {
                    Some(text) => error.with_text(text),
                    None => error,
                };
                let sessions = backend.kick(self.local(&jid)?, error).await?;
                Ok(Response::Kicked { sessions })
            }
            Request::ListDomains {} => {
                let mut domains = backend.list_domains(None).await?;
                domains.truncate(MAX_PAGE);
                Ok(Response::Domains { domains })
            }
            Request::ShowDomain { domain } => {
                let remote = self.remote(&domain)?;
                let mut domains = backend.list_domains(Some(remote.clone())).await?;
                if domains.is_empty() {
                    return Err(nothing_with(&remote));
                }
                domains.truncate(MAX_PAGE);
                Ok(Response::Domains { domains })
            }
            Request::RetryDomain { domain } => {
                let remote = self.remote(&domain)?;
                match backend.retry_domain(remote.clone()).await? {
                    0 => Err(nothing_with(&remote)),
                    pairs => Ok(Response::Retried { pairs }),
                }
            }
            Request::FlushDomain { domain } => {
                let stanzas = backend.flush_domain(self.remote(&domain)?).await?;
                Ok(Response::Flushed { stanzas })
            }
        }
    }

    async fn add_users(&self, users: Vec<NewUser>) -> Result<Response, AdminError> {
        if users.len() > MAX_ADD {
            let message = format!("{} accounts in one request; the limit is {MAX_ADD}", users.len());
            return Err(AdminError::new(ErrorKind::BadRequest, message));
        }
        let mut errors: Vec<Option<AdminError>> = Vec::with_capacity(users.len());
        let mut good = Vec::with_capacity(users.len());
        for NewUser { jid, password } in users {
            match self.account(&jid) {
                Ok(jid) => {
                    good.push(NewAccount { jid, password });
                    errors.push(None);
                }
                Err(error) => errors.push(Some(error)),
            }
        }
        // The backend's results belong to the entries that were good so far, in order.
        let mut results = self.backend.add_users(good).await.into_iter();
        for error in errors.iter_mut().filter(|error| error.is_none()) {
            let missing = || Err(AdminError::new(ErrorKind::Failed, "the server gave no result"));
            *error = results.next().unwrap_or_else(missing).err();
        }
        Ok(Response::Added { errors })
    }

    /// A page of accounts. Hosts follow each other in the order of their names.
    async fn list_users(
        &self,
        host: Option<String>,
        after: Option<String>,
        limit: usize,
    ) -> Result<Response, AdminError> {
        let mut hosts = match host {
            Some(host) => vec![self.host(&host)?],
            None => self.backend.hosts().iter().filter_map(|host| Jid::parse(host).ok()).collect(),
        };
        hosts.sort();
        let after = after.map(|after| self.account(&after)).transpose()?;
        let mut jids: Vec<String> = Vec::new();
        for host in hosts {
            let within = after.clone().filter(|after| after.domain() == host.as_str());
            let is_past = after.as_ref().is_some_and(|after| after.domain() > host.as_str());
            if is_past || jids.len() > limit {
                continue;
            }
            // One more than the page shows whether there is another.
            let page = self.backend.list_users(host, within, limit + 1 - jids.len()).await?;
            jids.extend(page.into_iter().map(|jid| jid.as_str().to_owned()));
        }
        let more = jids.len() > limit;
        jids.truncate(limit);
        Ok(Response::Users { jids, more })
    }

    /// A JID of a host of this server, with a localpart, bare or full.
    fn local(&self, text: &str) -> Result<Jid, AdminError> {
        let bad = |message: String| AdminError::new(ErrorKind::BadRequest, message);
        let jid = Jid::parse(text).map_err(|error| bad(format!("\"{text}\" is no JID: {error}")))?;
        if jid.local().is_none() {
            return Err(bad(format!("\"{text}\" is no account; one looks like \"name@{}\"", jid.domain())));
        }
        self.host(jid.domain())?;
        Ok(jid)
    }

    fn account(&self, text: &str) -> Result<Jid, AdminError> {
        let jid = self.local(text)?;
        if !jid.is_bare() {
            let message = format!("\"{text}\" is a session; the account is \"{}\"", jid.bare_str());
            return Err(AdminError::new(ErrorKind::BadRequest, message));
        }
        Ok(jid)
    }

    /// A domain that is not served here.
    fn remote(&self, text: &str) -> Result<Jid, AdminError> {
        let bad = |message: String| AdminError::new(ErrorKind::BadRequest, message);
        let jid = Jid::parse(text).map_err(|error| bad(format!("\"{text}\" is no domain: {error}")))?;
        if jid.local().is_some() || !jid.is_bare() {
            return Err(bad(format!("\"{text}\" is no domain; this one is \"{}\"", jid.domain())));
        }
        if self.backend.hosts().iter().any(|host| host == jid.domain()) {
            return Err(bad(format!("\"{text}\" is served here")));
        }
        Ok(jid)
    }

    fn host(&self, text: &str) -> Result<Jid, AdminError> {
        let hosts = self.backend.hosts();
        Jid::parse(text).ok().filter(|jid| hosts.iter().any(|host| host == jid.as_str())).ok_or_else(|| {
            let message =
                format!("\"{text}\" is no host of this server; its hosts are: {}", hosts.join(", "));
            AdminError::new(ErrorKind::BadRequest, message)
        })
    }
}

fn nothing_with(remote: &Jid) -> AdminError {
    AdminError::new(
        ErrorKind::NotFound,
        format!(
            "nothing waits for {remote}, and there is no stream to it; `waystation federation list` shows all"
        ),
    )
}

fn page(limit: usize) -> Result<usize, AdminError> {
    if (1..=MAX_PAGE).contains(&limit) {
        return Ok(limit);
    }
    Err(AdminError::new(ErrorKind::BadRequest, format!("a page has 1 to {MAX_PAGE} rows, not {limit}")))
}

fn stream_condition(condition: Condition) -> StreamCondition {
    match condition {
        Condition::Conflict => StreamCondition::Conflict,
        Condition::NotAuthorized => StreamCondition::NotAuthorized,
        Condition::PolicyViolation => StreamCondition::PolicyViolation,
        Condition::Reset => StreamCondition::Reset,
        Condition::ResourceConstraint => StreamCondition::ResourceConstraint,
        Condition::UndefinedCondition => StreamCondition::UndefinedCondition,
    }
}

//! Requests of sessions about their own account: what is registered, a new password, removal
//! (XEP-0077 3.1 to 3.3).
//!
//! What must hold: only a session of the account changes it; the session that asked for the
//! removal is told of its success before it is closed.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use waystation_core::account::{IqHandler, IqRequest, Relation};
use waystation_core::module::AccountRegistry;
use waystation_core::storage::BoxFuture;
use waystation_core::{
    Condition, Element, Jid, SessionId, Stanza, StanzaError, StreamCondition, StreamError, prep,
};

use crate::request::Wish;
use crate::{Config, NS_REGISTER, ServerCell, element, registry_error};

pub(crate) struct OwnAccount {
    password_change: bool,
    removal: bool,
    server: ServerCell,
    /// Sessions that end after the reply to the request with this id: one entry for each
    /// removal under way, gone with its reply.
    ending: Arc<Mutex<HashSet<(SessionId, String)>>>,
}

impl OwnAccount {
    pub(crate) fn new(config: &Config, server: ServerCell) -> Self {
        let Config { password_change, removal, .. } = *config;
        Self { password_change, removal, server, ending: Arc::default() }
    }
}

fn lock(ending: &Mutex<HashSet<(SessionId, String)>>) -> MutexGuard<'_, HashSet<(SessionId, String)>> {
    // No change of the set can be left half done by a panic.
    ending.lock().unwrap_or_else(PoisonError::into_inner)
}

type Reply = BoxFuture<'static, Result<Option<Element>, StanzaError>>;

fn refuse(error: impl Into<StanzaError>) -> Reply {
    let error = error.into();
    Box::pin(async { Err(error) })
}

impl IqHandler for OwnAccount {
    fn handle(&self, request: IqRequest) -> Reply {
        let account = request.from.to_bare();
        if request.target.local().is_some() && request.relation != Relation::Own {
            // As for an account that does not exist.
            return refuse(Condition::ServiceUnavailable);
        }
        let own_session = request.session.filter(|_| request.target.domain() == account.domain());
        if !request.set {
            return match own_session {
                Some(_) => Box::pin(async move { Ok(Some(registered(&account))) }),
                // This host registers nobody who has an account elsewhere.
                None => refuse(Condition::ServiceUnavailable),
            };
        }
        let wish = match Wish::parse(&request.payload) {
            Ok(wish) => wish,
            Err(error) => return refuse(error),
        };
        let registry = match self.server.registry() {
            Ok(registry) => registry,
            Err(error) => return refuse(error),
        };
        match (wish, own_session) {
            (Wish::Remove, None) => refuse(Condition::RegistrationRequired),
            (Wish::Credentials { .. }, None) => refuse(Condition::NotAllowed),
            (Wish::Remove, Some(_)) if !self.removal => refuse(Condition::NotAllowed),
            (Wish::Credentials { .. }, Some(_)) if !self.password_change => refuse(Condition::NotAllowed),
            (Wish::Remove, Some(session)) => self.remove(&request.stanza, account, session, registry),
            (Wish::Credentials { username: Some(username), password: Some(password) }, Some(session)) => {
                self.change_password(account, session, &username, password, registry)
            }
            // XEP-0077 3.3: an empty password leaves the old one in force.
            (Wish::Credentials { .. }, Some(_)) => refuse(
                StanzaError::new(Condition::BadRequest).with_text("a username and a password are required"),
            ),
        }
    }

    fn replied(&self, request: &Stanza, session: Option<SessionId>) {
        let Some((session, from)) = session.zip(request.from()) else { return };
        if !lock(&self.ending).remove(&(session, id(request))) {
            return;
        }
        if let Ok(server) = self.server.handle() {
            let error = StreamError::new(StreamCondition::NotAuthorized).with_text("the account was removed");
            server.close_sessions(&from.to_bare(), None, error);
        }
    }
}

impl OwnAccount {
    fn change_password(
        &self,
        account: Jid,
        session: SessionId,
        username: &str,
        password: String,
        registry: Arc<dyn AccountRegistry>,
    ) -> Reply {
        // SECURITY A12.
        if prep::localpart(username).ok().as_deref() != account.local() {
            return refuse(Condition::Forbidden);
        }
        let server = self.server.handle();
        Box::pin(async move {
            let server = server?;
            if !registry.set_password(account.clone(), password).await.map_err(registry_error)? {
                return Err(Condition::RegistrationRequired.into());
            }
            tracing::info!(%account, "password changed");
            // RFC 6120 4.9.3.16: what the other streams were authenticated with no longer holds.
            let error = StreamError::new(StreamCondition::Reset).with_text("the password was changed");
            server.close_sessions(&account, Some(session), error);
            Ok(None)
        })
    }

    fn remove(
        &self,
        request: &Stanza,
        account: Jid,
        session: SessionId,
        registry: Arc<dyn AccountRegistry>,
    ) -> Reply {
        // Marked before the removal begins: should its end never be known, the session of an
        // account that may be gone ends all the same.
        let mark = (session, id(request));
        let ending = self.ending.clone();
        lock(&ending).insert(mark.clone());
        Box::pin(async move {
            match registry.remove(account.clone(), Some(session)).await {
                Ok(true) => {
                    tracing::info!(%account, "account removed");
                    Ok(None)
                }
                // Removed by someone else meanwhile: the session ends as well.
                Ok(false) => Err(Condition::RegistrationRequired.into()),
                Err(error) => {
                    lock(&ending).remove(&mark);
                    Err(registry_error(error))
                }
            }
        })
    }
}

fn id(request: &Stanza) -> String {
    request.raw_id().unwrap_or_default().to_owned()
}

/// What is on file (XEP-0077 3.1).
fn registered(account: &Jid) -> Element {
    Element::new("query", NS_REGISTER)
        .with_child(element("registered", ""))
        .with_child(element("username", account.local().unwrap_or_default()))
        .with_child(element("password", ""))
}

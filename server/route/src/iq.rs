//! Who answers an iq, and how the answer comes about (RFC 6120 8.2.3).
//!
//! What must hold: each get or set gets exactly one answer, also when its handler panics or
//! never ends; a handler runs in a task of its own, so that it stops nobody's stream; results
//! and errors are never answered.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use waystation_core::account::{IqHandler, IqRequest, Relation};
use waystation_core::module::{IqRegistration, Requests, Scope};
use waystation_core::{Condition, Element, IqType, Jid, SessionId, Stanza, StanzaError, StanzaType};

/// Most handlers that run at once in the whole server.
pub const MAX_RUNNING: usize = 4_096;

struct Entry {
    scope: Scope,
    namespace: &'static str,
    element: &'static str,
    requests: Requests,
    handler: Arc<dyn IqHandler>,
}

/// The handlers by scope, namespace and element.
pub struct IqTable {
    /// How long a handler may take; then the iq is answered with remote-server-timeout
    /// (DELIVERY.md 4).
    timeout: Duration,
    entries: Vec<Entry>,
    running: Arc<AtomicUsize>,
}

/// Two registrations for one payload.
#[derive(Debug, thiserror::Error)]
#[error("two modules answer <{element} xmlns='{namespace}'/>")]
pub struct DuplicateHandler {
    element: &'static str,
    namespace: &'static str,
}

/// Who asks whom.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Host or account.
    pub scope: Scope,
    /// The host or the bare JID of the account.
    pub target: Jid,
    /// How the sender stands to the account.
    pub relation: Relation,
    /// The sender's session, when local.
    pub session: Option<SessionId>,
    /// True when the account has an available resource.
    pub available: bool,
}

impl IqTable {
    /// A table without handlers.
    pub fn new(timeout: Duration) -> Self {
        Self { timeout, entries: Vec::new(), running: Arc::default() }
    }

    /// Adds a handler.
    ///
    /// # Errors
    /// When the same payload is answered already.
    pub fn add(&mut self, registration: IqRegistration) -> Result<(), DuplicateHandler> {
        let IqRegistration { namespace, element, scope, requests, handler } = registration;
        if self.find(scope, namespace, element).is_some() {
            return Err(DuplicateHandler { element, namespace });
        }
        self.entries.push(Entry { scope, namespace, element, requests, handler });
        Ok(())
    }

    /// Answers an iq: `reply` is called exactly once for a get or set, never for others.
    /// Must be called on an arbiter's thread.
    pub fn answer(&self, iq: Stanza, asked: Asked, reply: impl FnOnce(Stanza) + 'static) {
        let set = match iq.stanza_type() {
            StanzaType::Iq(IqType::Get) => false,
            StanzaType::Iq(IqType::Set) => true,
            _ => return,
        };
        let refuse = |reply: Box<dyn FnOnce(Stanza)>, error: StanzaError| {
            if let Some(answer) = iq.error_reply(&error) {
                reply(answer);
            }
        };
        let reply: Box<dyn FnOnce(Stanza)> = Box::new(reply);
        let Some((name, namespace)) = iq.child() else {
            return refuse(reply, Condition::BadRequest.into());
        };
        let Some(entry) = self.find(asked.scope, namespace, name) else {
            return refuse(reply, Condition::ServiceUnavailable.into());
        };
        match (entry.requests, set) {
            (Requests::Get, true) | (Requests::Set, false) => {
                return refuse(reply, StanzaError::new(Condition::BadRequest).with_text("wrong iq type"));
            }
            _ => {}
        }
        let Some(from) = iq.from().cloned() else {
            return refuse(reply, Condition::BadRequest.into());
        };
        let payload = match iq.element() {
            Ok(element) => element.children().next().cloned(),
            Err(_) => None,
        };
        let Some(payload) = payload else {
            return refuse(reply, Condition::BadRequest.into());
        };
        if self.running.fetch_add(1, Ordering::AcqRel) >= MAX_RUNNING {
            self.running.fetch_sub(1, Ordering::AcqRel);
            return refuse(reply, Condition::ResourceConstraint.into());
        }
        let running = Running(self.running.clone());
        let handler = entry.handler.clone();
        let request = IqRequest {
            stanza: iq.clone(),
            from,
            target: asked.target,
            set,
            payload,
            relation: asked.relation,
            session: asked.session,
            available: asked.available,
        };
        let timeout = self.timeout;
        actix_rt::spawn(async move {
            let _running = running;
            reply(run(handler, request, &iq, timeout).await);
        });
    }

    fn find(&self, scope: Scope, namespace: &str, element: &str) -> Option<&Entry> {
        // A few dozen entries at most: a scan beats hashing two strings, and iqs that reach it
        // are parsed into trees anyway.
        self.entries.iter().find(|e| e.scope == scope && e.namespace == namespace && e.element == element)
    }
}

struct Running(Arc<AtomicUsize>);
impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn run(handler: Arc<dyn IqHandler>, request: IqRequest, iq: &Stanza, timeout: Duration) -> Stanza {
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| handler.handle(request)));
    let outcome = match outcome {
        Ok(future) => tokio::time::timeout(timeout, AssertUnwindSafe(future).catch_unwind()).await,
        Err(panic) => Ok(Err(panic)),
    };
    let error = match outcome {
        Ok(Ok(Ok(payload))) => return iq.result(payload.as_ref()),
        Ok(Ok(Err(error))) => error,
        Ok(Err(_panic)) => {
            // The panic hook has logged where.
            let (name, namespace) = iq.child().unwrap_or(("", ""));
            tracing::error!(
                name,
                namespace,
                "an iq handler panicked; the request was answered with an error"
            );
            Condition::InternalServerError.into()
        }
        Err(_elapsed) => Condition::RemoteServerTimeout.into(),
    };
    // A get or set always has an error reply.
    iq.error_reply(&error).unwrap_or_else(|| iq.result(None::<&Element>))
}

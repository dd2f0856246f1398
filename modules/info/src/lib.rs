//! Small services of hosts and accounts: software version (XEP-0092), entity time (XEP-0202),
//! last activity (XEP-0012) and ping (XEP-0199).
//!
//! What must hold: the operating system is told only if the configuration says so; when an
//! account was last there is told only to those who may see its presence, and what the others
//! get does not tell whether the account exists (SECURITY A5).

use std::future::ready;
use std::sync::Arc;
use std::time::Instant;

use waystation_core::account::{IqHandler, IqRequest, Relation};
use waystation_core::datetime::Timestamp;
use waystation_core::module::{Feature, IqRegistration, Module, Registration, Requests, Scope, Spec};
use waystation_core::storage::{BoxFuture, Storage};
use waystation_core::{Condition, Element, StanzaError};

mod last;
#[cfg(test)]
mod tests;

use last::LastActivity;

const NS_VERSION: &str = "jabber:iq:version";
const NS_TIME: &str = "urn:xmpp:time";
const NS_LAST: &str = "jabber:iq:last";
const NS_PING: &str = "urn:xmpp:ping";

/// What is told of the software (XEP-0092).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Software {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The operating system; `None` to keep it secret.
    pub os: Option<String>,
}

/// The module.
pub struct Info {
    software: Option<Software>,
    started: Instant,
    last: Arc<LastActivity>,
}

impl Info {
    /// The services; their uptime begins now. Without `software` nothing is told of it, and the
    /// service is not offered. Last activity is kept in `storage`.
    pub fn new(software: Option<Software>, storage: Arc<dyn Storage>) -> Self {
        Self { software, started: Instant::now(), last: Arc::new(LastActivity::new(storage)) }
    }
}

impl Module for Info {
    fn registration(&self) -> Registration {
        let mut registration = Registration {
            name: "info",
            specs: vec![
                Spec { id: "XEP-0012", version: "2.0", title: "Last Activity" },
                Spec { id: "XEP-0082", version: "1.1.1", title: "XMPP Date and Time Profiles" },
                Spec { id: "XEP-0199", version: "2.0.1", title: "XMPP Ping" },
                Spec { id: "XEP-0202", version: "2.0", title: "Entity Time" },
            ],
            observer: Some(self.last.clone()),
            on_account_removed: Some(self.last.clone()),
            ..Registration::default()
        };
        let mut add = |scope, namespace, element, handler: Arc<dyn IqHandler>| {
            registration.features.push(Feature { scope, var: namespace });
            registration.iqs.push(IqRegistration {
                namespace,
                element,
                scope,
                requests: Requests::Get,
                handler,
            });
        };
        add(Scope::Host, NS_LAST, "query", Arc::new(Uptime(self.started)));
        add(Scope::Account, NS_LAST, "query", self.last.clone());
        add(Scope::Host, NS_TIME, "time", Arc::new(Time));
        add(Scope::Host, NS_PING, "ping", Arc::new(Ping));
        add(Scope::Account, NS_PING, "ping", Arc::new(Ping));
        if let Some(software) = &self.software {
            add(Scope::Host, NS_VERSION, "query", Arc::new(Version(software.clone())));
            registration.specs.push(Spec { id: "XEP-0092", version: "1.1", title: "Software Version" });
        }
        registration
    }
}

type Reply = BoxFuture<'static, Result<Option<Element>, StanzaError>>;

fn answer(payload: Element) -> Reply {
    Box::pin(ready(Ok(Some(payload))))
}

struct Version(Software);

impl IqHandler for Version {
    fn handle(&self, _request: IqRequest) -> Reply {
        let child = |name, text| Element::new(name, NS_VERSION).with_text(text);
        let query = Element::new("query", NS_VERSION)
            .with_child(child("name", &self.0.name))
            .with_child(child("version", &self.0.version));
        answer(match &self.0.os {
            Some(os) => query.with_child(child("os", os)),
            None => query,
        })
    }
}

struct Time;

impl IqHandler for Time {
    fn handle(&self, _request: IqRequest) -> Reply {
        let child = |name, text: &str| Element::new(name, NS_TIME).with_text(text);
        // The server has no time zone that would concern its users.
        let utc = child("utc", &Timestamp::now().to_string());
        answer(Element::new("time", NS_TIME).with_child(child("tzo", "+00:00")).with_child(utc))
    }
}

struct Uptime(Instant);

impl IqHandler for Uptime {
    fn handle(&self, _request: IqRequest) -> Reply {
        let seconds = self.0.elapsed().as_secs().to_string();
        answer(Element::new("query", NS_LAST).with_attr("seconds", seconds))
    }
}

struct Ping;

impl IqHandler for Ping {
    fn handle(&self, request: IqRequest) -> Reply {
        Box::pin(ready(refuse_stranger(&request).map(|()| None)))
    }
}

/// Who may not know that an account exists gets what it would get for one that does not.
fn refuse_stranger(request: &IqRequest) -> Result<(), StanzaError> {
    if request.target.local().is_some() && request.relation == Relation::Stranger {
        return Err(Condition::ServiceUnavailable.into());
    }
    Ok(())
}

//! New accounts for clients that have not authenticated (XEP-0077 3.1).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use waystation_core::module::PreAuthIq;
use waystation_core::stanza::NS_CLIENT;
use waystation_core::storage::BoxFuture;
use waystation_core::{Condition, Element, ErrorType, Jid, StanzaError, prep};

use crate::limit::{AddressLimit, MAX_ADDRESSES};
use crate::request::Wish;
use crate::{Config, NS_REGISTER, ServerCell, element, registry_error};

pub(crate) struct NewAccounts {
    allow_mixed_scripts: bool,
    limit: Arc<AddressLimit>,
    server: ServerCell,
}

impl NewAccounts {
    pub(crate) fn new(config: &Config, server: ServerCell) -> Self {
        let limit = Arc::new(AddressLimit::new(config.interval, MAX_ADDRESSES));
        Self { allow_mixed_scripts: config.allow_mixed_scripts, limit, server }
    }

    /// The account and password that a stanza asks for; `None` when it asks what to send.
    fn wanted(&self, iq: &Element, host: &Jid) -> Result<Option<(Jid, String)>, StanzaError> {
        let refuse = |condition, text: &'static str| Err(StanzaError::new(condition).with_text(text));
        let mut children = iq.children();
        let (Some(query), None, Some(_)) = (children.next(), children.next(), iq.attr("id")) else {
            return refuse(Condition::BadRequest, "not an iq with an id and one payload");
        };
        if iq.attr("to").is_some_and(|to| Jid::parse(to).ok().as_ref() != Some(host)) {
            return refuse(Condition::ServiceUnavailable, "the stream is to another host");
        }
        match iq.attr("type") {
            Some("get") => return Ok(None),
            Some("set") => {}
            _ => return refuse(Condition::BadRequest, "neither a get nor a set"),
        }
        let Wish::Credentials { username, password } = Wish::parse(query)? else {
            // XEP-0077 3.2: nobody is registered on this stream.
            return Err(Condition::UnexpectedRequest.into());
        };
        let (Some(username), Some(password)) = (username, password) else {
            return refuse(Condition::NotAcceptable, "a username and a password are required");
        };
        let Ok(account) = Jid::new(Some(&username), host.domain(), None) else {
            return refuse(Condition::NotAcceptable, "the username holds characters that may not be used");
        };
        if !self.allow_mixed_scripts && account.local().is_some_and(prep::mixes_scripts) {
            return refuse(Condition::NotAcceptable, "the username mixes letters of different scripts");
        }
        Ok(Some((account, password)))
    }
}

impl PreAuthIq for NewAccounts {
    fn stream_feature(&self) -> &'static str {
        "<register xmlns='http://jabber.org/features/iq-register'/>"
    }

    fn answers(&self, iq: &Element) -> bool {
        iq.is("iq", NS_CLIENT) && iq.child("query", NS_REGISTER).is_some()
    }

    fn handle(
        &self,
        iq: Element,
        host: Jid,
        peer: IpAddr,
    ) -> BoxFuture<'static, Result<Option<Element>, StanzaError>> {
        let wanted = self.wanted(&iq, &host);
        let (limit, registry) = (self.limit.clone(), self.server.registry());
        Box::pin(async move {
            let Some((account, password)) = wanted? else { return Ok(Some(form())) };
            let registry = registry?;
            if !limit.begin(peer, Instant::now()) {
                tracing::info!(%peer, "registration refused: the address has to wait");
                return Err(StanzaError::new(Condition::NotAcceptable)
                    .with_type(ErrorType::Wait)
                    .with_text("too many registrations from this address"));
            }
            let error = match registry.create(account.clone(), password).await {
                Ok(true) => {
                    tracing::info!(%account, %peer, "account registered");
                    return Ok(None);
                }
                Ok(false) => Condition::Conflict.into(),
                Err(error) => registry_error(error),
            };
            limit.failed(peer, Instant::now());
            Err(error)
        })
    }
}

/// What has to be sent (XEP-0077 3.1).
fn form() -> Element {
    Element::new("query", NS_REGISTER)
        .with_child(element("instructions", "Choose a username and a password for use with this service."))
        .with_child(element("username", ""))
        .with_child(element("password", ""))
}

//! Service discovery for hosts and accounts (XEP-0030), with contact addresses (XEP-0128,
//! XEP-0157) and the hosts' capabilities (XEP-0115).
//!
//! What must hold: what is answered comes from the [`FeatureTable`] alone; who may not see an
//! account's presence learns from no answer whether the account exists (SECURITY A5).

use std::future::ready;
use std::sync::{Arc, OnceLock};

use waystation_core::account::{IqHandler, IqRequest, Relation};
use waystation_core::caps::NS_CAPS;
use waystation_core::disco::{DiscoItem, FeatureTable, NS_DISCO_INFO, NS_DISCO_ITEMS};
use waystation_core::module::{Feature, IqRegistration, Module, Registration, Requests, Scope, Spec};
use waystation_core::rsm::{NS_RSM, PageRequest};
use waystation_core::storage::BoxFuture;
use waystation_core::{Condition, Element, ErrorType, StanzaError};

#[cfg(test)]
mod tests;

/// Most items in one answer; the rest is there to be paged through.
const MAX_ITEMS: usize = 100;

/// The module.
pub struct Disco {
    table: Arc<OnceLock<FeatureTable>>,
}

impl Disco {
    /// Answers from `table`, which is set once the registrations of all modules, this one's
    /// among them, are known, and before the first query comes in.
    pub fn new(table: Arc<OnceLock<FeatureTable>>) -> Self {
        Self { table }
    }
}

impl Module for Disco {
    fn registration(&self) -> Registration {
        let info: Arc<dyn IqHandler> = Arc::new(Handler { table: self.table.clone(), answer: info });
        let items: Arc<dyn IqHandler> = Arc::new(Handler { table: self.table.clone(), answer: items });
        let mut iqs = Vec::new();
        let mut features = Vec::new();
        for scope in [Scope::Host, Scope::Account] {
            for (namespace, handler) in [(NS_DISCO_INFO, &info), (NS_DISCO_ITEMS, &items)] {
                let handler = handler.clone();
                iqs.push(IqRegistration {
                    namespace,
                    element: "query",
                    scope,
                    requests: Requests::Get,
                    handler,
                });
                features.push(Feature { scope, var: namespace });
            }
        }
        features.push(Feature { scope: Scope::Host, var: NS_CAPS });
        features.push(Feature { scope: Scope::Host, var: NS_RSM });
        let spec = |id, version, title| Spec { id, version, title };
        Registration {
            name: "disco",
            specs: vec![
                spec("XEP-0004", "2.13.2", "Data Forms"),
                spec("XEP-0030", "2.5.0", "Service Discovery"),
                spec("XEP-0059", "1.0", "Result Set Management"),
                spec("XEP-0068", "1.3.0", "Field Standardization for Data Forms"),
                spec("XEP-0115", "1.6.0", "Entity Capabilities"),
                spec("XEP-0128", "1.0.1", "Service Discovery Extensions"),
                spec("XEP-0157", "1.1.1", "Contact Addresses for XMPP Services"),
            ],
            iqs,
            features,
            ..Registration::default()
        }
    }
}

type Answer = fn(&FeatureTable, &IqRequest) -> Result<Element, StanzaError>;

struct Handler {
    table: Arc<OnceLock<FeatureTable>>,
    answer: Answer,
}

impl IqHandler for Handler {
    fn handle(&self, request: IqRequest) -> BoxFuture<'static, Result<Option<Element>, StanzaError>> {
        let result = match self.table.get() {
            Some(table) => (self.answer)(table, &request).map(Some),
            None => {
                tracing::error!("a service discovery query came in before the table of features was set");
                Err(StanzaError::new(Condition::InternalServerError).with_type(ErrorType::Wait))
            }
        };
        Box::pin(ready(result))
    }
}

/// What a query asks about.
enum Asked<'a> {
    Host,
    Account,
    /// A node of either.
    Node(&'a str),
}

/// Reads a query, and refuses those about an account by someone who may not know that it exists
/// (XEP-0030 8) with what they would get for one that does not exist.
fn asked(request: &IqRequest) -> Result<Asked<'_>, StanzaError> {
    let of_account = request.target.local().is_some();
    if of_account && request.relation == Relation::Stranger {
        return Err(Condition::ServiceUnavailable.into());
    }
    Ok(match request.payload.attr("node") {
        Some(node) if !node.is_empty() => Asked::Node(node),
        _ if of_account => Asked::Account,
        _ => Asked::Host,
    })
}

fn info(table: &FeatureTable, request: &IqRequest) -> Result<Element, StanzaError> {
    match asked(request)? {
        Asked::Host => Ok(table.host().to_element(None)),
        Asked::Account => Ok(table.account().to_element(None)),
        Asked::Node(node) if request.target.local().is_none() && node == table.caps().query_node() => {
            Ok(table.host().to_element(Some(node)))
        }
        Asked::Node(_) => Err(Condition::ItemNotFound.into()),
    }
}

fn items(table: &FeatureTable, request: &IqRequest) -> Result<Element, StanzaError> {
    let query = Element::new("query", NS_DISCO_ITEMS);
    match asked(request)? {
        Asked::Node(_) => Err(Condition::ItemNotFound.into()),
        // Those who may see the account's resources know them from its presence.
        Asked::Account => Ok(query),
        Asked::Host => {
            let items: Vec<_> = table.items(request.target.domain()).collect();
            let page = PageRequest::parse(&request.payload)?;
            if items.is_empty() {
                return Ok(query);
            }
            let asked_for_page = page.is_some();
            let (page, reply) =
                page.unwrap_or_default().page(&items, MAX_ITEMS, |item: &&DiscoItem| item.jid.as_str())?;
            let cut = page.len() < items.len();
            let query = query.with_children(page.iter().map(|item| item_element(item)));
            Ok(if asked_for_page || cut { query.with_child(reply.to_element()) } else { query })
        }
    }
}

fn item_element(item: &DiscoItem) -> Element {
    let element = Element::new("item", NS_DISCO_ITEMS).with_attr("jid", item.jid.as_str());
    match &item.name {
        Some(name) => element.with_attr("name", name),
        None => element,
    }
}

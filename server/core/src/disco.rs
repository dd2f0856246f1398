//! What an entity says of itself (XEP-0030, XEP-0128), and the table that this server answers from.
//!
//! What must hold: the table is made of the modules' registrations and the configuration alone,
//! so that nothing is advertised that is not there; each feature and identity is named once.

use waystation_xml::{Element, ns};

use crate::caps::{self, Caps};
use crate::dataform::{DataForm, Field, FieldKind, FormError, FormKind, NS_DATA_FORMS};
use crate::jid::Jid;
use crate::module::{Registration, Scope};

/// Namespace of queries for identities and features; also the feature that every entity has.
pub const NS_DISCO_INFO: &str = "http://jabber.org/protocol/disco#info";
/// Namespace of queries for associated entities.
pub const NS_DISCO_ITEMS: &str = "http://jabber.org/protocol/disco#items";
/// Meaning of the form with a server's contact addresses (XEP-0157).
pub const SERVER_INFO: &str = "http://jabber.org/network/serverinfo";
/// Most identities that are read of another entity.
pub const MAX_IDENTITIES: usize = 64;
/// Most features that are read of another entity.
pub const MAX_FEATURES: usize = 1_024;
/// Most forms that are read of another entity.
pub const MAX_FORMS: usize = 16;

/// What kind of entity it is (XEP-0030 3.1).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    /// Category, as registered.
    pub category: String,
    /// Type within the category.
    pub kind: String,
    /// Language of the name.
    pub lang: Option<String>,
    /// Name for humans.
    pub name: Option<String>,
}

impl Identity {
    /// An identity without a name.
    pub fn new(category: &str, kind: &str) -> Self {
        Self { category: category.to_owned(), kind: kind.to_owned(), lang: None, name: None }
    }

    /// Sets the name for humans.
    #[must_use]
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }
}

/// Identities, features and extensions of an entity.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoInfo {
    /// What it is; at least one in a valid answer.
    pub identities: Vec<Identity>,
    /// What it supports.
    pub features: Vec<String>,
    /// Extended information (XEP-0128).
    pub forms: Vec<DataForm>,
}

/// Why an answer of another entity cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoError {
    /// It is not an answer to a disco#info query, or lacks what is required.
    #[error("not an answer to a service discovery query")]
    Malformed,
    /// It is larger than the limits of this module.
    #[error("the answer has too many identities, features or forms")]
    TooLarge,
    /// One of its forms is malformed or too large.
    #[error(transparent)]
    Form(#[from] FormError),
}

impl DiscoInfo {
    /// Reads the `<query/>` of an answer.
    ///
    /// # Errors
    /// [`DiscoError`] when it is malformed or exceeds the limits of this module.
    pub fn parse(query: &Element) -> Result<Self, DiscoError> {
        if !query.is("query", NS_DISCO_INFO) {
            return Err(DiscoError::Malformed);
        }
        let mut info = Self::default();
        for child in query.children() {
            match (child.name(), child.namespace()) {
                ("identity", NS_DISCO_INFO) => {
                    let (Some(category), Some(kind)) = (child.attr("category"), child.attr("type")) else {
                        return Err(DiscoError::Malformed);
                    };
                    info.identities.push(Identity {
                        category: category.to_owned(),
                        kind: kind.to_owned(),
                        lang: child.lang().map(str::to_owned),
                        name: child.attr("name").map(str::to_owned),
                    });
                }
                ("feature", NS_DISCO_INFO) => {
                    info.features.push(child.attr("var").ok_or(DiscoError::Malformed)?.to_owned());
                }
                ("x", NS_DATA_FORMS) if info.forms.len() < MAX_FORMS => {
                    info.forms.push(DataForm::parse(child)?)
                }
                ("x", NS_DATA_FORMS) => return Err(DiscoError::TooLarge),
                _ => {}
            }
            if info.identities.len() > MAX_IDENTITIES || info.features.len() > MAX_FEATURES {
                return Err(DiscoError::TooLarge);
            }
        }
        Ok(info)
    }

    /// The `<query/>` of an answer; `node` is mirrored from the question (XEP-0030 3.2).
    pub fn to_element(&self, node: Option<&str>) -> Element {
        let mut query = Element::new("query", NS_DISCO_INFO);
        if let Some(node) = node {
            query.set_attr("node", node);
        }
        for identity in &self.identities {
            let mut child = Element::new("identity", NS_DISCO_INFO)
                .with_attr("category", &identity.category)
                .with_attr("type", &identity.kind);
            if let Some(lang) = &identity.lang {
                child.set_attr_ns("lang", ns::XML, lang);
            }
            if let Some(name) = &identity.name {
                child.set_attr("name", name);
            }
            query.push(child);
        }
        for feature in &self.features {
            query.push(Element::new("feature", NS_DISCO_INFO).with_attr("var", feature));
        }
        query.with_children(self.forms.iter().map(DataForm::to_element))
    }
}

/// An entity that belongs to a host (XEP-0030 4.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoItem {
    /// The host that it belongs to; `None` for all hosts.
    pub host: Option<String>,
    /// Its address.
    pub jid: Jid,
    /// Name for humans.
    pub name: Option<String>,
}

/// Whom to turn to about a server (XEP-0157); every address is a URI.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contacts {
    /// Reports of abuse.
    pub abuse: Vec<String>,
    /// The administrators.
    pub admin: Vec<String>,
    /// Feedback of users.
    pub feedback: Vec<String>,
    /// Sales.
    pub sales: Vec<String>,
    /// Security problems.
    pub security: Vec<String>,
    /// Pages that show whether the service is up.
    pub status: Vec<String>,
    /// Help for users.
    pub support: Vec<String>,
}

impl Contacts {
    fn fields(&self) -> [(&'static str, &[String]); 7] {
        [
            ("abuse-addresses", &self.abuse),
            ("admin-addresses", &self.admin),
            ("feedback-addresses", &self.feedback),
            ("sales-addresses", &self.sales),
            ("security-addresses", &self.security),
            ("status-addresses", &self.status),
            ("support-addresses", &self.support),
        ]
    }

    /// The first address that is not a URI, for the check of the configuration.
    pub fn not_a_uri(&self) -> Option<&str> {
        let is_uri = |address: &str| {
            let (scheme, rest) = address.split_once(':').unwrap_or_default();
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
                && !rest.is_empty()
                && !address
                    .contains(|c: char| c.is_whitespace() || c.is_control() || "<>\"{}|\\^`".contains(c))
        };
        let mut addresses = self.fields().into_iter().flat_map(|(_, addresses)| addresses);
        addresses.find(|address| !is_uri(address)).map(String::as_str)
    }

    /// The form that announces them; `None` when there is no address.
    fn form(&self) -> Option<DataForm> {
        let mut form = DataForm::new(FormKind::Result).with_form_type(SERVER_INFO);
        for (var, addresses) in self.fields() {
            if !addresses.is_empty() {
                form.fields
                    .push(Field::new(FieldKind::ListMulti, var).with_values(addresses.iter().cloned()));
            }
        }
        (form.fields.len() > 1).then_some(form)
    }
}

/// All that disco queries to this server's hosts and accounts are answered from.
#[derive(Clone, Debug)]
pub struct FeatureTable {
    host: DiscoInfo,
    account: DiscoInfo,
    items: Vec<DiscoItem>,
    caps: Caps,
}

impl FeatureTable {
    /// Gathers what the modules registered. `name` is what humans see of the server.
    pub fn from_registrations(
        registrations: &[Registration],
        name: &str,
        contacts: &Contacts,
        items: Vec<DiscoItem>,
    ) -> Self {
        let features = |scope| {
            let all = registrations.iter().flat_map(|registration| &registration.features);
            let mut features: Vec<_> =
                all.filter(|feature| feature.scope == scope).map(|feature| feature.var.to_owned()).collect();
            features.sort_unstable();
            features.dedup();
            features
        };
        let host = DiscoInfo {
            identities: vec![Identity::new("server", "im").with_name(name)],
            features: features(Scope::Host),
            forms: contacts.form().into_iter().collect(),
        };
        let account = DiscoInfo {
            identities: vec![Identity::new("account", "registered")],
            features: features(Scope::Account),
            forms: Vec::new(),
        };
        let caps = Caps {
            node: env!("CARGO_PKG_REPOSITORY").to_owned(),
            ver: caps::verification_string(&host),
            hash: Some(caps::SHA_1.to_owned()),
        };
        Self { host, account, items, caps }
    }

    /// What a host says of itself.
    pub fn host(&self) -> &DiscoInfo {
        &self.host
    }

    /// What an account says of itself, to those who may know that it exists.
    pub fn account(&self) -> &DiscoInfo {
        &self.account
    }

    /// The entities that belong to a host.
    pub fn items<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a DiscoItem> {
        self.items.iter().filter(move |item| item.host.as_deref().is_none_or(|of| of == host))
    }

    /// The hosts' capabilities (XEP-0115): the same for all hosts.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// The capabilities as a stream feature (XEP-0115 6.3).
    pub fn stream_feature(&self) -> String {
        // The writer makes UTF-8 of what were strings.
        String::from_utf8(self.caps.to_element().to_vec("")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::module::Feature;

    fn registration(features: &[(Scope, &'static str)]) -> Registration {
        let features = features.iter().map(|&(scope, var)| Feature { scope, var }).collect();
        Registration { features, ..Registration::default() }
    }

    fn table(contacts: &Contacts) -> FeatureTable {
        let item = |host: Option<&str>, jid| DiscoItem {
            host: host.map(str::to_owned),
            jid: Jid::parse(jid).unwrap(),
            name: None,
        };
        let registrations = [
            registration(&[(Scope::Host, "urn:b"), (Scope::Account, "urn:c")]),
            registration(&[(Scope::Host, "urn:a"), (Scope::Host, "urn:b")]),
        ];
        let items = vec![item(None, "all.example"), item(Some("a.example"), "rooms.a.example")];
        FeatureTable::from_registrations(&registrations, "Waystation", contacts, items)
    }

    #[test]
    fn the_table_is_made_of_the_registrations() {
        let table = table(&Contacts::default());
        assert_eq!(table.host().features, ["urn:a", "urn:b"]);
        assert_eq!(table.host().identities, [Identity::new("server", "im").with_name("Waystation")]);
        assert_eq!(table.account().features, ["urn:c"]);
        assert_eq!(table.account().identities, [Identity::new("account", "registered")]);
        assert!(table.host().forms.is_empty());
        let items = |host| table.items(host).map(|item| item.jid.to_string()).collect::<Vec<_>>();
        assert_eq!(items("a.example"), ["all.example", "rooms.a.example"]);
        assert_eq!(items("b.example"), ["all.example"]);
    }

    #[test]
    fn contacts_become_the_form_of_xep_0157() {
        let contacts = Contacts {
            abuse: vec!["mailto:abuse@shakespeare.example".into(), "xmpp:abuse@shakespeare.example".into()],
            status: vec!["https://status.shakespeare.example".into()],
            ..Contacts::default()
        };
        assert_eq!(contacts.not_a_uri(), None);
        let table = table(&contacts);
        let [form] = &table.host().forms[..] else { panic!("{:?}", table.host().forms) };
        assert_eq!(form.form_type(), Some(SERVER_INFO));
        assert_eq!(form.values("abuse-addresses"), contacts.abuse);
        assert_eq!(form.values("status-addresses"), contacts.status);
        assert_eq!(form.fields.len(), 3);
    }

    #[test]
    fn contacts_that_are_no_uris_are_found() {
        for bad in ["abuse@example.org", "mailto:", ":x", "1a:x", "mail to:x", "xmpp:a b", "x:<y>", ""] {
            let contacts = Contacts { support: vec!["tel:+1".into(), bad.into()], ..Contacts::default() };
            assert_eq!(contacts.not_a_uri(), Some(bad));
        }
    }

    #[test]
    fn the_stream_feature_names_what_the_host_answers() {
        let table = table(&Contacts::default());
        let expected = format!(
            "<c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='{}' ver='{}'/>",
            table.caps().node,
            caps::verification_string(table.host())
        );
        assert_eq!(table.stream_feature(), expected);
        assert!(table.caps().node.contains("://"));
    }

    #[test]
    fn answers_read_back_as_written() {
        let contacts = Contacts { admin: vec!["mailto:xmpp@a.example".into()], ..Contacts::default() };
        let mut info = table(&contacts).host().clone();
        info.identities
            .push(Identity { lang: Some("el".into()), ..Identity::new("client", "pc").with_name("Ψ") });
        let written = info.to_element(Some("a<node"));
        assert_eq!(written.attr("node"), Some("a<node"));
        let read = Element::parse(&written.to_vec(""), "").unwrap();
        assert_eq!(DiscoInfo::parse(&read), Ok(info));
    }

    #[test]
    fn malformed_and_large_answers_are_refused() {
        let parse = |inner: &str| {
            let xml = format!("<query xmlns='{NS_DISCO_INFO}'>{inner}</query>");
            DiscoInfo::parse(&Element::parse(xml.as_bytes(), "").unwrap())
        };
        assert_eq!(parse("<identity type='pc'/>"), Err(DiscoError::Malformed));
        assert_eq!(parse("<identity category='client'/>"), Err(DiscoError::Malformed));
        assert_eq!(parse("<feature/>"), Err(DiscoError::Malformed));
        assert!(matches!(parse("<x xmlns='jabber:x:data'/>"), Err(DiscoError::Form(_))));
        assert_eq!(DiscoInfo::parse(&Element::new("query", NS_DISCO_ITEMS)), Err(DiscoError::Malformed));
        for (element, max) in [
            ("<feature var='a'/>", MAX_FEATURES),
            ("<identity category='a' type='b'/>", MAX_IDENTITIES),
            ("<x xmlns='jabber:x:data' type='result'/>", MAX_FORMS),
        ] {
            assert!(parse(&element.repeat(max)).is_ok());
            assert_eq!(parse(&element.repeat(max + 1)), Err(DiscoError::TooLarge));
        }
    }
}

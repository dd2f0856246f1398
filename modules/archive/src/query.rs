//! What a query asks for: the form's filters, the page, the order (XEP-0313 4).
//!
//! What must hold: a query that is read without an error asks for nothing that is not understood
//! (XEP-0313 4.1.5), and everything that it carries is bounded.

use waystation_core::dataform::{DataForm, Datatype, Field, FieldKind, FormKind, NS_DATA_FORMS};
use waystation_core::datetime::Timestamp;
use waystation_core::rsm::PageRequest;
use waystation_core::{Condition, Element, Jid, StanzaError};

use crate::NS_MAM;

/// Longest `queryid` in bytes: it is repeated in every result.
pub(crate) const MAX_QUERY_ID: usize = 1_024;

/// Which messages a query wants, whatever the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    /// To or from this JID.
    pub(crate) with: Option<Jid>,
    /// Not before this.
    pub(crate) start: Option<Timestamp>,
    /// Not after this.
    pub(crate) end: Option<Timestamp>,
    /// Behind this message.
    pub(crate) after_id: Option<String>,
    /// Before this message.
    pub(crate) before_id: Option<String>,
    /// These and no others; empty for no such restriction.
    pub(crate) ids: Vec<String>,
    /// False leaves messages of type groupchat out.
    pub(crate) groupchat: Option<bool>,
}

/// A query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query {
    /// What the requester knows it by.
    pub(crate) id: Option<String>,
    pub(crate) filter: Filter,
    pub(crate) page: PageRequest,
    /// True to send the page in reverse order (XEP-0313 4.3.4).
    pub(crate) flip: bool,
}

fn bad_request(text: &'static str) -> StanzaError {
    StanzaError::new(Condition::BadRequest).with_text(text)
}

impl Query {
    /// Reads the `<query/>` of a request.
    ///
    /// # Errors
    /// `bad-request` for what is malformed, `feature-not-implemented` for fields that are not
    /// known and for archives of pubsub nodes.
    pub(crate) fn parse(query: &Element) -> Result<Self, StanzaError> {
        if query.attr("node").is_some() {
            // Answering with the account's archive would pass it off as the node's (XEP-0442).
            return Err(StanzaError::new(Condition::FeatureNotImplemented)
                .with_text("archives of nodes are not supported"));
        }
        let id = query.attr("queryid").map(str::to_owned);
        if id.as_ref().is_some_and(|id| id.len() > MAX_QUERY_ID) {
            return Err(bad_request("the queryid is too long"));
        }
        let mut forms = query.children().filter(|child| child.is("x", NS_DATA_FORMS));
        let filter = forms.next().map(Filter::parse).transpose()?.unwrap_or_default();
        if forms.next().is_some() {
            return Err(bad_request("more than one form"));
        }
        let page = PageRequest::parse(query)?.unwrap_or_default();
        Ok(Self { id, filter, page, flip: query.child("flip-page", NS_MAM).is_some() })
    }
}

impl Filter {
    fn parse(form: &Element) -> Result<Self, StanzaError> {
        let form = DataForm::parse(form)?;
        if form.kind != FormKind::Submit {
            return Err(bad_request("the form is not a submission"));
        }
        if form.form_type() != Some(NS_MAM) {
            return Err(bad_request("the form is not one for queries of archives"));
        }
        let mut filter = Self::default();
        for field in &form.fields {
            // Only fixed fields have no name, and they say nothing.
            let Some(var) = field.var.as_deref() else { continue };
            match var {
                "FORM_TYPE" => {}
                "with" => {
                    filter.with = single(field)?
                        .map(|text| Jid::parse(text).map_err(|_| bad_request("with is not an address")))
                        .transpose()?;
                }
                "start" => filter.start = moment(field)?,
                "end" => filter.end = moment(field)?,
                "after-id" => filter.after_id = single(field)?.map(str::to_owned),
                "before-id" => filter.before_id = single(field)?.map(str::to_owned),
                "ids" => filter.ids = values(field).map(str::to_owned).collect(),
                "include-groupchat" => {
                    filter.groupchat = single(field)?
                        .map(|text| match text {
                            "true" | "1" => Ok(true),
                            "false" | "0" => Ok(false),
                            _ => Err(bad_request("include-groupchat is neither true nor false")),
                        })
                        .transpose()?;
                }
                _ => {
                    return Err(StanzaError::new(Condition::FeatureNotImplemented)
                        .with_text(format!("the field {} is not known", shown(var))));
                }
            }
        }
        if let (Some(start), Some(end)) = (filter.start, filter.end)
            && start > end
        {
            return Err(bad_request("start lies behind end"));
        }
        Ok(filter)
    }

    /// True when all messages match.
    pub(crate) fn is_empty(&self) -> bool {
        // That groupchat messages are wanted as well excludes nothing.
        *self == Self { groupchat: self.groupchat.filter(|wanted| *wanted), ..Self::default() }
    }
}

/// A name for an error's text, not longer than what is worth repeating.
fn shown(var: &str) -> String {
    var.chars().take(64).collect()
}

/// The values that say something: a field that is left empty is one that is not filled in.
fn values(field: &Field) -> impl Iterator<Item = &str> {
    field.values.iter().map(String::as_str).filter(|value| !value.is_empty())
}

fn single(field: &Field) -> Result<Option<&str>, StanzaError> {
    if field.values.len() > 1 {
        return Err(bad_request("a field that takes one value has more"));
    }
    Ok(values(field).next())
}

fn moment(field: &Field) -> Result<Option<Timestamp>, StanzaError> {
    let parse =
        |text| Timestamp::parse(text).map_err(|_| bad_request("start or end is not a time of XEP-0082"));
    single(field)?.map(parse).transpose()
}

/// The form that tells which fields queries may have (XEP-0313 4.1.5).
pub(crate) fn form() -> Element {
    let form = DataForm::new(FormKind::Form)
        .with_form_type(NS_MAM)
        .with_field(Field::new(FieldKind::JidSingle, "with"))
        .with_field(Field::new(FieldKind::TextSingle, "start"))
        .with_field(Field::new(FieldKind::TextSingle, "end"))
        .with_field(Field::new(FieldKind::TextSingle, "before-id"))
        .with_field(Field::new(FieldKind::TextSingle, "after-id"))
        .with_field(Field::new(FieldKind::ListMulti, "ids").with_datatype(Datatype::String).open())
        .with_field(Field::new(FieldKind::Boolean, "include-groupchat"));
    Element::new("query", NS_MAM).with_child(form.to_element())
}

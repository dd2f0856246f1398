//! What a set asks for: the fields of `jabber:iq:register`, or a data form that stands for them.

use waystation_core::dataform::{DataForm, FormKind, NS_DATA_FORMS};
use waystation_core::{Condition, Element, StanzaError};

use crate::NS_REGISTER;

/// Meaning of a form with a new password (XEP-0077 3.3).
const CHANGE_PASSWORD: &str = "jabber:iq:register:changepassword";

/// What a set asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// The account's removal.
    Remove,
    /// An account, or a new password for one. What is empty counts as absent.
    Credentials { username: Option<String>, password: Option<String> },
}

impl Wish {
    /// Reads the payload of a set.
    ///
    /// # Errors
    /// `bad-request` for a `<remove/>` with anything beside it, a field that is there twice, a
    /// form together with fields, and forms that are malformed or mean something else.
    pub(crate) fn parse(query: &Element) -> Result<Self, StanzaError> {
        let bad_request = |text: &'static str| Err(StanzaError::new(Condition::BadRequest).with_text(text));
        if query.child("remove", NS_REGISTER).is_some() {
            return if query.children().count() == 1 {
                Ok(Self::Remove)
            } else {
                bad_request("a removal has no other content")
            };
        }
        let (Some(username), Some(password)) = (field(query, "username"), field(query, "password")) else {
            return bad_request("a field is there twice");
        };
        let Some(form) = query.child("x", NS_DATA_FORMS) else {
            return Ok(Self::Credentials { username, password });
        };
        if username.is_some() || password.is_some() {
            return bad_request("either a form or fields, not both");
        }
        let form = DataForm::parse(form)?;
        if form.kind != FormKind::Submit || !matches!(form.form_type(), Some(NS_REGISTER | CHANGE_PASSWORD)) {
            return bad_request("not a form of registration");
        }
        let value = |var| form.value(var).filter(|value| !value.is_empty()).map(str::to_owned);
        Ok(Self::Credentials { username: value("username"), password: value("password") })
    }
}

/// The text of a field, `Some(None)` when it is absent or empty; `None` when it is there twice.
fn field(query: &Element, name: &str) -> Option<Option<String>> {
    let mut fields = query.children().filter(|child| child.is(name, NS_REGISTER));
    let text = fields.next().map(Element::text).filter(|text| !text.is_empty());
    fields.next().is_none().then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(inner: &str) -> Result<Wish, StanzaError> {
        let xml = format!("<query xmlns='jabber:iq:register'>{inner}</query>");
        Wish::parse(&Element::parse(xml.as_bytes(), "").unwrap())
    }

    fn form(attributes: &str, form_type: &str, fields: &str) -> String {
        format!(
            "<x xmlns='jabber:x:data' {attributes}><field var='FORM_TYPE'><value>{form_type}</value></field>{fields}</x>"
        )
    }

    const FIELDS: &str =
        "<field var='username'><value>bill</value></field><field var='password'><value>x</value></field>";

    #[test]
    fn wishes_are_read_as_xep_0077_3_shows() {
        let credentials = |username: Option<&str>, password: Option<&str>| Wish::Credentials {
            username: username.map(str::to_owned),
            password: password.map(str::to_owned),
        };
        let both = credentials(Some("bill"), Some("x"));
        for (inner, expected) in [
            ("<remove/>".into(), Wish::Remove),
            ("<username>bill</username><password>x</password><email>b@x</email>".into(), both),
            ("<username>bill</username><password/>".into(), credentials(Some("bill"), None)),
            (
                "<password>x</password><username xmlns='urn:x'>a</username>".into(),
                credentials(None, Some("x")),
            ),
            (String::new(), credentials(None, None)),
            (form("type='submit'", "jabber:iq:register", FIELDS), credentials(Some("bill"), Some("x"))),
            (
                form("type='submit'", "jabber:iq:register:changepassword", FIELDS),
                credentials(Some("bill"), Some("x")),
            ),
            (form("type='submit'", "jabber:iq:register", ""), credentials(None, None)),
        ] {
            assert_eq!(parse(&inner), Ok(expected), "{inner}");
        }
    }

    #[test]
    fn malformed_wishes_are_bad_requests() {
        for inner in [
            "<remove/><remove/>".into(),
            "<remove/><username>bill</username>".into(),
            "<username>a</username><username>b</username>".into(),
            "<password>a</password><password/>".into(),
            format!("<username>a</username>{}", form("type='submit'", "jabber:iq:register", FIELDS)),
            form("type='form'", "jabber:iq:register", FIELDS),
            form("type='cancel'", "jabber:iq:register", ""),
            form("type='submit'", "jabber:iq:search", FIELDS),
            "<x xmlns='jabber:x:data' type='submit'/>".into(),
            "<x xmlns='jabber:x:data'/>".into(),
        ] {
            assert_eq!(parse(&inner).unwrap_err().condition, Condition::BadRequest, "{inner}");
        }
    }

    #[test]
    fn m18_a_form_that_is_too_large_is_not_acceptable() {
        let fields: String = (0..300).map(|number| format!("<field var='f{number}'/>")).collect();
        let error = parse(&form("type='submit'", "jabber:iq:register", &fields)).unwrap_err();
        assert_eq!(error.condition, Condition::NotAcceptable);
    }
}

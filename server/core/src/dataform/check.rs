//! Checks a submission against the form that was offered.

use super::{DataForm, Datatype, Field, FieldKind, FormError, FormKind};
use crate::datetime;
use crate::jid::Jid;

impl DataForm {
    /// Checks a submission: it answers this form, has all required fields, and each value is of
    /// its field's kind and datatype and among its options. Fields that this form does not
    /// have are ignored, absent fields that are not required are left out (XEP-0004 3.1, 3.5).
    ///
    /// # Errors
    /// [`FormError`] that names the first field at fault.
    pub fn check(&self, submitted: &DataForm) -> Result<(), FormError> {
        if submitted.kind != FormKind::Submit {
            return Err(FormError::Malformed("the form is not a submission"));
        }
        // A submission without FORM_TYPE answers the form that it was sent for.
        if submitted.form_type().is_some_and(|theirs| Some(theirs) != self.form_type()) {
            return Err(FormError::Malformed("the submission answers another form"));
        }
        for field in &self.fields {
            let Some(var) = field.var.as_deref() else { continue };
            match submitted.field(var) {
                Some(answer) if answer.values.iter().any(|value| !value.is_empty()) => {
                    field.check(var, &answer.values)?
                }
                _ if field.required => return Err(FormError::Missing(var.to_owned())),
                _ => {}
            }
        }
        Ok(())
    }

    /// A field's value as a truth value; `None` when it is absent or empty.
    ///
    /// # Errors
    /// [`FormError::Invalid`] for other text than `true`, `false`, `1` and `0`.
    pub fn boolean(&self, var: &str) -> Result<Option<bool>, FormError> {
        self.typed(var, "is neither true nor false", boolean)
    }

    /// A field's value as a number; `None` when it is absent or empty.
    ///
    /// # Errors
    /// [`FormError::Invalid`] when it is no number of 64 bits.
    pub fn integer(&self, var: &str) -> Result<Option<i64>, FormError> {
        self.typed(var, "is not a number", |value| value.parse().ok())
    }

    /// A field's value as an address; `None` when it is absent or empty.
    ///
    /// # Errors
    /// [`FormError::Invalid`] when it is no address.
    pub fn jid(&self, var: &str) -> Result<Option<Jid>, FormError> {
        self.typed(var, "is not an address", |value| Jid::parse(value).ok())
    }

    /// A field's values as addresses, each once (XEP-0004 3.3).
    ///
    /// # Errors
    /// [`FormError::Invalid`] when one of them is no address.
    pub fn jids(&self, var: &str) -> Result<Vec<Jid>, FormError> {
        let mut jids = Vec::new();
        for value in self.values(var).iter().filter(|value| !value.is_empty()) {
            let jid =
                Jid::parse(value).map_err(|_| FormError::Invalid(var.to_owned(), "is not an address"))?;
            if !jids.contains(&jid) {
                jids.push(jid);
            }
        }
        Ok(jids)
    }

    fn typed<T>(
        &self,
        var: &str,
        why: &'static str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, FormError> {
        match self.value(var).filter(|value| !value.is_empty()) {
            None => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| FormError::Invalid(var.to_owned(), why)),
        }
    }
}

impl Field {
    fn check(&self, var: &str, values: &[String]) -> Result<(), FormError> {
        let invalid = |why| Err(FormError::Invalid(var.to_owned(), why));
        let kind = self.kind.unwrap_or(FieldKind::TextSingle);
        if values.len() > 1 && !kind.is_multi() {
            return invalid("is given more than once");
        }
        for value in values {
            match kind {
                FieldKind::Fixed | FieldKind::Hidden => continue,
                FieldKind::Boolean if boolean(value).is_none() => {
                    return invalid("is neither true nor false");
                }
                FieldKind::JidSingle | FieldKind::JidMulti if Jid::parse(value).is_err() => {
                    return invalid("is not an address");
                }
                FieldKind::ListSingle | FieldKind::ListMulti
                    if !self.open && !self.options.iter().any(|option| option.value == *value) =>
                {
                    return invalid("is not one of the options");
                }
                _ => {}
            }
            if !self.datatype.allows(value) {
                return invalid("is not of the right kind or out of range");
            }
        }
        Ok(())
    }
}

impl Datatype {
    fn allows(self, value: &str) -> bool {
        match self {
            Self::String => true,
            Self::Integer { min, max } => value.parse().is_ok_and(|value: i64| {
                min.is_none_or(|min| min <= value) && max.is_none_or(|max| value <= max)
            }),
            Self::Date => datetime::is_date(value),
            Self::Time => datetime::is_time(value),
            Self::DateTime => datetime::Timestamp::parse(value).is_ok(),
        }
    }
}

/// A truth value as XML Schema writes it.
fn boolean(value: &str) -> Option<bool> {
    match value {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

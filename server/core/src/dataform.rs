//! Data forms (XEP-0004) with standardized fields (XEP-0068) and basic validation (XEP-0122).
//!
//! What must hold: a parsed form has at most [`MAX_FIELDS`] fields and [`MAX_VALUES`] values and
//! options altogether, names no field twice, and has a name for every field that needs one.

mod check;
#[cfg(test)]
mod tests;
mod wire;

use crate::error::{Condition, StanzaError};

/// Namespace of data forms.
pub const NS_DATA_FORMS: &str = "jabber:x:data";
/// Namespace of their validation rules.
pub const NS_VALIDATE: &str = "http://jabber.org/protocol/xdata-validate";
/// Name of the field that tells what the other fields mean (XEP-0068).
pub const FORM_TYPE: &str = "FORM_TYPE";
/// Most fields of a parsed form, those of its items included.
pub const MAX_FIELDS: usize = 256;
/// Most values and options of a parsed form, over all its fields.
pub const MAX_VALUES: usize = 1_024;

/// What a form is for (XEP-0004 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormKind {
    /// To be filled in.
    Form,
    /// Filled in.
    Submit,
    /// The offer to fill one in is declined.
    Cancel,
    /// Data that is returned, or a plain set of data.
    Result,
}

impl FormKind {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Form, "form"), (Self::Submit, "submit"), (Self::Cancel, "cancel"), (Self::Result, "result")];

    /// The attribute's value.
    pub fn as_str(self) -> &'static str {
        name_of(&Self::ALL, self)
    }
}

/// What a field holds (XEP-0004 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldKind {
    /// `true`, `false`, `1` or `0`.
    Boolean,
    /// Text to show, not to change.
    Fixed,
    /// Returned as it came, not shown.
    Hidden,
    /// Several addresses.
    JidMulti,
    /// One address.
    JidSingle,
    /// Any of the options.
    ListMulti,
    /// One of the options.
    ListSingle,
    /// Several lines of text.
    TextMulti,
    /// A line of text that is not shown while it is typed.
    TextPrivate,
    /// A line of text; also what stands for unknown kinds.
    TextSingle,
}

impl FieldKind {
    const ALL: [(Self, &'static str); 10] = [
        (Self::Boolean, "boolean"),
        (Self::Fixed, "fixed"),
        (Self::Hidden, "hidden"),
        (Self::JidMulti, "jid-multi"),
        (Self::JidSingle, "jid-single"),
        (Self::ListMulti, "list-multi"),
        (Self::ListSingle, "list-single"),
        (Self::TextMulti, "text-multi"),
        (Self::TextPrivate, "text-private"),
        (Self::TextSingle, "text-single"),
    ];

    /// The attribute's value.
    pub fn as_str(self) -> &'static str {
        name_of(&Self::ALL, self)
    }

    /// True for fields that may hold more than one value.
    pub fn is_multi(self) -> bool {
        matches!(self, Self::Hidden | Self::JidMulti | Self::ListMulti | Self::TextMulti)
    }
}

fn name_of<T: Copy + PartialEq>(all: &[(T, &'static str)], kind: T) -> &'static str {
    // Each table names every variant of its type, which a test checks.
    all.iter().find(|(known, _)| *known == kind).map_or("", |(_, name)| name)
}

fn from_name<T: Copy>(all: &[(T, &'static str)], name: &str) -> Option<T> {
    all.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
}

/// What the values of a field must look like (XEP-0122 3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Datatype {
    /// Anything.
    #[default]
    String,
    /// A number between the limits, inclusive; without limits any of 64 bits.
    Integer {
        /// Least value.
        min: Option<i64>,
        /// Greatest value.
        max: Option<i64>,
    },
    /// A date (XEP-0082 3.1).
    Date,
    /// A time of day (XEP-0082 3.3).
    Time,
    /// A moment in time (XEP-0082 3.2).
    DateTime,
}

/// One of the values to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldOption {
    /// Text for humans.
    pub label: Option<String>,
    /// The value.
    pub value: String,
}

/// A field of a form. Built with [`Field::new`] and the `with_` methods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// Its name; only fixed fields may be without one.
    pub var: Option<String>,
    /// What it holds; `None` when the form does not say.
    pub kind: Option<FieldKind>,
    /// Name for humans.
    pub label: Option<String>,
    /// Explanation for humans.
    pub desc: Option<String>,
    /// True when a submission must fill it in.
    pub required: bool,
    /// Its values; in a form to be filled in, the defaults.
    pub values: Vec<String>,
    /// What can be chosen from.
    pub options: Vec<FieldOption>,
    /// What values must look like. Written and checked, never parsed: submissions do not say.
    pub datatype: Datatype,
    /// True when values that are no options may be given as well (XEP-0122 3.2.2).
    pub open: bool,
}

impl Field {
    /// A field without a value.
    pub fn new(kind: FieldKind, var: impl Into<String>) -> Self {
        Self { var: Some(var.into()), kind: Some(kind), ..Self::default() }
    }

    /// Sets the name for humans.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the explanation for humans.
    #[must_use]
    pub fn with_desc(mut self, desc: impl Into<String>) -> Self {
        self.desc = Some(desc.into());
        self
    }

    /// Adds a value.
    #[must_use]
    pub fn with_value(mut self, value: impl Into<String>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Adds values.
    #[must_use]
    pub fn with_values<T: Into<String>>(mut self, values: impl IntoIterator<Item = T>) -> Self {
        self.values.extend(values.into_iter().map(Into::into));
        self
    }

    /// Adds a value to choose from.
    #[must_use]
    pub fn with_option(mut self, value: impl Into<String>, label: impl Into<String>) -> Self {
        self.options.push(FieldOption { label: Some(label.into()), value: value.into() });
        self
    }

    /// Says what values must look like.
    #[must_use]
    pub fn with_datatype(mut self, datatype: Datatype) -> Self {
        self.datatype = datatype;
        self
    }

    /// Allows values that are no options.
    #[must_use]
    pub fn open(mut self) -> Self {
        self.open = true;
        self
    }

    /// Demands that it is filled in.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// A data form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataForm {
    /// What it is for.
    pub kind: FormKind,
    /// Title for humans.
    pub title: Option<String>,
    /// Instructions for humans.
    pub instructions: Vec<String>,
    /// Its fields.
    pub fields: Vec<Field>,
    /// The columns of a table of results.
    pub reported: Vec<Field>,
    /// The rows of a table of results.
    pub items: Vec<Vec<Field>>,
}

impl DataForm {
    /// An empty form.
    pub fn new(kind: FormKind) -> Self {
        Self {
            kind,
            title: None,
            instructions: Vec::new(),
            fields: Vec::new(),
            reported: Vec::new(),
            items: Vec::new(),
        }
    }

    /// Says what the fields mean, by a hidden field (XEP-0068).
    #[must_use]
    pub fn with_form_type(self, form_type: impl Into<String>) -> Self {
        self.with_field(Field::new(FieldKind::Hidden, FORM_TYPE).with_value(form_type))
    }

    /// Sets the title for humans.
    #[must_use]
    pub fn with_title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Adds instructions for humans.
    #[must_use]
    pub fn with_instructions(mut self, text: impl Into<String>) -> Self {
        self.instructions.push(text.into());
        self
    }

    /// Adds a field.
    #[must_use]
    pub fn with_field(mut self, field: Field) -> Self {
        self.fields.push(field);
        self
    }

    /// The field of a name.
    pub fn field(&self, var: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.var.as_deref() == Some(var))
    }

    /// The first value of a field.
    pub fn value(&self, var: &str) -> Option<&str> {
        self.values(var).first().map(String::as_str)
    }

    /// All values of a field; none when there is no such field.
    pub fn values(&self, var: &str) -> &[String] {
        self.field(var).map_or(&[], |field| &field.values)
    }

    /// What the fields mean (XEP-0068 3.4): the value of a hidden `FORM_TYPE`; in submissions
    /// its kind does not matter.
    pub fn form_type(&self) -> Option<&str> {
        let field = self.field(FORM_TYPE)?;
        let means = field.kind == Some(FieldKind::Hidden) || self.kind == FormKind::Submit;
        field.values.first().filter(|_| means).map(String::as_str)
    }
}

/// Why a form cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// It is not a form, or not one that means anything.
    #[error("{0}")]
    Malformed(&'static str),
    /// It has more than [`MAX_FIELDS`] fields or [`MAX_VALUES`] values.
    #[error("the form has too many fields or values")]
    TooLarge,
    /// A field that must be filled in is not.
    #[error("the field {0} is required")]
    Missing(String),
    /// A field's value is not allowed.
    #[error("the value of the field {0} {1}")]
    Invalid(String, &'static str),
}

impl From<FormError> for StanzaError {
    /// `bad-request` for what is no form, else `not-acceptable` (XEP-0004 3.5), with text.
    fn from(error: FormError) -> Self {
        let condition = match error {
            FormError::Malformed(_) => Condition::BadRequest,
            _ => Condition::NotAcceptable,
        };
        Self::new(condition).with_text(error.to_string())
    }
}

//! Stanza errors (RFC 6120 8.3) and stream errors (RFC 6120 4.9), by name.
//!
//! What must hold: every error that leaves the server names a condition that the RFC defines.

use std::borrow::Cow;

use waystation_xml::escape_text;

/// Namespace of stanza error conditions.
pub const NS_STANZA_ERROR: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
/// Namespace of stream error conditions.
pub const NS_STREAM_ERROR: &str = "urn:ietf:params:xml:ns:xmpp-streams";

/// What the sender may do about a stanza error (RFC 6120 8.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    /// Retry after providing credentials.
    Auth,
    /// Do not retry.
    Cancel,
    /// Only a warning.
    Continue,
    /// Retry after changing the data.
    Modify,
    /// Retry after waiting.
    Wait,
}

impl ErrorType {
    /// The attribute's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Cancel => "cancel",
            Self::Continue => "continue",
            Self::Modify => "modify",
            Self::Wait => "wait",
        }
    }
}

macro_rules! conditions {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $(
            #[doc = concat!("`", $text, "`")]
            $variant
        ),* }
        impl $name {
            /// The element's name.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

conditions! {
    /// Stanza error conditions (RFC 6120 8.3.3).
    Condition {
        BadRequest = "bad-request",
        Conflict = "conflict",
        FeatureNotImplemented = "feature-not-implemented",
        Forbidden = "forbidden",
        Gone = "gone",
        InternalServerError = "internal-server-error",
        ItemNotFound = "item-not-found",
        JidMalformed = "jid-malformed",
        NotAcceptable = "not-acceptable",
        NotAllowed = "not-allowed",
        NotAuthorized = "not-authorized",
        PolicyViolation = "policy-violation",
        RecipientUnavailable = "recipient-unavailable",
        RegistrationRequired = "registration-required",
        RemoteServerNotFound = "remote-server-not-found",
        RemoteServerTimeout = "remote-server-timeout",
        ResourceConstraint = "resource-constraint",
        ServiceUnavailable = "service-unavailable",
        SubscriptionRequired = "subscription-required",
        UndefinedCondition = "undefined-condition",
        UnexpectedRequest = "unexpected-request",
    }
}

impl Condition {
    /// The error type that RFC 6120 8.3.3 recommends for the condition.
    pub fn default_type(self) -> ErrorType {
        match self {
            Self::BadRequest | Self::JidMalformed | Self::NotAcceptable | Self::PolicyViolation => {
                ErrorType::Modify
            }
            Self::Forbidden
            | Self::NotAuthorized
            | Self::RegistrationRequired
            | Self::SubscriptionRequired => ErrorType::Auth,
            Self::RecipientUnavailable
            | Self::RemoteServerTimeout
            | Self::ResourceConstraint
            | Self::UnexpectedRequest => ErrorType::Wait,
            _ => ErrorType::Cancel,
        }
    }
}

/// A stanza error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StanzaError {
    /// What the sender may do.
    pub kind: ErrorType,
    /// The defined condition.
    pub condition: Condition,
    /// Text for humans, in English.
    pub text: Option<Cow<'static, str>>,
    /// An application-specific condition, as well-formed XML with its own namespace.
    pub application: Option<Cow<'static, str>>,
}

impl StanzaError {
    /// An error with the type that the RFC recommends for its condition.
    pub fn new(condition: Condition) -> Self {
        Self { kind: condition.default_type(), condition, text: None, application: None }
    }

    /// Sets the error type.
    #[must_use]
    pub fn with_type(mut self, kind: ErrorType) -> Self {
        self.kind = kind;
        self
    }

    /// Adds text for humans.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Adds an application-specific condition: one element with its own namespace.
    #[must_use]
    pub fn with_application(mut self, xml: impl Into<Cow<'static, str>>) -> Self {
        self.application = Some(xml.into());
        self
    }

    /// Appends the `<error/>` element.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"<error type='");
        out.extend_from_slice(self.kind.as_str().as_bytes());
        out.extend_from_slice(b"'><");
        out.extend_from_slice(self.condition.as_str().as_bytes());
        out.extend_from_slice(b" xmlns='");
        out.extend_from_slice(NS_STANZA_ERROR.as_bytes());
        out.extend_from_slice(b"'/>");
        if let Some(text) = &self.text {
            out.extend_from_slice(b"<text xmlns='");
            out.extend_from_slice(NS_STANZA_ERROR.as_bytes());
            out.extend_from_slice(b"' xml:lang='en'>");
            escape_text(text, out);
            out.extend_from_slice(b"</text>");
        }
        if let Some(xml) = &self.application {
            out.extend_from_slice(xml.as_bytes());
        }
        out.extend_from_slice(b"</error>");
    }
}

impl From<Condition> for StanzaError {
    fn from(condition: Condition) -> Self {
        Self::new(condition)
    }
}

impl From<crate::storage::StorageError> for StanzaError {
    /// Storage failures reach the sender as temporary: nothing was stored, so a retry is right.
    fn from(error: crate::storage::StorageError) -> Self {
        use crate::storage::StorageError;
        match error {
            StorageError::Full => Self::new(Condition::ResourceConstraint),
            StorageError::TooLarge(_) => Self::new(Condition::NotAcceptable),
            _ => Self::new(Condition::InternalServerError).with_type(ErrorType::Wait),
        }
    }
}

conditions! {
    /// Stream error conditions (RFC 6120 4.9.3).
    StreamCondition {
        BadFormat = "bad-format",
        BadNamespacePrefix = "bad-namespace-prefix",
        Conflict = "conflict",
        ConnectionTimeout = "connection-timeout",
        HostGone = "host-gone",
        HostUnknown = "host-unknown",
        ImproperAddressing = "improper-addressing",
        InternalServerError = "internal-server-error",
        InvalidFrom = "invalid-from",
        InvalidNamespace = "invalid-namespace",
        InvalidXml = "invalid-xml",
        NotAuthorized = "not-authorized",
        NotWellFormed = "not-well-formed",
        PolicyViolation = "policy-violation",
        RemoteConnectionFailed = "remote-connection-failed",
        Reset = "reset",
        ResourceConstraint = "resource-constraint",
        RestrictedXml = "restricted-xml",
        SeeOtherHost = "see-other-host",
        SystemShutdown = "system-shutdown",
        UndefinedCondition = "undefined-condition",
        UnsupportedEncoding = "unsupported-encoding",
        UnsupportedFeature = "unsupported-feature",
        UnsupportedStanzaType = "unsupported-stanza-type",
        UnsupportedVersion = "unsupported-version",
    }
}

impl StreamCondition {
    /// The condition with the given element name.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "bad-format" => Self::BadFormat,
            "bad-namespace-prefix" => Self::BadNamespacePrefix,
            "invalid-namespace" => Self::InvalidNamespace,
            "invalid-xml" => Self::InvalidXml,
            "not-well-formed" => Self::NotWellFormed,
            "policy-violation" => Self::PolicyViolation,
            "restricted-xml" => Self::RestrictedXml,
            "unsupported-encoding" => Self::UnsupportedEncoding,
            _ => return None,
        })
    }
}

/// A stream error; sending one always closes the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// The defined condition.
    pub condition: StreamCondition,
    /// Text for humans, in English.
    pub text: Option<Cow<'static, str>>,
    /// An application-specific condition, as well-formed XML with its own namespace.
    pub application: Option<Cow<'static, str>>,
}

impl StreamError {
    /// An error without text.
    pub fn new(condition: StreamCondition) -> Self {
        Self { condition, text: None, application: None }
    }

    /// Adds text for humans.
    #[must_use]
    pub fn with_text(mut self, text: impl Into<Cow<'static, str>>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Adds an application-specific condition: one element with its own namespace.
    #[must_use]
    pub fn with_application(mut self, xml: impl Into<Cow<'static, str>>) -> Self {
        self.application = Some(xml.into());
        self
    }

    /// Appends the `<stream:error/>` element.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"<stream:error><");
        out.extend_from_slice(self.condition.as_str().as_bytes());
        out.extend_from_slice(b" xmlns='");
        out.extend_from_slice(NS_STREAM_ERROR.as_bytes());
        out.extend_from_slice(b"'/>");
        if let Some(text) = &self.text {
            out.extend_from_slice(b"<text xmlns='");
            out.extend_from_slice(NS_STREAM_ERROR.as_bytes());
            out.extend_from_slice(b"' xml:lang='en'>");
            escape_text(text, out);
            out.extend_from_slice(b"</text>");
        }
        if let Some(xml) = &self.application {
            out.extend_from_slice(xml.as_bytes());
        }
        out.extend_from_slice(b"</stream:error>");
    }
}

impl From<StreamCondition> for StreamError {
    fn from(condition: StreamCondition) -> Self {
        Self::new(condition)
    }
}

/// What the framer refused.
impl From<waystation_xml::XmlError> for StreamError {
    fn from(error: waystation_xml::XmlError) -> Self {
        let condition =
            StreamCondition::from_name(error.condition()).unwrap_or(StreamCondition::NotWellFormed);
        Self::new(condition).with_text(error.text())
    }
}

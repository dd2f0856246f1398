//! SASL EXTERNAL as the receiving server (RFC 6120 6, RFC 4422 A, XEP-0178 3).
//!
//! What must hold: it succeeds only over TLS, for the domain of the stream header's `from`, and only when the
//! peer's certificate proves that domain at that moment; an authorization identity can only repeat it.

use base64::Engine;
use waystation_core::xml::Element;
use waystation_core::{Jid, StreamCondition, StreamError};

/// Failed attempts on one connection.
const MAX_FAILURES: u32 = 3;

/// An exchange, of which one may be under way.
#[derive(Default)]
pub(crate) struct External {
    /// The authorization identity was asked for.
    awaits_identity: bool,
    failures: u32,
}

/// What an element of SASL comes to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// To be sent; the exchange goes on, or may be begun anew.
    Reply(Vec<u8>),
    /// The peer is authenticated; to be sent before the stream begins anew.
    Success(Vec<u8>),
}

/// Why EXTERNAL fails (RFC 6120 6.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Aborted,
    EncryptionRequired,
    IncorrectEncoding,
    InvalidAuthzid,
    InvalidMechanism,
    MalformedRequest,
    NotAuthorized,
}

impl Refusal {
    fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::EncryptionRequired => "encryption-required",
            Self::IncorrectEncoding => "incorrect-encoding",
            Self::InvalidAuthzid => "invalid-authzid",
            Self::InvalidMechanism => "invalid-mechanism",
            Self::MalformedRequest => "malformed-request",
            Self::NotAuthorized => "not-authorized",
        }
    }
}

impl External {
    /// Handles an element in the namespace of SASL. `from` is the domain of the stream header, if it has one;
    /// `permitted` tells whether the certificate proves it, and why not.
    ///
    /// # Errors
    /// What the stream must be closed with.
    pub(crate) fn element(
        &mut self,
        element: &Element,
        from: Option<&str>,
        permitted: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<Outcome, StreamError> {
        let awaits_identity = std::mem::take(&mut self.awaits_identity);
        let text = element.text();
        let attempt = match element.name() {
            // One exchange at a time; the one under way ends with this.
            "auth" if awaits_identity => Err(Refusal::MalformedRequest),
            "auth" if element.attr("mechanism") != Some("EXTERNAL") => Err(Refusal::InvalidMechanism),
            "auth" => permitted().map(|()| !text.is_empty()),
            "response" if awaits_identity => permitted().map(|()| true),
            "response" => Err(Refusal::MalformedRequest),
            "abort" => Err(Refusal::Aborted),
            _ => return Err(StreamCondition::UnsupportedStanzaType.into()),
        };
        match attempt.and_then(|given| if given { identity(&text, from) } else { Ok(false) }) {
            Ok(true) => Ok(Outcome::Success(b"<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>".to_vec())),
            // RFC 6120 6.4.2: without an initial response an empty challenge asks for it.
            Ok(false) => {
                self.awaits_identity = true;
                Ok(Outcome::Reply(b"<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>".to_vec()))
            }
            Err(refusal) => self.failed(refusal),
        }
    }

    fn failed(&mut self, refusal: Refusal) -> Result<Outcome, StreamError> {
        self.failures += 1;
        if self.failures > MAX_FAILURES {
            return Err(StreamError::new(StreamCondition::PolicyViolation)
                .with_text("too many failed authentications"));
        }
        let name = refusal.as_str();
        Ok(Outcome::Reply(
            format!("<failure xmlns='urn:ietf:params:xml:ns:xmpp-sasl'><{name}/></failure>").into_bytes(),
        ))
    }
}

/// Checks an authorization identity: none, or the very domain of the stream header.
fn identity(text: &str, from: Option<&str>) -> Result<bool, Refusal> {
    let data = match text {
        "" | "=" => Vec::new(),
        text => {
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| Refusal::IncorrectEncoding)?
        }
    };
    if data.is_empty() {
        return Ok(true);
    }
    let asked = String::from_utf8(data).ok().and_then(|text| Jid::parse(&text).ok());
    match (asked, from) {
        (Some(asked), Some(from)) if crate::stream::is_domain(&asked, from) => Ok(true),
        _ => Err(Refusal::InvalidAuthzid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sasl(external: &mut External, xml: &str, permitted: Result<(), Refusal>) -> String {
        let element = Element::parse(xml.as_bytes(), "urn:ietf:params:xml:ns:xmpp-sasl").unwrap();
        match external.element(&element, Some("a.org"), || permitted) {
            Ok(Outcome::Success(xml)) => {
                assert_eq!(xml, b"<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>");
                "success".to_owned()
            }
            Ok(Outcome::Reply(xml)) => String::from_utf8(xml)
                .unwrap()
                .replace(" xmlns='urn:ietf:params:xml:ns:xmpp-sasl'", "")
                .replace("<failure>", "")
                .replace("</failure>", ""),
            Err(error) => error.condition.as_str().to_owned(),
        }
    }

    fn auth(text: &str) -> String {
        format!("<auth mechanism='EXTERNAL'>{text}</auth>")
    }

    fn once(xml: &str) -> String {
        sasl(&mut External::default(), xml, Ok(()))
    }

    #[test]
    fn an_identity_can_only_repeat_the_streams_from() {
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        assert_eq!(once(&auth("=")), "success");
        assert_eq!(once(&auth(&encode("a.org"))), "success");
        assert_eq!(once(&auth(&encode("A.org"))), "success", "the same domain");
        for other in ["b.org", "u@a.org", "a.org/r", "sub.a.org", "", "\u{0}"] {
            let said = once(&auth(&encode(other)));
            assert_eq!(
                said,
                if other.is_empty() { "<challenge/>" } else { "<invalid-authzid/>" },
                "{other:?}"
            );
        }
        assert_eq!(once(&auth("/w==")), "<invalid-authzid/>", "not UTF-8");
        for bad in ["YS5vcmc", " YS5vcmc=", "YS5vcmc=\n", "****"] {
            assert_eq!(once(&auth(bad)), "<incorrect-encoding/>", "{bad:?} (X15)");
        }
        let nobody = External::default().element(
            &Element::parse(auth("YS5vcmc=").as_bytes(), "urn:ietf:params:xml:ns:xmpp-sasl").unwrap(),
            None,
            || Ok(()),
        );
        assert!(matches!(nobody, Ok(Outcome::Reply(_))), "nobody to be");
    }

    #[test]
    fn m10_external_fails_without_a_certificate_that_proves_the_domain() {
        for refusal in [Refusal::NotAuthorized, Refusal::EncryptionRequired] {
            let said = sasl(&mut External::default(), &auth("="), Err(refusal));
            assert_eq!(said, format!("<{}/>", refusal.as_str()));
        }
        // What was true when the identity was asked for need not be true when it comes.
        let mut external = External::default();
        assert_eq!(sasl(&mut external, &auth(""), Ok(())), "<challenge/>");
        assert_eq!(
            sasl(&mut external, "<response>=</response>", Err(Refusal::NotAuthorized)),
            "<not-authorized/>"
        );
    }

    #[test]
    fn an_exchange_goes_its_way() {
        assert_eq!(once("<auth mechanism='PLAIN'>=</auth>"), "<invalid-mechanism/>");
        assert_eq!(once("<auth>=</auth>"), "<invalid-mechanism/>");
        assert_eq!(once("<response>=</response>"), "<malformed-request/>");
        assert_eq!(once("<abort/>"), "<aborted/>");
        assert_eq!(once("<success/>"), "unsupported-stanza-type");
        let mut external = External::default();
        assert_eq!(sasl(&mut external, &auth(""), Ok(())), "<challenge/>");
        assert_eq!(sasl(&mut external, &auth("="), Ok(())), "<malformed-request/>", "one is under way");
        assert_eq!(sasl(&mut external, &auth(""), Ok(())), "<challenge/>");
        assert_eq!(sasl(&mut external, "<response/>", Ok(())), "success");
        let mut external = External::default();
        for _ in 0..MAX_FAILURES {
            assert_eq!(sasl(&mut external, &auth("="), Err(Refusal::NotAuthorized)), "<not-authorized/>");
        }
        assert_eq!(sasl(&mut external, &auth("="), Ok(())), "success", "up to the limit it may try again");
        let mut external = External { failures: MAX_FAILURES, ..External::default() };
        assert_eq!(sasl(&mut external, &auth("="), Err(Refusal::NotAuthorized)), "policy-violation");
    }
}

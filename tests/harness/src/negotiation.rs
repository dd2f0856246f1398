//! The steps of a login that are the same over every transport: SASL and bind.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::{Error, Result, show};
use crate::sasl::{Binding, Mechanism, Scram, plain};
use crate::xml::{Element, STREAM_NS, StreamEvent, escape};

const SASL_NS: &str = "urn:ietf:params:xml:ns:xmpp-sasl";

/// A stream that elements go over.
pub(crate) trait Negotiation {
    /// Sends one element.
    async fn put(&mut self, xml: &str) -> Result<()>;

    /// The next element; a stream error is returned as an error.
    async fn element(&mut self, what: &str) -> Result<Element>;

    /// Authenticates with the given mechanism. On success the caller opens a new stream.
    async fn authenticate(
        &mut self,
        mechanism: Mechanism,
        user: &str,
        password: &str,
        binding: Binding,
    ) -> Result<()> {
        let Some(hash) = mechanism.hash() else {
            let message = BASE64.encode(plain("", user, password));
            self.put(&format!("<auth xmlns='{SASL_NS}' mechanism='PLAIN'>{message}</auth>")).await?;
            return self.sasl_success().await.map(drop);
        };
        let mut scram = Scram::new(hash, user, password, "", binding);
        let first = BASE64.encode(scram.client_first());
        self.put(&format!("<auth xmlns='{SASL_NS}' mechanism='{}'>{first}</auth>", mechanism.name())).await?;
        let challenge = self.element("a SASL challenge").await?;
        if challenge.local() != "challenge" {
            return Err(sasl_error(&challenge));
        }
        let server_first = decode(&challenge.text())?;
        let last = scram.client_final(&server_first).map_err(Error::Sasl)?;
        self.put(&format!("<response xmlns='{SASL_NS}'>{}</response>", BASE64.encode(last))).await?;
        let server_final = decode(&self.sasl_success().await?)?;
        if scram.server_is_genuine(&server_final) {
            Ok(())
        } else {
            Err(Error::Sasl(format!("the server's signature is wrong: {server_final}")))
        }
    }

    /// Waits for `<success/>` and returns what it carries.
    async fn sasl_success(&mut self) -> Result<String> {
        let answer = self.element("the outcome of SASL").await?;
        if answer.name == (SASL_NS.to_owned(), "success".to_owned()) {
            Ok(answer.text())
        } else {
            Err(sasl_error(&answer))
        }
    }

    /// Binds a resource (the server chooses when `None`) and returns the full JID.
    async fn bind(&mut self, resource: Option<&str>) -> Result<String> {
        let inner = resource.map(|r| format!("<resource>{}</resource>", escape(r))).unwrap_or_default();
        self.put(&format!(
            "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>{inner}</bind></iq>"
        ))
        .await?;
        let answer = self.element("the bind result").await?;
        let jid = answer.child("bind").and_then(|b| b.child("jid")).map(Element::text);
        match jid {
            Some(jid) if answer.attr("type") == Some("result") => Ok(jid),
            _ => Err(Error::unexpected("a bind result with a JID", answer.to_string())),
        }
    }
}

/// The element that an event is; `got` is what else has come, for the error when it is none.
pub(crate) fn element_of(event: StreamEvent, what: &str, got: &[u8]) -> Result<Element> {
    match event {
        StreamEvent::Element(element) if element.name == (STREAM_NS.to_owned(), "error".to_owned()) => {
            Err(Error::unexpected(what, element.to_string()))
        }
        StreamEvent::Element(element) => Ok(element),
        StreamEvent::End => Err(Error::Closed { what: what.to_owned(), got: show(got) }),
        StreamEvent::Header(header) => Err(Error::unexpected(what, header.to_string())),
    }
}

fn decode(text: &str) -> Result<String> {
    let bytes = BASE64.decode(text.trim()).map_err(|e| Error::Sasl(format!("base64: {e}")))?;
    String::from_utf8(bytes).map_err(|e| Error::Sasl(e.to_string()))
}

fn sasl_error(answer: &Element) -> Error {
    let condition = answer.children().next().map_or("", Element::local);
    Error::Sasl(format!("{} {condition}", answer.local()))
}

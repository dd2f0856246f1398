//! A logged-in client that speaks in stanzas.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::sasl::Mechanism;
use crate::server::{Account, Endpoint};
use crate::stream::{Opened, RawClient};
use crate::wire::Wire;
use crate::xml::{CLIENT_NS, Element, escape};

/// How the connection is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// Plain TCP.
    None,
    /// TLS by STARTTLS.
    StartTls,
    /// Direct TLS.
    Direct,
}

/// How to log in.
#[derive(Debug, Clone)]
pub struct Login {
    /// How the connection is secured.
    pub security: Security,
    /// The mechanism; `None` takes the strongest on offer.
    pub mechanism: Option<Mechanism>,
    /// The resource to ask for; `None` lets the server choose.
    pub resource: Option<String>,
}

impl Default for Login {
    fn default() -> Self {
        Self { security: Security::None, mechanism: None, resource: None }
    }
}

impl Login {
    /// Plain TCP with this resource.
    pub fn resource(name: &str) -> Self {
        Self { resource: Some(name.to_owned()), ..Self::default() }
    }

    /// The same with other security.
    pub fn over(mut self, security: Security) -> Self {
        self.security = security;
        self
    }
}

/// A bound session.
pub struct Client {
    raw: RawClient,
    jid: String,
    features: Element,
    pings: u64,
}

impl Client {
    /// Connects, authenticates and binds.
    pub async fn login(at: &Endpoint, account: &Account, login: &Login) -> Result<Self> {
        let (mut raw, opened) = Self::authenticate(at, account, login).await?;
        let jid = raw.bind(login.resource.as_deref()).await?;
        Ok(Self { raw, jid, features: opened.features, pings: 0 })
    }

    /// Connects and authenticates, and opens the stream on which a resource can be bound or a session resumed.
    pub async fn authenticate(
        at: &Endpoint,
        account: &Account,
        login: &Login,
    ) -> Result<(RawClient, Opened)> {
        let (mut raw, opened) = Self::open(at, &account.host, login.security).await?;
        let mechanism = match login.mechanism {
            Some(mechanism) => mechanism,
            None => strongest(&opened, login.security)?,
        };
        raw.authenticate(mechanism, &account.user, &account.password, &opened.bindings()).await?;
        let opened = raw.open(&account.host).await?;
        Ok((raw, opened))
    }

    /// Connects and opens a stream, after TLS if asked for, ready to authenticate.
    pub async fn open(at: &Endpoint, host: &str, security: Security) -> Result<(RawClient, Opened)> {
        let mut raw = match security {
            Security::Direct => RawClient::connect_tls(at.c2s_tls, host).await?,
            Security::None | Security::StartTls => RawClient::connect(at.c2s).await?,
        };
        let mut opened = raw.open(host).await?;
        if security == Security::StartTls {
            raw.starttls(host).await?;
            opened = raw.open(host).await?;
        }
        Ok((raw, opened))
    }

    /// The full JID.
    pub fn jid(&self) -> &str {
        &self.jid
    }

    /// The bare JID.
    pub fn bare(&self) -> &str {
        self.jid.split_once('/').map_or(&self.jid, |(bare, _)| bare)
    }

    /// The domain.
    pub fn host(&self) -> &str {
        self.bare().rsplit_once('@').map_or(self.bare(), |(_, host)| host)
    }

    /// The features offered after authentication.
    pub fn features(&self) -> &Element {
        &self.features
    }

    /// The stream below, for raw bytes.
    pub fn raw(&mut self) -> &mut RawClient {
        &mut self.raw
    }

    /// Sends XML as it is.
    pub async fn send(&mut self, xml: impl AsRef<[u8]>) -> Result<()> {
        self.raw.send(xml).await
    }

    /// The next stanza, whatever it is. Requests of the server are answered, as any client
    /// does, and not shown.
    pub async fn next(&mut self, what: &str) -> Result<Element> {
        loop {
            let stanza = self.raw.next_element(what).await?;
            let Some(pong) = self.pong(&stanza) else { return Ok(stanza) };
            self.send(pong).await?;
        }
    }

    /// The answer to a ping of the server, or to its question for features, by which it learns
    /// what was read.
    fn pong(&self, stanza: &Element) -> Option<String> {
        let from = stanza.attr("from").filter(|from| *from == self.host())?;
        let asks = |ns: &str| stanza.child_in(ns).is_some();
        let request = stanza.local() == "iq" && stanza.attr("type") == Some("get");
        let known = asks("urn:xmpp:ping") || asks("http://jabber.org/protocol/disco#info");
        let id = stanza.attr("id").filter(|_| request && known)?;
        Some(format!("<iq type='result' id='{}' to='{}'/>", escape(id), escape(from)))
    }

    /// The next stanza with this id; others before it are an error.
    pub async fn reply(&mut self, id: &str) -> Result<Element> {
        let stanza = self.next(&format!("the reply to {id}")).await?;
        if stanza.attr("id") == Some(id) {
            Ok(stanza)
        } else {
            Err(Error::unexpected(format!("id {id}"), stanza.to_string()))
        }
    }

    /// Pings the server and returns what arrived before the answer, oldest first.
    pub async fn drain(&mut self) -> Result<Vec<Element>> {
        self.pings += 1;
        let id = format!("drain-{}", self.pings);
        let host = self.host().to_owned();
        self.send(format!(
            "<iq type='get' id='{id}' to='{}'><ping xmlns='urn:xmpp:ping'/></iq>",
            escape(&host)
        ))
        .await?;
        let mut before = Vec::new();
        loop {
            let stanza = self.next("the answer to a ping").await?;
            let is_answer =
                stanza.local() == "iq" && stanza.ns() == CLIENT_NS && stanza.attr("id") == Some(&id);
            match (is_answer, stanza.attr("type")) {
                (true, Some("result")) => return Ok(before),
                (true, _) => return Err(Error::unexpected("a pong", stanza.to_string())),
                (false, _) => before.push(stanza),
            }
        }
    }

    /// Sends initial presence and waits until the server has reflected it.
    /// Stanzas that came with it (roster contacts' presence, offline messages) are returned.
    pub async fn become_available(&mut self) -> Result<Vec<Element>> {
        self.send("<presence/>").await?;
        let mut others = Vec::new();
        loop {
            let stanza = self.next("the own presence").await?;
            let own = stanza.local() == "presence" && stanza.attr("from") == Some(&self.jid);
            if own && stanza.attr("type").is_none() {
                return Ok(others);
            }
            others.push(stanza);
        }
    }

    /// How long each later step may take.
    pub fn set_patience(&mut self, patience: Duration) {
        self.raw.set_patience(patience);
    }

    /// Gives the connection away, for traffic that needs no stanza reader.
    pub fn into_wire(self) -> Wire {
        self.raw.into_wire().0
    }

    /// Closes the stream in order.
    pub async fn close(self) -> Result<()> {
        self.raw.close().await
    }

    /// Breaks the connection without a word.
    pub fn reset(self) -> Result<()> {
        self.raw.reset()
    }
}

/// The strongest mechanism on offer that fits the connection.
pub(crate) fn strongest(opened: &Opened, security: Security) -> Result<Mechanism> {
    let offered = opened.mechanisms();
    let order = [
        Mechanism::ScramSha256Plus,
        Mechanism::ScramSha1Plus,
        Mechanism::ScramSha256,
        Mechanism::ScramSha1,
        Mechanism::Plain,
    ];
    // A server that offers -PLUS without saying which bindings (XEP-0440) may support only tls-unique.
    let can_bind = security != Security::None && !opened.bindings().is_empty();
    order
        .into_iter()
        .filter(|m| can_bind || !m.is_plus())
        .find(|m| offered.iter().any(|o| o == m.name()))
        .ok_or_else(|| Error::Sasl(format!("no mechanism in common; offered: {offered:?}")))
}

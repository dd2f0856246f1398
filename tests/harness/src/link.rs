//! A client's stream over any of the transports, for who does not care which.

use std::time::Duration;

use crate::bosh::Bosh;
use crate::client::{Client, Login, Security, strongest};
use crate::error::Result;
use crate::negotiation::{Negotiation, element_of};
use crate::sasl::{Binding, Mechanism};
use crate::server::{Account, Endpoint};
use crate::stream::{Opened, RawClient};
use crate::websocket::WebSocket;
use crate::xml::{Element, StreamEvent};

/// How a stream gets to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Transport {
    /// A connection of its own.
    Tcp,
    /// A WebSocket (RFC 7395).
    WebSocket,
    /// HTTP requests (XEP-0206).
    Bosh,
}

/// A client's stream.
pub enum Link {
    /// A connection of its own.
    Tcp(Box<RawClient>),
    /// A WebSocket.
    WebSocket(Box<WebSocket>),
    /// HTTP requests.
    Bosh(Box<Bosh>),
}

impl Link {
    /// Connects and authenticates, and opens the stream on which a resource can be bound or a session
    /// resumed. The login's security is that of TCP; the other transports go without TLS.
    ///
    /// # Errors
    /// When any step of it fails.
    pub async fn authenticate(
        over: Transport,
        at: &Endpoint,
        account: &Account,
        login: &Login,
    ) -> Result<(Self, Opened)> {
        let mut link = match over {
            Transport::Tcp => {
                let (raw, opened) = Client::authenticate(at, account, login).await?;
                return Ok((Self::Tcp(Box::new(raw)), opened));
            }
            Transport::WebSocket => Self::WebSocket(Box::new(WebSocket::connect(at.http).await?)),
            Transport::Bosh => Self::Bosh(Box::new(Bosh::new(at.http))),
        };
        let opened = link.open(&account.host).await?;
        let mechanism = match login.mechanism {
            Some(mechanism) => mechanism,
            None => strongest(&opened, Security::None)?,
        };
        link.prove(mechanism, account).await?;
        let opened = link.open(&account.host).await?;
        Ok((link, opened))
    }

    async fn prove(&mut self, mechanism: Mechanism, account: &Account) -> Result<()> {
        let Account { user, password, .. } = account;
        match self {
            Self::Tcp(raw) => raw.authenticate(mechanism, user, password, &[]).await,
            Self::WebSocket(socket) => {
                Negotiation::authenticate(&mut **socket, mechanism, user, password, Binding::NotSupported)
                    .await
            }
            Self::Bosh(bosh) => {
                Negotiation::authenticate(&mut **bosh, mechanism, user, password, Binding::NotSupported).await
            }
        }
    }

    /// Starts a new stream to `host` and waits for its features.
    ///
    /// # Errors
    /// When something else comes.
    pub async fn open(&mut self, host: &str) -> Result<Opened> {
        match self {
            Self::Tcp(raw) => raw.open(host).await,
            Self::WebSocket(socket) => socket.open(host).await,
            Self::Bosh(bosh) => bosh.open(host).await,
        }
    }

    /// Binds a resource (the server chooses when `None`) and returns the full JID.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn bind(&mut self, resource: Option<&str>) -> Result<String> {
        match self {
            Self::Tcp(raw) => raw.bind(resource).await,
            Self::WebSocket(socket) => Negotiation::bind(&mut **socket, resource).await,
            Self::Bosh(bosh) => Negotiation::bind(&mut **bosh, resource).await,
        }
    }

    /// Sends one element.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn send(&mut self, xml: &str) -> Result<()> {
        match self {
            Self::Tcp(raw) => raw.send(xml).await,
            Self::WebSocket(socket) => socket.send(xml).await,
            Self::Bosh(bosh) => bosh.send(xml).await,
        }
    }

    /// The next event of the stream. Waiting for it may be given up: nothing is lost.
    ///
    /// # Errors
    /// When the connection fails, or nothing comes in time.
    pub async fn next_event(&mut self, what: &str) -> Result<StreamEvent> {
        match self {
            Self::Tcp(raw) => raw.next_event(what).await,
            Self::WebSocket(socket) => socket.next_event(what).await,
            Self::Bosh(bosh) => bosh.next_event(what).await,
        }
    }

    /// The next element; a stream error is returned as an error.
    ///
    /// # Errors
    /// As [`Link::next_event`], and when the stream ends.
    pub async fn next_element(&mut self, what: &str) -> Result<Element> {
        let event = self.next_event(what).await?;
        element_of(event, what, b"")
    }

    /// Changes how long each later step may take.
    pub fn set_patience(&mut self, patience: Duration) {
        match self {
            Self::Tcp(raw) => raw.set_patience(patience),
            Self::WebSocket(socket) => socket.set_patience(patience),
            Self::Bosh(bosh) => bosh.set_patience(patience),
        }
    }

    /// Ends the client's half of the stream. The server's end of it comes as an event.
    ///
    /// # Errors
    /// When the connection fails.
    pub async fn end_stream(&mut self) -> Result<()> {
        match self {
            Self::Tcp(raw) => raw.send("</stream:stream>").await,
            Self::WebSocket(socket) => socket.end_stream().await,
            Self::Bosh(bosh) => bosh.end_stream().await,
        }
    }

    /// Ends the stream, waits for the server to end it, and closes the connection. Stanzas that were
    /// still on their way are dropped.
    ///
    /// # Errors
    /// When something fails before the server's end of the stream.
    pub async fn close(mut self) -> Result<()> {
        if let Self::Tcp(raw) = self {
            return raw.close().await;
        }
        self.end_stream().await?;
        const END: &str = "the end of the stream";
        loop {
            match self.next_event(END).await? {
                StreamEvent::End => break,
                event @ StreamEvent::Element(_) => drop(element_of(event, END, b"")?),
                StreamEvent::Header(_) => {}
            }
        }
        match self {
            Self::WebSocket(socket) => socket.finish().await,
            Self::Tcp(_) | Self::Bosh(_) => Ok(()),
        }
    }

    /// Shuts the connection after what was written, and reads and drops what still comes: the server
    /// finds no half of anything. A session over BOSH goes on with the next step.
    pub async fn shut(&mut self) {
        // What fails here fails on a socket that is gone already.
        match self {
            Self::Tcp(raw) => {
                let _gone = raw.wire().shutdown().await;
                let _unread = raw.read_to_end().await;
            }
            Self::WebSocket(socket) => {
                let _gone = socket.wire().shutdown().await;
                while matches!(socket.next_message("the end").await, Ok(Some(_))) {}
            }
            Self::Bosh(bosh) => bosh.exchange().shut().await,
        }
    }

    /// Breaks the connection without a word.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn reset(self) -> Result<()> {
        match self {
            Self::Tcp(raw) => raw.reset(),
            Self::WebSocket(socket) => socket.reset(),
            Self::Bosh(mut bosh) => {
                bosh.reset();
                Ok(())
            }
        }
    }
}

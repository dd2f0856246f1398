//! A connection of a test client: from TCP to a stream on which it is logged in.
//!
//! What must hold: nothing that the server sent is dropped, and reading can be cancelled; what
//! another attempt may cure is told apart from what it will not.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use waystation_auth::ScramClient;
use waystation_core::xml::{Element, Event, Framer, Limits};

use super::HOST;

/// Namespace of client streams.
const CLIENT: &str = "jabber:client";
/// Namespace of the stream itself.
const STREAMS: &str = "http://etherx.jabber.org/streams";
/// Namespace of SASL.
const SASL: &str = "urn:ietf:params:xml:ns:xmpp-sasl";
/// Namespace of resource binding.
const BIND: &str = "urn:ietf:params:xml:ns:xmpp-bind";
/// How long the server may take to answer, or to take what is sent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It broke, which a killed server explains.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The server ended it with a stream error.
    #[error("the server ended the stream: {0}")]
    Ended(String),
    /// The server does what it must not do.
    #[error("{0}")]
    Wrong(String),
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// What comes from the server.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A whole element.
    Element(Element),
    /// The end of its stream.
    Close,
}

/// A connection to the server.
pub(super) struct Connection {
    tcp: TcpStream,
    framer: Framer,
    buffer: Vec<u8>,
    arrived: VecDeque<Incoming>,
}

impl Connection {
    /// Connects and logs in; a resource is still to be bound, or a session to be resumed.
    pub(super) async fn log_in(address: SocketAddr, user: &str, password: &str) -> Result<Self, Fault> {
        let tcp = timeout(PATIENCE, TcpStream::connect(address)).await.map_err(|_| late())??;
        tcp.set_nodelay(true)?;
        let limits = Limits { max_stanza_bytes: 1024 * 1024, ..Limits::authenticated() };
        let mut connection =
            Self { tcp, framer: Framer::new(limits), buffer: vec![0; 16 * 1024], arrived: VecDeque::new() };
        connection.open().await?;
        connection.authenticate(user, password).await?;
        connection.framer.restart();
        connection.open().await?;
        Ok(connection)
    }

    /// Opens a stream and waits for the features.
    async fn open(&mut self) -> Result<(), Fault> {
        self.send(&format!(
            "<?xml version='1.0'?><stream:stream to='{HOST}' version='1.0' xmlns='{CLIENT}' \
             xmlns:stream='{STREAMS}'>"
        ))
        .await?;
        let features = self.answer().await?;
        expect(&features, features.is("features", STREAMS), "stream features")
    }

    async fn authenticate(&mut self, user: &str, password: &str) -> Result<(), Fault> {
        let mut scram = ScramClient::new(user, password).map_err(|error| Fault::Wrong(error.to_string()))?;
        let mechanism = ScramClient::MECHANISM;
        self.send(&format!("<auth xmlns='{SASL}' mechanism='{mechanism}'>{}</auth>", scram.first())).await?;
        let challenge = self.answer().await?;
        expect(&challenge, challenge.is("challenge", SASL), "a SASL challenge")?;
        let response = scram.respond(&challenge.text()).map_err(|error| Fault::Wrong(error.to_string()))?;
        self.send(&format!("<response xmlns='{SASL}'>{response}</response>")).await?;
        let success = self.answer().await?;
        let is_genuine = success.is("success", SASL) && scram.trusts(&success.text());
        expect(&success, is_genuine, "the success of a login")
    }

    /// Binds a resource.
    pub(super) async fn bind(&mut self, resource: &str) -> Result<(), Fault> {
        self.send(&format!(
            "<iq type='set' id='bind'><bind xmlns='{BIND}'><resource>{resource}</resource></bind></iq>"
        ))
        .await?;
        let bound = self.answer().await?;
        expect(&bound, bound.is("iq", CLIENT) && bound.attr("type") == Some("result"), "a bound resource")
    }

    /// Sends bytes as they are.
    pub(super) async fn send(&mut self, xml: &str) -> Result<(), Fault> {
        Ok(timeout(PATIENCE, self.tcp.write_all(xml.as_bytes())).await.map_err(|_| late())??)
    }

    /// The next element, which the server owes.
    pub(super) async fn answer(&mut self) -> Result<Element, Fault> {
        match timeout(PATIENCE, self.next()).await.map_err(|_| late())?? {
            Incoming::Element(element) => Ok(element),
            Incoming::Close => Err(Fault::Broken("the server closed the stream".to_owned())),
        }
    }

    /// What comes next, however long that takes. Can be cancelled.
    pub(super) async fn next(&mut self) -> Result<Incoming, Fault> {
        loop {
            if let Some(incoming) = self.arrived.pop_front() {
                return match incoming {
                    Incoming::Element(error) if error.is("error", STREAMS) => {
                        Err(Fault::Ended(error.children().next().map_or("none", Element::name).to_owned()))
                    }
                    incoming => Ok(incoming),
                };
            }
            let read = self.tcp.read(&mut self.buffer).await?;
            if read == 0 {
                return Err(Fault::Broken("the server is gone".to_owned()));
            }
            let mut input = &self.buffer[..read];
            let wrong = |error| Fault::Wrong(format!("the server's XML is wrong: {error}"));
            loop {
                match self.framer.next(&mut input).map_err(wrong)? {
                    Event::NeedMore => break,
                    Event::Whitespace(_) | Event::Open(_) => {}
                    Event::Stanza(frame) => {
                        self.arrived.push_back(Incoming::Element(frame.element().map_err(wrong)?));
                    }
                    Event::Close => self.arrived.push_back(Incoming::Close),
                }
            }
        }
    }
}

/// An answer that is not the expected one will not become it.
fn expect(answer: &Element, holds: bool, what: &str) -> Result<(), Fault> {
    if holds {
        return Ok(());
    }
    let mut xml = Vec::new();
    answer.write(&mut xml, CLIENT);
    Err(Fault::Wrong(format!("expected {what}, the server sent {}", String::from_utf8_lossy(&xml))))
}

fn late() -> Fault {
    Fault::Broken(format!("the server did not answer in {} s", PATIENCE.as_secs()))
}

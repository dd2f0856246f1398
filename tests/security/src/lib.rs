//! What the attack tests share: a server, a witness that must notice nothing, and streams in
//! the states that attacks begin from.
//!
//! What must hold: every attack ends with [`World::end`], which asserts the witness, the
//! server's memory and file descriptors, and its log.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

pub mod managed;
pub mod openssl;
pub mod statistics;

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use waystation_harness::witness::Report;
use waystation_harness::xml::Element;
use waystation_harness::{Client, Config, Login, RawClient, Security, Server, Witness};

/// A stream header to `localhost`.
pub const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>";

/// Who measures or floods has it alone: what another test of the same program takes from the
/// machine would be held against the server.
static MACHINE: RwLock<()> = RwLock::new(());

enum Turn {
    Shared(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

/// A server with the accounts romeo, juliet and witness, and the witness at work.
pub struct World {
    /// The server.
    pub server: Server,
    witness: Witness,
    // The last field: the server ends first.
    _turn: Turn,
}

impl World {
    /// A server with default limits; TLS is offered and not required.
    pub fn new() -> Self {
        Self::with(Config::default())
    }

    /// A server with other settings.
    pub fn with(config: Config) -> Self {
        // A test that failed leaves nothing behind that others could find broken.
        let turn = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
        Self::start(config, Turn::Shared(turn))
    }

    /// The same for tests that flood the server or measure it: no other test of this program runs
    /// meanwhile.
    pub fn alone(config: Config) -> Self {
        let turn = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
        Self::start(config, Turn::Alone(turn))
    }

    fn start(config: Config, turn: Turn) -> Self {
        let server = Server::start(config.with_users(["romeo", "juliet", "witness"])).unwrap();
        let witness = Witness::start(server.endpoint(), server.account("witness")).unwrap();
        Self { server, witness, _turn: turn }
    }

    /// Asserts what must hold after every attack.
    pub fn end(self) {
        self.witness.finish();
        self.server.finish();
    }

    /// Ends it, and tells what the witness saw.
    pub fn report(self) -> Report {
        let report = self.witness.end().unwrap();
        self.server.finish();
        report
    }

    /// A TCP connection on which nothing was sent.
    pub async fn connect(&self) -> RawClient {
        RawClient::connect(self.server.endpoint().c2s).await.unwrap()
    }

    /// A stream that is open and not authenticated.
    pub async fn open(&self) -> RawClient {
        let mut raw = self.connect().await;
        raw.open("localhost").await.unwrap();
        raw
    }

    /// The same over STARTTLS.
    pub async fn open_tls(&self) -> RawClient {
        Client::open(self.server.endpoint(), "localhost", Security::StartTls).await.unwrap().0
    }

    /// A bound session of romeo or juliet.
    pub async fn login(&self, user: &str, resource: &str) -> Client {
        let login = Login::resource(resource);
        Client::login(self.server.endpoint(), self.server.account(user), &login).await.unwrap()
    }
}

impl Default for World {
    fn default() -> Self {
        Self::new()
    }
}

/// Base64 of text.
pub fn base64(text: impl AsRef<[u8]>) -> String {
    STANDARD.encode(text)
}

/// The bytes of base64.
pub fn from_base64(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}

/// The condition of a stanza error.
pub fn condition(stanza: &Element) -> String {
    let error = stanza.child("error").and_then(|e| e.child_in("urn:ietf:params:xml:ns:xmpp-stanzas"));
    error.map_or_else(|| format!("no error: {stanza}"), |e| e.local().to_owned())
}

/// Sends SASL data and returns the condition of the failure, or the name of what came instead.
pub async fn sasl(raw: &mut RawClient, xml: &str) -> String {
    raw.send(xml).await.unwrap();
    let answer = raw.next_element("an answer to SASL").await.unwrap();
    match answer.children().next() {
        Some(condition) if answer.local() == "failure" => condition.local().to_owned(),
        _ => answer.local().to_owned(),
    }
}

/// `<auth/>` with a message.
pub fn auth(mechanism: &str, message: impl AsRef<[u8]>) -> String {
    let data = base64(message);
    format!("<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='{mechanism}'>{data}</auth>")
}

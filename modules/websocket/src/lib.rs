//! XMPP over WebSocket (RFC 7395), for browsers and for networks that let nothing but HTTP pass.
//!
//! A service at a path of the HTTP listeners (`/xmpp-websocket` unless configured otherwise) that
//! takes WebSocket handshakes with the sub-protocol `xmpp`, from pages of its own origin, from those
//! of a list, and from clients that are no browsers. Behind it is a client stream like any other:
//! the same login, limits, stream management and resumption. Each element travels in a message of
//! its own and is complete by itself; pings are answered; fragments are put together within the
//! limit of a stanza; nothing is compressed. TLS is that of the HTTP listener, or of the proxy
//! before it.
//!
//! What must hold: what reaches the server's stream is what this module wrote itself or an element
//! that was proven to be exactly one, complete and well-formed, so that no frame can be taken apart
//! elsewhere than at its ends; whoever does not read is not read from; a session without traffic
//! holds no buffer here.

mod connection;
mod frame;
mod handshake;
mod inbound;
mod outbound;
mod quota;
mod utf8;

use std::sync::Arc;

use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use waystation_core::module::{Module, Registration, Spec};
use waystation_web::{Streams, WebModule};

use crate::connection::Limits;
use crate::handshake::{Origins, Refusal};

/// What the module implements.
pub const SPECS: &[Spec] = &[Spec {
    id: "RFC 7395",
    version: "",
    title: "An Extensible Messaging and Presence Protocol (XMPP) Subprotocol for WebSocket",
}];

const NS_FRAMING: &str = "urn:ietf:params:xml:ns:xmpp-framing";

/// What the module is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Path of the service, with a slash at its start.
    pub path: String,
    /// Origins whose pages may connect besides those of the server's own: `https://chat.example.org`,
    /// with a port if it is not that of the scheme; `*` for all.
    pub origins: Vec<String>,
    /// Most bytes of a message once the client is authenticated, all its fragments together; the
    /// server's limit of a stanza, or more. A longer one ends the connection (1009).
    pub max_frame: usize,
    /// The same before.
    pub max_frame_pre_auth: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            path: "/xmpp-websocket".into(),
            origins: Vec::new(),
            max_frame: 262_144,
            max_frame_pre_auth: 8192,
        }
    }
}

/// The module.
pub struct WebSocket {
    path: String,
    service: Arc<Service>,
}

struct Service {
    streams: Arc<dyn Streams>,
    origins: Origins,
    limits: Limits,
}

impl WebSocket {
    /// A service whose clients' streams go to `streams`.
    pub fn new(streams: Arc<dyn Streams>, settings: Settings) -> Self {
        let Settings { path, origins, max_frame, max_frame_pre_auth } = settings;
        let limits = Limits { pre_auth: max_frame_pre_auth.min(max_frame), authenticated: max_frame };
        Self { path, service: Arc::new(Service { streams, origins: Origins::new(origins), limits }) }
    }
}

impl WebModule for WebSocket {
    fn configure(&self, config: &mut ServiceConfig) {
        let service = self.service.clone();
        let handler = move |request: HttpRequest, payload: web::Payload| {
            let response = service.upgrade(&request, payload);
            async move { response }
        };
        // Every method, so that all but GET are told what is wrong (405).
        config.service(web::resource(self.path.as_str()).to(handler));
    }
}

impl Service {
    fn upgrade(&self, request: &HttpRequest, payload: web::Payload) -> HttpResponse {
        let client = match handshake::check(request, &self.origins) {
            Ok(client) => client,
            Err(Refusal::NoClient) => {
                tracing::error!("the HTTP server does not say where requests come from");
                return Refusal::NoClient.response();
            }
            Err(refusal) => return refusal.response(),
        };
        let (connection, end) =
            waystation_transport::pipe(client.peer, client.secure, connection::PIPE_CAPACITY);
        self.streams.accept(connection);
        let payload = payload.into_inner();
        let connection = connection::Connection::new(payload, end, client.peer, self.limits);
        handshake::answer(request).streaming(connection)
    }
}

impl Module for WebSocket {
    fn registration(&self) -> Registration {
        Registration { name: "websocket", specs: SPECS.to_vec(), ..Registration::default() }
    }
}

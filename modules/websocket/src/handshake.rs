//! Who may connect, and the handshake (RFC 6455 4.2, RFC 7395 3.1).
//!
//! What must hold: a page of a foreign origin that is not allowed gets no connection, whatever else
//! is right with its request (M8); the answer agrees to nothing but the sub-protocol `xmpp`.

use actix_http::ws::{self, HandshakeError};
use actix_web::http::header::{self, HeaderMap, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder};
use waystation_web::ClientInfo;

/// Origins whose pages may connect.
pub(crate) struct Origins {
    listed: Vec<String>,
    all: bool,
}

impl Origins {
    pub(crate) fn new(mut listed: Vec<String>) -> Self {
        for origin in &mut listed {
            origin.truncate(origin.trim_end_matches('/').len());
        }
        Self { all: listed.iter().any(|origin| origin == "*"), listed }
    }

    /// `own` is the origin that the request was sent to. Browsers always name theirs; a client that
    /// names none is no browser, and no page speaks through it.
    fn allow(&self, headers: &HeaderMap, own: &str) -> bool {
        if self.all {
            return true;
        }
        let mut origins = headers.get_all(header::ORIGIN);
        let (first, second) = (origins.next(), origins.next());
        let Some(origin) = first else { return true };
        // Two of them: nobody can tell which one counts.
        let (Ok(origin), None) = (origin.to_str(), second) else { return false };
        origin.eq_ignore_ascii_case(own) || self.listed.iter().any(|one| one.eq_ignore_ascii_case(origin))
    }
}

/// Why a request gets no connection.
pub(crate) enum Refusal {
    /// The HTTP server does not say where it comes from.
    NoClient,
    /// It is from a page of a foreign origin.
    Origin,
    Handshake(HandshakeError),
    /// It does not ask for the sub-protocol.
    Protocol,
}

impl Refusal {
    pub(crate) fn response(self) -> HttpResponse {
        match self {
            Self::NoClient => HttpResponse::InternalServerError().finish(),
            Self::Origin => HttpResponse::Forbidden().body("This origin is not allowed.\n"),
            Self::Handshake(error) => HttpResponse::from(actix_http::Response::from(error)),
            Self::Protocol => HttpResponse::BadRequest().body("The WebSocket sub-protocol must be xmpp.\n"),
        }
    }
}

/// Checks a request, and says who the client is.
pub(crate) fn check(request: &HttpRequest, origins: &Origins) -> Result<ClientInfo, Refusal> {
    let client = request.extensions().get::<ClientInfo>().cloned();
    let client = client.ok_or(Refusal::NoClient)?;
    if !origins.allow(request.headers(), &client.base) {
        tracing::info!(peer = %client.peer, "a page of a foreign origin was refused");
        return Err(Refusal::Origin);
    }
    ws::verify_handshake(request.head()).map_err(Refusal::Handshake)?;
    if offers_xmpp(request.headers()) { Ok(client) } else { Err(Refusal::Protocol) }
}

/// The answer to a request that was checked, but for its body.
pub(crate) fn answer(request: &HttpRequest) -> HttpResponseBuilder {
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY).map_or(&b""[..], HeaderValue::as_bytes);
    let mut response = HttpResponse::SwitchingProtocols();
    response.upgrade("websocket");
    response.insert_header((header::SEC_WEBSOCKET_ACCEPT, &ws::hash_key(key)[..]));
    response.insert_header((header::SEC_WEBSOCKET_PROTOCOL, "xmpp"));
    response
}

fn offers_xmpp(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|protocol| protocol.trim() == "xmpp")
}

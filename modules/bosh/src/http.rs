//! The service as HTTP sees it (XEP-0124 5): POST for requests, a page for people who look at it
//! with a browser.
//!
//! What must hold: no more of a request is read than it may have; what a client chooses as the
//! type of its responses cannot make a browser run what is in them.

use std::sync::Arc;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, HttpResponseBuilder, web};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use waystation_web::ClientInfo;

use crate::body::{self, BodyError};
use crate::registry::Shared;
use crate::request::Condition;
use crate::session::{Response, refusal};

/// Type of responses when the client does not ask for another one (7.1).
pub(crate) const CONTENT_TYPE: &str = "text/xml; charset=utf-8";
/// What the wrapper of a request may take besides its payloads.
const WRAPPER: usize = 8192;

const HELP: &str = "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'><title>BOSH</title></head>\
    <body><h1>It works</h1><p>This is the address of a BOSH service (XEP-0124), by which chat clients reach \
    an XMPP server over HTTP. To chat, give this address to such a client.</p></body></html>\n";

/// Adds the service.
pub(crate) fn configure(shared: &Arc<Shared>, config: &mut web::ServiceConfig) {
    let data = shared.clone();
    let post = move |request: HttpRequest, payload: web::Payload| {
        let shared = data.clone();
        async move { answer(shared, request, payload).await }
    };
    config.service(
        web::resource(&shared.settings.path)
            .route(web::post().to(post))
            .route(web::get().to(help))
            .route(web::head().to(help))
            .route(web::method(actix_web::http::Method::OPTIONS).to(options))
            .default_service(web::to(not_allowed)),
    );
}

async fn help() -> HttpResponse {
    safe(&mut HttpResponse::Ok()).content_type("text/html; charset=utf-8").body(HELP)
}

async fn options() -> HttpResponse {
    HttpResponse::NoContent().insert_header((header::ALLOW, "GET, HEAD, OPTIONS, POST")).finish()
}

async fn not_allowed() -> HttpResponse {
    HttpResponse::MethodNotAllowed().insert_header((header::ALLOW, "GET, HEAD, OPTIONS, POST")).finish()
}

async fn answer(shared: Arc<Shared>, request: HttpRequest, payload: web::Payload) -> HttpResponse {
    let encoded = request.headers().get(header::CONTENT_ENCODING);
    if encoded.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        // 7.2: no encoding was offered with `accept`.
        return HttpResponse::UnsupportedMediaType().finish();
    }
    let info = request.extensions().get::<ClientInfo>().cloned();
    let Some(info) = info.or_else(|| unknown_client(&request)) else {
        return HttpResponse::InternalServerError().finish();
    };
    let limits = shared.settings.limits;
    let most = limits.max_stanza_bytes + WRAPPER;
    let input = match read(payload, most).await {
        Ok(Some(input)) => input,
        Ok(None) => return refused(StatusCode::PAYLOAD_TOO_LARGE, Condition::PolicyViolation),
        Err(()) => return HttpResponse::BadRequest().finish(),
    };
    let limits = waystation_core::xml::Limits {
        max_stanza_bytes: most,
        max_depth: limits.max_depth + 1,
        max_elements: limits.max_elements + 1,
        ..limits
    };
    let mut body = match body::parse(&input, limits) {
        Ok(body) => body,
        // 17.1, 17.2: whether it is a legacy client is not known, so both are said.
        Err(error) => {
            tracing::debug!(peer = %info.peer, %error, "a BOSH request was refused");
            let condition = match error {
                BodyError::Xml(error) if error.condition() == "policy-violation" => {
                    Condition::PolicyViolation
                }
                _ => Condition::BadRequest,
            };
            return refused(StatusCode::BAD_REQUEST, condition);
        }
    };
    drop(input);
    let (response, content) = shared.request(&mut body, info).await;
    write(response, content.as_deref())
}

/// The client of a server that says nothing of its clients.
fn unknown_client(request: &HttpRequest) -> Option<ClientInfo> {
    let peer = request.peer_addr()?;
    Some(ClientInfo { peer, secure: false, base: String::new() })
}

/// The content of a request; `None` when it is larger than `most` bytes.
async fn read(mut payload: web::Payload, most: usize) -> Result<Option<Bytes>, ()> {
    let mut input = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        let chunk = chunk.map_err(drop)?;
        if input.len() + chunk.len() > most {
            return Ok(None);
        }
        input.extend_from_slice(&chunk);
    }
    Ok(Some(input.freeze()))
}

fn refused(status: StatusCode, condition: Condition) -> HttpResponse {
    let Response::Body(body) = refusal(false, Some(condition)) else {
        return HttpResponse::build(status).finish();
    };
    safe(&mut HttpResponse::build(status)).content_type(CONTENT_TYPE).body(body)
}

fn write(response: Response, content: Option<&str>) -> HttpResponse {
    match response {
        Response::Body(body) => {
            let content = content.unwrap_or(CONTENT_TYPE);
            let content = HeaderValue::from_str(content).unwrap_or(HeaderValue::from_static(CONTENT_TYPE));
            safe(&mut HttpResponse::Ok()).insert_header((header::CONTENT_TYPE, content)).body(body)
        }
        Response::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
            safe(&mut HttpResponse::build(status)).force_close().finish()
        }
        Response::Retry => {
            let again = (header::RETRY_AFTER, "1");
            safe(&mut HttpResponse::ServiceUnavailable()).insert_header(again).force_close().finish()
        }
    }
}

/// A response is nobody's business but the client's, and no page whatever type it has.
fn safe(builder: &mut HttpResponseBuilder) -> &mut HttpResponseBuilder {
    builder
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .insert_header((
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; sandbox; frame-ancestors 'none'",
        ))
}

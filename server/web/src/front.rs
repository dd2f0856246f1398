//! What every request passes before its service, and every response after it.
//!
//! What must hold: a service finds a [`ClientInfo`] in each request; no response is without the
//! headers that keep a browser from misusing it; nothing needs cookies, so that a page of another origin gains
//! nothing by a request that it could not send itself.

use std::rc::Rc;
use std::sync::Arc;

use actix_http::ConnectionType;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpResponse};

use crate::body::{FinalBody, TimedBody};
use crate::client::client_info;
use crate::connection::{InProgress, Shared};
use crate::gateway::{Streams, is_domain, serves_host};
use crate::service::ClientInfo;
use crate::settings::{Deadlines, Settings};

/// Set on every response that does not set them itself.
const HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];
/// For how long browsers remember that a host is to be reached by HTTPS: 30 days.
const STRICT: &str = "max-age=2592000";
/// How long browsers remember what a service allows to other origins, in seconds.
const PREFLIGHT_AGE: &str = "7200";

/// The front of all services of one thread.
pub(crate) struct Front {
    pub(crate) settings: Arc<Settings>,
    pub(crate) deadlines: Rc<Deadlines>,
    pub(crate) streams: Arc<dyn Streams>,
}

impl Front {
    /// Handles a request with the services behind.
    pub(crate) async fn handle(
        self: Rc<Self>,
        mut request: ServiceRequest,
        next: Next<BoxBody>,
    ) -> Result<ServiceResponse<BoxBody>, Error> {
        // Set on every connection when it is accepted.
        let Some(shared) = request.conn_data::<Rc<Shared>>().cloned() else {
            return Ok(request.into_response(HttpResponse::InternalServerError().finish()));
        };
        let in_progress = InProgress::new(&shared);
        let serves = |host: &str| serves_host(&*self.streams, host);
        let info = client_info(&self.settings, &serves, shared.ends, request.head());
        let Ok(info) = info else {
            let response = HttpResponse::BadRequest().finish();
            return Ok(self.finish(request.into_response(response), &shared, in_progress, None));
        };
        let cross_origin = self.cross_origin(&request, &info);
        request.extensions_mut().insert(info.clone());
        let response = match &cross_origin {
            CrossOrigin::Refused => request.into_response(HttpResponse::Forbidden().finish()),
            CrossOrigin::Preflight(_) => request.into_response(HttpResponse::NoContent().finish()),
            CrossOrigin::None | CrossOrigin::Allowed(_) => {
                let body = TimedBody::wrap(request.take_payload(), &shared, &self.deadlines);
                request.set_payload(body);
                next.call(request).await?
            }
        };
        let mut response = self.finish(response, &shared, in_progress, Some(&info));
        cross_origin.write(response.headers_mut());
        Ok(response)
    }

    /// Whether a page of another origin sent the request, and may.
    fn cross_origin(&self, request: &ServiceRequest, info: &ClientInfo) -> CrossOrigin {
        if !self.settings.cross_origin.iter().any(|path| path == request.path()) {
            return CrossOrigin::None;
        }
        let headers = request.headers();
        let Some(origin) = headers.get(header::ORIGIN) else { return CrossOrigin::None };
        let same = origin.as_bytes().eq_ignore_ascii_case(info.base.as_bytes());
        if !same && !origin.to_str().is_ok_and(|origin| self.settings.allows(origin)) {
            return CrossOrigin::Refused;
        }
        let preflight = request.method() == Method::OPTIONS
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let allowed = match self.settings.allows("*") {
            true => HeaderValue::from_static("*"),
            false => origin.clone(),
        };
        if preflight { CrossOrigin::Preflight(allowed) } else { CrossOrigin::Allowed(allowed) }
    }

    /// Completes a response.
    fn finish(
        &self,
        mut response: ServiceResponse<BoxBody>,
        shared: &Rc<Shared>,
        in_progress: InProgress,
        info: Option<&ClientInfo>,
    ) -> ServiceResponse<BoxBody> {
        let status = response.status();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            shared.upgrade();
        } else if shared.is_stopping() {
            response.response_mut().head_mut().set_connection_type(ConnectionType::Close);
        }
        let explain = (status.is_client_error() || status.is_server_error())
            && matches!(response.response().body().size(), BodySize::None | BodySize::Sized(0));
        let headers = response.headers_mut();
        for (name, value) in &HEADERS {
            if !headers.contains_key(name) {
                headers.insert(name.clone(), HeaderValue::from_static(value));
            }
        }
        let strict = info.is_some_and(|info| {
            info.base.starts_with("https:")
                && self.settings.strict_hosts.iter().any(|host| is_domain(info.host(), host))
        });
        if strict {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HeaderValue::from_static(STRICT));
        }
        if explain {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        }
        response.map_body(|_, body| {
            let body = if explain { BoxBody::new(format!("{status}\n")) } else { body };
            BoxBody::new(FinalBody { body, _request: in_progress })
        })
    }
}

/// What a request has to do with other origins.
enum CrossOrigin {
    /// Nothing.
    None,
    /// Its page may not use the service.
    Refused,
    /// A browser asks whether a page may.
    Preflight(HeaderValue),
    /// It may.
    Allowed(HeaderValue),
}

impl CrossOrigin {
    /// Writes the headers by which browsers know (Fetch standard, CORS protocol). There are no credentials: a
    /// page may read what it could fetch itself.
    fn write(&self, headers: &mut HeaderMap) {
        let (Self::Preflight(origin) | Self::Allowed(origin)) = self else { return };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if origin != "*" {
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        if let Self::Preflight(_) = self {
            for (name, value) in [
                (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, OPTIONS"),
                (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type"),
                (header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
        }
    }
}

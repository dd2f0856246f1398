//! Discovery of the web transports (XEP-0156): `/.well-known/host-meta` and its form in JSON (RFC 6415).
//!
//! What must hold: only hosts that are served are answered for; what is handed out leads to encrypted
//! services, as XEP-0156 section 2.2 demands, but for clients on this machine.

use std::sync::Arc;

use actix_web::http::header::{ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, VARY};
use actix_web::web::{self, ReqData, ServiceConfig};
use actix_web::{HttpResponse, Responder};

use crate::gateway::{Streams, serves_host};
use crate::service::{ClientInfo, WebModule};

/// Where the web transports are.
#[derive(Clone, Debug, Default)]
pub struct Links {
    /// The path of BOSH, if there is such a service.
    pub bosh: Option<String>,
    /// The path of WebSocket, if there is such a service.
    pub websocket: Option<String>,
    /// Scheme and authority by which clients reach the paths, without a slash at the end. `None` takes what the
    /// request was sent to.
    pub external: Option<String>,
}

/// Answers where the web transports are.
pub struct HostMeta {
    shared: Arc<Shared>,
}

struct Shared {
    links: Links,
    streams: Arc<dyn Streams>,
}

impl HostMeta {
    /// Answers with `links` for the hosts that `streams` serves.
    pub fn new(links: Links, streams: Arc<dyn Streams>) -> Self {
        Self { shared: Arc::new(Shared { links, streams }) }
    }
}

impl WebModule for HostMeta {
    fn configure(&self, config: &mut ServiceConfig) {
        for (path, render) in
            [("/.well-known/host-meta", xrd as Render), ("/.well-known/host-meta.json", jrd)]
        {
            let (get, head) = (self.shared.clone(), self.shared.clone());
            config.service(
                web::resource(path)
                    .route(web::get().to(move |info| answer(get.clone(), info, render)))
                    .route(web::head().to(move |info| answer(head.clone(), info, render))),
            );
        }
    }
}

type Render = fn(&[(&'static str, String)]) -> (&'static str, String);

async fn answer(shared: Arc<Shared>, info: ReqData<ClientInfo>, render: Render) -> impl Responder {
    let Some(links) = shared.links_for(&info) else { return HttpResponse::NotFound().finish() };
    let (content_type, text) = render(&links);
    HttpResponse::Ok()
        .content_type(content_type)
        // Any page may ask; there is nothing here that is not for everybody.
        .insert_header((ACCESS_CONTROL_ALLOW_ORIGIN, "*"))
        .insert_header((VARY, "Host"))
        .insert_header((CACHE_CONTROL, "max-age=600"))
        .body(text)
}

impl Shared {
    /// Relations and addresses, or `None` where there is nothing to hand out.
    fn links_for(&self, info: &ClientInfo) -> Option<Vec<(&'static str, String)>> {
        if !serves_host(&*self.streams, info.host()) {
            return None;
        }
        let base = match &self.links.external {
            Some(external) => external.as_str(),
            None => info.base.as_str(),
        };
        if !base.starts_with("https:") && !info.secure {
            return None;
        }
        let websocket = self.links.websocket.as_ref().map(|path| {
            // http becomes ws, https wss.
            let address = format!("ws{}{path}", base.strip_prefix("http").unwrap_or(base));
            ("urn:xmpp:alt-connections:websocket", address)
        });
        let bosh =
            self.links.bosh.as_ref().map(|path| ("urn:xmpp:alt-connections:xbosh", format!("{base}{path}")));
        Some(websocket.into_iter().chain(bosh).collect())
    }
}

/// Neither form needs escapes: an authority is checked when it comes in, the rest is ours.
fn xrd(links: &[(&'static str, String)]) -> (&'static str, String) {
    let mut text = String::from(
        "<?xml version='1.0' encoding='utf-8'?>\n<XRD xmlns='http://docs.oasis-open.org/ns/xri/xrd-1.0'>\n",
    );
    for (relation, address) in links {
        text.push_str(&format!("  <Link rel='{relation}' href='{address}'/>\n"));
    }
    text.push_str("</XRD>\n");
    ("application/xrd+xml; charset=utf-8", text)
}

fn jrd(links: &[(&'static str, String)]) -> (&'static str, String) {
    let links: Vec<String> = links
        .iter()
        .map(|(relation, address)| format!("{{\"rel\":\"{relation}\",\"href\":\"{address}\"}}"))
        .collect();
    ("application/json", format!("{{\"links\":[{}]}}\n", links.join(",")))
}

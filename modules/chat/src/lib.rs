//! The chat page: Converse.js, embedded at build time and signed in against this server.
//!
//! At `/` is the page, under `/chat/` what it loads, at `/licences` what it is made of. If the server
//! was built without the client, `/` says how to get it.
//!
//! What must hold: the page loads nothing from elsewhere and connects nowhere else, which its
//! Content-Security-Policy enforces; only files of a fixed table are served; what is compressed was compressed when the
//! server was built.

mod assets;
mod page;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use actix_web::web::{self, ReqData, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse};
use waystation_core::Jid;
use waystation_web::{ClientInfo, WebModule};

use crate::assets::{ASSETS, Asset, CONVERSE};

/// What the page is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The domains that are served; the page is for the one whose name it is asked by, or else for the first.
    pub hosts: Vec<String>,
    /// Offers to make an account.
    pub registration: bool,
    /// The path of WebSocket, if there is such a service.
    pub websocket: Option<String>,
    /// The path of BOSH, if there is such a service.
    pub bosh: Option<String>,
}

/// The page.
pub struct Chat {
    settings: Arc<Settings>,
}

impl Chat {
    /// A page for these hosts.
    pub fn new(settings: Settings) -> Self {
        Self { settings: Arc::new(settings) }
    }
}

impl WebModule for Chat {
    fn configure(&self, config: &mut ServiceConfig) {
        let settings = self.settings.clone();
        let chat = move |info: ReqData<ClientInfo>| page_for(settings.clone(), info);
        add(config, "/", chat);
        add(config, "/licences", || async { page::respond(page::licences(CONVERSE), page::PLAIN_POLICY) });
        for asset in ASSETS {
            add(config, asset.path, move |request: HttpRequest| serve(asset, request));
        }
    }
}

/// A handler for GET and HEAD.
fn add<F, Args>(config: &mut ServiceConfig, path: &str, handler: F)
where
    F: actix_web::Handler<Args, Output = HttpResponse> + Clone,
    Args: actix_web::FromRequest + 'static,
{
    let routes = web::resource(path).route(web::get().to(handler.clone())).route(web::head().to(handler));
    config.service(routes);
}

async fn page_for(settings: Arc<Settings>, info: ReqData<ClientInfo>) -> HttpResponse {
    let asked = Jid::parse(info.host()).ok();
    let asked = asked.as_ref().map(|host| host.domain());
    let host = settings.hosts.iter().find(|host| Some(host.as_str()) == asked).or(settings.hosts.first());
    let host = host.map_or("", String::as_str);
    match CONVERSE {
        // Nobody could log in.
        Some(_) if !info.secure => page::respond(page::insecure(host), page::PLAIN_POLICY),
        Some(_) => page::respond(page::chat(&settings, host), &page::policy(&info.base)),
        None => page::respond(page::missing(host), page::PLAIN_POLICY),
    }
}

async fn serve(asset: &'static Asset, request: HttpRequest) -> HttpResponse {
    assets::respond(asset, request.headers())
}

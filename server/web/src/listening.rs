//! Listeners: from an accepted socket to its requests' services.
//!
//! What must hold: each listener builds its services once for each thread; connections that wait for a
//! thread are bounded; every connection keeps its place in the count of its address, and the server
//! from ending, until it is closed.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use actix_http::{HttpService, KeepAlive, Protocol};
use actix_service::{Service, ServiceFactory, map_config};
use actix_web::dev::AppConfig;
use actix_web::middleware::from_fn;
use actix_web::{App, HttpResponse, web};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use waystation_runtime::{Arbiters, DrainSignal};
use waystation_transport::{Accepted, Listener, TlsAcceptor};

use crate::client::Ends;
use crate::connection::{Shared, Socket, Wire};
use crate::front::Front;
use crate::gateway::Streams;
use crate::service::WebModule;
use crate::settings::Settings;

/// Connections that wait for one thread to take them; more are closed.
const WAITING: usize = 1024;

/// The services on HTTP, and how they are offered.
///
/// HTTP/1.1 and 1.0 only. The head of a request is at most 128 KiB with 96 headers, and is answered with 431 or
/// 400 beyond that; how large a body may be is each service's own limit; at most 16 requests of one connection wait for
/// their turn.
#[derive(Clone)]
pub struct Web {
    settings: Arc<Settings>,
    streams: Arc<dyn Streams>,
    modules: Arc<[Box<dyn WebModule>]>,
}

impl Web {
    /// The services of `modules`.
    pub fn new(settings: Settings, streams: Arc<dyn Streams>, modules: Vec<Box<dyn WebModule>>) -> Self {
        Self { settings: Arc::new(settings), streams, modules: modules.into() }
    }

    /// Serves what `listener` accepts until the drain starts, in turn on each of the arbiters; with TLS if `tls` is
    /// given. Connections of trusted proxies are not limited by address. Must be called inside a running
    /// actix system.
    pub fn start(
        &self,
        listener: Listener,
        tls: Option<&TlsAcceptor>,
        arbiters: &Arbiters,
        mut drain: DrainSignal,
    ) {
        let tls = tls.map(|tls| tls.with_alpn(&[b"http/1.1"]));
        let listener = listener.without_limits_for(&self.settings.trusted_proxies);
        let address = listener.local_addr();
        let mut threads = Vec::new();
        for place in 0..arbiters.count() {
            let (sender, receiver) = mpsc::channel(WAITING);
            let (web, tls, drain) = (self.clone(), tls.clone(), drain.clone());
            threads.push(sender);
            arbiters.run_on(place, move || {
                actix_rt::spawn(web.serve(receiver, address, tls, drain));
            });
        }
        actix_rt::spawn(async move {
            let mut next = 0;
            let accepted = |connection: Accepted| {
                next = (next + 1) % threads.len();
                if let Err(error) = threads[next].try_send(connection) {
                    tracing::warn!(%address, %error, "connection closed: its thread does not take it");
                }
            };
            if let Err(error) = listener.run_streams(async move { drain.started().await }, accepted).await {
                tracing::error!(%address, %error, "the listener failed");
            }
        });
    }

    /// Serves the connections that are handed to one thread.
    async fn serve(
        self,
        mut connections: mpsc::Receiver<Accepted>,
        local: SocketAddr,
        tls: Option<TlsAcceptor>,
        drain: DrainSignal,
    ) {
        let deadlines = Rc::new(self.settings.deadlines.clone());
        let front = Rc::new(Front {
            settings: self.settings.clone(),
            deadlines: deadlines.clone(),
            streams: self.streams.clone(),
        });
        let mut app = App::new().default_service(web::to(|| async { HttpResponse::NotFound().finish() }));
        for module in self.modules.iter() {
            app = app.configure(|config| module.configure(config));
        }
        let app = app.wrap(from_fn(move |request, next| front.clone().handle(request, next)));
        let http = HttpService::build()
            // The clocks of idle connections and of heads are in the socket.
            .keep_alive(KeepAlive::Os)
            .client_request_timeout(std::time::Duration::ZERO)
            .client_disconnect_timeout(deadlines.linger)
            // A client that has gone gets no answer: a long poll ends then.
            .h1_allow_half_closed(false)
            // Each connection keeps its own; a quarter of the library's default is still a large response at once.
            .h1_write_buffer_size(8 * 1024)
            .on_connect_ext(|socket: &Socket, extensions| {
                extensions.insert(socket.shared().clone());
            })
            .finish(map_config(app, |_| AppConfig::default()))
            .new_service(())
            .await;
        let Ok(http) = http else {
            tracing::error!(address = %local, "the services of HTTP cannot be built");
            return;
        };
        let http = Rc::new(http);
        while let Some(Accepted { stream, peer, slot }) = connections.recv().await {
            let (http, tls, deadlines) = (http.clone(), tls.clone(), deadlines.clone());
            let mut drain = drain.clone();
            actix_rt::spawn(async move {
                let _slot = slot;
                let connected = async {
                    let local = stream.local_addr().map_err(|error| error.to_string())?;
                    let stream = TcpStream::from_std(stream).map_err(|error| error.to_string())?;
                    let ends = Ends { peer, local, tls: tls.is_some() };
                    let wire = match tls {
                        None => Wire::Plain(stream),
                        Some(tls) => Wire::Tls(Box::new(
                            tls.accept_stream(stream).await.map_err(|error| error.to_string())?,
                        )),
                    };
                    Ok::<_, String>((wire, Rc::new(Shared::new(ends))))
                };
                let (wire, shared) = tokio::select! {
                    connected = connected => match connected {
                        Ok(connected) => connected,
                        Err(error) => return tracing::debug!(%peer, error, "connection failed"),
                    },
                    () = drain.started() => return,
                };
                let socket = Socket::new(wire, shared.clone(), deadlines);
                let mut served = std::pin::pin!(http.call((socket, Protocol::Http1, Some(peer))));
                let outcome = tokio::select! {
                    outcome = &mut served => outcome,
                    () = drain.started() => {
                        shared.stop();
                        served.await
                    }
                };
                if let Err(error) = outcome {
                    tracing::debug!(%peer, %error, "connection ended");
                }
            });
        }
    }
}

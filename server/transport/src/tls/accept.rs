//! Incoming TLS for those who read and write a stream of bytes, as HTTP does.
//!
//! What must hold: the same certificates, limits and deadline as for [`crate::Connection`].

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::acceptor::TlsAcceptor;
use crate::error::TransportError;

/// A client that has not finished its handshake by then is waited for without a place among the active ones.
const COUNTED: Duration = Duration::from_secs(1);

impl TlsAcceptor {
    /// Does the server's side of a handshake. Certificates are those of now: see [`TlsAcceptor::reload`].
    ///
    /// # Errors
    /// [`TransportError::HandshakeTimeout`] at the deadline of [`crate::TlsSettings`], the wait for a place
    /// among the active handshakes included; [`TransportError::Io`] when the client breaks the protocol, agrees to
    /// nothing or goes away.
    pub async fn accept_stream(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, TransportError> {
        let handshake = async {
            // The semaphore is never closed.
            let place = self.handshakes().clone().acquire_owned().await.ok();
            let config: Arc<ServerConfig> = self.stream_config();
            let handshake = tokio_rustls::TlsAcceptor::from(config).accept(stream);
            tokio::pin!(handshake);
            match tokio::time::timeout(COUNTED, &mut handshake).await {
                Ok(done) => done,
                Err(_) => {
                    drop(place);
                    handshake.await
                }
            }
        };
        match tokio::time::timeout(self.handshake_deadline(), handshake).await {
            Ok(done) => done.map_err(TransportError::Io),
            Err(_) => Err(TransportError::HandshakeTimeout),
        }
    }
}

//! Connections that are made here, to other servers, and the client's side of TLS on them.
//!
//! What must stay true: what came between the peer's consent to TLS and TLS itself is never read, and ends the
//! connection for good (SECURITY T2).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::Connection;
use crate::error::TransportError;
use crate::listener::set_options;
use crate::tls::connector::TlsConnector;

impl Connection {
    /// Connects to `address`, with the socket's options as on connections that were accepted.
    ///
    /// # Errors
    /// What the network says, and [`io::ErrorKind::TimedOut`] after `limit`.
    pub async fn connect(address: SocketAddr, limit: Duration) -> io::Result<Self> {
        let stream = timeout(limit, TcpStream::connect(address)).await??;
        set_options(&stream)?;
        Ok(Self::plain(stream, address))
    }

    /// Does the client's side of a TLS handshake with another server, within the deadline and the limit of
    /// handshakes at once of the connector's acceptor; the turn is waited for when the server has answered.
    ///
    /// `local_host` is the host whose certificate is presented if the server asks for one; without one that
    /// names it, none is. `server_name` goes out as the server name indication, as an A-label, unless it is
    /// an IP address. `alpn` asks for `xmpp-server`, as direct TLS does (XEP-0368). `leftover` is what came
    /// behind `<proceed/>` in the same read; nothing may. Queued bytes are sent before TLS.
    ///
    /// The server's certificate is not judged, but that the server has its key is certain afterwards: see
    /// [`Connection::peer_certificates`].
    ///
    /// # Errors
    /// [`TransportError::DataBeforeTls`] if there is leftover: it may be from somebody on the way (SECURITY
    /// T2). [`TransportError::InvalidServerName`] if the name is no host name.
    /// [`TransportError::HandshakeTimeout`] at the deadline. Any error ends the connection.
    pub async fn connect_tls(
        &mut self,
        connector: &TlsConnector,
        local_host: &str,
        server_name: &str,
        alpn: bool,
        leftover: &[u8],
    ) -> Result<(), TransportError> {
        let deadline = Instant::now() + connector.handshake_deadline();
        self.check_startable()?;
        let tls = self.begin(connector.start(local_host, server_name, alpn)?);
        if !leftover.is_empty() {
            // Nobody reads on as if TLS had not been asked for.
            tls.abandon_wire();
            return Err(TransportError::DataBeforeTls);
        }
        tls.process_handshake(&mut [], 0)?;
        self.complete(connector.handshakes(), deadline, true).await
    }
}

//! One client connection: plain TCP, then possibly TLS on top of it.
//!
//! rustls is driven by hand instead of through a stream adapter, for three
//! reasons: STARTTLS can begin at any byte, a write is exactly one system call
//! per batch (which the load generator needs), and the channel binding data and
//! the raw socket stay reachable. `read` and `write_all` are cancel-safe as far
//! as deadlines need: a cancelled `read` loses nothing.

use std::future::poll_fn;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpSocket, TcpStream};

/// How much ciphertext or plain text one system call may fetch.
const READ_CHUNK: usize = 64 * 1024;

/// Loopback addresses to connect from, one after the other when the ones before have no free port.
const SOURCES: u8 = 8;

/// A TCP connection with optional TLS.
pub struct Wire {
    tcp: TcpStream,
    tls: Option<Box<ClientConnection>>,
    /// Plain text that came in the same segments as the end of the handshake.
    early: Vec<u8>,
}

impl Wire {
    /// Connects over plain TCP with Nagle's algorithm off; to a server on this machine from further
    /// loopback addresses (127.0.0.2 and on) when ports run short.
    pub async fn connect(addr: SocketAddr) -> io::Result<Self> {
        let mut connected = TcpStream::connect(addr).await;
        for last in 2..=SOURCES {
            match (&connected, addr) {
                (Err(e), SocketAddr::V4(to)) if to.ip().is_loopback() && lacks_port(e) => {
                    connected = connect_from(Ipv4Addr::new(127, 0, 0, last), addr).await;
                }
                _ => break,
            }
        }
        let tcp = connected?;
        tcp.set_nodelay(true)?;
        Ok(Self { tcp, tls: None, early: Vec::new() })
    }

    /// Runs the TLS handshake as a client; `sni` is the name sent to the server.
    pub async fn start_tls(&mut self, config: Arc<ClientConfig>, sni: &str) -> io::Result<()> {
        let name = ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?;
        let mut conn = Box::new(ClientConnection::new(config, name).map_err(io::Error::other)?);
        let mut chunk = vec![0; READ_CHUNK];
        flush(&self.tcp, &mut conn).await?;
        while conn.is_handshaking() {
            let n = self.read_tcp(&mut chunk).await?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let fed = feed(&mut conn, &chunk[..n], &mut self.early);
            // An alert that rustls wants to send belongs on the wire even when it gives up.
            flush(&self.tcp, &mut conn).await?;
            fed?;
        }
        self.tls = Some(conn);
        Ok(())
    }

    /// Makes new keys and tells the server to do the same (RFC 8446 4.6.3); sent with the next write.
    pub fn update_keys(&mut self) -> io::Result<()> {
        match &mut self.tls {
            Some(tls) => tls.refresh_traffic_keys().map_err(io::Error::other),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// The TLS state, once a handshake is done.
    pub fn tls(&self) -> Option<&ClientConnection> {
        self.tls.as_deref()
    }

    /// Appends what has arrived to `out` and returns how many bytes that were; 0 is the end.
    pub async fn read(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        let mut chunk = vec![0; READ_CHUNK];
        poll_fn(|cx| self.poll_read(cx, &mut chunk, out)).await
    }

    /// As [`Wire::read`], as one poll: a scratch buffer can be shared by many connections.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut [u8],
        out: &mut Vec<u8>,
    ) -> Poll<io::Result<usize>> {
        let before = out.len();
        out.append(&mut self.early);
        while out.len() == before {
            let mut fetched = ReadBuf::new(chunk);
            ready!(Pin::new(&mut self.tcp).poll_read(cx, &mut fetched))?;
            let fetched = fetched.filled();
            let Some(tls) = &mut self.tls else {
                out.extend_from_slice(fetched);
                break;
            };
            if fetched.is_empty() {
                break;
            }
            feed(tls, fetched, out)?;
            // Key updates and alerts are answered at once; a full socket only delays them.
            while tls.wants_write() {
                match tls.write_tls(&mut SocketWriter(&self.tcp)) {
                    Ok(_) => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return Poll::Ready(Err(e)),
                }
            }
        }
        Poll::Ready(Ok(out.len() - before))
    }

    /// Writes everything, encrypted if TLS is up.
    pub async fn write_all(&mut self, mut data: &[u8]) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return self.write_tcp(data).await };
        while !data.is_empty() || tls.wants_write() {
            data = &data[tls.writer().write(data)?..];
            flush(&self.tcp, tls).await?;
        }
        Ok(())
    }

    /// Writes to the socket itself, below TLS: for tests that break the record layer.
    pub async fn write_tcp(&self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            self.tcp.writable().await?;
            match self.tcp.try_write(data) {
                Ok(n) => data = &data[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Reads from the socket itself, below TLS; 0 is the end.
    pub async fn read_tcp(&self, chunk: &mut [u8]) -> io::Result<usize> {
        loop {
            self.tcp.readable().await?;
            match self.tcp.try_read(chunk) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }

    /// Ends TLS with close_notify (if it is up) and shuts the sending side of the socket.
    pub async fn shutdown(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            tls.send_close_notify();
            flush(&self.tcp, tls).await?;
        }
        tokio::io::AsyncWriteExt::shutdown(&mut self.tcp).await
    }

    /// Breaks the connection: the peer sees a reset, no close_notify and no FIN.
    pub fn reset(self) -> io::Result<()> {
        self.tcp.set_zero_linger()
    }

    /// The socket, for options such as a small receive buffer.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }
}

async fn flush(tcp: &TcpStream, tls: &mut ClientConnection) -> io::Result<()> {
    while tls.wants_write() {
        match tls.write_tls(&mut SocketWriter(tcp)) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => tcp.writable().await?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn connect_from(source: Ipv4Addr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddrV4::new(source, 0).into())?;
    socket.connect(addr).await
}

fn lacks_port(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::AddrInUse)
}

/// Decrypts `data`, taking the plain text out as it comes, for rustls holds only a little of it.
fn feed(tls: &mut ClientConnection, mut data: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    while !data.is_empty() {
        if tls.read_tls(&mut data)? == 0 {
            break;
        }
        let ready = tls.process_new_packets().map_err(io::Error::other)?.plaintext_bytes_to_read();
        if ready > 0 {
            let start = out.len();
            out.resize(start + ready, 0);
            tls.reader().read_exact(&mut out[start..])?;
        }
    }
    Ok(())
}

struct SocketWriter<'a>(&'a TcpStream);

impl Write for SocketWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.try_write(data)
    }

    fn write_vectored(&mut self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(bufs)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn other_loopback_addresses_can_be_connected_from() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let source = Ipv4Addr::new(127, 0, 0, SOURCES);
        let _tcp = connect_from(source, listener.local_addr().unwrap()).await.unwrap();
        let (_accepted, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip(), source);
    }
}

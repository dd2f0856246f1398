//! Accepts TCP connections.
//!
//! What must stay true: nothing that a client or a lack of file descriptors does ends the loop or makes it
//! spin; it ends when its stop signal comes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

use crate::admission::{Admission, Refusal};
use crate::connection::DetachedConnection;

const BACKLOG: i32 = 1024;
/// How long to wait when no file descriptor is left.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);

/// A peer that vanished without a word is noticed after about a quarter of an hour. Shorter would wake up the
/// radios of mobile devices; XMPP pings and stream management do the fine work.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(600);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(60);
const KEEPALIVE_PROBES: u32 = 5;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something listens there already.
    #[error("{address} is in use by another program; stop it or choose another port")]
    InUse {
        /// The address.
        address: SocketAddr,
    },
    /// The port needs privileges.
    #[error(
        "no permission to listen on {address}; choose a port from 1024 up, or grant CAP_NET_BIND_SERVICE"
    )]
    Permission {
        /// The address.
        address: SocketAddr,
    },
    /// The machine has no such address.
    #[error("{address} is not an address of this machine")]
    NotLocal {
        /// The address.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {source}")]
    Other {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket.
pub struct Listener {
    socket: std::net::TcpListener,
    address: SocketAddr,
    admission: Admission,
}

impl Listener {
    /// Listens on `address`. An IPv6 address takes IPv6 only, so that `0.0.0.0` and `[::]` can be given side by side.
    ///
    /// The sizes of the socket buffers are left to the kernel: it grows and shrinks them with each
    /// connection's need, and a fixed size would switch that off. How much is held for a slow reader is
    /// limited by the owner of the connection, which sees [`crate::Connection::queued_bytes`].
    pub fn bind(address: SocketAddr, admission: Admission) -> Result<Self, BindError> {
        let bound = || -> io::Result<std::net::TcpListener> {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            // Connections of an earlier run that linger in TIME_WAIT must not keep the server from starting.
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        };
        let socket = bound().map_err(|source| match source.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { address },
            io::ErrorKind::PermissionDenied => BindError::Permission { address },
            io::ErrorKind::AddrNotAvailable => BindError::NotLocal { address },
            _ => BindError::Other { address, source },
        })?;
        let address = socket.local_addr().map_err(|source| BindError::Other { address, source })?;
        Ok(Self { socket, address, admission })
    }

    /// The address listened on, with the port that was chosen if port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Accepts connections and hands them to `accepted` until `stop` resolves; then the socket is closed and
    /// connections that wait in its queue are refused by the kernel. Fails only if the runtime cannot watch the socket.
    pub async fn run(
        self,
        stop: impl Future<Output = ()>,
        mut accepted: impl FnMut(DetachedConnection),
    ) -> io::Result<()> {
        let listener = TcpListener::from_std(self.socket)?;
        let mut reserve = Reserve::new();
        let mut stop = pin!(stop);
        let mut refused: u64 = 0;
        loop {
            let outcome = tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                outcome = listener.accept() => outcome,
            };
            match outcome {
                Ok((stream, peer)) => {
                    reserve.refill();
                    match self.admission.admit(peer.ip()) {
                        Ok(slot) => match prepare(stream) {
                            Ok(stream) => accepted(DetachedConnection::accepted(stream, peer, slot)),
                            Err(error) => tracing::debug!(%peer, %error, "connection lost while accepting"),
                        },
                        Err(refusal) => {
                            refused += 1;
                            log_refusal(peer, refusal, refused);
                        }
                    }
                }
                Err(error) if is_exhausted(&error) => {
                    reserve.shed(&listener, self.address, &error);
                    tokio::select! {
                        biased;
                        () = &mut stop => return Ok(()),
                        () = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                    }
                }
                // The client gave up while waiting, or the network failed it: none of the listener's concern.
                Err(error) => tracing::debug!(address = %self.address, %error, "accept failed"),
            }
        }
    }
}

/// Logs refusals with growing distance, so that a flood of them cannot flood the log.
fn log_refusal(peer: SocketAddr, refusal: Refusal, count: u64) {
    if count.is_power_of_two() {
        tracing::warn!(%peer, reason = %refusal, refused_so_far = count, "connection refused");
    }
}

/// Sets the socket's options and takes it off the listener's runtime.
fn prepare(stream: TcpStream) -> io::Result<std::net::TcpStream> {
    let stream = stream.into_std()?;
    // Stanzas are gathered before they are written, so waiting for more would only delay them.
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    Ok(stream)
}

fn is_exhausted(error: &io::Error) -> bool {
    [Errno::EMFILE, Errno::ENFILE, Errno::ENOBUFS, Errno::ENOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(*errno as i32))
}

/// A file descriptor kept so that a client can be turned away when none is left, instead of hanging in the
/// queue until it times out.
struct Reserve {
    file: Option<std::fs::File>,
    warned: bool,
}

impl Reserve {
    fn new() -> Self {
        Self { file: std::fs::File::open("/dev/null").ok(), warned: false }
    }

    /// After a successful accept: the shortage is over.
    fn refill(&mut self) {
        if self.file.is_none() {
            self.file = std::fs::File::open("/dev/null").ok();
        }
        self.warned &= self.file.is_none();
    }

    /// Turns one waiting client away, with the descriptor that was kept for it.
    fn shed(&mut self, listener: &TcpListener, address: SocketAddr, error: &io::Error) {
        if !self.warned {
            self.warned = true;
            tracing::error!(
                %address, %error,
                "cannot accept connections: raise the limit of open files (LimitNOFILE, ulimit -n)"
            );
        }
        if self.file.take().is_some() {
            drop(SockRef::from(listener).accept());
            self.file = std::fs::File::open("/dev/null").ok();
        }
    }
}

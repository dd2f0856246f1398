//! Accepts TCP connections.
//!
//! What must stay true: nothing that a client or a lack of file descriptors does ends the loop or makes it
//! spin; it ends when its stop signal comes. What a PROXY header says is believed only of proxies that were
//! named; limits count the client that it names.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::pin::pin;
use std::time::Duration;

use ipnet::IpNet;
use nix::errno::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::admission::{AddressSlot, Admission};
use crate::connection::DetachedConnection;
use crate::proxy::{self, ProxyError};

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
    gate: Gate,
}

/// Who is let in.
struct Gate {
    admission: Admission,
    proxies: Vec<IpNet>,
    unlimited: Vec<IpNet>,
    refused: u64,
}

/// A socket that was accepted: non-blocking, and on no runtime.
pub struct Accepted {
    /// The socket.
    pub stream: std::net::TcpStream,
    /// The client: who a PROXY header names, if there was one.
    pub peer: SocketAddr,
    /// Its place among the connections of its address, to be kept for as long as the socket.
    pub slot: Option<AddressSlot>,
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
            // Accepted sockets inherit these from the one that listens: five calls less for each.
            set_options(&socket)?;
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
        let gate = Gate { admission, proxies: Vec::new(), unlimited: Vec::new(), refused: 0 };
        Ok(Self { socket, address, gate })
    }

    /// Connections from these networks must begin with a PROXY header, version 1 or 2, within 5 seconds;
    /// without one they are closed. From elsewhere a header is not looked for.
    #[must_use]
    pub fn with_proxies(mut self, networks: &[IpNet]) -> Self {
        self.gate.proxies = networks.to_vec();
        self
    }

    /// Connections from these networks are not limited by address: they are those of proxies which carry
    /// many clients.
    #[must_use]
    pub fn without_limits_for(mut self, networks: &[IpNet]) -> Self {
        self.gate.unlimited = networks.to_vec();
        self
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
        let detached = |one: Accepted| accepted(DetachedConnection::accepted(one.stream, one.peer, one.slot));
        self.run_streams(stop, detached).await
    }

    /// As [`Listener::run`], for those who do not use [`crate::Connection`].
    pub async fn run_streams(
        self,
        stop: impl Future<Output = ()>,
        mut accepted: impl FnMut(Accepted),
    ) -> io::Result<()> {
        let Self { socket, address, mut gate } = self;
        let listener = TcpListener::from_std(socket)?;
        let mut reserve = Reserve::new();
        let mut stop = pin!(stop);
        // Connections of proxies whose header is not there yet.
        let mut announced: JoinSet<Result<(TcpStream, SocketAddr), ProxyError>> = JoinSet::new();
        loop {
            let outcome = tokio::select! {
                biased;
                () = &mut stop => return Ok(()),
                Some(header) = announced.join_next() => {
                    match header {
                        Ok(Ok((stream, client))) => gate.admit(stream, client, &mut accepted),
                        Ok(Err(error)) => tracing::debug!(%address, %error, "proxy refused"),
                        Err(error) => tracing::error!(%address, %error, "reading a header failed"),
                    }
                    continue;
                }
                outcome = listener.accept() => outcome,
            };
            match outcome {
                Ok((stream, peer)) => {
                    reserve.refill();
                    if !contains(&gate.proxies, peer.ip()) {
                        gate.admit(stream, peer, &mut accepted);
                    } else if announced.len() < proxy::MAX_UNREAD {
                        announced.spawn(announce(stream, peer));
                    } else {
                        gate.refuse(peer, &"too many connections without a PROXY header");
                    }
                }
                Err(error) if is_exhausted(&error) => {
                    reserve.shed(&listener, address, &error);
                    tokio::select! {
                        biased;
                        () = &mut stop => return Ok(()),
                        () = tokio::time::sleep(EXHAUSTED_PAUSE) => {}
                    }
                }
                // The client gave up while waiting, or the network failed it: none of the listener's concern.
                Err(error) => tracing::debug!(%address, %error, "accept failed"),
            }
        }
    }
}

impl Gate {
    /// Counts a connection and hands it on, or closes it.
    fn admit(&mut self, stream: TcpStream, peer: SocketAddr, accepted: &mut impl FnMut(Accepted)) {
        let place = match contains(&self.unlimited, peer.ip()) {
            true => Ok(None),
            false => self.admission.admit(peer.ip()),
        };
        match place {
            Ok(slot) => match stream.into_std() {
                Ok(stream) => accepted(Accepted { stream, peer, slot }),
                Err(error) => tracing::debug!(%peer, %error, "connection lost while accepting"),
            },
            Err(refusal) => self.refuse(peer, &refusal),
        }
    }

    /// Logs refusals with growing distance, so that a flood of them cannot flood the log.
    fn refuse(&mut self, peer: SocketAddr, reason: &dyn std::fmt::Display) {
        self.refused += 1;
        if self.refused.is_power_of_two() {
            tracing::warn!(%peer, %reason, refused_so_far = self.refused, "connection refused");
        }
    }
}

/// True if one of the networks has the address.
fn contains(networks: &[IpNet], address: IpAddr) -> bool {
    !networks.is_empty() && networks.iter().any(|network| network.contains(&address.to_canonical()))
}

/// Reads the header that a proxy sends first.
async fn announce(mut stream: TcpStream, peer: SocketAddr) -> Result<(TcpStream, SocketAddr), ProxyError> {
    match tokio::time::timeout(proxy::DEADLINE, proxy::read(&mut stream)).await {
        Ok(client) => Ok((stream, client?.unwrap_or(peer))),
        Err(_) => Err(ProxyError::Io(io::ErrorKind::TimedOut.into())),
    }
}

/// Sets what every connection's socket has, accepted or made here.
pub(crate) fn set_options(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
    // Stanzas are gathered before they are written, so waiting for more would only delay them.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
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
    fn shed(&mut self, listener: &impl AsFd, address: SocketAddr, error: &io::Error) {
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

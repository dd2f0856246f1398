//! Serves the admin socket.
//!
//! What must hold: at most [`MAX_CONNECTIONS`] at once, the next is told so; a peer of another
//! user (but root) is refused whatever the file's permissions say; an idle or slow peer is
//! dropped; nothing a peer sends ends the loop.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use super::protocol::{MAX_REQUEST, MAX_RESPONSE, RequestLine, ResponseLine, VERSION};
use super::{AdminError, AdminSocket, Dispatcher, ErrorKind, Request};

/// Connections at once.
const MAX_CONNECTIONS: usize = 16;
/// A peer that sends no whole request for so long, or takes an answer no faster, is dropped.
const PATIENCE: Duration = Duration::from_secs(300);
/// Pause after an error of accepting, such as having no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `stop` resolves; requests that are being answered then are dropped.
///
/// # Errors
/// When the socket cannot be used on this runtime.
pub(crate) async fn serve(
    socket: AdminSocket,
    dispatcher: Dispatcher,
    stop: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(socket.listener().try_clone()?)?;
    let mut connections = JoinSet::new();
    let mut stop = pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => return Ok(()),
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if is_own(&stream) => {
                    let dispatcher = (connections.len() < MAX_CONNECTIONS).then(|| dispatcher.clone());
                    connections.spawn(connection(stream, dispatcher));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the admin socket cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// True for peers of this process's user, and of root, who can become that user anyway.
fn is_own(stream: &UnixStream) -> bool {
    let own = nix::unistd::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == own || peer.uid() == 0 => true,
        Ok(peer) => {
            tracing::warn!(uid = peer.uid(), "a connection of another user to the admin socket was refused");
            false
        }
        Err(error) => {
            tracing::warn!(%error, "a connection to the admin socket was refused: its user is unknown");
            false
        }
    }
}

/// Answers the requests of one connection; without a dispatcher, that there are too many.
async fn connection(stream: UnixStream, dispatcher: Option<Dispatcher>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let mut answer = async |line: ResponseLine| {
        let bytes = encode(&line);
        matches!(tokio::time::timeout(PATIENCE, write.write_all(&bytes)).await, Ok(Ok(())))
    };
    let Some(dispatcher) = dispatcher else {
        let error =
            AdminError::new(ErrorKind::Busy, "too many administrators are connected; try again later");
        answer(failure(error)).await;
        return;
    };
    loop {
        let line = match tokio::time::timeout(PATIENCE, read_line(&mut read)).await {
            Ok(Ok(Some(line))) => line,
            Ok(Ok(None) | Err(LineError::Io(_))) | Err(_) => return,
            Ok(Err(error @ LineError::TooLong)) => {
                answer(failure(AdminError::new(ErrorKind::BadRequest, error.to_string()))).await;
                return;
            }
        };
        let result = match parse(&line) {
            Ok(request) => dispatcher.answer(request).await,
            Err(error) => Err(error),
        };
        let line = match result {
            Ok(response) => ResponseLine { version: VERSION, response: Some(response), error: None },
            Err(error) => failure(error),
        };
        if !answer(line).await {
            return;
        }
    }
}

fn failure(error: AdminError) -> ResponseLine {
    ResponseLine { version: VERSION, response: None, error: Some(error) }
}

fn parse(line: &[u8]) -> Result<Request, AdminError> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bad = |error: serde_json::Error| {
        // The error's text may quote the request, and the request may hold a password.
        let message =
            format!("the request cannot be read (line {}, column {})", error.line(), error.column());
        AdminError::new(ErrorKind::BadRequest, message)
    };
    // First the version alone: the rest of another version's line means nothing here.
    let Version { version } = serde_json::from_slice(line).map_err(bad)?;
    if version != VERSION {
        let message = format!(
            "this server speaks version {VERSION} of the admin protocol, the request has version {version}; \
             use the command of the same release as the server"
        );
        return Err(AdminError::new(ErrorKind::Version, message));
    }
    serde_json::from_slice::<RequestLine<Request>>(line).map(|line| line.request).map_err(bad)
}

/// A response as a line.
fn encode(line: &ResponseLine) -> Vec<u8> {
    let encoded = serde_json::to_vec(line).ok().filter(|bytes| bytes.len() < MAX_RESPONSE);
    let mut bytes = encoded.unwrap_or_else(|| {
        let error = AdminError::new(ErrorKind::Failed, "the answer is too long; ask for less at once");
        // A line with a short text and no map: nothing of it can fail to be written.
        serde_json::to_vec(&failure(error)).unwrap_or_default()
    });
    bytes.push(b'\n');
    bytes
}

#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("the request is longer than {MAX_REQUEST} bytes")]
    TooLong,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a line without its end; `None` at the end of the stream. Wiped when dropped: it may hold
/// passwords.
async fn read_line(
    read: &mut BufReader<impl AsyncRead + Unpin>,
) -> Result<Option<Zeroizing<Vec<u8>>>, LineError> {
    use tokio::io::AsyncBufReadExt;
    let mut line = Zeroizing::new(Vec::new());
    let mut limited = read.take(MAX_REQUEST as u64 + 1);
    limited.read_until(b'\n', &mut line).await?;
    match line.pop() {
        Some(b'\n') => Ok(Some(line)),
        Some(_) if line.len() >= MAX_REQUEST => Err(LineError::TooLong),
        // The peer left in the middle of a line: nobody waits for an answer.
        Some(_) | None => Ok(None),
    }
}

//! Asks a running server over its admin socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::protocol::{MAX_RESPONSE, RequestLine, ResponseLine, VERSION};
use super::{AdminError, Request, Response, socket};

/// The server answers within its own deadline or not at all.
const PATIENCE: Duration = Duration::from_secs(180);

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// It refused.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// The connection broke.
    #[error("the server does not answer on its admin socket: {0}")]
    Io(#[from] io::Error),
    /// What came is no answer.
    #[error("the server's answer cannot be read; use the command of the same release as the server")]
    Unreadable,
}

/// A connection to a running server.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the server that owns a data folder; `None` when none runs there.
    ///
    /// # Errors
    /// When the system refuses, for example because the folder is another user's.
    pub(crate) fn connect(data_dir: &Path) -> io::Result<Option<Self>> {
        let Some(stream) = socket::connect(data_dir)? else { return Ok(None) };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Some(Self { stream: BufReader::new(stream) }))
    }

    /// Asks and waits for the answer.
    ///
    /// # Errors
    /// [`ClientError`].
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        let line = serde_json::to_vec(&RequestLine { version: VERSION, request });
        let mut line = Zeroizing::new(line.map_err(io::Error::from)?);
        line.push(b'\n');
        // A server that refuses a connection answers and closes it before it is asked: its
        // answer is there to be read although the question could not be written.
        let written = self.stream.get_mut().write_all(&line);
        let mut answer = Vec::new();
        let read = self.stream.by_ref().take(MAX_RESPONSE as u64 + 1).read_until(b'\n', &mut answer);
        if !answer.ends_with(b"\n") {
            written?;
            read?;
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let answer: ResponseLine = serde_json::from_slice(&answer).map_err(|_| ClientError::Unreadable)?;
        match answer {
            ResponseLine { error: Some(error), .. } => Err(error.into()),
            ResponseLine { version: VERSION, response: Some(response), .. } => Ok(response),
            _ => Err(ClientError::Unreadable),
        }
    }
}

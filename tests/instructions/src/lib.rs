//! What a message costs on the hot paths of the server, to be counted in instructions.
//!
//! Each path runs the server's own code, through the interfaces that the server itself uses, for as
//! many messages as it is told; a program that counts instructions runs it for N and for 2 N, and
//! takes the difference, in which the start does not appear. What must hold: a path does the same
//! work for each message, on one thread where the server's code does not start another one itself,
//! and fails rather than do less. `tests/bench/README.md` says how the counts are compared.

mod archive;
mod framing;
mod log;
mod routing;
mod session;
mod world;

use std::error::Error;
use std::time::Duration;

use waystation_core::xml::{Event, Framer, Limits};

/// Why a path could not be run.
pub type Failure = Box<dyn Error + Send + Sync>;

/// Messages that are under way at once: what a read, a commit or a write holds.
const ROUND: usize = 10;
/// How long a path may take at most, under a program that makes it fifty times slower.
const PATIENCE: Duration = Duration::from_secs(120);

/// A hot path.
pub struct Path {
    /// Its name.
    pub name: &'static str,
    /// Messages after which the start no longer blurs the difference.
    pub messages: usize,
    run: fn(usize) -> Result<(), Failure>,
}

impl Path {
    /// Takes so many messages along the path, rounded down to whole rounds.
    ///
    /// # Errors
    /// When the server's code refuses one, or does not deliver it.
    pub fn run(&self, messages: usize) -> Result<(), Failure> {
        (self.run)(messages)
    }
}

/// All paths, the shortest first.
pub const PATHS: &[Path] = &[
    Path { name: "framing", messages: 10_000, run: framing::framing },
    Path { name: "stanza", messages: 5_000, run: framing::stanza },
    Path { name: "log-append", messages: 4_000, run: log::append },
    Path { name: "routing", messages: 2_000, run: routing::routing },
    Path { name: "archive", messages: 1_920, run: archive::archive },
    Path { name: "session", messages: 2_000, run: session::session },
];

/// A message as a client writes it, with 100 bytes of text.
fn message() -> String {
    let body = "O Romeo, Romeo! wherefore art thou Romeo? ".repeat(3);
    format!(
        "<message to='juliet@localhost/balcony' type='chat' id='ktx72v49'><body>{}</body></message>",
        &body[..100]
    )
}

/// A framer of a stream that is open and authenticated.
fn framer() -> Result<Framer, Failure> {
    let mut header: &[u8] = b"<stream:stream xmlns='jabber:client' \
        xmlns:stream='http://etherx.jabber.org/streams' to='localhost' version='1.0'>";
    let mut framer = Framer::new(Limits::authenticated());
    match framer.next(&mut header)? {
        Event::Open(_) => {}
        other => return Err(format!("instead of the stream's header: {other:?}").into()),
    }
    Ok(framer)
}

/// Runs a path that waits for something, all of it on this thread.
fn on_this_thread(path: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    actix_rt::System::new().block_on(path)
}

/// Ends what waits for something that does not come.
async fn in_time(path: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::time::timeout(PATIENCE, path).await?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_can_be_gone() {
        for path in PATHS {
            path.run(10 * ROUND).unwrap_or_else(|error| panic!("{}: {error}", path.name));
        }
    }
}

//! The seam between the routes of remote domains and the streams that reach them: what a route asks for,
//! what it gives a stream, and what it is told.
//!
//! What must hold: a stream never waits for its route nor a route for its stream; a stream sends what it is
//! given in order, counts every stanza that it takes out of its inlet, and says of a stanza that it was
//! handed over only when the remote server has it for certain (DELIVERY P8); it says [`StreamEvent::Down`]
//! once, last, whatever ends it.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use waystation_core::Stanza;
use waystation_runtime::{Inlet, Outlet, Weigh};

use crate::mail::STANZA_OVERHEAD;

/// A domain served here and one that is not, both prepared as domains of JIDs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pair {
    /// The domain served here.
    pub local: Box<str>,
    /// The other one.
    pub remote: Box<str>,
}

impl Pair {
    /// A pair of prepared domains.
    pub fn new(local: &str, remote: &str) -> Self {
        Self { local: local.into(), remote: remote.into() }
    }
}

impl std::fmt::Display for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {}", self.local, self.remote)
    }
}

/// Streams to remote domains. The one implementation is a module's; without it no remote domain can be
/// reached.
pub trait RemoteStreams: Send + Sync + 'static {
    /// Whether stanzas may go to this domain at all; asked for each before it is queued, so it must be quick
    /// and depend on the configuration alone.
    ///
    /// # Errors
    /// Why not.
    fn permits(&self, pair: &Pair) -> Result<(), Forbidden>;

    /// Opens a stream for a pair, or takes one that is there already (XEP-0288). Returns at once; what
    /// becomes of it is told to the request's [`StreamEvents`]. Called on the arbiter of the route, where
    /// the stream may stay.
    fn open(&self, request: StreamRequest);
}

/// Why nothing may be sent to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    /// The administrators do not want it: answered with `not-allowed`.
    Policy,
    /// It cannot be a domain of another server, such as an IP address where these are refused, or a name
    /// without a dot that is no host here: answered with `remote-server-not-found`.
    NoServer,
}

/// A request for a stream.
pub struct StreamRequest {
    /// The domains.
    pub pair: Arc<Pair>,
    /// What is to be sent. The route offers to it as soon as it has made the request. Whoever drops it
    /// without [`StreamEvent::Down`] has ended the stream as if it had failed.
    pub inlet: Inlet<StreamMail>,
    /// Where to tell what becomes of it.
    pub events: StreamEvents,
    /// What the last stream of the pair left to be resumed with (XEP-0198 5).
    pub resume: Option<Resume>,
}

/// What a stream left behind that may be resumed: known to the module alone.
pub type Resume = Box<dyn Any + Send>;

/// What a stream is given.
#[derive(Debug)]
pub enum StreamMail {
    /// Send this.
    Stanza(Stanza),
    /// End the stream in order: nobody has needed it for a while, or the server stops.
    Close,
}

impl Weigh for StreamMail {
    fn weight(&self) -> usize {
        STANZA_OVERHEAD
            + match self {
                Self::Stanza(stanza) => stanza.len(),
                Self::Close => 0,
            }
    }
}

/// The handle of a stream.
pub type StreamOutlet = Outlet<StreamMail>;

/// What a route is told of the stream that it asked for.
#[derive(Debug)]
pub enum StreamEvent {
    /// It is ready: the peer is who it says, and it has let us in.
    Up(Box<StreamInfo>),
    /// So many of the stanzas that it was given, counted from the first, are the peer's now. After a
    /// resumption the count goes on from that of the stream before. It never falls.
    Handed(u64),
    /// It has ended. Said once, as the last; what was given and not handed over may or may not have arrived.
    Down(StreamEnd),
}

/// What is known of a stream, for administrators.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    /// The peer's address.
    pub peer: SocketAddr,
    /// `TLSv1_3`, or `none`.
    pub security: &'static str,
    /// How the peer proved to be the remote domain.
    pub authenticated: Authenticated,
    /// The subject names and the end of the peer's certificate, for people; `None` if it has none.
    pub certificate: Option<String>,
    /// The peer acknowledges what it has taken (XEP-0198).
    pub acknowledges: bool,
    /// Stanzas come back on it (XEP-0288).
    pub bidirectional: bool,
    /// It goes on where the last one broke off: of the stanzas that were given to that one, the first so many
    /// have arrived, and the rest must be given again. `None` for a new stream, whose count begins at 0.
    pub resumed: Option<u64>,
    /// Since when.
    pub since: SystemTime,
}

/// How a peer proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authenticated {
    /// By a certificate of an authority that is trusted, for the domain.
    Certificate,
    /// By dialback (XEP-0220), over TLS without a certificate that proves anything, or none.
    Dialback,
}

/// How a stream ended.
pub struct StreamEnd {
    /// What it means for what waits.
    pub cause: EndCause,
    /// In words for people.
    pub text: String,
    /// Set when the next one can go on where this one broke off.
    pub resume: Option<Resume>,
}

impl std::fmt::Debug for StreamEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamEnd")
            .field("cause", &self.cause)
            .field("text", &self.text)
            .finish_non_exhaustive()
    }
}

/// What the end of a stream means for what waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// It ended in order: all that was written has arrived.
    Ended,
    /// It broke, or could not be opened: the next attempt may succeed.
    Failed,
    /// The domain does not exist, or says that it has no XMPP server: `remote-server-not-found`.
    NotFound,
    /// The peer is there and it is certain that it will not do: a certificate that is required is not valid,
    /// or its address may not be dialled. Tried again like a failure, and shown as it is.
    Refused,
}

/// Where a stream tells what becomes of it. Dropped without [`StreamEvent::Down`], it says that itself.
pub struct StreamEvents {
    tell: Option<Box<dyn Fn(StreamEvent) + Send + Sync>>,
}

impl StreamEvents {
    /// Events that are handed to `tell`, which must not block.
    pub fn new(tell: impl Fn(StreamEvent) + Send + Sync + 'static) -> Self {
        Self { tell: Some(Box::new(tell)) }
    }

    /// The stream is ready.
    pub fn up(&self, info: StreamInfo) {
        if let Some(tell) = &self.tell {
            tell(StreamEvent::Up(Box::new(info)));
        }
    }

    /// So many are the peer's; see [`StreamEvent::Handed`].
    pub fn handed(&self, count: u64) {
        if let Some(tell) = &self.tell {
            tell(StreamEvent::Handed(count));
        }
    }

    /// The stream has ended.
    pub fn down(mut self, end: StreamEnd) {
        if let Some(tell) = self.tell.take() {
            tell(StreamEvent::Down(end));
        }
    }
}

impl Drop for StreamEvents {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            let text = "the stream was given up".to_owned();
            tell(StreamEvent::Down(StreamEnd { cause: EndCause::Failed, text, resume: None }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn events_that_are_dropped_say_that_the_stream_has_ended_and_say_it_once() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let events = || {
            let told = told.clone();
            StreamEvents::new(move |event| {
                let StreamEvent::Down(end) = event else { return };
                told.lock().unwrap().push(end.cause);
            })
        };
        drop(events());
        events().down(StreamEnd { cause: EndCause::Ended, text: String::new(), resume: None });
        assert_eq!(*told.lock().unwrap(), [EndCause::Failed, EndCause::Ended]);
    }
}

//! Streams that peers opened, used the other way (XEP-0288).
//!
//! What must hold: a route finds only a stream on which the remote domain was proven for the local one, and
//! none that has ended; a request that comes too late for one goes on to another stream, or ends with it, and
//! is never lost.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use waystation_route::remote::{Pair, RemoteStreams, StreamRequest};
use waystation_runtime::{Inlet, Offer, Outlet, Weigh, outlet};

use super::{Link, Outgoing};
use crate::Federation;
use crate::addressing::Proven;

/// Requests that may be on their way to a stream: each pair has one route.
const MAX_REQUESTS: usize = 1_000;

/// The streams by the pairs that they are proven for.
#[derive(Default)]
pub(crate) struct ReverseStreams {
    streams: Mutex<HashMap<Arc<Pair>, Outlet<Attach>>>,
}

/// A request on its way to a stream.
struct Attach(StreamRequest);

impl Weigh for Attach {
    fn weight(&self) -> usize {
        1
    }
}

impl ReverseStreams {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<Pair>, Outlet<Attach>>> {
        // Every change under the lock is complete in itself.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a request to a stream that is there.
    ///
    /// # Errors
    /// The request, when there is none, or it has no room.
    pub(crate) fn hand(&self, request: StreamRequest) -> Result<(), StreamRequest> {
        let Some(stream) = self.lock().get(&*request.pair).cloned() else { return Err(request) };
        match stream.offer(Attach(request)) {
            Offer::Accepted => Ok(()),
            Offer::Full(Attach(request)) | Offer::Gone(Attach(request)) => Err(request),
        }
    }
}

/// A stream's place among them.
pub(super) struct Reverse {
    federation: Arc<Federation>,
    outlet: Outlet<Attach>,
    inlet: Inlet<Attach>,
    /// Under which it is found.
    pairs: Vec<Arc<Pair>>,
}

impl Reverse {
    pub(super) fn new(federation: &Arc<Federation>) -> Self {
        let (outlet, inlet) = outlet(MAX_REQUESTS, MAX_REQUESTS);
        Self { federation: federation.clone(), outlet, inlet, pairs: Vec::new() }
    }

    /// Has routes find the stream for what it is proven for, which only ever grows. Of several streams of a
    /// pair the last one is found: its peer knows best that it is there.
    pub(super) fn publish(&mut self, proven: &Proven) {
        for pair in proven.iter().skip(self.pairs.len()) {
            self.federation.reverse.lock().insert(pair.clone(), self.outlet.clone());
            self.pairs.push(pair.clone());
        }
    }
}

impl Drop for Reverse {
    fn drop(&mut self) {
        let mut streams = self.federation.reverse.lock();
        for pair in &self.pairs {
            if streams.get(pair).is_some_and(|stream| stream.same_queue(&self.outlet)) {
                streams.remove(pair);
            }
        }
        // Requests that are left end here, as those of a stream that failed.
    }
}

impl Link {
    /// Takes on routes that want to send on a stream that the peer opened.
    pub(super) fn take_requests(&mut self, cx: &mut Context<'_>) {
        if !self.closing.may_write() {
            self.close_to_requests();
        }
        let Some(reverse) = &mut self.reverse else { return };
        while let Poll::Ready(requests) = reverse.inlet.poll_take(cx) {
            reverse.inlet.release(requests.len(), requests.len());
            for Attach(request) in requests {
                let mut outgoing = Outgoing::new(request);
                outgoing.up(self.info.clone());
                // What is not acknowledged yet of whoever had a place before must not be taken for another's.
                let management = self.management.as_ref();
                let free = self.outgoing.iter().enumerate().position(|(place, other)| {
                    other.is_none() && management.is_none_or(|management| management.is_done_with(place))
                });
                match free {
                    Some(place) => self.outgoing[place] = Some(outgoing),
                    None => self.outgoing.push(Some(outgoing)),
                }
            }
        }
    }

    /// Routes find the stream no more; a request that is on its way goes on to another one.
    pub(super) fn close_to_requests(&mut self) {
        let Some(mut reverse) = self.reverse.take() else { return };
        let late = reverse.inlet.close();
        drop(reverse);
        for Attach(request) in late {
            self.federation.open(request);
        }
    }
}

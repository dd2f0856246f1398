//! Bodies of requests and responses on their way through.
//!
//! What must hold: a body that comes too slowly ends with an error; a request counts as being in
//! progress until its response's body has been handed over.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::Payload;
use actix_web::error::PayloadError;
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::{Instant, Sleep};

use crate::connection::{InProgress, Shared};
use crate::settings::Deadlines;

/// A request's body with a deadline.
pub(crate) struct TimedBody {
    body: Payload,
    shared: Rc<Shared>,
    deadlines: Rc<Deadlines>,
    started: Instant,
    received: u64,
    clock: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    /// `body`, with the time counted from now.
    pub(crate) fn wrap(body: Payload, shared: &Rc<Shared>, deadlines: &Rc<Deadlines>) -> Payload {
        if matches!(body, Payload::None) {
            return body;
        }
        let (shared, deadlines) = (shared.clone(), deadlines.clone());
        let timed = Self { body, shared, deadlines, started: Instant::now(), received: 0, clock: None };
        Payload::Stream { payload: Box::pin(timed) }
    }

    /// Until when the next bytes must come.
    fn deadline(&self) -> Instant {
        let earned = Duration::from_millis(self.received * 1000 / u64::from(self.deadlines.rate.max(1)));
        self.started + self.deadlines.body.min(self.deadlines.grace.saturating_add(earned))
    }
}

impl Stream for TimedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(bytes))) = &outcome {
            this.received = this.received.saturating_add(bytes.len() as u64);
        }
        // What a service reads once the connection is its own, is its own concern.
        if outcome.is_ready() || this.shared.is_upgraded() {
            return outcome;
        }
        let deadline = this.deadline();
        let clock = this.clock.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if clock.deadline() != deadline {
            clock.as_mut().reset(deadline);
        }
        match clock.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Some(Err(PayloadError::Io(io::ErrorKind::TimedOut.into())))),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A response's body that ends its request.
pub(crate) struct FinalBody {
    pub(crate) body: BoxBody,
    /// Dropped with the body: that is when all of it was handed over.
    pub(crate) _request: InProgress,
}

impl MessageBody for FinalBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(cx)
    }
}

//! Taking up a session on a new connection (XEP-0198 5), before a resource is bound.
//!
//! What must hold: only the account that the session is bound to can take it up, and whoever
//! asks for another one's learns nothing; the number of accepted stanzas is said only when it
//! is final and stored; a session that was taken out of its route goes back there if the client
//! is gone before it starts.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::time::timeout;
use waystation_core::queue::Mark;
use waystation_core::xml::Element;
use waystation_core::{Condition, Jid};
use waystation_route::intake::{Item, Stored};
use waystation_route::stream::{key_text, parse_key};
use waystation_route::{AccountMail, ResumeError, ResumeRequest, Resumption, Router};
use waystation_runtime::outlet;

use crate::context::C2s;
use crate::negotiate::security;
use crate::session::stream_management::{NS_STREAM_MANAGEMENT, failed, parse_h, too_high};
use crate::stream::{Failure, Stream};

/// How long what the client sent before may take to be stored.
const SETTLE: Duration = Duration::from_secs(20);

/// A session that was taken up and has not started. Dropped, it waits for its client again.
pub(crate) struct Resumed {
    key: u128,
    resumption: Option<Resumption>,
    router: Arc<Router>,
}

impl Resumed {
    /// Hands it to a session, which must bring it back when it ends.
    pub(crate) fn start(mut self) -> (u128, Resumption) {
        // It is taken only here, and by drop.
        let resumption = self.resumption.take().unwrap_or_else(|| unreachable!("taken once"));
        (self.key, resumption)
    }
}

impl Drop for Resumed {
    fn drop(&mut self) {
        let Some(mut resumption) = self.resumption.take() else { return };
        let mut state = resumption.state;
        state.take_mail(resumption.inlet.close());
        self.router.control(&resumption.jid.to_bare(), AccountMail::Detach(resumption.id, state));
    }
}

/// An element of `urn:xmpp:sm:3` before a resource is bound; the session, if it resumes one.
pub(crate) async fn element(
    stream: &mut Stream,
    shared: &C2s,
    account: &Jid,
    element: &Element,
) -> Result<Option<Resumed>, Failure> {
    let refused = match element.name() {
        "resume" => match resume(stream, shared, account, element).await? {
            Ok(resumed) => return Ok(Some(resumed)),
            Err(refused) => refused,
        },
        // Section 3: only after a resource is bound.
        _ => failed(Condition::UnexpectedRequest, None),
    };
    let mut out = Vec::new();
    refused.write(&mut out, "jabber:client");
    stream.send(&out).await?;
    Ok(None)
}

async fn resume(
    stream: &mut Stream,
    shared: &C2s,
    account: &Jid,
    element: &Element,
) -> Result<Result<Resumed, Element>, Failure> {
    let Some(h) = element.attr("h").and_then(parse_h) else {
        return Ok(Err(failed(Condition::BadRequest, None)));
    };
    let Some(key) = element.attr("previd").and_then(parse_key) else {
        return Ok(Err(failed(Condition::ItemNotFound, None)));
    };
    let (outlet, inlet) = outlet(shared.limits.outbound_bytes, shared.limits.outbound_stanzas);
    let (peer, security) = (stream.conn.peer(), security(&stream.conn));
    let request = ResumeRequest { account: account.clone(), key, h, outlet, inlet, peer, security };
    let resumption = match shared.router.resume(request).await {
        Ok(resumption) => resumption,
        Err(ResumeError::Unknown(number)) => return Ok(Err(failed(Condition::ItemNotFound, number))),
        Err(ResumeError::TooHigh { h, sent }) => return Err(too_high(h, sent).into()),
        Err(ResumeError::Unavailable) => return Ok(Err(failed(Condition::InternalServerError, None))),
    };
    let mut resumed = Resumed { key, resumption: Some(resumption), router: shared.router.clone() };
    let settled = timeout(SETTLE, settle(&mut resumed)).await.unwrap_or(false);
    if !settled {
        return Ok(Err(failed(Condition::InternalServerError, None)));
    }
    let number = resumed.resumption.as_ref().map_or(0, |resumption| resumption.state.received);
    let answer = Element::new("resumed", NS_STREAM_MANAGEMENT)
        .with_attr("h", (number as u32).to_string())
        .with_attr("previd", key_text(key));
    let mut out = Vec::new();
    answer.write(&mut out, "jabber:client");
    stream.conn.queue_slice(&out);
    Ok(Ok(resumed))
}

/// Waits until all that the client sent before is safe, and the number of it stored; false when
/// that cannot be.
async fn settle(resumed: &mut Resumed) -> bool {
    let Some(resumption) = &mut resumed.resumption else { return false };
    let state = &mut resumption.state;
    let clear = poll_fn(|cx| {
        let accepted = state.receipts.accepted(state.received, true, cx);
        let failed = state.receipts.has_failed();
        if failed || accepted == state.received { Poll::Ready(!failed) } else { Poll::Pending }
    });
    if !clear.await {
        return false;
    }
    if state.marked < state.received {
        let stored = Arc::new(Stored::default());
        let mark = Mark { key: resumed.key, value: Some(state.received) };
        resumed.router.intake().offer(Item::Mark(mark, Some(stored.clone())));
        poll_fn(|cx| if stored.poll(cx).is_some() { Poll::Ready(()) } else { Poll::Pending }).await;
        state.marked = state.received;
    }
    true
}

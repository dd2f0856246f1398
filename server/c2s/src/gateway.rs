//! Clients of web transports (BOSH, WebSocket), which come over in-process connections.
//!
//! What must hold: such a stream is encrypted exactly if its connection was made as a secure one;
//! STARTTLS and channel binding, which need the socket, are neither offered nor accepted on it; the
//! account of a client that was authenticated elsewhere is fixed before its first byte is read.

use std::sync::Arc;

use waystation_core::xml::Framer;
use waystation_core::{Jid, StreamCondition, StreamError};
use waystation_transport::DetachedConnection;

use crate::context::C2s;
use crate::negotiate::{accept, bind_on_the_accounts_arbiter, tls_required};
use crate::stream::{Failure, Stream};

/// Takes over the server's end of a pipe: the client negotiates, authenticates and binds as over
/// TCP. May be called on any thread; once the server stops, the connection is dropped.
pub fn accept_gateway(shared: Arc<C2s>, connection: DetachedConnection) {
    // An account's arbiter is known only once the client has logged in.
    let arbiters = shared.arbiters.clone();
    arbiters.run_in_turn(move || accept(shared, connection, false));
}

/// The same for a client that is known to be `account`, of which the bare JID counts. The first
/// thing read is the stream header that follows authentication, whose `to` must be the account's
/// domain; then a resource is bound or a session resumed, within the time that a client over TCP
/// has for it.
pub fn accept_authenticated(shared: Arc<C2s>, connection: DetachedConnection, account: &Jid) {
    let framer = Framer::new(shared.limits.pre_auth);
    let host = account.domain().to_owned();
    bind_on_the_accounts_arbiter(shared, connection, framer, Vec::new(), Some(host), account.to_bare());
}

/// RFC 7395 3.9, XEP-0206 2: where encryption is below the transport, a client that came without
/// cannot start it, and learns that it has to come again.
pub(crate) fn check(stream: &Stream, shared: &C2s) -> Result<(), Failure> {
    let conn = &stream.conn;
    if conn.is_encrypted() || conn.can_start_tls() || !tls_required(stream, shared) {
        return Ok(());
    }
    let error = StreamError::new(StreamCondition::PolicyViolation)
        .with_text("TLS is required: use an https or wss address");
    Err(error.into())
}

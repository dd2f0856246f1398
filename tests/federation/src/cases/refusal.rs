//! Two servers of which one does not believe the other.

use waystation_harness::Server;

use super::condition;
use crate::Talker;

/// What `a` says of a server that it cannot reach for good reason.
const CONDITIONS: [&str; 2] = ["remote-server-not-found", "remote-server-timeout"];

/// Between `a`, which demands a certificate, and `b`, whose certificate proves nothing, nothing goes: users of
/// both are told so.
pub async fn refusal(a: &Server, b: &Server) {
    let mut one = Talker::enter(a, "requests", "one").await;
    let mut other = Talker::enter(b, "requests", "other").await;
    let (here, there) = (one.jid(), other.jid());
    let ping = "<ping xmlns='urn:xmpp:ping'/>";
    let refused = one.request("get", &there, ping).await;
    assert!(CONDITIONS.contains(&condition(&refused)), "{refused}");
    let refused = other.request("get", &here, ping).await;
    assert_eq!(refused.attr("type"), Some("error"), "{refused}");
    for talker in [&mut one, &mut other] {
        let came = talker.rest().await;
        let reached = came.iter().find(|s| s.local() == "iq" && s.attr("type") == Some("get"));
        assert!(reached.is_none(), "{} got {reached:?}", talker.jid());
    }
    one.leave().await;
    other.leave().await;
}

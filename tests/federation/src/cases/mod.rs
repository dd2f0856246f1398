//! What users of two servers do with each other, for any pair of servers.

mod contacts;
mod copies;
mod messages;
mod refusal;
mod requests;
mod rooms;

use std::future::Future;

use waystation_harness::xml::Element;
use waystation_harness::{Kind, Server};

pub use contacts::contacts;
pub use copies::copies;
pub use messages::messages;
pub use refusal::refusal;
pub use requests::requests;
pub use rooms::rooms;

/// The users that each server of these cases has: one for each of them, so that none meets what another
/// left behind.
pub const USERS: [&str; 5] = ["contacts", "messages", "requests", "copies", "rooms"];

/// All of them between two servers, in both directions where they have one. In bidirectional mode `a` need not
/// be announced: `b` answers on the streams that `a` opens. Its rooms would need streams of their own.
pub async fn all(a: &Server, b: &Server) {
    let bidi = a.config().federation.as_ref().is_some_and(|f| f.bidi);
    step("contacts", contacts(a, b)).await;
    step("messages", messages(a, b)).await;
    for (from, to) in [(a, b), (b, a)] {
        let direction = format!("{} -> {}", from.config().kind.name(), to.config().kind.name());
        step(&format!("requests, {direction}"), requests(from, to)).await;
        if from.config().kind != Kind::Ejabberd {
            step(&format!("copies, {direction}"), copies(from, to)).await;
        }
        let reachable = !bidi || from.endpoint() == a.endpoint();
        if to.config().kind != Kind::Waystation && reachable {
            step(&format!("rooms, {direction}"), rooms(from, to)).await;
        }
    }
}

/// Names a part of a test in its output, which is shown when it fails.
async fn step(name: &str, work: impl Future<Output = ()>) {
    eprintln!("  {name}");
    work.await;
}

/// The condition of an error.
fn condition(stanza: &Element) -> &str {
    let error = stanza.child("error").and_then(|e| e.child_in("urn:ietf:params:xml:ns:xmpp-stanzas"));
    error.map_or("no condition", Element::local)
}

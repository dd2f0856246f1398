//! W6: every client changes its own roster, and reads it now and then.
//!
//! What must stay true: at most one change of a client is open at a time, and one
//! whose reply was lost with the connection stays open in the history for ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use waystation_harness::xml::{Element, escape};

use super::{CLIENTS, Task};
use crate::client::{Lost, Peer};
use crate::history::Ev;
use crate::rng::Rng;

const ROSTER_NS: &str = "jabber:iq:roster";
const STANZAS_NS: &str = "urn:ietf:params:xml:ns:xmpp-stanzas";
const CONTACTS: u64 = 12;

pub(super) async fn work(peer: &mut Peer, task: &Task, mut rng: Rng) {
    let interval = Duration::from_secs(CLIENTS as u64) / task.options.rate.max(1);
    let mut resets = 0;
    loop {
        let orders = *task.orders.borrow();
        if orders.stop {
            return;
        }
        if orders.resets != resets {
            resets = orders.resets;
            peer.cut().await;
        }
        if !peer.is_connected() && peer.connect_until(Instant::now() + interval).await.is_err() {
            continue;
        }
        let next = Instant::now() + interval;
        // A broken connection is noted; the next round connects again.
        let _broken = change_or_read(peer, &mut rng).await;
        if peer.is_connected() && peer.run_until(next).await.is_err() {
            continue;
        }
    }
}

async fn change_or_read(peer: &mut Peer, rng: &mut Rng) -> Result<(), Lost> {
    if rng.percent(10) {
        return read(peer).await;
    }
    let key = format!("friend{}@localhost", rng.below(CONTACTS));
    let value = rng.percent(75).then(|| format!("name {}", rng.below(1_000_000)));
    change(peer, key, value).await
}

async fn change(peer: &mut Peer, key: String, value: Option<String>) -> Result<(), Lost> {
    let (jid, scope) = (escape(&key), peer.bare());
    let item = match &value {
        Some(name) => format!("<item jid='{jid}' name='{}'/>", escape(name)),
        None => format!("<item jid='{jid}' subscription='remove'/>"),
    };
    let uid = peer.next_uid();
    // Noted before anything is written: from here on it may take effect.
    peer.note(Ev::Set { uid: uid.clone(), what: "roster".into(), scope, key, value });
    let payload = format!("<query xmlns='{ROSTER_NS}'>{item}</query>");
    let Some(reply) = peer.request("set", "", &payload).await? else { return Ok(()) };
    if reply.attr("type") == Some("result") {
        peer.note(Ev::Done { uid });
        return Ok(());
    }
    let error = reply.child("error");
    let cond = error.and_then(|e| e.child_in(STANZAS_NS)).map_or("none", Element::local).to_owned();
    let r#type = error.and_then(|e| e.attr("type")).unwrap_or("none").to_owned();
    peer.note(Ev::Err { uid, cond, r#type, from: peer.bare() });
    Ok(())
}

/// Reads the whole roster.
pub(super) async fn read(peer: &mut Peer) -> Result<(), Lost> {
    let since = peer.scene().now();
    let scope = peer.bare();
    let reply = peer.request("get", "", &format!("<query xmlns='{ROSTER_NS}'/>")).await?;
    let Some(query) = reply.as_ref().and_then(|r| r.child_in(ROSTER_NS)) else { return Ok(()) };
    let item = |item: &Element| {
        Some((item.attr("jid")?.to_owned(), item.attr("name").unwrap_or_default().to_owned()))
    };
    let items: BTreeMap<_, _> = query.children().filter_map(item).collect();
    peer.note(Ev::State { what: "roster".into(), scope, since, items });
    Ok(())
}

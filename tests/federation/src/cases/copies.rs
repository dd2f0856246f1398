//! What an account keeps and copies of messages from and to another server: carbons, archive, offline store.

use std::time::{Duration, Instant};

use waystation_harness::Server;
use waystation_harness::xml::Element;

use crate::Talker;

const CARBONS: &str = "urn:xmpp:carbons:2";
const FORWARD: &str = "urn:xmpp:forward:0";
const MAM: &str = "urn:xmpp:mam:2";
const DELAY: &str = "urn:xmpp:delay";

/// A user of `a` with two clients talks with one of `b`, then is away for a while. `a` has carbons (XEP-0280),
/// archives (XEP-0313), and keeps messages for users who are away (XEP-0160).
pub async fn copies(a: &Server, b: &Server) {
    let mut desk = Talker::enter(a, "copies", "desk").await;
    let mut pocket = Talker::enter(a, "copies", "pocket").await;
    let mut other = Talker::enter(b, "copies", "other").await;
    pocket.ask("set", "", &format!("<enable xmlns='{CARBONS}'/>")).await;
    say(&mut other, &desk.jid(), "to the desk").await;
    assert_eq!(text(&desk.message().await), "to the desk");
    carbon(&mut pocket, "received", &other.jid(), "to the desk").await;
    say(&mut desk, &other.jid(), "from the desk").await;
    assert_eq!(text(&other.message().await), "from the desk");
    carbon(&mut pocket, "sent", &desk.jid(), "from the desk").await;
    let kept = [(other.jid(), "to the desk"), (desk.jid(), "from the desk")];
    let found = archived(&mut desk).await;
    assert!(found.ends_with(&kept.map(|(from, text)| (from, text.to_owned()))), "{found:?}");
    let account = desk.bare();
    desk.leave().await;
    pocket.leave().await;
    for number in 0..3 {
        say(&mut other, &account, &number.to_string()).await;
    }
    // It is away until they are there. Prosody brings no messages to a client that has read the archive.
    let mut watch = Talker::enter_unseen(a, "copies", "watch").await;
    let end = Instant::now() + Duration::from_secs(60);
    while !archived(&mut watch).await.ends_with(&[0, 1, 2].map(|n| (other.jid(), n.to_string()))) {
        assert!(Instant::now() < end, "the messages are not in the archive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    watch.leave().await;
    let mut desk = Talker::enter(a, "copies", "desk").await;
    for number in 0..3 {
        let message = desk.message().await;
        assert_eq!((text(&message), message.attr("from")), (number.to_string(), Some(other.jid().as_str())));
        assert!(message.child_in(DELAY).is_some(), "{message}");
    }
    desk.leave().await;
    other.leave().await;
}

async fn say(me: &mut Talker, to: &str, text: &str) {
    me.send(format!("<message to='{to}' type='chat'><body>{text}</body></message>")).await;
}

fn text(message: &Element) -> String {
    message.child("body").unwrap().text()
}

/// The next copy of what another resource received or sent.
async fn carbon(me: &mut Talker, kind: &str, from: &str, body: &str) {
    let copy = me.expect(&format!("a copy of {body}"), |s| s.child_in(CARBONS).is_some()).await;
    assert_eq!(copy.attr("from"), Some(me.bare().as_str()));
    let wrapped = copy.child_in(CARBONS).unwrap();
    assert_eq!(wrapped.local(), kind);
    let message = wrapped.child_in(FORWARD).unwrap().child("message").unwrap();
    assert_eq!((message.attr("from"), text(message).as_str()), (Some(from), body));
}

/// What the archive holds: from whom, and what. It begins with what the account did elsewhere.
async fn archived(me: &mut Talker) -> Vec<(String, String)> {
    me.ask("set", "", &format!("<query xmlns='{MAM}'/>")).await;
    let all = me.rest().await;
    let results = all.iter().filter_map(|m| m.child_in(MAM)?.child_in(FORWARD)?.child("message"));
    results.map(|m| (m.attr("from").unwrap_or_default().to_owned(), text(m))).collect()
}

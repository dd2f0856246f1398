//! Two users become contacts of each other, see each other come, change and go, and part.

use waystation_harness::xml::Element;
use waystation_harness::{Kind, Server};

use crate::Talker;

/// Subscription in both directions, presence in both, and the end of one of the two.
pub async fn contacts(a: &Server, b: &Server) {
    let mut one = Talker::enter(a, "contacts", "one").await;
    let mut other = Talker::enter(b, "contacts", "other").await;
    subscribe(&mut one, &mut other).await;
    assert_eq!(subscription(&mut one, &other.bare()).await, "to");
    assert_eq!(subscription(&mut other, &one.bare()).await, "from");
    subscribe(&mut other, &mut one).await;
    let (here, there) = (one.bare(), other.bare());
    for (me, you) in [(&mut one, there), (&mut other, here)] {
        assert_eq!(subscription(me, &you).await, "both", "{} of {you}", me.jid());
    }
    // Each sees the other change.
    changes(&mut one, &mut other).await;
    changes(&mut other, &mut one).await;
    // One goes and comes back: the other sees it, and it learns how the other is.
    one.send("<presence type='unavailable'/>").await;
    other.presence(Some("unavailable"), &one.jid()).await;
    one.send("<presence/>").await;
    other.presence(None, &one.jid()).await;
    away(&mut one, &other.jid()).await;
    // One no longer wants to see the other, who still sees it.
    one.send(format!("<presence to='{}' type='unsubscribe'/>", other.bare())).await;
    other.presence(Some("unsubscribe"), &one.bare()).await;
    if b.config().kind != Kind::Prosody {
        // RFC 6121 3.3.3; Prosody lets the user see the last presence for ever.
        one.presence(Some("unavailable"), &other.jid()).await;
    }
    assert_eq!(subscription(&mut one, &other.bare()).await, "from");
    assert_eq!(subscription(&mut other, &one.bare()).await, "to");
    let jid = one.jid();
    one.leave().await;
    other.presence(Some("unavailable"), &jid).await;
    other.leave().await;
}

/// One asks to see the other, is let, and sees it.
async fn subscribe(one: &mut Talker, other: &mut Talker) {
    one.send(format!("<presence to='{}' type='subscribe'/>", other.bare())).await;
    other.presence(Some("subscribe"), &one.bare()).await;
    other.send(format!("<presence to='{}' type='subscribed'/>", one.bare())).await;
    one.presence(Some("subscribed"), &other.bare()).await;
    one.presence(None, &other.jid()).await;
}

/// What one changes about itself the other sees as it is.
async fn changes(one: &mut Talker, other: &mut Talker) {
    one.send(
        "<presence><show>away</show><status xml:lang='de'>g&#xF6;nn dir &lt;Ruhe&gt;</status></presence>",
    )
    .await;
    away(other, &one.jid()).await;
}

/// Sees this resource away: presence from before may still come.
async fn away(me: &mut Talker, who: &str) {
    let is_away =
        |s: &Element| s.local() == "presence" && s.attr("from") == Some(who) && s.child("show").is_some();
    let seen = me.expect(&format!("{who} being away"), is_away).await;
    assert_eq!(seen.child("show").unwrap().text(), "away");
    assert_eq!(seen.child("status").unwrap().text(), "g\u{f6}nn dir <Ruhe>");
}

/// How the account of `me` stands with `contact`.
async fn subscription(me: &mut Talker, contact: &str) -> String {
    let answer = me.ask("get", "", "<query xmlns='jabber:iq:roster'/>").await;
    let query = answer.child("query").unwrap();
    let item = query.children().find(|item| item.attr("jid") == Some(contact));
    item.and_then(|item| item.attr("subscription")).unwrap_or("none").to_owned()
}

//! A user asks another server and a user there, and a server that does not exist.

use waystation_harness::Server;
use waystation_harness::xml::{Element, escape};

use super::condition;
use crate::Talker;

const INFO: &str = "http://jabber.org/protocol/disco#info";

/// Requests from a user of `a` to the server `b` and its user: ping, version, disco, vCard.
pub async fn requests(a: &Server, b: &Server) {
    let mut one = Talker::enter(a, "requests", "one").await;
    let mut other = Talker::enter(b, "requests", "other").await;
    let host = other.host();
    one.ask("get", &host, "<ping xmlns='urn:xmpp:ping'/>").await;
    let version = one.ask("get", &host, "<query xmlns='jabber:iq:version'/>").await;
    let name = version.child("query").and_then(|q| q.child("name")).unwrap().text();
    assert!(name.to_lowercase().contains(b.config().kind.name()), "{name}");
    let info = one.ask("get", &host, &format!("<query xmlns='{INFO}'/>")).await;
    let query = info.child_in(INFO).unwrap();
    assert!(query.children().any(|c| c.attr("category") == Some("server")), "{info}");
    answers(&mut one, &mut other).await;
    card(&mut one, &mut other).await;
    let refused = one.request("get", &format!("nobody@{host}/r"), "<ping xmlns='urn:xmpp:ping'/>").await;
    assert_eq!(refused.attr("type"), Some("error"), "{refused}");
    let nowhere = one.request("get", "nowhere.invalid", "<ping xmlns='urn:xmpp:ping'/>").await;
    assert_eq!(condition(&nowhere), "remote-server-not-found", "{nowhere}");
    one.leave().await;
    other.leave().await;
}

/// The other client is asked, and answers for itself.
async fn answers(one: &mut Talker, other: &mut Talker) {
    let (from, to) = (one.jid(), other.jid());
    // Who may not know whether it is there gets no answer of it (RFC 6121 8.5.3.2.3), so it tells.
    other.send(format!("<presence to='{from}'/>")).await;
    one.presence(None, &to).await;
    for (id, refuses) in [("first", false), ("second", true)] {
        one.send(format!("<iq type='get' id='{id}' to='{to}'><ping xmlns='urn:xmpp:ping'/></iq>")).await;
        let asked = other.expect("the request", |s| s.local() == "iq" && s.attr("id") == Some(id)).await;
        assert_eq!(asked.attr("from"), Some(from.as_str()));
        let answer = if refuses {
            "type='error'><error type='cancel'>\
             <not-allowed xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></error></iq>"
        } else {
            "type='result'/>"
        };
        other.send(format!("<iq id='{id}' to='{from}' {answer}")).await;
        let is_answer = |s: &Element| s.attr("id") == Some(id) && s.attr("from") == Some(&to);
        let answer = one.expect("the answer", is_answer).await;
        let expected = if refuses { ("error", "not-allowed") } else { ("result", "no condition") };
        assert_eq!((answer.attr("type").unwrap(), condition(&answer)), expected);
    }
}

/// The other user's vCard, which its server answers for (XEP-0054).
async fn card(one: &mut Talker, other: &mut Talker) {
    let name = "Bob \u{fc}ber <all>";
    let card = format!("<vCard xmlns='vcard-temp'><FN>{}</FN></vCard>", escape(name));
    let stored = other.request("set", "", &card).await;
    if stored.attr("type") == Some("error") {
        // A server without vCards says so to its own users and to others.
        assert_eq!(condition(&stored), "service-unavailable", "{stored}");
        let refused = one.request("get", &other.bare(), "<vCard xmlns='vcard-temp'/>").await;
        assert_eq!(condition(&refused), "service-unavailable", "{refused}");
        return;
    }
    let answer = one.ask("get", &other.bare(), "<vCard xmlns='vcard-temp'/>").await;
    let shown = answer.child_in("vcard-temp").and_then(|card| card.child("FN")).unwrap().text();
    assert_eq!(shown, name);
}

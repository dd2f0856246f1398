//! Which messages are kept for an account that is not there to take them
//! (XEP-0160 3, RFC 6121 8.5.2.2.1, XEP-0334).
//!
//! What must hold: the answer depends on the stanza alone, and on what it means, not on how its
//! namespaces are written.

use crate::Sign;
use crate::datetime::NS_DELAY;
use crate::stanza::{MessageType, NS_CLIENT, PresenceType, Stanza, StanzaType};

const NS_HINTS: &str = "urn:xmpp:hints";
const NS_CHAT_STATES: &str = "http://jabber.org/protocol/chatstates";
const NS_STANZA_ID: &str = "urn:xmpp:sid:0";

/// True when a message is to be stored; a message that is not is refused with
/// `service-unavailable` or dropped, as RFC 6121 8.5.2.2.1 says for its type.
///
/// Messages of type normal and chat are stored, unless all that they carry is a chat state, or
/// the sender asked not to store them (which prevails when it also asked to). The request
/// `no-permanent-store` counts as such: the server's archive and spool are one in what they
/// promise. Other types are not stored whatever the sender asks for.
pub fn storable(stanza: &Stanza) -> bool {
    if !matches!(stanza.stanza_type(), StanzaType::Message(MessageType::Normal | MessageType::Chat)) {
        return false;
    }
    // This spares most messages the parsing.
    if !stanza.may_hold(&[Sign::Hints, Sign::ChatStates]) {
        return true;
    }
    let Ok(element) = stanza.element() else { return false };
    let hint = |name: &str| element.child(name, NS_HINTS).is_some();
    if hint("no-store") || hint("no-permanent-store") {
        return false;
    }
    // What accompanies a chat state without being a message (XEP-0085 5.3).
    let empty = |name: &str, namespace: &str| {
        matches!(namespace, NS_CHAT_STATES | NS_HINTS | NS_DELAY | NS_STANZA_ID)
            || (name == "thread" && namespace == NS_CLIENT)
    };
    let is_state = element.children().any(|child| child.namespace() == NS_CHAT_STATES)
        && element.children().all(|child| empty(child.name(), child.namespace()));
    hint("store") || !is_state
}

/// True for stanzas that must be stored before anyone acts on them (DELIVERY 1, class D):
/// messages that are storable, groupchat messages likewise, and changes of subscriptions.
///
/// Errors are durable only when the server itself made them, which their maker knows.
pub fn durable(stanza: &Stanza) -> bool {
    match stanza.stanza_type() {
        StanzaType::Message(MessageType::Normal | MessageType::Chat) => storable(stanza),
        StanzaType::Message(MessageType::Groupchat) => true,
        StanzaType::Presence(
            PresenceType::Subscribe
            | PresenceType::Subscribed
            | PresenceType::Unsubscribe
            | PresenceType::Unsubscribed,
        ) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(kind: &str, inner: &str) -> bool {
        let xml = format!("<message to='a@b' from='c@d/e' {kind}>{inner}</message>");
        storable(&Stanza::parse(xml.as_bytes()).unwrap())
    }

    const BODY: &str = "<body>hi</body>";
    const COMPOSING: &str = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
    const ACTIVE: &str = "<active xmlns='http://jabber.org/protocol/chatstates'/>";
    const STORE: &str = "<store xmlns='urn:xmpp:hints'/>";
    const NO_STORE: &str = "<no-store xmlns='urn:xmpp:hints'/>";
    const NO_PERMANENT: &str = "<no-permanent-store xmlns='urn:xmpp:hints'/>";
    const RECEIPT: &str = "<received xmlns='urn:xmpp:receipts' id='1'/>";

    #[test]
    fn messages_are_stored_by_type_as_xep_0160_3_says() {
        for (kind, expected) in [
            ("", true),
            ("type='normal'", true),
            ("type='unheard-of'", true),
            ("type='chat'", true),
            ("type='groupchat'", false),
            ("type='headline'", false),
            ("type='error'", false),
        ] {
            assert_eq!(stored(kind, BODY), expected, "{kind}");
            assert_eq!(stored(kind, &format!("{BODY}{STORE}")), expected, "{kind} with a hint");
        }
    }

    #[test]
    fn messages_are_stored_by_content() {
        for (inner, expected) in [
            (String::new(), true),
            (RECEIPT.into(), true),
            ("<subject>hi</subject>".into(), true),
            (format!("{BODY}{ACTIVE}"), true),
            (format!("{RECEIPT}{ACTIVE}"), true),
            (format!("<encrypted xmlns='eu.siacs.conversations.axolotl'/>{ACTIVE}"), true),
            (COMPOSING.into(), false),
            (format!("<thread>1</thread>{COMPOSING}"), false),
            (format!("{COMPOSING}<no-copy xmlns='urn:xmpp:hints'/>"), false),
            (format!("{COMPOSING}<origin-id xmlns='urn:xmpp:sid:0' id='1'/>"), false),
            (format!("{COMPOSING}{STORE}"), true),
            (format!("{BODY}{NO_STORE}"), false),
            (format!("{BODY}{NO_PERMANENT}"), false),
            (format!("{BODY}{STORE}{NO_STORE}"), false),
            (format!("{BODY}<no-copy xmlns='urn:xmpp:hints'/>"), true),
            (format!("{BODY}<no-store xmlns='urn:x'/>"), true),
            (format!("{BODY}<x xmlns='urn:x'>{NO_STORE}</x>"), true),
        ] {
            assert_eq!(stored("type='chat'", &inner), expected, "chat {inner}");
            assert_eq!(stored("", &inner), expected, "normal {inner}");
        }
    }

    #[test]
    fn hints_count_however_their_namespace_is_written() {
        assert!(!stored("", &format!("{BODY}<no-store xmlns='urn:xmpp:&#104;ints'/>")));
        assert!(!stored("xmlns:h='urn:xmpp:hints'", &format!("{BODY}<h:no-store/>")));
        assert!(!stored("", "<c:composing xmlns:c='http://jabber.org/protocol/chat&#x73;tates'/>"));
    }

    #[test]
    fn other_stanzas_are_not_stored() {
        for xml in [
            "<presence to='a@b' from='c@d'/>",
            "<iq to='a@b' type='get' id='1'><ping xmlns='urn:xmpp:ping'/></iq>",
        ] {
            assert!(!storable(&Stanza::parse(xml.as_bytes()).unwrap()));
        }
    }
}

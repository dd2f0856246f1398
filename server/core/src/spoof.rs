//! Payloads that only a server may vouch for (SECURITY F6).
//!
//! What must hold: no message that came from elsewhere is handed on with a `<stanza-id/>` (XEP-0359) by the sender's
//! or the recipient's account or by a host of this server, nor with a `<delay/>` (XEP-0203)
//! from a host of this server; those of others pass untouched.

use waystation_xml::Element;

use crate::stanza::NS_CLIENT;
use crate::{Jid, Sign, Stanza};

const NS_STANZA_ID: &str = "urn:xmpp:sid:0";
const NS_DELAY: &str = "urn:xmpp:delay";

/// The message without what its sender may not claim; `None` when there is nothing to remove.
pub fn cleaned(message: &Stanza, is_local: impl Fn(&str) -> bool) -> Option<Stanza> {
    // Most messages cannot hold one, and are not parsed.
    if !message.may_hold(&[Sign::Claims]) {
        return None;
    }
    let element = message.element().ok()?;
    let claims = |child: &Element| {
        let who = if child.is("stanza-id", NS_STANZA_ID) {
            child.attr("by")
        } else if child.is("delay", NS_DELAY) {
            child.attr("from")
        } else {
            return false;
        };
        // Compared as addresses, so that another spelling of ours is ours.
        who.and_then(|who| Jid::parse(who).ok()).is_some_and(|who| is_local(who.domain()))
    };
    if !element.children().any(claims) {
        return None;
    }
    let mut inner = Vec::with_capacity(message.wire().1.len());
    for child in element.children().filter(|child| !claims(child)) {
        child.write(&mut inner, NS_CLIENT);
    }
    let clean = Stanza::build(
        message.stanza_type(),
        message.from().cloned(),
        message.to().cloned(),
        message.raw_id(),
        inner,
    );
    Some(match message.raw_lang() {
        Some(lang) => clean.with_raw_lang(lang),
        None => clean,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(xml: &str) -> Option<String> {
        let message = Stanza::parse(xml.as_bytes()).unwrap();
        let clean = cleaned(&message, |domain| domain == "localhost")?;
        Some(String::from_utf8(clean.to_bytes().to_vec()).unwrap())
    }

    #[test]
    fn f6_ids_and_delays_of_ours_are_removed_and_others_kept() {
        for by in ["b@localhost", "B@LOCALHOST", "localhost", "a@localhost.", "x@localhost/r"] {
            let xml = format!(
                "<message to='b@localhost' xml:lang='en'><body>&lt;x</body><stanza-id xmlns='urn:xmpp:sid:0' id='1' by='{by}'/>\
                 <stanza-id xmlns='urn&#58;xmpp:sid:0' id='2' by='{by}'/><delay xmlns='urn:xmpp:delay' from='{by}' stamp='x'/>\
                 <stanza-id xmlns='urn:xmpp:sid:0' id='3' by='elsewhere.example'/><delay xmlns='urn:xmpp:delay' stamp='y'/>\
                 </message>"
            );
            assert_eq!(
                clean(&xml).unwrap(),
                "<message to='b@localhost' xml:lang='en'><body>&lt;x</body><stanza-id xmlns='urn:xmpp:sid:0' id='3' \
                 by='elsewhere.example'/><delay xmlns='urn:xmpp:delay' stamp='y'/></message>"
            );
        }
        assert_eq!(clean("<message to='b@localhost'><body>urn:xmpp:sid:0</body></message>"), None);
        // Declared by the message's own tag, the namespace does not show in what follows the tag.
        let prefixed = "<message xmlns:s='urn:xmpp:sid:0' to='b@localhost'><s:stanza-id id='1' by='b@localhost'/>\
                        <body>x</body></message>";
        let cleaned = clean(prefixed).unwrap();
        assert!(!cleaned.contains("stanza-id") && cleaned.contains("<body>x</body>"), "{cleaned}");
    }
}

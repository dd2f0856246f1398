//! The account's own stanza id (XEP-0359), which only the server may set.
//!
//! What must hold: what is archived carries no stanza id that claims to be the account's own
//! (XEP-0359 4, rule 2), whoever wrote it, so that a result carries exactly the archive's.

use waystation_core::stanza::NS_CLIENT;
use waystation_core::{Jid, Sign, Stanza};

/// Namespace of stanza ids; also the disco feature.
pub(crate) const NS_SID: &str = "urn:xmpp:sid:0";

/// The message without stanza ids that claim to be `account`'s; `None` when it has none.
pub(crate) fn without_own(stanza: &Stanza, account: &Jid) -> Option<Stanza> {
    // Whether it declares the namespace was found out before, once for all archives.
    if !stanza.may_hold(&[Sign::Claims]) {
        return None;
    }
    let (_, tail) = stanza.wire();
    // Unlike the namespace, the name of an element cannot be written in another way.
    memchr::memmem::find(tail, b"stanza-id")?;
    let mut element = stanza.element().ok()?;
    let before = element.children().count();
    element.retain_children(|child| {
        let own = || child.attr("by").is_some_and(|by| Jid::parse(by).is_ok_and(|by| by.bare_eq(account)));
        !(child.is("stanza-id", NS_SID) && own())
    });
    if element.children().count() == before {
        return None;
    }
    // What was read from a tree can be read back.
    Stanza::parse(&element.to_vec(NS_CLIENT)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_stanza_ids_go_and_all_others_stay() {
        let account = Jid::parse("juliet@capulet.example").unwrap();
        let clean = |inner: &str| {
            let xml = format!("<message from='a@b' to='juliet@capulet.example'>{inner}</message>");
            let stanza = Stanza::parse(xml.as_bytes()).unwrap();
            let stanza = without_own(&stanza, &account).unwrap_or(stanza);
            String::from_utf8(stanza.wire().1.to_vec()).unwrap()
        };
        for forged in [
            "<stanza-id xmlns='urn:xmpp:sid:0' by='juliet@capulet.example' id='1'/>",
            "<stanza-id xmlns='urn:xmpp:sid:&#48;' by='JULIET@capulet.example' id='1'/>",
            "<s:stanza-id xmlns:s='urn:xmpp:sid:0' by='juliet@capulet.example/a' id='1'/>",
        ] {
            assert_eq!(clean(&format!("<body>x</body>{forged}{forged}")), "><body>x</body></message>");
        }
        for kept in [
            "<stanza-id xmlns='urn:xmpp:sid:0' by='hall@rooms.example' id='1'/>",
            "<stanza-id xmlns='urn:x' by='juliet@capulet.example' id='1'/>",
            "<origin-id xmlns='urn:xmpp:sid:0' id='1'/>",
            "<x xmlns='urn:x'><stanza-id xmlns='urn:xmpp:sid:0' by='juliet@capulet.example' id='1'/></x>",
        ] {
            assert_eq!(clean(kept), format!(">{kept}</message>"));
        }
    }
}

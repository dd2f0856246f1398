//! The delay stamp on a message that is stored (XEP-0203).
//!
//! What must hold: a stored message has exactly one stamp of its recipient's server, which this
//! server put there.

use bytes::Bytes;
use waystation_core::datetime::{self, NS_DELAY, Timestamp};
use waystation_core::stanza::NS_CLIENT;
use waystation_core::{Jid, Stanza};

/// The message as it is stored: stamped by `host` with `now`.
pub(crate) fn stamped(stanza: &Stanza, host: &Jid, now: Timestamp) -> Bytes {
    let stamp = datetime::delay(host, now);
    match without_forged(stanza, host) {
        Some(clean) => clean.with_appended(&stamp).to_bytes(),
        None => stanza.with_appended(&stamp).to_bytes(),
    }
}

/// The message without stamps that claim to be the host's own (XEP-0203 4); `None` when it has none.
fn without_forged(stanza: &Stanza, host: &Jid) -> Option<Stanza> {
    let (head, tail) = stanza.wire();
    // A namespace can also be written with character references.
    let suspicious = [NS_DELAY.as_bytes(), b"&#"];
    if !suspicious
        .iter()
        .any(|part| [head, tail].iter().any(|bytes| memchr::memmem::find(bytes, part).is_some()))
    {
        return None;
    }
    let mut element = stanza.element().ok()?;
    let before = element.children().count();
    element.retain_children(|child| {
        let own = || child.attr("from").is_some_and(|from| Jid::parse(from).is_ok_and(|from| from == *host));
        !(child.is("delay", NS_DELAY) && own())
    });
    if element.children().count() == before {
        return None;
    }
    Stanza::parse(&element.to_vec(NS_CLIENT)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamped_text(inner: &str) -> String {
        let xml =
            format!("<message from='romeo@montague.example/a' to='juliet@capulet.example'>{inner}</message>");
        let host = Jid::parse("capulet.example").unwrap();
        let now = Timestamp::parse("2002-09-10T23:08:25Z").unwrap();
        let bytes = stamped(&Stanza::parse(xml.as_bytes()).unwrap(), &host, now);
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    const STAMP: &str = "<delay xmlns='urn:xmpp:delay' from='capulet.example' stamp='2002-09-10T23:08:25Z'/>";

    #[test]
    fn stored_messages_are_stamped_as_xep_0160_2_shows() {
        let text = stamped_text("<body>O blessed night!</body>");
        assert!(text.ends_with(&format!("<body>O blessed night!</body>{STAMP}</message>")), "{text}");
    }

    #[test]
    fn f6_stamps_that_claim_to_be_the_servers_are_removed() {
        for forged in [
            "<delay xmlns='urn:xmpp:delay' from='capulet.example' stamp='1999-01-01T00:00:00Z'/>",
            "<delay xmlns='urn:xmpp:delay' from='CAPULET.example.' stamp='1999-01-01T00:00:00Z'/>",
            "<delay xmlns='urn:xmpp:&#100;elay' from='capulet.example' stamp='1999-01-01T00:00:00Z'>x</delay>",
            "<d:delay xmlns:d='urn:xmpp:delay' from='capulet.example'/>",
        ] {
            let text = stamped_text(&format!("<body>a</body>{forged}{forged}"));
            assert!(text.ends_with(&format!("<body>a</body>{STAMP}</message>")), "{text}");
        }
    }

    #[test]
    fn stamps_of_others_are_kept() {
        for kept in [
            "<delay xmlns='urn:xmpp:delay' from='room@rooms.example' stamp='2001-01-01T00:00:00Z'/>",
            "<delay xmlns='urn:xmpp:delay' from='juliet@capulet.example' stamp='2001-01-01T00:00:00Z'/>",
            "<delay xmlns='urn:xmpp:delay' from='@' stamp='2001-01-01T00:00:00Z'/>",
            "<delay xmlns='urn:xmpp:delay' stamp='2001-01-01T00:00:00Z'/>",
        ] {
            let text = stamped_text(kept);
            assert!(text.ends_with(&format!("{kept}{STAMP}</message>")), "{text}");
        }
    }
}

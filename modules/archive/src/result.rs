//! What a query is answered with: result messages, the end of the results, the metadata.
//!
//! What must hold: a forwarded message is well-formed, declares its own namespace (XEP-0297 3.2)
//! and carries exactly one stanza id of its archive, the one that its live copies carried.

use waystation_core::datetime::{NS_DELAY, Timestamp};
use waystation_core::rsm::PageReply;
use waystation_core::stanza::{NS_CLIENT, escaped};
use waystation_core::{Element, Jid, MessageType, Stanza, StanzaType};

use crate::NS_MAM;
use crate::row::{self, Row};
use crate::sid::NS_SID;

const NS_FORWARD: &str = "urn:xmpp:forward:0";

/// Appends the `<result/>` of an archived message (XEP-0313 4.2).
pub(crate) fn write(out: &mut Vec<u8>, account: &Jid, query: Option<&str>, position: u64, row: &Row) {
    let mut put = |text: &[u8]| out.extend_from_slice(text);
    let id = row::id(position);
    put(format!("<result xmlns='{NS_MAM}'").as_bytes());
    if let Some(query) = query {
        put(format!(" queryid='{}'", escaped(query)).as_bytes());
    }
    put(format!(" id='{id}'><forwarded xmlns='{NS_FORWARD}'><delay xmlns='{NS_DELAY}' stamp='{}'/>", row.at)
        .as_bytes());
    let name_end = row.head.iter().position(|byte| *byte == b' ').unwrap_or(row.head.len());
    let (name, attributes) = row.head.split_at(name_end);
    put(name);
    put(format!(" xmlns='{NS_CLIENT}'").as_bytes());
    put(attributes);
    let by = account.to_bare();
    let own = format!("<stanza-id xmlns='{NS_SID}' by='{}' id='{id}'/>", by.escaped());
    // The tail of a message without content is `/>`, perhaps behind white space.
    if row.tail.trim_ascii_start().starts_with(b"/") {
        put(b">");
        put(own.as_bytes());
        put(b"</");
        put(name.strip_prefix(b"<").unwrap_or(name));
        put(b">");
    } else {
        let end = row.tail.iter().rposition(|byte| *byte == b'<').unwrap_or(row.tail.len());
        let (content, closing) = row.tail.split_at(end);
        put(content);
        put(own.as_bytes());
        put(closing);
    }
    put(b"</forwarded></result>");
}

/// The message that carries a result to the session that asked.
pub(crate) fn message(account: &Jid, to: &Jid, query: Option<&str>, position: u64, row: &Row) -> Stanza {
    let mut inner = Vec::with_capacity(512 + row.head.len() + row.tail.len());
    write(&mut inner, account, query, position, row);
    let kind = StanzaType::Message(MessageType::Normal);
    Stanza::build(kind, Some(account.to_bare()), Some(to.clone()), None, inner)
}

/// The `<fin/>` of the iq result (XEP-0313 4.3.2). `stable` is left out: the results are.
pub(crate) fn fin(complete: bool, reply: &PageReply) -> Element {
    let mut fin = Element::new("fin", NS_MAM);
    if complete {
        fin.set_attr("complete", "true");
    }
    fin.with_child(reply.to_element())
}

/// The `<metadata/>` of an archive (XEP-0313 5) from its first and last message; `None` when it
/// is empty.
pub(crate) fn metadata(bounds: Option<[(u64, Timestamp); 2]>) -> Element {
    let mut metadata = Element::new("metadata", NS_MAM);
    for (name, (position, at)) in ["start", "end"].into_iter().zip(bounds.into_iter().flatten()) {
        let child = Element::new(name, NS_MAM).with_attr("id", row::id(position));
        metadata.push(child.with_attr("timestamp", at.to_string()));
    }
    metadata
}

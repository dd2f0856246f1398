//! The `jabber:iq:roster` payload (RFC 6121 2.1): reading roster sets, writing items.
//!
//! What must hold: a set that breaks a rule of RFC 6121 2.1.5 or 2.3.3 is refused with the error
//! that is named there; the `ask` and `approved` attributes of a client are never read.

use waystation_core::error::{Condition, StanzaError};
use waystation_core::prep;
use waystation_core::xml::{escape_attr, escape_text};
use waystation_core::{Element, Jid};

use crate::RosterConfig;
use crate::contact::Contact;

/// Namespace of rosters.
pub(crate) const NS_ROSTER: &str = "jabber:iq:roster";

/// What a roster set asks for.
#[derive(Debug)]
pub(crate) enum Change {
    /// Create or update an item.
    Update {
        /// The item.
        jid: Jid,
        /// Its handle, empty for none.
        name: Box<str>,
        /// Its groups.
        groups: Box<[Box<str>]>,
    },
    /// Remove an item.
    Remove {
        /// The item.
        jid: Jid,
    },
}

/// Reads the `<query/>` of a roster set.
///
/// # Errors
/// `bad-request`: not exactly one item, no `jid`, a `jid` with a resource, groups that are equal.
/// `jid-malformed`: the `jid` is no address. `not-acceptable`: the name or a group is longer than
/// the limit, a group is empty, or there are too many groups.
pub(crate) fn read_set(query: &Element, config: &RosterConfig) -> Result<Change, StanzaError> {
    let mut items = query.children().filter(|child| child.is("item", NS_ROSTER));
    let (Some(item), None) = (items.next(), items.next()) else {
        return Err(refused(Condition::BadRequest, "a roster set holds exactly one item"));
    };
    let jid = item.attr("jid").ok_or_else(|| refused(Condition::BadRequest, "the item has no jid"))?;
    let jid = Jid::parse(jid).map_err(|_| StanzaError::new(Condition::JidMalformed))?;
    if !jid.is_bare() {
        return Err(refused(Condition::BadRequest, "the jid of an item has no resource"));
    }
    // Any other value is ignored (RFC 6121 2.1.5).
    if item.attr("subscription") == Some("remove") {
        return Ok(Change::Remove { jid });
    }
    let name = item.attr("name").unwrap_or_default();
    if name.len() > config.max_text_bytes {
        return Err(refused(Condition::NotAcceptable, "the name is too long"));
    }
    let groups: Box<[Box<str>]> = item
        .children()
        .filter(|child| child.is("group", NS_ROSTER))
        .map(|group| group.text().into_boxed_str())
        .collect();
    if groups.len() > config.max_groups {
        return Err(refused(Condition::NotAcceptable, "the item is in too many groups"));
    }
    if groups.iter().any(|group| group.is_empty()) {
        return Err(refused(Condition::NotAcceptable, "the name of a group is empty"));
    }
    if groups.iter().any(|group| group.len() > config.max_text_bytes) {
        return Err(refused(Condition::NotAcceptable, "the name of a group is too long"));
    }
    if has_duplicates(&groups) {
        return Err(refused(Condition::BadRequest, "a group is named twice"));
    }
    Ok(Change::Update { jid, name: name.into(), groups })
}

/// Compared as resourceparts (RFC 6121 2.3.3); what cannot be one is compared as it is.
fn has_duplicates(groups: &[Box<str>]) -> bool {
    let mut prepared: Vec<_> =
        groups.iter().map(|group| prep::resource(group).unwrap_or_else(|_| (&**group).into())).collect();
    prepared.sort_unstable();
    prepared.windows(2).any(|pair| pair[0] == pair[1])
}

fn refused(condition: Condition, text: &'static str) -> StanzaError {
    StanzaError::new(condition).with_text(text)
}

/// Writes `<query/>` with items (RFC 6121 2.1.4, 2.1.6).
pub(crate) fn write_query<'a>(
    version: &str,
    items: impl IntoIterator<Item = (&'a Jid, &'a Contact)>,
) -> Vec<u8> {
    let mut out = Vec::new();
    for part in ["<query xmlns='", NS_ROSTER, "' ver='", version, "'>"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (jid, contact) in items {
        write_item(jid, contact, &mut out);
    }
    out.extend_from_slice(b"</query>");
    out
}

/// Writes an item; one that is not listed is written as removed.
fn write_item(jid: &Jid, contact: &Contact, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<item jid='");
    out.extend_from_slice(jid.escaped().as_bytes());
    out.extend_from_slice(b"' subscription='");
    if !contact.listed {
        out.extend_from_slice(b"remove'/>");
        return;
    }
    out.extend_from_slice(contact.state.attribute().as_bytes());
    out.push(b'\'');
    if contact.state.is_pending_out() {
        out.extend_from_slice(b" ask='subscribe'");
    }
    if contact.approved {
        out.extend_from_slice(b" approved='true'");
    }
    if !contact.name.is_empty() {
        out.extend_from_slice(b" name='");
        escape_attr(&contact.name, out);
        out.push(b'\'');
    }
    if contact.groups.is_empty() {
        out.extend_from_slice(b"/>");
        return;
    }
    out.push(b'>');
    for group in &contact.groups {
        out.extend_from_slice(b"<group>");
        escape_text(group, out);
        out.extend_from_slice(b"</group>");
    }
    out.extend_from_slice(b"</item>");
}

//! The delivery rules of RFC 6121 8.5 as pure decisions.
//!
//! What must hold: Table 1 of section 8.5.4, cell by cell; where it leaves a choice, the
//! comment says which was taken and why.

use waystation_core::{MessageType, SessionId, Sessions, Stanza, StanzaType};

/// Sessions; most often one.
pub type Targets = smallvec::SmallVec<[SessionId; 2]>;

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Hand it to these sessions.
    To(Targets),
    /// Store it for later if it is storable; otherwise answer with service-unavailable.
    Store,
    /// Answer with service-unavailable.
    Bounce,
    /// Drop it silently.
    Ignore,
}

/// Where a message for an existing account goes.
///
/// `message` is of kind message and addressed to the account, bare or full. Among several
/// non-negative resources a message of type normal or chat goes to those with the highest
/// priority (option M, as Prosody and ejabberd do).
pub fn message(sessions: &Sessions, message: &Stanza) -> Delivery {
    let StanzaType::Message(kind) = message.stanza_type() else { return Delivery::Ignore };
    let resource = message.to().and_then(|to| to.resource());
    if let Some(session) = resource.and_then(|r| sessions.by_resource(r)) {
        // 8.5.3.1: a connected resource gets every message sent to its full JID.
        return Delivery::To(smallvec::smallvec![session.id]);
    }
    let full = resource.is_some();
    match kind {
        // 8.5.2.1.1, 8.5.2.2.1, 8.5.3.2.1: never answered, never delivered to another resource.
        MessageType::Error => Delivery::Ignore,
        MessageType::Groupchat => Delivery::Bounce,
        // The choice between silence and an error falls to the error, so that the sender
        // knows: Table 1, rows "full no match". The existence of the account is not
        // revealed by it: an unknown account gets the same answer.
        MessageType::Normal | MessageType::Headline if full => Delivery::Bounce,
        MessageType::Headline => {
            let targets: Targets = non_negative(sessions).map(|(id, _)| id).collect();
            if targets.is_empty() { Delivery::Ignore } else { Delivery::To(targets) }
        }
        MessageType::Normal | MessageType::Chat => {
            let Some(best) = non_negative(sessions).map(|(_, priority)| priority).max() else {
                return Delivery::Store;
            };
            Delivery::To(non_negative(sessions).filter(|(_, p)| *p == best).map(|(id, _)| id).collect())
        }
    }
}

/// Where a message for an account that does not exist goes (8.5.1).
///
/// The answers equal those of an existing account without resources whose spool refuses the
/// message, so that nobody learns which accounts exist from an error.
pub fn message_to_nobody(message: &Stanza) -> Delivery {
    match message.stanza_type() {
        StanzaType::Message(MessageType::Error) => Delivery::Ignore,
        StanzaType::Message(MessageType::Headline) if message.to().is_some_and(|to| to.is_bare()) => {
            Delivery::Ignore
        }
        _ => Delivery::Bounce,
    }
}

fn non_negative(sessions: &Sessions) -> impl Iterator<Item = (SessionId, i8)> {
    sessions.available().filter(|s| s.priority >= 0).map(|s| (s.id, s.priority))
}

#[cfg(test)]
mod tests {
    use waystation_core::account::LiveSession;
    use waystation_core::{Jid, PresenceType};

    use super::*;

    /// Sessions a, b, c ... with these priorities; `None` is connected but not available.
    fn sessions(priorities: &[Option<i8>]) -> Sessions {
        let mut sessions = Sessions::default();
        for (i, priority) in priorities.iter().enumerate() {
            let resource = char::from(b'a' + u8::try_from(i).unwrap()).to_string();
            let jid = Jid::new(Some("u"), "h", Some(&resource)).unwrap();
            let mut session = LiveSession::new(SessionId(i as u64), jid);
            if let Some(priority) = priority {
                let kind = StanzaType::Presence(PresenceType::Available);
                session.presence = Some(Stanza::build(kind, None, None, None, ""));
                session.priority = *priority;
            }
            sessions.insert(session);
        }
        sessions
    }

    fn to(ids: &[u64]) -> Delivery {
        Delivery::To(ids.iter().map(|id| SessionId(*id)).collect())
    }

    /// RFC 6121 8.5.4 Table 1 (and type error of 8.5.2 and 8.5.3), cell by cell.
    #[test]
    fn rfc6121_8_5_4_message_delivery_table() {
        use Delivery::{Bounce as E, Ignore as S, Store as O};
        use MessageType::{Chat, Error, Groupchat, Headline, Normal};
        type Row<'a> = (&'a str, &'a [Option<i8>], &'a str, [Delivery; 5]);
        let rows: &[Row<'_>] = &[
            // condition, priorities, to, [normal, chat, groupchat, headline, error]
            ("no resources, bare", &[], "u@h", [O, O, E, S, S]),
            ("no resources, full", &[], "u@h/x", [E, O, E, E, S]),
            ("connected only, bare", &[None], "u@h", [O, O, E, S, S]),
            ("connected only, match", &[None], "u@h/a", [to(&[0]), to(&[0]), to(&[0]), to(&[0]), to(&[0])]),
            ("negative, bare", &[Some(-1)], "u@h", [O, O, E, S, S]),
            ("negative, match", &[Some(-1)], "u@h/a", [to(&[0]), to(&[0]), to(&[0]), to(&[0]), to(&[0])]),
            ("negative, no match", &[Some(-1)], "u@h/x", [E, O, E, E, S]),
            ("one, bare", &[Some(0)], "u@h", [to(&[0]), to(&[0]), E, to(&[0]), S]),
            ("one, match", &[Some(0)], "u@h/a", [to(&[0]), to(&[0]), to(&[0]), to(&[0]), to(&[0])]),
            ("one, no match", &[Some(0)], "u@h/x", [E, to(&[0]), E, E, S]),
            (
                "several, bare",
                &[Some(1), Some(5), Some(5), Some(-3), None],
                "u@h",
                [to(&[1, 2]), to(&[1, 2]), E, to(&[0, 1, 2]), S],
            ),
            (
                "several, match",
                &[Some(1), Some(5), Some(-3)],
                "u@h/c",
                [to(&[2]), to(&[2]), to(&[2]), to(&[2]), to(&[2])],
            ),
            ("several, no match", &[Some(1), Some(5)], "u@h/x", [E, to(&[1]), E, E, S]),
        ];
        for (name, priorities, address, expected) in rows {
            let sessions = sessions(priorities);
            for (kind, expected) in [Normal, Chat, Groupchat, Headline, Error].into_iter().zip(expected) {
                let address = Some(Jid::parse(address).unwrap());
                let stanza = Stanza::build(StanzaType::Message(kind), None, address, None, "<body>x</body>");
                assert_eq!(&message(&sessions, &stanza), expected, "{name}, {kind:?}");
            }
        }
    }

    /// RFC 6121 8.5.4 Table 1, "account does not exist".
    #[test]
    fn rfc6121_8_5_1_no_such_user() {
        use Delivery::{Bounce, Ignore};
        for (address, kind, expected) in [
            ("u@h", MessageType::Normal, Bounce),
            ("u@h", MessageType::Chat, Bounce),
            ("u@h", MessageType::Groupchat, Bounce),
            ("u@h", MessageType::Headline, Ignore),
            ("u@h", MessageType::Error, Ignore),
            ("u@h/r", MessageType::Chat, Bounce),
            ("u@h/r", MessageType::Headline, Bounce),
        ] {
            let to = Some(Jid::parse(address).unwrap());
            let stanza = Stanza::build(StanzaType::Message(kind), None, to, None, "");
            assert_eq!(message_to_nobody(&stanza), expected, "{address} {kind:?}");
        }
    }
}

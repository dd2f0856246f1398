//! Presence probes (RFC 6121 4.3.2, 4.6.6).
//!
//! What must hold: who is neither a subscriber nor got directed presence gets the answer that an
//! account gives which does not exist, whatever the account's resources are (SECURITY M4).

use waystation_core::account::{
    AccountPresence, Effect, Effects, LiveSession, Relation, Sessions, Step, refuse_probe,
};
use waystation_core::datetime::delay;
use waystation_core::{Jid, PresenceType, Stanza, StanzaType};

use crate::account::Account;

impl Account {
    /// Answers a probe to the account or one of its resources.
    pub(crate) fn answer_probe(&self, sessions: &Sessions, probe: &Stanza, effects: &mut Effects) {
        let (Some(from), Some(to)) = (probe.from(), probe.to()) else { return };
        if self.relation(from) != Relation::Stranger {
            match to.resource() {
                None => self.answer_bare(sessions, probe, from, effects),
                Some(resource) => {
                    let session = sessions.by_resource(resource).filter(|session| session.is_available());
                    effects.route(mere(session, to, from, probe));
                }
            }
            return;
        }
        let shown: Vec<_> = sessions
            .iter()
            .filter(|session| to.is_bare() || session.jid == *to)
            .filter(|session| session.directed.contains(from) || session.directed.contains(from.bare_str()))
            .collect();
        if shown.is_empty() {
            effects.steps.extend(refuse_probe(probe).map(|refusal| Step::Now(Effect::Route(refusal))));
        }
        for session in shown {
            effects.route(mere(Some(session), &session.jid, from, probe));
        }
    }

    /// A subscriber asks for all resources.
    fn answer_bare(&self, sessions: &Sessions, probe: &Stanza, from: &Jid, effects: &mut Effects) {
        let mut any = false;
        for session in sessions.available() {
            if let Some(presence) = &session.presence {
                any = true;
                effects.route(presence.readdressed(Some(session.jid.clone()), Some(from.clone())));
            }
        }
        if !any {
            let stamp = self.last_unavailable.map(|time| delay(self.jid(), time)).unwrap_or_default();
            effects.route(Stanza::build(
                StanzaType::Presence(PresenceType::Unavailable),
                Some(self.jid().clone()),
                Some(from.clone()),
                probe.raw_id(),
                stamp,
            ));
        }
    }
}

/// Presence of one resource without details: with the id of its own presence when it is available,
/// else with the probe's (RFC 6121 4.3.2.1).
fn mere(session: Option<&LiveSession>, resource: &Jid, to: &Jid, probe: &Stanza) -> Stanza {
    match session {
        Some(session) => {
            let raw_id = session.presence.as_ref().and_then(Stanza::raw_id);
            Account::presence(resource, to, PresenceType::Available, raw_id)
        }
        None => Account::presence(resource, to, PresenceType::Unavailable, probe.raw_id()),
    }
}

//! Where a sender's last stored stanza went: the next one most often goes there too.
//!
//! What must hold: what is remembered is used only while the route that it names takes work; so it
//! is never more than a look-up spared.

use waystation_core::Jid;

use crate::directory::Entry;

/// The accounts that the last stored stanza of one sender concerned. Looking both up, by their text
/// and under a lock, was a twentieth of what a message cost the server.
#[derive(Default)]
pub struct Recent {
    to: Option<(Jid, Entry)>,
    from: Option<(Jid, Entry)>,
}

/// Which of them.
#[derive(Clone, Copy)]
pub(crate) enum Party {
    To,
    From,
}

impl Recent {
    /// Who the last stored stanza was to.
    pub fn to(&self) -> Option<&Jid> {
        self.to.as_ref().map(|(jid, _)| jid)
    }

    /// How the account is reached, if it is the one that was concerned last.
    pub(crate) fn find(&self, party: Party, account: &Jid) -> Option<Entry> {
        let (jid, entry) = self.place(party).as_ref()?;
        (jid == account && !entry.outlet.is_closed()).then(|| entry.clone())
    }

    pub(crate) fn remember(&mut self, party: Party, account: &Jid, entry: &Entry) {
        let place = match party {
            Party::To => &mut self.to,
            Party::From => &mut self.from,
        };
        *place = Some((account.clone(), entry.clone()));
    }

    fn place(&self, party: Party) -> &Option<(Jid, Entry)> {
        match party {
            Party::To => &self.to,
            Party::From => &self.from,
        }
    }
}

#[cfg(test)]
mod tests {
    use waystation_runtime::outlet;

    use super::*;

    #[test]
    fn a_route_is_found_again_until_it_ends() {
        let [romeo, juliet] = ["romeo@m/a", "juliet@c/b"].map(|jid| Jid::parse(jid).unwrap());
        let (outlet, mut inlet) = outlet(1000, 10);
        let entry = Entry { outlet, queue: "a/juliet@c".into() };
        let mut recent = Recent::default();
        assert!(recent.find(Party::To, &juliet).is_none() && recent.to().is_none());
        recent.remember(Party::To, &juliet, &entry);
        assert_eq!(recent.to(), Some(&juliet));
        assert!(recent.find(Party::To, &juliet).is_some_and(|found| found.queue == entry.queue));
        assert!(recent.find(Party::To, &romeo).is_none() && recent.find(Party::From, &juliet).is_none());
        inlet.close();
        assert!(recent.find(Party::To, &juliet).is_none(), "its route has ended");
    }
}

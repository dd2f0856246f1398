//! Knowing what a peer without stream management has read (DELIVERY P8): it is asked something, and its
//! answer proves that it has read what went before.
//!
//! What must hold: an answer counts only when it is of the domain that was asked, to the domain that asked,
//! and has the id of a question that is open, which is random: nobody else can give it. The answer may come on
//! any stream of that domain, so whoever reads stanzas of remote domains looks here first. A stream has
//! at most one question open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use waystation_core::{IqType, Jid, Stanza, StanzaType};
use waystation_route::remote::Pair;

use crate::stream::{is_domain, random_id};

/// Ids of questions begin with this, so that other answers cost no look-up.
const PREFIX: &str = "proof-";

/// The questions of all streams that are open.
#[derive(Clone, Default)]
pub(crate) struct Proofs {
    open: Arc<Mutex<HashMap<Box<str>, Open>>>,
}

struct Open {
    pair: Arc<Pair>,
    answered: bool,
    waker: Option<Waker>,
}

/// A question that is open. It is closed when this is dropped.
pub(crate) struct Question {
    id: Box<str>,
    proofs: Proofs,
}

impl Proofs {
    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a question, and makes the stanza that asks it (XEP-0199); `None` when the system gives no
    /// random bytes, or the domains are none.
    pub(crate) fn ask(&self, pair: &Arc<Pair>) -> Option<(Question, Stanza)> {
        let id: Box<str> = format!("{PREFIX}{}", random_id().ok()?).into();
        let (from, to) = (Jid::parse(&pair.local).ok()?, Jid::parse(&pair.remote).ok()?);
        let ping = Stanza::build(
            StanzaType::Iq(IqType::Get),
            Some(from),
            Some(to),
            Some(&id),
            "<ping xmlns='urn:xmpp:ping'/>",
        );
        self.lock().insert(id.clone(), Open { pair: pair.clone(), answered: false, waker: None });
        Some((Question { id, proofs: self.clone() }, ping))
    }

    /// Takes a stanza that answers a question, with a result or an error; true when it did, and is not to
    /// be handed on. To be asked of every stanza from a remote domain whose sender was proven.
    pub(crate) fn take(&self, stanza: &Stanza) -> bool {
        if !matches!(stanza.stanza_type(), StanzaType::Iq(IqType::Result | IqType::Error)) {
            return false;
        }
        let (Some(from), Some(to)) = (stanza.from(), stanza.to()) else { return false };
        let Some(id) = stanza.raw_id().filter(|id| id.starts_with(PREFIX)) else { return false };
        let waker = {
            let mut open = self.lock();
            let Some(question) = open.get_mut(id) else { return false };
            if !is_domain(from, &question.pair.remote) || !is_domain(to, &question.pair.local) {
                return false;
            }
            question.answered = true;
            question.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }
}

impl Question {
    /// Whether it is answered; the task of `cx` is woken when it is.
    pub(crate) fn poll(&self, cx: &Context<'_>) -> bool {
        let mut open = self.proofs.lock();
        let Some(question) = open.get_mut(&self.id) else { return false };
        if !question.answered {
            question.waker = Some(cx.waker().clone());
        }
        question.answered
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        self.proofs.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(question: &Question, from: &str, to: &str, iq: IqType) -> Stanza {
        let (from, to) = (Jid::parse(from).unwrap(), Jid::parse(to).unwrap());
        Stanza::build(StanzaType::Iq(iq), Some(from), Some(to), Some(&question.id), "")
    }

    #[test]
    fn only_the_domain_that_was_asked_can_answer_and_only_once_it_was() {
        let proofs = Proofs::default();
        let pair = Arc::new(Pair::new("here.test", "there.test"));
        let cx = Context::from_waker(Waker::noop());
        let (question, ping) = proofs.ask(&pair).unwrap();
        assert_eq!((ping.from().unwrap().as_str(), ping.to().unwrap().as_str()), ("here.test", "there.test"));
        for (from, to, iq) in [
            ("other.test", "here.test", IqType::Result),
            ("u@there.test", "here.test", IqType::Result),
            ("there.test", "other.test", IqType::Result),
            ("there.test", "here.test/r", IqType::Error),
            ("there.test", "here.test", IqType::Get),
        ] {
            assert!(!proofs.take(&answer(&question, from, to, iq)), "{from} {to}");
        }
        assert!(!proofs.take(&Stanza::build(
            StanzaType::Iq(IqType::Result),
            Jid::parse("there.test").ok(),
            Jid::parse("here.test").ok(),
            Some("proof-guessed"),
            ""
        )));
        assert!(!question.poll(&cx));
        assert!(proofs.take(&answer(&question, "there.test", "here.test", IqType::Error)));
        assert!(question.poll(&cx));
        let late = answer(&question, "there.test", "here.test", IqType::Result);
        drop(question);
        assert!(!proofs.take(&late) && proofs.lock().is_empty(), "a question that is closed is forgotten");
    }
}

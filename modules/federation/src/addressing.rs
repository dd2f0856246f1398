//! For which pairs of domains a stream is proven, and which stanzas may therefore come on it
//! (RFC 6120 8.1.1.2 and 8.1.2.2).
//!
//! What must hold: a stanza is taken only when its sender's domain was proven on this very stream for the
//! domain that it is addressed to. A subdomain is another domain, and so is every other host of ours.

use std::sync::Arc;

use waystation_core::xml::Frame;
use waystation_core::{Jid, StreamCondition, StreamError};
use waystation_route::remote::Pair;

/// The pairs that one stream is proven for. There are few (`settings.pairs_per_stream`), and most stanzas
/// belong to the pair of the one before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proven {
    pairs: Vec<Arc<Pair>>,
}

impl Proven {
    /// Adds a pair. False if it was there.
    pub(crate) fn add(&mut self, pair: Arc<Pair>) -> bool {
        let new = !self.contains(&pair);
        if new {
            self.pairs.push(pair);
        }
        new
    }

    pub(crate) fn contains(&self, pair: &Pair) -> bool {
        self.pairs.iter().any(|known| **known == *pair)
    }

    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// In the order in which they were proven.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Pair>> {
        self.pairs.iter()
    }

    fn check(&self, local: &str, remote: &str) -> Result<(), StreamError> {
        let mut remote_is_proven = false;
        for pair in &self.pairs {
            if *pair.remote == *remote {
                if *pair.local == *local {
                    return Ok(());
                }
                remote_is_proven = true;
            }
        }
        Err(if remote_is_proven {
            // Whether the domain is one of ours is not for a server to find out that has not proven itself
            // to it.
            StreamError::new(StreamCondition::HostUnknown)
                .with_text("this stream is not proven for the domain of the 'to'")
        } else {
            StreamError::new(StreamCondition::InvalidFrom)
                .with_text("the domain of the 'from' is not proven on this stream")
        })
    }
}

/// The addresses of a stanza that may come on its stream.
#[derive(Debug)]
pub(crate) struct Addressed {
    pub(crate) from: Jid,
    pub(crate) to: Jid,
}

/// Checks the addresses of a stanza.
///
/// # Errors
/// What the stream must be closed with: `improper-addressing` when one is missing, empty or no address,
/// `invalid-from` when the sender's domain is not proven, `host-unknown` when it is, but for another domain
/// than the one that the stanza is to.
pub(crate) fn check_addresses(frame: &Frame<'_>, proven: &Proven) -> Result<Addressed, StreamError> {
    let address = |name: &str| {
        let value = frame.head.attr(frame.bytes, name);
        value.and_then(|value| Jid::parse(&value).ok()).ok_or_else(|| {
            StreamError::new(StreamCondition::ImproperAddressing)
                .with_text(format!("the stanza has no '{name}' that is an address"))
        })
    };
    let (from, to) = (address("from")?, address("to")?);
    proven.check(to.domain(), from.domain())?;
    Ok(Addressed { from, to })
}

#[cfg(test)]
mod tests {
    use waystation_core::xml::{Event, Framer, Limits};

    use super::*;

    /// Checks a message with these attributes on a stream that is proven for a.org to us.example and
    /// b.org to chat.us.example.
    fn check(attributes: &str) -> Result<(String, String), StreamCondition> {
        let mut proven = Proven::default();
        assert!(proven.add(Arc::new(Pair::new("us.example", "a.org"))));
        assert!(proven.add(Arc::new(Pair::new("chat.us.example", "b.org"))));
        assert!(!proven.add(Arc::new(Pair::new("us.example", "a.org"))));
        assert_eq!(proven.len(), 2);
        let mut framer = Framer::new(Limits::authenticated());
        let mut header: &[u8] =
            b"<stream:stream xmlns='jabber:server' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>";
        framer.next(&mut header).unwrap();
        let text = format!("<message {attributes}><body>hi</body></message>");
        let mut input = text.as_bytes();
        let Ok(Event::Stanza(frame)) = framer.next(&mut input) else { panic!("no stanza: {text}") };
        match check_addresses(&frame, &proven) {
            Ok(Addressed { from, to }) => Ok((from.to_string(), to.to_string())),
            Err(error) => Err(error.condition),
        }
    }

    #[test]
    fn f3_proven_pairs_pass() {
        let addresses = |from: &str, to: &str| Ok((from.to_owned(), to.to_owned()));
        assert_eq!(check("from='u@A.org/r' to='v@us.example'"), addresses("u@a.org/r", "v@us.example"));
        assert_eq!(check("from='a.org' to='us.example'"), addresses("a.org", "us.example"));
        assert_eq!(check("from='u@b.org' to='r@chat.us.example'"), addresses("u@b.org", "r@chat.us.example"));
    }

    #[test]
    fn f3_missing_empty_or_malformed_addresses() {
        for attributes in [
            "",
            "to='v@us.example'",
            "from='u@a.org'",
            "from='' to='v@us.example'",
            "from='u@a.org' to=''",
            "from='@a.org' to='v@us.example'",
            "from='u@a.org' to='v@us.example/'",
            "from='u v@a.org' to='v@us.example'",
            "from='u@a.org' to='v@'",
            "from='u@a.org@us.example' to='v@us.example/r'",
        ] {
            assert_eq!(check(attributes), Err(StreamCondition::ImproperAddressing), "{attributes}");
        }
    }

    #[test]
    fn f3_a_sender_whose_domain_is_not_proven() {
        for from in ["u@c.org", "u@sub.a.org", "u@org", "v@us.example", "u@aa.org", "a.org@c.org/a.org"] {
            let error = check(&format!("from='{from}' to='v@us.example'"));
            assert_eq!(error, Err(StreamCondition::InvalidFrom), "{from}");
        }
        // RFC 7622 3.2: a final dot is not a part of the domain.
        assert!(check("from='a.org.' to='v@us.example'").is_ok());
    }

    #[test]
    fn f3_a_recipient_that_the_sender_is_not_proven_for() {
        for (from, to) in [
            ("u@a.org", "room@chat.us.example"),
            ("u@b.org", "v@us.example"),
            ("u@a.org", "v@other.example"),
            ("u@a.org", "localhost"),
            ("u@a.org", "u@a.org"),
            ("u@a.org", "u@b.org"),
        ] {
            let error = check(&format!("from='{from}' to='{to}'"));
            assert_eq!(error, Err(StreamCondition::HostUnknown), "{from} {to}");
        }
    }
}

//! Server dialback (XEP-0220) in its three roles: the elements, and what each role knows of a stream.
//!
//! What must hold: an answer changes nothing unless it matches, in both domains and in the stream's id, a
//! question that was asked on the very stream on which it comes (CVE-2012-3525); a pair counts as proven
//! only by its own question, answered on a stream that we opened ourselves to the server that DNS names,
//! or by a certificate; what a peer can keep waiting is bounded per stream and in all.

use std::sync::Arc;

use waystation_core::error::NS_STANZA_ERROR;
use waystation_core::xml::{Element, escape_attr, escape_text};
use waystation_core::{Condition, ErrorType, Jid, StanzaError, StreamCondition, StreamError};
use waystation_route::remote::Pair;

use crate::keys::Keys;
use crate::stream::NS_DIALBACK;

/// Longest stream id that is looked at, in bytes.
const MAX_ID: usize = 1024;
/// Longest key, in bytes; ours have 64.
const MAX_KEY: usize = 1024;

/// Which of the two elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// `<db:result/>`: between the initiating and the receiving server.
    Result,
    /// `<db:verify/>`: between the receiving and the authoritative server.
    Verify,
}

impl Name {
    fn as_str(self) -> &'static str {
        match self {
            Self::Result => "result",
            Self::Verify => "verify",
        }
    }
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Valid,
    Invalid,
    /// The question could not be answered: the name of a stanza error's condition.
    Error(String),
}

/// An element of dialback.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) name: Name,
    /// Prepared, as a domain.
    pub(crate) from: Box<str>,
    /// Likewise.
    pub(crate) to: Box<str>,
    /// Of `<db:verify/>`: the stream for which the key is. Empty otherwise.
    pub(crate) id: String,
    pub(crate) content: Content,
}

/// What an element says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// A question: is this key the right one?
    Key(String),
    /// The answer to one.
    Answer(Answer),
}

impl Packet {
    /// Reads an element in the namespace of dialback.
    ///
    /// # Errors
    /// What the stream must be closed with: `unsupported-stanza-type` for another element,
    /// `improper-addressing` for addresses that are not domains, `bad-format` for anything else that XEP-0220
    /// does not have.
    pub(crate) fn read(element: &Element) -> Result<Self, StreamError> {
        let name = match (element.namespace(), element.name()) {
            (NS_DIALBACK, "result") => Name::Result,
            (NS_DIALBACK, "verify") => Name::Verify,
            _ => return Err(StreamCondition::UnsupportedStanzaType.into()),
        };
        let domain = |attribute| {
            let address = element.attr(attribute).and_then(|value| Jid::parse(value).ok());
            match address.filter(|address| address.local().is_none() && address.is_bare()) {
                Some(address) => Ok(Box::from(address.domain())),
                None => Err(StreamError::new(StreamCondition::ImproperAddressing)
                    .with_text(format!("dialback without a '{attribute}' that is a domain"))),
            }
        };
        let (from, to) = (domain("from")?, domain("to")?);
        let bad = |text| Err(StreamError::new(StreamCondition::BadFormat).with_text(text));
        let id = match name {
            Name::Result => String::new(),
            Name::Verify => element.attr("id").unwrap_or_default().to_owned(),
        };
        if name == Name::Verify && (id.is_empty() || id.len() > MAX_ID) {
            return bad("dialback without the id of a stream");
        }
        let content = match element.attr("type") {
            None => {
                // The examples of XEP-0220 have line breaks around the key.
                let key = element.text().trim_ascii().to_owned();
                if key.is_empty() || key.len() > MAX_KEY {
                    return bad("dialback without a key");
                }
                Content::Key(key)
            }
            Some("valid") => Content::Answer(Answer::Valid),
            Some("invalid") => Content::Answer(Answer::Invalid),
            Some("error") => Content::Answer(Answer::Error(condition(element))),
            Some(_) => return bad("dialback of a type that there is not"),
        };
        Ok(Self { name, from, to, id, content })
    }

    /// The answer to this question, with the addresses turned round (XEP-0220 2.2.1, 2.2.2).
    pub(crate) fn answered(&self, answer: &Reply) -> Vec<u8> {
        write(self.name, &self.to, &self.from, &self.id, answer.type_name(), |out| {
            if let Reply::Error(error) = answer {
                error.write(out);
            }
        })
    }
}

/// The name of the condition of an error, for logs and to tell one from the other.
fn condition(element: &Element) -> String {
    let error = element.children().find(|child| child.name() == "error");
    let condition = error.and_then(|error| {
        error.children().find(|child| child.namespace() == NS_STANZA_ERROR && child.name() != "text")
    });
    condition.map_or("undefined-condition", Element::name).to_owned()
}

/// What is answered to a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Valid,
    Invalid,
    /// It says nothing about the key, and does not end the stream (XEP-0220 2.5).
    Error(Box<StanzaError>),
}

impl Reply {
    fn type_name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::Error(_) => "error",
        })
    }
}

/// An error of dialback. XEP-0220 has `cancel` in all of its examples but those that may pass.
pub(crate) fn error(condition: Condition, text: &'static str) -> Reply {
    let kind = match condition {
        Condition::RemoteServerTimeout | Condition::ResourceConstraint => ErrorType::Wait,
        _ => ErrorType::Cancel,
    };
    Reply::Error(Box::new(StanzaError::new(condition).with_type(kind).with_text(text)))
}

fn write(
    name: Name,
    from: &str,
    to: &str,
    id: &str,
    type_name: Option<&str>,
    content: impl FnOnce(&mut Vec<u8>),
) -> Vec<u8> {
    let mut out = format!("<db:{}", name.as_str()).into_bytes();
    for (attribute, value) in [("from", from), ("to", to), ("id", id), ("type", type_name.unwrap_or(""))] {
        if value.is_empty() {
            continue;
        }
        out.extend_from_slice(format!(" {attribute}='").as_bytes());
        escape_attr(value, &mut out);
        out.push(b'\'');
    }
    out.push(b'>');
    content(&mut out);
    out.extend_from_slice(format!("</db:{}>", name.as_str()).as_bytes());
    out
}

/// What an authoritative server answers to `<db:verify/>`: whether the key is ours. It needs nothing but
/// the key, so it may be asked by anyone at any time (XEP-0220 2.2.2). `serves` tells our domains.
///
/// The caller has seen to it that TLS is there when it must be.
pub(crate) fn authoritative(question: &Packet, keys: &Keys, serves: impl Fn(&str) -> bool) -> Reply {
    let Content::Key(key) = &question.content else { return Reply::Invalid };
    if !serves(&question.to) {
        return error(Condition::ItemNotFound, "the domain is not served here");
    }
    // The one who asks received the key from someone who claims to be the `to`.
    if keys.check(key, &question.from, &question.to, &question.id) { Reply::Valid } else { Reply::Invalid }
}

/// Questions of ours on one stream, whose answers are awaited there: as the initiating server
/// (`<db:result/>`), or as the receiving one that asks an authoritative server (`<db:verify/>`).
#[derive(Debug, Default)]
pub(crate) struct Questions {
    asked: Vec<(Name, Arc<Pair>, String)>,
}

impl Questions {
    /// Asks the receiving server of a stream of ours, to which it gave the id `stream`, to let the pair in
    /// (XEP-0220 2.1.1). What must be sent is returned.
    pub(crate) fn ask_in(&mut self, keys: &Keys, pair: Arc<Pair>, stream: &str) -> Vec<u8> {
        let key = keys.make(&pair.remote, &pair.local, stream);
        self.ask(Name::Result, pair, String::new(), &key)
    }

    /// Asks the authoritative server of the pair's remote domain whether it made this key for the stream
    /// of ours whose id is `stream` (XEP-0220 2.1.2).
    pub(crate) fn verify(&mut self, pair: Arc<Pair>, stream: &str, key: &str) -> Vec<u8> {
        self.ask(Name::Verify, pair, stream.to_owned(), key)
    }

    fn ask(&mut self, name: Name, pair: Arc<Pair>, id: String, key: &str) -> Vec<u8> {
        let xml = write(name, &pair.local, &pair.remote, &id, None, |out| escape_text(key, out));
        self.asked.push((name, pair, id));
        xml
    }

    /// Takes the question that this is the answer to, with what was answered. `None` for an element that is no
    /// answer, or one to a question that was not asked here, or was answered already: it must change
    /// nothing.
    pub(crate) fn take(&mut self, packet: &Packet) -> Option<(Arc<Pair>, Answer)> {
        let Content::Answer(answer) = &packet.content else { return None };
        let index = self.asked.iter().position(|(name, pair, id)| {
            *name == packet.name
                && *pair.remote == *packet.from
                && *pair.local == *packet.to
                && *id == packet.id
        })?;
        Some((self.asked.swap_remove(index).1, answer.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(xml: &str) -> Result<Packet, StreamCondition> {
        let xml = xml.replacen(' ', &format!(" xmlns:db='{NS_DIALBACK}' "), 1);
        Packet::read(&Element::parse(xml.as_bytes(), "jabber:server").unwrap())
            .map_err(|error| error.condition)
    }

    fn text(bytes: Vec<u8>) -> String {
        String::from_utf8(bytes).unwrap()
    }

    /// The examples of XEP-0220, numbered as there.
    #[test]
    fn the_examples_of_xep_0220() {
        let capulet = Keys::new(b"s3cr3tf0rd14lb4ck");
        let montague = Keys::new(b"d14lb4ck43v3r");
        // 1 and 9: capulet asks montague to be let in.
        let mut initiating = Questions::default();
        let asked = initiating.ask_in(
            &capulet,
            Arc::new(Pair::new("capulet.example", "montague.example")),
            "D60000229F",
        );
        assert_eq!(
            text(asked),
            "<db:result from='capulet.example' to='montague.example'>\
             b4835385f37fe2895af6c196b59097b16862406db80559900d96bf6fa7d23df3</db:result>"
        );
        let request = packet(
            "<db:result from='capulet.example' to='montague.example'>\n   \
             b4835385f37fe2895af6c196b59097b16862406db80559900d96bf6fa7d23df3\n  </db:result>",
        )
        .unwrap();
        // 10, 11 and 12: its answers, which are 2, 3 and 4 for the other side.
        for (reply, xml, answer) in [
            (
                Reply::Valid,
                "<db:result from='montague.example' to='capulet.example' type='valid'></db:result>",
                Answer::Valid,
            ),
            (
                Reply::Invalid,
                "<db:result from='montague.example' to='capulet.example' type='invalid'></db:result>",
                Answer::Invalid,
            ),
            (
                error(Condition::ItemNotFound, "no"),
                "<db:result from='montague.example' to='capulet.example' type='error'><error type='cancel'>\
                 <item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/>\
                 <text xmlns='urn:ietf:params:xml:ns:xmpp-stanzas' xml:lang='en'>no</text></error></db:result>",
                Answer::Error("item-not-found".into()),
            ),
        ] {
            assert_eq!(text(request.answered(&reply)), xml);
            let mut asked = Questions::default();
            let pair = Arc::new(Pair::new("capulet.example", "montague.example"));
            asked.ask_in(&capulet, pair.clone(), "D60000229F");
            assert_eq!(asked.take(&packet(xml).unwrap()), Some((pair, answer)));
        }
        // 5 and 13: capulet, as the receiving server, asks montague, which is the authoritative one.
        let key = "225cc5aa6a071133249d25fef42ae516fc7a86c523aa1c6980a7f73e784c972d";
        let mut receiving = Questions::default();
        let pair = Arc::new(Pair::new("capulet.example", "montague.example"));
        let xml = text(receiving.verify(pair.clone(), "417GAF25", key));
        assert_eq!(
            xml,
            format!(
                "<db:verify from='capulet.example' to='montague.example' id='417GAF25'>{key}</db:verify>"
            )
        );
        let question = packet(&xml).unwrap();
        // 14, 15 and 16: its answers, which are 6, 7 and 8 for the other side.
        assert_eq!(authoritative(&question, &montague, |domain| domain == "montague.example"), Reply::Valid);
        assert_eq!(authoritative(&question, &capulet, |domain| domain == "montague.example"), Reply::Invalid);
        let Reply::Error(refused) = authoritative(&question, &montague, |_| false) else {
            panic!("no error")
        };
        assert_eq!((refused.condition, refused.kind), (Condition::ItemNotFound, ErrorType::Cancel));
        let answer = text(question.answered(&Reply::Valid));
        assert_eq!(
            answer,
            "<db:verify from='montague.example' to='capulet.example' id='417GAF25' type='valid'></db:verify>"
        );
        assert_eq!(receiving.take(&packet(&answer).unwrap()), Some((pair, Answer::Valid)));
    }

    #[test]
    fn m10_an_answer_counts_only_for_its_question() {
        let keys = Keys::random().unwrap();
        let pair = Arc::new(Pair::new("us.example", "a.org"));
        let mut questions = Questions::default();
        let valid = |xml: &str| packet(xml).unwrap();
        let result = valid("<db:result from='a.org' to='us.example' type='valid'/>");
        let verify = valid("<db:verify from='a.org' to='us.example' id='one' type='valid'/>");
        assert_eq!(questions.take(&result), None, "nothing was asked");
        assert_eq!(questions.take(&verify), None, "nothing was asked");
        questions.ask_in(&keys, pair.clone(), "one");
        assert_eq!(questions.take(&verify), None, "something else was asked");
        for other in [
            "<db:result from='b.org' to='us.example' type='valid'/>",
            "<db:result from='a.org' to='other.example' type='valid'/>",
            "<db:result from='us.example' to='a.org' type='valid'/>",
            "<db:result from='a.org' to='us.example'>key</db:result>",
        ] {
            assert_eq!(questions.take(&valid(other)), None, "{other}");
        }
        assert_eq!(questions.take(&result), Some((pair.clone(), Answer::Valid)));
        assert_eq!(questions.take(&result), None, "answered already");
        questions.verify(pair.clone(), "one", "key");
        assert_eq!(questions.take(&result), None, "something else was asked");
        let other = valid("<db:verify from='a.org' to='us.example' id='two' type='valid'/>");
        assert_eq!(questions.take(&other), None, "about another stream");
        assert_eq!(questions.asked.len(), 1);
        assert_eq!(questions.take(&verify), Some((pair, Answer::Valid)));
    }

    #[test]
    fn what_is_no_dialback_ends_the_stream() {
        let long = "x".repeat(MAX_ID + 1);
        for (xml, expected) in [
            ("<db:else from='a.org' to='b.org'>k</db:else>", StreamCondition::UnsupportedStanzaType),
            ("<db:result to='b.org'>k</db:result>", StreamCondition::ImproperAddressing),
            ("<db:result from='a.org'>k</db:result>", StreamCondition::ImproperAddressing),
            ("<db:result from='a.org' to=''>k</db:result>", StreamCondition::ImproperAddressing),
            ("<db:result from='u@a.org' to='b.org'>k</db:result>", StreamCondition::ImproperAddressing),
            ("<db:result from='a.org' to='b.org/r'>k</db:result>", StreamCondition::ImproperAddressing),
            ("<db:result from='a.org' to='b.org'> </db:result>", StreamCondition::BadFormat),
            ("<db:result from='a.org' to='b.org' type='maybe'/>", StreamCondition::BadFormat),
            ("<db:verify from='a.org' to='b.org'>k</db:verify>", StreamCondition::BadFormat),
            (
                &format!("<db:verify from='a.org' to='b.org' id='{long}'>k</db:verify>"),
                StreamCondition::BadFormat,
            ),
            (
                &format!("<db:verify from='a.org' to='b.org' id='i'>{long}</db:verify>"),
                StreamCondition::BadFormat,
            ),
        ] {
            assert_eq!(packet(xml), Err(expected), "{xml}");
        }
        let read = packet("<db:verify from='A.org' to='b.ORG' id=\"i'd\">k</db:verify>").unwrap();
        assert_eq!((&*read.from, &*read.to, read.id.as_str()), ("a.org", "b.org", "i'd"));
        assert!(text(read.answered(&Reply::Invalid)).contains(" id='i&apos;d' type='invalid'"));
    }
}

//! Stream management of a client that manages its stream itself, as far as it can see. What it
//! gets are the gateway's own numbers, shifted to where it began to count.

use waystation_core::xml::Element;

use super::{Counting, Management, NS_CLIENT, NS_SM, NS_STANZAS, Upstream};
use crate::body::Payload;

impl Upstream {
    /// Stream management of the client's own, which it believes to have with the server.
    pub(super) fn manage(&mut self, element: &Element, out: &mut Vec<u8>) -> Option<Payload> {
        match (element.name(), self.counting) {
            ("enable", None) if self.enabling.is_none() && self.counts() => {
                let resume = element.attr("resume").is_some_and(|resume| matches!(resume, "true" | "1"));
                self.enabling = Some((self.sent, resume));
                self.enabled()
            }
            ("r", Some(counting)) if self.safe >= self.sent => Some(self.number(counting)),
            ("r", Some(_)) => {
                self.asked = Some(self.sent);
                None
            }
            ("a", Some(counting)) => {
                match element.attr("h").and_then(|h| h.trim().parse::<u32>().ok()) {
                    Some(h) => {
                        let last = self.confirmed.max(counting.got);
                        let count = last + u64::from(h.wrapping_sub((last - counting.got) as u32));
                        if count <= self.numbers.count {
                            self.confirm(count, out);
                        } else if count - last <= u64::from(u32::MAX / 2) {
                            // More than it was sent: the server says what it thinks of that.
                            let h = (self.numbers.on_stream(count) as u32).to_string();
                            Element::new("a", NS_SM).with_attr("h", h).write(out, NS_CLIENT);
                        }
                    }
                    None => element.write(out, NS_CLIENT),
                }
                None
            }
            ("enable" | "resume" | "r" | "a", _) => Some(self.unexpected()),
            // The server refuses it.
            _ => {
                element.write(out, NS_CLIENT);
                None
            }
        }
    }

    /// The answer to a client that wants to count, as soon as there is one.
    pub(super) fn enabled(&mut self) -> Option<Payload> {
        let Management::On(id) = &self.management else { return None };
        let (sent, resume) = self.enabling.take()?;
        let counting = Counting { sent, got: self.numbers.count };
        self.counting = Some(counting);
        let mut enabled = Element::new("enabled", NS_SM);
        // Its numbers must be those of the stream, or it could not resume without the gateway.
        if let Some(id) = id.as_deref().filter(|_| resume && sent == 0 && self.numbers.count == 0) {
            enabled = enabled
                .with_attr("id", id)
                .with_attr("resume", "true")
                .with_attr("max", self.max.as_secs().to_string());
        }
        Some(self.note(&enabled))
    }

    pub(super) fn number(&self, counting: Counting) -> Payload {
        let h = (self.safe.saturating_sub(counting.sent) as u32).to_string();
        self.note(&Element::new("a", NS_SM).with_attr("h", h))
    }

    pub(super) fn unexpected(&self) -> Payload {
        let condition = Element::new("unexpected-request", NS_STANZAS);
        self.note(&Element::new("failed", NS_SM).with_child(condition))
    }

    /// Something for the client that does not come from the server.
    fn note(&self, element: &Element) -> Payload {
        Payload { bytes: element.to_vec("").into(), is_stream: false, number: self.numbers.count }
    }
}

//! Framing, and the stanza that is made of a frame.
//!
//! What must hold: the input is what a session reads at once, and comes in one piece, as most does.

use std::hint::black_box;

use waystation_core::read::Stamp;
use waystation_core::xml::Event;
use waystation_core::{Jid, Stanza};

use crate::{Failure, ROUND, framer, message};

/// A read of ten messages, cut into frames of which every byte is proven well-formed.
pub(crate) fn framing(messages: usize) -> Result<(), Failure> {
    let mut framer = framer()?;
    let read = message().repeat(ROUND);
    for _ in 0..messages / ROUND {
        let mut rest = black_box(read.as_bytes());
        let mut found = 0;
        while let Event::Stanza(frame) = framer.next(&mut rest)? {
            black_box(frame.head);
            found += 1;
        }
        if found != ROUND {
            return Err(format!("{found} frames of {ROUND} messages").into());
        }
    }
    Ok(())
}

/// From a frame to a stanza with a new head, and its bytes as they are written.
pub(crate) fn stanza(messages: usize) -> Result<(), Failure> {
    let mut framer = framer()?;
    let message = message();
    let mut rest = message.as_bytes();
    let Event::Stanza(frame) = framer.next(&mut rest)? else { return Err("a message is no stanza".into()) };
    let romeo = Jid::parse("romeo@localhost/orchard")?;
    let stamp = Stamp { from: Some(&romeo), lang: Some("en"), ..Stamp::default() };
    let mut out = Vec::with_capacity(2 * message.len());
    for _ in 0..messages {
        let stanza = Stanza::read(black_box(&frame), stamp).map_err(|error| format!("{error:?}"))?;
        let (head, tail) = stanza.wire();
        out.clear();
        out.extend_from_slice(head);
        out.extend_from_slice(tail);
        black_box(&out);
    }
    Ok(())
}

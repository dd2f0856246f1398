//! Dialback while stanzas flow: further pairs of domains on a stream, each by its own proof (XEP-0220 2.6,
//! also called multiplexing), and the questions of receiving servers.
//!
//! What must hold: a pair is added only when it is proven, and what becomes of a claim changes nothing about
//! the pairs that are proven already.

use std::sync::Arc;
use std::task::{Context, Poll};

use rustls_pki_types::CertificateDer;
use waystation_core::xml::Element;
use waystation_core::{StreamCondition, StreamError};

use crate::federation::Federation;
use crate::receiving::{Decision, Facts, Receiving};
use crate::running::{Extension, Ground};
use crate::stream::{NS_DIALBACK, Stream};

/// Claims of the peer on a running stream.
pub(crate) struct Piggybacking {
    federation: Arc<Federation>,
    receiving: Receiving,
    stream_id: String,
    encrypted: bool,
    certificates: Vec<CertificateDer<'static>>,
}

impl Piggybacking {
    /// Goes on with the claims that were not decided when the first pair was proven.
    pub(crate) fn new(federation: Arc<Federation>, stream: &Stream, receiving: Receiving) -> Self {
        Self {
            federation,
            receiving,
            stream_id: stream.id.clone().unwrap_or_default(),
            encrypted: stream.conn.is_encrypted(),
            certificates: stream.conn.peer_certificates().to_vec(),
        }
    }
}

fn carry_out(federation: &Federation, decision: Decision, ground: &mut Ground<'_>) {
    match decision {
        Decision::Nothing => {}
        Decision::Answer(xml) | Decision::Close(xml) => ground.say.extend_from_slice(&xml),
        Decision::Proven(pair, how, xml) => {
            federation.proved(&pair, how);
            ground.proven.add(pair);
            ground.say.extend_from_slice(&xml);
        }
    }
}

impl Extension for Piggybacking {
    fn element(&mut self, element: &Element, ground: &mut Ground<'_>) -> Result<(), StreamError> {
        if element.namespace() != NS_DIALBACK {
            return Err(StreamCondition::UnsupportedStanzaType.into());
        }
        let facts =
            Facts { stream_id: &self.stream_id, encrypted: self.encrypted, certificates: &self.certificates };
        let decision = self.receiving.element(&self.federation, &facts, ground.proven, element)?;
        carry_out(&self.federation, decision, ground);
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>, ground: &mut Ground<'_>) -> Result<(), StreamError> {
        while let Poll::Ready(decision) = self.receiving.poll(cx, false) {
            carry_out(&self.federation, decision, ground);
        }
        Ok(())
    }
}

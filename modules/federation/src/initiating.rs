//! Elements on a stream that we opened and that carries stanzas one way only.
//!
//! What must hold: nothing that comes on it changes what is proven: an answer of dialback that was not asked
//! for, or comes too late, is dropped (SECURITY M10), and the rest has no place there.

use std::task::Context;

use waystation_core::xml::Element;
use waystation_core::{StreamCondition, StreamError};

use crate::dialback::{Content, Packet};
use crate::running::{Extension, Ground};
use crate::stream::NS_DIALBACK;

/// Of a stream whose pair is proven.
pub(crate) struct Initiating;

impl Extension for Initiating {
    fn element(&mut self, element: &Element, _: &mut Ground<'_>) -> Result<(), StreamError> {
        if element.namespace() == NS_DIALBACK
            && let Content::Answer(_) = Packet::read(element)?.content
        {
            tracing::info!("an answer of dialback that was not asked for");
            return Ok(());
        }
        Err(StreamCondition::UnsupportedStanzaType.into())
    }

    fn poll(&mut self, _: &mut Context<'_>, _: &mut Ground<'_>) -> Result<(), StreamError> {
        Ok(())
    }
}

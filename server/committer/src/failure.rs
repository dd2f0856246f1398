//! The errors that are given here on behalf of a store, in the store's own type.
//!
//! What must hold: a caller cannot tell them from those that the store gives itself.

use waystation_core::queue::QueueError;
use waystation_core::storage::StorageError;

/// An error of a store, as far as this crate has to give one.
pub trait Failure: Send + 'static {
    /// The store was closed, or has stopped after a failed write: it takes nothing more.
    fn closed() -> Self;

    /// A job panicked while it read. The store goes on.
    fn panicked() -> Self;
}

impl Failure for QueueError {
    fn closed() -> Self {
        Self::Closed
    }

    fn panicked() -> Self {
        Self::Io("reading failed inside the queue".to_owned())
    }
}

impl Failure for StorageError {
    fn closed() -> Self {
        Self::Closed
    }

    fn panicked() -> Self {
        Self::Io("a scan failed inside the engine".to_owned())
    }
}

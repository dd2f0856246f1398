//! What one top-level element may cost. Exceeding a limit is fatal to the stream.

/// The most levels that any limits may allow: [`Element`](crate::Element) trees are dropped, cloned and
/// written by recursion, so this bounds the stack.
pub const MAX_DEPTH: usize = 256;

/// The most declarations of prefixes that may be in scope at once (on open elements of one stanza, apart
/// from those of the stream header). It makes looking one up cost a bounded time.
pub const MAX_NAMESPACES: usize = 256;

/// The most bytes of a stream header (and, apart, of an XML declaration), whatever the other limits say:
/// what the header declares is kept as long as the stream lives.
pub const MAX_HEADER_BYTES: usize = 8192;

/// Limits on each top-level element of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes from `<` to the closing `>`, both included. At most 1 GiB is honoured.
    pub max_stanza_bytes: usize,
    /// Levels of nesting; the top-level element is level one. At most [`MAX_DEPTH`] is honoured.
    pub max_depth: usize,
    /// Elements, the top-level element included.
    pub max_elements: usize,
    /// Attributes on one element, namespace declarations included.
    pub max_attributes: usize,
}

impl Limits {
    /// Before authentication: 8,192 bytes, 32 elements, 16 levels.
    pub fn pre_auth() -> Self {
        Self { max_stanza_bytes: 8192, max_depth: 16, max_elements: 32, max_attributes: 256 }
    }

    /// After authentication: 262,144 bytes, 4,096 elements, 128 levels.
    pub fn authenticated() -> Self {
        Self { max_stanza_bytes: 262_144, max_depth: 128, max_elements: 4096, max_attributes: 256 }
    }
}

/// The limits as the reader keeps them: small, and clamped to what its counters hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) bytes: u32,
    pub(crate) elements: u32,
    pub(crate) depth: u16,
    pub(crate) attributes: u16,
}

impl From<Limits> for Bounds {
    fn from(limits: Limits) -> Self {
        let clamp = |value: usize, most: u32| u32::try_from(value).unwrap_or(most).min(most);
        let clamp16 = |value: usize, most: u16| u16::try_from(value).unwrap_or(most).min(most);
        Self {
            bytes: clamp(limits.max_stanza_bytes, 1 << 30),
            elements: clamp(limits.max_elements, u32::MAX),
            depth: clamp16(limits.max_depth, MAX_DEPTH as u16),
            attributes: clamp16(limits.max_attributes, u16::MAX),
        }
    }
}

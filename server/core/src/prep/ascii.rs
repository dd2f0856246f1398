//! Which bytes of ASCII may stand in the parts of a prepared address.
//!
//! What must hold: a part that has only bytes of its class is what preparing it gives, apart from
//! its length, a resource's leading space, and what labels of a domain must fulfil besides.

/// May stand in a prepared localpart: printable, no capital, none that RFC 7622 3.3.1 forbids.
pub(crate) const LOCAL: u8 = 1;
/// May stand in a label of a prepared domain.
pub(crate) const LABEL: u8 = 2;
/// May stand in a resourcepart.
pub(crate) const RESOURCE: u8 = 4;
/// The same, and stands for itself in an attribute value.
pub(crate) const PLAIN: u8 = 8;

/// The classes of each byte.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0usize;
    while byte < 256 {
        let b = byte as u8;
        let mut class = 0;
        if b > b' ' && b < 0x7f && !b.is_ascii_uppercase() && !forbidden_in_localpart(b) {
            class |= LOCAL;
        }
        if matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-') {
            class |= LABEL;
        }
        if b >= b' ' && b < 0x7f {
            class |= RESOURCE;
        }
        if class & RESOURCE != 0 && !is_escaped(b as char) {
            class |= PLAIN;
        }
        table[byte] = class;
        byte += 1;
    }
    table
}

/// How many bytes at the start of `bytes` are in `wanted`.
#[inline]
pub(crate) fn run(bytes: &[u8], wanted: u8) -> usize {
    bytes.iter().position(|b| CLASS[*b as usize] & wanted == 0).unwrap_or(bytes.len())
}

/// True for the characters of addresses that are escaped in attribute values.
pub(crate) const fn is_escaped(c: char) -> bool {
    matches!(c, '<' | '>' | '&' | '\'' | '"')
}

/// Printable ASCII that RFC 7622 3.3.1 forbids in a localpart.
pub(super) const fn forbidden_in_localpart(b: u8) -> bool {
    matches!(b, b'"' | b'&' | b'\'' | b'/' | b':' | b'<' | b'>' | b'@')
}

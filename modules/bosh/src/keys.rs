//! Key sequences (XEP-0124 15), with which a client proves that a request is its own where the
//! way to the server is not encrypted.
//!
//! What must hold: once a client has set a key, no request without the one before it in the
//! sequence is carried out; comparisons take the same time whatever they find.

use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

/// A hash as 40 lower-case hexadecimal digits.
pub(crate) type Key = [u8; 40];

/// Reads a key; `None` for what no SHA-1 hash looks like.
pub(crate) fn parse(text: &str) -> Option<Key> {
    let key: Key = text.as_bytes().try_into().ok()?;
    key.iter().all(u8::is_ascii_hexdigit).then(|| key.map(|digit| digit.to_ascii_lowercase()))
}

/// What a key is made from: the next one of the sequence.
fn successor(key: &Key) -> Key {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hex = [0; 40];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(Sha1::digest(key)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    hex
}

/// A key that does not fit, or is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WrongKey;

/// What the next request has to hash to, when the client uses keys: what `key` and `newkey` of a
/// request say about the one after it (15.4, 15.5).
///
/// Section 15.4 leaves the case of the digits open; of the two readings of "hash of the key" for
/// keys in upper case, both are accepted.
pub(crate) fn accept(
    expected: Option<&Key>,
    key: Option<&str>,
    new_key: Option<&str>,
) -> Result<Option<Key>, WrongKey> {
    let key = match (expected, key) {
        (None, None) => None,
        // Without a key that came before there is nothing that it could follow.
        (None, Some(_)) | (Some(_), None) => return Err(WrongKey),
        (Some(expected), Some(text)) => {
            let key = parse(text).ok_or(WrongKey)?;
            let upper = key.map(|digit| digit.to_ascii_uppercase());
            let fits = successor(&key).ct_eq(expected) | successor(&upper).ct_eq(expected);
            if !bool::from(fits) {
                return Err(WrongKey);
            }
            Some(key)
        }
    };
    match new_key {
        None => Ok(key),
        Some(text) => parse(text).map(Some).ok_or(WrongKey),
    }
}

/// Whether a repeated request has the key that it had.
pub(crate) fn same(before: Option<&str>, now: Option<&str>) -> bool {
    match (before, now) {
        (None, None) => true,
        (Some(before), Some(now)) => before.as_bytes().ct_eq(now.as_bytes()).into(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn xep_0124_15_3_a_sequence_is_followed_backwards() {
        let keys: Vec<String> =
            std::iter::successors(Some(hex(b"seed")), |key| Some(hex(key.as_bytes()))).take(5).collect();
        let mut expected = accept(None, None, Some(&keys[4])).unwrap();
        for key in [&keys[3], &keys[2], &keys[1]] {
            expected = accept(expected.as_ref(), Some(key), None).unwrap();
        }
        // Again, skipped, missing, garbage.
        for wrong in [Some(&keys[1]), Some(&keys[3]), None, Some(&"x".repeat(40)), Some(&String::new())] {
            let wrong = wrong.map(String::as_str);
            assert_eq!(accept(expected.as_ref(), wrong, None), Err(WrongKey), "{wrong:?}");
        }
        assert!(accept(expected.as_ref(), Some(&keys[0]), None).is_ok());
    }

    #[test]
    fn xep_0124_15_5_a_new_sequence_needs_the_old_ones_key() {
        let (old, new) = (hex(b"old"), hex(hex(b"new").as_bytes()));
        let expected = accept(None, None, Some(&hex(old.as_bytes()))).unwrap();
        assert_eq!(accept(expected.as_ref(), None, Some(&new)), Err(WrongKey));
        let switched = accept(expected.as_ref(), Some(&old), Some(&new)).unwrap();
        assert!(accept(switched.as_ref(), Some(&hex(b"new")), None).is_ok());
        assert_eq!(accept(switched.as_ref(), Some(&hex(b"old")), None), Err(WrongKey));
    }

    #[test]
    fn xep_0124_15_3_case_does_not_matter() {
        let lower = hex(b"seed");
        let expected = accept(None, None, Some(&hex(lower.as_bytes()).to_uppercase())).unwrap();
        assert!(accept(expected.as_ref(), Some(&lower), None).is_ok());
        let upper = lower.to_uppercase();
        let expected = accept(None, None, Some(&hex(upper.as_bytes()))).unwrap();
        assert!(accept(expected.as_ref(), Some(&upper), None).is_ok());
    }

    #[test]
    fn m7_a_key_without_a_new_key_before_is_refused() {
        assert_eq!(accept(None, Some(&hex(b"x")), None), Err(WrongKey));
        assert_eq!(accept(None, None, None), Ok(None));
        assert_eq!(accept(None, None, Some("not a hash")), Err(WrongKey));
    }
}

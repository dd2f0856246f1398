//! The body of every checked message: `uid|len|sha256|padding`.
//!
//! What must stay true: any change to a body on its way is seen, whether it
//! hits the uid, the padding, or both its ends.

use sha2::{Digest, Sha256};

use crate::rng::Rng;

/// Hexadecimal digits of the digest that histories keep.
const DIGITS: usize = 16;

/// A body that was made or received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    /// Which message it says it is.
    pub uid: String,
    /// The first digits of the digest of the padding *as it is here*; of the whole text and with a
    /// mark when the body contradicts itself.
    pub hash: String,
}

/// Makes the text for `uid` with about `len` characters of padding, and what histories note of it.
pub fn make(uid: &str, len: usize, rng: &mut Rng) -> (String, Body) {
    // Characters that a server must escape, two- and four-byte ones, and blanks that it must keep.
    const ALPHABET: [char; 16] =
        ['a', 'b', 'c', 'x', 'y', 'z', '0', '9', ' ', '&', '<', '>', '\'', '"', 'é', '🚉'];
    let mut padding: String = (0..len).map(|_| ALPHABET[rng.index(ALPHABET.len())]).collect();
    // Blanks at the very end would be a matter of taste in some clients.
    padding.push('.');
    let digest = hex(&Sha256::digest(padding.as_bytes()));
    let text = format!("{uid}|{}|{digest}|{padding}", padding.len());
    let hash = digest[..DIGITS].to_owned();
    (text, Body { uid: uid.to_owned(), hash })
}

/// Reads a received body; a text that is no such body gets a uid that was never sent.
pub fn read(text: &str) -> Body {
    let mut parts = text.splitn(4, '|');
    let (Some(uid), Some(len), Some(stated), Some(padding)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        let start: String = text.chars().take(40).collect();
        return Body { uid: format!("?{start}"), hash: String::new() };
    };
    let digest = hex(&Sha256::digest(padding.as_bytes()));
    let whole = len.parse() == Ok(padding.len()) && stated == digest;
    let hash = if whole { digest[..DIGITS].to_owned() } else { format!("!{}", &digest[..DIGITS]) };
    Body { uid: uid.to_owned(), hash }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_change_is_seen() {
        let (text, made) = make("r/a/1", 50, &mut Rng::new(1));
        assert_eq!(read(&text), made);
        for (at, c) in text.char_indices() {
            let mut changed = text.clone();
            changed.replace_range(at..at + c.len_utf8(), if c == '#' { "+" } else { "#" });
            assert_ne!(read(&changed), made, "{changed}");
        }
        assert_ne!(read(&text[..text.len() - 1]), made);
        assert_ne!(read(&format!("{text} ")), made);
        assert!(read("hello").uid.starts_with('?'));
    }
}

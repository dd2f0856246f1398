//! Base64 as SASL in XMPP wants it (RFC 6120 6.3.5 and 6.4.2).
//!
//! What must hold: every accepted text has one byte string and every byte string one text, so
//! that nothing can be said in two ways: no white space, no missing padding, no stray bits.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::SaslError;

/// Decodes the content of `<response/>`; empty content and `=` are both the empty string.
///
/// # Errors
/// [`SaslError::IncorrectEncoding`] for anything but canonical base64.
pub fn decode_base64(text: &str) -> Result<Vec<u8>, SaslError> {
    match text {
        "" | "=" => Ok(Vec::new()),
        _ => STANDARD.decode(text).map_err(|_| SaslError::IncorrectEncoding),
    }
}

/// Decodes the content of `<auth/>`: no content means no initial response, `=` an empty one.
///
/// # Errors
/// As [`decode_base64`].
pub fn decode_initial_response(text: &str) -> Result<Option<Vec<u8>>, SaslError> {
    if text.is_empty() { Ok(None) } else { decode_base64(text).map(Some) }
}

/// Encodes the content of `<challenge/>` and of `<success/>`; data of length zero is `=`.
pub fn encode_base64(data: &[u8]) -> String {
    if data.is_empty() { "=".to_owned() } else { STANDARD.encode(data) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a2_base64_that_is_not_canonical_is_refused() {
        for bad in [
            "====",
            "==",
            "===",
            "a",
            "aa",
            "aaa",
            "aa=",
            "a===",
            "aaaa=",
            "aaaa====",
            "=aaa",
            "aa==aa==",
            "a a=",
            " aaaa",
            "aaaa ",
            "aa\naa",
            "aaaa\n",
            "aaaa\r\n",
            "\taaaa",
            "aa-_",
            "aab=",
            "ab==",
            "aa==\0",
            "\u{e9}",
            "aaa\u{ff21}",
        ] {
            assert_eq!(decode_base64(bad), Err(SaslError::IncorrectEncoding), "{bad:?}");
            assert_eq!(decode_initial_response(bad), Err(SaslError::IncorrectEncoding), "{bad:?}");
        }
    }

    #[test]
    fn an_absent_and_an_empty_initial_response_differ() {
        assert_eq!(decode_initial_response(""), Ok(None));
        assert_eq!(decode_initial_response("="), Ok(Some(vec![])));
        assert_eq!(decode_base64(""), Ok(vec![]));
        assert_eq!(decode_base64("="), Ok(vec![]));
        assert_eq!(encode_base64(b""), "=");
    }

    proptest! {
        #[test]
        fn accepted_text_is_the_one_spelling(text in "[A-Za-z0-9+/= ]{0,12}") {
            if let Ok(data) = decode_base64(&text) && !text.is_empty() {
                prop_assert_eq!(encode_base64(&data), text);
            }
        }

        #[test]
        fn what_is_encoded_can_be_decoded(data: Vec<u8>) {
            prop_assert_eq!(decode_base64(&encode_base64(&data)), Ok(data));
        }
    }
}

//! Whether a text that comes in pieces is UTF-8 (RFC 6455 8.1).

/// Between two pieces: a character that has begun.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Utf8 {
    begun: [u8; 4],
    len: usize,
}

impl Utf8 {
    /// Adds a piece; false when the text can no longer become UTF-8.
    pub(crate) fn add(&mut self, mut piece: &[u8]) -> bool {
        while self.len > 0 {
            let Some((&byte, rest)) = piece.split_first() else { return true };
            piece = rest;
            self.begun[self.len] = byte;
            self.len += 1;
            match std::str::from_utf8(&self.begun[..self.len]) {
                Ok(_) => self.len = 0,
                // A character has no more than four bytes, so one that is still incomplete has room.
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return false,
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_some() => false,
            Err(error) => {
                let rest = &piece[error.valid_up_to()..];
                self.begun[..rest.len()].copy_from_slice(rest);
                self.len = rest.len();
                true
            }
        }
    }

    /// The text ends; false in the middle of a character.
    pub(crate) fn end(&mut self) -> bool {
        std::mem::take(&mut self.len) == 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(pieces: &[&[u8]]) -> bool {
        let mut utf8 = Utf8::default();
        pieces.iter().all(|piece| utf8.add(piece)) && utf8.end()
    }

    #[test]
    fn x5_what_is_no_utf8_is_found_wherever_it_is_cut() {
        let bad: [&[u8]; 9] = [
            b"\xC0\xAF",
            b"\xE0\x80\xBC",
            b"\xED\xA0\x80",
            b"\xF0\x80\x80\xBC",
            b"\xF4\x90\x80\x80",
            b"\xFF",
            b"\xE2\x82",
            b"\xE2\x82<",
            b"\xF0\x9F\x98>",
        ];
        for bytes in bad {
            for cut in 0..=bytes.len() {
                assert!(!check(&[&bytes[..cut], &bytes[cut..]]), "{bytes:?} at {cut}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_change_nothing(
            text in prop_oneof![any::<String>().prop_map(String::into_bytes), any::<Vec<u8>>()],
            size in 1usize..6,
        ) {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            prop_assert_eq!(check(&pieces), std::str::from_utf8(&text).is_ok());
        }
    }
}

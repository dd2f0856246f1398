//! Bytes and characters: what UTF-8, XML 1.0 and its names allow.
//!
//! Names follow XML 1.0 up to its fourth edition, which the fifth widened: expat, which clients and other
//! servers read with, still refuses the names that only the fifth allows, so passing one on would end the
//! stream of whoever receives it. Every name allowed here is a name in all editions.

mod tables;

/// May start a name (ASCII; the colon is not among them).
pub(crate) const START: u8 = 1;
/// May continue a name (ASCII; the colon is not among them).
pub(crate) const NAME: u8 = 2;
/// Space, tab, line feed, carriage return.
pub(crate) const SPACE: u8 = 4;
/// Text that needs no look: ASCII that is a `Char`, other than `<`, `&` and `>`.
pub(crate) const TEXT: u8 = 8;

/// The classes of each byte.
pub(crate) static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0usize;
    while byte < 128 {
        let b = byte as u8;
        let mut class = 0;
        if b.is_ascii_alphabetic() || b == b'_' {
            class |= START | NAME;
        }
        if b.is_ascii_digit() || b == b'-' || b == b'.' {
            class |= NAME;
        }
        if matches!(b, b' ' | b'\t' | b'\n' | b'\r') {
            class |= SPACE | TEXT;
        }
        if b >= b' ' && !matches!(b, b'<' | b'&' | b'>') {
            class |= TEXT;
        }
        table[byte] = class;
        byte += 1;
    }
    table
}

/// Whether `byte` is in `class`.
#[inline(always)]
pub(crate) fn is(byte: u8, class: u8) -> bool {
    CLASS[byte as usize] & class != 0
}

/// A word of eight times the same byte.
const fn eight(byte: u8) -> u64 {
    u64::from_ne_bytes([byte; 8])
}

/// The high bit of each byte that is below 0x20 or at least 0x80, or equal to one of three, which are ASCII.
/// Bits above the lowest one set may be wrong: a byte borrows only from what is below one that is special.
fn specials(word: u64, [a, b, c]: [u8; 3]) -> u64 {
    // The high bit of a byte below 0x80 is set by taking away more than it has; those of the others are there.
    let control = word.wrapping_sub(eight(0x20));
    let equal = |byte| (word ^ eight(byte)).wrapping_sub(eight(1));
    (word | control | equal(a) | equal(b) | equal(c)) & eight(0x80)
}

/// The first offset at or after `at` whose byte is below 0x20, at least 0x80, or one of three.
#[inline]
fn skip_to_special(data: &[u8], at: usize, three: [u8; 3]) -> usize {
    let mut rest = &data[at..];
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        let found = specials(u64::from_le_bytes(*word), three);
        if found != 0 {
            return data.len() - rest.len() + found.trailing_zeros() as usize / 8;
        }
        rest = after;
    }
    let special = |b: &u8| *b < b' ' || *b >= 0x80 || three.contains(b);
    data.len() - rest.len() + rest.iter().position(special).unwrap_or(rest.len())
}

/// Bytes that are looked at together in text, which is longer than names and values.
const BLOCK: usize = 32;

/// Whether all bytes are printable ASCII without markup. Without branches, so that it becomes a few
/// instructions on vectors: it spares 100 bytes of text half of the 340 that they cost in words.
#[inline]
fn is_plain(block: &[u8; BLOCK]) -> bool {
    // As a signed number, what is at least 0x80 is below the space as well.
    let special = |b: u8| ((b as i8) < 0x20) | (b == b'<') | (b == b'&') | (b == b'>');
    block.iter().fold(0, |found, &b| found | u8::from(special(b))) == 0
}

/// The first offset at or after `at` whose byte is not [`TEXT`].
#[inline]
pub(crate) fn skip_text(data: &[u8], mut at: usize) -> usize {
    loop {
        let mut rest = &data[at..];
        while let Some((block, after)) = rest.split_first_chunk::<BLOCK>()
            && is_plain(block)
        {
            rest = after;
        }
        at = skip_to_special(data, data.len() - rest.len(), *b"<&>");
        match data.get(at) {
            Some(&b) if is(b, TEXT) => at += 1,
            _ => return at,
        }
    }
}

/// The first offset at or after `at` whose byte is `quote` or needs a look in an attribute value.
#[inline]
pub(crate) fn skip_value(data: &[u8], at: usize, quote: u8) -> usize {
    skip_to_special(data, at, [quote, b'<', b'&'])
}

/// The first offset at or after `at` whose byte is not in `class`.
#[inline(always)]
pub(crate) fn skip(data: &[u8], at: usize, class: u8) -> usize {
    let rest = data.get(at..).unwrap_or_default();
    at + rest.iter().position(|&b| !is(b, class)).unwrap_or(rest.len())
}

/// What [`decode`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// A character and how many bytes it takes.
    Char(u32, usize),
    /// The data ends within a character that may still be valid.
    Partial,
    /// Not UTF-8, or not a character that XML allows.
    Invalid,
}

/// Decodes the character that starts at `at`, a byte of at least 0x80. A byte that cannot continue the
/// character makes it invalid at once: it is never swallowed.
#[inline]
pub(crate) fn decode(data: &[u8], at: usize) -> Decoded {
    let rest = &data[at..];
    let first = rest[0];
    // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF
    // (Unicode table 3-7).
    let (len, low, high) = match first {
        0xC2..=0xDF => (2, 0x80, 0xBF),
        0xE0 => (3, 0xA0, 0xBF),
        0xED => (3, 0x80, 0x9F),
        0xE1..=0xEF => (3, 0x80, 0xBF),
        0xF0 => (4, 0x90, 0xBF),
        0xF4 => (4, 0x80, 0x8F),
        0xF1..=0xF3 => (4, 0x80, 0xBF),
        _ => return Decoded::Invalid,
    };
    let Some(&second) = rest.get(1) else { return Decoded::Partial };
    if second < low || second > high {
        return Decoded::Invalid;
    }
    let mut code = (u32::from(first) & (0x7F >> len)) << 6 | u32::from(second & 0x3F);
    for index in 2..len {
        let Some(&byte) = rest.get(index) else { return Decoded::Partial };
        if byte & 0xC0 != 0x80 {
            return Decoded::Invalid;
        }
        code = code << 6 | u32::from(byte & 0x3F);
    }
    if code == 0xFFFE || code == 0xFFFF { Decoded::Invalid } else { Decoded::Char(code, len) }
}

/// Whether a code point is a `Char` of XML 1.0 (section 2.2).
pub(crate) fn is_xml_char(code: u32) -> bool {
    matches!(code, 0x9 | 0xA | 0xD | 0x20..=0xD7FF | 0xE000..=0xFFFD | 0x10000..=0x10FFFF)
}

/// Whether a character may start a name; the colon may not.
pub(crate) fn is_name_start(code: u32) -> bool {
    match u8::try_from(code) {
        Ok(b) if b < 0x80 => is(b, START),
        _ => among(&tables::LETTERS, code),
    }
}

/// Whether a character may continue a name; the colon may not.
pub(crate) fn is_name_char(code: u32) -> bool {
    match u8::try_from(code) {
        Ok(b) if b < 0x80 => is(b, NAME),
        _ => among(&tables::LETTERS, code) || among(&tables::OTHERS, code),
    }
}

fn among(ranges: &[(u16, u16)], code: u32) -> bool {
    let Ok(code) = u16::try_from(code) else { return false };
    let after = ranges.partition_point(|&(first, _)| first <= code);
    after > 0 && ranges[after - 1].1 >= code
}

/// Whether `name` is an `NCName`.
pub(crate) fn is_ncname(name: &str) -> bool {
    let mut chars = name.chars().map(u32::from);
    chars.next().is_some_and(is_name_start) && chars.all(is_name_char)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalar_values() -> impl Iterator<Item = char> {
        (0..=0x10FFFF).filter_map(char::from_u32)
    }

    #[test]
    fn decodes_every_character_and_refuses_every_other_prefix() {
        let mut buffer = [0; 4];
        for c in scalar_values().filter(|c| *c as u32 >= 0x80) {
            let bytes = c.encode_utf8(&mut buffer).as_bytes();
            let expected =
                if is_xml_char(c as u32) { Decoded::Char(c as u32, bytes.len()) } else { Decoded::Invalid };
            assert_eq!(decode(bytes, 0), expected, "{c:?}");
            for cut in 1..bytes.len() {
                assert_eq!(decode(&bytes[..cut], 0), Decoded::Partial, "{c:?} cut at {cut}");
            }
        }
        for first in 0x80..=0xFFu8 {
            for second in 0..=0xFFu8 {
                for third in [0x00, b'<', b'"', 0x7F, 0x80, 0xBD, 0xBE, 0xBF, 0xC0, 0xFF] {
                    let bytes = [first, second, third, 0x80];
                    let ours = match decode(&bytes, 0) {
                        Decoded::Char(_, len) => Some(len),
                        _ => None,
                    };
                    let std = (2..=4).find(|len| {
                        std::str::from_utf8(&bytes[..*len])
                            .is_ok_and(|s| s.chars().count() == 1 && !"\u{FFFE}\u{FFFF}".contains(s))
                    });
                    assert_eq!(ours, std, "{bytes:02x?}");
                }
            }
        }
    }

    #[test]
    fn names_of_all_editions() {
        for good in ["a", "_", "message", "x-1.2", "é", "ж", "名", "aֽ", "q٠"] {
            assert!(is_ncname(good), "{good}");
        }
        for bad in ["", "1", "-a", ".a", "a:b", ":", "a b", "×", "a÷", "\u{10000}", "a\u{10000}", "a\u{2070}"]
        {
            assert!(!is_ncname(bad), "{bad}");
        }
    }

    #[test]
    fn tables_are_sorted_and_lie_within_the_fifth_edition() {
        const START5: [(u32, u32); 12] = [
            (0xC0, 0xD6),
            (0xD8, 0xF6),
            (0xF8, 0x2FF),
            (0x370, 0x37D),
            (0x37F, 0x1FFF),
            (0x200C, 0x200D),
            (0x2070, 0x218F),
            (0x2C00, 0x2FEF),
            (0x3001, 0xD7FF),
            (0xF900, 0xFDCF),
            (0xFDF0, 0xFFFD),
            (0x10000, 0xEFFFF),
        ];
        const MORE5: [(u32, u32); 3] = [(0xB7, 0xB7), (0x300, 0x36F), (0x203F, 0x2040)];
        let within = |ranges: &[(u32, u32)], code| ranges.iter().any(|&(a, b)| a <= code && code <= b);
        for table in [&tables::LETTERS[..], &tables::OTHERS[..]] {
            assert!(table.iter().all(|(a, b)| a <= b));
            assert!(table.windows(2).all(|w| w[0].1 < w[1].0));
        }
        for code in 0x80..0x110000 {
            assert!(!is_name_start(code) || within(&START5, code), "{code:#x}");
            assert!(!is_name_char(code) || within(&START5, code) || within(&MORE5, code), "{code:#x}");
        }
    }

    #[test]
    fn skipping_stops_at_exactly_what_is_special() {
        // Two blocks, a word and a rest.
        const LEN: usize = 2 * BLOCK + 11;
        for at in 0..LEN {
            for byte in 0..=255u8 {
                let mut data = [b'x'; LEN];
                data[at] = byte;
                // What follows must not matter.
                for after in [b'x', b'<', 0x00, 0x1F, 0x80, 0xFF] {
                    data[at + 1..].fill(after);
                    let end =
                        |plain: &dyn Fn(u8) -> bool| data.iter().position(|b| !plain(*b)).unwrap_or(LEN);
                    assert_eq!(skip_text(&data, 0), end(&|b| is(b, TEXT)), "{data:x?}");
                    for quote in [b'\'', b'"'] {
                        let plain = |b| (b' '..0x80).contains(&b) && ![quote, b'<', b'&'].contains(&b);
                        assert_eq!(skip_value(&data, 0, quote), end(&plain), "{data:x?}");
                    }
                }
            }
        }
    }
}

//! Text from outside, made harmless for logs and terminals (row M16).
//!
//! What must hold: what comes out has only printable characters, on one line, in the order in
//! which it is read; different texts stay different, up to the length that is shown.

use std::fmt::{self, Write};

/// Longer texts are cut: a client must not fill the disk with one line.
pub(crate) const MAX_TEXT: usize = 1024;

/// Writes text with everything escaped that is not plainly visible: control characters, escape
/// sequences, line breaks, characters that change the direction or have no width. Backslashes
/// are doubled, and double quotes escaped when `quoted`.
pub(crate) fn write_text(out: &mut impl Write, text: &str, quoted: bool) -> fmt::Result {
    limited(out, text, |out, c| match c {
        '\\' => out.write_str("\\\\"),
        '"' if quoted => out.write_str("\\\""),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if is_visible(c) => out.write_char(c),
        c => write!(out, "\\u{{{:x}}}", u32::from(c)),
    })
}

/// Writes text as a JSON string, with the same characters escaped (RFC 8259 7).
pub(crate) fn write_json(out: &mut impl Write, text: &str) -> fmt::Result {
    out.write_char('"')?;
    limited(out, text, |out, c| match c {
        '\\' => out.write_str("\\\\"),
        '"' => out.write_str("\\\""),
        '\n' => out.write_str("\\n"),
        '\r' => out.write_str("\\r"),
        '\t' => out.write_str("\\t"),
        c if is_visible(c) => out.write_char(c),
        c => c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
    })?;
    out.write_char('"')
}

fn limited<W: Write>(out: &mut W, text: &str, write: impl Fn(&mut W, char) -> fmt::Result) -> fmt::Result {
    let shown = text.floor_char_boundary(MAX_TEXT);
    text[..shown].chars().try_for_each(|c| write(out, c))?;
    if shown < text.len() {
        write!(out, "... ({} bytes)", text.len())?;
    }
    Ok(())
}

/// True for characters that show as themselves. The standard library's debug form escapes exactly
/// what Unicode does not call printable; after another character it leaves combining marks alone,
/// which many scripts need.
fn is_visible(c: char) -> bool {
    if c.is_ascii() {
        return (' '..='~').contains(&c);
    }
    let mut buffer = *b"a\0\0\0\0";
    let end = 1 + c.encode_utf8(&mut buffer[1..]).len();
    std::str::from_utf8(&buffer[..end]).is_ok_and(|pair| pair.escape_debug().nth(1) == Some(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(input: &str) -> String {
        let mut out = String::new();
        write_text(&mut out, input, true).unwrap();
        out
    }

    fn json(input: &str) -> String {
        let mut out = String::new();
        write_json(&mut out, input).unwrap();
        out
    }

    #[test]
    fn m16_what_is_not_visible_is_escaped() {
        for (input, expected) in [
            ("ann@localhost/phone", "ann@localhost/phone"),
            ("bücher 中 é नमस्ते", "bücher 中 é नमस्ते"),
            ("a\nb", "a\\nb"),
            ("a\r\nb", "a\\r\\nb"),
            ("a\tb", "a\\tb"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("\u{7f}\u{0}", "\\u{7f}\\u{0}"),
            ("\u{202e}fdp.exe", "\\u{202e}fdp.exe"),
            ("\u{2066}\u{200f}\u{200b}\u{feff}", "\\u{2066}\\u{200f}\\u{200b}\\u{feff}"),
            ("\u{2028}\u{85}\u{a0}", "\\u{2028}\\u{85}\\u{a0}"),
            ("\u{e0041}\u{fffe}\u{e000}", "\\u{e0041}\\u{fffe}\\u{e000}"),
            ("\"\\n\"", "\\\"\\\\n\\\""),
        ] {
            assert_eq!(text(input), expected, "{input:?}");
            assert!(text(input).chars().all(|c| c == ' ' || is_visible(c)), "{input:?}");
            let json = json(input);
            assert_eq!(serde_json::from_str::<String>(&json).unwrap(), input);
            assert!(json.chars().all(|c| c == ' ' || is_visible(c)), "{json:?}");
        }
    }

    #[test]
    fn m16_every_character_is_one_line_of_visible_ones() {
        let all: Vec<char> = ('\0'..=char::MAX).collect();
        for chunk in all.chunks(100) {
            let input: String = chunk.iter().collect();
            let (text, json) = (text(&input), json(&input));
            assert!(!text.chars().chain(json.chars()).any(char::is_control), "{input:?}");
            assert!(serde_json::from_str::<String>(&json).unwrap() == input, "{input:?}");
        }
    }

    #[test]
    fn m16_long_texts_are_cut_and_say_so() {
        let long = "ü".repeat(32_768);
        let out = text(&long);
        assert!(out.len() < MAX_TEXT + 32, "{}", out.len());
        assert!(out.ends_with("ü... (65536 bytes)"), "{out}");
        assert!(json(&long).len() < MAX_TEXT + 32);
        assert_eq!(text(&"x".repeat(MAX_TEXT)).len(), MAX_TEXT);
    }
}

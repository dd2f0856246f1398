//! Escaping for what is written, unescaping for what was read.
//!
//! Whatever text goes in, what comes out is well-formed and reads back as that text, save that characters
//! which XML cannot express become U+FFFD.

use std::borrow::Cow;

use crate::chars;

/// Appends `text` as element content.
pub fn escape_text(text: &str, out: &mut Vec<u8>) {
    escape(text, out, |byte| match byte {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        // A literal one would be read back as a line feed (XML 1.0 section 2.11).
        b'\r' => Some("&#13;"),
        _ => None,
    });
}

/// Appends `value` as the inside of an attribute value in either kind of quotes.
pub fn escape_attr(value: &str, out: &mut Vec<u8>) {
    escape(value, out, |byte| match byte {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        b'\'' => Some("&apos;"),
        b'"' => Some("&quot;"),
        // Literal ones would be read back as spaces (XML 1.0 section 3.3.3).
        b'\t' => Some("&#9;"),
        b'\n' => Some("&#10;"),
        b'\r' => Some("&#13;"),
        _ => None,
    });
}

fn escape(text: &str, out: &mut Vec<u8>, replacement: impl Fn(u8) -> Option<&'static str>) {
    let bytes = text.as_bytes();
    let mut done = 0;
    for (at, &byte) in bytes.iter().enumerate() {
        let (with, len) = match byte {
            // U+FFFE and U+FFFF are EF BF BE and EF BF BF.
            0xEF if bytes[at..].starts_with(&[0xEF, 0xBF]) && bytes[at + 2] >= 0xBE => ("\u{FFFD}", 3),
            0x80.. => continue,
            _ => match replacement(byte) {
                Some(with) => (with, 1),
                None if chars::is_xml_char(u32::from(byte)) => continue,
                None => ("\u{FFFD}", 1),
            },
        };
        out.extend_from_slice(&bytes[done..at]);
        out.extend_from_slice(with.as_bytes());
        done = at + len;
    }
    out.extend_from_slice(&bytes[done..]);
}

/// What a raw attribute value means: references replaced, and literal tabs and line ends turned into
/// spaces (XML 1.0 sections 2.11 and 3.3.3). What is not a valid reference is left as it is.
pub fn unescape(raw: &str) -> Cow<'_, str> {
    replace(raw, " ")
}

/// What raw element content means: references replaced, and each literal line end turned into a line feed
/// (XML 1.0 section 2.11). What is not a valid reference is left as it is.
pub fn unescape_text(raw: &str) -> Cow<'_, str> {
    replace(raw, "\n")
}

/// `line_end` is what a literal line end becomes; a space also stands for tabs.
fn replace<'a>(raw: &'a str, line_end: &str) -> Cow<'a, str> {
    let in_attribute = line_end == " ";
    let bytes = raw.as_bytes();
    let special = |byte: u8| match byte {
        b'&' | b'\r' => true,
        b'\t' | b'\n' => in_attribute,
        _ => false,
    };
    let Some(mut at) = bytes.iter().position(|b| special(*b)) else { return Cow::Borrowed(raw) };
    let mut out = String::with_capacity(raw.len());
    let mut done = 0;
    while at < bytes.len() {
        if !special(bytes[at]) {
            at += 1;
            continue;
        }
        let mut len = 1;
        let mut buffer = [0; 4];
        let with = match bytes[at] {
            b'\r' => {
                len += usize::from(bytes.get(at + 1) == Some(&b'\n'));
                line_end
            }
            b'&' => match reference(&raw[at..]) {
                Some((c, reference_len)) => {
                    len = reference_len;
                    c.encode_utf8(&mut buffer)
                }
                None => "&",
            },
            _ => line_end,
        };
        out.push_str(&raw[done..at]);
        out.push_str(with);
        at += len;
        done = at;
    }
    out.push_str(&raw[done..]);
    Cow::Owned(out)
}

/// The character that the reference at the start of `raw` stands for, and the length of the reference.
fn reference(raw: &str) -> Option<(char, usize)> {
    // Stops at what no reference holds, so that many an ampersand without its semicolon costs linear time.
    let inside = |b: &u8| b.is_ascii_alphanumeric() || *b == b'#';
    let end = 1 + raw.as_bytes()[1..].iter().position(|b| !inside(b))?;
    if raw.as_bytes()[end] != b';' {
        return None;
    }
    let c = match raw.get(1..end)? {
        "lt" => '<',
        "gt" => '>',
        "amp" => '&',
        "apos" => '\'',
        "quot" => '"',
        name => {
            let (digits, radix) = match name.strip_prefix("#x") {
                Some(digits) => (digits, 16),
                None => (name.strip_prefix('#')?, 10),
            };
            // It would take a sign, but `inside` has none.
            let code = u32::from_str_radix(digits, radix).ok().filter(|code| chars::is_xml_char(*code))?;
            char::from_u32(code)?
        }
    };
    Some((c, end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(s: &str) -> String {
        let mut out = Vec::new();
        escape_text(s, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn attr(s: &str) -> String {
        let mut out = Vec::new();
        escape_attr(s, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn x7_escapes_all_that_could_end_a_value() {
        assert_eq!(text("a<b>&'\"\r\n\t]]>"), "a&lt;b&gt;&amp;'\"&#13;\n\t]]&gt;");
        assert_eq!(attr("a<b>&'\"\r\n\t"), "a&lt;b&gt;&amp;&apos;&quot;&#13;&#10;&#9;");
    }

    #[test]
    fn x6_what_xml_cannot_express_is_never_written() {
        let input = "\0a\u{1}\u{1F}\u{7F}\u{FFFE}\u{FFFF}\u{FFFD}\u{EFFF}\u{10FFFF}b\u{FFFF}";
        let output = "\u{FFFD}a\u{FFFD}\u{FFFD}\u{7F}\u{FFFD}\u{FFFD}\u{FFFD}\u{EFFF}\u{10FFFF}b\u{FFFD}";
        assert_eq!(text(input), output);
        assert_eq!(attr(input), output);
    }

    #[test]
    fn unescape_normalises_as_attribute_values() {
        assert!(matches!(unescape("plain"), Cow::Borrowed("plain")));
        assert_eq!(unescape("a\tb\nc\rd\r\ne&#10;f&#xD;g&#9;h"), "a b c d e\nf\rg\th");
        assert_eq!(unescape("&lt;&gt;&amp;&apos;&quot;&#65;&#x42;&#x00043;"), "<>&'\"ABC");
        assert_eq!(unescape_text("a\tb\nc\rd\r\ne&#13;"), "a\tb\nc\nd\ne\r");
        assert_eq!(unescape("&amp;lt;"), "&lt;");
    }

    #[test]
    fn x2_what_is_no_reference_stays() {
        for raw in
            ["&", "&;", "&foo;", "&#;", "&#x;", "&#0;", "&#+65;", "&#x110000;", "&#xD800;", "&lt", "&&"]
        {
            assert_eq!(unescape(raw), raw);
        }
    }

    proptest! {
        #[test]
        fn escaped_reads_back(s in any::<String>()) {
            let legal: String = s.chars().map(|c| if chars::is_xml_char(c as u32) { c } else { '\u{FFFD}' }).collect();
            let (text, attr) = (text(&s), attr(&s));
            prop_assert_eq!(unescape_text(&text), legal.as_str());
            prop_assert_eq!(unescape(&attr), legal.as_str());
        }
    }
}

//! The XML declaration (XML 1.0 section 2.8, RFC 6120 sections 11.5, 11.6 and 11.8).

use crate::chars::{SPACE, is};
use crate::error::XmlError;

/// Checks a complete `<?xml ... >`, of which the scanner knows only that it has no `>` inside.
pub(crate) fn check(declaration: &[u8]) -> Result<(), XmlError> {
    let inside = declaration
        .strip_prefix(b"<?xml")
        .and_then(|rest| rest.strip_suffix(b"?>"))
        .ok_or(XmlError::NotWellFormed)?;
    let mut reader = Reader { rest: inside };
    let version = reader.attribute(b"version")?.ok_or(XmlError::NotWellFormed)?;
    let encoding = reader.attribute(b"encoding")?;
    let standalone = reader.attribute(b"standalone")?;
    reader.skip_space();
    if !reader.rest.is_empty() {
        return Err(XmlError::NotWellFormed);
    }
    if version != b"1.0" {
        // RFC 6120 section 11.8; and XML 1.1 allows characters that XML 1.0 does not.
        return Err(XmlError::Restricted);
    }
    if let Some(name) = encoding {
        let valid = name.first().is_some_and(u8::is_ascii_alphabetic)
            && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !valid {
            return Err(XmlError::NotWellFormed);
        }
        if !name.eq_ignore_ascii_case(b"UTF-8") {
            return Err(XmlError::UnsupportedEncoding);
        }
    }
    match standalone {
        None | Some(b"yes") => Ok(()),
        // RFC 6120 section 11.5.
        Some(b"no") => Err(XmlError::Restricted),
        Some(_) => Err(XmlError::NotWellFormed),
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn skip_space(&mut self) -> bool {
        let before = self.rest.len();
        while let [b, rest @ ..] = self.rest
            && is(*b, SPACE)
        {
            self.rest = rest;
        }
        self.rest.len() < before
    }

    /// Reads white space and the pseudo-attribute `name`, if that is what comes next.
    fn attribute(&mut self, name: &[u8]) -> Result<Option<&'a [u8]>, XmlError> {
        let start = self.rest;
        if self.skip_space()
            && let Some(rest) = self.rest.strip_prefix(name)
        {
            self.rest = rest;
            return self.value().map(Some);
        }
        self.rest = start;
        Ok(None)
    }

    fn value(&mut self) -> Result<&'a [u8], XmlError> {
        self.skip_space();
        self.rest = self.rest.strip_prefix(b"=").ok_or(XmlError::NotWellFormed)?;
        self.skip_space();
        let (quote, rest) = self.rest.split_first().ok_or(XmlError::NotWellFormed)?;
        if *quote != b'"' && *quote != b'\'' {
            return Err(XmlError::NotWellFormed);
        }
        let end = memchr::memchr(*quote, rest).ok_or(XmlError::NotWellFormed)?;
        let (value, rest) = rest.split_at(end);
        self.rest = &rest[1..];
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_xml_declarations() {
        use XmlError::{NotWellFormed, Restricted, UnsupportedEncoding};
        for good in [
            "<?xml version='1.0'?>",
            "<?xml version=\"1.0\" ?>",
            "<?xml\t\r\nversion = '1.0'\nencoding = \"utf-8\" ?>",
            "<?xml version='1.0' encoding='UTF-8' standalone='yes'?>",
        ] {
            assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        }
        for (bad, error) in [
            ("<?xml version='1.1'?>", Restricted),
            ("<?xml version='1.0' standalone='no'?>", Restricted),
            ("<?xml version='1.0' encoding='UTF-16'?>", UnsupportedEncoding),
            ("<?xml version='1.0' encoding='ISO-8859-1'?>", UnsupportedEncoding),
            ("<?xml version='1.0' encoding='utf8'?>", UnsupportedEncoding),
            ("<?xml version='1.0' encoding=''?>", NotWellFormed),
            ("<?xml version='1.0' encoding='8'?>", NotWellFormed),
            ("<?xml version='2.0'?>", Restricted),
            ("<?xml version='1.'?>", Restricted),
            ("<?xml version=''?>", Restricted),
            ("<?xml version='1.0\"?>", NotWellFormed),
            ("<?xml version=1.0?>", NotWellFormed),
            ("<?xml?>", NotWellFormed),
            ("<?xml ?>", NotWellFormed),
            ("<?xml encoding='UTF-8'?>", NotWellFormed),
            ("<?xml version='1.0'encoding='UTF-8'?>", NotWellFormed),
            ("<?xml version='1.0' standalone='yes' encoding='UTF-8'?>", NotWellFormed),
            ("<?xml version='1.0' standalone='maybe'?>", NotWellFormed),
            ("<?xml version='1.0' x='y'?>", NotWellFormed),
            ("<?xml version='1.0'>", NotWellFormed),
            ("<?xml version='1.0' version='1.0'?>", NotWellFormed),
        ] {
            assert_eq!(check(bad.as_bytes()), Err(error), "{bad}");
        }
    }
}

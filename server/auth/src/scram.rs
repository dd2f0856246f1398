//! The messages of SCRAM (RFC 5802 7).
//!
//! What must hold: every accepted message follows the grammar to the letter, attributes stand in
//! their order and once each, and what was not understood is refused unless the RFC says that it
//! is ignored.

use crate::encoding::decode_base64;
use crate::error::{SaslError, SaslFailure};

/// What the client says about channel binding (gs2-cbind-flag).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BindingFlag<'a> {
    /// `n`: the client has none.
    Unsupported,
    /// `y`: the client has some, and believes that the server has none.
    NotOffered,
    /// `p=...`: the client binds to this type.
    Type(&'a str),
}

/// The first message of a client.
#[derive(Debug)]
pub(crate) struct ClientFirst<'a> {
    /// The part that the client repeats in `c=`, with both commas.
    pub(crate) gs2_header: &'a str,
    pub(crate) binding: BindingFlag<'a>,
    pub(crate) authzid: Option<String>,
    /// The part that is signed.
    pub(crate) bare: &'a str,
    pub(crate) username: String,
    pub(crate) nonce: &'a str,
}

/// The final message of a client.
#[derive(Debug)]
pub(crate) struct ClientFinal<'a> {
    pub(crate) channel_binding: Vec<u8>,
    pub(crate) nonce: &'a str,
    pub(crate) proof: Vec<u8>,
    /// The part that is signed.
    pub(crate) without_proof: &'a str,
}

const MALFORMED: SaslFailure = SaslFailure { condition: SaslError::MalformedRequest, text: None };

fn text(data: &[u8]) -> Result<&str, SaslFailure> {
    // The grammar excludes NUL from every value.
    std::str::from_utf8(data).ok().filter(|text| !text.contains('\0')).ok_or(MALFORMED)
}

impl<'a> ClientFirst<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, SaslFailure> {
        let text = text(data)?;
        let (flag, rest) = text.split_once(',').ok_or(MALFORMED)?;
        let (authzid, bare) = rest.split_once(',').ok_or(MALFORMED)?;
        let binding = match flag {
            "n" => BindingFlag::Unsupported,
            "y" => BindingFlag::NotOffered,
            _ => BindingFlag::Type(flag.strip_prefix("p=").filter(|n| is_binding_name(n)).ok_or(MALFORMED)?),
        };
        let authzid = match authzid {
            "" => None,
            _ => Some(saslname(authzid.strip_prefix("a=").ok_or(MALFORMED)?)?),
        };
        let mut attributes = bare.split(',');
        let first = attributes.next().unwrap_or_default();
        refuse_mandatory_extension(first)?;
        let username = saslname(first.strip_prefix("n=").ok_or(MALFORMED)?)?;
        let nonce = nonce(attributes.next())?;
        check_extensions(attributes)?;
        let gs2_header = &text[..text.len() - bare.len()];
        Ok(Self { gs2_header, binding, authzid, bare, username, nonce })
    }
}

impl<'a> ClientFinal<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, SaslFailure> {
        let text = text(data)?;
        let (without_proof, proof) = text.rsplit_once(',').ok_or(MALFORMED)?;
        let proof = base64(proof.strip_prefix("p=").ok_or(MALFORMED)?)?;
        let mut attributes = without_proof.split(',');
        let first = attributes.next().unwrap_or_default();
        refuse_mandatory_extension(first)?;
        let channel_binding = base64(first.strip_prefix("c=").ok_or(MALFORMED)?)?;
        let nonce = nonce(attributes.next())?;
        check_extensions(attributes)?;
        Ok(Self { channel_binding, nonce, proof, without_proof })
    }
}

/// cb-name: letters, digits, dots and hyphens.
fn is_binding_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// saslname: `,` and `=` are written `=2C` and `=3D`, and `=` stands for nothing else.
fn saslname(escaped: &str) -> Result<String, SaslFailure> {
    let mut out = String::with_capacity(escaped.len());
    let mut parts = escaped.split('=');
    out.push_str(parts.next().unwrap_or_default());
    for part in parts {
        if let Some(rest) = part.strip_prefix("2C") {
            out.push(',');
            out.push_str(rest);
        } else if let Some(rest) = part.strip_prefix("3D") {
            out.push('=');
            out.push_str(rest);
        } else {
            return Err(MALFORMED);
        }
    }
    if out.is_empty() { Err(MALFORMED) } else { Ok(out) }
}

/// `r=` and printable ASCII but the comma.
fn nonce(attribute: Option<&str>) -> Result<&str, SaslFailure> {
    attribute
        .and_then(|a| a.strip_prefix("r="))
        .filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|b| b.is_ascii_graphic()))
        .ok_or(MALFORMED)
}

/// Base64 within a message; unlike the content of `<response/>`, `=` is not the empty string.
fn base64(text: &str) -> Result<Vec<u8>, SaslFailure> {
    if text.is_empty() || text == "=" {
        return Err(MALFORMED);
    }
    decode_base64(text).map_err(|_| MALFORMED)
}

/// RFC 5802 5.1: an extension under `m` that is not understood fails the exchange, and no such
/// extension is defined.
fn refuse_mandatory_extension(attribute: &str) -> Result<(), SaslFailure> {
    if attribute.starts_with("m=") {
        return Err(SaslFailure::with_text(SaslError::MalformedRequest, "extensions-not-supported"));
    }
    Ok(())
}

/// Unknown extensions are ignored (RFC 5802 5.1), but must be well-formed, come once each, and
/// cannot be an attribute that is defined for another place.
fn check_extensions<'a>(attributes: impl Iterator<Item = &'a str>) -> Result<(), SaslFailure> {
    let mut seen: u128 = 0;
    for attribute in attributes {
        refuse_mandatory_extension(attribute)?;
        let (name, value) = attribute.split_once('=').ok_or(MALFORMED)?;
        let &[letter] = name.as_bytes() else { return Err(MALFORMED) };
        if !letter.is_ascii_alphabetic()
            || value.is_empty()
            || b"anrcsipve".contains(&letter)
            || seen & 1 << letter != 0
        {
            return Err(MALFORMED);
        }
        seen |= 1 << letter;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn first_messages_are_read() {
        let data = b"p=tls-exporter,a=me=2Cor=3Dyou@localhost,n=m=3De,r=abc!,x=1,t=a=b";
        let first = ClientFirst::parse(data).unwrap();
        assert_eq!(first.binding, BindingFlag::Type("tls-exporter"));
        assert_eq!(first.authzid.as_deref(), Some("me,or=you@localhost"));
        assert_eq!(first.username, "m=e");
        assert_eq!(first.nonce, "abc!");
        assert_eq!(first.gs2_header, "p=tls-exporter,a=me=2Cor=3Dyou@localhost,");
        assert_eq!(first.bare, "n=m=3De,r=abc!,x=1,t=a=b");
        assert_eq!(ClientFirst::parse(b"n,,n=me,r=x").unwrap().binding, BindingFlag::Unsupported);
        assert_eq!(ClientFirst::parse(b"y,,n=me,r=x").unwrap().binding, BindingFlag::NotOffered);
    }

    #[test]
    fn a2_first_messages_that_break_the_grammar_are_refused() {
        let bad: [&[u8]; 46] = [
            b"",
            b",",
            b",,",
            b"n,,",
            b"n,,n=me",
            b"n,n=me,r=x",
            b"n=me,r=x",
            b"N,,n=me,r=x",
            b"x,,n=me,r=x",
            b"p,,n=me,r=x",
            b"p=,,n=me,r=x",
            b"p=tls_unique,,n=me,r=x",
            b"p=tls exporter,,n=me,r=x",
            b"n=,,n=me,r=x",
            b"n,a=,n=me,r=x",
            b"n,me,n=me,r=x",
            b"n,a=m=e,n=me,r=x",
            b"n,A=me,n=me,r=x",
            b" n,,n=me,r=x",
            b"n,,n=,r=x",
            b"n,,n=me,r=",
            b"n,,n=me,r=a b",
            b"n,,n=me,r=\xc3\xa9",
            b"n,,n=me,r=x\n",
            b"n,,n=me,r=x,",
            b"n,,n=me,,r=x",
            b"n,,r=x,n=me",
            b"n,,n=me,r=x,r=y",
            b"n,,n=me,n=you,r=x",
            b"n,,n=me,r=x,n=you",
            b"n,,n=me,r=x,x=1,x=2",
            b"n,,n=me,r=x,x=",
            b"n,,n=me,r=x,x",
            b"n,,n=me,r=x,xy=1",
            b"n,,n=me,r=x,1=1",
            b"n,,n=me,r=x,p=abcd",
            b"n,,m=ext,n=me,r=x",
            b"n,,n=me,r=x,m=ext",
            b"n,,n=m=e,r=x",
            b"n,,n=m=2c,r=x",
            b"n,,n=me=,r=x",
            b"n,,n=me=2,r=x",
            b"n,,n=m\0e,r=x",
            b"n,,n=\xff,r=x",
            b"\xef\xbb\xbfn,,n=me,r=x",
            b"n,,n=me\xed\xa0\x80,r=x",
        ];
        for data in bad {
            let failure = ClientFirst::parse(data).expect_err(&String::from_utf8_lossy(data));
            assert_eq!(failure.condition, SaslError::MalformedRequest);
        }
        let mandatory = ClientFirst::parse(b"n,,m=ext,n=me,r=x").unwrap_err();
        assert_eq!(mandatory.text, Some("extensions-not-supported"));
    }

    #[test]
    fn final_messages_are_read() {
        let last = ClientFinal::parse(b"c=biws,r=abc,x=1,p=AAEC").unwrap();
        assert_eq!(last.channel_binding, b"n,,");
        assert_eq!((last.nonce, last.without_proof), ("abc", "c=biws,r=abc,x=1"));
        assert_eq!(last.proof, [0, 1, 2]);
    }

    #[test]
    fn a2_final_messages_that_break_the_grammar_are_refused() {
        let bad: [&[u8]; 27] = [
            b"",
            b"p=AAEC",
            b"c=biws,p=AAEC",
            b"r=abc,p=AAEC",
            b"c=biws,r=abc",
            b"c=biws,r=abc,",
            b"c=biws,r=abc,p=",
            b"c=biws,r=abc,p==",
            b"c=biws,r=abc,p=====",
            b"c=biws,r=abc,p=AAE",
            b"c=biws,r=abc,p=AAF=",
            b"c=biws,r=abc,p=AA EC",
            b"c=biws,r=abc,p=AAEC\n",
            b"c=biws,r=abc,p=AAEC,x=1",
            b"c=biws,r=abc,p=AAEC,p=AAEC",
            b"p=AAEC,c=biws,r=abc",
            b"r=abc,c=biws,p=AAEC",
            b"c=biws,r=abc,r=abc,p=AAEC",
            b"c=biws,c=biws,r=abc,p=AAEC",
            b"c=biws,r=abc,c=biws,p=AAEC",
            b"c=biws,r=abc,x=1,x=1,p=AAEC",
            b"c=biws,r=abc,m=1,p=AAEC",
            b"m=1,c=biws,r=abc,p=AAEC",
            b"c=,r=abc,p=AAEC",
            b"c=bi ws,r=abc,p=AAEC",
            b"c=biws,r=,p=AAEC",
            b"c=biws,r=\xff,p=AAEC",
        ];
        for data in bad {
            let failure = ClientFinal::parse(data).expect_err(&String::from_utf8_lossy(data));
            assert_eq!(failure.condition, SaslError::MalformedRequest);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data: Vec<u8>) {
            let _ = ClientFirst::parse(&data);
            let _ = ClientFinal::parse(&data);
        }

        #[test]
        fn the_parts_of_a_message_make_up_the_whole(data in "[nyp],(a=[a-z]{1,4})?,n=[a-z=23CD]{1,6},r=[!-+a-z]{1,6}(,[a-z]=[a-z]{0,2}){0,3}") {
            if let Ok(first) = ClientFirst::parse(data.as_bytes()) {
                prop_assert_eq!(format!("{}{}", first.gs2_header, first.bare), data);
            }
        }
    }
}

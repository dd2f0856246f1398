//! String preparation (RFC 7622): one pipeline for login, registration, routing and storage keys.
//!
//! Localparts follow the PRECIS profile UsernameCaseMapped, resources OpaqueString (RFC 8265),
//! domains IDNA2008 with the mappings of UTS 46, passwords SASLprep (RFC 4013), which SCRAM names.
//!
//! What must hold: preparing a prepared string gives the same string; ASCII that is already in
//! canonical form is returned without a copy; no part exceeds [`MAX_PART`] bytes; a character
//! that the profile does not map is refused, never dropped, so that no two visibly different
//! names become one.

pub(crate) mod ascii;
mod precis;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::Ipv6Addr;

use ascii::forbidden_in_localpart;
use idna::uts46::{AsciiDenyList, DnsLength, Hyphens, Uts46};
use precis::Class;

/// Longest JID part in bytes (RFC 7622 3.2 to 3.4).
pub const MAX_PART: usize = 1023;

/// Longest input that is looked at. Mapping shrinks a string by a factor of three at most
/// (fullwidth letters), so whatever is longer than this stays too long.
const MAX_INPUT: usize = 4 * MAX_PART;

/// Longest domain name and longest label in ASCII form (RFC 1034 3.1).
pub(crate) const MAX_DNS_NAME: usize = 253;
const MAX_DNS_LABEL: usize = 63;

/// Why a string is not a valid JID part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrepError {
    /// The part is empty.
    #[error("a part of the address is empty")]
    Empty,
    /// The part is longer than [`MAX_PART`] bytes, or a domain longer than DNS allows.
    #[error("a part of the address is too long")]
    TooLong,
    /// The part holds a character that is not allowed in it.
    #[error("a part of the address holds a forbidden character")]
    Forbidden,
}

fn check_length(s: &str) -> Result<(), PrepError> {
    match s.len() {
        0 => Err(PrepError::Empty),
        n if n > MAX_PART => Err(PrepError::TooLong),
        _ => Ok(()),
    }
}

/// Refuses what is empty, and what is too long however it is mapped, before any work is done.
fn check_input(s: &str) -> Result<(), PrepError> {
    match s.len() {
        0 => Err(PrepError::Empty),
        n if n > MAX_INPUT => Err(PrepError::TooLong),
        _ => Ok(()),
    }
}

/// Prepares a localpart (RFC 7622 3.3): case, width and NFC are mapped, symbols, spaces and
/// compatibility characters (U+2168 ROMAN NUMERAL NINE, U+00AA) are refused.
///
/// # Errors
/// [`PrepError`] when the string cannot be a localpart.
pub fn localpart(s: &str) -> Result<Cow<'_, str>, PrepError> {
    check_input(s)?;
    if s.is_ascii() {
        check_length(s)?;
        let mut upper = false;
        for b in s.bytes() {
            if !(0x21..0x7f).contains(&b) || forbidden_in_localpart(b) {
                return Err(PrepError::Forbidden);
            }
            upper |= b.is_ascii_uppercase();
        }
        return Ok(if upper { Cow::Owned(s.to_ascii_lowercase()) } else { Cow::Borrowed(s) });
    }
    let out = precis::username_case_mapped(s).ok_or(PrepError::Forbidden)?;
    // After width mapping: U+FF20 FULLWIDTH COMMERCIAL AT has become `@` by now.
    if out.bytes().any(forbidden_in_localpart) {
        return Err(PrepError::Forbidden);
    }
    check_length(&out)?;
    Ok(Cow::Owned(out))
}

/// Prepares a domainpart (RFC 7622 3.2): U-labels, lower case, no trailing dot; an IPv6 address
/// stays in brackets, in the form of RFC 5952. The length limits of DNS apply as well.
///
/// # Errors
/// [`PrepError`] when the string cannot be a domainpart.
pub fn domain(s: &str) -> Result<Cow<'_, str>, PrepError> {
    check_input(s)?;
    // RFC 7622 3.2: the final dot goes before any other step. The other three are what IDNA
    // takes for a dot.
    let s = s.strip_suffix(['.', '\u{3002}', '\u{ff0e}', '\u{ff61}']).unwrap_or(s);
    if s.is_empty() {
        return Err(PrepError::Empty);
    }
    if s.starts_with('[') {
        return ip_literal(s);
    }
    if is_canonical_ascii_domain(s) {
        return if s.len() > MAX_DNS_NAME { Err(PrepError::TooLong) } else { Ok(Cow::Borrowed(s)) };
    }
    let (out, result) = Uts46::new().to_unicode(s.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast);
    result.map_err(|_| PrepError::Forbidden)?;
    check_length(&out)?;
    // UTS 46 lets symbols pass that IDNA2008 forbids (RFC 7622 3.2.1 wants U-labels).
    if !out.is_ascii() && !out.split('.').all(|label| precis::in_class(label, Class::Identifier)) {
        return Err(PrepError::Forbidden);
    }
    if out.split('.').any(str::is_empty) {
        return Err(PrepError::Forbidden);
    }
    Uts46::new()
        .to_ascii(out.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast, DnsLength::Verify)
        .map_err(|_| PrepError::TooLong)?;
    Ok(Cow::Owned(out.into_owned()))
}

/// True for lower-case letter-digit-hyphen labels that are no A-labels; only the length of the
/// whole remains to be checked.
fn is_canonical_ascii_domain(s: &str) -> bool {
    s.as_bytes()
        .split(|b| *b == b'.')
        .all(|label| ascii::run(label, ascii::LABEL) == label.len() && is_canonical_label(label))
}

/// True for what is not too long, has its hyphens inside, and is no A-label; it has bytes of
/// [`ascii::LABEL`] only.
pub(crate) fn is_canonical_label(label: &[u8]) -> bool {
    (1..=MAX_DNS_LABEL).contains(&label.len())
        && !label.starts_with(b"-")
        && !label.ends_with(b"-")
        && !label.starts_with(b"xn--")
}

/// An IPv6 address in brackets. Zone identifiers mean something on one machine only, and
/// addresses of future IP versions nothing at all: neither is accepted.
fn ip_literal(s: &str) -> Result<Cow<'_, str>, PrepError> {
    let inner = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')).ok_or(PrepError::Forbidden)?;
    let address: Ipv6Addr = inner.parse().map_err(|_| PrepError::Forbidden)?;
    let canonical = format!("[{address}]");
    Ok(if canonical == s { Cow::Borrowed(s) } else { Cow::Owned(canonical) })
}

/// Prepares a resourcepart (RFC 7622 3.4): nearly every assigned character is allowed, case is
/// kept, other spaces become U+0020. It cannot begin with a space (RFC 7622 3.5, example 18).
///
/// # Errors
/// [`PrepError`] when the string cannot be a resourcepart.
pub fn resource(s: &str) -> Result<Cow<'_, str>, PrepError> {
    check_input(s)?;
    let out = if s.bytes().all(|b| (0x20..0x7f).contains(&b)) {
        Cow::Borrowed(s)
    } else {
        Cow::Owned(precis::opaque_string(s).ok_or(PrepError::Forbidden)?)
    };
    if out.starts_with(' ') {
        return Err(PrepError::Forbidden);
    }
    check_length(&out)?;
    Ok(out)
}

/// Prepares a password (SASLprep, RFC 4013, as a stored string: code points that Unicode 3.2
/// does not assign are refused), which is what SCRAM clients hash (RFC 5802 2.2).
///
/// # Errors
/// [`PrepError`] when the string cannot be a password.
pub fn password(s: &str) -> Result<Cow<'_, str>, PrepError> {
    check_input(s)?;
    // Later versions of Unicode decompose code points that 3.2 did not know: look before mapping.
    if s.chars().any(stringprep::tables::unassigned_code_point) {
        return Err(PrepError::Forbidden);
    }
    let out = stringprep::saslprep(s).map_err(|_| PrepError::Forbidden)?;
    check_length(&out)?;
    Ok(out)
}

/// True when a localpart mixes scripts that no writing system mixes (Latin with Cyrillic, say):
/// the "highly restrictive" level of UTS 39. For a registration policy; such names stay valid.
pub fn mixes_scripts(localpart: &str) -> bool {
    !localpart.is_ascii() && precis::mixes_scripts(localpart)
}

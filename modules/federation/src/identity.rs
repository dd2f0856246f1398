//! Which certificate proves which domain (RFC 6120 section 13.7.1.2, RFC 9525, XEP-0178; SECURITY T8).
//!
//! What must stay true:
//! - Only subject alternative names count, and of them only a dNSName, an SRVName of `_xmpp-server` and an
//!   xmppAddr. The subject is never looked at, whatever it seems to say; nor are addresses of IP.
//! - A name is compared whole, after both were brought to A-labels; one that holds what no name can hold, such as a
//!   NUL, matches nothing.
//! - The domain is the one that the stream is for. Where its server was found (SRV) proves nothing.
//! - No certificate makes this panic.

use std::fmt;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::asn1_rs::{Any, Class, Tag};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::trust::Trust;

/// id-on-xmppAddr, RFC 6120 section 13.7.1.4.
const XMPP_ADDR: &str = "1.3.6.1.5.5.7.8.5";
/// id-on-dnsSRV, RFC 4985.
const SRV_NAME: &str = "1.3.6.1.5.5.7.8.7";
/// What an SRVName has before the domain.
const SERVICE: &str = "_xmpp-server.";
/// Names that are shown of one certificate.
const SHOWN_NAMES: usize = 8;
/// Characters that are shown of one name.
const SHOWN_CHARS: usize = 255;

/// What the peer was in the handshake of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It connected to us.
    Client,
    /// We connected to it.
    Server,
}

/// Why a peer has not proven a domain by its certificate. Shows what an administrator needs to know; what the
/// peer wrote is escaped in it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unproven {
    /// It presented none.
    #[error("no certificate was presented")]
    NoCertificate,
    /// No certificate can prove it: an address, or no name of a host.
    #[error("`{}` is no domain that a certificate could prove", .0.escape_debug())]
    NotADomain(String),
    /// The certificate cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It is for others.
    #[error("the certificate is for {names}, not for {domain}")]
    OtherNames {
        /// The domain that was to be proven.
        domain: String,
        /// Whom it is for.
        names: String,
    },
    /// It is not valid, or from nobody who is trusted.
    #[error("the certificate is not valid: {}", explain(.0))]
    Invalid(webpki::Error),
}

/// Whether the presented `chain` (the peer's own certificate first) proves that the peer is a server of
/// `domain`, at the time `now`.
///
/// That the peer has the certificate's key is the transport's to check.
///
/// # Errors
/// What stands against it; when several things do, the names come before the chain.
pub fn proves(
    chain: &[CertificateDer<'_>],
    domain: &str,
    trust: &Trust,
    role: Role,
    now: SystemTime,
) -> Result<(), Unproven> {
    let own = chain.first().ok_or(Unproven::NoCertificate)?;
    let reference = reference(domain).ok_or_else(|| Unproven::NotADomain(domain.to_owned()))?;
    let names = names(own).ok_or(Unproven::Unreadable)?;
    if !names.iter().any(|name| name.proves(&reference)) {
        return Err(Unproven::OtherNames { domain: reference, names: shown(&names) });
    }
    let now = UnixTime::since_unix_epoch(now.duration_since(UNIX_EPOCH).unwrap_or_default());
    trust.validate(chain, &reference, role, now).map_err(Unproven::Invalid)
}

/// A certificate's names and the end of its time, for administrators.
pub fn describe(certificate: &CertificateDer<'_>) -> String {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return "a certificate that cannot be read".into();
    };
    let names = names(certificate).unwrap_or_default();
    format!("for {}, valid until {}", shown(&names), parsed.validity().not_after)
}

/// A name of a certificate that can be a server's.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Dns(String),
    Srv(String),
    Xmpp(String),
}

impl Name {
    fn read(name: &GeneralName<'_>) -> Option<Self> {
        match name {
            GeneralName::DNSName(name) => Some(Self::Dns((*name).to_owned())),
            GeneralName::OtherName(kind, value) => match kind.to_id_string().as_str() {
                SRV_NAME => Some(Self::Srv(text(value, Tag::Ia5String)?)),
                XMPP_ADDR => Some(Self::Xmpp(text(value, Tag::Utf8String)?)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Whether it is a name of `domain`, which is normalised.
    fn proves(&self, domain: &str) -> bool {
        match self {
            // RFC 9525 section 6.3: the wildcard is the whole first label, and stands for one label. Below a
            // single label, as in `*.org`, it would stand for whoever registers there.
            Self::Dns(name) => match name.strip_prefix("*.") {
                Some(parent) => presented(parent).is_some_and(|parent| {
                    parent.contains('.') && domain.split_once('.').is_some_and(|(_, rest)| rest == parent)
                }),
                None => presented(name).is_some_and(|name| name == domain),
            },
            Self::Srv(name) => name
                .split_at_checked(SERVICE.len())
                .filter(|(service, _)| service.eq_ignore_ascii_case(SERVICE))
                .and_then(|(_, name)| presented(name))
                .is_some_and(|name| name == domain),
            // That of a user holds an `@`, which no domain does.
            Self::Xmpp(name) => presented(name).is_some_and(|name| name == domain),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Dns(name) | Self::Srv(name) | Self::Xmpp(name)) = self;
        name.chars().take(SHOWN_CHARS).flat_map(char::escape_debug).try_for_each(|c| write!(f, "{c}"))
    }
}

/// The certificate's names; `None` if it cannot be read.
fn names(certificate: &CertificateDer<'_>) -> Option<Vec<Name>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()?;
    Some(names.iter().flat_map(|names| &names.value.general_names).filter_map(Name::read).collect())
}

/// The text in an otherName: `[0] EXPLICIT`, and a string of the given kind.
fn text(value: &[u8], kind: Tag) -> Option<String> {
    let (rest, outer) = Any::from_der(value).ok()?;
    if !rest.is_empty() || outer.class() != Class::ContextSpecific || outer.tag() != Tag(0) {
        return None;
    }
    let (rest, inner) = Any::from_der(outer.data).ok()?;
    if !rest.is_empty() || inner.class() != Class::Universal || inner.tag() != kind {
        return None;
    }
    String::from_utf8(inner.data.to_vec()).ok()
}

/// The domain that is to be proven, as A-labels in lower case; `None` if it is an address or no name of a host.
fn reference(domain: &str) -> Option<String> {
    let bare = domain.trim_start_matches('[').trim_end_matches(']');
    if bare.parse::<IpAddr>().is_ok() {
        return None;
    }
    normalise(domain.strip_suffix('.').unwrap_or(domain))
}

/// A certificate's name, likewise. One of U-labels must be exactly what its A-labels stand for (RFC 5890 section
/// 2.3.2.1): nothing that looks different, or cannot be seen, becomes somebody's name.
fn presented(name: &str) -> Option<String> {
    let ascii = normalise(name)?;
    let same = name.is_ascii() || idna::domain_to_unicode(&ascii).0 == name.to_lowercase();
    same.then_some(ascii)
}

/// A name as A-labels in lower case: letters, digits, `-` and `_` in labels of up to 63 characters.
pub(crate) fn normalise(name: &str) -> Option<String> {
    if name.chars().any(char::is_control) {
        return None;
    }
    let ascii = idna::domain_to_ascii(name).ok()?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(allowed);
    (ascii.len() <= 253 && ascii.split('.').all(label)).then_some(ascii)
}

/// Some of the names, in one line.
fn shown(names: &[Name]) -> String {
    if names.is_empty() {
        return "no name that could be a server's".into();
    }
    let mut line: Vec<_> = names.iter().take(SHOWN_NAMES).map(ToString::to_string).collect();
    if names.len() > SHOWN_NAMES {
        line.push(format!("{} more", names.len() - SHOWN_NAMES));
    }
    line.join(", ")
}

/// What an administrator would say.
fn explain(error: &webpki::Error) -> String {
    use webpki::Error;
    match error {
        Error::CertExpired { .. } => "its time is over".into(),
        Error::CertNotValidYet { .. } => "its time has not begun".into(),
        Error::UnknownIssuer => "nobody who is trusted issued it".into(),
        Error::CaUsedAsEndEntity => "it is an authority's own".into(),
        Error::EndEntityUsedAsCa => "it was issued by one who is no authority".into(),
        Error::NameConstraintViolation => "its issuer may not speak for such names".into(),
        Error::PathLenConstraintViolated => "its chain is longer than its authority allows".into(),
        Error::RequiredEkuNotFoundContext(_) => "it is for neither servers nor clients of TLS".into(),
        Error::UnsupportedSignatureAlgorithmContext(_)
        | Error::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "it, or its issuer's, is signed in a way that is not safe".into()
        }
        Error::InvalidSignatureForPublicKey => "a signature in its chain is wrong".into(),
        error => error.to_string(),
    }
}

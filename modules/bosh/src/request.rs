//! What a request asks for (XEP-0124 7 to 16): the attributes of its wrapper, read and checked.
//!
//! What must hold: a number outside of what its schema type or this server allows is refused by
//! name or cut to the limit, as is said where it is read; `route` is never looked at, so that no
//! client can make the server connect anywhere.

use waystation_core::xml::Element;

use crate::body::NS_XBOSH;

/// Greatest request ID (14.1): 2^53 - 1.
pub(crate) const MAX_RID: u64 = (1 << 53) - 1;
/// Longest `content` and `xml:lang` that are taken.
const MAX_TEXT: usize = 128;

/// Conditions of 17.2 that this server reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    BadRequest,
    HostUnknown,
    ImproperAddressing,
    InternalServerError,
    ItemNotFound,
    OtherRequest,
    PolicyViolation,
    RemoteConnectionFailed,
    RemoteStreamError,
    SystemShutdown,
}

impl Condition {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::HostUnknown => "host-unknown",
            Self::ImproperAddressing => "improper-addressing",
            Self::InternalServerError => "internal-server-error",
            Self::ItemNotFound => "item-not-found",
            Self::OtherRequest => "other-request",
            Self::PolicyViolation => "policy-violation",
            Self::RemoteConnectionFailed => "remote-connection-failed",
            Self::RemoteStreamError => "remote-stream-error",
            Self::SystemShutdown => "system-shutdown",
        }
    }

    /// The HTTP status that clients from before version 1.6 know instead (17.1).
    pub(crate) fn legacy_status(self) -> Option<u16> {
        match self {
            Self::BadRequest => Some(400),
            Self::PolicyViolation => Some(403),
            Self::ItemNotFound => Some(404),
            _ => None,
        }
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Payloads, or a poll.
    #[default]
    Payloads,
    /// `xmpp:restart` (XEP-0206 5).
    Restart,
    /// `pause`, in seconds (10).
    Pause(u64),
    /// `type='terminate'` (13).
    Terminate,
}

/// A request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) rid: u64,
    pub(crate) sid: Option<String>,
    pub(crate) purpose: Purpose,
    pub(crate) to: Option<String>,
    pub(crate) from: Option<String>,
    pub(crate) lang: Option<String>,
    /// `ack`, as far as it is a number.
    pub(crate) ack: Option<u64>,
    pub(crate) key: Option<String>,
    pub(crate) new_key: Option<String>,
    /// It names a stream (16).
    pub(crate) stream: bool,
    pub(crate) payloads: Vec<Element>,
}

/// What a session creation request asks for (7.1).
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// `ver`; `None` for a legacy client.
    pub(crate) version: Option<(u32, u32)>,
    /// Seconds.
    pub(crate) wait: Option<u64>,
    pub(crate) hold: Option<u64>,
    pub(crate) content: Option<String>,
}

impl Request {
    /// Reads the attributes of a wrapper, and takes the payloads that may come with it.
    pub(crate) fn read(body: &mut Element) -> Result<Self, Condition> {
        let text = |name: &str| body.attr(name).map(str::to_owned);
        let rid = body.attr("rid").and_then(number).filter(|rid| (1..=MAX_RID).contains(rid));
        let restart = match body.attr_ns("restart", NS_XBOSH) {
            None => false,
            Some(value) => boolean(value).ok_or(Condition::BadRequest)?,
        };
        let purpose = match (body.attr("type"), body.attr("pause")) {
            (Some("terminate"), _) => Purpose::Terminate,
            // 17.2: clients may report errors as well; there is nothing that one could do.
            (Some("error") | None, None) if restart => Purpose::Restart,
            (Some("error") | None, None) => Purpose::Payloads,
            (Some("error") | None, Some(pause)) => {
                Purpose::Pause(number(pause).ok_or(Condition::BadRequest)?)
            }
            _ => return Err(Condition::BadRequest),
        };
        let mut request = Self {
            rid: rid.ok_or(Condition::BadRequest)?,
            sid: text("sid"),
            purpose,
            to: text("to"),
            from: text("from"),
            lang: body.lang().filter(|lang| lang.len() <= MAX_TEXT).map(str::to_owned),
            ack: body.attr("ack").and_then(number),
            key: text("key"),
            new_key: text("newkey"),
            stream: body.attr("stream").is_some(),
            payloads: Vec::new(),
        };
        let taken = |payload| std::mem::replace(payload, Element::new("taken", ""));
        request.payloads = body.children_mut().map(taken).collect();
        Ok(request)
    }

    /// True when it only asks for payloads.
    pub(crate) fn is_poll(&self) -> bool {
        self.purpose == Purpose::Payloads && self.payloads.is_empty()
    }

    /// True for the ones of which a client may send one more than others (11).
    pub(crate) fn is_extra(&self) -> bool {
        matches!(self.purpose, Purpose::Pause(_) | Purpose::Terminate)
    }
}

impl Wishes {
    /// Reads what only a session creation request says.
    pub(crate) fn read(body: &Element) -> Result<Self, Condition> {
        let version = match body.attr("ver") {
            None => None,
            Some(text) => {
                let (major, minor) = text.split_once('.').ok_or(Condition::BadRequest)?;
                let part = |text| number(text).and_then(|n| u32::try_from(n).ok());
                Some((part(major).ok_or(Condition::BadRequest)?, part(minor).ok_or(Condition::BadRequest)?))
            }
        };
        let optional = |name: &str| match body.attr(name) {
            None => Ok(None),
            Some(text) => number(text).map(Some).ok_or(Condition::BadRequest),
        };
        let content = match body.attr("content") {
            None => None,
            Some(content) => Some(content_type(content).ok_or(Condition::BadRequest)?),
        };
        Ok(Self { version, wait: optional("wait")?, hold: optional("hold")?, content })
    }
}

/// A value for the header Content-Type: a media type, and no encoding but UTF-8, which is the
/// only one that responses are written in.
fn content_type(text: &str) -> Option<String> {
    let text = text.trim_ascii();
    let visible = |b: u8| matches!(b, b' '..=b'~');
    if text.len() > MAX_TEXT || !text.bytes().all(visible) {
        return None;
    }
    let mut parts = text.split(';');
    let token =
        |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b));
    let (kind, subtype) = parts.next()?.trim_ascii().split_once('/')?;
    if !token(kind) || !token(subtype) {
        return None;
    }
    for parameter in parts {
        let (name, value) = parameter.trim_ascii().split_once('=')?;
        let utf8 = value.trim_matches('"').eq_ignore_ascii_case("utf-8");
        if !token(name) || (name.eq_ignore_ascii_case("charset") && !utf8) {
            return None;
        }
    }
    Some(text.to_owned())
}

/// A number without a sign. One that is too large for any use here is that.
fn number(text: &str) -> Option<u64> {
    let text = text.trim_ascii();
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

fn boolean(text: &str) -> Option<bool> {
    match text.trim_ascii() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::NS_HTTPBIND;

    fn body(attributes: &str) -> Element {
        let xml = format!("<body xmlns='{NS_HTTPBIND}' xmlns:xmpp='{NS_XBOSH}' {attributes}/>");
        Element::parse(xml.as_bytes(), "").unwrap()
    }

    fn read(attributes: &str) -> Result<Request, Condition> {
        Request::read(&mut body(attributes))
    }

    #[test]
    fn m7_xep_0124_14_1_rids_are_positive_and_below_2_to_the_53rd() {
        assert_eq!(read("rid='1'").unwrap().rid, 1);
        assert_eq!(read("rid='9007199254740991'").unwrap().rid, MAX_RID);
        for wrong in [
            "",
            "rid=''",
            "rid='0'",
            "rid='-1'",
            "rid='+1'",
            "rid='1e3'",
            "rid='0x10'",
            "rid='9007199254740992'",
            "rid='18446744073709551616'",
            "rid='99999999999999999999999999999999'",
            "rid='one'",
        ] {
            assert_eq!(read(wrong).unwrap_err(), Condition::BadRequest, "{wrong}");
        }
    }

    #[test]
    fn xep_0124_10_and_13_the_purpose_of_a_request() {
        for (attributes, purpose) in [
            ("", Purpose::Payloads),
            ("pause='60'", Purpose::Pause(60)),
            ("type='terminate'", Purpose::Terminate),
            ("type='terminate' pause='60'", Purpose::Terminate),
            ("type='error'", Purpose::Payloads),
            ("xmpp:restart='true'", Purpose::Restart),
            ("xmpp:restart='1'", Purpose::Restart),
            ("xmpp:restart='false'", Purpose::Payloads),
            // Not the attribute of XEP-0206.
            ("restart='true'", Purpose::Payloads),
        ] {
            assert_eq!(read(&format!("rid='1' {attributes}")).unwrap().purpose, purpose, "{attributes}");
        }
        for wrong in ["pause='x'", "pause='-1'", "type='foo'", "xmpp:restart='yes'"] {
            assert_eq!(read(&format!("rid='1' {wrong}")).unwrap_err(), Condition::BadRequest, "{wrong}");
        }
    }

    #[test]
    fn xep_0124_7_1_wishes_are_numbers() {
        let wishes = Wishes::read(&body("ver='1.6' wait='1000000000' hold='99999999999999999999'")).unwrap();
        assert_eq!(wishes.version, Some((1, 6)));
        assert_eq!((wishes.wait, wishes.hold), (Some(1_000_000_000), Some(u64::MAX)));
        assert_eq!(Wishes::read(&body("")).unwrap().version, None);
        for wrong in ["wait='x'", "hold='-1'", "ver='1'", "ver='1.x'", "ver='a.b'", "ver='99999999999.1'"] {
            assert_eq!(Wishes::read(&body(wrong)).unwrap_err(), Condition::BadRequest, "{wrong}");
        }
    }

    #[test]
    fn xep_0124_7_1_content_becomes_a_header_only_if_it_is_one() {
        for good in ["text/html", "text/html; charset=utf-8", "text/xml;charset=\"UTF-8\"", "application/xml"]
        {
            let wishes = Wishes::read(&body(&format!("content='{good}'"))).unwrap();
            assert_eq!(wishes.content.as_deref(), Some(good));
        }
        for wrong in [
            "html",
            "/",
            "text/",
            "text/html; charset=iso-8859-1",
            "text/html;x",
            "a/b&#13;&#10;X: y",
            "té/x",
        ] {
            assert!(Wishes::read(&body(&format!("content='{wrong}'"))).is_err(), "{wrong}");
        }
    }
}

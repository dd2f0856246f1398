//! Entity capabilities (XEP-0115): a hash that stands for what an entity says of itself.
//!
//! What must hold: equal answers give equal hashes whatever the order of their parts; an answer
//! is valid for a hash only if it gives that hash and could not be another answer read in
//! another way, since valid answers are used for everyone who shows the same hash.
//!
//! The text that is hashed does not show where one part ends and the next begins, so that an
//! attacker can present features as the fields of a form, or an identity as a feature, without
//! changing the hash. The specification cannot repair this; [`verify`] refuses answers that
//! have the look of it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};
use waystation_xml::Element;

use crate::dataform::{DataForm, FORM_TYPE};
use crate::disco::DiscoInfo;

/// Namespace of the `<c/>` element; also the disco feature.
pub const NS_CAPS: &str = "http://jabber.org/protocol/caps";
/// The hash that everyone supports.
pub const SHA_1: &str = "sha-1";

/// What an entity shows in its presence, or a server in its stream features.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caps {
    /// URI of the software.
    pub node: String,
    /// The hash, in base64.
    pub ver: String,
    /// Which hash; `None` in the format before version 1.4, where `ver` is no hash.
    pub hash: Option<String>,
}

impl Caps {
    /// Reads a `<c/>` element; `None` when it is none or lacks `node` or `ver`.
    pub fn parse(c: &Element) -> Option<Self> {
        if !c.is("c", NS_CAPS) {
            return None;
        }
        Some(Self {
            node: c.attr("node")?.to_owned(),
            ver: c.attr("ver")?.to_owned(),
            hash: c.attr("hash").map(str::to_owned),
        })
    }

    /// The `<c/>` element.
    pub fn to_element(&self) -> Element {
        let mut c = Element::new("c", NS_CAPS);
        if let Some(hash) = &self.hash {
            c.set_attr("hash", hash);
        }
        c.with_attr("node", &self.node).with_attr("ver", &self.ver)
    }

    /// The node to ask for what the hash stands for (XEP-0115 6.2).
    pub fn query_node(&self) -> String {
        format!("{}#{}", self.node, self.ver)
    }
}

/// The verification string of an answer by SHA-1 (XEP-0115 5.1).
pub fn verification_string(info: &DiscoInfo) -> String {
    let mut text = String::new();
    let mut append = |part: &str| {
        text.push_str(part);
        text.push('<');
    };
    let mut identities: Vec<_> = info.identities.iter().collect();
    // Category, type, language and name, in this order, each by octets.
    identities.sort_unstable();
    for identity in identities {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        append(&format!(
            "{}/{}/{}/{}",
            identity.category,
            identity.kind,
            part(&identity.lang),
            part(&identity.name)
        ));
    }
    for feature in sorted(&info.features) {
        append(feature);
    }
    let mut forms: Vec<_> = info.forms.iter().filter_map(|form| Some((form.form_type()?, form))).collect();
    forms.sort_by_key(|(form_type, _)| *form_type);
    for (form_type, form) in forms {
        append(form_type);
        let mut fields: Vec<_> = data_fields(form).collect();
        fields.sort_by_key(|(var, _)| *var);
        for (var, values) in fields {
            append(var);
            for value in sorted(values) {
                append(value);
            }
        }
    }
    STANDARD.encode(Sha1::digest(text))
}

/// Whether an answer belongs to the hash that was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does: it holds for everyone who shows the hash.
    Valid,
    /// It does not, or may have been made up to be read in another way: it may not be used.
    Invalid,
    /// There is no hash, or one that is not supported: it holds for the one who was asked only.
    Unverified,
}

/// Verifies the answer to a query for [`Caps::query_node`] (XEP-0115 5.4).
pub fn verify(info: &DiscoInfo, caps: &Caps) -> Verdict {
    match caps.hash.as_deref() {
        Some(SHA_1) if well_formed(info) && verification_string(info) == caps.ver => Verdict::Valid,
        Some(SHA_1) => Verdict::Invalid,
        _ => Verdict::Unverified,
    }
}

fn well_formed(info: &DiscoInfo) -> bool {
    let forms: Vec<_> = info.forms.iter().filter(|form| form.form_type().is_some()).collect();
    let form_types: Vec<_> = forms.iter().filter_map(|form| form.form_type()).collect();
    let identities: Vec<_> = info.identities.iter().collect();
    all_different(&identities)
        && all_different(&sorted(&info.features))
        && all_different(&form_types)
        && info.identities.iter().all(|identity| {
            let parts = [Some(&identity.category), Some(&identity.kind), identity.lang.as_ref()];
            is_identity(&identity.category, &identity.kind)
                && parts.into_iter().flatten().all(|part| !part.contains(['/', '<']))
                && !identity.name.as_ref().is_some_and(|name| name.contains('<'))
        }) && info.features.iter().all(|feature| {
        let mut parts = feature.splitn(4, '/');
        let parts = (parts.next(), parts.next(), parts.next(), parts.next());
        let like_an_identity =
            matches!(parts, (Some(category), Some(kind), Some(_), Some(_)) if is_identity(category, kind));
        !feature.is_empty() && !feature.contains('<') && !like_an_identity
    }) && forms.into_iter().all(well_formed_form)
}

/// True for what identities have and URIs, as most features are, have not.
fn is_identity(category: &str, kind: &str) -> bool {
    !category.is_empty() && !kind.is_empty() && !category.contains(':')
}

fn well_formed_form(form: &DataForm) -> bool {
    let form_types = form.values(FORM_TYPE);
    let mut fields = data_fields(form).peekable();
    form_types.iter().all(|form_type| *form_type == form_types[0] && !form_type.is_empty() && !form_type.contains('<'))
        // Without fields it could be one more feature.
        && fields.peek().is_some()
        // Names that look like features are allowed only in the notation of XEP-0068 3.3.
        && fields.all(|(var, values)| {
            !var.is_empty()
                && !var.contains('<')
                && (!var.contains(':') || var.starts_with('{'))
                && !values.is_empty()
                && values.iter().all(|value| !value.contains('<'))
        })
}

/// The fields of a form but its `FORM_TYPE`.
fn data_fields(form: &DataForm) -> impl Iterator<Item = (&str, &[String])> {
    let fields = form.fields.iter().filter_map(|field| Some((field.var.as_deref()?, &field.values[..])));
    fields.filter(|(var, _)| *var != FORM_TYPE)
}

fn sorted(texts: &[String]) -> Vec<&str> {
    let mut sorted: Vec<_> = texts.iter().map(String::as_str).collect();
    sorted.sort_unstable();
    sorted
}

fn all_different<T: Ord>(values: &[T]) -> bool {
    let mut sorted: Vec<_> = values.iter().collect();
    sorted.sort_unstable();
    sorted.windows(2).all(|pair| pair[0] != pair[1])
}

#[cfg(test)]
mod tests;

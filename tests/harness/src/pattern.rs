//! Does this stanza mean what the test expects? Comparing by meaning, with wildcards and captures.
//!
//! A pattern is an element. Names are compared with their namespaces; every
//! attribute and child of the pattern must be there, more may be. Children
//! match in any order, each one of the stanza's at most once. The rules for
//! values are those of the scenario language (tests/scenarios/README.md).

use std::collections::BTreeMap;

use crate::xml::{CLIENT_NS, Element, Name};

/// Names for values: what was captured, and what the test knows beforehand.
pub type Bindings = BTreeMap<String, String>;

/// The attribute that says how strictly an element of a pattern is meant: `absent`, `exact` or `empty`.
const MODE: &str = "scenario";

/// Replaces `{name}` by its value, and `{{` by a brace.
pub fn substitute(text: &str, bindings: &Bindings) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('{') {
            out.push('{');
            rest = after;
            continue;
        }
        let (name, after) = rest.split_once('}').ok_or_else(|| format!("'{{' without '}}' in {text:?}"))?;
        let value = bindings.get(name).ok_or_else(|| format!("nothing is known as {{{name}}}"))?;
        out.push_str(value);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// Compares a stanza with a pattern; captures go to `bindings` only if all of it matches.
///
/// The error says in words what differs.
pub fn compare(pattern: &Element, stanza: &Element, bindings: &mut Bindings) -> Result<(), String> {
    let mut captured = bindings.clone();
    element(pattern, stanza, &mut captured)?;
    // A message or presence without 'type' means something of its own (RFC 6121 4.7.1, 5.2.2),
    // so a pattern without one does not stand for "any type".
    let type_matters = pattern.ns() == CLIENT_NS && matches!(pattern.local(), "message" | "presence");
    if type_matters && pattern.attr("type").is_none() {
        let normal = stanza.local() == "message" && stanza.attr("type") == Some("normal");
        if let Some(found) = stanza.attr("type").filter(|_| !normal) {
            return Err(format!("<{}> has type='{found}' instead of none", stanza.local()));
        }
    }
    *bindings = captured;
    Ok(())
}

fn element(pattern: &Element, found: &Element, bindings: &mut Bindings) -> Result<(), String> {
    let wildcard = pattern.local() == "any";
    if pattern.ns() != found.ns() || (!wildcard && pattern.local() != found.local()) {
        return Err(format!("{} instead of {}", describe(found), describe(pattern)));
    }
    let mode = pattern.attr(MODE);
    let place = found.local();
    for (name, expected) in pattern.attrs.iter().filter(|(name, _)| !is_mode(name)) {
        let actual = found.attrs.get(name);
        if expected == "{none}" {
            if let Some(actual) = actual {
                return Err(format!("<{place}> has {}='{actual}', which must not be there", name.1));
            }
            continue;
        }
        let actual = actual.ok_or_else(|| format!("<{place}> has no attribute {}", name.1))?;
        value(expected, actual, bindings).map_err(|e| format!("<{place} {}>: {e}", name.1))?;
    }
    if mode == Some("exact") {
        let extra = found.attrs.keys().find(|name| !pattern.attrs.contains_key(*name));
        if let Some(name) = extra {
            return Err(format!("<{place}> has an attribute {} too many", name.1));
        }
    }
    let expected_text = pattern.text();
    let expected_text = expected_text.trim();
    let actual_text = found.text();
    if !expected_text.is_empty() {
        value(expected_text, actual_text.trim(), bindings).map_err(|e| format!("text of <{place}>: {e}"))?;
    } else if matches!(mode, Some("exact" | "empty")) && !actual_text.trim().is_empty() {
        return Err(format!("<{place}> has text: {actual_text:?}"));
    }
    let patterns: Vec<&Element> = pattern.children().collect();
    let (absent, wanted): (Vec<_>, Vec<_>) =
        patterns.into_iter().partition(|p| p.attr(MODE) == Some("absent"));
    for pattern in absent {
        let mut scratch = bindings.clone();
        if let Some(child) = found.children().find(|child| element(pattern, child, &mut scratch).is_ok()) {
            return Err(format!("<{place}> contains {}, which must not be there", describe(child)));
        }
    }
    let available: Vec<&Element> = found.children().collect();
    let strict = matches!(mode, Some("exact" | "empty"));
    if strict && available.len() > wanted.len() {
        return Err(format!("<{place}> has {} children instead of {}", available.len(), wanted.len()));
    }
    children(&wanted, &available, &mut vec![false; available.len()], bindings)
        .map_err(|e| format!("in <{place}>: {e}"))
}

/// Finds a different child for every pattern, going back where an early choice spoils a later one.
fn children(
    wanted: &[&Element],
    available: &[&Element],
    used: &mut [bool],
    bindings: &mut Bindings,
) -> Result<(), String> {
    let Some((first, rest)) = wanted.split_first() else { return Ok(()) };
    let mut reason = None;
    for (i, child) in available.iter().enumerate() {
        if used[i] {
            continue;
        }
        let mut attempt = bindings.clone();
        let outcome = element(first, child, &mut attempt).and_then(|()| {
            used[i] = true;
            children(rest, available, used, &mut attempt).inspect_err(|_| used[i] = false)
        });
        match outcome {
            Ok(()) => {
                *bindings = attempt;
                return Ok(());
            }
            // The child with the right name tells most about what is wrong.
            Err(e) if child.name == first.name => reason = Some(e),
            Err(_) => {}
        }
    }
    Err(reason.unwrap_or_else(|| format!("no {}", describe(first))))
}

fn value(expected: &str, actual: &str, bindings: &mut Bindings) -> Result<(), String> {
    if expected == "*" || expected == "{any}" {
        return Ok(());
    }
    if let Some(name) = expected.strip_prefix('{').and_then(|e| e.strip_suffix("=any}")) {
        return match bindings.get(name) {
            Some(known) if known != actual => {
                Err(format!("'{actual}' instead of {{{name}}}, which is '{known}'"))
            }
            _ => {
                bindings.insert(name.to_owned(), actual.to_owned());
                Ok(())
            }
        };
    }
    if let Some(name) = expected.strip_prefix("{not ").and_then(|e| e.strip_suffix('}')) {
        let unwanted = bindings.get(name).ok_or_else(|| format!("nothing is known as {{{name}}}"))?;
        return if unwanted == actual { Err(format!("'{actual}' again, which must differ")) } else { Ok(()) };
    }
    let expected = substitute(expected, bindings)?;
    if expected == actual { Ok(()) } else { Err(format!("'{actual}' instead of '{expected}'")) }
}

fn is_mode(name: &Name) -> bool {
    name.0.is_empty() && name.1 == MODE
}

fn describe(element: &Element) -> String {
    format!("<{} xmlns='{}'>", element.local(), element.ns())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pattern: &str, stanza: &str) -> Result<Bindings, String> {
        let mut bindings = Bindings::from([("Romeo".to_owned(), "romeo@localhost".to_owned())]);
        let pattern = Element::parse(pattern, CLIENT_NS).unwrap();
        let stanza = Element::parse(stanza, CLIENT_NS).unwrap();
        compare(&pattern, &stanza, &mut bindings).map(|()| bindings)
    }

    #[test]
    fn subsets_match() {
        check("<iq type='set'/>", "<iq type='set' id='1'><x xmlns='u'/></iq>").unwrap();
        check("<m xmlns='u'><b/><a/></m>", "<m xmlns='u'>t<a k='1'/><c/><b/></m>").unwrap();
        check("<iq from='{Romeo}/r'/>", "<iq from='romeo@localhost/r'/>").unwrap();
        check("<x xmlns='u' a='*' b='{any}'/>", "<x xmlns='u' a='1' b=''/>").unwrap();
        check("<x xmlns='u'><any xmlns='v'/></x>", "<x xmlns='u'><whatever xmlns='v'/></x>").unwrap();
    }

    #[test]
    fn differences_are_seen() {
        for (pattern, stanza) in [
            ("<iq type='set'/>", "<iq type='get'/>"),
            ("<iq/>", "<message/>"),
            ("<iq/>", "<iq xmlns='jabber:server'/>"),
            ("<iq id='{none}'/>", "<iq id='1'/>"),
            ("<iq id='*'/>", "<iq/>"),
            ("<iq><a/><a/></iq>", "<iq><a/></iq>"),
            ("<iq><a xmlns='u'/></iq>", "<iq><a xmlns='v'/></iq>"),
            ("<iq><a scenario='absent'/></iq>", "<iq><a/></iq>"),
            ("<iq scenario='exact' id='1'/>", "<iq id='1' to='x'/>"),
            ("<iq scenario='empty'/>", "<iq><a/></iq>"),
            ("<iq scenario='empty'/>", "<iq>text</iq>"),
            ("<message><body>a</body></message>", "<message><body>b</body></message>"),
            ("<presence/>", "<presence type='unavailable'/>"),
            ("<message/>", "<message type='chat'/>"),
            ("<iq id='{a=any}' to='{a}'/>", "<iq id='1' to='2'/>"),
            ("<iq id='{not Romeo}'/>", "<iq id='romeo@localhost'/>"),
        ] {
            assert!(check(pattern, stanza).is_err(), "{pattern} must not match {stanza}");
        }
        check("<message/>", "<message type='normal'/>").unwrap();
    }

    #[test]
    fn captures_and_going_back() {
        let bound = check("<iq id='{a=any}'/>", "<iq id='7'/>").unwrap();
        assert_eq!(bound["a"], "7");
        // The first <i/> fits the first pattern, but then nothing is left for the second.
        let bound = check("<iq><i k='{x=any}'/><i k='1'/></iq>", "<iq><i k='1'/><i k='2'/></iq>").unwrap();
        assert_eq!(bound["x"], "2");
    }

    #[test]
    fn substitution() {
        let bindings = Bindings::from([("a".to_owned(), "1".to_owned())]);
        assert_eq!(substitute("x{a}y{{z}", &bindings).unwrap(), "x1y{z}");
        assert!(substitute("{b}", &bindings).is_err());
        assert!(substitute("{a", &bindings).is_err());
    }
}

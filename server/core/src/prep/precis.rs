//! The PRECIS string classes and profiles (RFC 8264, RFC 8265), derived from Unicode properties.
//!
//! Derived, not read from a table: the published tables stop at Unicode 6.3, and names in newer
//! scripts or nicknames with newer symbols would be refused. The property data is the one that
//! IDNA processing carries already.
//!
//! What must hold: the order of the rules in [`derived`] is the one of RFC 8264 8; a profile
//! never returns a string that it would not return unchanged.

use icu_normalizer::properties::CanonicalCombiningClassMap;
use icu_normalizer::{ComposingNormalizer, DecomposingNormalizer};
use icu_properties::props::{
    BidiClass, DefaultIgnorableCodePoint, GeneralCategory, HangulSyllableType, JoiningType,
    NoncharacterCodePoint, Script,
};
use icu_properties::{CodePointMapData, CodePointSetData};
use smallvec::SmallVec;

/// A string class (RFC 8264 4).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// Letters, digits and printable ASCII.
    Identifier,
    /// Nearly everything that is visible, and spaces.
    Freeform,
}

/// Derived property of a code point (RFC 8264 8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Derived {
    /// Allowed in both classes.
    Valid,
    /// Allowed in the free-form class only.
    FreeformOnly,
    /// Allowed where a rule of RFC 5892, appendix A, holds (CONTEXTJ and CONTEXTO).
    Contextual,
    /// Never allowed; unassigned code points are among these.
    Disallowed,
}

/// Derives the property of a code point. RFC 8264 8 forbids another order of the steps.
pub(super) fn derived(c: char) -> Derived {
    use GeneralCategory as Gc;
    // Exceptions (RFC 5892 2.6).
    match c {
        '\u{df}' | '\u{3c2}' | '\u{6fd}' | '\u{6fe}' | '\u{f0b}' | '\u{3007}' => return Derived::Valid,
        '\u{b7}' | '\u{375}' | '\u{5f3}' | '\u{5f4}' | '\u{30fb}' => return Derived::Contextual,
        '\u{660}'..='\u{669}' | '\u{6f0}'..='\u{6f9}' => return Derived::Contextual,
        '\u{640}' | '\u{7fa}' | '\u{302e}' | '\u{302f}' | '\u{3031}'..='\u{3035}' | '\u{303b}' => {
            return Derived::Disallowed;
        }
        _ => {}
    }
    let category = CodePointMapData::<Gc>::new().get(c);
    if category == Gc::Unassigned {
        return Derived::Disallowed;
    }
    if ('\u{21}'..='\u{7e}').contains(&c) {
        return Derived::Valid;
    }
    if matches!(c, '\u{200c}' | '\u{200d}') {
        return Derived::Contextual;
    }
    let syllable = CodePointMapData::<HangulSyllableType>::new().get(c);
    if matches!(
        syllable,
        HangulSyllableType::LeadingJamo | HangulSyllableType::VowelJamo | HangulSyllableType::TrailingJamo
    ) || CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c)
        || CodePointSetData::new::<NoncharacterCodePoint>().contains(c)
        || category == Gc::Control
    {
        return Derived::Disallowed;
    }
    if !ComposingNormalizer::new_nfkc().is_normalized(c.encode_utf8(&mut [0; 4])) {
        return Derived::FreeformOnly;
    }
    match category {
        Gc::UppercaseLetter
        | Gc::LowercaseLetter
        | Gc::OtherLetter
        | Gc::ModifierLetter
        | Gc::DecimalNumber
        | Gc::NonspacingMark
        | Gc::SpacingMark => Derived::Valid,
        Gc::TitlecaseLetter | Gc::LetterNumber | Gc::OtherNumber | Gc::EnclosingMark => Derived::FreeformOnly,
        Gc::SpaceSeparator => Derived::FreeformOnly,
        Gc::MathSymbol | Gc::CurrencySymbol | Gc::ModifierSymbol | Gc::OtherSymbol => Derived::FreeformOnly,
        Gc::ConnectorPunctuation
        | Gc::DashPunctuation
        | Gc::OpenPunctuation
        | Gc::ClosePunctuation
        | Gc::InitialPunctuation
        | Gc::FinalPunctuation
        | Gc::OtherPunctuation => Derived::FreeformOnly,
        _ => Derived::Disallowed,
    }
}

/// True when every character of the string is allowed in the class, where it stands.
pub(super) fn in_class(s: &str, class: Class) -> bool {
    let chars: SmallVec<[char; 64]> = s.chars().collect();
    chars.iter().enumerate().all(|(i, &c)| match derived(c) {
        Derived::Valid => true,
        Derived::FreeformOnly => class == Class::Freeform,
        Derived::Contextual => context_allows(&chars, i),
        Derived::Disallowed => false,
    })
}

/// The contextual rules of RFC 5892, appendix A, for the character at `at`.
fn context_allows(chars: &[char], at: usize) -> bool {
    let script = |c: char| CodePointMapData::<Script>::new().get(c);
    let before = at.checked_sub(1).map(|i| chars[i]);
    let after = chars.get(at + 1).copied();
    match chars[at] {
        '\u{200d}' => before.is_some_and(is_virama),
        '\u{200c}' => before.is_some_and(is_virama) || joins_both_sides(chars, at),
        '\u{b7}' => before == Some('l') && after == Some('l'),
        '\u{375}' => after.is_some_and(|c| script(c) == Script::Greek),
        '\u{5f3}' | '\u{5f4}' => before.is_some_and(|c| script(c) == Script::Hebrew),
        '\u{30fb}' => {
            chars.iter().any(|&c| matches!(script(c), Script::Hiragana | Script::Katakana | Script::Han))
        }
        '\u{660}'..='\u{669}' => !chars.iter().any(|c| ('\u{6f0}'..='\u{6f9}').contains(c)),
        '\u{6f0}'..='\u{6f9}' => !chars.iter().any(|c| ('\u{660}'..='\u{669}').contains(c)),
        _ => false,
    }
}

/// Canonical_Combining_Class=Virama.
fn is_virama(c: char) -> bool {
    CanonicalCombiningClassMap::new().get_u8(c) == 9
}

/// RFC 5892 A.1: a letter that joins to the right, marks, the non-joiner, marks, a letter that
/// joins to the left.
fn joins_both_sides(chars: &[char], at: usize) -> bool {
    let joining = |c: &char| CodePointMapData::<JoiningType>::new().get(*c);
    let mut before = chars[..at].iter().rev().map(joining).skip_while(|&j| j == JoiningType::Transparent);
    let mut after = chars[at + 1..].iter().map(joining).skip_while(|&j| j == JoiningType::Transparent);
    matches!(before.next(), Some(JoiningType::LeftJoining | JoiningType::DualJoining))
        && matches!(after.next(), Some(JoiningType::RightJoining | JoiningType::DualJoining))
}

/// The UsernameCaseMapped profile (RFC 8265 3.3). `None`: the string does not conform.
pub(super) fn username_case_mapped(s: &str) -> Option<String> {
    let wide = map_width(s);
    if !in_class(&wide, Class::Identifier) {
        return None;
    }
    // Character by character: the profile does not know the special case of a final sigma, which
    // `str::to_lowercase` applies (RFC 8265 3.6, example 7).
    let lower: String = wide.chars().flat_map(char::to_lowercase).collect();
    let out = ComposingNormalizer::new_nfc().normalize(&lower).into_owned();
    (in_class(&out, Class::Identifier) && bidi_rule_holds(&out)).then_some(out)
}

/// The OpaqueString profile (RFC 8265 4.2). `None`: the string does not conform.
pub(super) fn opaque_string(s: &str) -> Option<String> {
    if !in_class(s, Class::Freeform) {
        return None;
    }
    let category = CodePointMapData::<GeneralCategory>::new();
    let spaced: String =
        s.chars().map(|c| if category.get(c) == GeneralCategory::SpaceSeparator { ' ' } else { c }).collect();
    let out = ComposingNormalizer::new_nfc().normalize(&spaced).into_owned();
    // Normalization can move a character out of the context that it needs: U+0387 becomes U+00B7.
    in_class(&out, Class::Freeform).then_some(out)
}

/// Maps fullwidth and halfwidth characters to their decompositions. Those are all in one block,
/// but for U+3000, whose decomposition is a space, which no identifier may hold anyway.
fn map_width(s: &str) -> String {
    let normalizer = DecomposingNormalizer::new_nfkd();
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        if ('\u{ff01}'..='\u{ffee}').contains(&c) {
            out.extend(normalizer.normalize_iter(std::iter::once(c)));
        } else {
            out.push(c);
        }
    }
    out
}

/// The Bidi Rule (RFC 5893 2), which concerns strings with a right-to-left character only.
fn bidi_rule_holds(s: &str) -> bool {
    use BidiClass as B;
    let classes: SmallVec<[BidiClass; 64]> =
        s.chars().map(|c| CodePointMapData::<BidiClass>::new().get(c)).collect();
    let has = |wanted: BidiClass| classes.contains(&wanted);
    if !has(B::RightToLeft) && !has(B::ArabicLetter) && !has(B::ArabicNumber) {
        return true;
    }
    let neutral = |c: BidiClass| {
        matches!(
            c,
            B::EuropeanNumber
                | B::EuropeanSeparator
                | B::CommonSeparator
                | B::EuropeanTerminator
                | B::OtherNeutral
                | B::BoundaryNeutral
                | B::NonspacingMark
        )
    };
    let last = classes.iter().copied().rfind(|&c| c != B::NonspacingMark);
    match classes.first() {
        Some(&(B::RightToLeft | B::ArabicLetter)) => {
            classes
                .iter()
                .all(|&c| neutral(c) || matches!(c, B::RightToLeft | B::ArabicLetter | B::ArabicNumber))
                && matches!(
                    last,
                    Some(B::RightToLeft | B::ArabicLetter | B::EuropeanNumber | B::ArabicNumber)
                )
                && !(has(B::EuropeanNumber) && has(B::ArabicNumber))
        }
        // A left-to-right string may hold no right-to-left character, and this one does.
        _ => false,
    }
}

/// UTS 39 5.2, "highly restrictive": one script, or Latin with the scripts that Japanese,
/// Chinese and Korean text mixes.
pub(super) fn mixes_scripts(s: &str) -> bool {
    let mut seen: SmallVec<[Script; 4]> = SmallVec::new();
    for c in s.chars() {
        let script = CodePointMapData::<Script>::new().get(c);
        if !matches!(script, Script::Common | Script::Inherited) && !seen.contains(&script) {
            seen.push(script);
        }
    }
    let allowed: [&[Script]; 3] = [
        &[Script::Latin, Script::Han, Script::Hiragana, Script::Katakana],
        &[Script::Latin, Script::Han, Script::Bopomofo],
        &[Script::Latin, Script::Han, Script::Hangul],
    ];
    seen.len() > 1 && !allowed.iter().any(|set| seen.iter().all(|script| set.contains(script)))
}

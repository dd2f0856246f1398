use std::borrow::Cow;

use proptest::prelude::*;

use super::PrepError::{Empty, Forbidden, TooLong};
use super::precis::{Derived, derived};
use super::*;

type Outcome<'a> = Result<&'a str, PrepError>;

#[track_caller]
fn check(prep: fn(&str) -> Result<Cow<'_, str>, PrepError>, table: &[(&str, Outcome<'_>)]) {
    for (input, expected) in table {
        let outcome = prep(input);
        assert_eq!(outcome.as_deref(), expected.as_ref().copied(), "input {input:?}");
        if let Ok(once) = outcome {
            assert_eq!(prep(&once).as_deref(), Ok(&*once), "{input:?} is not stable");
        }
    }
}

/// Every input that rows A9 and F8 name, with its one outcome.
#[test]
fn a9_f8_localparts() {
    check(
        localpart,
        &[
            ("juliet", Ok("juliet")),
            ("JuliET", Ok("juliet")),
            ("foo\\20bar", Ok("foo\\20bar")),
            ("#c%irc.example+!~`{|}^[]*()=,;?$", Ok("#c%irc.example+!~`{|}^[]*()=,;?$")),
            // Compatibility characters are refused, not turned into another name.
            ("\u{2168}", Err(Forbidden)),
            ("user\u{2168}", Err(Forbidden)),
            ("\u{aa}", Err(Forbidden)),
            ("\u{212a}elvin", Err(Forbidden)),
            ("\u{212b}ngstr", Err(Forbidden)),
            ("o\u{fb03}ce", Err(Forbidden)),
            // Invisible ones too.
            ("us\u{ad}er", Err(Forbidden)),
            ("us\u{1806}er", Err(Forbidden)),
            ("us\u{200b}er", Err(Forbidden)),
            ("us\u{feff}er", Err(Forbidden)),
            ("us\u{200d}er", Err(Forbidden)),
            ("us\u{200c}er", Err(Forbidden)),
            ("us\u{2060}er", Err(Forbidden)),
            ("us\u{202e}er", Err(Forbidden)),
            // Joiners where a script needs them (RFC 5892 A.1, A.2).
            ("\u{915}\u{94d}\u{200d}\u{937}", Ok("\u{915}\u{94d}\u{200d}\u{937}")),
            ("\u{645}\u{627}\u{200c}\u{62e}", Err(Forbidden)),
            ("\u{645}\u{6cc}\u{200c}\u{62e}", Ok("\u{645}\u{6cc}\u{200c}\u{62e}")),
            // Normalization: both spellings are one account.
            ("caf\u{e9}", Ok("caf\u{e9}")),
            ("cafe\u{301}", Ok("caf\u{e9}")),
            ("CAFE\u{301}", Ok("caf\u{e9}")),
            ("CAF\u{c9}", Ok("caf\u{e9}")),
            // Case.
            ("\u{130}stanbul", Ok("i\u{307}stanbul")),
            ("I\u{307}stanbul", Ok("i\u{307}stanbul")),
            ("\u{131}", Ok("\u{131}")),
            ("fu\u{df}ball", Ok("fu\u{df}ball")),
            ("FU\u{1e9e}BALL", Ok("fu\u{df}ball")),
            ("\u{39f}\u{3a3}", Ok("\u{3bf}\u{3c3}")),
            ("\u{3bf}\u{3c2}", Ok("\u{3bf}\u{3c2}")),
            // Width.
            ("\u{ff35}ser", Ok("user")),
            ("\u{ff76}\u{ff9e}", Ok("\u{30ac}")),
            ("user\u{ff20}host", Err(Forbidden)),
            ("user\u{ff0f}r", Err(Forbidden)),
            // Right to left.
            ("\u{5d0}\u{5d1}\u{5d2}", Ok("\u{5d0}\u{5d1}\u{5d2}")),
            ("\u{5d0}\u{5d1}1", Ok("\u{5d0}\u{5d1}1")),
            ("1\u{5d0}", Err(Forbidden)),
            ("a\u{5d0}", Err(Forbidden)),
            ("\u{5d0}a", Err(Forbidden)),
            ("\u{5d0}1\u{661}", Err(Forbidden)),
            ("\u{661}\u{6f1}", Err(Forbidden)),
            // Unassigned, private use, noncharacters, controls.
            ("a\u{378}", Err(Forbidden)),
            ("a\u{e000}", Err(Forbidden)),
            ("a\u{fffe}", Err(Forbidden)),
            ("a\u{fffd}", Err(Forbidden)),
            ("a\0", Err(Forbidden)),
            ("a\u{7f}", Err(Forbidden)),
            ("a\u{85}", Err(Forbidden)),
            ("a\tb", Err(Forbidden)),
            ("a\u{a0}b", Err(Forbidden)),
            // Look-alikes of another script are another name.
            ("\u{440}\u{430}\u{443}\u{440}\u{430}l", Ok("\u{440}\u{430}\u{443}\u{440}\u{430}l")),
            // Contextual punctuation.
            ("a\u{b7}le", Err(Forbidden)),
            ("col\u{b7}lega", Ok("col\u{b7}lega")),
            ("\u{30a2}\u{30fb}\u{30a2}", Ok("\u{30a2}\u{30fb}\u{30a2}")),
            ("a\u{30fb}a", Err(Forbidden)),
            ("", Err(Empty)),
        ],
    );
}

#[test]
fn f8_characters_of_rfc7622_3_3_1_are_refused() {
    for c in "\"&'/:<>@ ".chars() {
        assert_eq!(localpart(&format!("a{c}b")), Err(Forbidden), "{c:?}");
        assert_eq!(localpart(&format!("\u{e9}{c}b")), Err(Forbidden), "{c:?} beside other letters");
    }
}

#[test]
fn f8_domains() {
    let long_label = "a".repeat(63);
    let longest = [&*long_label, &*long_label, &*long_label, &"a".repeat(61)].join(".");
    let too_long = [&*long_label, &*long_label, &*long_label, &"a".repeat(62)].join(".");
    // Short enough as a JID part, but not in the form that DNS sees.
    let wide_label = "\u{fc}".repeat(62);
    check(
        domain,
        &[
            ("example.com", Ok("example.com")),
            ("EXAMPLE.com", Ok("example.com")),
            ("localhost", Ok("localhost")),
            ("127.0.0.1", Ok("127.0.0.1")),
            ("a-b.c--d.example", Ok("a-b.c--d.example")),
            // One final dot goes; no other empty label is allowed.
            ("example.com.", Ok("example.com")),
            ("example.com\u{3002}", Ok("example.com")),
            ("example\u{ff0e}com", Ok("example.com")),
            ("example.com..", Err(Forbidden)),
            ("example.com.\u{3002}", Err(Forbidden)),
            ("example..com", Err(Forbidden)),
            (".example.com", Err(Forbidden)),
            (".", Err(Empty)),
            ("", Err(Empty)),
            // Both forms of an internationalized name are one.
            ("b\u{fc}cher.example", Ok("b\u{fc}cher.example")),
            ("BU\u{308}CHER.example", Ok("b\u{fc}cher.example")),
            ("xn--bcher-kva.example", Ok("b\u{fc}cher.example")),
            ("XN--Bcher-KVA.example", Ok("b\u{fc}cher.example")),
            ("stra\u{df}e.example", Ok("stra\u{df}e.example")),
            ("\u{ff45}xample.com", Ok("example.com")),
            ("\u{212a}elvin.example", Ok("kelvin.example")),
            ("\u{130}.example", Ok("i\u{307}.example")),
            ("ex\u{ad}ample.com", Ok("example.com")),
            ("\u{2168}.example", Ok("ix.example")),
            // Malformed A-labels (RUSTSEC-2024-0421 is the second).
            ("xn--a", Err(Forbidden)),
            ("xn--example-.org", Err(Forbidden)),
            ("xn--.example", Err(Forbidden)),
            ("xn--\u{fc}.example", Err(Forbidden)),
            ("xn--zzzzzzzzzzzzzz", Err(Forbidden)),
            ("xn--0ca24w", Err(Forbidden)),
            // Symbols, joiners out of context, look-alikes of separators, ASCII outside LDH.
            ("i\u{2764}.example", Err(Forbidden)),
            ("a\u{200d}b.example", Err(Forbidden)),
            ("a\u{ff20}b.example", Err(Forbidden)),
            ("a\u{ff0f}b.example", Err(Forbidden)),
            ("a\u{2044}b.example", Err(Forbidden)),
            ("a\u{b7}le.example", Err(Forbidden)),
            ("a_b.example", Err(Forbidden)),
            ("-a.example", Err(Forbidden)),
            ("a-.example", Err(Forbidden)),
            ("a b.example", Err(Forbidden)),
            ("a:5222", Err(Forbidden)),
            ("a\0b", Err(Forbidden)),
            ("a@b", Err(Forbidden)),
            ("a\u{378}.example", Err(Forbidden)),
            ("a\u{5d0}.example", Err(Forbidden)),
            // IPv6 in brackets, one spelling.
            ("[::1]", Ok("[::1]")),
            ("[0:0:0:0:0:0:0:1]", Ok("[::1]")),
            ("[2001:DB8::A]", Ok("[2001:db8::a]")),
            ("[2001:db8::a].", Ok("[2001:db8::a]")),
            ("::1", Err(Forbidden)),
            ("[::1", Err(Forbidden)),
            ("[::1]x", Err(Forbidden)),
            ("[fe80::1%25eth0]", Err(Forbidden)),
            ("[v1.a]", Err(Forbidden)),
            ("[]", Err(Forbidden)),
            // The limits of DNS.
            (&longest, Ok(&longest)),
            (&too_long, Err(TooLong)),
            (&"a".repeat(63), Ok(&long_label)),
            (&"a".repeat(64), Err(TooLong)),
            (&wide_label, Err(TooLong)),
            (&"a".repeat(1023), Err(TooLong)),
            (&"a".repeat(1024), Err(TooLong)),
            (&"a".repeat(5000), Err(TooLong)),
        ],
    );
}

#[test]
fn a9_f8_resources() {
    check(
        resource,
        &[
            ("Orchard / x@y", Ok("Orchard / x@y")),
            ("<&'\">", Ok("<&'\">")),
            ("\u{265a}", Ok("\u{265a}")),
            ("\u{1f916}", Ok("\u{1f916}")),
            ("trailing ", Ok("trailing ")),
            (" foo", Err(Forbidden)),
            ("\u{a0}foo", Err(Forbidden)),
            ("foo\u{1680}bar", Ok("foo bar")),
            ("foo\u{a0}bar", Ok("foo bar")),
            ("e\u{301}", Ok("\u{e9}")),
            ("\u{2168}", Ok("\u{2168}")),
            ("\u{aa}", Ok("\u{aa}")),
            ("\u{212a}", Ok("K")),
            ("\u{ff20}", Ok("\u{ff20}")),
            ("\u{130}", Ok("\u{130}")),
            ("a\u{5d0}1", Ok("a\u{5d0}1")),
            ("a\u{ad}", Err(Forbidden)),
            ("a\u{1806}", Ok("a\u{1806}")),
            ("a\u{200d}b", Err(Forbidden)),
            ("a\u{202e}b", Err(Forbidden)),
            ("a\u{378}", Err(Forbidden)),
            ("a\u{e000}", Err(Forbidden)),
            ("a\u{387}b", Err(Forbidden)),
            ("a\0", Err(Forbidden)),
            ("a\n", Err(Forbidden)),
            ("a\u{7f}", Err(Forbidden)),
            ("", Err(Empty)),
        ],
    );
}

/// RFC 4013 3 gives the first six; then row A9.
#[test]
fn a9_passwords() {
    check(
        password,
        &[
            ("I\u{ad}X", Ok("IX")),
            ("user", Ok("user")),
            ("USER", Ok("USER")),
            ("\u{aa}", Ok("a")),
            ("\u{2168}", Ok("IX")),
            ("\u{7}", Err(Forbidden)),
            ("\u{627}1", Err(Forbidden)),
            ("a\u{a0}b", Ok("a b")),
            ("\u{fb01}sh", Ok("fish")),
            ("e\u{301}", Ok("\u{e9}")),
            ("\u{bd}", Ok("1\u{2044}2")),
            ("\u{221}", Err(Forbidden)),
            ("\u{1f100}", Err(Forbidden)),
            ("\u{ad}", Err(Empty)),
            ("\u{1806}", Err(Empty)),
            ("", Err(Empty)),
        ],
    );
}

#[test]
fn a9_lengths_count_after_mapping() {
    for prep in [localpart, resource, password] {
        assert!(prep(&"a".repeat(1023)).is_ok());
        assert_eq!(prep(&"a".repeat(1024)), Err(TooLong));
        assert!(prep(&"\u{f6}".repeat(511)).is_ok());
        assert_eq!(prep(&"\u{f6}".repeat(512)), Err(TooLong));
        assert_eq!(prep(&"a".repeat(100_000)), Err(TooLong));
    }
    // 1,200 bytes that become 400, and 1,022 that become 1,533.
    assert_eq!(localpart(&"\u{ff41}".repeat(400)).as_deref(), Ok(&*"a".repeat(400)));
    assert_eq!(localpart(&"\u{130}".repeat(511)), Err(TooLong));
}

/// The tables of RFC 7622 3.5, as far as they concern single parts.
#[test]
fn examples_of_rfc7622() {
    for ok in ["juliet", "foo\\20bar", "fussball", "fu\u{df}ball", "\u{3c0}", "\u{3a3}", "\u{3c3}", "\u{3c2}"]
    {
        assert!(localpart(ok).is_ok(), "{ok}");
    }
    assert_eq!(localpart("\u{3a3}"), localpart("\u{3c3}"));
    assert_ne!(localpart("\u{3c3}"), localpart("\u{3c2}"));
    for bad in ["\"juliet\"", "foo bar", "", "henry\u{2163}", "\u{265a}"] {
        assert!(localpart(bad).is_err(), "{bad}");
    }
    assert!(resource("foo bar").is_ok() && resource("foo@bar").is_ok() && resource("\u{265a}").is_ok());
    assert!(resource(" foo").is_err() && resource("").is_err());
}

#[test]
fn canonical_ascii_is_not_copied() {
    assert!(matches!(localpart("juliet"), Ok(Cow::Borrowed(_))));
    assert!(matches!(domain("chat.example.com."), Ok(Cow::Borrowed(_))));
    assert!(matches!(resource("Balcony 1"), Ok(Cow::Borrowed(_))));
    assert!(matches!(password("pencil"), Ok(Cow::Borrowed(_))));
}

#[test]
fn f8_scripts_that_no_writing_system_mixes_are_found() {
    for mixed in [
        "p\u{430}ypal",
        "\u{440}\u{430}\u{443}\u{440}\u{430}l",
        "\u{3b1}b",
        "\u{430}\u{3b1}",
        "\u{3b1}\u{6f22}",
    ] {
        assert!(mixes_scripts(mixed), "{mixed}");
    }
    for single in [
        "paypal1",
        "caf\u{e9}_2",
        "\u{440}\u{430}\u{443}3",
        "e\u{30f}",
        "\u{6f22}\u{304b}\u{30ab}a",
        "\u{d55c}\u{6f22}a",
        "\u{5d0}1",
    ] {
        assert!(!mixes_scripts(single), "{single}");
    }
}

/// Code points of each rule of RFC 8264 9, with their value in the registry of PRECIS
/// properties (Unicode 6.3), and one that is younger than it.
#[test]
fn derived_properties() {
    use Derived::{Contextual, Disallowed, FreeformOnly, Valid};
    for (c, expected) in [
        ('!', Valid),
        ('~', Valid),
        (' ', FreeformOnly),
        ('\u{df}', Valid),
        ('\u{b7}', Contextual),
        ('\u{640}', Disallowed),
        ('\u{661}', Contextual),
        ('\u{378}', Disallowed),
        ('\u{200d}', Contextual),
        ('\u{1100}', Disallowed),
        ('\u{ac00}', Valid),
        ('\u{ad}', Disallowed),
        ('\u{fdd0}', Disallowed),
        ('\u{9}', Disallowed),
        ('\u{2168}', FreeformOnly),
        ('\u{e9}', Valid),
        ('\u{4e00}', Valid),
        ('\u{1c5}', FreeformOnly),
        ('\u{20dd}', FreeformOnly),
        ('\u{3000}', FreeformOnly),
        ('\u{265a}', FreeformOnly),
        ('\u{2014}', FreeformOnly),
        ('\u{2028}', Disallowed),
        ('\u{e000}', Disallowed),
        ('\u{1f916}', FreeformOnly),
    ] {
        assert_eq!(derived(c), expected, "U+{:04X}", c as u32);
    }
}

/// Every character alone, and with a mark that composes with many of them.
#[test]
fn preparation_is_stable_for_every_character() {
    for c in (0..=0x10ffff).filter_map(char::from_u32) {
        for s in [c.to_string(), format!("{c}\u{301}"), format!("l{c}l")] {
            for prep in [localpart, domain, resource, password] {
                if let Ok(once) = prep(&s) {
                    assert_eq!(prep(&once).as_deref(), Ok(&*once), "{s:?}");
                }
            }
        }
    }
}

/// Strings that reach the interesting paths more often than random characters do.
fn awkward() -> impl Strategy<Value = String> {
    let special = "aAzZ09.-_@/ \u{130}\u{131}\u{df}\u{1e9e}\u{3a3}\u{3c2}\u{301}\u{307}\u{327}\u{345}\u{94d}\u{915}\
                   \u{200c}\u{200d}\u{b7}\u{387}l\u{30fb}\u{30a2}\u{ff76}\u{ff9e}\u{ff20}\u{ff0e}\u{3002}\u{5d0}\
                   \u{627}\u{661}\u{6f1}\u{a0}\u{2000}\u{212a}\u{1fef}\u{ad}\u{1f916}\u{1100}\u{1161}\u{ac00}\u{2126}";
    let special: Vec<char> = special.chars().filter(|c| *c != '\n').collect();
    prop_oneof![
        proptest::collection::vec(
            prop_oneof![8 => proptest::sample::select(special), 1 => any::<char>()],
            0..12
        )
        .prop_map(|chars| chars.into_iter().collect()),
        any::<String>(),
        "xn--[a-z0-9-]{0,12}(\\.[a-z]{1,4})?",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn a9_preparation_is_stable(s in awkward()) {
        for prep in [localpart, domain, resource, password] {
            if let Ok(once) = prep(&s) {
                let twice = prep(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(once.len() <= MAX_PART && !once.is_empty());
            }
        }
        if let Ok(local) = localpart(&s) {
            prop_assert!(!local.contains(['@', '/', ' ', '<', '&', '\'', '"', '\0']));
        }
        if let Ok(domain) = domain(&s) {
            prop_assert!(!domain.contains(['@', '/', ' ', '\0']) && !domain.ends_with('.'));
        }
    }

    /// The ASCII path is a short cut: it decides as the general rules do.
    #[test]
    fn ascii_paths_agree_with_the_profiles(s in "[ -~]{1,20}") {
        let general = precis::username_case_mapped(&s).filter(|s| !s.bytes().any(forbidden_in_localpart));
        prop_assert_eq!(localpart(&s).ok().map(Cow::into_owned), general);
        let general = precis::opaque_string(&s).filter(|s| !s.starts_with(' '));
        prop_assert_eq!(resource(&s).ok().map(Cow::into_owned), general);
    }

    #[test]
    fn ascii_domains_agree_with_idna(s in "[a-z0-9.-]{1,20}") {
        if is_canonical_ascii_domain(&s) {
            let (out, result) = Uts46::new().to_unicode(s.as_bytes(), AsciiDenyList::STD3, Hyphens::CheckFirstLast);
            prop_assert!(result.is_ok());
            prop_assert_eq!(&*out, &*s);
        }
    }
}

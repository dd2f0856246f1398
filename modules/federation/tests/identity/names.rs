//! Names: which of a certificate's counts, and what it matches.

use rcgen::DnType;
use waystation_federation::Trust;
use waystation_federation::identity::{Role, Unproven, describe, proves};

use crate::common::*;

#[test]
fn t8_a_a_dns_name_proves_exactly_its_domain() {
    let authority = Authority::new();
    for (name, domain, expected) in [
        ("example.org", "example.org", true),
        ("EXAMPLE.org", "example.ORG", true),
        ("example.org", "example.org.", true),
        ("example.org", "a.example.org", false),
        ("a.example.org", "example.org", false),
        ("example.org", "badexample.org", false),
        ("example.org", "example.org.attacker.example", false),
        ("example.org.", "example.org", false),
        ("example.org ", "example.org", false),
        ("", "example.org", false),
        ("localhost", "localhost", true),
        ("under_score.example.org", "under_score.example.org", true),
    ] {
        assert_eq!(name_proves(&authority, dns(name), domain), expected, "{name:?} for {domain:?}");
    }
    let several = authority.issue(&[dns("other.example"), dns("example.org"), xmpp("third.example")]);
    for domain in ["other.example", "example.org", "third.example"] {
        proven(&authority, &several, domain).unwrap();
    }
}

#[test]
fn t8_b_a_wildcard_stands_for_one_label() {
    let authority = Authority::new();
    for (domain, expected) in [
        ("a.example.org", true),
        ("A.Example.Org", true),
        ("xn--tda.example.org", true),
        ("example.org", false),
        ("a.b.example.org", false),
        ("a.other.org", false),
        (".example.org", false),
        ("*.example.org", false),
    ] {
        assert_eq!(name_proves(&authority, dns("*.example.org"), domain), expected, "{domain}");
    }
}

#[test]
fn t8_c_a_wildcard_is_the_whole_first_label_and_never_below_a_single_one() {
    let authority = Authority::new();
    for (name, domain) in [
        ("*.org", "example.org"),
        ("*.", "org"),
        ("*", "org"),
        ("*", "example.org"),
        ("x*.example.org", "xa.example.org"),
        ("*x.example.org", "ax.example.org"),
        ("**.example.org", "a.example.org"),
        ("a.*.example.org", "a.b.example.org"),
        ("*.*.example.org", "a.b.example.org"),
        ("*.example.*", "a.example.org"),
        ("*.org.", "example.org"),
        ("*..org", "a.org"),
    ] {
        assert!(!name_proves(&authority, dns(name), domain), "{name} for {domain}");
    }
    // Only dNSNames have wildcards.
    assert!(!name_proves(&authority, srv("_xmpp-server.*.example.org"), "a.example.org"));
    assert!(!name_proves(&authority, xmpp("*.example.org"), "a.example.org"));
}

#[test]
fn t8_d_the_common_name_proves_nothing() {
    let authority = Authority::new();
    for names in [&[][..], &[dns("other.example")]] {
        let certificate = authority.issue_with(names, |params| {
            params.distinguished_name.push(DnType::CommonName, "victim.org");
        });
        let refused = proven(&authority, &certificate, "victim.org").unwrap_err();
        assert!(matches!(refused, Unproven::OtherNames { .. }), "{refused}");
    }
}

#[test]
fn t8_e_a_subject_that_contains_the_text_of_a_common_name_proves_nothing() {
    let authority = Authority::new();
    let certificate = authority.issue_with(&[], |params| {
        params.distinguished_name.push(DnType::OrganizationalUnitName, "CN=victim.org,");
    });
    let refused = proven(&authority, &certificate, "victim.org").unwrap_err();
    assert!(matches!(refused, Unproven::OtherNames { .. }), "{refused}");
}

#[test]
fn t8_f_an_srv_name_proves_its_domain_for_servers_only() {
    let authority = Authority::new();
    let cases = [
        (srv("_xmpp-server.victim.org"), true),
        (srv("_XMPP-Server.Victim.org"), true),
        (srv("_xmpp-client.victim.org"), false),
        (srv("_xmpps-server.victim.org"), false),
        (srv("victim.org"), false),
        (srv("_xmpp-server.a.victim.org"), false),
        (srv("_xmpp-server._xmpp-server.victim.org"), false),
        (srv("_xmpp-server."), false),
        (srv("_xmpp-serverévictim.org"), false),
        (other(SRV, UTF8_STRING, "_xmpp-server.victim.org"), false),
        (dns("_xmpp-server.victim.org"), false),
        (xmpp("_xmpp-server.victim.org"), false),
    ];
    for (name, expected) in cases {
        assert_eq!(name_proves(&authority, name.clone(), "victim.org"), expected, "{name:?}");
    }
}

#[test]
fn t8_g_an_xmpp_address_proves_a_domain_if_it_is_one() {
    let authority = Authority::new();
    let cases = [
        (xmpp("victim.org"), true),
        (xmpp("VICTIM.org"), true),
        (xmpp("user@victim.org"), false),
        (xmpp("victim.org/resource"), false),
        (xmpp("@victim.org"), false),
        (xmpp("a.victim.org"), false),
        (other(XMPP, IA5_STRING, "victim.org"), false),
        // Of another kind: id-on-smtpUtf8Mailbox.
        (other(9, UTF8_STRING, "victim.org"), false),
    ];
    for (name, expected) in cases {
        assert_eq!(name_proves(&authority, name.clone(), "victim.org"), expected, "{name:?}");
    }
    let value = tlv(UTF8_STRING, b"victim.org");
    let kind = tlv(6, &[0x2b, 6, 1, 5, 5, 7, 8, XMPP]);
    for wrong in [
        tlv(0xa0, &[kind.clone(), value.clone()].concat()),
        tlv(0xa0, &[kind.clone(), tlv(0xa1, &value)].concat()),
        tlv(0xa0, &[kind.clone(), tlv(0xa0, &[value.clone(), value.clone()].concat())].concat()),
        tlv(0xa0, &[kind.clone(), tlv(0xa0, &value), value.clone()].concat()),
        tlv(0xa0, &kind),
    ] {
        assert!(!name_proves(&authority, wrong.clone(), "victim.org"), "{wrong:?}");
    }
}

#[test]
fn t8_h_names_with_characters_that_no_name_has_prove_nothing() {
    let authority = Authority::new();
    for name in [
        &b"victim.org\0.attacker.example"[..],
        b"victim.org\0",
        b"\0victim.org",
        b"victim\0.org",
        b"victim.org\n",
        b"victim.org\x7f",
        b"victim.org\t",
        b"victim.org\xff",
    ] {
        assert!(!name_proves(&authority, dns(name), "victim.org"), "{name:?}");
        assert!(!name_proves(&authority, xmpp(name), "victim.org"), "{name:?}");
        assert!(!name_proves(&authority, srv([b"_xmpp-server.", name].concat()), "victim.org"), "{name:?}");
    }
    // What is shown of it cannot write into a log.
    let refused = proven(&authority, &authority.issue(&[dns(b"a\nb\x1b[2J\0")]), "victim.org").unwrap_err();
    assert!(!refused.to_string().contains(char::is_control), "{refused}");
}

#[test]
fn t8_j_the_target_of_srv_proves_nothing() {
    let authority = Authority::new();
    let certificate = authority.issue(&[dns("xmpp1.hosting.example")]);
    proven(&authority, &certificate, "xmpp1.hosting.example").unwrap();
    assert!(proven(&authority, &certificate, "customer.example").is_err());
}

#[test]
fn t8_k_internationalised_names_match_in_either_form() {
    let authority = Authority::new();
    for domain in ["münchen.example", "MÜNCHEN.example", "xn--mnchen-3ya.example", "XN--MNCHEN-3YA.example"]
    {
        for name in [
            dns("xn--mnchen-3ya.example"),
            dns("XN--mnchen-3ya.EXAMPLE"),
            dns("münchen.example"),
            xmpp("münchen.example"),
            xmpp("xn--mnchen-3ya.example"),
            srv("_xmpp-server.xn--mnchen-3ya.example"),
        ] {
            assert!(name_proves(&authority, name.clone(), domain), "{name:?} for {domain}");
        }
        for name in [dns("munchen.example"), dns("xn--mnchen.example"), xmpp("munchen.example")] {
            assert!(!name_proves(&authority, name.clone(), domain), "{name:?} for {domain}");
        }
    }
    // What only looks like it, or is invisible, is another name, or none.
    for name in
        ["ex\u{ad}ample.org", "ｅxample.org", "example\u{3002}org", "exаmple.org", "example.org\u{200b}"]
    {
        assert!(!name_proves(&authority, xmpp(name), "example.org"), "{name:?}");
        assert!(!name_proves(&authority, dns(name), "example.org"), "{name:?}");
    }
    assert!(name_proves(&authority, dns("*.xn--mnchen-3ya.example"), "a.münchen.example"));
}

#[test]
fn addresses_are_never_proven() {
    let authority = Authority::new();
    for (name, domain) in [
        (tlv(0x87, &[192, 0, 2, 1]), "192.0.2.1"),
        (dns("192.0.2.1"), "192.0.2.1"),
        (tlv(0x87, &[0; 16]), "[::]"),
        (xmpp("[::1]"), "[::1]"),
    ] {
        let refused = proven(&authority, &authority.issue(&[name]), domain).unwrap_err();
        assert_eq!(refused, Unproven::NotADomain(domain.into()));
    }
    // Nor by names of other kinds: mail, URI, a directory's.
    let names = [
        tlv(0x81, b"victim.org"),
        tlv(0x86, b"xmpp:victim.org"),
        tlv(0x86, b"victim.org"),
        tlv(0x88, b"\x2a"),
    ];
    assert!(proven(&authority, &authority.issue(&names), "victim.org").is_err());
}

#[test]
fn what_is_no_domain_is_never_proven() {
    let authority = Authority::new();
    let certificate = authority.issue(&[dns("example.org"), dns("*.example.org")]);
    let long = format!("{}.example.org", "a".repeat(64));
    for domain in ["", ".", "a..example.org", "exam ple.org", "a\0.example.org", "user@example.org", &long] {
        assert!(proven(&authority, &certificate, domain).is_err(), "{domain:?}");
    }
    let nobody = proves(&[], "example.org", &Trust::default(), Role::Client, std::time::SystemTime::now());
    assert_eq!(nobody, Err(Unproven::NoCertificate));
}

#[test]
fn a_description_names_names_and_the_end() {
    let authority = Authority::new();
    let certificate =
        authority.issue(&[dns("example.org"), srv("_xmpp-server.b.example"), xmpp("c.example")]);
    let text = describe(&certificate);
    assert!(text.contains("example.org, _xmpp-server.b.example, c.example"), "{text}");
    assert!(text.contains("4096"), "{text}");
    let many: Vec<_> = (0..5000).map(|n| dns(format!("{n}.{}", "x".repeat(10)))).collect();
    assert!(describe(&authority.issue(&many[..400])).len() < 3000);
    assert!(describe(&b"nothing"[..].into()).contains("cannot be read"));
}

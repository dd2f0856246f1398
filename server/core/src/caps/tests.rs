use proptest::prelude::*;

use super::*;
use crate::dataform::{Field, FieldKind, FormKind};
use crate::disco::Identity;

const EXODUS: &str = "<query xmlns='http://jabber.org/protocol/disco#info'
         node='http://code.google.com/p/exodus#QgayPKawpkPSDYmwT/WM94uAlu0='>
    <identity category='client' name='Exodus 0.9.1' type='pc'/>
    <feature var='http://jabber.org/protocol/caps'/>
    <feature var='http://jabber.org/protocol/disco#info'/>
    <feature var='http://jabber.org/protocol/disco#items'/>
    <feature var='http://jabber.org/protocol/muc'/>
  </query>";

const PSI: &str = "<query xmlns='http://jabber.org/protocol/disco#info'
         node='http://psi-im.org#q07IKJEyjvHSyhy//CH0CxmKi8w='>
    <identity xml:lang='en' category='client' name='Psi 0.11' type='pc'/>
    <identity xml:lang='el' category='client' name='&#936; 0.11' type='pc'/>
    <feature var='http://jabber.org/protocol/caps'/>
    <feature var='http://jabber.org/protocol/disco#info'/>
    <feature var='http://jabber.org/protocol/disco#items'/>
    <feature var='http://jabber.org/protocol/muc'/>
    <x xmlns='jabber:x:data' type='result'>
      <field var='FORM_TYPE' type='hidden'><value>urn:xmpp:dataforms:softwareinfo</value></field>
      <field var='ip_version' type='text-multi'><value>ipv4</value><value>ipv6</value></field>
      <field var='os'><value>Mac</value></field>
      <field var='os_version'><value>10.5.1</value></field>
      <field var='software'><value>Psi</value></field>
      <field var='software_version'><value>0.11</value></field>
    </x>
  </query>";

fn info(xml: &str) -> DiscoInfo {
    DiscoInfo::parse(&Element::parse(xml.as_bytes(), "").unwrap()).unwrap()
}

fn caps(ver: &str) -> Caps {
    Caps { node: "urn:x".into(), ver: ver.into(), hash: Some(SHA_1.into()) }
}

/// Whether an answer would be taken for the hash that it gives itself.
fn accepted(info: &DiscoInfo) -> bool {
    verify(info, &caps(&verification_string(info))) == Verdict::Valid
}

fn form(form_type: &str, fields: &[(&str, &[&str])]) -> DataForm {
    let form = DataForm::new(FormKind::Result).with_form_type(form_type);
    fields.iter().fold(form, |form, (var, values)| {
        form.with_field(Field::new(FieldKind::TextMulti, *var).with_values(values.iter().copied()))
    })
}

#[test]
fn the_examples_of_xep_0115_5_2_and_5_3_give_their_hashes() {
    assert_eq!(verification_string(&info(EXODUS)), "QgayPKawpkPSDYmwT/WM94uAlu0=");
    assert_eq!(verification_string(&info(PSI)), "q07IKJEyjvHSyhy//CH0CxmKi8w=");
    assert_eq!(verify(&info(EXODUS), &caps("QgayPKawpkPSDYmwT/WM94uAlu0=")), Verdict::Valid);
    assert_eq!(verify(&info(PSI), &caps("q07IKJEyjvHSyhy//CH0CxmKi8w=")), Verdict::Valid);
    assert_eq!(verify(&info(PSI), &caps("QgayPKawpkPSDYmwT/WM94uAlu0=")), Verdict::Invalid);
}

#[test]
fn m3_other_hashes_and_the_old_format_hold_for_one_entity_only() {
    let ver = verification_string(&info(PSI));
    for hash in [None, Some("sha-256".to_owned()), Some("md5".to_owned()), Some("SHA-1".to_owned())] {
        assert_eq!(verify(&info(PSI), &Caps { hash, ..caps(&ver) }), Verdict::Unverified);
    }
}

#[test]
fn caps_are_read_and_written() {
    let xml = "<c xmlns='http://jabber.org/protocol/caps' hash='sha-1' node='urn:x' ver='abc='/>";
    let element = Element::parse(xml.as_bytes(), "").unwrap();
    let read = Caps::parse(&element).unwrap();
    assert_eq!(read, caps("abc="));
    assert_eq!(read.query_node(), "urn:x#abc=");
    assert_eq!(read.to_element(), element);
    for bad in
        ["<c xmlns='http://jabber.org/protocol/caps' node='a'/>", "<c xmlns='urn:y' node='a' ver='b'/>"]
    {
        assert_eq!(Caps::parse(&Element::parse(bad.as_bytes(), "").unwrap()), None);
    }
}

#[test]
fn m3_ill_formed_answers_are_invalid_as_xep_0115_5_4_says() {
    let good = info(PSI);
    assert!(accepted(&good));
    let spoil = |change: &dyn Fn(&mut DiscoInfo)| {
        let mut info = good.clone();
        change(&mut info);
        assert!(!accepted(&info), "{info:?}");
    };
    spoil(&|info| info.identities.push(info.identities[0].clone()));
    spoil(&|info| info.features.push(info.features[0].clone()));
    spoil(&|info| info.forms.push(form("urn:xmpp:dataforms:softwareinfo", &[("os", &["Mac"])])));
    spoil(&|info| info.forms[0].fields[0].values.push("urn:other".into()));
}

#[test]
fn forms_without_a_hidden_form_type_are_left_out() {
    let mut with_more = info(PSI);
    with_more.forms.push(DataForm::new(FormKind::Result).with_field(Field::new(FieldKind::TextSingle, "a")));
    let mut shown = form("urn:shown", &[("a", &["b"])]);
    shown.fields[0].kind = Some(FieldKind::TextSingle);
    with_more.forms.push(shown);
    assert_eq!(verify(&with_more, &caps("q07IKJEyjvHSyhy//CH0CxmKi8w=")), Verdict::Valid);
}

#[test]
fn m3_a_form_type_given_twice_with_one_value_counts_once() {
    let mut twice = info(PSI);
    twice.forms[0].fields[0].values.push("urn:xmpp:dataforms:softwareinfo".into());
    assert_eq!(verify(&twice, &caps("q07IKJEyjvHSyhy//CH0CxmKi8w=")), Verdict::Valid);
}

#[test]
fn escaped_text_is_hashed_as_the_text_that_it_stands_for() {
    let literal = DiscoInfo {
        identities: vec![
            Identity::new("client", "pc").with_name("SomeClient&lt;http://jabber.org/protocol/muc"),
        ],
        ..DiscoInfo::default()
    };
    let bracket = DiscoInfo {
        identities: vec![
            Identity::new("client", "pc").with_name("SomeClient<http://jabber.org/protocol/muc"),
        ],
        ..DiscoInfo::default()
    };
    assert_ne!(verification_string(&literal), verification_string(&bracket));
    assert!(accepted(&literal));
    assert!(!accepted(&bracket));
}

/// Pairs of an honest answer and a forged one with the same hash: one of each pair at least
/// must be refused, and it must be the forged one.
#[test]
fn m3_parts_moved_over_a_boundary_are_refused() {
    let mut honest = info(EXODUS);
    // A feature whose name could be that of a field.
    honest.features.push("vcard-temp".into());
    assert!(accepted(&honest));
    let moved = |change: &dyn Fn(&mut DiscoInfo)| {
        let mut forged = honest.clone();
        change(&mut forged);
        assert_eq!(verification_string(&forged), verification_string(&honest), "{forged:?}");
        assert!(!accepted(&forged), "{forged:?}");
    };
    // Features that disappear into the identity's name, or into one another.
    moved(&|info| {
        info.identities[0].name = Some(format!("Exodus 0.9.1<{}", info.features.remove(0)));
    });
    moved(&|info| {
        let last = info.features.pop().unwrap();
        let before = info.features.pop().unwrap();
        info.features.push(format!("{before}<{last}"));
    });
    // The identity as a feature.
    moved(&|info| {
        info.identities.clear();
        info.features.push("client/pc//Exodus 0.9.1".into());
    });
    // Features as a form, with and without a field, with and without values.
    moved(&|info| {
        let last = info.features.pop().unwrap();
        info.forms.push(form(&last, &[]));
    });
    moved(&|info| {
        let last = info.features.pop().unwrap();
        let before = info.features.pop().unwrap();
        info.forms.push(form(&before, &[(&last, &[])]));
    });
    moved(&|info| {
        let last = info.features.pop().unwrap();
        let before = info.features.pop().unwrap();
        let first = info.features.pop().unwrap();
        info.forms.push(form(&first, &[(&before, &[&last])]));
    });
}

#[test]
fn m3_an_identity_cannot_be_made_of_a_feature() {
    for (category, kind, lang, name) in [
        ("http:", "", "jabber.org", "protocol/caps"),
        ("urn:x", "pc", "", "n"),
        ("", "pc", "", "n"),
        ("a/b", "pc", "", "n"),
    ] {
        let identity = Identity { lang: Some(lang.into()), ..Identity::new(category, kind).with_name(name) };
        assert!(!accepted(&DiscoInfo { identities: vec![identity], ..DiscoInfo::default() }), "{category}");
    }
}

proptest! {
    #[test]
    fn the_order_of_parts_does_not_matter(seed in proptest::collection::vec(any::<u64>(), 4)) {
        let mut info = info(PSI);
        info.forms.push(form("urn:other", &[("z", &["2", "1"]), ("a", &["x"])]));
        let expected = verification_string(&info);
        let rotate = |len: usize, seed: u64| usize::try_from(seed).unwrap_or(0) % len.max(1);
        let (identities, features, forms) = (info.identities.len(), info.features.len(), info.forms.len());
        info.identities.rotate_left(rotate(identities, seed[0]));
        info.features.rotate_left(rotate(features, seed[1]));
        info.forms.rotate_left(rotate(forms, seed[2]));
        for form in &mut info.forms {
            let fields = form.fields.len();
            form.fields.rotate_left(rotate(fields, seed[3]));
            for field in &mut form.fields {
                field.values.reverse();
            }
        }
        prop_assert_eq!(verification_string(&info), expected);
    }
}

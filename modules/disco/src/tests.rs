use futures_util::FutureExt;
use proptest::prelude::*;
use waystation_core::caps::{Verdict, verify};
use waystation_core::disco::{Contacts, DiscoInfo};
use waystation_core::{IqType, Jid, Stanza, StanzaType};

use super::*;

fn table(items: usize) -> FeatureTable {
    let item = |number| DiscoItem {
        host: Some("capulet.example".into()),
        jid: Jid::parse(&format!("s{number}.capulet.example")).unwrap(),
        name: (number == 0).then(|| "Rooms".to_owned()),
    };
    let contacts = Contacts { abuse: vec!["mailto:abuse@capulet.example".into()], ..Contacts::default() };
    let module = Disco::new(Arc::default()).registration();
    FeatureTable::from_registrations(&[module], "Waystation", &contacts, (0..items).map(item).collect())
}

fn iqs(items: usize) -> Vec<IqRegistration> {
    let cell = Arc::new(OnceLock::new());
    let module = Disco::new(cell.clone());
    cell.set(table(items)).unwrap();
    module.registration().iqs
}

fn request(target: &str, relation: Relation, payload: Element) -> IqRequest {
    let (from, target) = (Jid::parse("romeo@montague.example/a").unwrap(), Jid::parse(target).unwrap());
    let iq = StanzaType::Iq(IqType::Get);
    let stanza = Stanza::with_payload(iq, Some(from.clone()), Some(target.clone()), Some("1"), &payload);
    IqRequest { stanza, from, target, set: false, payload, relation, session: None, available: true }
}

fn ask(
    iqs: &[IqRegistration],
    target: &str,
    relation: Relation,
    payload: Element,
) -> Result<Element, StanzaError> {
    let scope = if target.contains('@') { Scope::Account } else { Scope::Host };
    let handler = iqs.iter().find(|iq| iq.namespace == payload.namespace() && iq.scope == scope).unwrap();
    assert_eq!((handler.element, handler.requests), ("query", Requests::Get));
    let result = handler.handler.handle(request(target, relation, payload)).now_or_never();
    result.expect("it needs nothing to wait for").map(|payload| payload.unwrap())
}

fn query(namespace: &str) -> Element {
    Element::new("query", namespace)
}

fn names<'a>(answer: &'a Element, name: &'a str, attribute: &'a str) -> Vec<&'a str> {
    answer.children().filter(|child| child.name() == name).filter_map(|child| child.attr(attribute)).collect()
}

#[test]
fn a_host_tells_what_it_is_and_does() {
    let answer = ask(&iqs(0), "capulet.example", Relation::Stranger, query(NS_DISCO_INFO)).unwrap();
    assert_eq!(answer.attr("node"), None);
    let info = DiscoInfo::parse(&answer).unwrap();
    assert_eq!(info, *table(0).host());
    for feature in [NS_DISCO_INFO, NS_DISCO_ITEMS, NS_CAPS, NS_RSM] {
        assert!(info.features.iter().any(|var| var == feature), "{feature}");
    }
    assert_eq!(info.forms[0].values("abuse-addresses"), ["mailto:abuse@capulet.example"]);
}

#[test]
fn the_node_of_the_capabilities_is_answered_with_what_gives_their_hash() {
    let caps = table(0).caps().clone();
    let node = caps.query_node();
    let iqs = iqs(0);
    let answer =
        ask(&iqs, "capulet.example", Relation::Stranger, query(NS_DISCO_INFO).with_attr("node", &node));
    let answer = answer.unwrap();
    assert_eq!(answer.attr("node"), Some(&*node));
    assert_eq!(verify(&DiscoInfo::parse(&answer).unwrap(), &caps), Verdict::Valid);
}

#[test]
fn an_account_shows_itself_to_those_who_may_see_its_presence() {
    for relation in [Relation::Own, Relation::Subscriber] {
        let answer = ask(&iqs(0), "juliet@capulet.example", relation, query(NS_DISCO_INFO)).unwrap();
        assert_eq!(names(&answer, "identity", "category"), ["account"]);
        assert_eq!(names(&answer, "identity", "type"), ["registered"]);
        assert_eq!(names(&answer, "feature", "var"), [NS_DISCO_INFO, NS_DISCO_ITEMS]);
        let answer = ask(&iqs(3), "juliet@capulet.example", relation, query(NS_DISCO_ITEMS)).unwrap();
        assert_eq!(answer, query(NS_DISCO_ITEMS));
    }
}

#[test]
fn a5_strangers_get_for_an_account_what_they_get_for_none() {
    let nonexistent = StanzaError::new(Condition::ServiceUnavailable);
    for namespace in [NS_DISCO_INFO, NS_DISCO_ITEMS] {
        for payload in [query(namespace), query(namespace).with_attr("node", "urn:x")] {
            let answer = ask(&iqs(1), "juliet@capulet.example", Relation::Stranger, payload);
            assert_eq!(answer.unwrap_err(), nonexistent);
        }
    }
}

#[test]
fn unknown_nodes_are_not_found_and_an_empty_node_is_none() {
    let caps_node = table(0).caps().query_node();
    for (target, namespace, node, found) in [
        ("capulet.example", NS_DISCO_INFO, "urn:x", false),
        ("capulet.example", NS_DISCO_INFO, "#", false),
        ("capulet.example", NS_DISCO_ITEMS, "urn:x", false),
        ("capulet.example", NS_DISCO_ITEMS, &*caps_node, false),
        ("juliet@capulet.example", NS_DISCO_INFO, &*caps_node, false),
        ("juliet@capulet.example", NS_DISCO_ITEMS, "urn:x", false),
        ("capulet.example", NS_DISCO_INFO, "", true),
        ("capulet.example", NS_DISCO_ITEMS, "", true),
        ("juliet@capulet.example", NS_DISCO_INFO, "", true),
    ] {
        let answer = ask(&iqs(0), target, Relation::Own, query(namespace).with_attr("node", node));
        match answer {
            Ok(_) => assert!(found, "{target} {node:?}"),
            Err(error) => {
                assert!(!found, "{target} {node:?}");
                assert_eq!(error.condition, Condition::ItemNotFound);
            }
        }
    }
}

#[test]
fn a_host_lists_the_entities_that_belong_to_it() {
    let ask = |items, host| ask(&iqs(items), host, Relation::Stranger, query(NS_DISCO_ITEMS)).unwrap();
    let answer = ask(2, "capulet.example");
    assert_eq!(names(&answer, "item", "jid"), ["s0.capulet.example", "s1.capulet.example"]);
    assert_eq!(names(&answer, "item", "name"), ["Rooms"]);
    assert_eq!(answer.children().count(), 2);
    assert_eq!(ask(2, "montague.example"), query(NS_DISCO_ITEMS));
}

#[test]
fn long_lists_are_paged() {
    let iqs = iqs(MAX_ITEMS + 1);
    let ask = |inner: &str| {
        let xml = format!("<query xmlns='{NS_DISCO_ITEMS}'>{inner}</query>");
        let payload = Element::parse(xml.as_bytes(), "").unwrap();
        ask(&iqs, "capulet.example", Relation::Stranger, payload)
    };
    let count =
        |answer: &Element| answer.child("set", NS_RSM).unwrap().child("count", NS_RSM).unwrap().text();
    let all = ask("").unwrap();
    assert_eq!((names(&all, "item", "jid").len(), &*count(&all)), (MAX_ITEMS, "101"));
    let page =
        ask(&format!("<set xmlns='{NS_RSM}'><max>2</max><after>s0.capulet.example</after></set>")).unwrap();
    assert_eq!(names(&page, "item", "jid"), ["s1.capulet.example", "s2.capulet.example"]);
    let error = |inner: &str| ask(&format!("<set xmlns='{NS_RSM}'>{inner}</set>")).unwrap_err().condition;
    assert_eq!(error("<max>x</max>"), Condition::BadRequest);
    assert_eq!(error("<after>gone.capulet.example</after>"), Condition::ItemNotFound);
}

#[test]
fn queries_before_the_table_is_set_are_told_to_wait() {
    let iqs = Disco::new(Arc::default()).registration().iqs;
    let error = ask(&iqs, "capulet.example", Relation::Stranger, query(NS_DISCO_INFO)).unwrap_err();
    assert_eq!((error.condition, error.kind), (Condition::InternalServerError, ErrorType::Wait));
}

proptest! {
    #[test]
    fn no_payload_panics(
        info in any::<bool>(),
        host in any::<bool>(),
        node in proptest::option::of("\\PC{0,12}"),
        children in proptest::collection::vec(("[a-z]{1,6}", "\\PC{0,6}", any::<bool>()), 0..4),
    ) {
        let mut payload = query(if info { NS_DISCO_INFO } else { NS_DISCO_ITEMS });
        if let Some(node) = node {
            payload.set_attr("node", node);
        }
        for (name, text, rsm) in children {
            let namespace = if rsm { NS_RSM } else { "urn:x" };
            let name = if rsm { "set" } else { &name };
            payload.push(Element::new(name, namespace).with_child(Element::new("max", namespace).with_text(&text)));
        }
        let target = if host { "capulet.example" } else { "juliet@capulet.example" };
        let _ = ask(&iqs(3), target, Relation::Own, payload);
    }
}

//! The element tree: made, read, changed and written.

use proptest::prelude::*;
use waystation_xml::{Element, MAX_DEPTH, Node, XmlError, ns};

fn text(element: &Element, default_ns: &str) -> String {
    String::from_utf8(element.to_vec(default_ns)).unwrap()
}

#[test]
fn made_and_written() {
    let iq = Element::new("iq", ns::CLIENT)
        .with_attr("type", "result")
        .with_attr("id", "a'\"<&>b")
        .with_attr_ns("lang", ns::XML, "en")
        .with_child(
            Element::new("query", "urn:q")
                .with_child(Element::new("item", "urn:q").with_text("a & b <").with_text(" c\r"))
                .with_child(Element::new("x", ns::CLIENT))
                .with_child(Element::new("y", "")),
        );
    assert_eq!(
        text(&iq, ns::CLIENT),
        "<iq type='result' id='a&apos;&quot;&lt;&amp;&gt;b' xml:lang='en'><query xmlns='urn:q'>\
         <item>a &amp; b &lt; c&#13;</item><x xmlns='jabber:client'/><y xmlns=''/></query></iq>"
    );
    assert!(text(&iq, "").starts_with("<iq xmlns='jabber:client' type="));
    assert_eq!(Element::parse(&iq.to_vec(ns::CLIENT), ns::CLIENT).as_ref(), Ok(&iq));
    assert_eq!(Element::parse(&iq.to_vec(""), "").as_ref(), Ok(&iq));
}

#[test]
fn prefixed_attributes_are_declared_once_where_they_are_in_scope() {
    let tree = Element::new("a", "urn:a")
        .with_attr_ns("x", "urn:x", "1")
        .with_attr_ns("x", "urn:y", "2")
        .with_child(
            Element::new("b", "urn:a").with_attr_ns("x", "urn:y", "3").with_attr_ns("x", "urn:z", "4"),
        )
        .with_child(Element::new("b", "urn:a").with_attr_ns("x", "urn:w", "5"));
    assert_eq!(
        text(&tree, "urn:a"),
        "<a xmlns:ns0='urn:x' ns0:x='1' xmlns:ns1='urn:y' ns1:x='2'><b ns1:x='3' xmlns:ns2='urn:z' ns2:x='4'/>\
         <b xmlns:ns2='urn:w' ns2:x='5'/></a>"
    );
    assert_eq!(Element::parse(&tree.to_vec(""), "").as_ref(), Ok(&tree));
}

#[test]
fn read_and_changed() {
    let source =
        b"<p:a xmlns:p='urn:p' xmlns='urn:d' x='1' p:x='2'>one<b/>two<p:b><c/></p:b><b y='z'/>&#33;</p:a>";
    let mut a = Element::parse(source, ns::CLIENT).unwrap();
    assert!(a.is("a", "urn:p"));
    assert_eq!((a.attr("x"), a.attr_ns("x", "urn:p"), a.attr("xmlns")), (Some("1"), Some("2"), None));
    assert_eq!(a.text(), "onetwo!");
    assert_eq!(a.children().count(), 3);
    assert_eq!(a.nodes().len(), 6);
    assert!(matches!(&a.nodes()[0], Node::Text(text) if text == "one"));
    assert!(a.child("b", "urn:p").unwrap().child("c", "urn:d").is_some());
    a.set_attr("x", "3");
    a.set_attr("new", "4");
    a.remove_attr("gone");
    assert_eq!(a.attrs().map(|a| a.value()).collect::<Vec<_>>(), ["3", "2", "4"]);
    a.remove_attr("x");
    assert_eq!((a.attr("x"), a.attr_ns("x", "urn:p")), (None, Some("2")));
    a.retain_children(|child| child.namespace() == "urn:p");
    assert_eq!((a.children().count(), a.text().as_str()), (1, "onetwo!"));
    for child in a.children_mut() {
        child.push(Element::new("d", "urn:d"));
    }
    assert_eq!(a.child("b", "urn:p").unwrap().children().count(), 2);
}

/// RFC 6120 section 4.8.3: the stanza and what is in its namespace move; other payloads stay as they are.
#[test]
fn moved_to_another_content_namespace() {
    let source = b"<message><body>x</body><forwarded xmlns='urn:f'><message xmlns='jabber:client'/></forwarded></message>";
    let mut message = Element::parse(source, ns::CLIENT).unwrap();
    message.rescope(ns::CLIENT, ns::SERVER);
    assert_eq!(text(&message, ns::SERVER).as_bytes(), source);
    message.rescope(ns::CLIENT, "urn:other");
    assert_eq!(message.namespace(), ns::SERVER);
}

#[test]
fn line_ends_and_references_in_text() {
    let parsed = Element::parse(b"<a>1\r\n2\r3\n4&#13;\n<![CDATA[5\r\n6]]>&amp;&#x37;</a>", "").unwrap();
    assert_eq!(parsed.text(), "1\n2\n3\n4\r\n5\n6&7");
    assert_eq!(parsed.nodes().len(), 1);
}

/// What never came through a framer may come here by mistake: an error, and no panic.
#[test]
fn what_is_not_one_element_is_refused() {
    for bad in [
        &b""[..],
        b" ",
        b"x",
        b"<a>",
        b"</a>",
        b"<a></b>",
        b"<a/><b/>",
        b"<a/>x",
        b"<a:b/>",
        b"<a b:c=''/>",
        b"<a b/>",
        b"<a>\xFF</a>",
        b"<!DOCTYPE a><a/>",
        b"<?xml version='1.0'?><a/>",
        b"<a><!-- --></a>",
        b"<a>&b;</a>",
        b"<a>&#0;</a>",
        b"<a",
        b"<a b='",
        b"<xml:a/>",
    ] {
        assert!(Element::parse(bad, "").is_err(), "{}", bad.escape_ascii());
    }
    assert!(Element::parse(b" <a/>\n", "").is_ok());
}

/// A long namespace name that thousands of elements share through a prefix would be written thousands of times.
#[test]
fn x9_trees_that_writing_would_blow_up_are_refused() {
    let shared = |length: usize, elements: usize| {
        let uri = "u".repeat(length);
        format!("<message xmlns:p='{uri}'>{}</message>", "<p:a/>".repeat(elements))
    };
    assert_eq!(Element::parse(shared(200_000, 4000).as_bytes(), ns::CLIENT), Err(XmlError::StanzaTooBig));
    assert!(Element::parse(shared(30, 4000).as_bytes(), ns::CLIENT).is_ok());
    assert!(Element::parse(shared(1000, 60).as_bytes(), ns::CLIENT).is_ok());
    let attributes =
        format!("<message xmlns:p='{}'>{}</message>", "u".repeat(100_000), "<a p:b=''/>".repeat(4000));
    assert_eq!(Element::parse(attributes.as_bytes(), ns::CLIENT), Err(XmlError::StanzaTooBig));
    let limit = 262_144 * 8 + 4096 * 64;
    for elements in [10, 100, 1000, 4000] {
        let length = 262_144 - elements * 6 - 64;
        if let Ok(parsed) = Element::parse(shared(length, elements).as_bytes(), ns::CLIENT) {
            assert!(parsed.to_vec(ns::CLIENT).len() <= limit);
        }
    }
}

/// Names and namespaces that a caller gets wrong must not become XML that is wrong.
#[test]
fn x7_what_is_no_name_is_made_one() {
    let odd = Element::new("a b='c'><d", "urn:x' y='z")
        .with_attr("e f", "1")
        .with_attr("", "2")
        .with_attr("1", "3")
        .with_attr("xmlns", "urn:evil")
        .with_attr_ns("a", ns::XMLNS, "urn:evil")
        .with_attr_ns("a", "", "4");
    let written = text(&odd, "");
    assert_eq!(written, "<a_b__c___d xmlns='urn:x&apos; y=&apos;z' e_f='1' _='2' _1='3' a='4'/>");
    assert_eq!(Element::parse(written.as_bytes(), "").as_ref(), Ok(&odd));
    assert_eq!(Element::new("a", ns::XML).namespace(), "");
    assert_eq!(Element::new("a", ns::XMLNS).namespace(), "");
    assert_eq!(Element::new("", "").name(), "_");
}

fn namespaces() -> impl Strategy<Value = String> {
    prop_oneof![
        Just(String::new()),
        Just(ns::CLIENT.to_owned()),
        Just(ns::SERVER.to_owned()),
        Just("urn:a".to_owned()),
        "urn:[ -~\t\n\r]{0,4}",
    ]
}

/// Characters that XML can express.
fn texts() -> impl Strategy<Value = String> {
    "[\t\n\r -~\u{80}-\u{D7FF}\u{10000}-\u{10FFFF}]{0,6}"
}

fn elements() -> impl Strategy<Value = Element> {
    let name = "[a-cA-Z_é][a-c0-9.é-]{0,3}";
    let attributes = prop::collection::vec((name, namespaces(), texts()), 0..4);
    let leaf = (name, namespaces(), attributes).prop_map(|(name, namespace, attributes)| {
        attributes.iter().fold(Element::new(&name, &namespace), |element, (name, namespace, value)| {
            element.with_attr_ns(name, namespace, value)
        })
    });
    let leaf = leaf.boxed();
    leaf.clone().prop_recursive(4, 24, 4, move |inner| {
        let nodes = prop::collection::vec((texts(), prop::option::of(inner)), 0..4);
        (leaf.clone(), nodes).prop_map(|(mut element, nodes)| {
            for (text, child) in nodes {
                element.push_text(&text);
                if let Some(child) = child {
                    element.push(child);
                }
            }
            element
        })
    })
}

proptest! {
    #[test]
    fn what_is_written_reads_back(element in elements(), default_ns in namespaces()) {
        // A default namespace is what was declared around the element: after normalisation.
        let default_ns = default_ns.replace(['\t', '\n', '\r'], " ");
        let written = element.to_vec(&default_ns);
        prop_assert_eq!(Element::parse(&written, &default_ns), Ok(element));
    }
}

#[test]
fn the_deepest_tree_is_written_and_read() {
    let mut element = Element::new("a", "urn:a");
    for level in 1..MAX_DEPTH {
        element = Element::new("a", if level % 2 == 0 { "urn:a" } else { "urn:b" }).with_child(element);
    }
    assert_eq!(Element::parse(&element.to_vec(""), ""), Ok(element));
}

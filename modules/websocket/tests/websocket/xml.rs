//! SECURITY.md rows X1 to X10 and M8 where they are about XML: the errors are those of a stream over
//! TCP, followed by `<close/>` and the end of the WebSocket.

use crate::client::{CLOSE, Site};

/// Each text is an error, before authentication and in a session.
async fn errors(cases: &[(&str, &str)]) {
    let site = Site::start().await;
    for (n, (text, condition)) in cases.iter().enumerate() {
        let mut client = site.open().await;
        client.text(text).await;
        client.expect_error(condition).await;
        let mut client = site.log_in(&format!("r{n}")).await;
        client.text(text).await;
        client.expect_error(condition).await;
    }
}

#[actix_rt::test]
async fn x1_dtds_and_entities_are_restricted() {
    let mut bombs = String::from("<!DOCTYPE s [<!ENTITY e0 'x'>");
    for n in 1..10 {
        bombs.push_str(&format!("<!ENTITY e{n} '{}'>", format!("&e{};", n - 1).repeat(10)));
    }
    bombs.push_str("]><message xmlns='jabber:client'><body>&e9;</body></message>");
    errors(&[
        (&bombs, "restricted-xml"),
        ("<!DOCTYPE s SYSTEM 'file:///etc/passwd'><s/>", "restricted-xml"),
        ("<message xmlns='jabber:client'><!DOCTYPE s></message>", "restricted-xml"),
    ])
    .await;
}

#[actix_rt::test]
async fn x2_entities_and_character_references() {
    errors(&[
        ("<message xmlns='jabber:client'>&foo;</message>", "restricted-xml"),
        ("<message xmlns='jabber:client'>&#0;</message>", "not-well-formed"),
        ("<message xmlns='jabber:client'>&#xD800;</message>", "not-well-formed"),
        ("<message xmlns='jabber:client'>&#x110000;</message>", "not-well-formed"),
    ])
    .await;
}

#[actix_rt::test]
async fn x3_comments_and_processing_instructions_are_restricted() {
    errors(&[
        ("<message xmlns='jabber:client'><!-- x --></message>", "restricted-xml"),
        ("<!-- x --><message xmlns='jabber:client'/>", "restricted-xml"),
        ("<message xmlns='jabber:client'/><!-- x -->", "restricted-xml"),
        ("<message xmlns='jabber:client'><?php ?></message>", "restricted-xml"),
    ])
    .await;
}

#[actix_rt::test]
async fn x4_xml_declarations_and_byte_order_marks_are_errors() {
    errors(&[
        ("<?xml version='1.0'?><message xmlns='jabber:client'/>", "not-well-formed"),
        ("<?xml version='1.0' encoding='UTF-16'?><message xmlns='jabber:client'/>", "not-well-formed"),
        ("\u{FEFF}<message xmlns='jabber:client'/>", "not-well-formed"),
    ])
    .await;
}

#[actix_rt::test]
async fn x6_control_characters_are_not_well_formed() {
    errors(&[
        ("<message xmlns='jabber:client'>\u{0}</message>", "not-well-formed"),
        ("<message xmlns='jabber:client'>\u{1F}</message>", "not-well-formed"),
        ("<message xmlns='jabber:client' id='\u{8}'/>", "not-well-formed"),
        ("<message xmlns='jabber:client'>\u{FFFE}</message>", "not-well-formed"),
    ])
    .await;
}

#[actix_rt::test]
async fn x7_m8_a_message_holds_one_element_and_cannot_touch_the_stream() {
    errors(&[
        ("<message xmlns='jabber:client'/><message xmlns='jabber:client'/>", "not-well-formed"),
        ("<message xmlns='jabber:client'/></stream:stream>", "not-well-formed"),
        ("<message xmlns='jabber:client'/><", "not-well-formed"),
        ("</stream:stream>", "not-well-formed"),
        ("<stream:stream xmlns:stream='http://etherx.jabber.org/streams' to='localhost'>", "not-well-formed"),
        ("<message xmlns='jabber:client' a='1' a='2'/>", "not-well-formed"),
        ("<message xmlns='jabber:client' x:a='1'/>", "not-well-formed"),
        ("text", "not-well-formed"),
        (" ", "not-well-formed"),
        ("", "not-well-formed"),
    ])
    .await;
}

#[actix_rt::test]
async fn x7_a_stream_header_that_is_an_element_opens_nothing() {
    let site = Site::start().await;
    for text in [
        "<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client' to='localhost' version='1.0'/>",
        "<stream xmlns='http://etherx.jabber.org/streams' to='localhost' version='1.0'></stream>",
    ] {
        for mut client in [site.open().await, site.log_in("header").await] {
            client.text(text).await;
            let error = client.next_text().await;
            assert!(error.starts_with("<stream:error "), "{error}");
            assert_eq!(client.next_text().await, CLOSE);
            client.expect_close(1000).await;
        }
    }
}

#[actix_rt::test]
async fn x8_a_message_that_comes_byte_by_byte_is_read_at_its_end() {
    let site = Site::start().await;
    let mut client = site.log_in("slow").await;
    let text = format!(
        "<iq xmlns='jabber:client' type='get' id='slow'><q xmlns='urn:x' a='{}'/></iq>",
        "y".repeat(30_000)
    );
    for piece in crate::client::masked(0x81, text.as_bytes()).chunks(1) {
        client.raw(piece).await;
    }
    assert!(client.next_text().await.contains("id='slow'"));
}

#[actix_rt::test]
async fn x10_depth_is_bounded_closed_or_not() {
    let site = Site::start().await;
    let open = "<a>".repeat(65_536);
    let closed = format!("{}{}", "<a>".repeat(30_000), "</a>".repeat(30_000));
    for text in [&open, &closed] {
        let mut client = site.log_in("deep").await;
        client.text(text).await;
        client.expect_error("policy-violation").await;
    }
    // More than a session's stream may have, and less than the message's check allows.
    let mut client = site.log_in("deep").await;
    client
        .text(&format!(
            "<message xmlns='jabber:client'>{}{}</message>",
            "<a>".repeat(200),
            "</a>".repeat(200)
        ))
        .await;
    client.expect_error("policy-violation").await;
}

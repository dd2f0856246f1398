//! SECURITY.md row M8: frames that a client should not send.

use waystation_websocket::Settings;

use crate::client::{Frame, OPEN, Site, masked};

async fn closed_with(code: u16, bytes: &[u8]) {
    let site = Site::start().await;
    for byte_by_byte in [false, true] {
        let mut client = site.open().await;
        if byte_by_byte && bytes.len() < 100 {
            for byte in bytes {
                client.raw(&[*byte]).await;
            }
        } else {
            client.raw(bytes).await;
        }
        client.expect_close(code).await;
    }
}

#[actix_rt::test]
async fn m8_unmasked_frame_is_closed_with_1002() {
    closed_with(1002, b"\x81\x05").await;
}

#[actix_rt::test]
async fn m8_reserved_bits_and_opcodes_are_closed_with_1002() {
    for first in [0xC1, 0xA1, 0x91, 0x83, 0x8B, 0x8F] {
        closed_with(1002, &[first]).await;
    }
}

#[actix_rt::test]
async fn m8_binary_frame_is_closed_with_1003() {
    closed_with(1003, &[0x82]).await;
}

#[actix_rt::test]
async fn m8_long_or_fragmented_control_frame_is_closed_with_1002() {
    closed_with(1002, &[0x89, 0x80 | 126]).await;
    closed_with(1002, &[0x09]).await;
    closed_with(1002, &[0x08]).await;
}

#[actix_rt::test]
async fn m8_a_frame_of_the_greatest_length_is_closed_with_1009_at_its_header() {
    closed_with(1009, b"\x81\xFF\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF").await;
}

#[actix_rt::test]
async fn m8_a_continuation_of_nothing_and_a_text_within_a_text_are_closed_with_1002() {
    closed_with(1002, &masked(0x80, b"")).await;
    closed_with(1002, &[masked(0x01, b"<a"), vec![0x81]].concat()).await;
}

#[actix_rt::test]
async fn x5_invalid_utf8_is_closed_with_1007_wherever_it_is_cut() {
    let site = Site::start().await;
    for bytes in
        [&b"\xC0\xAF"[..], b"\xE0\x80\xBC", b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"\xFF", b"\xE2\x82>"]
    {
        let text = [b"<a>", bytes, b"</a>"].concat();
        for cut in 3..4 + bytes.len() {
            let mut client = site.open().await;
            client.raw(&masked(0x01, &text[..cut])).await;
            client.raw(&masked(0x80, &text[cut..])).await;
            client.expect_close(1007).await;
        }
    }
}

#[actix_rt::test]
async fn m8_a_flood_of_pings_is_closed_with_1008() {
    let site = Site::start().await;
    // Empty fragments say as little.
    for (start, frame) in [(Vec::new(), masked(0x89, b"x")), (masked(0x01, b"<a"), masked(0x00, b""))] {
        let mut client = site.open().await;
        let flood = [start, frame.repeat(10_000)].concat();
        // The connection may end before all of it is sent.
        let _ = tokio::io::AsyncWriteExt::write_all(&mut client.tcp, &flood).await;
        let mut pongs = 0;
        let end = loop {
            match client.next().await {
                Frame::Pong(_) => pongs += 1,
                other => break other,
            }
        };
        assert!(matches!(end, Frame::Close(Some(1008)) | Frame::End), "{end:?}");
        assert!(pongs < 100, "{pongs} pongs");
    }
}

#[actix_rt::test]
async fn m8_ten_thousand_fragments_of_one_byte_are_one_element() {
    let site = Site::start().await;
    let mut client = site.log_in("fragments").await;
    let body = "x".repeat(10_000);
    let text = format!("<iq xmlns='jabber:client' type='get' id='f'><q xmlns='urn:x'>{body}</q></iq>");
    let last = text.len() - 1;
    let frames = text
        .bytes()
        .enumerate()
        .flat_map(|(n, byte)| masked(u8::from(n == 0) | if n == last { 0x80 } else { 0 }, &[byte]));
    client.raw(&frames.collect::<Vec<_>>()).await;
    assert!(client.next_text().await.contains("id='f'"));
}

#[actix_rt::test]
async fn x9_messages_over_the_limit_are_closed_with_1009() {
    let site = Site::start().await;
    let text = |len: usize| {
        let frame = "<iq xmlns='jabber:client' type='get' id='f'><q xmlns='urn:x'></q></iq>";
        frame.replace("</q>", &format!("{}</q>", "x".repeat(len - frame.len())))
    };
    let mut client = site.open().await;
    client.text(&text(8193)).await;
    client.expect_close(1009).await;
    // In fragments, none of which is too long by itself.
    let mut client = site.open().await;
    client.raw(&masked(0x01, &text(8192).as_bytes()[..8000])).await;
    client.raw(&masked(0x80, &[b'x'; 193])).await;
    client.expect_close(1009).await;

    let mut client = site.log_in("large").await;
    client.text(&text(262_144)).await;
    assert!(client.next_text().await.contains("id='f'"));
    client.text(&text(262_145)).await;
    client.expect_close(1009).await;
}

#[actix_rt::test]
async fn x9_before_login_the_servers_own_limit_counts_when_it_is_lower() {
    let settings = Settings { max_frame_pre_auth: 262_144, ..Settings::default() };
    let site = Site::with(settings, true, |_| {}).await;
    let mut client = site.open().await;
    client.text(&format!("<auth xmlns='urn:x'>{}</auth>", "x".repeat(8192))).await;
    client.expect_error("policy-violation").await;
}

#[actix_rt::test]
async fn m8_half_a_stanza_in_a_frame_is_an_error() {
    let site = Site::start().await;
    let mut client = site.log_in("half").await;
    client.text("<message xmlns='jabber:client' to='romeo@localhost'><body>").await;
    client.text("half</body></message>").await;
    client.expect_error("not-well-formed").await;
}

#[actix_rt::test]
async fn frames_before_an_open_are_errors_after_an_open() {
    let site = Site::start().await;
    for (text, condition) in [
        ("<iq xmlns='jabber:client' type='get' id='1'><a xmlns='urn:x'/></iq>", "invalid-namespace"),
        ("<open xmlns='jabber:client' to='localhost' version='1.0'/>", "invalid-namespace"),
        (
            "<stream:stream xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client' to='localhost' version='1.0'/>",
            "invalid-namespace",
        ),
        ("<open", "not-well-formed"),
        ("", "not-well-formed"),
        ("<!-- -->", "restricted-xml"),
    ] {
        let mut client = site.connect().await;
        client.text(text).await;
        assert!(client.next_text().await.starts_with("<open "), "{text}");
        client.expect_error(condition).await;
    }
}

#[actix_rt::test]
async fn a_second_open_is_an_error() {
    let site = Site::start().await;
    let mut client = site.open().await;
    client.text(OPEN).await;
    client.expect_error("not-well-formed").await;
    let mut client = site.log_in("twice").await;
    client.text(OPEN).await;
    client.expect_error("not-well-formed").await;
}

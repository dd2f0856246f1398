use std::time::Instant;

use proptest::prelude::*;

use super::*;

const OPEN: &str = "<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' to='localhost' version='1.0'/>";

/// A masked text frame.
fn frame(first: bool, last: bool, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![u8::from(first) | if last { 0x80 } else { 0 }];
    if payload.len() < 126 {
        out.push(0x80 | payload.len() as u8);
    } else {
        out.push(0x80 | 127);
        out.extend((payload.len() as u64).to_be_bytes());
        if payload.len() < 65_536 {
            out.truncate(1);
            out.push(0x80 | 126);
            out.extend((payload.len() as u16).to_be_bytes());
        }
    }
    out.extend([1, 2, 3, 4]);
    out.extend(payload.iter().zip([1, 2, 3, 4].iter().cycle()).map(|(byte, mask)| byte ^ mask));
    out
}

fn message(text: impl AsRef<[u8]>) -> Vec<u8> {
    frame(true, true, text.as_ref())
}

/// What the server's stream gets, and how it ends if it does.
fn read(input: &[u8], limit: usize, sizes: &[usize]) -> (String, Option<Result<(), CloseCode>>) {
    let mut inbound = Inbound::new(limit);
    let mut scratch = [0; PIECE];
    let (mut stream, mut rest) = (Vec::new(), input);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (mut piece, later) = rest.split_at((*size).min(rest.len()));
        rest = later;
        while !piece.is_empty() {
            match inbound.next(&mut piece, &mut scratch, &mut stream) {
                Ok(Input::Fault) => return (String::from_utf8(stream).unwrap(), Some(Ok(()))),
                Ok(_) => {}
                Err(code) => return (String::from_utf8(stream).unwrap(), Some(Err(code))),
            }
        }
    }
    (String::from_utf8(stream).unwrap(), None)
}

#[test]
fn elements_go_on_as_they_are_and_headers_become_tags() {
    let first = [
        message(OPEN),
        message("<message to='a&amp;b'><body><![CDATA[x]]></body></message>"),
        message("<iq xmlns=\"jabber:client\"/> \n"),
    ]
    .concat();
    let second = [
        message("<open xmlns='urn:ietf:params:xml:ns:xmpp-framing' from='r@localhost' xml:lang='de&apos;' id='x'></open>"),
        message("<a:close xmlns:a='urn:ietf:params:xml:ns:xmpp-framing'/>"),
    ]
    .concat();
    let want = "<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                to='localhost' version='1.0'>\
                <message to='a&amp;b'><body><![CDATA[x]]></body></message><iq xmlns=\"jabber:client\"/>\
                <stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' \
                from='r@localhost' xml:lang='de&apos;'></stream:stream>";
    let mut inbound = Inbound::new(1000);
    let mut scratch = [0; PIECE];
    let mut stream = Vec::new();
    for input in [first, second] {
        let mut input = &input[..];
        while !input.is_empty() {
            assert_ne!(inbound.next(&mut input, &mut scratch, &mut stream), Ok(Input::Fault));
        }
        inbound.authenticated(1000);
    }
    assert_eq!(String::from_utf8(stream).unwrap(), want);
}

#[test]
fn a_stream_is_opened_once_and_once_more_after_authentication() {
    let (stream, end) = read(&[message(OPEN), message(OPEN)].concat(), 1000, &[1]);
    assert!(stream.starts_with("<stream:stream ") && stream.ends_with("'><>"), "{stream}");
    assert_eq!(end, Some(Ok(())));
}

#[test]
fn m8_a_message_that_is_not_one_element_is_a_fault_and_nothing_of_it_goes_on() {
    let restricted = fault_of(XmlError::Restricted);
    let invalid = fault_of(XmlError::InvalidNamespace);
    let broken = fault_of(XmlError::NotWellFormed);
    let deep = fault_of(XmlError::TooDeep);
    let stream_ns = "xmlns:stream='http://etherx.jabber.org/streams'";
    let cases = [
        ("".to_owned(), &broken),
        (" ".into(), &broken),
        (" <iq/>".into(), &broken),
        ("\u{FEFF}<iq/>".into(), &broken),
        ("iq".into(), &broken),
        ("<iq/><iq/>".into(), &broken),
        ("<iq/> <iq/>".into(), &broken),
        ("<iq/><iq>".into(), &broken),
        ("<iq/>x".into(), &broken),
        ("<iq/></iq>".into(), &broken),
        ("<iq/></stream:stream>".into(), &broken),
        ("</stream:stream>".into(), &broken),
        ("<iq>".into(), &broken),
        ("<iq".into(), &broken),
        ("<iq></message>".into(), &broken),
        ("<stream:error/>".into(), &broken),
        (format!("<stream:stream {stream_ns}>"), &broken),
        (format!("<stream:stream {stream_ns}/>"), &invalid),
        (
            "<stream xmlns='http://etherx.jabber.org/streams' to='localhost' version='1.0'></stream>".into(),
            &invalid,
        ),
        ("<?xml version='1.0'?><iq/>".into(), &broken),
        ("<iq><?php ?></iq>".into(), &restricted),
        ("<!-- --><iq/>".into(), &restricted),
        ("<iq/><!-- -->".into(), &restricted),
        ("<iq><!-- --></iq>".into(), &restricted),
        ("<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>".into(), &restricted),
        ("<iq>&x;</iq>".into(), &restricted),
        ("<iq>\u{1}</iq>".into(), &broken),
        ("<iq>&#0;</iq>".into(), &broken),
        ("<iq a:b=''/>".into(), &broken),
        (format!("{}{}", "<a>".repeat(300), "</a>".repeat(300)), &deep),
    ];
    for (text, want) in cases {
        let input = [message(&text), message("<iq/>")].concat();
        for sizes in [[1], [usize::MAX]] {
            let (stream, end) = read(&input, 10_000, &sizes);
            assert_eq!((stream.as_str(), end), (want.as_str(), Some(Ok(()))), "{text:?}");
        }
    }
}

#[test]
fn x5_what_is_no_utf8_ends_the_connection_before_it_is_looked_at() {
    for bytes in [&b"\xC0\xAF"[..], b"\xED\xA0\x80", b"\xF4\x90\x80\x80", b"\xFF", b"\xE2\x82", b"\xE2\x82<"]
    {
        let text = [b"<iq a='", bytes, b"'/>"].concat();
        for cut in 0..text.len() {
            let input = [frame(true, false, &text[..cut]), frame(false, true, &text[cut..])].concat();
            assert_eq!(read(&input, 1000, &[usize::MAX]), (String::new(), Some(Err(CloseCode::NoUtf8))));
        }
        // At the end of a message as well.
        let text = [b"<iq/>", bytes].concat();
        let (stream, end) = read(&message(&text), 1000, &[usize::MAX]);
        assert!(stream.is_empty() && end == Some(Err(CloseCode::NoUtf8)));
    }
}

#[test]
fn m8_ten_thousand_fragments_of_one_byte_cost_linear_time() {
    let text = |len: usize| format!("<message><body>{}</body></message>", "x".repeat(len));
    let fragments = |text: &str| {
        let last = text.len() - 1;
        let frames = text.bytes().enumerate().map(|(n, byte)| frame(n == 0, n == last, &[byte]));
        frames.collect::<Vec<_>>().concat()
    };
    let time = |text: &str| {
        let input = fragments(text);
        let times = (0..5).map(|_| {
            let begun = Instant::now();
            assert_eq!(read(&input, 200_000, &[usize::MAX]), (text.to_owned(), None));
            begun.elapsed()
        });
        times.min().unwrap()
    };
    let (small, large) = (time(&text(10_000)), time(&text(160_000)));
    // Sixteen times as many; quadratic would be 256 times.
    assert!(large < small * 64, "{small:?} and {large:?}");
}

#[test]
fn a_message_of_the_limit_passes_and_one_more_byte_does_not() {
    let text = |len: usize| format!("<a>{}</a>", "x".repeat(len - 7));
    let (stream, end) = read(&message(text(8192)), 8192, &[1000]);
    assert_eq!((stream.len(), end), (8192, None));
    let (stream, end) = read(&message(text(8193)), 8192, &[1000]);
    assert_eq!((stream.len(), end), (0, Some(Err(CloseCode::TooBig))));
}

#[test]
fn between_messages_nothing_is_held() {
    let mut inbound = Inbound::new(100_000);
    let mut scratch = [0; PIECE];
    let mut stream = Vec::new();
    let input = message(format!("<a>{}</a>", "x".repeat(50_000)));
    for piece in input.chunks(1000) {
        let mut piece = piece;
        while !piece.is_empty() {
            inbound.next(&mut piece, &mut scratch, &mut stream).unwrap();
        }
    }
    assert_eq!(stream.len(), 50_007);
    assert_eq!(inbound.element.capacity(), 0);
}

proptest! {
    /// Wherever messages are cut, into fragments or into reads, the same comes of them.
    #[test]
    fn messages_cut_at_any_byte_give_the_same_result(
        texts in prop::collection::vec(
            prop_oneof![
                Just(OPEN.to_owned()),
                "<a b='[a-zé😀]{0,50}'>[a-zé😀 ]{0,200}</a>",
                "<a><b/>[<>&a/ ]{0,4}</a>",
                "[<>/a !?=' ]{0,12}",
            ],
            1..6,
        ),
        cuts in prop::collection::vec(1usize..40, 1..5),
        sizes in prop::collection::vec(1usize..60, 1..5),
    ) {
        let whole: Vec<u8> = texts.iter().flat_map(message).collect();
        let mut cut = Vec::new();
        for text in &texts {
            let mut rest = text.as_bytes();
            let mut first = true;
            for size in cuts.iter().cycle() {
                let (piece, later) = rest.split_at((*size).min(rest.len()));
                rest = later;
                cut.extend(frame(first, rest.is_empty(), piece));
                first = false;
                if rest.is_empty() {
                    break;
                }
            }
        }
        let want = read(&whole, 10_000, &[usize::MAX]);
        prop_assert_eq!(&read(&whole, 10_000, &sizes), &want);
        prop_assert_eq!(&read(&cut, 10_000, &sizes), &want);
    }
}

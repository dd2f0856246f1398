use proptest::prelude::*;

use super::*;

#[path = "../tests/websocket/masked.rs"]
mod masked;
use masked::masked as frame;

#[derive(Debug, PartialEq, Eq)]
enum Got {
    Message(Vec<u8>),
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>),
    Failed(CloseCode),
}

/// What comes of input that arrives in pieces of the given sizes, over and over.
fn read(input: &[u8], limit: usize, sizes: &[usize]) -> Vec<Got> {
    let mut reader = Reader::new(limit);
    let mut scratch = [0; PIECE];
    let (mut got, mut message, mut rest) = (Vec::new(), Vec::new(), input);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            return got;
        }
        let (mut piece, later) = rest.split_at((*size).min(rest.len()));
        rest = later;
        loop {
            match reader.next(&mut piece, &mut scratch) {
                Ok(Part::NeedMore) => break,
                Ok(Part::Text { bytes, last, .. }) => {
                    message.extend_from_slice(bytes);
                    if last {
                        got.push(Got::Message(std::mem::take(&mut message)));
                    }
                }
                Ok(Part::Ping(payload)) => got.push(Got::Ping(payload.to_vec())),
                Ok(Part::Pong) => got.push(Got::Pong),
                Ok(Part::Close(code)) => got.push(Got::Close(code)),
                Err(code) => {
                    got.push(Got::Failed(code));
                    return got;
                }
            }
        }
    }
    got
}

const TOO_LONG: u64 = (1 << 63) - 1;

#[test]
fn m8_what_breaks_the_protocol_is_found_with_the_byte_that_does() {
    let huge = [&[0x81, 0xFF][..], &TOO_LONG.to_be_bytes()].concat();
    let negative = [&[0x81, 0xFF][..], &(TOO_LONG + 1).to_be_bytes()].concat();
    let cases: [(&[u8], CloseCode); 17] = [
        (&[0x81, 0x01], CloseCode::Protocol),
        (&[0xC1], CloseCode::Protocol),
        (&[0xA1], CloseCode::Protocol),
        (&[0x91], CloseCode::Protocol),
        (&[0x83], CloseCode::Protocol),
        (&[0x87], CloseCode::Protocol),
        (&[0x8B], CloseCode::Protocol),
        (&[0x8F], CloseCode::Protocol),
        (&[0x80], CloseCode::Protocol),
        (&[0x82], CloseCode::Unsupported),
        (&[0x02], CloseCode::Unsupported),
        (&[0x09], CloseCode::Protocol),
        (&[0x89, 0x80 | 126], CloseCode::Protocol),
        (&[0x88, 0x80 | 127], CloseCode::Protocol),
        (&[0x81, 0x80 | 126, 0, 125], CloseCode::Protocol),
        (&huge, CloseCode::TooBig),
        (&negative, CloseCode::Protocol),
    ];
    for (bytes, code) in cases {
        for size in [1, bytes.len()] {
            assert_eq!(read(bytes, 1000, &[size]), [Got::Failed(code)], "{bytes:x?}");
        }
        assert_eq!(read(&bytes[..bytes.len() - 1], 1000, &[1]), [], "{bytes:x?} needs its last byte");
    }
    let text_in_message = [frame(0x01, b"a"), frame(0x81, b"b")].concat();
    assert_eq!(read(&text_in_message, 10, &[100]), [Got::Failed(CloseCode::Protocol)]);
}

#[test]
fn m8_a_message_is_as_long_as_the_limit_over_all_of_its_fragments() {
    for (sizes, fits) in [(&[10][..], true), (&[11], false), (&[5, 5], true), (&[5, 0, 5, 1], false)] {
        let mut input = Vec::new();
        for (n, size) in sizes.iter().enumerate() {
            let last = if n + 1 == sizes.len() { 0x80 } else { 0 };
            input.extend(frame(last | u8::from(n == 0), &vec![b'x'; *size]));
        }
        // The next message has a limit of its own.
        input.extend(frame(0x81, b"0123456789"));
        let got = read(&input, 10, &[3]);
        if fits {
            assert_eq!(got.len(), 2, "{sizes:?}: {got:?}");
        } else {
            assert_eq!(got, [Got::Failed(CloseCode::TooBig)], "{sizes:?}");
        }
    }
}

#[test]
fn control_frames_come_between_fragments() {
    let input = [
        frame(0x01, b"<a"),
        frame(0x89, b"ping"),
        frame(0x00, b""),
        frame(0x8A, b"pong"),
        frame(0x80, b"/>"),
        frame(0x88, &[0x03, 0xE8, b'x']),
    ]
    .concat();
    let want =
        [Got::Ping(b"ping".to_vec()), Got::Pong, Got::Message(b"<a/>".to_vec()), Got::Close(Some(1000))];
    assert_eq!(read(&input, 100, &[1]), want);
    assert_eq!(read(&input, 100, &[1000]), want);
}

#[test]
fn close_frames_have_a_known_code_and_a_text_or_nothing() {
    for (payload, want) in [
        (&b""[..], Got::Close(None)),
        (b"\x03", Got::Failed(CloseCode::Protocol)),
        (b"\x03\xE9", Got::Close(Some(1001))),
        (b"\x0F\xA0ok", Got::Close(Some(4000))),
        (b"\x03\xED", Got::Failed(CloseCode::Protocol)),
        (b"\x03\xE7", Got::Failed(CloseCode::Protocol)),
        (b"\x13\x88", Got::Failed(CloseCode::Protocol)),
        (b"\x03\xE8\xFF", Got::Failed(CloseCode::NoUtf8)),
    ] {
        assert_eq!(read(&frame(0x88, payload), 100, &[1]), [want], "{payload:?}");
    }
}

proptest! {
    /// Frames of any size in any fragments, cut anywhere, give the same messages.
    #[test]
    fn frames_cut_at_any_byte_give_the_same_result(
        messages in prop::collection::vec(prop::collection::vec(0usize..9000, 1..4), 1..5),
        sizes in prop::collection::vec(1usize..6000, 1..8),
    ) {
        let (mut input, mut want) = (Vec::new(), Vec::new());
        for (n, fragments) in messages.iter().enumerate() {
            let mut message = Vec::new();
            for (m, size) in fragments.iter().enumerate() {
                let payload: Vec<u8> = (0..*size).map(|at| (at ^ (at >> 8) ^ n) as u8).collect();
                let last = if m + 1 == fragments.len() { 0x80 } else { 0 };
                input.extend(frame(last | u8::from(m == 0), &payload));
                input.extend(frame(0x89, &[n as u8, m as u8]));
                message.extend(payload);
                if last != 0 {
                    want.push(Got::Message(std::mem::take(&mut message)));
                }
                want.push(Got::Ping(vec![n as u8, m as u8]));
            }
        }
        prop_assert!(read(&input, 30_000, &sizes) == want);
        prop_assert!(read(&input, 30_000, &[usize::MAX]) == want);
    }

    /// Whatever arrives, the outcome does not depend on where it is cut, and nothing panics.
    #[test]
    fn garbage_cut_anywhere_gives_the_same_result(
        input in prop::collection::vec(prop_oneof![any::<u8>(), Just(0x81), Just(0x80), Just(0x89)], 0..200),
        sizes in prop::collection::vec(1usize..20, 1..5),
    ) {
        prop_assert_eq!(read(&input, 50, &sizes), read(&input, 50, &[usize::MAX]));
    }
}

#[test]
fn our_own_frames_take_the_shortest_form() {
    for (len, header) in [
        (0, &[0x81, 0][..]),
        (125, &[0x81, 125]),
        (126, &[0x81, 126, 0, 126]),
        (65_535, &[0x81, 126, 0xFF, 0xFF]),
        (65_536, &[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
    ] {
        let mut out = BytesMut::new();
        let payload = vec![b'x'; len];
        let (first, second) = payload.split_at(len / 2);
        write_text(&[first, second], &mut out);
        assert_eq!(&out[..header.len()], header);
        assert!(out[header.len()..] == payload[..]);
    }
    let mut out = BytesMut::new();
    write_close(CloseCode::TooBig as u16, &mut out);
    write_pong(b"hi", &mut out);
    assert_eq!(&out[..], b"\x88\x02\x03\xF1\x8A\x02hi");
}

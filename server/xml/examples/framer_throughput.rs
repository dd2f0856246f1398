//! Prints how many bytes a second of processor time the framer proves well-formed: stanzas of about 200 bytes,
//! then some other mixes. `cargo run --release -p waystation-xml --example framer_throughput`

use std::hint::black_box;
use std::time::Duration;

use nix::time::ClockId;
use waystation_xml::fuzzing::HEADER;
use waystation_xml::{Element, Event, Framer, Limits, ns};

const MESSAGE: &str = "<message from='romeo@montague.example/orchard' to='juliet@capulet.example/balcony' \
    type='chat' id='ktx72v49' xml:lang='en'><body>Art thou not Romeo, and a Montague? Neither, fair saint, if \
    either thee dislike.</body></message>";
const MARKED_UP: &str = "<message to='juliet@capulet.example' type='chat' id='ktx72v49'><body>O</body>\
    <active xmlns='http://jabber.org/protocol/chatstates'/><request xmlns='urn:xmpp:receipts'/>\
    <origin-id xmlns='urn:xmpp:sid:0' id='ktx72v49'/></message>";
const JAPANESE: &str = "<message to='juliet@capulet.example'><body>ああロミオ様、ロミオ様!なぜロミオ様でいらっ\
    しゃいますの、あなたは?</body></message>";

fn main() {
    let large =
        format!("<iq type='set' id='1'><data xmlns='urn:x'>{}</data></iq>", "QUFBQUFB".repeat(12_000));
    measure("200-byte messages, 16 KiB reads", MESSAGE, 16_384);
    measure("200-byte messages, one a read", MESSAGE, MESSAGE.len());
    measure("200-byte messages, 100-byte reads", MESSAGE, 100);
    measure("much markup, 16 KiB reads", MARKED_UP, 16_384);
    measure("beyond ASCII, 16 KiB reads", JAPANESE, 16_384);
    measure("96 KB base64, 16 KiB reads", &large, 16_384);
    let started = processor_time();
    let mut count = 0u32;
    while count < 300_000 {
        black_box(Element::parse(black_box(MESSAGE.as_bytes()), ns::CLIENT).ok());
        count += 1;
    }
    report("tree of a 200-byte message", MESSAGE.len(), count, processor_time() - started);
}

/// What this thread has used: other work on the machine does not count.
fn processor_time() -> Duration {
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().expect("every Linux has this clock").into()
}

fn measure(what: &str, stanza: &str, read: usize) {
    let input = stanza.repeat((1 << 20) / stanza.len() + 1);
    let mut framer = Framer::new(Limits::authenticated());
    let mut header = HEADER;
    let _ = framer.next(&mut header);
    let started = processor_time();
    let mut stanzas = 0;
    while processor_time() - started < Duration::from_secs(1) {
        for chunk in input.as_bytes().chunks(read) {
            let mut rest = chunk;
            loop {
                match framer.next(&mut rest) {
                    Ok(Event::Stanza(frame)) => {
                        black_box(frame.head.attribute(frame.bytes, "to"));
                        stanzas += 1;
                    }
                    Ok(Event::NeedMore) => break,
                    other => panic!("unexpected {other:?}"),
                }
            }
        }
    }
    report(what, stanza.len(), stanzas, processor_time() - started);
}

#[allow(clippy::print_stdout, reason = "printing is what it is for")]
fn report(what: &str, bytes: usize, count: u32, elapsed: Duration) {
    let seconds = elapsed.as_secs_f64();
    let megabytes = f64::from(count) * bytes as f64 / seconds / 1e6;
    let nanoseconds = seconds * 1e9 / f64::from(count);
    println!("{what:36} {megabytes:8.0} MB/s {nanoseconds:8.0} ns each of {bytes} bytes");
}

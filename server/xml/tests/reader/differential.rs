//! Two more opinions on what the framer passes: expat, which many clients and servers read with, and
//! roxmltree. What we accept they must accept, as the same tree; what we refuse as ill-formed, expat must
//! refuse. The trees are those that quick-xml makes, so four parsers agree.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use waystation_xml::fuzzing::{self, HEADER};
use waystation_xml::{Event, Framer, Limits, XmlError, ns};

use crate::common;
use crate::generator::{self, HOSTILE, Random};

/// expat, in one Python process that lives as long as a test.
struct Expat {
    process: Child,
    to: ChildStdin,
    from: ChildStdout,
}

impl Expat {
    fn start() -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/xml/expat_oracle.py");
        let mut process = Command::new("python3")
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 starts");
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        Self { process, to, from }
    }

    /// The canonical form of a document, or why it is refused.
    fn judge(&mut self, document: &[u8]) -> Result<Vec<u8>, String> {
        let mut message = (document.len() as u32).to_be_bytes().to_vec();
        message.extend_from_slice(document);
        self.to.write_all(&message).unwrap();
        self.to.flush().unwrap();
        let mut length = [0; 4];
        self.from.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u32::from_be_bytes(length) as usize];
        self.from.read_exact(&mut answer).unwrap();
        let rest = answer.split_off(1);
        if answer == b"A" { Ok(rest) } else { Err(String::from_utf8(rest).unwrap()) }
    }
}

impl Drop for Expat {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What we make of a document.
#[derive(Debug, PartialEq, Eq)]
enum Ours {
    Accepted {
        canonical: Vec<u8>,
        /// The same stanzas under a usual header, as a server relays them.
        relayed: Vec<u8>,
        /// The same stanzas written anew under a usual header.
        written: Vec<u8>,
    },
    Unfinished,
    Refused(XmlError),
}

fn ours<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Ours {
    let mut framer = Framer::new(Limits::authenticated());
    let (mut canonical, mut relayed, mut written) = (Vec::new(), HEADER.to_vec(), HEADER.to_vec());
    let mut closed = false;
    for mut piece in pieces {
        loop {
            match framer.next(&mut piece) {
                Ok(Event::NeedMore) => break,
                Ok(Event::Whitespace(_) | Event::Open(_)) => {}
                Ok(Event::Close) => closed = true,
                Ok(Event::Stanza(frame)) => {
                    fuzzing::check_frame(&frame);
                    let element = frame.element().expect("what is passed can be parsed");
                    common::canonical(&mut canonical, &element);
                    element.write(&mut written, ns::CLIENT);
                    if frame.head.reserialise || frame.namespace() != ns::CLIENT {
                        element.write(&mut relayed, ns::CLIENT);
                    } else {
                        relayed.extend_from_slice(&fuzzing::relay(&frame));
                    }
                }
                Err(error) => return Ours::Refused(error),
            }
        }
    }
    if !closed {
        return Ours::Unfinished;
    }
    for document in [&mut relayed, &mut written] {
        document.extend_from_slice(b"</stream:stream>");
    }
    Ours::Accepted { canonical, relayed, written }
}

/// The canonical form that roxmltree arrives at.
fn roxmltree(document: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(document).map_err(|error| error.to_string())?;
    let tree = roxmltree::Document::parse(text).map_err(|error| error.to_string())?;
    let mut out = Vec::new();
    for child in tree.root_element().children().filter(|node| node.is_element()) {
        roxmltree_element(&mut out, child);
    }
    Ok(out)
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(format!("{}:{text}", text.len()).as_bytes());
}

fn roxmltree_element(out: &mut Vec<u8>, node: roxmltree::Node<'_, '_>) {
    out.push(b'(');
    string(out, node.tag_name().namespace().unwrap_or_default());
    string(out, node.tag_name().name());
    let mut attributes: Vec<_> =
        node.attributes().map(|a| (a.namespace().unwrap_or_default(), a.name(), a.value())).collect();
    attributes.sort_unstable();
    for (namespace, name, value) in attributes {
        out.push(b'@');
        string(out, namespace);
        string(out, name);
        string(out, value);
    }
    let mut text = String::new();
    for child in node.children() {
        if child.is_element() {
            flush(out, &mut text);
            roxmltree_element(out, child);
        } else {
            text.push_str(child.text().unwrap_or_default());
        }
    }
    flush(out, &mut text);
    out.push(b')');
}

fn flush(out: &mut Vec<u8>, text: &mut String) {
    if !text.is_empty() {
        out.push(b'T');
        string(out, text);
        text.clear();
    }
}

/// Compares all opinions on one document. True if it was accepted.
fn compare(expat: &mut Expat, document: &[u8]) -> bool {
    let shown = || document.escape_ascii().to_string();
    let ours = ours([document]);
    assert_eq!(ours, self::ours(document.chunks(1)), "by one: {}", shown());
    let theirs = expat.judge(document);
    match &ours {
        Ours::Accepted { canonical, relayed, written } => {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            // roxmltree takes a literal carriage return before a reference to one for a reference itself.
            let lenient = document.contains(&b'\r');
            let same = |who: &str, theirs: Result<Vec<u8>, String>| {
                let theirs = theirs.unwrap_or_else(|error| panic!("{who} refuses: {error}: {}", shown()));
                let (mut theirs, mut ours) = (text(&theirs), text(canonical));
                if lenient && who.starts_with("roxmltree") {
                    (theirs, ours) = (theirs.replace('\r', "\n"), ours.replace('\r', "\n"));
                }
                assert_eq!(theirs, ours, "{who}: {}", shown());
            };
            same("expat", theirs);
            same("roxmltree", roxmltree(document.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(document)));
            same("expat, relayed", expat.judge(relayed));
            same("roxmltree, relayed", roxmltree(relayed));
            same("expat, written", expat.judge(written));
            same("roxmltree, written", roxmltree(written));
        }
        Ours::Unfinished => assert!(theirs.is_err(), "expat accepts what is unfinished: {}", shown()),
        Ours::Refused(XmlError::NotWellFormed) => {
            assert!(theirs.is_err(), "expat accepts what is ill-formed to us: {}", shown());
        }
        // XML that is well-formed but not allowed: see the documentation of the crate.
        Ours::Refused(
            XmlError::Restricted
            | XmlError::UnsupportedEncoding
            | XmlError::InvalidNamespace
            | XmlError::BadFormat,
        ) => {}
        Ours::Refused(error) => panic!("unexpected {error:?}: {}", shown()),
    }
    matches!(ours, Ours::Accepted { .. })
}

/// Every place of a stream where hostile input may stand; `@` is that place.
const PLACES: [&str; 22] = [
    "@<stream:stream xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'></stream:stream>",
    "<?xml version='1.0'?>@<stream:stream xmlns='jabber:client' \
     xmlns:stream='http://etherx.jabber.org/streams'/>",
    "<stream:stream xmlns='jabber:client'@ xmlns:stream='http://etherx.jabber.org/streams'></stream:stream>",
    "H@</stream:stream>",
    "H<message>@</message></stream:stream>",
    "H<message>x@y</message></stream:stream>",
    "H<message><body>@</body></message></stream:stream>",
    "H<message><![CDATA[x@y]]></message></stream:stream>",
    "H<message a='@'/></stream:stream>",
    "H<message a=\"x@y\"/></stream:stream>",
    "H<message @a='b'/></stream:stream>",
    "H<message a='b'@/></stream:stream>",
    "H<message x='b' @></message></stream:stream>",
    "H<message xmlns:a='urn:x' xmlns:b='urn:x'@/></stream:stream>",
    "H<message xmlns:a='@'><a:b/></message></stream:stream>",
    "H<message xmlns='@'><b/></message></stream:stream>",
    "H<message><@/></message></stream:stream>",
    "H<message><b@/></message></stream:stream>",
    "H<message>@<a:b xmlns:a='urn:a' a:c='d'/></message></stream:stream>",
    "H<message></message@></stream:stream>",
    "H<message/></stream:stream@>",
    "H<message/></stream:stream>@",
];

fn place(place: &str, with: &[u8]) -> Vec<u8> {
    let place = place.replace('H', std::str::from_utf8(HEADER).unwrap());
    let (before, after) = place.split_once('@').unwrap();
    [before.as_bytes(), with, after.as_bytes()].concat()
}

/// X2 to X7: each hostile piece at each place, alone, before and after a letter, and with any other.
#[test]
fn x7_hostile_pieces_at_every_place() {
    let mut expat = Expat::start();
    let (mut cases, mut accepted) = (0, 0);
    for at in PLACES {
        for piece in HOSTILE {
            for with in [piece.to_vec(), [b"x", piece].concat(), [piece, b"x"].concat()] {
                cases += 1;
                accepted += usize::from(compare(&mut expat, &place(at, &with)));
            }
        }
    }
    assert!(accepted > cases / 20, "{accepted} of {cases}");
}

#[test]
fn x7_hostile_pairs_in_content_and_values() {
    let mut expat = Expat::start();
    for at in [PLACES[4], PLACES[8], PLACES[13], PLACES[16]] {
        for first in HOSTILE {
            for second in HOSTILE {
                compare(&mut expat, &place(at, &[first, second].concat()));
            }
        }
    }
}

/// X5: every split of hostile input gives what the whole gives.
#[test]
fn x5_hostile_pieces_split_at_every_byte() {
    for at in PLACES {
        for piece in HOSTILE {
            common::every_split(&place(at, piece));
        }
    }
}

#[test]
fn x7_generated_documents() {
    let mut random = Random::from_environment();
    let mut expat = Expat::start();
    let mut accepted = 0;
    for _ in 0..4000 {
        accepted += usize::from(compare(&mut expat, &generator::document(&mut random)));
    }
    assert!(accepted > 1000, "only {accepted} of 4000 were well-formed");
}

#[test]
fn x7_mutated_documents() {
    let mut random = Random::from_environment();
    let mut expat = Expat::start();
    for index in 0..12_000 {
        let mut document = generator::document(&mut random);
        generator::mutate(&mut random, &mut document);
        compare(&mut expat, &document);
        if index % 100 == 0 {
            common::every_split(&document);
        }
    }
}

/// What the fuzzers of this crate start from and found.
#[test]
fn x7_fuzzing_corpora() {
    let mut expat = Expat::start();
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (target, has_header) in [("xml_stream", true), ("xml_roundtrip", false)] {
        for entry in std::fs::read_dir(folder.join(target)).expect("the corpus is there") {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            if has_header {
                // The first line says how to split the rest, and does not matter here.
                let start = data.iter().position(|b| *b == b'\n').map_or(data.len(), |end| end + 1);
                compare(&mut expat, &data[start..]);
            } else {
                compare(&mut expat, &[HEADER, &data, b"</stream:stream>"].concat());
            }
        }
    }
}

/// The characters of names are those of expat, each of them, alone and after a letter.
#[test]
fn x7_names_are_those_that_expat_takes() {
    let mut expat = Expat::start();
    for code in (0x80..0x3200).chain(0x4DF0..0x4E20).chain(0x9F90..0xAC10).chain(0xD790..0x10010) {
        if let Some(c) = char::from_u32(code) {
            for name in [format!("{c}"), format!("a{c}")] {
                let document =
                    format!("<s:stream xmlns:s='http://etherx.jabber.org/streams'><{name}/></s:stream>");
                let ours = ours([document.as_bytes()]);
                let theirs = expat.judge(document.as_bytes());
                assert_eq!(matches!(ours, Ours::Accepted { .. }), theirs.is_ok(), "U+{code:04X} {name}");
            }
        }
    }
}

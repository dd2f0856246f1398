//! Makes XML streams, most of them well-formed, and breaks some of them.

/// A small random number generator (splitmix64): tests print its seed, so that a failure can be repeated.
pub(crate) struct Random(u64);

impl Random {
    /// Starts from the seed in `XML_TEST_SEED`, or from a new one.
    pub(crate) fn from_environment() -> Self {
        let seed = match std::env::var("XML_TEST_SEED") {
            Ok(seed) => seed.parse().expect("XML_TEST_SEED is a number"),
            Err(_) => std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_nanos() as u64,
        };
        println!("XML_TEST_SEED={seed}");
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

const NAMES: [&str; 12] =
    ["message", "iq", "presence", "body", "x", "a", "b", "q-1", "_", "été", "名前", "xmlns"];
const PREFIXES: [&str; 6] = ["a", "b", "stream", "xml", "p.1", "ж"];
const NAMESPACES: [&str; 10] = [
    "jabber:client",
    "jabber:server",
    "http://etherx.jabber.org/streams",
    "http://www.w3.org/XML/1998/namespace",
    "urn:a",
    "urn:b",
    "urn:&#97;",
    "jabber&#58;client",
    "urn:with space|\tand\nmore &amp; 'é",
    "",
];
const TEXTS: [&str; 20] = [
    "hello",
    " ",
    "\n",
    "\r\n",
    "\r",
    "\t",
    "&lt;",
    "&gt;&amp;&apos;&quot;",
    "&#65;",
    "&#x42;",
    "&#13;",
    "&#xD;&#10;&#9;",
    "]]",
    "]",
    "\u{7F}",
    "\u{85}\u{2028}",
    "é",
    "日本語",
    "\u{1F600}",
    "\u{FFFD}\u{10FFFF}\u{FDD0}",
];

/// Pieces that hostile input is made of.
pub(crate) const HOSTILE: [&[u8]; 64] = [
    b"<",
    b">",
    b"/",
    b"/>",
    b"</",
    b"'",
    b"\"",
    b"=",
    b"&",
    b";",
    b"&#",
    b"&#x",
    b":",
    b" ",
    b"<!--",
    b"-->",
    b"<![CDATA[",
    b"]]>",
    b"<?",
    b"?>",
    b"<?xml version='1.0'?>",
    b"<!DOCTYPE x>",
    b"&foo;",
    b"&#0;",
    b"&#xFFFE;",
    b"&#xD800;",
    b"&#x110000;",
    b"&lt;",
    b"&#38;",
    b"\0",
    b"\x01",
    b"\x0B",
    b"\x1F",
    b"\x7F",
    b"\xC0\xAF",
    b"\xE0\x80\xBC",
    b"\xED\xA0\x80",
    b"\xF0\x80\x80\xBC",
    b"\xF4\x90\x80\x80",
    b"\xFF",
    b"\xC3",
    b"\xE2\x82",
    b"\xF0\x9F\x98",
    b"\xEF\xBF\xBE",
    b"\xEF\xBF\xBF",
    b"\xEF\xBB\xBF",
    b"\xCC\x81",
    b"xmlns=''",
    b" xmlns:a=''",
    b" xmlns:a='urn:a'",
    b" xmlns:xml='urn:x'",
    b" xmlns:xmlns='urn:x'",
    b" xmlns='jabber:client'",
    b" a:x='1'",
    b" b:x='1'",
    b" x='1'",
    b"a:",
    b":a",
    b"a:b:c",
    b"</stream:stream>",
    b"<stream:stream>",
    b"<a/>",
    b"</a>",
    b"\xF0\x90\x80\x80",
];

fn space(r: &mut Random, out: &mut String) {
    out.push_str(r.pick(&[" ", " ", " ", "\n", "\t", "\r\n", "  "]));
}

fn value(r: &mut Random, raw: &str, out: &mut String) {
    let quote = if raw.contains('\'') || r.one_in(2) { '"' } else { '\'' };
    out.push(quote);
    out.push_str(raw);
    out.push(quote);
}

/// Appends an element; `scope` holds the prefixes that may be used.
fn element(r: &mut Random, depth: usize, scope: &[&str], out: &mut String) {
    let mut scope = scope.to_vec();
    let mut attributes = String::new();
    let mut declared: Vec<&str> = Vec::new();
    for _ in 0..[0, 0, 0, 1, 1, 2][r.below(6)] {
        let prefix = r.pick(&["", "a", "b", "p.1", "ж", "stream"]);
        if declared.contains(&prefix) {
            continue;
        }
        declared.push(prefix);
        let namespace = r.pick(&NAMESPACES);
        // Now and then something that may not be declared slips through.
        let allowed = !namespace.contains("/XML/") && (prefix.is_empty() || !namespace.is_empty());
        if !allowed && !r.one_in(10) {
            continue;
        }
        space(r, &mut attributes);
        attributes.push_str(&if prefix.is_empty() { "xmlns".into() } else { format!("xmlns:{prefix}") });
        attributes.push('=');
        value(r, namespace, &mut attributes);
        if !prefix.is_empty() {
            scope.push(prefix);
        }
    }
    let mut used: Vec<String> = Vec::new();
    for _ in 0..[0, 0, 1, 1, 2, 3, 12][r.below(7)] {
        let mut name = r.pick(&["to", "id", "type", "lang", "x", "y", "z", "é"]).to_owned();
        if r.one_in(3) {
            name = format!("{}:{name}", if r.one_in(30) { r.pick(&PREFIXES) } else { r.pick(&scope) });
        }
        if used.contains(&name) && !r.one_in(30) {
            continue;
        }
        space(r, &mut attributes);
        attributes.push_str(&name);
        attributes.push_str(r.pick(&["=", "=", "=", " = ", "=\n"]));
        let mut raw = String::new();
        for _ in 0..r.below(3) {
            raw.push_str(r.pick(&TEXTS));
        }
        value(r, &raw, &mut attributes);
        used.push(name);
    }
    let mut name = r.pick(&NAMES).to_owned();
    if r.one_in(4) {
        name = format!("{}:{name}", if r.one_in(30) { r.pick(&PREFIXES) } else { r.pick(&scope) });
    }
    out.push('<');
    out.push_str(&name);
    out.push_str(&attributes);
    if r.one_in(3) {
        space(r, out);
    }
    if r.one_in(4) {
        out.push_str("/>");
        return;
    }
    out.push('>');
    for _ in 0..r.below(4) {
        match r.below(6) {
            0 => out.push_str("<![CDATA[a<b>&c;]] >]]>"),
            1 | 2 if depth > 0 => element(r, depth - 1, &scope, out),
            _ => out.push_str(r.pick(&TEXTS)),
        }
    }
    out.push_str("</");
    out.push_str(&name);
    if r.one_in(5) {
        space(r, out);
    }
    out.push('>');
}

/// A whole stream from the header to the end.
pub(crate) fn document(r: &mut Random) -> Vec<u8> {
    let mut out = String::new();
    if r.one_in(8) {
        out.push('\u{FEFF}');
    }
    if r.one_in(2) {
        out.push_str(r.pick(&["<?xml version='1.0'?>", "<?xml version=\"1.0\" encoding=\"UTF-8\" ?>\n"]));
    }
    let (head, prefix) = match r.below(6) {
        0 => (" xmlns='http://etherx.jabber.org/streams'", ""),
        1 => (" xmlns:s='http://etherx.jabber.org/streams' xmlns='jabber:server'", "s:"),
        2 => (
            " xmlns:stream='http://etherx.jabber.org/streams' xmlns='jabber:client' xmlns:a='urn:a' \
             xmlns:b='jabber:client'",
            "stream:",
        ),
        _ => (" xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'", "stream:"),
    };
    out.push_str(&format!("<{prefix}stream to='localhost' version='1.0'{head}>"));
    let scope: &[&str] = match prefix {
        "" => &["xml"],
        "s:" => &["s", "xml"],
        _ if head.contains("xmlns:a") => &["stream", "a", "b", "xml"],
        _ => &["stream", "xml"],
    };
    for _ in 0..r.below(4) {
        if r.one_in(3) {
            space(r, &mut out);
        }
        element(r, 3, scope, &mut out);
    }
    out.push_str(&format!("</{prefix}stream>"));
    out.into_bytes()
}

/// Breaks a document, or tries to.
pub(crate) fn mutate(r: &mut Random, document: &mut Vec<u8>) {
    for _ in 0..1 + r.below(3) {
        let at = r.below(document.len() + 1);
        match r.below(6) {
            0 | 1 => {
                document.splice(at..at, HOSTILE[r.below(HOSTILE.len())].iter().copied());
            }
            2 if at < document.len() => {
                document.remove(at);
            }
            3 if at < document.len() => document[at] = r.next() as u8,
            4 => {
                let end = (at + r.below(20)).min(document.len());
                let copy = document[at..end].to_vec();
                let to = r.below(document.len() + 1);
                document.splice(to..to, copy);
            }
            _ => {
                let end = (at + 1 + r.below(4)).min(document.len());
                let with = HOSTILE[r.below(HOSTILE.len())];
                document.splice(at..end, with.iter().copied());
            }
        }
    }
}

use super::*;

const HEADER: &str = "<?xml version='1.0'?><stream:stream xmlns='jabber:client' \
    xmlns:stream='http://etherx.jabber.org/streams' id='1' from='example.org' version='1.0'>";
const BOUND: &str = "<iq type='result' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'>\
    <jid>juliet@example.org/balcony</jid></bind></iq>";
const ENABLED: &str = "<enabled xmlns='urn:xmpp:sm:3' id='key' resume='true' max='150'/>";

struct Test {
    upstream: Upstream,
    out: Vec<u8>,
}

impl Test {
    fn new() -> Self {
        let mut test = Self {
            upstream: Upstream::new(Limits::authenticated(), Duration::from_secs(150)),
            out: Vec::new(),
        };
        test.upstream.open("example.org", None, Some("en"), &mut test.out);
        test.out.clear();
        test.server(HEADER);
        test
    }

    /// Bound, with stream management.
    fn bound() -> Self {
        let mut test = Self::new();
        test.server(BOUND);
        test.server(ENABLED);
        test.out.clear();
        test
    }

    fn resuming(resumption: Resumption) -> Self {
        let upstream = Upstream::resuming(Limits::authenticated(), Duration::from_secs(150), resumption);
        Self { upstream, out: Vec::new() }
    }

    fn server(&mut self, xml: &str) -> Vec<Event> {
        let mut events = Vec::new();
        self.upstream.receive(xml.as_bytes(), &mut self.out, &mut events);
        events
    }

    /// What the client gets.
    fn payloads(&mut self, xml: &str) -> Vec<String> {
        let payload = |event| match event {
            Event::Payload(payload) => String::from_utf8(payload.bytes.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        };
        self.server(xml).into_iter().map(payload).collect()
    }

    /// What the client gets for a payload at once.
    fn client(&mut self, xml: &str) -> Option<String> {
        let element = Element::parse(xml.as_bytes(), NS_CLIENT).unwrap();
        let payload = self.upstream.send(&element, &mut self.out)?;
        Some(String::from_utf8(payload.bytes.to_vec()).unwrap())
    }

    fn written(&mut self) -> String {
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }
}

fn resumption() -> Resumption {
    Resumption {
        account: Jid::parse("juliet@example.org").unwrap(),
        id: "key".into(),
        sent: 5,
        confirmed: 2,
        acknowledged: 2,
        got: 4,
        expected: VecDeque::new(),
        counting: None,
    }
}

fn message(id: &str) -> String {
    format!(
        "<message id='m'><body>hi</body><stanza-id xmlns='urn:xmpp:sid:0' by='juliet@example.org' id='{id}'/></message>"
    )
}

fn identity(xml: &str) -> Identity {
    let element = Element::parse(xml.as_bytes(), NS_CLIENT).unwrap();
    Identity::of(&element, &Jid::parse("juliet@example.org").unwrap())
}

#[test]
fn elements_are_handed_on_as_they_stand_in_a_wrapper() {
    let mut test = Test::new();
    for (xml, expected) in [
        (
            "<message to='a@b'><body>x</body></message>",
            "<message xmlns='jabber:client' to='a@b'><body>x</body></message>",
        ),
        ("<presence/>", "<presence xmlns='jabber:client'/>"),
        ("<message xmlns='jabber:client'/>", "<message xmlns='jabber:client'/>"),
        (
            "<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>x</challenge>",
            "<challenge xmlns='urn:ietf:params:xml:ns:xmpp-sasl'>x</challenge>",
        ),
        (
            "<stream:features><a xmlns='urn:a'/></stream:features>",
            "<stream:features><a xmlns='urn:a'/></stream:features>",
        ),
        // A prefix of the stream header would be lost.
        (
            "<message><stream:x/></message>",
            "<message xmlns='jabber:client'><x xmlns='http://etherx.jabber.org/streams'/></message>",
        ),
    ] {
        assert_eq!(test.payloads(xml), [expected]);
    }
}

#[test]
fn xep_0206_4_the_stream_header_says_whom_it_is_for() {
    let mut upstream = Upstream::new(Limits::authenticated(), Duration::ZERO);
    let mut out = Vec::new();
    upstream.open("it's", Some("juliet@example.org"), Some("en"), &mut out);
    let mut framer = Framer::new(Limits::authenticated());
    let mut input = &out[..];
    let open = loop {
        if let XmlEvent::Open(open) = framer.next(&mut input).unwrap() {
            break open;
        }
    };
    assert_eq!((open.to.as_deref(), open.from.as_deref()), (Some("it's"), Some("juliet@example.org")));
    assert_eq!((open.version.as_deref(), open.lang.as_deref()), (Some("1.0"), Some("en")));
}

#[test]
fn xep_0206_5_a_new_stream_follows_authentication() {
    let mut test = Test::new();
    assert_eq!(test.payloads("<success xmlns='urn:ietf:params:xml:ns:xmpp-sasl'/>").len(), 1);
    test.upstream.open("example.org", None, None, &mut test.out);
    assert_eq!(test.payloads(&format!("{HEADER}<stream:features/>")), ["<stream:features/>"]);
    // At any other time the server says what it thinks of it, on the stream there is.
    test.upstream.open("example.org", None, None, &mut test.out);
    assert!(matches!(test.server("<stream:error/>")[..], [Event::Error(_, false)]));
}

#[test]
fn stream_management_is_enabled_as_soon_as_a_resource_is_bound() {
    let mut test = Test::new();
    assert_eq!(test.payloads(BOUND).len(), 1);
    assert_eq!(test.written(), "<enable xmlns='urn:xmpp:sm:3' resume='true' max='150'/>");
    assert_eq!(test.upstream.resumable(), None);
    assert_eq!(test.payloads(ENABLED), [""; 0], "the client did not ask for it");
    let (account, id) = test.upstream.resumable().unwrap();
    assert_eq!((account.as_str(), id), ("juliet@example.org", "key"));
}

#[test]
fn what_a_request_brought_is_safe_when_the_server_says_so() {
    let mut test = Test::bound();
    assert_eq!(test.client("<message/>"), None);
    assert_eq!(test.client("<active xmlns='urn:xmpp:csi:0'/>"), None);
    test.client("<iq/>");
    test.upstream.end_request(&mut test.out);
    assert_eq!(test.written(), "<message/><active xmlns='urn:xmpp:csi:0'/><iq/><r xmlns='urn:xmpp:sm:3'/>");
    assert_eq!((test.upstream.sent(), test.upstream.safe()), (2, 0));
    assert!(test.payloads("<a xmlns='urn:xmpp:sm:3' h='1'/>").is_empty());
    assert_eq!(test.upstream.safe(), 1);
    // More than there was, and less than before.
    for h in ["3", "0", "x", "4294967295"] {
        test.server(&format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>"));
        assert_eq!(test.upstream.safe(), 1);
    }
    test.server("<a xmlns='urn:xmpp:sm:3' h='2'/>");
    test.upstream.end_request(&mut test.out);
    assert_eq!((test.upstream.safe(), test.written().as_str()), (2, " "));
}

#[test]
fn the_server_hears_what_the_client_has_got_when_that_is_known() {
    let mut test = Test::bound();
    test.server("<message/><message/><r xmlns='urn:xmpp:sm:3'/>");
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='0'/>");
    test.upstream.confirm(1, &mut test.out);
    test.upstream.confirm(1, &mut test.out);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='1'/>");
    test.upstream.confirm(9, &mut test.out);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='2'/>");
    test.upstream.close(&mut test.out);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='2'/></stream:stream>");
}

#[test]
fn xep_0198_3_a_client_may_manage_its_stream_itself() {
    let mut test = Test::bound();
    assert_eq!(
        test.client("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").as_deref(),
        Some("<enabled xmlns='urn:xmpp:sm:3' id='key' resume='true' max='150'/>")
    );
    assert_eq!(
        test.client("<r xmlns='urn:xmpp:sm:3'/>").as_deref(),
        Some("<a xmlns='urn:xmpp:sm:3' h='0'/>")
    );
    test.client("<message/>");
    assert_eq!(test.client("<r xmlns='urn:xmpp:sm:3'/>"), None, "it is not safe yet");
    assert_eq!(test.payloads("<a xmlns='urn:xmpp:sm:3' h='1'/>"), ["<a xmlns='urn:xmpp:sm:3' h='1'/>"]);
    test.server("<message/><message/>");
    test.written();
    assert_eq!(test.client("<a xmlns='urn:xmpp:sm:3' h='2'/>"), None);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='2'/>");
    assert_eq!(test.upstream.confirmed(), 2);
    for again in ["enable", "resume"] {
        let answer = test.client(&format!("<{again} xmlns='urn:xmpp:sm:3'/>")).unwrap();
        assert!(answer.starts_with("<failed xmlns='urn:xmpp:sm:3'><unexpected-request"), "{answer}");
    }
    // Section 6: what is too high is for the server to refuse.
    assert_eq!(test.client("<a xmlns='urn:xmpp:sm:3' h='3'/>"), None);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='3'/>");
}

#[test]
fn xep_0198_3_a_client_that_counts_later_gets_its_own_numbers() {
    let mut test = Test::bound();
    assert!(test.client("<r xmlns='urn:xmpp:sm:3'/>").unwrap().contains("unexpected-request"));
    for _ in 0..3 {
        test.client("<message/>");
    }
    test.server("<message/><message/><a xmlns='urn:xmpp:sm:3' h='3'/>");
    // Its numbers are not the stream's: it could not resume with them.
    assert_eq!(
        test.client("<enable xmlns='urn:xmpp:sm:3' resume='true'/>").as_deref(),
        Some("<enabled xmlns='urn:xmpp:sm:3'/>")
    );
    test.client("<message/>");
    test.client("<r xmlns='urn:xmpp:sm:3'/>");
    assert_eq!(test.payloads("<a xmlns='urn:xmpp:sm:3' h='4'/>"), ["<a xmlns='urn:xmpp:sm:3' h='1'/>"]);
    test.server("<message/>");
    test.written();
    test.client("<a xmlns='urn:xmpp:sm:3' h='1'/>");
    assert_eq!((test.upstream.confirmed(), test.written().as_str()), (3, "<a xmlns='urn:xmpp:sm:3' h='3'/>"));
}

#[test]
fn xep_0198_3_a_client_may_ask_before_the_gateway_has_its_answer() {
    let mut test = Test::new();
    test.server(BOUND);
    assert_eq!(test.client("<enable xmlns='urn:xmpp:sm:3' resume='1'/>"), None);
    assert_eq!(test.payloads(ENABLED), ["<enabled xmlns='urn:xmpp:sm:3' id='key' resume='true' max='150'/>"]);
}

#[test]
fn a_server_that_refuses_stream_management_is_one_without() {
    let mut test = Test::new();
    test.server(BOUND);
    test.client("<message/>");
    assert!(test.payloads("<failed xmlns='urn:xmpp:sm:3'/>").is_empty());
    test.client("<message/>");
    assert_eq!(test.upstream.safe(), u64::MAX);
    test.written();
    test.upstream.end_request(&mut test.out);
    assert_eq!(test.written(), " ");
    assert!(test.client("<enable xmlns='urn:xmpp:sm:3'/>").unwrap().contains("unexpected-request"));
    assert_eq!(test.upstream.resumable(), None);
}

#[test]
fn xep_0198_5_a_client_may_resume_a_session_of_its_own() {
    let mut test = Test::new();
    assert_eq!(test.client("<resume xmlns='urn:xmpp:sm:3' previd='x' h='7'/>"), None);
    assert!(test.written().contains("resume"));
    assert_eq!(
        test.payloads("<resumed xmlns='urn:xmpp:sm:3' previd='x' h='9'/><message/>"),
        ["<resumed xmlns='urn:xmpp:sm:3' previd='x' h='9'/>", "<message xmlns='jabber:client'/>"]
    );
    test.client("<message/>");
    assert_eq!((test.upstream.sent(), test.upstream.safe()), (10, 9));
    test.client("<a xmlns='urn:xmpp:sm:3' h='8'/>");
    assert!(test.written().ends_with("<a xmlns='urn:xmpp:sm:3' h='8'/>"));
    assert_eq!(test.upstream.resumable(), None);
    // One that fails may bind.
    let mut test = Test::new();
    test.client("<resume xmlns='urn:xmpp:sm:3' previd='x' h='7'/>");
    assert_eq!(test.payloads("<failed xmlns='urn:xmpp:sm:3'/>").len(), 1);
    test.server(BOUND);
    assert!(test.written().contains("<enable"));
}

#[test]
fn stream_errors_and_the_end_are_told() {
    let mut test = Test::bound();
    let error = |condition| {
        format!(
            "<stream:error><{condition} xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error></stream:stream>"
        )
    };
    assert!(matches!(test.server(&error("conflict"))[..], [Event::Error(_, false), Event::Closed]));
    let mut test = Test::bound();
    assert!(matches!(test.server(&error("system-shutdown"))[..], [Event::Error(_, true), Event::Closed]));
    let mut test = Test::bound();
    assert!(matches!(test.server("</other>")[..], [Event::Garbled]));
}

#[test]
fn after_a_restart_only_what_was_not_accepted_is_sent_again() {
    let mut test = Test::resuming(resumption());
    assert_eq!(test.server(&format!("{HEADER}<stream:features/>")), [Event::Features]);
    test.upstream.resume(&mut test.out);
    assert_eq!(test.written(), "<resume xmlns='urn:xmpp:sm:3' previd='key' h='2'/>");
    // Five with requests that were answered, and two of the three of the one that is repeated.
    assert_eq!(test.server("<resumed xmlns='urn:xmpp:sm:3' previd='key' h='7'/>"), [Event::Resumed]);
    for id in ["6", "7", "8"] {
        test.client(&format!("<message id='{id}'/>"));
    }
    test.client("<active xmlns='urn:xmpp:csi:0'/>");
    test.upstream.end_request(&mut test.out);
    assert_eq!(test.written(), "<message id='8'/><active xmlns='urn:xmpp:csi:0'/><r xmlns='urn:xmpp:sm:3'/>");
    assert_eq!((test.upstream.sent(), test.upstream.safe()), (8, 7));
    test.server("<a xmlns='urn:xmpp:sm:3' h='8'/>");
    assert_eq!(test.upstream.safe(), 8);
}

#[test]
fn after_a_restart_what_is_in_a_stored_response_is_not_given_again() {
    let expected = [(3, identity("<presence/>")), (4, identity(&message("r4")))].into();
    let mut test = Test::resuming(Resumption { expected, ..resumption() });
    test.server(&format!("{HEADER}<stream:features/><resumed xmlns='urn:xmpp:sm:3' previd='key' h='5'/>"));
    // The presence was lost with the server; the message comes again, late, and a new one.
    let late = message("r4").replace("</message>", "<delay xmlns='urn:xmpp:delay'/></message>");
    let events = test.server(&format!("{late}{}", message("r5")));
    let [Event::Payload(payload)] = &events[..] else { panic!("{events:?}") };
    assert!(payload.bytes.windows(2).any(|w| w == b"r5"));
    assert_eq!(payload.number, 5, "the count goes on");
    // On the stream the numbers begin anew: 3 for the repeated one and 4 for the new one.
    test.upstream.confirm(4, &mut test.out);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='3'/>");
    test.upstream.confirm(5, &mut test.out);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='4'/>");
}

#[test]
fn what_only_looks_the_same_is_given() {
    let same = "<message type='groupchat'><body>hi</body></message>";
    let mut test = Test::resuming(Resumption {
        expected: [(3, identity(same)), (4, identity(same))].into(),
        ..resumption()
    });
    test.server(&format!("{HEADER}<stream:features/><resumed xmlns='urn:xmpp:sm:3' previd='key' h='5'/>"));
    assert!(test.server(same).is_empty());
    // A new one came: all that were sent again came before it.
    assert_eq!(test.server(&message("new")).len(), 1);
    assert_eq!(test.server(same).len(), 1);
}

#[test]
fn a_session_that_is_gone_is_told_apart_from_one_that_cannot_be_had_now() {
    for (answer, gone) in [
        (
            "<failed xmlns='urn:xmpp:sm:3'><item-not-found xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>",
            true,
        ),
        (
            "<failed xmlns='urn:xmpp:sm:3'><internal-server-error xmlns='urn:ietf:params:xml:ns:xmpp-stanzas'/></failed>",
            false,
        ),
        // Less than was said to be safe: it is not that session.
        ("<resumed xmlns='urn:xmpp:sm:3' previd='key' h='4'/>", true),
        ("<resumed xmlns='urn:xmpp:sm:3' previd='key'/>", false),
    ] {
        let mut test = Test::resuming(resumption());
        let events = test.server(&format!("{HEADER}<stream:features/>{answer}"));
        if answer.contains("previd='key'/>") {
            assert_eq!(events, [Event::Features, Event::Resumed]);
        } else {
            assert_eq!(events, [Event::Features, Event::NotResumed(gone)], "{answer}");
        }
    }
}

#[test]
fn numbers_wrap_at_2_to_the_32nd() {
    let sent = u64::from(u32::MAX);
    let mut test =
        Test::resuming(Resumption { sent, confirmed: sent, acknowledged: sent, got: sent, ..resumption() });
    test.server(&format!("{HEADER}<stream:features/><resumed xmlns='urn:xmpp:sm:3' previd='key' h='1'/>"));
    assert_eq!(test.upstream.safe(), sent + 2);
    test.server("<message/><message/>");
    test.upstream.confirm(sent + 2, &mut test.out);
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='1'/>");
}

#[test]
fn what_nobody_misses_is_acknowledged_at_once() {
    let mut test = Test::bound();
    let result = "<message from='juliet@example.org'><result xmlns='urn:xmpp:mam:2' id='1'/></message>";
    for volatile in
        ["<presence/>", "<presence type='unavailable'/>", "<iq type='result'/>", "<iq type='error'/>", result]
    {
        test.server(volatile);
    }
    test.server("<r xmlns='urn:xmpp:sm:3'/>");
    assert_eq!(test.written(), "<a xmlns='urn:xmpp:sm:3' h='5'/>");
    for missed in
        ["<message/>", "<iq type='get'/>", "<presence type='subscribe'/>", &result.replace("juliet", "romeo")]
    {
        let before = test.upstream.numbers.count;
        test.server(missed);
        test.server("<iq type='result'/>");
        assert_eq!(test.upstream.acknowledged(), before, "{missed}");
        test.upstream.confirm(before + 1, &mut test.out);
        assert_eq!(test.written(), format!("<a xmlns='urn:xmpp:sm:3' h='{}'/>", before + 2), "{missed}");
    }
}

#[test]
fn a_stream_that_was_resumed_before_is_resumed_with_its_own_numbers() {
    // 40 stanzas for the client, of which the stream that was begun anew knows 7.
    let resumption = Resumption { confirmed: 38, acknowledged: 5, got: 40, ..resumption() };
    let expected = [(39, identity(&message("r39"))), (40, identity(&message("r40")))].into();
    let mut test = Test::resuming(Resumption { expected, ..resumption });
    test.server(&format!("{HEADER}<stream:features/>"));
    test.upstream.resume(&mut test.out);
    assert!(test.written().contains("h='5'"));
    test.server("<resumed xmlns='urn:xmpp:sm:3' previd='key' h='5'/>");
    test.server(&format!("{}{}{}", message("r39"), message("r40"), message("r41")));
    assert_eq!(test.upstream.acknowledged(), 5);
    for (confirmed, h) in [(39, 6), (40, 7), (41, 8)] {
        test.upstream.confirm(confirmed, &mut test.out);
        assert_eq!(test.written(), format!("<a xmlns='urn:xmpp:sm:3' h='{h}'/>"));
    }
}

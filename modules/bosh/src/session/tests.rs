use std::collections::HashMap;

use proptest::prelude::*;
use waystation_core::xml::{Element, Limits};

use super::answer::FEATURES;
use super::*;
use crate::body::{self, NS_CLIENT, NS_XBOSH};

const FIRST: u64 = 1_000_000;
const SECOND: Duration = Duration::from_secs(1);

fn terms(wait: u64, hold: usize) -> Terms {
    Terms {
        wait: Duration::from_secs(wait),
        hold,
        requests: hold + 1,
        inactivity: Duration::from_secs(60),
        polling: Duration::from_secs(5),
        max_pause: Duration::from_secs(120),
        acks: false,
        legacy: false,
        version: VERSION,
    }
}

/// A client with its session. Tickets are numbered in the order of the requests.
struct Test {
    session: Session<u32>,
    now: Instant,
    tickets: u32,
    /// Responses by ticket.
    got: HashMap<u32, Response>,
    /// Payloads in the order in which they went to the stream, and what is no payload.
    stream: Vec<String>,
    sent: u64,
    /// Stanzas are safe as soon as they are sent.
    safe: bool,
    number: u64,
}

impl Test {
    /// A session whose creation was answered.
    fn new(terms: Terms) -> Self {
        let mut test = Self::created(terms, FIRST, &request(FIRST));
        test.payload("<stream:features/>");
        assert!(test.body(0).attr("sid").is_some());
        test
    }

    fn created(terms: Terms, rid: u64, request: &Request) -> Self {
        let now = Instant::now();
        let creation = creation(&terms, "the-sid", "example.org", rid);
        let session = Session::create(terms, request, creation, 0, now).map_err(|_| "refused").unwrap();
        let mut test = Self {
            session,
            now,
            tickets: 0,
            got: HashMap::new(),
            stream: Vec::new(),
            sent: 0,
            safe: true,
            number: 0,
        };
        test.settle();
        test
    }

    fn send(&mut self, request: Request) -> u32 {
        self.tickets += 1;
        self.session.request(request, self.tickets, self.now);
        self.settle();
        self.tickets
    }

    /// A request with a message that says its ID.
    fn message(&mut self, rid: u64) -> u32 {
        self.send(Request {
            payloads: vec![Element::new("message", NS_CLIENT).with_attr("id", rid.to_string())],
            ..request(rid)
        })
    }

    fn poll(&mut self, rid: u64) -> u32 {
        self.send(request(rid))
    }

    fn payload(&mut self, text: &str) {
        self.number += 1;
        let is_stream = text.starts_with("<stream:");
        self.session.outbound(Payload { bytes: text.to_owned().into(), is_stream, number: self.number });
        self.settle();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(forward) = self.session.next_forward() {
            match forward {
                Forward::Payload(payload) => {
                    self.sent += 1;
                    self.stream.push(payload.attr("id").unwrap_or(payload.name()).to_owned());
                }
                Forward::Restart { to, .. } => self.stream.push(format!("restart {to:?}")),
                Forward::End(rid) => self.session.forwarded(rid, self.sent),
                Forward::Close => self.stream.push("close".into()),
            }
        }
        if self.safe {
            self.session.safe(self.sent);
        }
        self.session.pump(self.now);
        for (ticket, response) in self.session.take_responses() {
            assert!(self.got.insert(ticket, response).is_none(), "ticket {ticket} is answered twice");
        }
    }

    fn body(&self, ticket: u32) -> Element {
        match self.got.get(&ticket) {
            Some(Response::Body(body)) => read(body),
            other => panic!("{ticket} got {other:?}"),
        }
    }

    fn is_held(&self, ticket: u32) -> bool {
        !self.got.contains_key(&ticket)
    }

    /// The condition that a request was refused with, which ended the session.
    fn refused(&self, ticket: u32) -> String {
        let body = self.body(ticket);
        assert_eq!(body.attr("type"), Some("terminate"), "{body:?}");
        assert!(self.session.over().is_some());
        body.attr("condition").unwrap_or_default().to_owned()
    }
}

fn read(body: &Bytes) -> Element {
    body::parse(body, Limits::authenticated()).unwrap()
}

fn request(rid: u64) -> Request {
    Request { rid, ..Request::default() }
}

fn with(rid: u64, purpose: Purpose) -> Request {
    Request { rid, purpose, ..Request::default() }
}

#[test]
fn xep_0124_7_2_the_response_says_what_was_agreed_on() {
    let test = Test::new(terms(60, 1));
    let body = test.body(0);
    for (name, value) in [
        ("sid", "the-sid"),
        ("wait", "60"),
        ("requests", "2"),
        ("hold", "1"),
        ("inactivity", "60"),
        ("polling", "5"),
        ("maxpause", "120"),
        ("ver", "1.11"),
        ("from", "example.org"),
        ("ack", "1000000"),
        ("charsets", "UTF-8"),
    ] {
        assert_eq!(body.attr(name), Some(value), "{name}");
    }
    // 16.2: the feature is not there.
    assert_eq!(body.attr("stream"), None);
    // XEP-0206 4.
    assert_eq!(body.attr_ns("restartlogic", NS_XBOSH), Some("true"));
    assert_eq!(body.attr_ns("version", NS_XBOSH), Some("1.0"));
    assert!(body.children().next().unwrap().is("features", "http://etherx.jabber.org/streams"));
}

#[test]
fn xep_0206_4_a_session_without_features_in_time_is_created_all_the_same() {
    let mut test = Test::created(terms(0, 1), FIRST, &request(FIRST));
    assert!(test.is_held(0));
    test.pass(FEATURES);
    assert_eq!(test.body(0).attr("sid"), Some("the-sid"));
    let mut test = Test::created(terms(3, 1), FIRST, &request(FIRST));
    test.pass(2 * SECOND);
    assert!(test.is_held(0));
    test.pass(SECOND);
    assert!(!test.is_held(0));
}

#[test]
fn xep_0124_8_a_request_is_held_until_there_is_something_to_say() {
    let mut test = Test::new(terms(60, 1));
    let held = test.poll(FIRST + 1);
    test.pass(59 * SECOND);
    assert!(test.is_held(held));
    test.payload("<message xmlns='jabber:client'/>");
    let body = test.body(held);
    assert_eq!(body.children().count(), 1);
    assert!(body.children().next().unwrap().is("message", NS_CLIENT));
    // Only the first response has them.
    assert_eq!((body.attr("sid"), body.attr("wait")), (None, None));
}

#[test]
fn xep_0124_8_a_request_is_not_held_longer_than_the_client_wants() {
    let mut test = Test::new(terms(60, 1));
    let held = test.poll(FIRST + 1);
    assert_eq!(test.session.deadline(), Some(test.now + 60 * SECOND));
    test.pass(60 * SECOND);
    assert_eq!(test.body(held), Element::new("body", body::NS_HTTPBIND));
}

#[test]
fn xep_0124_8_no_more_requests_are_held_than_the_client_wants() {
    for hold in [1, 2] {
        let mut test = Test::new(terms(60, hold));
        let tickets: Vec<u32> = (1..=hold as u64 + 1).map(|i| test.message(FIRST + i)).collect();
        assert!(!test.is_held(tickets[0]), "the oldest one gives way");
        assert!(tickets[1..].iter().all(|ticket| test.is_held(*ticket)));
        test.payload("<message xmlns='jabber:client'/>");
        assert_eq!(test.body(tickets[1]).children().count(), 1);
    }
}

#[test]
fn xep_0124_8_responses_are_not_larger_than_needed_and_nothing_is_lost() {
    let mut test = Test::new(terms(60, 1));
    let large = format!("<message xmlns='jabber:client'><body>{}</body></message>", "x".repeat(100_000));
    for _ in 0..11 {
        test.payload(&large);
    }
    assert!(!test.session.has_room());
    for i in 1..=11 {
        let ticket = test.message(FIRST + i);
        assert_eq!(test.body(ticket).children().count(), 1);
    }
    assert!(test.session.has_room());
    let huge = format!("<message xmlns='jabber:client'><body>{}</body></message>", "x".repeat(200_000));
    test.payload(&huge);
    let ticket = test.message(FIRST + 12);
    assert_eq!(test.body(ticket).children().count(), 1);
}

#[test]
fn a_request_is_answered_only_when_its_stanzas_are_safe() {
    let mut test = Test::new(terms(60, 1));
    test.safe = false;
    let first = test.message(FIRST + 1);
    test.payload("<message xmlns='jabber:client'/>");
    test.pass(61 * SECOND);
    assert!(test.is_held(first));
    let second = test.message(FIRST + 2);
    assert!(test.is_held(first) && test.is_held(second));
    test.session.safe(1);
    test.settle();
    assert!(!test.is_held(first));
    assert!(test.is_held(second), "the second one is not safe");
    assert_eq!(test.session.snapshot().sent, 1);
    test.session.safe(2);
    test.pass(60 * SECOND);
    assert!(!test.is_held(second));
}

#[test]
fn xep_0124_9_1_responses_acknowledge_requests() {
    let mut test = Test::new(terms(60, 1));
    let first = test.message(FIRST + 1);
    let second = test.message(FIRST + 2);
    assert_eq!(test.body(first).attr("ack"), Some("1000002"));
    test.payload("<presence xmlns='jabber:client'/>");
    // It would be the request's own.
    assert_eq!(test.body(second).attr("ack"), None);
}

#[test]
fn xep_0124_9_2_responses_that_clients_acknowledge_are_confirmed() {
    let mut test = Test::new(Terms { acks: true, ..terms(60, 1) });
    assert_eq!(test.session.confirmed(), 0);
    test.message(FIRST + 1);
    // Without the attribute it has got all responses; the first payload were the features.
    assert_eq!(test.session.confirmed(), 1);
    test.payload("<message xmlns='jabber:client'/>");
    test.send(Request {
        ack: Some(FIRST),
        payloads: vec![Element::new("iq", NS_CLIENT)],
        ..request(FIRST + 2)
    });
    assert_eq!(test.session.confirmed(), 1, "the response before was not acknowledged");
    test.payload("<message xmlns='jabber:client'/>");
    test.send(Request {
        ack: Some(FIRST + 1),
        payloads: vec![Element::new("iq", NS_CLIENT)],
        ..request(FIRST + 3)
    });
    assert_eq!(test.session.confirmed(), 2);
    // More than there was.
    test.send(Request {
        ack: Some(u64::MAX),
        payloads: vec![Element::new("iq", NS_CLIENT)],
        ..request(FIRST + 4)
    });
    assert_eq!(test.session.confirmed(), 3);
}

#[test]
fn xep_0124_9_2_a_response_that_seems_lost_is_reported() {
    let mut test = Test::new(Terms { acks: true, ..terms(60, 1) });
    let first = test.message(FIRST + 1);
    test.payload("<message xmlns='jabber:client'/>");
    assert!(!test.is_held(first));
    test.pass(Duration::from_millis(2_500));
    let second = test.send(Request { ack: Some(FIRST), ..request(FIRST + 2) });
    let body = test.body(second);
    assert_eq!((body.attr("report"), body.attr("time")), (Some("1000001"), Some("2500")));
    // It is on its way: nothing to report.
    let mut test = Test::new(Terms { acks: true, ..terms(60, 1) });
    test.message(FIRST + 1);
    test.payload("<message xmlns='jabber:client'/>");
    let second = test.send(Request { ack: Some(FIRST), ..request(FIRST + 2) });
    assert!(test.is_held(second));
}

#[test]
fn xep_0124_9_without_acknowledgements_room_for_a_request_confirms_responses() {
    let mut test = Test::new(terms(60, 1));
    for i in 1..=3 {
        test.message(FIRST + i);
        test.payload("<message xmlns='jabber:client'/>");
        // Of two requests that may be under way this is one, so all but one response was got.
        assert_eq!(test.session.confirmed(), i - 1);
    }
}

#[test]
fn xep_0124_10_a_silent_client_is_gone() {
    let mut test = Test::new(terms(60, 1));
    test.pass(59 * SECOND);
    assert_eq!(test.session.over(), None);
    assert_eq!(test.session.deadline(), Some(test.now + SECOND));
    test.pass(SECOND);
    assert_eq!(test.session.over(), Some(Over::Lost));
    let mut held = Test::new(terms(120, 1));
    held.poll(FIRST + 1);
    held.pass(119 * SECOND);
    assert_eq!(held.session.over(), None, "a request is held");
}

#[test]
fn xep_0124_10_a_pause_answers_everything_and_extends_the_inactivity() {
    let mut test = Test::new(terms(60, 1));
    let held = test.poll(FIRST + 1);
    let pause = test.send(with(FIRST + 2, Purpose::Pause(120)));
    assert_eq!(test.body(held).children().count(), 0);
    assert_eq!(test.body(pause).children().count(), 0);
    test.payload("<message xmlns='jabber:client'/>");
    test.pass(119 * SECOND);
    assert_eq!(test.session.over(), None);
    // Back to normal with the next request.
    let next = test.poll(FIRST + 3);
    assert_eq!(test.body(next).children().count(), 1);
    test.pass(61 * SECOND);
    assert_eq!(test.session.over(), Some(Over::Lost));
}

#[test]
fn xep_0124_10_the_response_to_a_pause_has_no_payloads_and_a_pause_may_be_shorter() {
    let mut test = Test::new(terms(60, 1));
    test.safe = false;
    test.message(FIRST + 1);
    test.payload("<message xmlns='jabber:client'/>");
    test.payload(&format!("<message xmlns='jabber:client'><body>{}</body></message>", "x".repeat(140_000)));
    let pause = test.send(with(FIRST + 2, Purpose::Pause(5)));
    test.safe = true;
    test.settle();
    assert_eq!(test.body(pause).children().count(), 0);
    test.pass(5 * SECOND);
    assert_eq!(test.session.over(), Some(Over::Lost));
}

#[test]
fn m7_xep_0124_10_a_pause_beyond_the_maximum_is_a_violation() {
    for seconds in [121, u64::MAX] {
        let mut test = Test::new(terms(60, 1));
        let pause = test.send(with(FIRST + 1, Purpose::Pause(seconds)));
        assert_eq!(test.refused(pause), "policy-violation");
    }
}

#[test]
fn m7_xep_0124_11_too_many_requests_at_once_are_a_violation() {
    let mut test = Test::new(terms(60, 1));
    test.safe = false;
    let (first, second) = (test.message(FIRST + 1), test.message(FIRST + 2));
    let third = test.message(FIRST + 3);
    // Beyond the window as well, which is as wide.
    assert_eq!(test.refused(third), "policy-violation");
    for other in [first, second] {
        assert_eq!(test.refused(other), "other-request");
    }
    assert_eq!(test.session.over(), Some(Over::Ended));
}

#[test]
fn xep_0124_11_one_more_request_may_pause_or_terminate() {
    for purpose in [Purpose::Pause(60), Purpose::Terminate] {
        let mut test = Test::new(terms(60, 1));
        test.safe = false;
        test.message(FIRST + 1);
        test.message(FIRST + 2);
        test.send(with(FIRST + 3, purpose));
        assert_eq!(test.session.over(), None, "{purpose:?}");
    }
}

#[test]
fn m7_xep_0124_11_empty_requests_while_one_is_held_are_a_violation() {
    let mut test = Test::new(terms(60, 1));
    test.poll(FIRST + 1);
    test.pass(SECOND);
    let second = test.poll(FIRST + 2);
    assert_eq!(test.refused(second), "policy-violation");
    // Slow enough.
    let mut test = Test::new(terms(60, 1));
    let first = test.poll(FIRST + 1);
    test.pass(5 * SECOND);
    let second = test.poll(FIRST + 2);
    assert!(!test.is_held(first) && test.is_held(second));
    // With something to say, or to restart the stream.
    let mut test = Test::new(terms(60, 1));
    test.poll(FIRST + 1);
    test.message(FIRST + 2);
    test.send(with(FIRST + 3, Purpose::Restart));
    assert_eq!(test.session.over(), None);
}

#[test]
fn xep_0124_14_2_an_empty_request_that_arrives_late_is_no_violation() {
    let mut test = Test::new(terms(60, 1));
    let later = test.message(FIRST + 2);
    let first = test.poll(FIRST + 1);
    assert_eq!(test.session.over(), None);
    assert!(!test.is_held(first) && test.is_held(later));
}

/// A request whose acknowledgement comes behind more payloads than may wait.
#[test]
fn the_stream_is_read_as_long_as_an_answer_waits_for_it() {
    let mut test = Test::new(terms(60, 1));
    test.session.outbound(Payload { bytes: vec![b' '; MAX_WAITING].into(), is_stream: false, number: 1 });
    assert!(!test.session.has_room(), "no request is here");
    test.safe = false;
    test.message(FIRST + 1);
    assert!(test.session.has_room());
}

#[test]
fn m7_xep_0124_12_polling_too_often_is_a_violation() {
    for terms in [terms(0, 1), terms(60, 0)] {
        let mut test = Test::new(terms.clone());
        let first = test.poll(FIRST + 1);
        assert!(!test.is_held(first), "nothing is held");
        test.pass(Duration::from_millis(4_999));
        let second = test.poll(FIRST + 2);
        assert_eq!(test.refused(second), "policy-violation");
        // Often enough.
        let mut test = Test::new(terms.clone());
        test.poll(FIRST + 1);
        test.pass(5 * SECOND);
        test.poll(FIRST + 2);
        // After a response with payloads.
        test.pass(5 * SECOND);
        test.payload("<message xmlns='jabber:client'/>");
        test.poll(FIRST + 3);
        test.poll(FIRST + 4);
        assert_eq!(test.session.over(), None);
        // With payloads, or after some.
        test.message(FIRST + 5);
        test.poll(FIRST + 6);
        test.message(FIRST + 7);
        assert_eq!(test.session.over(), None);
    }
}

#[test]
fn xep_0124_13_termination_forwards_payloads_and_tells_the_oldest_request() {
    let mut test = Test::new(terms(60, 1));
    let held = test.poll(FIRST + 1);
    let unavailable = Element::new("presence", NS_CLIENT).with_attr("type", "unavailable");
    let last = test.send(Request { payloads: vec![unavailable], ..with(FIRST + 2, Purpose::Terminate) });
    assert_eq!(test.stream, ["presence", "close"]);
    assert!(test.is_held(held) && test.is_held(last), "the stream says when all is safe");
    test.payload("<message xmlns='jabber:client'/>");
    test.session.stream_ended(StreamEnd::Closed);
    test.settle();
    assert_eq!(test.body(held).attr("type"), Some("terminate"));
    assert_eq!(test.body(held).attr("condition"), None);
    assert_eq!(test.body(last), Element::new("body", body::NS_HTTPBIND));
    assert_eq!(test.session.over(), Some(Over::Ended));
    // Alone.
    let mut test = Test::new(terms(60, 1));
    let only = test.send(with(FIRST + 1, Purpose::Terminate));
    test.session.stream_ended(StreamEnd::Closed);
    test.settle();
    assert_eq!(test.body(only).attr("type"), Some("terminate"));
}

#[test]
fn xep_0124_13_what_was_answered_before_the_end_counts_as_received() {
    let mut test = Test::new(terms(60, 1));
    test.poll(FIRST + 1);
    test.payload("<message xmlns='jabber:client'/>");
    test.send(with(FIRST + 2, Purpose::Terminate));
    assert_eq!(test.session.confirmed(), 2);
}

#[test]
fn xep_0124_14_2_requests_are_carried_out_and_answered_in_order() {
    let mut test = Test::new(terms(60, 2));
    let third = test.message(FIRST + 3);
    let second = test.message(FIRST + 2);
    assert_eq!(test.stream, [""; 0]);
    test.payload("<message xmlns='jabber:client'/>");
    assert!(test.is_held(third) && test.is_held(second));
    let first = test.message(FIRST + 1);
    assert_eq!(test.stream, ["1000001", "1000002", "1000003"]);
    assert_eq!(test.body(first).children().count(), 1);
    assert!(test.is_held(second) && test.is_held(third));
}

#[test]
fn m7_xep_0124_14_2_a_rid_beyond_the_window_ends_the_session() {
    for ahead in [2, 3, 1_000_000_000] {
        let mut test = Test::new(terms(60, 1));
        let held = test.poll(FIRST + 1);
        let ticket = test.message(FIRST + 2 + ahead);
        assert_eq!(test.refused(ticket), "item-not-found");
        assert_eq!(test.refused(held), "other-request");
    }
    // The last one within.
    let mut test = Test::new(terms(60, 1));
    test.message(FIRST + 2);
    assert_eq!(test.session.over(), None);
}

#[test]
fn m7_xep_0124_14_1_rids_near_2_to_the_53rd() {
    let max = crate::request::MAX_RID;
    let mut test = Test::created(terms(60, 1), max - 1, &request(max - 1));
    test.payload("<stream:features/>");
    let last = test.message(max);
    test.payload("<message xmlns='jabber:client'/>");
    assert_eq!(test.body(last).children().count(), 1);
    // What comes after it cannot be read; the session goes on until it is idle.
    let again = test.message(max);
    assert_eq!(test.got[&again], test.got[&last]);
    test.pass(60 * SECOND);
    assert_eq!(test.session.over(), Some(Over::Lost));
}

#[test]
fn m7_xep_0124_14_3_a_repeated_request_gets_the_same_response_and_is_not_carried_out_again() {
    let mut test = Test::new(terms(60, 1));
    let first = test.message(FIRST + 1);
    let second = test.message(FIRST + 2);
    test.payload("<message xmlns='jabber:client'/>");
    assert_eq!(test.stream.len(), 2);
    let before = (test.got[&first].clone(), test.got[&second].clone());
    for _ in 0..3 {
        let (first, second) = (test.message(FIRST + 1), test.message(FIRST + 2));
        assert_eq!((test.got[&first].clone(), test.got[&second].clone()), before);
    }
    assert_eq!(test.stream.len(), 2, "nothing is carried out again");
    // The creation as well.
    let again = test.send(request(FIRST));
    assert_eq!(test.body(again).attr("sid"), Some("the-sid"));
}

#[test]
fn xep_0124_14_3_the_later_one_of_two_equal_requests_is_answered() {
    let mut test = Test::new(terms(60, 2));
    for rid in [FIRST + 1, FIRST + 3] {
        let former = test.message(rid);
        let later = test.message(rid);
        // 17.3: recoverable.
        assert_eq!(test.body(former).attr("type"), Some("error"));
        assert_eq!(test.body(former).attr("condition"), None);
        assert!(test.is_held(later));
    }
    assert_eq!(test.stream, ["1000001"]);
    test.payload("<message xmlns='jabber:client'/>");
    assert_eq!(test.body(2).children().count(), 1);
}

#[test]
fn m7_xep_0124_14_3_a_response_that_is_not_kept_ends_the_session() {
    let mut test = Test::new(terms(60, 1));
    for i in 1..=5 {
        test.message(FIRST + i);
        test.payload("<message xmlns='jabber:client'/>");
    }
    assert!(test.session.answered().len() <= 4, "only so many are kept");
    let kept = test.message(FIRST + 4);
    assert_eq!(test.body(kept).children().count(), 1);
    let old = test.message(FIRST + 1);
    assert_eq!(test.refused(old), "item-not-found");
    let mut test = Test::new(terms(60, 1));
    let before = test.message(FIRST - 1);
    assert_eq!(test.refused(before), "item-not-found");
}

#[test]
fn m7_xep_0124_14_3_repeating_has_a_limit() {
    for answered in [false, true] {
        let mut test = Test::new(terms(60, 1));
        test.message(FIRST + 1);
        if answered {
            test.payload("<message xmlns='jabber:client'/>");
        }
        for _ in 0..MAX_REPEATS {
            test.message(FIRST + 1);
            assert_eq!(test.session.over(), None);
        }
        let ticket = test.message(FIRST + 1);
        assert_eq!(test.refused(ticket), "policy-violation");
    }
}

/// `seed` hashed so many times.
fn key(seed: &str, times: u32) -> String {
    use sha1::{Digest, Sha1};
    let hash = |text: String| Sha1::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    (0..times).fold(seed.to_owned(), |text, _| hash(text))
}

fn keyed(rid: u64, key: Option<String>) -> Request {
    Request { key, payloads: vec![Element::new("message", NS_CLIENT)], ..request(rid) }
}

#[test]
fn m7_xep_0124_15_requests_follow_the_key_sequence() {
    let create = || {
        let first = Request { new_key: Some(key("seed", 10)), ..request(FIRST) };
        let mut test = Test::created(terms(60, 1), FIRST, &first);
        test.payload("<stream:features/>");
        test.send(keyed(FIRST + 1, Some(key("seed", 9))));
        assert_eq!(test.session.over(), None);
        test
    };
    for wrong in [None, Some(key("seed", 9)), Some(key("seed", 7)), Some(key("other", 8)), Some("x".into())] {
        let mut test = create();
        let ticket = test.send(keyed(FIRST + 2, wrong.clone()));
        assert_eq!(test.refused(ticket), "item-not-found", "{wrong:?}");
        assert_eq!(test.stream.len(), 1, "15.4: it is not processed");
    }
    // In the order of the IDs, not of arrival.
    let mut test = create();
    test.payload("<message xmlns='jabber:client'/>");
    test.send(keyed(FIRST + 3, Some(key("seed", 7))));
    test.send(keyed(FIRST + 2, Some(key("seed", 8))));
    assert_eq!((test.session.over(), test.stream.len()), (None, 3));
}

#[test]
fn m7_xep_0124_15_5_a_session_may_switch_to_another_key_sequence() {
    let first = Request { new_key: Some(key("seed", 2)), ..request(FIRST) };
    let mut test = Test::created(terms(60, 1), FIRST, &first);
    test.payload("<stream:features/>");
    test.send(Request { new_key: Some(key("other", 5)), ..keyed(FIRST + 1, Some(key("seed", 1))) });
    test.send(keyed(FIRST + 2, Some(key("other", 4))));
    assert_eq!(test.session.over(), None);
    let ticket = test.send(keyed(FIRST + 3, Some("seed".into())));
    assert_eq!(test.refused(ticket), "item-not-found");
}

#[test]
fn m7_xep_0124_15_a_repeated_request_needs_its_key() {
    for answered in [false, true] {
        let first = Request { new_key: Some(key("seed", 10)), ..request(FIRST) };
        let mut test = Test::created(terms(60, 1), FIRST, &first);
        test.payload("<stream:features/>");
        let held = test.send(keyed(FIRST + 1, Some(key("seed", 9))));
        if answered {
            test.payload("<message xmlns='jabber:client'/>");
        }
        let same = test.send(keyed(FIRST + 1, Some(key("seed", 9))));
        assert_eq!(test.session.over(), None);
        let injected = test.send(keyed(FIRST + 1, None));
        assert_eq!(test.refused(injected), "item-not-found");
        assert!(!test.is_held(held) && !test.is_held(same));
    }
}

#[test]
fn xep_0124_16_3_another_stream_is_not_added() {
    let mut test = Test::new(terms(60, 1));
    let add = test.send(Request { to: Some("other.example".into()), stream: true, ..request(FIRST + 1) });
    // It is a normal empty request.
    assert!(test.is_held(add));
    assert_eq!(test.stream, [""; 0]);
}

#[test]
fn xep_0124_16_4_payloads_for_a_stream_that_is_not_there_are_refused() {
    let mut test = Test::new(terms(60, 1));
    let payloads = vec![Element::new("message", NS_CLIENT)];
    let ticket = test.send(Request { stream: true, payloads, ..request(FIRST + 1) });
    assert_eq!(test.refused(ticket), "item-not-found");
    assert_eq!(test.stream, [""; 0]);
}

#[test]
fn xep_0124_17_1_legacy_clients_get_http_errors() {
    let legacy = || Terms { legacy: true, ..terms(60, 1) };
    let mut test = Test::new(legacy());
    let ticket = test.message(FIRST + 100);
    assert_eq!(test.got[&ticket], Response::Status(404));
    let mut test = Test::new(legacy());
    let ticket = test.send(with(FIRST + 1, Purpose::Pause(500)));
    assert_eq!(test.got[&ticket], Response::Status(403));
    assert_eq!(refusal(true, Some(Condition::BadRequest)), Response::Status(400));
    // Others have no HTTP error.
    assert!(matches!(refusal(true, Some(Condition::HostUnknown)), Response::Body(_)));
    assert!(matches!(refusal(false, Some(Condition::BadRequest)), Response::Body(_)));
}

#[test]
fn xep_0124_17_2_the_end_of_the_stream_is_told() {
    let error = "<stream:error><conflict xmlns='urn:ietf:params:xml:ns:xmpp-streams'/></stream:error>";
    let error = Payload { bytes: error.into(), is_stream: true, number: 0 };
    for (end, condition) in [
        (StreamEnd::Error(error), Some("remote-stream-error")),
        (StreamEnd::Lost, Some("remote-connection-failed")),
        (StreamEnd::Internal, Some("internal-server-error")),
        (StreamEnd::Closed, None),
    ] {
        // With a request that is held.
        let mut test = Test::new(terms(60, 1));
        let held = test.poll(FIRST + 1);
        test.session.stream_ended(end.clone());
        test.settle();
        assert_eq!(test.refused(held), condition.unwrap_or_default());
        let has_error = matches!(end, StreamEnd::Error(_));
        assert_eq!(test.body(held).child("error", body::NS_STREAMS).is_some(), has_error);
        // Before there is one.
        let mut test = Test::new(terms(60, 1));
        test.session.stream_ended(end.clone());
        test.settle();
        let next = test.poll(FIRST + 1);
        assert_eq!(test.refused(next), condition.unwrap_or_default());
        // And before the session is known.
        let mut test = Test::created(terms(60, 1), FIRST, &request(FIRST));
        test.session.stream_ended(end);
        test.settle();
        assert_eq!(test.refused(0), condition.unwrap_or_default());
    }
}

#[test]
fn xep_0206_6_counted_stanzas_are_left_to_another_session_at_a_stream_error() {
    let mut test = Test::new(terms(60, 1));
    test.session.outbound(Payload {
        bytes: "<presence xmlns='jabber:client'/>".into(),
        is_stream: false,
        number: 0,
    });
    test.session.outbound(Payload {
        bytes: "<message xmlns='jabber:client'/>".into(),
        is_stream: false,
        number: 9,
    });
    test.session.stream_ended(StreamEnd::Lost);
    let ticket = test.poll(FIRST + 1);
    let names: Vec<String> = test.body(ticket).children().map(|e| e.name().to_owned()).collect();
    assert_eq!(names, ["presence"]);
}

#[test]
fn xep_0206_5_a_restart_ignores_payloads() {
    let mut test = Test::new(terms(60, 1));
    let payloads = vec![Element::new("message", NS_CLIENT)];
    test.send(Request { to: Some("example.org".into()), payloads, ..with(FIRST + 1, Purpose::Restart) });
    assert_eq!(test.stream, ["restart Some(\"example.org\")"]);
}

#[test]
fn when_the_server_stops_clients_are_told_to_come_again() {
    let mut test = Test::new(terms(60, 2));
    let (held, early) = (test.poll(FIRST + 1), test.message(FIRST + 3));
    test.session.suspend();
    test.settle();
    assert_eq!((&test.got[&held], &test.got[&early]), (&Response::Retry, &Response::Retry));
    assert_eq!(test.session.over(), Some(Over::Suspended));
}

#[test]
fn a_revived_session_goes_on_where_it_was() {
    let mut test = Test::new(terms(60, 1));
    test.message(FIRST + 1);
    test.payload("<message xmlns='jabber:client'/>");
    let lost = test.message(FIRST + 2);
    assert!(test.is_held(lost));
    let session = &test.session;
    let (snapshot, answered) = (session.snapshot().clone(), session.answered().clone());
    assert_eq!((snapshot.answered_rid, snapshot.sent, snapshot.got), (FIRST + 1, 1, 2));
    test.session = Session::revive(terms(60, 1), snapshot, answered, test.now);
    (test.sent, test.stream) = (1, Vec::new());
    let cached = test.message(FIRST + 1);
    assert_eq!(test.got[&cached], test.got[&1]);
    assert_eq!(test.stream, [""; 0]);
    let again = test.message(FIRST + 2);
    assert_eq!(test.stream, ["1000002"]);
    test.payload("<message xmlns='jabber:client'/>");
    assert_eq!(test.body(again).children().count(), 1);
}

/// What section 14 says, as simply as it can be said.
struct Model {
    next: u64,
    requests: u64,
    early: Vec<u64>,
    carried_out: Vec<u64>,
    held: Vec<u64>,
    answered: Vec<u64>,
    /// There is a payload for the client.
    queued: bool,
    over: bool,
}

impl Model {
    fn request(&mut self, rid: u64) {
        if rid >= self.next + self.requests {
            self.over = true;
        } else if rid < self.next {
            let kept = self.answered.len().saturating_sub(self.requests as usize + 1);
            self.over |= !self.held.contains(&rid) && !self.answered[kept..].contains(&rid) && rid < FIRST;
        } else if !self.early.contains(&rid) {
            if self.held.len() + self.early.len() + 1 > self.requests as usize {
                self.over = true;
                return;
            }
            self.early.push(rid);
            while self.early.contains(&self.next) {
                self.early.retain(|early| *early != self.next);
                self.carried_out.push(self.next);
                self.held.push(self.next);
                self.next += 1;
            }
            self.answer();
        }
    }

    fn answer(&mut self) {
        while self.held.len() as u64 >= self.requests || (self.queued && !self.held.is_empty()) {
            self.answered.push(self.held.remove(0));
            self.queued = false;
        }
    }
}

proptest! {
    #[test]
    fn the_window_of_rids_is_that_of_a_simple_model(
        hold in 1usize..=2,
        steps in proptest::collection::vec((0u64..6, any::<bool>()), 1..60),
    ) {
        let mut test = Test::new(Terms { polling: Duration::ZERO, ..terms(60, hold) });
        let requests = hold as u64 + 1;
        let mut model = Model {
            next: FIRST + 1, requests, early: vec![], carried_out: vec![], held: vec![], answered: vec![FIRST],
            queued: false, over: false,
        };
        let mut first_responses: HashMap<u64, Response> = HashMap::new();
        let mut repeats: HashMap<u64, u32> = HashMap::new();
        for (offset, payload) in steps {
            // Around the ID that is next.
            let rid = (model.next + offset).saturating_sub(3).max(FIRST + 1);
            let kept = test.session.answered().iter().any(|answered| answered.rid == rid)
                || model.held.contains(&rid) || rid >= model.next;
            let count = repeats.entry(rid).or_default();
            *count += 1;
            if !kept || *count > MAX_REPEATS {
                continue;
            }
            model.request(rid);
            let ticket = test.message(rid);
            prop_assert_eq!(model.over, test.session.over().is_some());
            if model.over {
                break;
            }
            if payload {
                test.payload("<message xmlns='jabber:client'/>");
                model.queued = true;
                model.answer();
            }
            let expected: Vec<String> = model.carried_out.iter().map(u64::to_string).collect();
            prop_assert_eq!(&test.stream, &expected, "each once, in order");
            for answered in test.session.answered() {
                let body = Response::Body(answered.body.clone());
                prop_assert_eq!(first_responses.entry(answered.rid).or_insert(body.clone()), &body);
            }
            if let Some(Response::Body(body)) = test.got.get(&ticket)
                && read(body).attr("type").is_none()
            {
                prop_assert_eq!(&Response::Body(body.clone()), &first_responses[&rid]);
            }
            prop_assert_eq!(test.session.snapshot().answered_rid, *model.answered.last().unwrap());
            prop_assert!(test.session.answered().len() <= 2 * (hold + 1) + 1);
        }
    }
}

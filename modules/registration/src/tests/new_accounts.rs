use super::*;

fn ask(handler: &Arc<dyn PreAuthIq>, peer: &str, iq: &str) -> Result<Option<Element>, StanzaError> {
    let iq = Element::parse(iq.as_bytes(), "jabber:client").unwrap();
    assert!(handler.answers(&iq));
    handler.handle(iq, jid("shakespeare.example"), peer.parse::<IpAddr>().unwrap()).now_or_never().unwrap()
}

fn query(inner: &str) -> String {
    format!("<iq type='set' id='1'><query xmlns='jabber:iq:register'>{inner}</query></iq>")
}

fn set(username: &str, password: &str) -> String {
    query(&format!("<username>{username}</username><password>{password}</password>"))
}

fn handler(registration: &Registration) -> Arc<dyn PreAuthIq> {
    registration.pre_auth.clone().unwrap()
}

#[test]
fn new_accounts_are_off_by_default() {
    let (_, registration) = world(Config::default());
    assert!(registration.pre_auth.is_none());
}

#[test]
fn a_client_asks_what_is_required_and_registers() {
    let (world, registration) = world(open());
    let handler = handler(&registration);
    assert_eq!(handler.stream_feature(), "<register xmlns='http://jabber.org/features/iq-register'/>");
    let get = "<iq type='get' id='1' to='shakespeare.example'><query xmlns='jabber:iq:register'/></iq>";
    let form = ask(&handler, "192.0.2.1", get).unwrap().unwrap();
    let names: Vec<_> = form.children().map(|child| (child.name(), child.text().is_empty())).collect();
    assert_eq!(names, [("instructions", false), ("username", true), ("password", true)]);
    assert_eq!(ask(&handler, "192.0.2.1", &set("Juliet", "R0m30")), Ok(None));
    assert!(world.passwords().contains(&("juliet@shakespeare.example".into(), "R0m30".into())));
}

#[test]
fn only_registration_iqs_are_answered() {
    let (_, registration) = world(open());
    for xml in [
        "<iq type='get' id='1'><query xmlns='jabber:iq:roster'/></iq>",
        "<iq type='get' id='1'/>",
        "<message><query xmlns='jabber:iq:register'/></message>",
        "<iq xmlns='urn:x' type='get' id='1'><query xmlns='jabber:iq:register'/></iq>",
    ] {
        assert!(
            !handler(&registration).answers(&Element::parse(xml.as_bytes(), "jabber:client").unwrap()),
            "{xml}"
        );
    }
}

#[test]
fn errors_are_those_of_xep_0077() {
    let child = "<query xmlns='jabber:iq:register'/>";
    for (iq, condition) in [
        (set("bill", "x"), Condition::Conflict),
        (set("BILL", "x"), Condition::Conflict),
        (set("new", ""), Condition::NotAcceptable),
        (set("", "x"), Condition::NotAcceptable),
        (query("<username>new</username>"), Condition::NotAcceptable),
        (query("<password>x</password>"), Condition::NotAcceptable),
        (query(""), Condition::NotAcceptable),
        (set("a@b", "x"), Condition::NotAcceptable),
        (set("a/b", "x"), Condition::NotAcceptable),
        (set("a b", "x"), Condition::NotAcceptable),
        (set(&"a".repeat(1_024), "x"), Condition::NotAcceptable),
        (set("new", REFUSED), Condition::NotAcceptable),
        (query("<remove/>"), Condition::UnexpectedRequest),
        (query("<remove/><username>bill</username>"), Condition::BadRequest),
        (query("<username>a</username><username>b</username><password>x</password>"), Condition::BadRequest),
        (format!("<iq type='get'>{child}</iq>"), Condition::BadRequest),
        (format!("<iq id='1'>{child}</iq>"), Condition::BadRequest),
        (format!("<iq type='result' id='1'>{child}</iq>"), Condition::BadRequest),
        (format!("<iq type='get' id='1'>{child}{child}</iq>"), Condition::BadRequest),
        (format!("<iq type='get' id='1' to='other.example'>{child}</iq>"), Condition::ServiceUnavailable),
        (format!("<iq type='get' id='1' to='@'>{child}</iq>"), Condition::ServiceUnavailable),
    ] {
        let (world, registration) = world(open());
        let error = ask(&handler(&registration), "192.0.2.1", &iq).unwrap_err();
        assert_eq!(error.condition, condition, "{iq}");
        assert_eq!(world.passwords().len(), 1, "{iq}");
    }
}

#[test]
fn f8_names_of_mixed_scripts_are_refused_unless_allowed() {
    // Cyrillic letters but for the last one.
    let name = "\u{440}\u{430}\u{443}\u{440}\u{430}l";
    let (_, strict) = world(open());
    let error = ask(&handler(&strict), "192.0.2.1", &set(name, "x")).unwrap_err();
    assert_eq!(error.condition, Condition::NotAcceptable);
    // Refused before it costs the address anything, and one script alone is fine.
    assert_eq!(ask(&handler(&strict), "192.0.2.1", &set("\u{440}\u{430}\u{443}", "x")), Ok(None));
    let (_, lenient) = world(Config { allow_mixed_scripts: true, ..open() });
    assert_eq!(ask(&handler(&lenient), "192.0.2.1", &set(name, "x")), Ok(None));
}

#[test]
fn m5_a_second_account_of_an_address_has_to_wait() {
    let (world, registration) = world(open());
    let handler = handler(&registration);
    assert_eq!(ask(&handler, "2001:db8::1", &set("one", "x")), Ok(None));
    let error = ask(&handler, "2001:db8::2", &set("two", "x")).unwrap_err();
    assert_eq!((error.condition, error.kind), (Condition::NotAcceptable, ErrorType::Wait));
    assert_eq!(ask(&handler, "2001:db8:0:1::1", &set("three", "x")), Ok(None));
    assert_eq!(world.passwords().len(), 3);
    let get = "<iq type='get' id='1'><query xmlns='jabber:iq:register'/></iq>";
    assert!(ask(&handler, "2001:db8::1", get).is_ok());
}

#[test]
fn m5_taken_names_can_be_searched_for_only_slowly() {
    let (_, registration) = world(open());
    let handler = handler(&registration);
    for _ in 0..MAX_FAILURES {
        let error = ask(&handler, "192.0.2.1", &set("bill", "x")).unwrap_err();
        assert_eq!(error.condition, Condition::Conflict);
    }
    let error = ask(&handler, "192.0.2.1", &set("bill", "x")).unwrap_err();
    assert_eq!(error.condition, Condition::NotAcceptable);
}

#[test]
fn a_failing_store_is_told_as_temporary_and_costs_no_account() {
    let (_, registration) = build(broken(), open());
    let handler = handler(&registration);
    for _ in 0..2 {
        let error = ask(&handler, "192.0.2.1", &set("new", "x")).unwrap_err();
        assert_eq!((error.condition, error.kind), (Condition::ResourceConstraint, ErrorType::Wait));
    }
}

#[test]
fn requests_before_the_server_is_set_are_told_to_wait() {
    let module = InBandRegistration::new(open(), Arc::default());
    let error = ask(&handler(&module.registration()), "192.0.2.1", &set("new", "x")).unwrap_err();
    assert_eq!((error.condition, error.kind), (Condition::InternalServerError, ErrorType::Wait));
}

proptest! {
    #[test]
    fn no_iq_panics(
        kind in proptest::option::of("get|set|result|[a-z]{0,4}"),
        parts in proptest::collection::vec((0..5usize, 0..3usize, "\\PC{0,8}"), 0..5),
    ) {
        let (_, registration) = world(open());
        let mut payload = Element::new("query", NS_REGISTER);
        for (name, namespace, text) in parts {
            let name = ["username", "password", "remove", "x", "field"][name];
            let namespace = [NS_REGISTER, "jabber:x:data", "urn:x"][namespace];
            payload.push(Element::new(name, namespace).with_attr("type", "submit").with_text(&text));
        }
        let mut iq = Element::new("iq", "jabber:client").with_attr("id", "1").with_child(payload);
        if let Some(kind) = kind {
            iq.set_attr("type", kind);
        }
        let peer = IpAddr::from([192, 0, 2, 1]);
        let _ = handler(&registration).handle(iq, jid("shakespeare.example"), peer).now_or_never();
    }
}

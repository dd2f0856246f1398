use super::*;

const SESSION: SessionId = SessionId(7);
const HOST: &str = "shakespeare.example";
const BILL: &str = "bill@shakespeare.example";

fn request(target: &str, set: bool, inner: &str) -> IqRequest {
    let xml = format!("<query xmlns='jabber:iq:register'>{inner}</query>");
    let payload = Element::parse(xml.as_bytes(), "").unwrap();
    let (from, target) = (jid("bill@shakespeare.example/globe"), jid(target));
    let iq = StanzaType::Iq(if set { IqType::Set } else { IqType::Get });
    let stanza = Stanza::with_payload(iq, Some(from.clone()), Some(target.clone()), Some("unreg1"), &payload);
    let relation = if target.local().is_some() { Relation::Own } else { Relation::Stranger };
    IqRequest { stanza, from, target, set, payload, relation, session: Some(SESSION), available: true }
}

/// The same request from someone who has no account here.
fn from_elsewhere(mut request: IqRequest) -> IqRequest {
    request.from = jid("romeo@montague.example/a");
    request.relation = Relation::Stranger;
    request.session = None;
    request
}

fn find(registration: &Registration, scope: Scope) -> Arc<dyn IqHandler> {
    let iq = registration.iqs.iter().find(|iq| iq.scope == scope).unwrap();
    assert_eq!((iq.namespace, iq.element, iq.requests), (NS_REGISTER, "query", Requests::Both));
    iq.handler.clone()
}

/// Handles a request as the server does: the reply first, then the hook behind it.
fn ask(registration: &Registration, request: IqRequest) -> Result<Option<Element>, StanzaError> {
    let scope = if request.target.local().is_some() { Scope::Account } else { Scope::Host };
    let handler = find(registration, scope);
    let (stanza, session) = (request.stanza.clone(), request.session);
    let reply = handler.handle(request).now_or_never().unwrap();
    handler.replied(&stanza, session);
    reply
}

fn credentials(username: &str, password: &str) -> String {
    format!("<username>{username}</username><password>{password}</password>")
}

#[test]
fn a_session_learns_what_is_registered() {
    for target in [HOST, BILL] {
        let (_, registration) = world(Config::default());
        let query = ask(&registration, request(target, false, "")).unwrap().unwrap();
        let children: Vec<_> = query.children().map(|child| (child.name(), child.text())).collect();
        let expected = [("registered", ""), ("username", "bill"), ("password", "")];
        assert_eq!(children, expected.map(|(name, text)| (name, text.to_owned())));
    }
}

#[test]
fn a12_a_new_password_closes_all_other_sessions() {
    for target in [HOST, BILL] {
        let (world, registration) = world(Config::default());
        assert_eq!(ask(&registration, request(target, true, &credentials("Bill", "new"))), Ok(None));
        assert_eq!(world.passwords(), [(BILL.to_owned(), "new".to_owned())]);
        assert_eq!(world.closed(), [(jid(BILL), Some(SESSION), StreamCondition::Reset)]);
    }
}

#[test]
fn a12_the_password_of_another_account_is_out_of_reach() {
    let (world, registration) = world(Config::default());
    world.accounts.lock().unwrap().insert(jid("victim@shakespeare.example"), "safe".into());
    for username in ["victim", "bill@shakespeare.example", "bill/globe", "@", "bill "] {
        let error = ask(&registration, request(HOST, true, &credentials(username, "stolen"))).unwrap_err();
        assert_eq!(error.condition, Condition::Forbidden, "{username}");
    }
    let expected = [(BILL, "old"), ("victim@shakespeare.example", "safe")];
    assert_eq!(world.passwords(), expected.map(|(jid, password)| (jid.to_owned(), password.to_owned())));
    assert!(world.closed().is_empty());
}

#[test]
fn errors_of_a_new_password_are_those_of_xep_0077_3_3() {
    let change = |config: Config, inner: &str| {
        let (world, registration) = world(config);
        let error = ask(&registration, request(HOST, true, inner)).unwrap_err();
        assert_eq!(world.passwords(), [(BILL.to_owned(), "old".to_owned())]);
        assert!(world.closed().is_empty());
        error.condition
    };
    let config = Config::default;
    assert_eq!(change(config(), ""), Condition::BadRequest);
    assert_eq!(change(config(), "<username>bill</username>"), Condition::BadRequest);
    assert_eq!(change(config(), "<password>new</password>"), Condition::BadRequest);
    assert_eq!(change(config(), &credentials("bill", "")), Condition::BadRequest);
    assert_eq!(change(config(), &credentials("bill", REFUSED)), Condition::NotAcceptable);
    let fixed = Config { password_change: false, ..config() };
    assert_eq!(change(fixed, &credentials("bill", "new")), Condition::NotAllowed);
}

#[test]
fn a_removed_account_ends_after_its_session_was_told() {
    for target in [HOST, BILL] {
        let (world, registration) = world(Config::default());
        let handler = find(&registration, if target == HOST { Scope::Host } else { Scope::Account });
        let removal = request(target, true, "<remove/>");
        let stanza = removal.stanza.clone();
        assert_eq!(handler.handle(removal).now_or_never().unwrap(), Ok(None));
        assert!(world.passwords().is_empty());
        // The reply to another request must not end the session before its own does.
        let other = stanza.readdressed(stanza.from().cloned(), stanza.to().cloned());
        let other = Stanza::build(other.stanza_type(), other.from().cloned(), None, Some("other"), b"");
        handler.replied(&other, Some(SESSION));
        assert!(world.closed().is_empty());
        handler.replied(&stanza, Some(SESSION));
        assert_eq!(world.closed(), [(jid(BILL), None, StreamCondition::NotAuthorized)]);
        handler.replied(&stanza, Some(SESSION));
        assert_eq!(world.closed().len(), 1);
    }
}

#[test]
fn a_removal_whose_end_is_unknown_ends_the_session() {
    let (world, registration) = world(Config::default());
    let handler = find(&registration, Scope::Host);
    let removal = request(HOST, true, "<remove/>");
    let stanza = removal.stanza.clone();
    drop(handler.handle(removal));
    handler.replied(&stanza, Some(SESSION));
    assert_eq!(world.closed(), [(jid(BILL), None, StreamCondition::NotAuthorized)]);
}

#[test]
fn errors_of_a_removal_are_those_of_xep_0077_3_2() {
    let remove = |world: World, config: Config, inner: &str| {
        let (world, registration) = build(world, config);
        let error = ask(&registration, request(HOST, true, inner)).unwrap_err();
        assert_eq!(world.passwords().len(), 1);
        assert!(world.closed().is_empty());
        error.condition
    };
    let config = Config::default;
    assert_eq!(
        remove(World::default(), config(), "<remove/><username>bill</username>"),
        Condition::BadRequest
    );
    let kept = Config { removal: false, ..config() };
    assert_eq!(remove(World::default(), kept, "<remove/>"), Condition::NotAllowed);
    assert_eq!(remove(broken(), config(), "<remove/>"), Condition::ResourceConstraint);
}

#[test]
fn what_is_gone_is_not_registered() {
    for (inner, ends) in [("<remove/>".to_owned(), true), (credentials("bill", "new"), false)] {
        let (world, registration) = world(Config::default());
        world.accounts.lock().unwrap().clear();
        let error = ask(&registration, request(HOST, true, &inner)).unwrap_err();
        assert_eq!(error.condition, Condition::RegistrationRequired);
        assert_eq!(!world.closed().is_empty(), ends);
    }
}

#[test]
fn those_who_have_no_account_here_change_nothing() {
    for (set, inner, condition) in [
        (false, String::new(), Condition::ServiceUnavailable),
        (true, "<remove/>".into(), Condition::RegistrationRequired),
        (true, credentials("bill", "stolen"), Condition::NotAllowed),
    ] {
        let (world, registration) = world(open());
        let error = ask(&registration, from_elsewhere(request(HOST, set, &inner))).unwrap_err();
        assert_eq!(error.condition, condition);
        // A session of another host of this server is no better off.
        let mut neighbour = request(HOST, set, &inner);
        neighbour.from = jid("bill@other.example/globe");
        assert_eq!(ask(&registration, neighbour).unwrap_err().condition, condition);
        assert_eq!(world.passwords(), [(BILL.to_owned(), "old".to_owned())]);
    }
}

#[test]
fn a5_strangers_get_for_an_account_what_they_get_for_none() {
    let nonexistent = StanzaError::new(Condition::ServiceUnavailable);
    for (set, inner) in [(false, ""), (true, "<remove/>"), (true, "<remove/><remove/>"), (true, "")] {
        let (_, registration) = world(open());
        let error = ask(&registration, from_elsewhere(request(BILL, set, inner))).unwrap_err();
        assert_eq!(error, nonexistent);
    }
}

#[test]
fn nothing_is_advertised_when_everything_is_off() {
    let off = Config { password_change: false, removal: false, ..Config::default() };
    let (_, registration) = world(off.clone());
    assert!(registration.features.is_empty() && registration.iqs.is_empty());
    let (_, registration) = world(Config { removal: true, ..off });
    assert_eq!(registration.features, [Feature { scope: Scope::Host, var: NS_REGISTER }]);
    assert_eq!(registration.iqs.len(), 2);
}

proptest! {
    #[test]
    fn no_payload_panics(
        set in any::<bool>(),
        host in any::<bool>(),
        parts in proptest::collection::vec((0..5usize, 0..3usize, "\\PC{0,8}"), 0..5),
    ) {
        let (_, registration) = world(open());
        let mut payload = Element::new("query", NS_REGISTER);
        for (name, namespace, text) in parts {
            let name = ["username", "password", "remove", "x", "field"][name];
            let namespace = [NS_REGISTER, "jabber:x:data", "urn:x"][namespace];
            payload.push(Element::new(name, namespace).with_attr("type", "submit").with_text(&text));
        }
        let mut request = request(if host { HOST } else { BILL }, set, "");
        request.payload = payload;
        let _ = ask(&registration, request);
    }
}

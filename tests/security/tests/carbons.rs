//! XEP-0280: who gets copies of which messages, rule by rule.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::xml::Element;
use waystation_harness::{Client, Config, Login, Server};
use waystation_security::condition;
use waystation_security::managed::{Managed, eventually};

const CARBONS: &str = "urn:xmpp:carbons:2";
const JULIET: &str = "juliet@localhost";

fn config() -> Config {
    Config::default().with_users(["romeo", "juliet"]).with("limits.connection_rate", "0")
}

fn server() -> Server {
    Server::start(config()).unwrap()
}

async fn login(server: &Server, user: &str, resource: &str, priority: i8) -> Client {
    let login = Login::resource(resource);
    let mut client = Client::login(server.endpoint(), server.account(user), &login).await.unwrap();
    client.send(format!("<presence><priority>{priority}</priority></presence>")).await.unwrap();
    client.drain().await.unwrap();
    client
}

async fn switch(client: &mut Client, request: &str) -> Element {
    client.send(format!("<iq type='set' id='c'><{request} xmlns='{CARBONS}'/></iq>")).await.unwrap();
    loop {
        let stanza = client.next("the answer").await.unwrap();
        if stanza.attr("id") == Some("c") {
            return stanza;
        }
    }
}

/// The sessions of an account, by resource: `a` and `n` want copies, `n` has a negative
/// priority, `b` has the highest.
struct Cast {
    romeo: Client,
    juliet: Vec<(&'static str, Client)>,
    marks: usize,
}

impl Cast {
    async fn new(server: &Server) -> Self {
        let mut juliet = Vec::new();
        for (resource, priority, copies) in
            [("a", 0, true), ("b", 5, false), ("c", 0, false), ("n", -1, true)]
        {
            let mut client = login(server, "juliet", resource, priority).await;
            if copies {
                assert_eq!(switch(&mut client, "enable").await.attr("type"), Some("result"));
            }
            juliet.push((resource, client));
        }
        for (_, client) in &mut juliet {
            client.drain().await.unwrap();
        }
        Self { romeo: login(server, "romeo", "r", 0).await, juliet, marks: 0 }
    }

    fn client(&mut self, resource: &str) -> &mut Client {
        let found = self.juliet.iter_mut().find(|(name, _)| *name == resource);
        found.map_or(&mut self.romeo, |(_, client)| client)
    }

    /// One of them sends XML; the messages that each of juliet's sessions is given for it.
    async fn play(&mut self, sender: &str, xml: &str) -> Vec<(&'static str, Vec<Element>)> {
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        // What one client sends arrives in its order, so the mark ends what belongs to it.
        let marks: String = ["a", "b", "c", "n"]
            .iter()
            .map(|r| format!("<message to='{JULIET}/{r}' type='headline' id='{mark}'/>"))
            .collect();
        self.client(sender).send(format!("{xml}{marks}")).await.unwrap();
        let mut all = Vec::new();
        for (resource, client) in &mut self.juliet {
            let mut got = Vec::new();
            loop {
                let stanza = client.next(&mark).await.unwrap();
                if stanza.attr("id") == Some(&mark) {
                    break;
                }
                if stanza.local() == "message" {
                    got.push(stanza);
                }
            }
            all.push((*resource, got));
        }
        all
    }
}

/// Checks the wrapping (sections 7 and 8); the kind of copy.
fn copy<'a>(stanza: &'a Element, resource: &str) -> Option<&'a str> {
    let wrapper = stanza.child_in(CARBONS).filter(|w| w.child_in("urn:xmpp:forward:0").is_some())?;
    if stanza.attr("from") != Some(JULIET) {
        return None;
    }
    assert_eq!(stanza.attr("to"), Some(&*format!("{JULIET}/{resource}")), "{stanza}");
    let inner = wrapper.child("forwarded").and_then(|f| f.child("message")).unwrap();
    assert_eq!(inner.attr("type"), stanza.attr("type"), "the same type: {stanza}");
    assert!(inner.attr("from").is_some() && inner.attr("to").is_some(), "{stanza}");
    Some(wrapper.local())
}

/// What each session got, as text: `b: direct, a: received`.
fn told(all: &[(&str, Vec<Element>)]) -> String {
    let mut told = Vec::new();
    for (resource, stanzas) in all {
        for stanza in stanzas {
            told.push(format!("{resource} {}", copy(stanza, resource).unwrap_or("direct")));
        }
    }
    told.join(", ")
}

/// The wrapper of a copy, around a message that was never sent.
fn forged(copy: &str, from: &str, to: &str) -> String {
    format!(
        "<{copy} xmlns='{CARBONS}'><forwarded xmlns='urn:xmpp:forward:0'><message xmlns='jabber:client' \
         from='{from}' to='{to}' type='chat'><body>forged</body></message></forwarded></{copy}>"
    )
}

/// Sections 6 and 7, 9: what is copied of what is received.
#[tokio::test]
async fn xep_0280_7_received_messages() {
    let server = server();
    let mut cast = Cast::new(&server).await;
    const BODY: &str = "<body>x</body>";
    const ACTIVE: &str = "<composing xmlns='http://jabber.org/protocol/chatstates'/>";
    for (to, kind, inner, expected) in [
        // 7: by RFC 6121 8.5.3 to whoever it goes to, and to the others that want copies.
        ("", "chat", BODY, "a received, b direct, n received"),
        ("/b", "chat", BODY, "a received, b direct, n received"),
        ("/c", "chat", BODY, "a received, c direct, n received"),
        // 7: never to the one that it was addressed to.
        ("/a", "chat", BODY, "a direct, n received"),
        ("/n", "chat", BODY, "a received, n direct"),
        // 6.1: chat, also without a body; 10.2: chat states too.
        ("/b", "chat", "<x xmlns='urn:x'/>", "a received, b direct, n received"),
        ("/b", "chat", ACTIVE, "a received, b direct, n received"),
        ("", "chat", ACTIVE, "a received, b direct, n received"),
        // 6.1: normal with a body.
        ("", "normal", BODY, "a received, b direct, n received"),
        ("/b", "normal", "<x xmlns='urn:x'/>", "b direct"),
        // 6.1: no headlines, no groupchat; an error here answers nothing that was copied.
        ("", "headline", BODY, "a direct, b direct, c direct"),
        ("/b", "headline", BODY, "b direct"),
        ("/b", "groupchat", BODY, "b direct"),
        ("/b", "error", BODY, "b direct"),
        // 6.1: private messages of rooms are not, invitations are.
        ("/b", "chat", "<body>x</body><x xmlns='http://jabber.org/protocol/muc#user'/>", "b direct"),
        (
            "",
            "normal",
            "<body>x</body><x xmlns='http://jabber.org/protocol/muc#user'><invite from='r@localhost'/></x>",
            "a received, b direct, n received",
        ),
        // 9: private.
        ("", "chat", "<body>x</body><private xmlns='urn:xmpp:carbons:2'/>", "b direct"),
        ("/b", "chat", "<body>x</body><no-copy xmlns='urn:xmpp:hints'/>", "b direct"),
        (
            "/b",
            "normal",
            "<body>x</body><private xmlns='urn:xmpp:carbons:2'/><no-copy xmlns='urn:xmpp:hints'/>",
            "b direct",
        ),
        ("/b", "chat", "<body>x</body><p:private xmlns:p='urn:xmpp:&#99;arbons:2'/>", "b direct"),
        // 9 speaks of one namespace only.
        ("/b", "chat", "<body>x</body><private xmlns='urn:x'/>", "a received, b direct, n received"),
        // 11: what looks like a copy comes as what it is, from its sender, and is not copied.
        ("/b", "chat", &forged("received", "victim@localhost/x", "juliet@localhost/b"), "b direct"),
        ("", "chat", &forged("sent", "juliet@localhost/x", "victim@localhost"), "b direct"),
    ] {
        let xml = format!("<message to='{JULIET}{to}' type='{kind}'>{inner}</message>");
        let got = cast.play("romeo", &xml).await;
        assert_eq!(told(&got), expected, "{xml}");
        let direct = got.iter().flat_map(|(_, s)| s).find(|s| s.attr("from") != Some(JULIET)).unwrap();
        assert_eq!(direct.attr("from"), Some("romeo@localhost/r"), "{direct}");
    }
    // The copy is of the message as it was delivered: with the id in the archive.
    let xml = format!("<message to='{JULIET}/b' type='chat' id='i'><body>&lt;x&gt;</body></message>");
    let got = cast.play("romeo", &xml).await;
    let inner = |at: usize| {
        let stanza = &got[at].1[0];
        let forwarded = stanza.child_in(CARBONS).and_then(|w| w.child("forwarded"));
        forwarded.and_then(|f| f.child("message")).unwrap_or(stanza)
    };
    let id = |message: &Element| message.child_in("urn:xmpp:sid:0").unwrap().attr("id").unwrap().to_owned();
    assert_eq!(id(inner(0)), id(inner(1)));
    assert_eq!(inner(0).child("body").unwrap().text(), "<x>");
    assert_eq!((inner(0).attr("id"), inner(0).attr("from")), (Some("i"), Some("romeo@localhost/r")));
    drop(cast);
    server.finish();
}

/// Sections 8 and 9: what is copied of what is sent.
#[tokio::test]
async fn xep_0280_8_sent_messages() {
    sent_messages(server()).await;
}

/// Where nothing is archived, only those who want copies are a reason to store what a session sent.
#[tokio::test]
async fn xep_0280_8_sent_messages_without_an_archive_on_one_thread() {
    let config = config().with("archive.enabled", "false").with("threads", "1");
    sent_messages(Server::start(config).unwrap()).await;
}

async fn sent_messages(server: Server) {
    let mut cast = Cast::new(&server).await;
    for (sender, to, kind, inner, expected) in [
        // 8: irrespective of whether the sender wants copies, and never to it.
        ("c", "romeo@localhost", "chat", "<body>x</body>", "a sent, n sent"),
        ("a", "romeo@localhost/r", "chat", "<body>x</body>", "n sent"),
        ("n", "romeo@localhost", "normal", "<body>x</body>", "a sent"),
        ("c", "romeo@localhost/r", "chat", "<x xmlns='urn:x'/>", "a sent, n sent"),
        ("c", "romeo@localhost/r", "normal", "<x xmlns='urn:x'/>", ""),
        ("c", "romeo@localhost/r", "headline", "<body>x</body>", ""),
        ("c", "romeo@localhost/r", "groupchat", "<body>x</body>", ""),
        ("c", "romeo@localhost/r", "error", "<body>x</body>", ""),
        ("c", "romeo@localhost", "chat", "<body>x</body><private xmlns='urn:xmpp:carbons:2'/>", ""),
        ("c", "romeo@localhost", "chat", "<body>x</body><no-copy xmlns='urn:xmpp:hints'/>", ""),
    ] {
        let xml = format!("<message to='{to}' type='{kind}'>{inner}</message>");
        assert_eq!(told(&cast.play(sender, &xml).await), expected, "{sender}: {xml}");
    }
    // 10.3: the error that an own message came back with goes to its sender alone.
    let xml = "<message to='nobody@localhost' type='chat' id='e'><body>x</body></message>";
    let got = cast.play("c", xml).await;
    let errors: Vec<_> = got
        .iter()
        .filter(|(_, s)| s.iter().any(|s| s.attr("type") == Some("error")))
        .map(|(r, _)| *r)
        .collect();
    assert!(errors.iter().all(|resource| *resource == "c"), "{errors:?}");
    drop(cast);
    server.finish();
}

/// Sections 3 to 5 and 10.1: switching.
#[tokio::test]
async fn xep_0280_4_and_5_switching() {
    let server = server();
    let mut cast = Cast::new(&server).await;
    let c = cast.client("c");
    c.send(
        "<iq type='get' id='d' to='localhost'><query xmlns='http://jabber.org/protocol/disco#info'/></iq>",
    )
    .await
    .unwrap();
    let info = c.reply("d").await.unwrap();
    let features: Vec<_> = info.child("query").unwrap().children().filter_map(|f| f.attr("var")).collect();
    assert!(features.contains(&CARBONS), "{features:?}");
    // 6.2: not all of the recommended rules are there, so this is not said.
    assert!(!features.contains(&"urn:xmpp:carbons:rules:0"));
    let chat = format!("<message to='{JULIET}/b' type='chat'><body>x</body></message>");
    for (request, expected) in [
        ("enable", "a received, b direct, c received, n received"),
        ("enable", "a received, b direct, c received, n received"),
        ("disable", "a received, b direct, n received"),
        ("disable", "a received, b direct, n received"),
        ("enable", "a received, b direct, c received, n received"),
    ] {
        let answer = switch(cast.client("c"), request).await;
        assert_eq!(answer.attr("type"), Some("result"), "{answer}");
        assert_eq!(told(&cast.play("romeo", &chat).await), expected, "{request}");
    }
    // What is no such request changes nothing.
    for (xml, expected) in [
        (format!("<iq type='get' id='w'><disable xmlns='{CARBONS}'/></iq>"), "bad-request"),
        (format!("<iq type='set' id='w'><other xmlns='{CARBONS}'/></iq>"), "bad-request"),
    ] {
        cast.client("c").send(&xml).await.unwrap();
        loop {
            let stanza = cast.client("c").next("the answer").await.unwrap();
            if stanza.attr("id") == Some("w") {
                assert_eq!(condition(&stanza), expected, "{xml}");
                break;
            }
        }
    }
    // For another account nobody can.
    cast.romeo
        .send(format!("<iq type='set' id='w' to='{JULIET}'><disable xmlns='{CARBONS}'/></iq>"))
        .await
        .unwrap();
    let answer = cast.romeo.reply("w").await.unwrap();
    assert_eq!(answer.attr("type"), Some("error"));
    assert_eq!(told(&cast.play("romeo", &chat).await), "a received, b direct, c received, n received");
    // It is a matter of the session: the next one begins without.
    let at = cast.juliet.iter().position(|(name, _)| *name == "c").unwrap();
    cast.juliet.remove(at).1.close().await.unwrap();
    let new = login(&server, "juliet", "c", 0).await;
    cast.juliet.insert(at, ("c", new));
    assert_eq!(told(&cast.play("romeo", &chat).await), "a received, b direct, n received");
    drop(cast);
    server.finish();
}

/// A copy is kept like the message: for a session that waits to be resumed, also by the next server.
#[tokio::test]
async fn copies_wait_for_a_session_that_is_resumed() {
    let mut server = server();
    let mut romeo = Managed::login(&server, "romeo", "r").await;
    let mut a = Managed::available(&server, "juliet", "a").await;
    let b = Managed::available(&server, "juliet", "b").await;
    a.send(format!("<iq type='set' id='c'><enable xmlns='{CARBONS}'/></iq>")).await;
    eventually("carbons are enabled", async || {
        (a.stanza("the answer").await.attr("id") == Some("c")).then_some(())
    })
    .await;
    a.acknowledge().await;
    a.settled(2).await;
    let (id, h) = (a.id.clone(), a.received);
    a.raw.reset().unwrap();
    for round in 0..2 {
        let xml = format!("<message to='{JULIET}/b' type='chat' id='{round}'><body>x</body></message>");
        romeo.send(xml).await;
        romeo.settled(1).await;
        if round == 1 {
            server.kill().unwrap();
            server.start_again().unwrap();
        }
        let (mut a, _) = Managed::resume(&server, "juliet", &id, h + round).await.unwrap();
        let stanza = a.stanza("the copy").await;
        assert_eq!(copy(&stanza, "a"), Some("received"), "{stanza}");
        let inner = stanza.child("received").unwrap().child("forwarded").unwrap().child("message").unwrap();
        assert_eq!(inner.attr("id"), Some(&*round.to_string()));
        a.acknowledge().await;
        a.settled(2).await;
        a.raw.reset().unwrap();
        romeo.raw.reset().unwrap();
        romeo = Managed::login(&server, "romeo", "r").await;
    }
    drop((romeo, b));
    server.finish();
}

//! SECURITY.md row F8 on streams: what is one address, what is another one, and what is none.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::xml::{Element, escape};
use waystation_harness::{Account, Client, Config, Login};
use waystation_security::{World, condition};

const IDN: &str = "b\u{fc}cher.example";
const KELVIN: &str = "kelvin.example";

fn account(user: &str, host: &str) -> Account {
    Account { host: host.to_owned(), ..Account::new(user) }
}

/// A server for an internationalized host and another one besides localhost, with an account each.
fn world() -> World {
    let mut config = Config::default().with("limits.connection_rate", "0");
    config.hosts = ["localhost", IDN, KELVIN].map(str::to_owned).into();
    config.accounts = vec![account("ren\u{e9}", IDN), account("kelvin", KELVIN)];
    World::with(config)
}

async fn login(world: &World, account: &Account, resource: &str) -> Client {
    Client::login(world.server.endpoint(), account, &Login::resource(resource)).await.unwrap()
}

/// What a ping of this address is answered with.
async fn ping(client: &mut Client, to: &str) -> String {
    let to = escape(to);
    client.send(format!("<iq type='get' id='j' to='{to}'><ping xmlns='urn:xmpp:ping'/></iq>")).await.unwrap();
    let answer = client.reply("j").await.unwrap();
    if answer.attr("type") == Some("result") { "result".to_owned() } else { condition(&answer) }
}

#[tokio::test]
async fn f8_every_spelling_reaches_the_one_account() {
    let world = world();
    let mut romeo = world.login("romeo", "r").await;
    let accounts =
        [world.server.account("juliet").clone(), account("ren\u{e9}", IDN), account("kelvin", KELVIN)];
    let spellings: [&[&str]; 3] = [
        &[
            "juliet@localhost",
            "JULIET@LocalHost.",
            "juliet@localhost\u{3002}",
            "juliet@localhost\u{ff0e}",
            "juliet@localhost\u{ff61}",
            "\u{ff4a}\u{ff35}liet@\u{ff4c}ocalh\u{ff2f}st",
            // What IDNA takes out of a domain; in the part before the @ it is refused.
            "juliet@local\u{ad}host",
        ],
        &[
            "ren\u{e9}@b\u{fc}cher.example",
            "rene\u{301}@bu\u{308}cher.example",
            "REN\u{c9}@B\u{dc}CHER.Example.",
            "RENE\u{301}@BU\u{308}CHER.example",
            "ren\u{e9}@xn--bcher-kva.example",
            "ren\u{e9}@XN--Bcher-KVA.EXAMPLE.",
            "ren\u{e9}@\u{ff42}\u{fc}cher\u{ff0e}example",
            "ren\u{e9}@b\u{fc}cher\u{3002}example\u{3002}",
            "ren\u{e9}@\u{ff58}n--bcher-kva.example",
        ],
        &["kelvin@kelvin.example", "kelvin@\u{212a}elvin.example", "\u{ff2b}elvin@KELVIN.EXAMPLE"],
    ];
    for (account, spellings) in accounts.iter().zip(spellings) {
        let mut receiver = login(&world, account, "r").await;
        for to in spellings {
            romeo.send(format!("<message to='{to}/r'><body>x</body></message>")).await.unwrap();
            let got = receiver.next("the message").await;
            assert!(got.is_ok(), "{to}: {got:?}");
        }
        assert!(receiver.drain().await.unwrap().is_empty());
        receiver.close().await.unwrap();
    }
    // Resources keep their case; spaces and composition are mapped.
    let mut receiver = login(&world, &accounts[0], "caf\u{e9} a").await;
    assert_eq!(receiver.jid(), "juliet@localhost/caf\u{e9} a");
    for resource in ["caf\u{e9} a", "cafe\u{301} a", "caf\u{e9}\u{a0}a", "caf\u{e9}\u{3000}a"] {
        romeo
            .send(format!("<message to='juliet@localhost/{resource}'><body>x</body></message>"))
            .await
            .unwrap();
        let got = receiver.next("the message").await;
        assert!(got.is_ok(), "{resource}: {got:?}");
    }
    for resource in ["CAF\u{c9} A", "caf\u{e9}a", "\u{ff43}af\u{e9} a"] {
        let to = format!("juliet@localhost/{resource}");
        assert_eq!(ping(&mut romeo, &to).await, "service-unavailable", "{to}");
    }
    assert!(receiver.drain().await.unwrap().is_empty(), "another resource is not this one");
    drop((romeo, receiver));
    world.end();
}

#[tokio::test]
async fn f8_streams_and_logins_know_every_spelling_of_a_host() {
    let world = world();
    for host in
        ["b\u{fc}cher.example", "xn--bcher-kva.example", "BU\u{308}CHER.example.", "XN--BCHER-KVA.example"]
    {
        let own = account("ren\u{e9}", IDN);
        let spelled = Account { user: "rene\u{301}".to_owned(), host: host.to_owned(), ..own };
        let client = login(&world, &spelled, "r").await;
        assert_eq!(client.jid(), format!("ren\u{e9}@{IDN}/r"), "{host}");
        client.close().await.unwrap();
    }
    for host in ["xn--a", "xn--localhost-", "localhost..", "loc\u{430}lhost", "b\u{fc}cher.exampl\u{435}", ""]
    {
        let mut raw = world.connect().await;
        raw.send(waystation_harness::stream::stream_header(host)).await.unwrap();
        raw.read_until("<stream:error><").await.unwrap();
        let error = raw.read_to_end().await.unwrap();
        let condition = error.split([' ', '/']).next().unwrap_or_default();
        assert!(["host-unknown", "improper-addressing"].contains(&condition), "{host:?}: {error}");
    }
    world.end();
}

#[tokio::test]
async fn f8_what_looks_alike_is_another_address() {
    let world = world();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    for (to, expected) in [
        // Letters of other scripts, and letters without or with another dot.
        ("\u{458}uliet@localhost/r", "service-unavailable"),
        ("jul\u{456}et@localhost/r", "service-unavailable"),
        ("jul\u{131}et@localhost/r", "service-unavailable"),
        ("JUL\u{130}ET@localhost/r", "service-unavailable"),
        ("juli\u{117}t@localhost/r", "service-unavailable"),
        ("ju\u{217c}iet@localhost/r", "jid-malformed"),
        ("juliet@loc\u{430}lhost/r", "remote-server-not-found"),
        ("juliet@l\u{3bf}calhost/r", "remote-server-not-found"),
        ("ren\u{e9}@bucher.example/r", "remote-server-not-found"),
        ("ren\u{e9}@b\u{fc}cher.example.org/r", "remote-server-not-found"),
        ("juliet@xn--loclhost-36g/r", "remote-server-not-found"),
        // The first slash ends the domain, and the @ behind it is the resource's.
        ("localhost/juliet@localhost/r", "service-unavailable"),
        ("a/b@c/d", "remote-server-not-found"),
        ("elsewhere/juliet@localhost", "remote-server-not-found"),
        ("juliet@localhost/b@c/d", "service-unavailable"),
        // Addresses of machines are no names of hosts.
        ("juliet@127.0.0.1/r", "remote-server-not-found"),
        ("juliet@[::1]/r", "remote-server-not-found"),
    ] {
        assert_eq!(ping(&mut romeo, to).await, expected, "{to}");
    }
    assert!(juliet.drain().await.unwrap().is_empty(), "another address is not this one");
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn f8_what_is_no_address_is_refused() {
    let world = world();
    let mut juliet = world.login("juliet", "r").await;
    let mut romeo = world.login("romeo", "r").await;
    let domains = [
        // Malformed A-labels; the second and third stand for ASCII (RUSTSEC-2024-0421).
        "xn--a",
        "xn--localhost-",
        "xn--example-.org",
        "xn--",
        "xn--.example",
        "xn--zzzzzzzzzzzzzz",
        "xn--0ca24w",
        "xn--\u{fc}.example",
        "xn--bcher-kva-.example",
        // Dots.
        ".",
        ".localhost",
        "localhost..",
        "local..host",
        "localhost.\u{3002}",
        "\u{ff0e}localhost",
        // What looks like a separator, or like nothing.
        "local\u{ff20}host",
        "local\u{fe6b}host",
        "localhost\u{ff0f}r",
        "localhost\u{2044}r",
        "local\u{200d}host",
        "local\u{200c}host",
        "local\u{202e}host",
        "local\u{378}host",
        "local host",
        "local_host",
        "-localhost",
        "localhost-",
        "localhost:5222",
        "[::1",
        "[::1]x",
        "[fe80::1%lo]",
    ];
    let locals = [
        "\u{212a}elvin",
        "\u{212b}ngstr",
        "ju\u{200d}liet",
        "ju\u{200c}liet",
        "ju\u{200b}liet",
        "ju\u{feff}liet",
        "ju\u{ad}liet",
        "ju\u{2060}liet",
        "\u{202e}juliet",
        "juliet\u{ff20}localhost",
        "juliet\u{fe6b}localhost",
        "juliet\u{ff0f}r",
        "juliet\u{ff1c}",
        "a@b",
        "\u{2168}",
        "\u{aa}",
        "\u{fb01}",
        "a\u{e000}",
        "a\u{378}",
        "a\u{85}",
        "a\u{fdd0}",
        "\u{5d0}a",
        "a\u{b7}b",
        "\u{265a}",
        "ju liet",
        "ju\u{a0}liet",
        "ju\u{3000}liet",
        "\"juliet\"",
        "juliet's",
        "<juliet>",
        "ju&liet",
        "ju:liet",
        "",
    ];
    let resources =
        ["", " r", "\u{a0}r", "a\u{200d}b", "a\u{202e}b", "a\u{ad}b", "a\u{378}", "a\u{e000}", "a\u{7f}"];
    let all = domains
        .iter()
        .map(|domain| format!("juliet@{domain}"))
        .chain(domains.iter().map(|domain| (*domain).to_owned()))
        .chain(locals.iter().map(|local| format!("{local}@localhost")))
        .chain(locals.iter().map(|local| format!("{local}@localhost/r")))
        .chain(resources.iter().map(|resource| format!("juliet@localhost/{resource}")))
        .chain(["/r", "@", "@/", "a@b@localhost/r"].map(str::to_owned));
    for to in all {
        assert_eq!(ping(&mut romeo, &to).await, "jid-malformed", "{to}");
        // A message is refused alike, and reaches nobody.
        let to = escape(&to);
        romeo.send(format!("<message id='m' to='{to}'><body>x</body></message>")).await.unwrap();
        assert_eq!(condition(&romeo.reply("m").await.unwrap()), "jid-malformed", "{to}");
    }
    assert!(juliet.drain().await.unwrap().is_empty());
    drop((romeo, juliet));
    world.end();
}

#[tokio::test]
async fn f8_parts_have_1023_bytes_and_no_more() {
    let world = world();
    let mut romeo = world.login("romeo", "r").await;
    let label = "a".repeat(63);
    let domain = |last: usize| format!("{label}.{label}.{label}.{}", "a".repeat(last));
    let (nobody, elsewhere, malformed) = ("service-unavailable", "remote-server-not-found", "jid-malformed");
    for (what, to, expected) in [
        ("local 1023", format!("{}@localhost", "a".repeat(1_023)), nobody),
        ("local 1024", format!("{}@localhost", "a".repeat(1_024)), malformed),
        ("local 1022 of two bytes", format!("{}@localhost", "\u{e9}".repeat(511)), nobody),
        ("local 1024 of two bytes", format!("{}@localhost", "\u{e9}".repeat(512)), malformed),
        ("local 1023 after mapping", format!("{}@localhost", "\u{ff41}".repeat(1_023)), nobody),
        ("local 1024 after mapping", format!("{}@localhost", "\u{ff41}".repeat(1_024)), malformed),
        ("local 1022 that grow", format!("{}@localhost", "\u{130}".repeat(511)), malformed),
        ("resource 1023", format!("romeo@localhost/{}", "a".repeat(1_023)), nobody),
        ("resource 1024", format!("romeo@localhost/{}", "a".repeat(1_024)), malformed),
        ("resource 1022 of two bytes", format!("romeo@localhost/{}", "\u{e9}".repeat(511)), nobody),
        ("resource 1024 of two bytes", format!("romeo@localhost/{}", "\u{e9}".repeat(512)), malformed),
        ("label 63", label.clone(), elsewhere),
        ("label 64", format!("{label}a"), malformed),
        ("A-label 63", "\u{fc}".repeat(57), elsewhere),
        ("A-label 64", "\u{fc}".repeat(58), malformed),
        ("domain 253", domain(61), elsewhere),
        ("domain 254", domain(62), malformed),
        ("domain 1023", "a".repeat(1_023), malformed),
        ("domain 1024", "a.".repeat(512), malformed),
        ("all", format!("{0}@{1}/{0}", "a".repeat(1_023), domain(61)), elsewhere),
        ("everything", "a".repeat(100_000), malformed),
    ] {
        assert_eq!(ping(&mut romeo, &to).await, expected, "{what}");
    }
    // The longest name is an account like any other, and the longest resource a session.
    let longest = Account { user: "l".repeat(1_023), ..Account::new("longest") };
    let add = |user: &str| {
        let args = ["user", "add", &format!("{user}@localhost"), "--password-stdin"];
        world.server.command(&args, &format!("{}\n", longest.password)).unwrap()
    };
    let added = add(&longest.user);
    assert!(added.status.success(), "{added:?}");
    let refused = add(&"l".repeat(1_024));
    assert!(!refused.status.success() && !refused.stderr.is_empty(), "{refused:?}");
    let resource = "r".repeat(1_023);
    let mut client = login(&world, &longest, &resource).await;
    assert_eq!(client.jid().len(), 1_023 + 1 + "localhost".len() + 1 + 1_023);
    let to = client.jid().to_owned();
    romeo.send(format!("<message to='{to}'><body>x</body></message>")).await.unwrap();
    assert_eq!(client.next("the message").await.unwrap().attr("to"), Some(&*to));
    let longer = Login::resource(&format!("{resource}r"));
    let refused = Client::login(world.server.endpoint(), &longest, &longer).await;
    assert!(refused.is_err_and(|e| e.to_string().contains("bad-request")));
    drop((romeo, client));
    world.end();
}

#[tokio::test]
async fn f8_a_contact_is_one_in_every_spelling() {
    let world = world();
    let mut romeo = world.login("romeo", "r").await;
    for jid in [
        "ren\u{e9}@xn--bcher-kva.example",
        "RENE\u{301}@BU\u{308}CHER.example.",
        "ren\u{e9}@b\u{fc}cher.example",
    ] {
        let set =
            format!("<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='{jid}'/></query></iq>");
        romeo.send(set).await.unwrap();
        assert_eq!(romeo.reply("s").await.unwrap().attr("type"), Some("result"), "{jid}");
    }
    for jid in ["ju\u{200d}liet@localhost", "\u{212a}@localhost", "juliet@xn--localhost-", "a@b@c", ""] {
        let set =
            format!("<iq type='set' id='s'><query xmlns='jabber:iq:roster'><item jid='{jid}'/></query></iq>");
        romeo.send(set).await.unwrap();
        let refused = condition(&romeo.reply("s").await.unwrap());
        assert!(["jid-malformed", "bad-request"].contains(&refused.as_str()), "{jid}: {refused}");
    }
    romeo.send("<iq type='get' id='g'><query xmlns='jabber:iq:roster'/></iq>").await.unwrap();
    let roster = romeo.reply("g").await.unwrap();
    let items: Vec<_> =
        roster.child("query").into_iter().flat_map(Element::children).filter_map(|i| i.attr("jid")).collect();
    assert_eq!(items, ["ren\u{e9}@b\u{fc}cher.example"]);
    drop(romeo);
    world.end();
}

/// What the registration of a name is answered with.
async fn register(world: &World, user: &str) -> String {
    let mut raw = world.open_tls().await;
    let user = escape(user);
    raw.send(format!(
        "<iq type='set' id='r'><query xmlns='jabber:iq:register'><username>{user}</username>\
         <password>Some-Secret-1</password></query></iq>"
    ))
    .await
    .unwrap();
    let answer = raw.next_element("an answer").await.unwrap();
    if answer.attr("type") == Some("result") { "result".to_owned() } else { condition(&answer) }
}

/// Names that mix scripts as no language does, and all but one look like `paypal` or `admin`.
const MIXED: [&str; 6] = [
    "p\u{430}ypal",
    "\u{440}\u{430}\u{443}\u{440}\u{430}l",
    "\u{440}aypal",
    "adm\u{456}n",
    "\u{3b1}dmin",
    "\u{430}\u{3b1}",
];
/// Names of one script, or of several that are written together.
const SINGLE: [&str; 5] =
    ["paypal", "\u{440}\u{430}\u{443}3", "caf\u{e9}_2", "\u{6f22}\u{304b}\u{30ab}a", "\u{d55c}\u{6f22}a"];

#[tokio::test]
async fn f8_names_of_mixed_scripts_are_registered_only_where_that_is_wanted() {
    let open = || {
        let config = Config::default().with("registration.enabled", "true");
        config.with("registration.interval", "'0s'").with("limits.connection_rate", "0")
    };
    let world = World::with(open());
    let add = |world: &World, user: &str| {
        let args = ["user", "add", &format!("{user}@localhost"), "--password-stdin"];
        world.server.command(&args, "Some-Secret-1\n").unwrap().status.success()
    };
    for user in SINGLE {
        assert_eq!(register(&world, user).await, "result", "{user}");
    }
    for user in MIXED {
        assert_eq!(register(&world, user).await, "not-acceptable", "{user}");
        assert!(!add(&world, user), "{user} by an administrator");
    }
    // Another spelling is the account that exists; what is no name cannot be one.
    for user in ["PAYPAL", "\u{ff50}aypal", "cafe\u{301}_2", "ROMEO", "\u{ff32}omeo"] {
        assert_eq!(register(&world, user).await, "conflict", "{user}");
    }
    for user in
        ["pay\u{200d}pal", "\u{212a}elvin", "\u{2168}", "a@b", "paypal/r", "pay pal", &"a".repeat(1_024)]
    {
        assert_eq!(register(&world, user).await, "not-acceptable", "{user}");
    }
    world.end();

    let world = World::with(open().with("registration.refuse_mixed_scripts", "false"));
    for user in MIXED {
        assert_eq!(register(&world, user).await, "result", "{user}");
    }
    assert!(add(&world, "\u{430}dmin"), "by an administrator");
    assert_eq!(register(&world, "paypal").await, "result", "the name that it looks like is another one");
    world.end();
}

//! Which servers a domain has, and in which order they are tried.

use std::collections::HashMap;
use std::time::Instant;

use waystation_federation::{DomainPolicy, Resolver, Settings};
use waystation_harness::dns::{Data, Fault, Zone};

use super::*;

#[tokio::test]
async fn records_of_both_kinds_are_mixed_by_priority_and_the_next_follows_one_that_does_not_do() {
    let (_a, a) = listener().await;
    let (_b, b) = listener().await;
    let (_c, c) = listener().await;
    let dead = nobody().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org  SRV 10 0 {dead} dead.example.net
         _xmpp-server._tcp.example.org  SRV 20 0 {a} one.example.net
         _xmpps-server._tcp.example.org SRV 15 0 {b} Two.Example.net
         _xmpps-server._tcp.example.org SRV 30 0 {c} one.example.net
         dead.example.net A 127.0.0.1
         one.example.net  A 127.0.0.1
         two.example.net  A 127.0.0.1"
    ));
    let resolver = resolver(&dns);
    let mut dialling = resolver.dial("example.org");
    let mut got = Vec::new();
    for _ in 0..3 {
        let dialled = timeout(PATIENCE, dialling.next()).await.unwrap().unwrap();
        got.push((dialled.connection.peer(), dialled.direct_tls, dialled.target));
    }
    let address = |port| at(Ipv4Addr::LOCALHOST, port);
    let names = ["two.example.net", "one.example.net"].map(str::to_owned);
    assert_eq!(
        got,
        [
            (address(b), true, names[0].clone()),
            (address(a), false, names[1].clone()),
            (address(c), true, names[1].clone())
        ]
    );
    for _ in 0..2 {
        let error = timeout(PATIENCE, dialling.next()).await.unwrap().map(|d| d.target).unwrap_err();
        failed(&error, &format!("127.0.0.1:{dead} (dead.example.net): Connection refused"));
        failed(&error, &format!("127.0.0.1:{a} (one.example.net) did not do"));
    }
}

/// SECURITY M11, priority and weight.
#[tokio::test]
async fn m11_weights_say_how_often_a_server_is_first_and_priorities_that_another_never_is() {
    let (first, a) = listener().await;
    let (second, b) = listener().await;
    let (spare, c) = listener().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org SRV 1 75 {a} x.example.net
         _xmpp-server._tcp.example.org SRV 1 25 {b} x.example.net
         _xmpp-server._tcp.example.org SRV 2 100 {c} x.example.net
         x.example.net A 127.0.0.1"
    ));
    let resolver = resolver(&dns);
    let mut counts: HashMap<u16, u32> = HashMap::new();
    // The listeners' queues are short: whoever is connected is let go at once, and refused by nobody.
    for listener in [first, second, spare] {
        tokio::spawn(async move {
            while let Ok(accepted) = listener.accept().await {
                drop(accepted);
            }
        });
    }
    let begun = Instant::now();
    for _ in 0..400 {
        *counts.entry(reached(&resolver, "example.org").await).or_default() += 1;
    }
    assert_eq!(counts.get(&c), None);
    // 300 and 100, some six standard deviations to either side.
    assert!(counts[&a].abs_diff(300) < 52, "{counts:?}");
    if begun.elapsed() < Duration::from_secs(60) {
        // Two for services, two for addresses, however often it is dialled; a late answer is asked for again.
        assert!(dns.questions() < 20, "{} questions", dns.questions());
    }
}

/// SECURITY M11, the target `.`.
#[tokio::test]
async fn m11_a_domain_that_says_that_it_has_no_server_has_none() {
    let (_listener, port) = listener().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.none.example  SRV 0 0 0 .
         _xmpps-server._tcp.none.example SRV 0 0 0 .
         none.example A 127.0.0.1
         _xmpps-server._tcp.direct.example SRV 0 0 0 .
         direct.example A 127.0.0.1
         _xmpps-server._tcp.starttls.example SRV 0 0 0 .
         _xmpp-server._tcp.starttls.example  SRV 0 0 {port} x.example
         x.example A 127.0.0.1"
    ));
    let resolver = resolver(&dns);
    not_found(&unreached(&resolver, "none.example").await, "says that there is no XMPP server");
    not_found(&unreached(&resolver, "direct.example").await, "says that there is no XMPP server");
    assert_eq!((dns.asked("none.example"), dns.asked("direct.example")), (0, 0), "no fallback");
    assert_eq!(reached(&resolver, "starttls.example").await, port, "only direct TLS is not there");
    dns.fault("_xmpp-server._tcp.direct.example", Some(Fault::ServerFailure));
    let error = unreached(&super::resolver(&dns), "direct.example").await;
    failed(&error, "_xmpp-server._tcp.direct.example SRV");
}

/// Whether somebody listens on 5269 here or not: it is this port of this address that is tried.
async fn tries_default_port(resolver: &Resolver, domain: &str) {
    match dial(resolver, domain).await {
        Ok(dialled) => assert_eq!(dialled.connection.peer(), at(Ipv4Addr::LOCALHOST, 5269)),
        Err(error) => failed(&error, &format!("127.0.0.1:5269 ({domain})")),
    }
}

#[tokio::test]
async fn without_srv_records_the_domain_itself_is_dialled_and_with_them_it_is_not() {
    let dns = dns("plain.example A 127.0.0.1
         _xmpp-server._tcp.srv.example SRV 0 0 5269 gone.example
         srv.example A 127.0.0.1
         text.example TXT here");
    let resolver = resolver(&dns);
    tries_default_port(&resolver, "plain.example").await;
    not_found(&unreached(&resolver, "srv.example").await, "gone.example has no address");
    assert_eq!(dns.asked("srv.example"), 0);
    not_found(&unreached(&resolver, "text.example").await, "text.example has no address");
    let error = unreached(&resolver, "no.example").await;
    not_found(&error, "no.example has no SRV records; no.example has no address");
}

#[tokio::test]
async fn what_is_not_answered_is_not_taken_for_nothing() {
    let (_listener, port) = listener().await;
    let dns = dns(&format!(
        "a.example A 127.0.0.1
         _xmpp-server._tcp.b.example SRV 0 0 {port} x.example
         x.example A 127.0.0.1
         _xmpp-server._tcp.c.example SRV 0 0 {port} y.example
         y.example A 127.0.0.1"
    ));
    dns.fault("_xmpp-server._tcp.no.example", Some(Fault::ServerFailure));
    dns.fault("_xmpp-server._tcp.a.example", Some(Fault::ServerFailure));
    dns.fault("_xmpps-server._tcp.b.example", Some(Fault::Refused));
    dns.fault("y.example", Some(Fault::ServerFailure));
    let resolver = resolver(&dns);
    failed(&unreached(&resolver, "no.example").await, "_xmpp-server._tcp.no.example SRV: ");
    // RFC 6120 3.2.1, rule 9.
    tries_default_port(&resolver, "a.example").await;
    assert_eq!(reached(&resolver, "b.example").await, port, "the other kind's answer does");
    failed(&unreached(&resolver, "c.example").await, "y.example AAAA: ");
    dns.fault("y.example", None);
    assert_eq!(reached(&resolver, "c.example").await, port, "failures are not kept");
}

#[tokio::test]
async fn silence_and_answers_that_are_none_end_in_time_and_a_lost_one_is_asked_for_again() {
    let dns = dns("a.example A 127.0.0.1");
    let faults = [("silent", Fault::Silent), ("guess", Fault::WrongId), ("cut", Fault::CutOff)];
    for (name, fault) in faults {
        for before in ["_xmpp-server._tcp.", "_xmpps-server._tcp.", ""] {
            dns.fault(&format!("{before}{name}.example"), Some(fault));
        }
    }
    let resolver = resolver(&dns);
    let (silent, guess, cut) = tokio::join!(
        unreached(&resolver, "silent.example"),
        unreached(&resolver, "guess.example"),
        unreached(&resolver, "cut.example")
    );
    for (name, error) in [("silent", silent), ("guess", guess), ("cut", cut)] {
        failed(&error, &format!("_xmpps-server._tcp.{name}.example SRV: "));
        failed(&error, &format!("; {name}.example AAAA: "));
    }
    assert!(dns.asked("_xmpp-server._tcp.silent.example") > 1, "packets are lost, and sent again");
}

/// SECURITY M11: all questions about one domain together have their time, however many there are.
#[tokio::test]
async fn m11_a_domain_whose_servers_names_are_never_answered_ends_in_time() {
    let mut zone = Zone::new();
    for number in 0..16 {
        let target = format!("x{number}.example");
        zone.add("_xmpp-server._tcp.example.org", Data::Srv(number, 0, 5269, target));
    }
    let dns = DnsServer::start(zone).unwrap();
    for number in 0..16 {
        dns.fault(&format!("x{number}.example"), Some(Fault::Silent));
    }
    let begun = Instant::now();
    let error = unreached(&resolver(&dns), "example.org").await;
    failed(&error, "DNS has not answered all that was asked within 20 s");
    assert!(begun.elapsed() >= Duration::from_secs(19), "{:?}", begun.elapsed());
}

/// Who dials on another thread uses the same name servers, whatever became of the first one's runtime.
#[test]
fn resolvers_outlive_the_runtimes_in_which_they_are_used() {
    let mut zone = Zone::new();
    let (listener, port) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr().map(|address| (listener, address.port())))
        .unwrap();
    for number in 0..200_u8 {
        for round in 0..3 {
            zone.add(&format!("x{round}.example"), Data::A(Ipv4Addr::new(127, 0, 0, number)));
        }
    }
    for round in 0..3 {
        zone.add(
            &format!("_xmpp-server._tcp.r{round}.example"),
            Data::Srv(0, 0, port, format!("x{round}.example")),
        );
    }
    let dns = DnsServer::start(zone).unwrap();
    let resolver = resolver(&dns);
    for round in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let reached = runtime.block_on(reached(&resolver, &format!("r{round}.example")));
        assert_eq!(reached, port);
    }
    assert!(dns.over_tcp() >= 3);
    drop(listener);
}

#[tokio::test]
async fn names_of_other_scripts_are_asked_for_as_a_labels() {
    let (_listener, port) = listener().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.xn--bcher-kva.example SRV 0 0 {port} xn--bcher-kva.example
         xn--bcher-kva.example A 127.0.0.1"
    ));
    assert_eq!(reached(&resolver(&dns), "bücher.example").await, port);
}

#[tokio::test]
async fn aliases_are_followed_within_an_answer_and_beyond_it() {
    let (_listener, port) = listener().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org CNAME _xmpp-server._tcp.host.example
         _xmpp-server._tcp.host.example SRV 0 0 {port} a.example
         a.example CNAME b.example
         b.example CNAME c.example
         c.example A 127.0.0.1"
    ));
    assert_eq!(reached(&resolver(&dns), "example.org").await, port);
    assert_eq!(dns.asked("b.example"), 0, "all of it was in the answers");
    dns.fault("*", Some(Fault::FirstAlias));
    assert_eq!(reached(&resolver(&dns), "example.org").await, port);
    assert!(dns.asked("b.example") > 0);
}

#[tokio::test]
async fn what_the_administrators_have_said_is_not_asked_for() {
    let (_listener, port) = listener().await;
    let dns = dns("server.example A 127.0.0.1");
    let domain = |domain: &str, server: &str, direct_tls| DomainPolicy {
        domain: domain.to_owned(),
        require_tls: None,
        require_certificate: None,
        server: Some((server.to_owned(), port)),
        direct_tls,
    };
    let settings = Settings {
        domains: vec![
            domain("address.example", "127.0.0.1", true),
            domain("*.name.example", "server.example", false),
            domain("nonsense.example", "a..b", false),
        ],
        private_targets: false,
        ..settings(&dns)
    };
    let closed = Resolver::new(&settings).unwrap();
    let dialled = dial(&closed, "address.example").await.unwrap();
    assert_eq!((dialled.connection.peer(), dialled.direct_tls), (at(Ipv4Addr::LOCALHOST, port), true));
    assert_eq!(dns.questions(), 0);
    refused(&unreached(&closed, "a.name.example").await, "127.0.0.1 (server.example) is no public address");
    let open = Resolver::new(&Settings { private_targets: true, ..settings }).unwrap();
    assert_eq!(reached(&open, "a.name.example").await, port);
    not_found(&unreached(&open, "nonsense.example").await, "a..b is no name of a server");
    assert_eq!((dns.asked("a.name.example"), dns.asked("_xmpp-server._tcp.a.name.example")), (0, 0));
}

//! Domains whose DNS means harm (SECURITY F9, M11).

use std::time::Instant;

use waystation_harness::dns::{Data, Fault, Zone};

use super::*;

/// Nobody has connected.
async fn untouched(listener: &TcpListener) {
    let accepted = timeout(Duration::from_millis(50), listener.accept()).await;
    assert!(accepted.is_err(), "somebody has connected");
}

#[tokio::test]
async fn f9_our_own_domains_and_addresses_are_not_even_looked_up() {
    let dns = dns("ours.example A 127.0.0.1");
    refused(&unreached(&resolver(&dns), "ours.example").await, "no domain of another server");
    for domain in ["[::1]", "127.0.0.1", "127.1", "localhost"] {
        refused(&unreached(&closed(&dns), domain).await, "no domain of another server");
    }
    let settings = Settings { deny: vec!["*.bad.example".to_owned()], ..settings(&dns) };
    refused(&unreached(&Resolver::new(&settings).unwrap(), "a.bad.example").await, "not allowed");
    assert_eq!(dns.questions(), 0);
}

/// Another domain's record may name our server: that is no loop by itself, as one server may have many
/// domains. What counts is the address.
#[tokio::test]
async fn m11_a_record_that_names_our_own_host_is_judged_by_its_address() {
    let (listener, port) = listener().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org SRV 0 0 {port} ours.example
         ours.example A 127.0.0.1"
    ));
    refused(&unreached(&closed(&dns), "example.org").await, "127.0.0.1 (ours.example) is no public address");
    untouched(&listener).await;
    assert_eq!(reached(&resolver(&dns), "example.org").await, port);
}

#[tokio::test]
async fn m11_addresses_that_are_not_public_are_not_dialled() {
    let (listener, port) = listener().await;
    let dns = dns(&format!("_xmpp-server._tcp.example.org SRV 0 0 {port} x.example"));
    for address in [
        "127.0.0.1 0.0.0.0 10.1.2.3 169.254.169.254 172.16.0.1 192.168.1.1 100.64.0.1 224.0.0.1",
        "255.255.255.255 ::1 :: ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: fe80::1 fc00::1 fec0::1 ff02::1",
    ]
    .iter()
    .flat_map(|line| line.split(' '))
    {
        let mut zone: Zone = format!("_xmpp-server._tcp.example.org SRV 0 0 {port} x.example").parse().unwrap();
        zone.add(
            "x.example",
            match address.parse().unwrap() {
                IpAddr::V4(address) => Data::A(address),
                IpAddr::V6(address) => Data::Aaaa(address),
            },
        );
        dns.set(zone);
        let shown = address.parse::<IpAddr>().unwrap();
        let error = unreached(&closed(&dns), "example.org").await;
        refused(&error, &format!("{shown} (x.example) is no public address"));
    }
    untouched(&listener).await;
}

#[tokio::test]
async fn m11_ports_of_other_services_are_not_dialled() {
    let dns = dns("_xmpp-server._tcp.mail.example SRV 0 0 25 x.example
         _xmpp-server._tcp.zero.example SRV 0 0 0 x.example
         x.example A 127.0.0.1");
    refused(&unreached(&closed(&dns), "mail.example").await, "x.example is on port 25, which is not dialled");
    refused(
        &unreached(&resolver(&dns), "zero.example").await,
        "x.example is on port 0, which is not dialled",
    );
    assert_eq!(dns.asked("x.example"), 0);
}

#[tokio::test]
async fn m11_aliases_that_never_end_are_given_up() {
    let mut zone = Zone::new();
    for number in 0..20 {
        zone.add(&format!("c{number}.example"), Data::Cname(format!("c{}.example", (number + 1) % 20)));
    }
    zone.add("_xmpp-server._tcp.loop.example", Data::Cname("c0.example".to_owned()));
    zone.add("_xmpp-server._tcp.long.example", Data::Srv(0, 0, 5269, "c0.example".to_owned()));
    zone.add("self.example", Data::Cname("self.example".to_owned()));
    let dns = DnsServer::start(zone).unwrap();
    let resolver = resolver(&dns);
    let text = "more than 8 aliases";
    failed(&unreached(&resolver, "loop.example").await, text);
    failed(&unreached(&resolver, "long.example").await, text);
    failed(&unreached(&resolver, "self.example").await, text);
    assert!(dns.questions() < 80, "{} questions", dns.questions());
}

#[tokio::test]
async fn m11_of_an_answer_of_64_kib_a_bounded_part_is_dialled() {
    let port = nobody().await;
    let mut zone = Zone::new();
    zone.add("_xmpp-server._tcp.example.org", Data::Srv(0, 0, port, "x.example".to_owned()));
    for number in 0..4000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        zone.add("x.example", Data::A(Ipv4Addr::new(127, 1, high, low)));
    }
    let dns = DnsServer::start(zone).unwrap();
    let error = unreached(&resolver(&dns), "example.org").await;
    // Eight addresses, of which six and the last are told.
    failed(&error, "Connection refused");
    failed(&error, "; 1 more; 127.");
    assert!(dns.over_tcp() >= 1, "it is too large for UDP");
}

#[tokio::test]
async fn m11_of_100_srv_records_16_servers_are_tried() {
    let port = nobody().await;
    let mut zone = Zone::new();
    for number in 0..100 {
        let kind = if number % 2 == 0 { "_xmpp-server" } else { "_xmpps-server" };
        let target = format!("x{number}.example");
        zone.add(&format!("{kind}._tcp.example.org"), Data::Srv(number, 0, port, target.clone()));
        zone.add(&target, Data::A(Ipv4Addr::LOCALHOST));
    }
    let dns = DnsServer::start(zone).unwrap();
    failed(
        &unreached(&resolver(&dns), "example.org").await,
        &format!("; 9 more; 127.0.0.1:{port} (x15.example)"),
    );
    let asked: Vec<_> = (0..100).filter(|n| dns.asked(&format!("x{n}.example")) > 0).collect();
    assert_eq!(asked, (0..16).collect::<Vec<_>>(), "those of the best priorities");
}

#[tokio::test]
async fn m11_records_that_hold_for_no_time_are_kept_for_a_moment() {
    let (_listener, port) = listener().await;
    let dns = dns(&format!(
        "_xmpp-server._tcp.example.org 0 SRV 0 0 {port} x.example
         x.example 0 A 127.0.0.1"
    ));
    let resolver = resolver(&dns);
    let begun = Instant::now();
    for _ in 0..50 {
        assert_eq!(reached(&resolver, "example.org").await, port);
    }
    // Four questions in five seconds, two of which are about what is not there. A late answer is asked for
    // again, so that there may be a few more; without a memory there would be 200.
    let most = 20 * (1 + usize::try_from(begun.elapsed().as_secs() / 5).unwrap());
    assert!(dns.questions() <= most, "{} questions", dns.questions());
}

#[tokio::test]
async fn m11_that_there_is_nothing_is_not_asked_again_for_a_minute() {
    let dns = dns("example A 127.0.0.1");
    let resolver = resolver(&dns);
    let begun = Instant::now();
    for _ in 0..20 {
        not_found(&unreached(&resolver, "no.example").await, "no.example has no address");
    }
    if begun.elapsed() < Duration::from_secs(60) {
        // Two kinds of services, two of addresses; a late answer is asked for again. It would be 80.
        assert!(dns.questions() < 20, "{} questions", dns.questions());
    }
}

#[tokio::test]
async fn m11_a_flood_of_domains_that_do_not_exist_asks_a_bounded_number_of_questions_at_once() {
    let dns = dns("example A 127.0.0.1");
    dns.fault("*", Some(Fault::Delay(Duration::from_millis(20))));
    let resolver = resolver(&dns);
    let mut domains = tokio::task::JoinSet::new();
    for number in 0..500 {
        let resolver = resolver.clone();
        domains.spawn(async move { unreached(&resolver, &format!("no{number}.example")).await });
    }
    while let Some(error) = domains.join_next().await {
        not_found(&error.unwrap(), "has no address");
    }
    assert!((16..=64).contains(&dns.peak()), "{} at once", dns.peak());
}

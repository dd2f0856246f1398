//! SECURITY.md row M1 and XEP-0313 over the wire: archives are their owners' alone, pages meet
//! without gaps, and a client finds what it has just sent.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use waystation_harness::xml::Element;
use waystation_harness::{Client, Config, Login, Server};
use waystation_security::condition;
use waystation_security::managed::{messages, numbers};

const MAM: &str = "urn:xmpp:mam:2";
const RSM: &str = "http://jabber.org/protocol/rsm";

fn server() -> Server {
    Server::start(Config::default().with_users(["romeo", "juliet", "nurse"])).unwrap()
}

async fn login(server: &Server, user: &str) -> Client {
    Client::login(server.endpoint(), server.account(user), &Login::resource("r")).await.unwrap()
}

/// The entries that a query gives, as (archive id, body), and its reply.
async fn query(client: &mut Client, to: &str, payload: &str) -> (Vec<(String, String)>, Element) {
    let xml = format!("<iq type='set' id='q' {to}><query xmlns='{MAM}' queryid='x'>{payload}</query></iq>");
    client.send(xml).await.unwrap();
    let mut entries = Vec::new();
    loop {
        let stanza = client.next("the end of the query").await.unwrap();
        if stanza.attr("id") == Some("q") {
            return (entries, stanza);
        }
        let Some(result) = stanza.child_in(MAM) else { continue };
        assert_eq!(result.attr("queryid"), Some("x"), "{stanza}");
        let message = result.child("forwarded").and_then(|f| f.child("message")).unwrap();
        let body = message.child("body").map(Element::text).unwrap_or_default();
        entries.push((result.attr("id").unwrap().to_owned(), body));
    }
}

fn rsm(inner: &str) -> String {
    format!("<set xmlns='{RSM}'>{inner}</set>")
}

fn form(fields: &[(&str, &str)]) -> String {
    let fields: String = fields
        .iter()
        .map(|(var, value)| format!("<field var='{var}'><value>{value}</value></field>"))
        .collect();
    format!(
        "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE' type='hidden'><value>{MAM}</value></field>\
         {fields}</x>"
    )
}

fn set(reply: &Element) -> &Element {
    reply.child("fin").unwrap_or_else(|| panic!("{reply}")).child_in(RSM).unwrap()
}

#[tokio::test]
async fn m1_archives_of_others() {
    let server = server();
    let mut juliet = login(&server, "juliet").await;
    let mut romeo = login(&server, "romeo").await;
    juliet.send(messages("nurse@localhost", 0..3)).await.unwrap();
    let (entries, _) = query(&mut juliet, "", "").await;
    assert_eq!(entries.len(), 3);
    // The same for one that does not exist.
    for victim in ["juliet@localhost", "nobody@localhost", "nurse@localhost"] {
        let (found, reply) = query(&mut romeo, &format!("to='{victim}'"), "").await;
        assert!(found.is_empty());
        assert_eq!(condition(&reply), "forbidden", "{victim}");
    }
    let (found, reply) = query(&mut romeo, "to='juliet@localhost/r'", "").await;
    assert!(found.is_empty() && reply.attr("type") == Some("error"), "{reply}");
    // Ids of hers mean nothing in his.
    romeo.send(messages("nurse@localhost", 10..13)).await.unwrap();
    for at in ["after", "before"] {
        let page = rsm(&format!("<{at}>{}</{at}>", entries[0].0));
        let (found, reply) = query(&mut romeo, "", &page).await;
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(condition(&reply), "item-not-found", "{at}");
    }
    // Her ids asked for one by one (XEP-0313 4.1.4) are not found either.
    let (found, reply) = query(&mut romeo, "", &form(&[("ids", &entries[0].0)])).await;
    assert!(found.is_empty(), "{found:?}");
    assert_eq!(condition(&reply), "item-not-found");
    // To the own account, named or not.
    for to in ["", "to='romeo@localhost'"] {
        let (found, _) = query(&mut romeo, to, "").await;
        assert_eq!(found.len(), 3, "{to}");
    }
    drop((juliet, romeo));
    server.finish();
}

#[tokio::test]
async fn m1_malformed_queries() {
    let server = server();
    let mut romeo = login(&server, "romeo").await;
    romeo.send(messages("nurse@localhost", 0..3)).await.unwrap();
    for (payload, expected) in [
        (rsm("<max>-1</max>"), "bad-request"),
        (rsm("<max>x</max>"), "bad-request"),
        (rsm("<after>x' OR '1'='1</after>"), "item-not-found"),
        (rsm("<after>&quot;; DROP TABLE archive; --</after>"), "item-not-found"),
        (rsm(&format!("<after>{}</after>", "9".repeat(10_000))), "item-not-found"),
        (form(&[("with", "@@@")]), "bad-request"),
        (form(&[("start", "2100-01-01T00:00:00Z"), ("end", "2000-01-01T00:00:00Z")]), "bad-request"),
        (form(&[("start", "yesterday")]), "bad-request"),
        (form(&[("start", "2026-13-45T99:99:99Z")]), "bad-request"),
        (form(&[("start", "99999-01-01T00:00:00Z")]), "bad-request"),
    ] {
        let (found, reply) = query(&mut romeo, "", &payload).await;
        assert!(found.is_empty(), "{payload}: {found:?}");
        assert_eq!(condition(&reply), expected, "{payload}");
    }
    // Times at the edges are times.
    for (fields, count) in [
        (&[("start", "0001-01-01T00:00:00Z")][..], 3),
        (&[("start", "9999-12-31T23:59:59Z")], 0),
        (&[("end", "0001-01-01T00:00:00Z")], 0),
        (&[("end", "9999-12-31T23:59:59Z")], 3),
        (&[("with", "nurse@localhost")], 3),
        (&[("with", "juliet@localhost")], 0),
    ] {
        let (found, reply) = query(&mut romeo, "", &form(fields)).await;
        assert_eq!((found.len(), reply.attr("type")), (count, Some("result")), "{fields:?}: {reply}");
    }
    drop(romeo);
    server.finish();
}

#[tokio::test]
async fn xep_0313_pages_and_ids() {
    const COUNT: usize = 250;
    let server = server();
    let mut juliet = login(&server, "juliet").await;
    juliet.become_available().await.unwrap();
    let mut romeo = login(&server, "romeo").await;
    romeo.send(messages("juliet@localhost", 0..COUNT)).await.unwrap();
    let mut live = Vec::new();
    while live.len() < COUNT {
        let stanza = juliet.next("a message").await.unwrap();
        if stanza.local() == "message" {
            let id = stanza.child_in("urn:xmpp:sid:0").unwrap();
            assert_eq!(id.attr("by"), Some("juliet@localhost"));
            live.push((id.attr("id").unwrap().to_owned(), stanza.child("body").unwrap().text()));
        }
    }
    // A page is never larger than 100, whatever is asked for.
    for max in ["", "<max>100</max>", "<max>101</max>", "<max>1000000000</max>"] {
        let (found, reply) = query(&mut juliet, "", &rsm(max)).await;
        assert!(!found.is_empty() && found.len() <= 100, "{max}: {}", found.len());
        assert_ne!(reply.child("fin").unwrap().attr("complete"), Some("true"));
    }
    let (found, reply) = query(&mut juliet, "", &rsm("<max>0</max>")).await;
    assert!(found.is_empty(), "{reply}");
    // Forwards and backwards, with page sizes that do and do not divide it: every entry once, in
    // the order of delivery, and under the id that the live copy had.
    for size in [7, 50, 99] {
        for forwards in [true, false] {
            let (mut all, mut at) =
                (Vec::new(), if forwards { String::new() } else { "<before/>".to_owned() });
            for _ in 0..100 {
                let (found, reply) = query(&mut juliet, "", &rsm(&format!("<max>{size}</max>{at}"))).await;
                let complete = reply.child("fin").unwrap().attr("complete") == Some("true");
                if !found.is_empty() {
                    let edge = set(&reply).child(if forwards { "last" } else { "first" }).unwrap().text();
                    at = if forwards {
                        format!("<after>{edge}</after>")
                    } else {
                        format!("<before>{edge}</before>")
                    };
                }
                if forwards {
                    all.extend(found)
                } else {
                    all.splice(0..0, found).for_each(drop)
                }
                if complete {
                    break;
                }
            }
            assert_eq!(all, live, "{size} {forwards}");
        }
    }
    // What was just sent is found, at once and by its sender.
    for round in 1_000..1_020 {
        romeo.send(messages("juliet@localhost", [round])).await.unwrap();
        let (found, _) = query(&mut romeo, "", &rsm("<max>1</max><before/>")).await;
        let bodies: Vec<_> = found.into_iter().map(|(_, body)| body).collect();
        assert_eq!(bodies, numbers([round]));
    }
    drop((juliet, romeo));
    server.finish();
}

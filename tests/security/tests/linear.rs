//! SECURITY.md row X12: names that collide, or are merely many, cost linear time.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::Duration;

use waystation_harness::process::cpu_time;
use waystation_harness::{Client, Config};
use waystation_security::World;

/// Bytes of stanzas with the smaller count; with the larger one there are as many stanzas.
const BYTES: usize = 6 << 20;
/// The least of so many measurements: other work of the machine only adds to one.
const REPETITIONS: usize = 3;

/// Makes a stanza with so many names.
type Make = fn(usize) -> String;

/// Names that collide in hash functions that multiply by 31, as Java's and many others do: `Aa` and
/// `BB` do, so all words of them do.
fn colliding(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| (0..12).map(|bit| if i >> bit & 1 == 0 { "Aa" } else { "BB" }).collect())
}

/// Names that differ at their end only.
fn alike(n: usize) -> impl Iterator<Item = String> {
    (0..n).map(|i| format!("name-that-is-like-all-others-{i:04}"))
}

/// A stanza that nobody answers, with this inside.
fn dropped(attributes: &str, content: &str) -> String {
    format!("<message type='error' to='nobody@localhost'><x xmlns='u'{attributes}>{content}</x></message>")
}

const CASES: [(&str, usize, Make); 7] = [
    ("attributes that collide", 60, |n| {
        dropped(&colliding(n).map(|a| format!(" {a}=''")).collect::<String>(), "")
    }),
    ("attributes that are alike", 60, |n| {
        dropped(&alike(n).map(|a| format!(" {a}=''")).collect::<String>(), "")
    }),
    ("attributes with a prefix", 60, |n| {
        let attributes: String = colliding(n).map(|a| format!(" p:{a}=''")).collect();
        dropped(&format!(" xmlns:p='urn:p'{attributes}"), "")
    }),
    ("namespace declarations that collide", 60, |n| {
        dropped(&colliding(n).map(|p| format!(" xmlns:{p}='u'")).collect::<String>(), "")
    }),
    // A prefix is looked for among those in scope, of which there are 256 at most; the limit makes
    // that cost the same for each element.
    ("elements with one of many prefixes", 450, |n| {
        let declarations: String = alike(240).map(|p| format!(" xmlns:{p}='u'")).collect();
        let elements: String =
            (0..n).flat_map(|i| alike(240).nth(i % 240)).map(|p| format!("<{p}:a/>")).collect();
        dropped(&declarations, &elements)
    }),
    ("elements that collide", 900, |n| {
        dropped("", &colliding(n).map(|e| format!("<{e}/>")).collect::<String>())
    }),
    ("elements with their own namespace", 900, |n| {
        dropped("", &(0..n).map(|i| format!("<a xmlns='u{i}'/>")).collect::<String>())
    }),
];

/// The least CPU time that the server takes for so many of these stanzas.
async fn cost(world: &World, session: &mut Client, stanza: &str, count: usize) -> Duration {
    let stanzas = stanza.repeat(count);
    let mut least = Duration::MAX;
    for _ in 0..REPETITIONS {
        let before = cpu_time(world.server.pid()).unwrap();
        session.send(&stanzas).await.unwrap();
        assert!(session.drain().await.unwrap().is_empty());
        least = least.min(cpu_time(world.server.pid()).unwrap() - before);
    }
    least
}

#[tokio::test]
async fn x12_many_names_and_names_that_collide_cost_linear_time() {
    let world = World::with(Config { unlimited: true, ..Config::default() });
    let mut romeo = world.login("romeo", "r").await;
    for (what, n, make) in CASES {
        let (few, many) = (make(n), make(4 * n));
        let count = BYTES / few.len();
        let few = cost(&world, &mut romeo, &few, count).await;
        let many = cost(&world, &mut romeo, &many, count).await;
        assert!(many < 8 * few, "{what}: {n} cost {few:?}, {} cost {many:?}", 4 * n);
    }
    romeo.close().await.unwrap();
    world.end();
}

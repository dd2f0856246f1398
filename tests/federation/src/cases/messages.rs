//! Two users write to each other, at once.

use waystation_harness::Server;
use waystation_harness::xml::{CLIENT_NS, escape};

use super::condition;
use crate::Talker;

/// How many each of them writes.
const MESSAGES: usize = 50;

/// Messages in both directions, in order and as they were written, and one that nobody is there for.
pub async fn messages(a: &Server, b: &Server) {
    let mut one = Talker::enter(a, "messages", "one").await;
    let mut other = Talker::enter(b, "messages", "other").await;
    for number in 0..MESSAGES {
        let (here, there) = (one.jid(), other.jid());
        write(&mut one, &there, number).await;
        write(&mut other, &here, number).await;
    }
    for number in 0..MESSAGES {
        read(&mut other, &one.jid(), number).await;
        read(&mut one, &other.jid(), number).await;
    }
    let (here, there) = (one.host(), other.host());
    for (me, host) in [(&mut one, there), (&mut other, here)] {
        let nobody = format!("nobody@{host}");
        me.send(format!("<message to='{nobody}' type='chat' id='lost'><body>?</body></message>")).await;
        let error = me.expect("an error", |s| s.attr("type") == Some("error")).await;
        assert_eq!((error.attr("from"), error.attr("id")), (Some(nobody.as_str()), Some("lost")), "{error}");
        assert_eq!(condition(&error), "service-unavailable", "{error}");
    }
    one.leave().await;
    other.leave().await;
}

fn text(number: usize) -> String {
    format!("{number}: <&> \u{1f98a} \u{5d0} 'quoted' {}", "x".repeat(number * 10))
}

/// Every other one goes to the account, the rest to the resource.
async fn write(me: &mut Talker, to: &str, number: usize) {
    let to = if number.is_multiple_of(2) { to } else { to.split('/').next().unwrap() };
    me.send(format!(
        "<message to='{to}' type='chat' id='m{number}'><body>{}</body>\
         <x xmlns='urn:example:extension' n='{number}'><body xmlns='jabber:client'>inner</body></x></message>",
        escape(&text(number))
    ))
    .await;
}

async fn read(me: &mut Talker, from: &str, number: usize) {
    let message = me.message().await;
    assert_eq!(message.attr("id"), Some(format!("m{number}").as_str()), "at {}: {message}", me.jid());
    assert_eq!(message.attr("from"), Some(from));
    assert_eq!(message.ns(), CLIENT_NS);
    let body = message.child("body").unwrap();
    assert_eq!((body.ns(), body.text()), (CLIENT_NS, text(number)));
    let extension = message.child_in("urn:example:extension").unwrap();
    assert_eq!(extension.attr("n"), Some(number.to_string().as_str()));
}

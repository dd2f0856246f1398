//! A room on another server: entered, spoken in, left.

use waystation_harness::Server;
use waystation_harness::federation::rooms as service;
use waystation_harness::xml::Element;

use crate::Talker;

const MUC: &str = "http://jabber.org/protocol/muc";
const MUC_USER: &str = "http://jabber.org/protocol/muc#user";

/// A user of `a` enters a room of `b` in which a user of `b` is.
pub async fn rooms(a: &Server, b: &Server) {
    let mut host = Talker::enter(b, "rooms", "host").await;
    let mut guest = Talker::enter(a, "rooms", "guest").await;
    let room = format!("den@{}", service(&host.host()));
    enter(&mut host, &room, "host").await;
    // A new room is closed until its owner says how it shall be; an empty form takes the defaults.
    let form = "<query xmlns='http://jabber.org/protocol/muc#owner'><x xmlns='jabber:x:data' type='submit'/></query>";
    host.ask("set", &room, form).await;
    enter(&mut guest, &room, "guest").await;
    host.presence(None, &format!("{room}/guest")).await;
    for (number, speaks) in ["host", "guest", "host", "guest"].into_iter().enumerate() {
        let speaker = if speaks == "host" { &mut host } else { &mut guest };
        let text = format!("<body>{number} by {speaks}</body>");
        speaker
            .send(format!("<message to='{room}' type='groupchat' id='{speaks}{number}'>{text}</message>"))
            .await;
        // The room sends it to everyone, its author among them.
        for reader in [&mut host, &mut guest] {
            let message = reader.message().await;
            let from = format!("{room}/{speaks}");
            assert_eq!(
                (message.attr("from"), message.attr("type")),
                (Some(from.as_str()), Some("groupchat"))
            );
            assert_eq!(message.child("body").unwrap().text(), format!("{number} by {speaks}"));
        }
    }
    guest.send(format!("<presence to='{room}/guest' type='unavailable'/>")).await;
    let left = guest.presence(Some("unavailable"), &format!("{room}/guest")).await;
    assert!(has_status(&left, "110"), "{left}");
    host.presence(Some("unavailable"), &format!("{room}/guest")).await;
    // The room goes with its last occupant.
    host.send(format!("<presence to='{room}/host' type='unavailable'/>")).await;
    host.presence(Some("unavailable"), &format!("{room}/host")).await;
    guest.leave().await;
    host.leave().await;
}

/// Enters and sees itself there, then the subject, which ends what comes first.
async fn enter(talker: &mut Talker, room: &str, nick: &str) {
    talker.send(format!("<presence to='{room}/{nick}'><x xmlns='{MUC}'/></presence>")).await;
    let own = talker.presence(None, &format!("{room}/{nick}")).await;
    assert!(has_status(&own, "110"), "{own}");
    talker.expect("the subject", |s| s.local() == "message" && s.child("subject").is_some()).await;
}

fn has_status(presence: &Element, code: &str) -> bool {
    let x = presence.child_in(MUC_USER);
    x.is_some_and(|x| x.children().any(|c| c.local() == "status" && c.attr("code") == Some(code)))
}

//! Two of our own servers, with a wire between them that can be cut.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use waystation_route::SessionMail;
use waystation_route::remote::{Authenticated, EndCause};
use waystation_runtime::Inlet;

use crate::common::*;

/// What carries connections to a server, until it is cut.
struct Cable {
    port: u16,
    to: Rc<Cell<u16>>,
    carried: Rc<RefCell<Vec<actix_rt::task::JoinHandle<()>>>>,
}

impl Cable {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to, carried) = (Rc::new(Cell::new(0)), Rc::new(RefCell::new(Vec::new())));
        actix_rt::spawn({
            let (to, carried) = (to.clone(), carried.clone());
            async move {
                while let Ok((mut here, _)) = listener.accept().await {
                    let mut there = TcpStream::connect(("127.0.0.1", to.get())).await.unwrap();
                    carried.borrow_mut().push(actix_rt::spawn(async move {
                        // How it ends is what the test is about.
                        let _ = copy_bidirectional(&mut here, &mut there).await;
                    }));
                }
            }
        });
        Self { port, to, carried }
    }

    fn cut(&self) {
        self.carried.borrow_mut().drain(..).for_each(|carried| carried.abort());
    }
}

/// Both, and the inbox of juliet at the other one.
async fn both(external: bool) -> (Us, Us, Cable, Inlet<SessionMail>) {
    let authority = Authority::new();
    // Without a common authority there is dialback.
    let other = Authority::new();
    let cable = Cable::new().await;
    let here = Us::start(&authority, &[cable.port], |_| {}).await;
    let back = here.listen().await;
    let theirs = if external { &authority } else { &other };
    let there = Us::start_as(THEM, US, theirs, &[back], |_| {}).await;
    cable.to.set(there.listen().await);
    let (binding, _) = there.bind(&format!("juliet@{THEM}/balcony")).await;
    let (_, _, inlet) = binding.start();
    (here, there, cable, inlet)
}

/// The bodies of the messages that come, up to this number at least.
async fn bodies(inlet: &mut Inlet<SessionMail>, last: usize) -> Vec<usize> {
    let mut got = Vec::new();
    while got.last().is_none_or(|number| *number < last) {
        for mail in soon("a message", std::future::poll_fn(|cx| inlet.poll_take(cx))).await {
            let (SessionMail::Stanza(stanza) | SessionMail::Record(stanza, _)) = mail else { continue };
            inlet.release(stanza.len(), 1);
            let text = String::from_utf8(stanza.to_bytes().to_vec()).unwrap();
            let body = text.split("<body>").nth(1).unwrap().split("</body>").next().unwrap();
            got.push(body.parse().unwrap());
        }
    }
    got
}

#[actix_rt::test]
async fn a_stream_between_two_of_ours_is_resumed_and_nothing_comes_twice() {
    let (here, _there, cable, mut inlet) = both(true).await;
    let route = here.open(None);
    for number in 1..=3 {
        route.send_to(number, "juliet@there.test/balcony");
    }
    let info = route.up().await;
    assert!(info.acknowledges && info.bidirectional, "{info:?}");
    assert_eq!(info.authenticated, Authenticated::Certificate);
    assert_eq!(bodies(&mut inlet, 3).await, [1, 2, 3]);
    let mut handed = 0;
    while handed < 3 {
        handed = route.handed().await;
    }
    // What is on its way when the wire is cut has arrived or has not, and the peer says which.
    for number in 4..=50 {
        route.send_to(number, "juliet@there.test/balcony");
    }
    let mut got = bodies(&mut inlet, 10).await;
    cable.cut();
    let end = loop {
        match route.event().await {
            waystation_route::remote::StreamEvent::Down(end) => break end,
            waystation_route::remote::StreamEvent::Handed(count) => handed = count,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(end.cause, EndCause::Failed, "{}", end.text);
    let again = here.open(Some(end.resume.expect("nothing to resume with")));
    let info = again.up().await;
    let arrived = info.resumed.expect("not resumed");
    assert!(arrived >= handed && arrived <= 50, "{arrived} {handed}");
    for number in arrived as usize + 1..=51 {
        again.send_to(number, "juliet@there.test/balcony");
    }
    while again.handed().await < 51 {}
    if got.last() != Some(&51) {
        got.extend(bodies(&mut inlet, 51).await);
    }
    assert_eq!(got, (4..=51).collect::<Vec<_>>(), "in order, and none twice");
}

#[actix_rt::test]
async fn two_of_ours_without_a_common_authority_use_dialback() {
    let (here, there, _cable, mut inlet) = both(false).await;
    let route = here.open(None);
    route.send_to(1, "juliet@there.test/balcony");
    let info = route.up().await;
    assert_eq!((info.authenticated, info.bidirectional), (Authenticated::Dialback, false));
    assert!(info.acknowledges);
    assert_eq!(bodies(&mut inlet, 1).await, [1]);
    assert_eq!(route.handed().await, 1);
    route.close();
    assert_eq!(route.down().await.cause, EndCause::Ended);
    // The other way it is another stream, with its own proof.
    assert!(!there.open(None).up().await.bidirectional);
}

#[actix_rt::test]
async fn what_is_sent_back_takes_the_stream_that_is_there() {
    let (here, there, _cable, _inlet) = both(true).await;
    let route = here.open(None);
    route.up().await;
    let (binding, _) = here.bind("romeo@here.test/r").await;
    let (_, _, mut inlet) = binding.start();
    let back = there.open(None);
    for number in 1..=3 {
        back.send_from(number, "juliet@there.test/balcony", "romeo@here.test/r");
    }
    let info = back.up().await;
    assert!(info.bidirectional && info.acknowledges, "{info:?}");
    assert_eq!(bodies(&mut inlet, 3).await, [1, 2, 3]);
    let mut handed = 0;
    while handed < 3 {
        handed = back.handed().await;
    }
    back.close();
    assert_eq!(back.down().await.cause, EndCause::Ended);
    // The stream stays, for its own route and for whoever comes next.
    let again = there.open(None);
    again.send_from(4, "juliet@there.test/balcony", "romeo@here.test/r");
    assert!(again.up().await.bidirectional);
    assert_eq!(bodies(&mut inlet, 4).await, [4]);
    assert_eq!(again.handed().await, 1);
    assert_eq!(route.pending(), 0);
}

//! Routing and delivery: from the sender's stanza to the outlet of the recipient's session.
//!
//! What must hold: both sessions are bound and available; the recipient confirms what it took, as a
//! client with stream management does, so that records leave their queue in every round. All messages
//! are one stanza: what is found out once for a stanza is counted in `session` only.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use waystation_core::read::Stamp;
use waystation_core::xml::Event;
use waystation_core::{Jid, PresenceType, SessionId, Stanza, StanzaType};
use waystation_route::{
    AccountMail, BindRequest, OrderToken, Origin, Outbound, Passage, Receipts, Routed, SessionMail,
};
use waystation_runtime::{Inlet, Weigh, outlet};

use crate::world::{HOST, World};
use crate::{Failure, ROUND, framer, in_time, message, on_this_thread};

/// Ten messages at a time through the router, the intake, the queue of memory and both accounts'
/// routes; receipts accepted, records confirmed.
pub(crate) fn routing(messages: usize) -> Result<(), Failure> {
    on_this_thread(in_time(async {
        let world = World::start(None).await?;
        Pair::bind(&world).await?.send(&world, messages).await
    }))
}

struct User {
    id: SessionId,
    jid: Jid,
    inlet: Inlet<SessionMail>,
}

/// Two accounts, of which one writes to the other.
pub(crate) struct Pair {
    romeo: User,
    juliet: User,
    stanza: Stanza,
    receipts: Receipts,
    number: u64,
}

impl Pair {
    pub(crate) async fn bind(world: &World) -> Result<Self, Failure> {
        let romeo = bind(world, "romeo", "orchard").await?;
        let juliet = bind(world, "juliet", "balcony").await?;
        let stanza = stanza(&romeo.jid)?;
        Ok(Self { romeo, juliet, stanza, receipts: Receipts::default(), number: 0 })
    }

    pub(crate) async fn send(&mut self, world: &World, messages: usize) -> Result<(), Failure> {
        for _ in 0..messages / ROUND {
            for _ in 0..ROUND {
                self.number += 1;
                let receipt = Some(self.receipts.issue(self.number));
                let passage = Passage { receipt, ..Passage::default() };
                match world.router.route(self.stanza.clone(), Origin::Session(self.romeo.id), passage) {
                    Routed::Done => {}
                    Routed::Busy(..) => return Err("the router takes no more".into()),
                }
            }
            self.juliet.take(world, ROUND).await?;
            if !self.receipts.is_clear() {
                return Err("a message was delivered before it was accepted".into());
            }
        }
        Ok(())
    }
}

/// A session that is available.
async fn bind(world: &World, user: &str, resource: &str) -> Result<User, Failure> {
    let account = Jid::parse(&format!("{user}@{HOST}"))?;
    world.create(user, "a password").await?;
    let (outlet, inlet) = outlet(1 << 20, 1_000);
    let request = BindRequest {
        account: account.clone(),
        resource: Some(resource.to_owned()),
        outlet,
        inlet,
        peer: ([127, 0, 0, 1], 1).into(),
        security: "none",
    };
    let (id, jid, inlet) = world.router.bind(request).await?.start();
    let presence =
        Stanza::build(StanzaType::Presence(PresenceType::Available), Some(jid.clone()), None, None, "");
    let done = Arc::new(AtomicU64::new(0));
    let outbound = Outbound { token: OrderToken::new(done.clone()), receipt: None, stream: None };
    world.router.control(&account, AccountMail::Outbound(id, presence, outbound));
    let mut user = User { id, jid, inlet };
    // Its own presence comes back.
    poll_fn(|cx| user.inlet.poll_take(cx)).await.iter().for_each(|mail| user.inlet.release(mail.weight(), 1));
    while done.load(Ordering::Acquire) == 0 {
        tokio::task::yield_now().await;
    }
    Ok(user)
}

/// What the sender's session makes of a message.
fn stanza(from: &Jid) -> Result<Stanza, Failure> {
    let mut framer = framer()?;
    let message = message();
    let mut rest = message.as_bytes();
    let Event::Stanza(frame) = framer.next(&mut rest)? else { return Err("a message is no stanza".into()) };
    let stamp = Stamp { from: Some(from), lang: Some("en"), ..Stamp::default() };
    Stanza::read(&frame, stamp).map_err(|error| format!("{error:?}").into())
}

impl User {
    /// Takes so many messages, and confirms them.
    async fn take(&mut self, world: &World, count: usize) -> Result<(), Failure> {
        let (mut taken, mut last) = (0, None);
        while taken < count {
            for mail in poll_fn(|cx| self.inlet.poll_take(cx)).await {
                self.inlet.release(mail.weight(), 1);
                let SessionMail::Record(_, id) = mail else {
                    return Err(format!("not a message: {mail:?}").into());
                };
                last = Some(id);
                taken += 1;
            }
        }
        if let Some(last) = last {
            world.router.control(&self.jid, AccountMail::Confirmed(self.id, last));
        }
        Ok(())
    }
}

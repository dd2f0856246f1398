//! Histories made by chance: whatever a stream does, what it is given is in order and nothing is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use waystation_route::DomainConfig;
use waystation_route::remote::{EndCause, Resume, StreamEnd};

use crate::common::{World, bind, quick, until, world};
use crate::peer::Peer;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// So many stanzas are sent, every fourth of them a request, the others messages.
    Send(u8),
    /// The peer takes what is there.
    Take,
    /// It says that it has some of what it took.
    Hand(u8),
    /// The stream breaks, perhaps to be resumed.
    Break { resume: bool },
    /// Others have their turn.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_u8..20).prop_map(Step::Send),
        4 => Just(Step::Take),
        3 => (0_u8..20).prop_map(Step::Hand),
        1 => any::<bool>().prop_map(|resume| Step::Break { resume }),
        3 => Just(Step::Wait),
    ]
}

/// What has become of what was sent.
#[derive(Default)]
struct Seen {
    /// The numbers that were taken from this stream, in order.
    stream: Vec<u32>,
    /// Of those that were taken from all.
    taken: BTreeSet<u32>,
    handed: usize,
    /// How many had been handed over when the stream began.
    base: u64,
}

impl Seen {
    fn take(&mut self, peer: &mut Peer) {
        for what in peer.take_all() {
            let number = what.parse().unwrap();
            assert!(self.stream.last().is_none_or(|last| *last < number), "{number} after {:?}", self.stream);
            self.stream.push(number);
            self.taken.insert(number);
        }
    }
}

/// What was sent, by number.
#[derive(Default)]
struct Sent {
    last: u32,
    messages: BTreeSet<u32>,
    requests: BTreeSet<u32>,
}

impl Sent {
    fn message(&mut self, world: &World) {
        self.last += 1;
        self.messages.insert(self.last);
        world.message(&self.last.to_string());
    }

    fn request(&mut self, world: &World) {
        self.last += 1;
        self.requests.insert(self.last);
        world.iq(&self.last.to_string());
    }
}

async fn run(steps: &[Step], window_items: usize) {
    let world = world(DomainConfig { window_items, ..quick() }).await;
    let mut client = bind(&world, "a@h").await;
    let mut sent = Sent::default();
    sent.message(&world);
    let mut peer = world.up().await;
    let mut seen = Seen::default();
    for step in steps {
        match *step {
            Step::Send(count) => {
                for i in 0..count {
                    if i % 4 == 3 { sent.request(&world) } else { sent.message(&world) }
                }
            }
            Step::Take => seen.take(&mut peer),
            Step::Hand(count) => {
                seen.handed = (seen.handed + usize::from(count)).min(seen.stream.len());
                peer.handed(seen.base + seen.handed as u64);
            }
            Step::Break { resume } => {
                let token = resume.then(|| Box::new(1_u32) as Resume);
                peer.down(StreamEnd { cause: EndCause::Failed, text: String::new(), resume: token });
                // Something that wants another one.
                sent.message(&world);
                peer = world.asked().await;
                // More may have arrived than was said to have been handed over.
                let arrived = seen.handed + (seen.stream.len() - seen.handed) / 2;
                let resumed = peer.resume.map(|_| seen.base + arrived as u64);
                peer.up(resumed);
                seen = Seen { taken: seen.taken, base: resumed.unwrap_or(0), ..Seen::default() };
            }
            Step::Wait => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
    let mut answered = BTreeSet::new();
    until("each stanza has its fate", || {
        seen.take(&mut peer);
        peer.handed(seen.base + seen.stream.len() as u64);
        for answer in client.take_all() {
            let number = answer.strip_prefix("remote-server-timeout ").and_then(|number| number.parse().ok());
            answered.insert(number.expect("an answer to a request"));
        }
        let fate = |number: &u32| seen.taken.contains(number) || answered.contains(number);
        sent.messages.is_subset(&seen.taken) && sent.requests.iter().all(fate)
    })
    .await;
    assert!(answered.is_subset(&sent.requests));
    world.until_queued(0).await;
    assert!(!world.receipts.has_failed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn what_a_stream_is_given_is_in_order_and_nothing_is_lost(
        steps in prop::collection::vec(step(), 1..40),
        window in prop_oneof![Just(3_usize), Just(1_000)],
    ) {
        actix_rt::System::new().block_on(run(&steps, window));
    }
}

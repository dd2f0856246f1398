//! The peer of a stream, which the tests play.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use waystation_core::Stanza;
use waystation_route::remote::{
    Authenticated, EndCause, Forbidden, Pair, RemoteStreams, StreamEnd, StreamEvents, StreamInfo, StreamMail,
    StreamRequest,
};
use waystation_runtime::{Inlet, Weigh};

use crate::common::{PATIENCE, describe};

/// Streams that the test plays.
#[derive(Default)]
pub(crate) struct Streams {
    pub(crate) requests: Mutex<VecDeque<StreamRequest>>,
    pub(crate) opened: AtomicU64,
    pub(crate) forbidden: Mutex<Option<Forbidden>>,
    /// Each attempt fails at once with this.
    pub(crate) dead: Mutex<Option<EndCause>>,
}

impl RemoteStreams for Streams {
    fn permits(&self, _: &Pair) -> Result<(), Forbidden> {
        self.forbidden.lock().unwrap().map_or(Ok(()), Err)
    }
    fn open(&self, request: StreamRequest) {
        self.opened.fetch_add(1, Ordering::SeqCst);
        match *self.dead.lock().unwrap() {
            Some(cause) => request.events.down(end(cause)),
            None => self.requests.lock().unwrap().push_back(request),
        }
    }
}

pub(crate) fn end(cause: EndCause) -> StreamEnd {
    StreamEnd { cause, text: "as the test wants it".into(), resume: None }
}

/// One stream, as its peer.
pub(crate) struct Peer {
    pub(crate) pair: Arc<Pair>,
    pub(crate) inlet: Inlet<StreamMail>,
    pub(crate) events: Option<StreamEvents>,
    pub(crate) waiting: VecDeque<StreamMail>,
    /// Stanzas that were taken.
    pub(crate) taken: u64,
    pub(crate) resume: Option<u32>,
}

impl Peer {
    pub(crate) fn up(&self, resumed: Option<u64>) {
        let info = StreamInfo {
            peer: "127.0.0.1:5269".parse().unwrap(),
            security: "TLSv1_3",
            authenticated: Authenticated::Certificate,
            certificate: None,
            acknowledges: true,
            bidirectional: false,
            resumed,
            since: SystemTime::now(),
        };
        self.events.as_ref().unwrap().up(info);
    }

    async fn mail(&mut self) -> StreamMail {
        let wait = async {
            while self.waiting.is_empty() {
                self.waiting.extend(poll_fn(|cx| self.inlet.poll_take(cx)).await);
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("the stream was given nothing");
        let mail = self.waiting.pop_front().unwrap();
        self.inlet.release(mail.weight(), 1);
        mail
    }

    pub(crate) async fn stanza(&mut self) -> Stanza {
        match self.mail().await {
            StreamMail::Stanza(stanza) => {
                self.taken += 1;
                stanza
            }
            StreamMail::Close => panic!("the stream was told to end"),
        }
    }

    /// What the next stanza says.
    pub(crate) async fn next(&mut self) -> String {
        describe(&self.stanza().await)
    }

    pub(crate) async fn closed(&mut self) {
        assert!(matches!(self.mail().await, StreamMail::Close));
    }

    /// True when nothing was given that was not taken.
    pub(crate) async fn is_quiet(&mut self) -> bool {
        // What it is about to be given.
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.owed() == 0
    }

    /// What was given and not taken.
    pub(crate) fn owed(&mut self) -> usize {
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        if let std::task::Poll::Ready(mails) = self.inlet.poll_take(&mut cx) {
            self.waiting.extend(mails);
        }
        self.waiting.len()
    }

    /// Takes what was given, and says what it is.
    pub(crate) fn take_all(&mut self) -> Vec<String> {
        self.owed();
        let mut all = Vec::new();
        for mail in self.waiting.drain(..) {
            self.inlet.release(mail.weight(), 1);
            let StreamMail::Stanza(stanza) = mail else { panic!("the stream was told to end") };
            self.taken += 1;
            all.push(describe(&stanza));
        }
        all
    }

    pub(crate) fn handed(&self, count: u64) {
        self.events.as_ref().unwrap().handed(count);
    }

    pub(crate) fn handed_all(&self) {
        self.handed(self.taken);
    }

    pub(crate) fn down(mut self, end: StreamEnd) {
        self.events.take().unwrap().down(end);
    }

    pub(crate) fn fail(self) {
        self.down(end(EndCause::Failed));
    }
}

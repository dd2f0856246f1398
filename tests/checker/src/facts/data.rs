//! What is derived from a history: the data, without the deriving.
//!
//! What must stay true: everything that a check names in a witness has its place
//! ([`At`]), so that a reader finds the event behind it.

use std::collections::{HashMap, HashSet};

use crate::history::{Class, Ctx, Event, How};

/// The place of an event: client and index into its events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct At {
    /// Index into [`Facts::clients`].
    pub client: usize,
    /// Index into the client's events.
    pub index: usize,
}

/// One client and its events.
#[derive(Debug)]
pub struct Client<'h> {
    /// Its name.
    pub name: &'h str,
    /// Its events.
    pub events: &'h [Event],
    /// Its sessions, as indexes into [`Facts::sessions`], oldest first.
    pub sessions: Vec<usize>,
}

/// One connection.
#[derive(Debug)]
pub struct Session<'h> {
    /// Whose it is.
    pub client: usize,
    /// The full JID, once bound or resumed.
    pub jid: Option<&'h str>,
    /// Since when it owns the JID.
    pub bound: Option<(u64, At)>,
    /// When and how it ended.
    pub close: Option<(u64, &'h How)>,
    /// The chain that it belongs to, as an index into [`Facts::chains`].
    pub chain: Option<usize>,
    /// Index of the last `<a/>` it sent: all that came before was acknowledged.
    pub last_a_out: Option<usize>,
    pub(super) resuming: Option<usize>,
}

/// Which element carried an h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// `<a/>`.
    Ack,
    /// `<resumed/>`.
    Resumed,
    /// `<failed/>`.
    Failed,
}

/// What the server said it had handled, at some time.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    /// In which element.
    pub kind: ReportKind,
    /// The number, unwrapped.
    pub h: u64,
    /// The highest number that was certain before.
    pub before: u64,
    /// How many stanzas had been sent.
    pub sent: u64,
    /// When.
    pub t: u64,
    /// Where.
    pub at: At,
}

impl Report {
    /// Whether it can be true.
    pub fn is_sane(&self) -> bool {
        self.before <= self.h && self.h <= self.sent
    }
}

/// One stream of a sender.
#[derive(Debug, Default)]
pub struct Chain<'h> {
    /// The full JID.
    pub jid: &'h str,
    /// Whether stream management is on.
    pub managed: bool,
    /// What was sent first with each number: (seq, uid), rising.
    pub sent: Vec<(u64, u32)>,
    /// What the server reported.
    pub reports: Vec<Report>,
    /// The highest certain h.
    pub h: u64,
    /// The h of `<failed/>`, when there was one.
    pub failed_h: Option<u64>,
    pub(super) resumed_h: Option<u64>,
    pub(super) clean: bool,
}

/// One sending of a stanza; there are more after resumptions.
#[derive(Debug, Clone, Copy)]
pub struct Sent {
    /// On which stream.
    pub chain: usize,
    /// Its number there.
    pub seq: u64,
    /// When.
    pub t: u64,
    /// Where.
    pub at: At,
}

/// An error that came back.
#[derive(Debug, Clone, Copy)]
pub struct Bounce<'h> {
    /// The condition.
    pub cond: &'h str,
    /// The type.
    pub kind: &'h str,
    /// Who refused it.
    pub from: &'h str,
    /// When.
    pub t: u64,
    /// Where.
    pub at: At,
}

/// One stanza and its fate.
#[derive(Debug)]
pub struct Stanza<'h> {
    /// Its name.
    pub uid: &'h str,
    /// To whom.
    pub to: &'h str,
    /// Its class.
    pub class: Class,
    /// Its kind: chat, normal, groupchat, headline, presence, iq.
    pub kind: &'h str,
    /// The hash of its body.
    pub hash: &'h str,
    /// Every sending, oldest first.
    pub sends: Vec<Sent>,
    /// Whether it was resent although it may have been handled: not as P4 asks.
    pub blind: bool,
    /// Whether the server accepted it.
    pub acked: bool,
    /// The errors that came for it.
    pub bounces: Vec<Bounce<'h>>,
    /// When a recipient first saw it.
    pub seen: Option<u64>,
}

impl Stanza<'_> {
    /// Whether it is a message.
    pub fn is_message(&self) -> bool {
        matches!(self.kind, "chat" | "normal" | "groupchat" | "headline")
    }
}

/// One message that came.
#[derive(Debug)]
pub struct Recv<'h> {
    /// Where.
    pub at: At,
    /// When.
    pub t: u64,
    /// In which session, as an index into [`Facts::sessions`].
    pub session: usize,
    /// The full JID of the receiving session.
    pub jid: &'h str,
    /// Which stanza it is; none when it was never sent.
    pub uid: Option<u32>,
    /// What it says it is.
    pub text: &'h str,
    /// Its stanza id.
    pub sid: Option<&'h str>,
    /// Who gave it.
    pub by: Option<&'h str>,
    /// The sender.
    pub from: &'h str,
    /// The addressee.
    pub to: Option<&'h str>,
    /// In which way it came.
    pub ctx: &'h Ctx,
    /// The hash of its body.
    pub hash: &'h str,
}

/// One entry of an archive.
#[derive(Debug)]
pub struct Entry<'h> {
    /// Where it was read.
    pub at: At,
    /// Its number.
    pub idx: u64,
    /// Its id.
    pub id: &'h str,
    /// Which stanza it is, if it is one of the run.
    pub uid: Option<u32>,
    /// What it says it is.
    pub text: &'h str,
    /// The sender.
    pub from: Option<&'h str>,
    /// The hash of its body.
    pub hash: &'h str,
}

/// One reading of an archive.
#[derive(Debug)]
pub struct Archive<'h> {
    /// Whose it is.
    pub of: &'h str,
    /// Its entries, in the archive's order.
    pub entries: Vec<Entry<'h>>,
    /// Whether it was read to its end.
    pub complete: bool,
    /// Where its reading began.
    pub at: At,
}

/// A time in which a fault was in force.
#[derive(Debug, Clone, Copy)]
pub struct Window<'h> {
    /// Which fault.
    pub kind: &'h str,
    /// Its beginning.
    pub on: u64,
    /// Its end; the end of time if it was never ended.
    pub off: u64,
    /// Where it began.
    pub at: At,
}

/// All that the checks need.
#[derive(Debug, Default)]
pub struct Facts<'h> {
    /// The clients, the harness among them.
    pub clients: Vec<Client<'h>>,
    /// The connections, by client and in order.
    pub sessions: Vec<Session<'h>>,
    /// The streams.
    pub chains: Vec<Chain<'h>>,
    /// The stanzas that were sent, in the order of their first appearance.
    pub stanzas: Vec<Stanza<'h>>,
    /// Every message that came, by client and in order.
    pub recvs: Vec<Recv<'h>>,
    /// Every reading of an archive.
    pub archives: Vec<Archive<'h>>,
    /// The faults, by beginning.
    pub faults: Vec<Window<'h>>,
    /// The accounts that some client logged in to.
    pub accounts: HashSet<&'h str>,
    /// The time of the last event.
    pub end: u64,
    pub(super) names: HashMap<&'h str, u32>,
}

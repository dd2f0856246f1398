//! Measures the message archive over a store on disk: inserts a second, pages a second at given
//! sizes, and bytes on disk per message.
//!
//! `cargo run --release -p waystation-bench --bin archive -- --sizes 1000000,3000000`. A share of
//! the messages goes to one account, the rest to all others in turn, few with each call, as the
//! routes of busy accounts hand them over; every account has 50 contacts, of which a few write
//! most. Everything goes through the module's registration, as in the server.

use std::collections::VecDeque;
use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use clap::Parser;
use waystation_archive::{Config, MessageArchive, NS_MAM};
use waystation_core::account::{IqRequest, Relation, SessionId};
use waystation_core::archive::{Archived, stanza_id};
use waystation_core::module::{Module, Registration, ServerHandle};
use waystation_core::queue::RecordId;
use waystation_core::{Element, IqType, Jid, Stanza, StanzaType, StreamError};
use waystation_storage::{DataDir, Kind, Options};

/// Numbers of messages at which pages are measured.
#[derive(Parser)]
struct Arguments {
    /// Messages in the store at which to measure, ascending.
    #[arg(long, value_delimiter = ',', default_value = "1000000,3000000")]
    sizes: Vec<u64>,
    /// Accounts.
    #[arg(long, default_value_t = 200)]
    accounts: u64,
    /// Most messages of one add, of which each has one to so many.
    #[arg(long, default_value_t = 5)]
    batch: u64,
    /// Adds under way at once, over all accounts: about as many as come within the time that an
    /// account's messages may gather.
    #[arg(long, default_value_t = 20_000)]
    concurrent: usize,
    /// Per cent of the adds that go to the one archive that is read. 0 spreads them evenly.
    #[arg(long, default_value_t = 50)]
    share: u64,
    /// Seconds that each kind of page is measured for.
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Folder for the store; a new one below it is made and removed.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// Counts what sessions would get.
#[derive(Default)]
struct Sink(AtomicU64);

impl ServerHandle for Sink {
    fn route(&self, _stanza: Stanza) {}

    fn to_session(&self, _stanza: Stanza) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn close_sessions(&self, _account: &Jid, _except: Option<SessionId>, _error: StreamError) {}

    fn is_local_host(&self, _domain: &str) -> bool {
        true
    }
}

const CONTACTS: u64 = 50;
const WORDS: [&str; 16] = [
    "what", "light", "through", "yonder", "window", "breaks", "it", "is", "the", "east", "and", "Juliet",
    "sun", "arise", "fair", "moon",
];

/// A small generator of numbers, for loads that are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Makes the content of a query.
type Inner = Box<dyn FnMut(&mut Numbers) -> String>;

struct Bench {
    registration: Registration,
    sink: Arc<Sink>,
    accounts: Vec<Jid>,
    numbers: Numbers,
    next: u64,
    wire_bytes: u64,
    /// Some of the messages in the archive that is read.
    positions: Vec<RecordId>,
}

impl Bench {
    fn message(&mut self, account: usize) -> Result<Archived, Box<dyn Error>> {
        self.next += 1;
        // Most messages are of few contacts.
        let contact = self.numbers.below(CONTACTS) * self.numbers.below(CONTACTS) / CONTACTS;
        let words: Vec<_> =
            (0..self.numbers.below(30) + 3).map(|_| WORDS[self.numbers.below(16) as usize]).collect();
        let own = format!("{}/Gajim.{:08x}", self.accounts[account], account * 7_919);
        let other = format!("contact{contact}@montague.example/Conversations.{:04x}", contact * 31);
        let (from, to) = if self.numbers.below(2) == 0 { (own, other) } else { (other, own) };
        let unique = format!("{:08x}{:08x}", self.numbers.below(1 << 31), self.numbers.below(1 << 31));
        let xml = format!(
            "<message from='{from}' to='{to}' type='chat' id='{unique}'><body>{}</body>\
             <origin-id xmlns='urn:xmpp:sid:0' id='{unique}'/>\
             <request xmlns='urn:xmpp:receipts'/><markable xmlns='urn:xmpp:chat-markers:0'/></message>",
            words.join(" ")
        );
        self.wire_bytes += xml.len() as u64;
        let stanza = Stanza::parse(xml.as_bytes()).map_err(|error| format!("{error:?}"))?;
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_000 + self.next * 1_000);
        Ok(Archived { id: RecordId(self.next), at, stanza, contact: true })
    }

    /// Adds messages until there are `size`; how long it took and what CPU time, without the making
    /// of the messages.
    async fn fill(&mut self, size: u64, arguments: &Arguments) -> Result<(Duration, f64), Box<dyn Error>> {
        let (mut took, mut making, mut turn) = (Duration::ZERO, 0.0, 0);
        let mut running = VecDeque::new();
        let cpu = cpu_time()?;
        while self.next < size {
            // Made beforehand and on this thread alone: what that takes is known.
            let started = thread_time()?;
            let mut adds = Vec::new();
            for _ in 0..2_000 {
                turn += 1;
                let all = self.accounts.len() as u64;
                let account = match self.numbers.below(100) < arguments.share {
                    true => 0,
                    false => (turn % all) as usize,
                };
                let count = (self.numbers.below(arguments.batch) + 1).min(size - self.next);
                let messages = (0..count).map(|_| self.message(account)).collect::<Result<Vec<_>, _>>()?;
                if account == 0 {
                    self.positions.extend(messages.first().map(|message| message.id));
                }
                adds.push((self.accounts[account].clone(), messages));
            }
            making += thread_time()? - started;
            let archive = self.registration.archive.clone().ok_or("no archive is registered")?;
            let started = Instant::now();
            for (account, messages) in adds {
                running.push_back(tokio::spawn(archive.add(account, messages)));
                if running.len() >= arguments.concurrent
                    && let Some(oldest) = running.pop_front()
                {
                    oldest.await??;
                }
            }
            took += started.elapsed();
        }
        let started = Instant::now();
        for add in running {
            add.await??;
        }
        took += started.elapsed();
        Ok((took, cpu_time()? - cpu - making))
    }

    async fn query(&self, inner: &str) -> Result<Element, Box<dyn Error>> {
        let payload = Element::parse(format!("<query xmlns='{NS_MAM}'>{inner}</query>").as_bytes(), "")?;
        let (from, target) = (self.accounts[0].with_resource("bench")?, self.accounts[0].clone());
        let kind = StanzaType::Iq(IqType::Set);
        let stanza =
            Stanza::with_payload(kind, Some(from.clone()), Some(target.clone()), Some("1"), &payload);
        let request = IqRequest {
            stanza,
            from,
            target,
            set: true,
            payload,
            relation: Relation::Own,
            session: Some(SessionId(1)),
            available: true,
        };
        let handler = self.registration.iqs.iter().find(|iq| iq.element == "query").ok_or("no handler")?;
        let answer = handler.handler.handle(request).await.map_err(|error| format!("{error:?}"))?;
        answer.ok_or_else(|| "no payload".into())
    }

    /// Pages a second, and messages a page.
    async fn pages(
        &mut self,
        time: Duration,
        mut inner: impl FnMut(&mut Numbers) -> String,
    ) -> Result<(f64, f64), Box<dyn Error>> {
        let mut numbers = Numbers(self.numbers.below(u64::MAX));
        let before = self.sink.0.load(Ordering::Relaxed);
        let started = Instant::now();
        let mut pages = 0;
        while started.elapsed() < time {
            self.query(&inner(&mut numbers)).await?;
            pages += 1;
        }
        let messages = self.sink.0.load(Ordering::Relaxed) - before;
        Ok((f64::from(pages) / started.elapsed().as_secs_f64(), messages as f64 / f64::from(pages)))
    }
}

fn form(fields: &[(&str, String)]) -> String {
    let fields: String = fields
        .iter()
        .map(|(var, value)| format!("<field var='{var}'><value>{value}</value></field>"))
        .collect();
    format!(
        "<x xmlns='jabber:x:data' type='submit'><field var='FORM_TYPE'><value>{NS_MAM}</value></field>{fields}</x>"
    )
}

fn set(inner: &str) -> String {
    format!("<set xmlns='http://jabber.org/protocol/rsm'>{inner}</set>")
}

/// CPU time of this process so far, in seconds.
fn cpu_time() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    // The name in the second field may hold spaces. Times are in hundredths of a second.
    let (_, fields) = stat.rsplit_once(')').ok_or("no process times")?;
    let times: Vec<f64> = fields.split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    Ok(times.iter().sum::<f64>() / 100.0)
}

/// CPU time of this thread so far, in seconds.
fn thread_time() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds: f64 = stat.split_whitespace().next().ok_or("no thread times")?.parse()?;
    Ok(nanoseconds / 1e9)
}

fn size_of(path: &Path) -> u64 {
    let Ok(listing) = path.read_dir() else { return path.metadata().map_or(0, |found| found.len()) };
    listing.flatten().map(|entry| size_of(&entry.path())).sum()
}

fn report(line: std::fmt::Arguments<'_>) {
    // Nobody reads any more: there is nothing left to measure for.
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(1);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(&arguments))
}

async fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let folder = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let options = Options { kind: Kind::Fjall, min_free_bytes: Some(0), ..Options::default() };
    let storage = waystation_storage::open(&DataDir::lock(folder.path())?, &options)?;
    let sink = Arc::new(Sink::default());
    let server: Arc<OnceLock<Arc<dyn ServerHandle>>> = Arc::default();
    let _ = server.set(sink.clone());
    let registration = MessageArchive::new(storage.clone(), Config::default(), server).registration();
    let names = (0..arguments.accounts.max(2)).map(|n| Jid::parse(&format!("user{n}@capulet.example")));
    let accounts = names.collect::<Result<Vec<_>, _>>()?;
    let mut bench = Bench {
        registration,
        sink,
        accounts,
        numbers: Numbers(42),
        next: 0,
        wire_bytes: 0,
        positions: Vec::new(),
    };
    let time = Duration::from_secs(arguments.seconds);
    for &size in &arguments.sizes {
        let before = bench.next;
        let (took, cpu) = bench.fill(size, arguments).await?;
        report(format_args!(
            "{size} messages: {:.0} inserts/s, {:.2} us of CPU time each, {} bytes on the wire each",
            (size - before) as f64 / took.as_secs_f64(),
            cpu * 1e6 / (size - before) as f64,
            bench.wire_bytes / bench.next.max(1)
        ));
        let positions = bench.positions.clone();
        let contact = |numbers: &mut Numbers| format!("contact{}@montague.example", numbers.below(CONTACTS));
        let kinds: [(&str, Inner); 5] = [
            ("last page", Box::new(|_| set("<before/>"))),
            (
                "anywhere, forward",
                Box::new(move |numbers| {
                    let position = positions[numbers.below(positions.len() as u64) as usize];
                    set(&format!("<after>{}</after>", stanza_id(position)))
                }),
            ),
            (
                "conversation, last page",
                Box::new(move |numbers| form(&[("with", contact(numbers))]) + &set("<before/>")),
            ),
            (
                "from a moment on",
                Box::new(move |numbers| {
                    let second = 1_700_000_000 + numbers.below(size) as i64;
                    let start = waystation_core::datetime::Timestamp::from_unix_millis(second * 1_000);
                    form(&[("start", start.map_or_else(String::new, |start| start.to_string()))])
                }),
            ),
            ("a page of one", Box::new(|_| set("<before/><max>1</max>"))),
        ];
        for (name, inner) in kinds {
            let (pages, messages) = bench.pages(time, inner).await?;
            report(format_args!("  {name:<24} {pages:>8.0} pages/s of {messages:.0} messages"));
        }
    }
    storage.close().await?;
    let bytes = size_of(folder.path());
    report(format_args!(
        "on disk: {:.0} bytes a message, {:.2} of the stanzas' bytes",
        bytes as f64 / bench.next as f64,
        bytes as f64 / bench.wire_bytes as f64
    ));
    Ok(())
}

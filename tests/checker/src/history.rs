//! What the clients of a run saw: the events, and their files.
//!
//! A history is a list of events per client, each list in the order in which
//! things happened to that client; `t` is one monotonic clock for all of them.
//! An event of sending is noted before the bytes are written, one of receiving
//! after they were read: so `send.t <= recv.t` holds for every message, and a
//! check may conclude from times what came first. The harness writes its own
//! list, of faults and notes, under the name [`HARNESS`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The name under which the harness notes faults.
pub const HARNESS: &str = "harness";

/// One line of a history file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Monotonic time in nanoseconds since the start of the run.
    pub t: u64,
    /// The client.
    pub c: String,
    /// The client's session: counted up with every connection.
    pub s: u32,
    /// What happened.
    pub ev: Ev,
}

/// An event of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Monotonic time in nanoseconds since the start of the run.
    pub t: u64,
    /// The client's session: counted up with every connection.
    pub s: u32,
    /// What happened.
    pub ev: Ev,
}

/// Whether a stanza must survive (DELIVERY.md section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Durable.
    D,
    /// Ephemeral.
    E,
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum How {
    /// `</stream:stream>` was answered by the server's own.
    Clean,
    /// The connection broke, by either side's doing.
    Eof,
    /// The server sent a stream error with this condition.
    Error(String),
}

impl From<String> for How {
    fn from(text: String) -> Self {
        match text.as_str() {
            "clean" => Self::Clean,
            "eof" => Self::Eof,
            other => Self::Error(other.strip_prefix("error:").unwrap_or(other).to_owned()),
        }
    }
}

impl From<How> for String {
    fn from(how: How) -> Self {
        match how {
            How::Clean => "clean".to_owned(),
            How::Eof => "eof".to_owned(),
            How::Error(condition) => format!("error:{condition}"),
        }
    }
}

/// In which way a message came.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Ctx {
    /// As it was sent, or again after a resumption.
    Live,
    /// From the offline store.
    Offline,
    /// As a copy of what another resource sent or received (XEP-0280).
    Carbon,
    /// From this room.
    Room(String),
}

impl From<String> for Ctx {
    fn from(text: String) -> Self {
        match text.as_str() {
            "live" => Self::Live,
            "offline" => Self::Offline,
            "carbon" => Self::Carbon,
            other => Self::Room(other.strip_prefix("room:").unwrap_or(other).to_owned()),
        }
    }
}

impl From<Ctx> for String {
    fn from(ctx: Ctx) -> Self {
        match ctx {
            Ctx::Live => "live".to_owned(),
            Ctx::Offline => "offline".to_owned(),
            Ctx::Carbon => "carbon".to_owned(),
            Ctx::Room(room) => format!("room:{room}"),
        }
    }
}

/// What happened to a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are those of DELIVERY.md section 5; others are explained")]
pub enum Ev {
    /// A connection was begun.
    Connect { node: String },
    /// A resource was bound.
    Bound { jid: String },
    /// Stream management is on, with this id for resumption.
    Smon { id: String },
    /// A stanza was sent. `seq` counts from `<enable/>` (without stream management: from the bind);
    /// `hash` is that of the body, empty without one.
    Send { uid: String, seq: u64, to: String, cls: Class, kind: String, hash: String },
    /// `<a/>` came.
    AIn { h: u32 },
    /// `<r/>` was sent.
    ROut,
    /// `<resume/>` was sent.
    Resume { previd: String, h: u32 },
    /// `<resumed/>` came.
    Resumed { h: u32 },
    /// `<failed/>` came, with h or without.
    Smfail { h: Option<u32> },
    /// A message came. `sid` is the `<stanza-id/>` of `by`; `hash` that of the body as it came.
    Recv {
        uid: String,
        sid: Option<String>,
        by: Option<String>,
        from: String,
        to: Option<String>,
        delay: bool,
        ctx: Ctx,
        hash: String,
    },
    /// `<a/>` was sent.
    AOut { h: u32 },
    /// A stanza came back as an error; `from` is who refused it.
    Err { uid: String, cond: String, r#type: String, from: String },
    /// An archived message was read, number `idx` of the archive of `arch`. `uid` is none for an
    /// entry that is no message of the run, and for the mark `complete` after the last page.
    Mam {
        arch: String,
        idx: u64,
        id: String,
        uid: Option<String>,
        from: Option<String>,
        hash: String,
        complete: bool,
    },
    /// The connection ended.
    Close { how: How },
    /// The harness made a fault, or ended it.
    Fault { kind: String, node: String, on: bool },
    /// The client is in the room from now on.
    Join { room: String },
    /// The client has left the room.
    Leave { room: String },
    /// A change was asked for: `key` of the `what` of `scope` shall be `value`, or gone.
    Set { uid: String, what: String, scope: String, key: String, value: Option<String> },
    /// The change was confirmed by a result.
    Done { uid: String },
    /// All of the `what` of `scope`, asked for at `since`.
    State { what: String, scope: String, since: u64, items: BTreeMap<String, String> },
    /// What the run is: for the report.
    Run { seed: u64, workload: String, nemesis: String, server: String },
    /// A remark for the report, such as what was left out and why.
    Note { text: String },
}

/// The events of all clients of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// Per client, in the order in which it saw them.
    pub clients: BTreeMap<String, Vec<Event>>,
}

/// Why a history could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line is no event.
    #[error("{}:{line}: {source}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its number, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl History {
    /// Reads files of any number of clients; a client's lines must be in order.
    pub fn read(paths: &[PathBuf]) -> Result<Self, ReadError> {
        let mut history = Self::default();
        for path in paths {
            let failed = |source| ReadError::Io { path: path.clone(), source };
            let file = BufReader::new(File::open(path).map_err(failed)?);
            for (n, line) in file.lines().enumerate() {
                let line = line.map_err(failed)?;
                if line.trim().is_empty() {
                    continue;
                }
                let Line { t, c, s, ev } = serde_json::from_str(&line).map_err(|source| ReadError::Line {
                    path: path.clone(),
                    line: n + 1,
                    source,
                })?;
                history.clients.entry(c).or_default().push(Event { t, s, ev });
            }
        }
        Ok(history)
    }

    /// Writes one file per client, `CLIENT.jsonl`, and returns their paths.
    pub fn write(&self, folder: &Path) -> io::Result<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (client, events) in &self.clients {
            let path = folder.join(format!("{client}.jsonl"));
            let mut file = BufWriter::new(File::create(&path)?);
            for Event { t, s, ev } in events {
                let line = Line { t: *t, c: client.clone(), s: *s, ev: ev.clone() };
                serde_json::to_writer(&mut file, &line)?;
                file.write_all(b"\n")?;
            }
            file.flush()?;
            paths.push(path);
        }
        Ok(paths)
    }

    /// How many events it has.
    pub fn len(&self) -> usize {
        self.clients.values().map(Vec::len).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_the_contract() {
        let line = |ev| serde_json::to_string(&Line { t: 5, c: "a".into(), s: 1, ev }).unwrap();
        assert_eq!(line(Ev::ROut), r#"{"t":5,"c":"a","s":1,"ev":"r_out"}"#);
        assert_eq!(line(Ev::AIn { h: 7 }), r#"{"t":5,"c":"a","s":1,"ev":{"a_in":{"h":7}}}"#);
        assert_eq!(
            line(Ev::Close { how: How::Error("conflict".into()) }),
            r#"{"t":5,"c":"a","s":1,"ev":{"close":{"how":"error:conflict"}}}"#
        );
    }

    #[test]
    fn files_give_the_history_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::default();
        let events = [
            Ev::Connect { node: "n1".into() },
            Ev::Smfail { h: None },
            Ev::Recv {
                uid: "r/a/1".into(),
                sid: None,
                by: None,
                from: "a@x/r".into(),
                to: None,
                delay: true,
                ctx: Ctx::Room("room@y".into()),
                hash: "00".into(),
            },
            Ev::Close { how: How::Clean },
        ];
        let events = events.into_iter().map(|ev| Event { t: 1, s: 2, ev }).collect::<Vec<_>>();
        history.clients.insert("a".into(), events.clone());
        history.clients.insert("b".into(), events);
        let paths = history.write(folder.path()).unwrap();
        assert_eq!(History::read(&paths).unwrap(), history);
        std::fs::write(&paths[0], "{}\n").unwrap();
        assert!(History::read(&paths).unwrap_err().to_string().contains(".jsonl:1:"));
    }
}

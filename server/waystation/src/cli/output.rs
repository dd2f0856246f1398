//! What commands write: results to standard output, all else to standard error.
//!
//! What must hold: a reader that goes away is an error to handle, not a panic; what clients chose
//! (resources above all) reaches a terminal only as visible characters.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::logging::escape;

/// Says on standard error what went wrong. Nobody is left to tell if that fails.
pub(super) fn complain(error: &dyn fmt::Display) {
    let _ = writeln!(io::stderr(), "waystation: {error}");
}

/// Says something on standard error that is no result.
pub(super) fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes one line of a result.
pub(super) fn line(text: fmt::Arguments<'_>) -> io::Result<()> {
    writeln!(io::stdout(), "{text}")
}

/// Writes a text that has its own line ends.
pub(super) fn text(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

/// Writes a result as JSON.
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    out.write_all(b"\n")
}

/// Text from outside, for a terminal.
pub(super) struct Visible<'t>(pub(super) &'t str);

impl fmt::Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        escape::write_text(&mut text, self.0, false)?;
        f.pad(&text)
    }
}

/// Rows as they come page by page: lines for people, or one JSON array.
pub(super) struct Rows {
    json: bool,
    count: usize,
    out: io::BufWriter<io::Stdout>,
}

impl Rows {
    pub(super) fn new(json: bool) -> Self {
        Self { json, count: 0, out: io::BufWriter::new(io::stdout()) }
    }

    /// Writes a row.
    pub(super) fn row(&mut self, value: &impl Serialize, text: fmt::Arguments<'_>) -> io::Result<()> {
        if self.json {
            self.out.write_all(if self.count == 0 { b"[\n  " } else { b",\n  " })?;
            serde_json::to_writer(&mut self.out, value)?;
        } else {
            writeln!(self.out, "{text}")?;
        }
        self.count += 1;
        Ok(())
    }

    /// Writes what is left; tells how many rows there were.
    pub(super) fn finish(mut self) -> io::Result<usize> {
        if self.json {
            self.out.write_all(if self.count == 0 { b"[]\n" } else { b"\n]\n" })?;
        }
        self.out.flush()?;
        Ok(self.count)
    }
}

/// Progress on standard error: one line that changes on a terminal, lines elsewhere.
pub(super) struct Progress {
    is_terminal: bool,
    next: std::time::Instant,
}

impl Progress {
    const PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

    pub(super) fn new() -> Self {
        Self { is_terminal: io::stderr().is_terminal(), next: std::time::Instant::now() + Self::PAUSE }
    }

    /// True when it is shown on a terminal.
    pub(super) fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Shows how far it is, once a second.
    pub(super) fn at(&mut self, text: fmt::Arguments<'_>) {
        let now = std::time::Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + Self::PAUSE;
        let _ = if self.is_terminal {
            write!(io::stderr(), "\r{text}\u{1b}[K")
        } else {
            writeln!(io::stderr(), "{text}")
        };
    }

    /// Clears the line.
    pub(super) fn end(self) {
        if self.is_terminal {
            let _ = write!(io::stderr(), "\r\u{1b}[K");
        }
    }
}

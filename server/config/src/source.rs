//! Where values come from: a file, environment variables, arguments; parsed into single keys.
//!
//! What must hold: later sources win; every key that the schema does not know and every piece of
//! text that is not TOML is a problem of its own; a source is never partly ignored in silence.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::problem::{Excerpt, Origin, Problem};
use crate::schema::Schema;
use crate::value::{Fault, Value, quote};

/// What environment variables that set keys begin with: `WAYSTATION_TLS__REQUIRED` is `tls.required`.
pub const ENVIRONMENT_PREFIX: &str = "WAYSTATION_";
/// Names the configuration file; no key.
pub const CONFIG_VARIABLE: &str = "WAYSTATION_CONFIG";
/// A configuration file is never larger; one that is larger is a mistake.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Longer lines are not shown.
const MAX_EXCERPT: usize = 160;

/// Everything that a configuration is read from. Later fields win over earlier ones.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file; without one the defaults hold.
    pub file: Option<PathBuf>,
    /// Environment variables; those that do not begin with [`ENVIRONMENT_PREFIX`] are ignored.
    pub environment: Vec<(OsString, OsString)>,
    /// Arguments `KEY=VALUE`, with VALUE in TOML.
    pub set: Vec<String>,
    /// The argument of `--data-dir`, which is not TOML.
    pub data_dir: Option<String>,
}

#[derive(Debug)]
enum Kind {
    File(PathBuf),
    Environment(String),
    Set,
    DataDir(String),
}

/// One source, as TOML text.
#[derive(Debug)]
pub(crate) struct Source {
    kind: Kind,
    text: String,
}

/// A key with its value and the source that it comes from.
#[derive(Debug)]
pub(crate) struct Entry<'i> {
    pub(crate) source: &'i Source,
    pub(crate) key: String,
    pub(crate) value: Value<'i>,
}

impl Sources {
    /// The texts, in the order in which they win.
    pub(crate) fn collect(&self, problems: &mut Vec<Problem>) -> Vec<Source> {
        let mut sources = Vec::new();
        if let Some(path) = &self.file {
            match read_file(path) {
                Ok(text) => sources.push(Source { kind: Kind::File(path.clone()), text }),
                Err(problem) => problems.push(*problem),
            }
        }
        let mut environment: Vec<&(OsString, OsString)> = self.environment.iter().collect();
        environment.sort();
        for (name, value) in environment {
            match read_variable(name, value) {
                Some(Ok(source)) => sources.push(source),
                Some(Err(problem)) => problems.push(problem),
                None => {}
            }
        }
        sources.extend(self.set.iter().map(|text| Source { kind: Kind::Set, text: text.clone() }));
        if let Some(path) = &self.data_dir {
            let text = format!("data_dir = {}", quote(path));
            sources.push(Source { kind: Kind::DataDir(path.clone()), text });
        }
        sources
    }
}

fn read_file(path: &Path) -> Result<String, Box<Problem>> {
    let problem = |message: String, help: Option<&str>| {
        Box::new(Problem {
            origin: Origin::Default,
            key: None,
            message: format!("{}: {message}", path.display()),
            help: help.map(str::to_owned),
            excerpt: None,
        })
    };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes)).map_err(|error| {
        problem(
            format!("the configuration file cannot be read: {error}"),
            Some("name it with --config FILE or WAYSTATION_CONFIG; without either the defaults hold"),
        )
    })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(problem(format!("the configuration file is larger than {MAX_FILE} bytes"), None));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let good = String::from_utf8_lossy(&error.as_bytes()[..at]).into_owned();
        let (line, column) = position(&good, good.len());
        Box::new(Problem {
            origin: Origin::File { path: path.to_owned(), line, column },
            key: None,
            message: format!("found the byte 0x{:02X}, expected text in UTF-8", error.as_bytes()[at]),
            help: None,
            excerpt: None,
        })
    })
}

/// Variables that Kubernetes sets in every container beside a service called `waystation`.
fn is_service_variable(key: &str) -> bool {
    key == "SERVICE_HOST" || key.starts_with("SERVICE_PORT") || key == "PORT" || key.starts_with("PORT_")
}

fn read_variable(name: &OsString, value: &OsString) -> Option<Result<Source, Problem>> {
    let name = name.to_str()?;
    let rest = name.strip_prefix(ENVIRONMENT_PREFIX)?;
    if name == CONFIG_VARIABLE || is_service_variable(rest) {
        return None;
    }
    let Some(value) = value.to_str() else {
        return Some(Err(Problem {
            origin: Origin::Environment(name.to_owned()),
            key: None,
            message: "the value is no text in UTF-8, expected a TOML value".to_owned(),
            help: None,
            excerpt: None,
        }));
    };
    let key: Vec<String> = rest.to_ascii_lowercase().split("__").map(quote_key).collect();
    let text = format!("{} = {}", key.join("."), value.trim());
    Some(Ok(Source { kind: Kind::Environment(name.to_owned()), text }))
}

/// A part of a key as TOML.
fn quote_key(part: &str) -> String {
    let bare =
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if bare { part.to_owned() } else { quote(part) }
}

/// Line and column of an offset, both from 1, the column in characters.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

impl Source {
    /// Where an offset of the text is.
    pub(crate) fn origin(&self, span: &Range<usize>) -> Origin {
        match &self.kind {
            Kind::File(path) => {
                let (line, column) = position(&self.text, span.start);
                Origin::File { path: path.clone(), line, column }
            }
            Kind::Environment(name) => Origin::Environment(name.clone()),
            Kind::Set => Origin::Argument(format!("--set {}", self.text)),
            Kind::DataDir(path) => Origin::Argument(format!("--data-dir {path}")),
        }
    }

    /// A problem at a place of this source.
    pub(crate) fn problem(&self, fault: Fault, key: Option<&str>) -> Problem {
        Problem {
            origin: self.origin(&fault.span),
            key: key.map(str::to_owned),
            message: fault.message,
            help: fault.help,
            excerpt: self.excerpt(&fault.span),
        }
    }

    fn excerpt(&self, span: &Range<usize>) -> Option<Excerpt> {
        let Kind::File(_) = &self.kind else { return None };
        let (line, column) = position(&self.text, span.start);
        let text = self.text.split('\n').nth(line - 1)?.trim_end_matches('\r');
        let marked = self.text.get(span.clone())?.lines().next().unwrap_or("").chars().count();
        let short = text.chars().count() <= MAX_EXCERPT;
        short.then(|| Excerpt { line, text: text.to_owned(), column, width: marked.max(1) })
    }

    /// The keys of this source.
    pub(crate) fn entries<'i>(&'i self, schema: &Schema, problems: &mut Vec<Problem>) -> Vec<Entry<'i>> {
        let (table, errors) = DeTable::parse_recoverable(&self.text);
        let mut walk = Walk { source: self, schema, entries: Vec::new(), problems: Vec::new() };
        if !matches!(self.kind, Kind::File(_)) {
            if errors.is_empty() {
                walk.table(table.into_inner(), "");
            } else {
                walk.problems.push(self.argument_error());
            }
            problems.append(&mut walk.problems);
            return walk.entries;
        }
        walk.table(table.into_inner(), "");
        // What the parser recovered on a broken line is a guess, and below a broken table header
        // every key is in the wrong table: only the syntax error itself is worth a message there.
        let broken: Vec<(usize, bool)> = errors.iter().map(|e| self.broken_line(e)).collect();
        let is_guess = |line: usize| broken.iter().any(|(l, header)| line == *l || (*header && line > *l));
        walk.problems.retain(|p| !matches!(p.origin, Origin::File { line, .. } if is_guess(line)));
        walk.entries.retain(|e| !is_guess(position(&self.text, e.value.span().start).0));
        walk.problems.extend(errors.iter().map(|error| self.problem(self.syntax_fault(error), None)));
        problems.append(&mut walk.problems);
        walk.entries
    }

    /// The line of a syntax error, and whether the line is a table header.
    fn broken_line(&self, error: &toml::de::Error) -> (usize, bool) {
        let (line, _) = position(&self.text, error.span().map_or(0, |span| span.start));
        let text = self.text.split('\n').nth(line - 1).unwrap_or("");
        (line, text.trim_start().starts_with('['))
    }

    fn syntax_fault(&self, error: &toml::de::Error) -> Fault {
        let span = error.span().unwrap_or(0..0);
        let word = self.text.get(span.clone()).unwrap_or("");
        if !error.message().starts_with("string values must be quoted") {
            return Fault { span, message: format!("not TOML: {}", error.message()), help: None };
        }
        if word.is_empty() {
            return Fault { span, message: "found no value, expected one".to_owned(), help: None };
        }
        let help = Some(format!("a string is written in quotes: {}", quote(word)));
        Fault { span, message: format!("found the bare word `{word}`, expected a TOML value"), help }
    }

    /// What is wrong with `KEY=VALUE` or a variable that is not TOML.
    fn argument_error(&self) -> Problem {
        let fault = |message: String, help: String| Fault { span: 0..0, message, help: Some(help) };
        let example = || "write KEY=VALUE, such as --set tls.required=false".to_owned();
        let Some((key, value)) = self.text.split_once('=') else {
            return self.problem(fault("found no `=`, expected KEY=VALUE".to_owned(), example()), None);
        };
        let (key, value) = (key.trim(), value.trim());
        if DeTable::parse(&format!("{key} = 0")).is_err() {
            return self.problem(fault(format!("found `{key}`, expected a key"), example()), None);
        }
        let quoted = if value.contains('"') { format!("'{value}'") } else { quote(value) };
        let help = match &self.kind {
            Kind::Environment(name) => {
                format!("a string needs TOML's quotes inside the shell's: {name}='{quoted}'")
            }
            _ => format!("a string needs TOML's quotes inside the shell's: --set '{key}={quoted}'"),
        };
        self.problem(fault(format!("found `{value}`, expected a TOML value"), help), Some(key))
    }
}

/// Takes a table apart into keys of the schema.
struct Walk<'i, 's> {
    source: &'i Source,
    schema: &'s Schema,
    entries: Vec<Entry<'i>>,
    problems: Vec<Problem>,
}

impl<'i> Walk<'i, '_> {
    fn table(&mut self, table: DeTable<'i>, prefix: &str) {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            // A quoted name with a dot in it is one name to TOML, not a path.
            let whole = !name.get_ref().contains('.');
            if whole && self.schema.is_key(&key) {
                self.entries.push(Entry { source: self.source, key, value });
            } else if whole && self.schema.is_section(&key) {
                let span = value.span();
                match value.into_inner() {
                    DeValue::Table(table) => self.table(table, &key),
                    other => {
                        let value = Value::new(span, other);
                        let fault =
                            Fault::unexpected(&value, "a table: it is a section with keys of its own", None);
                        self.problems.push(self.source.problem(fault, Some(&key)));
                    }
                }
            } else {
                let help = self.schema.nearest(&key).map_or_else(
                    || "`waystation config show` lists all keys".to_owned(),
                    |known| format!("did you mean `{known}`?"),
                );
                let fault =
                    Fault { span: name.span(), message: format!("unknown key `{key}`"), help: Some(help) };
                self.problems.push(self.source.problem(fault, None));
            }
        }
    }
}

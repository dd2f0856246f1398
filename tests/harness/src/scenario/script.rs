//! The scenario language: text to steps.
//!
//! One statement a line, XML indented below it. Every mistake is an error with
//! its line number; nothing is guessed or skipped.

use std::collections::BTreeMap;

use crate::server::Kind;
use crate::xml::{CLIENT_NS, Element};

/// One thing that happens in a scenario.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// `A and B are contacts.`: both subscribed to each other before anyone connects.
    Contacts(String, String),
    /// `A is subscribed to B.`
    Subscribed(String, String),
    /// `A connects.`
    Connect(String),
    /// `A connects without logging in.`: a stream, but no authentication.
    ConnectOnly(String),
    /// `A comes online.`, or with its own initial presence.
    ComeOnline(String, Option<String>),
    /// `A fetches the roster.`
    FetchRoster(String),
    /// `A sends:`
    Send(String, String),
    /// `A receives:`
    Receive(String, Vec<Element>),
    /// `A receives in any order:`
    ReceiveAnyOrder(String, Vec<Element>),
    /// `A may receive:`: what a server is free to send or not.
    MayReceive(String, Vec<Element>),
    /// `A receives nothing else.`
    NothingElse(String),
    /// `A pings the server.`: all that A sent before has been handled.
    Ping(String),
    /// `A disconnects.`
    Disconnect(String),
    /// `A's connection breaks.`
    Break(String),
    /// `A is thrown out with CONDITION.`
    ThrownOut(String, String),
    /// `A is offered:`: the features after login.
    Offered(String, Vec<Element>),
}

/// A client of a scenario.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The account, as named in the file.
    pub account: String,
    /// The resource it binds.
    pub resource: String,
}

/// A parsed scenario.
#[derive(Debug, Clone)]
pub struct Script {
    /// What the file says about itself: its leading comment lines.
    pub about: String,
    /// Clients by name.
    pub actors: BTreeMap<String, Actor>,
    /// Names of users that have no account.
    pub strangers: Vec<String>,
    /// Servers that are known to do otherwise, and how.
    pub deviations: BTreeMap<&'static str, String>,
    /// The steps with their line numbers.
    pub steps: Vec<(usize, Step)>,
}

impl Script {
    /// Parses a scenario; the error names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut script = Self {
            about: String::new(),
            actors: BTreeMap::new(),
            strangers: Vec::new(),
            deviations: BTreeMap::new(),
            steps: Vec::new(),
        };
        let lines: Vec<&str> = text.lines().collect();
        script.about =
            lines.iter().map_while(|l| l.strip_prefix('#')).map(str::trim).collect::<Vec<_>>().join(" ");
        if script.about.is_empty() {
            return Err(
                "line 1: the first lines say in a comment what is shown and which section asks for it".into(),
            );
        }
        let mut at = 0;
        while at < lines.len() {
            let number = at + 1;
            let line = lines[at];
            at += 1;
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let mut block = String::new();
            while at < lines.len() && (lines[at].starts_with(' ') || lines[at].trim().is_empty()) {
                block.push_str(lines[at]);
                block.push('\n');
                at += 1;
            }
            let block = block.trim_end();
            script.statement(line, block, number).map_err(|e| format!("line {number}: {e}"))?;
        }
        Ok(script)
    }

    /// The accounts that the clients use, each once.
    pub fn accounts(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.actors.values().map(|a| a.account.as_str()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn statement(&mut self, line: &str, block: &str, number: usize) -> Result<(), String> {
        if line.starts_with(' ') {
            return Err(format!("indented, but nothing above it takes a block: {line:?}"));
        }
        let takes_block = line.ends_with(':');
        if takes_block == block.is_empty() {
            return Err("a statement that ends with ':' has an indented block, and no other has one".into());
        }
        let sentence = line.strip_suffix(if takes_block { ':' } else { '.' });
        let sentence = sentence.ok_or("a statement ends with '.' or, before a block, with ':'")?;
        if self.declaration(sentence)? {
            return if self.steps.is_empty() {
                Ok(())
            } else {
                Err("declarations come before the first step".into())
            };
        }
        let step = if takes_block { self.step_with_block(sentence, block)? } else { self.step(sentence)? };
        self.steps.push((number, step));
        Ok(())
    }

    fn declaration(&mut self, sentence: &str) -> Result<bool, String> {
        if let Some((name, address)) = sentence.split_once(" uses ") {
            let (account, resource) = address.split_once('/').ok_or("`NAME uses ACCOUNT/RESOURCE.`")?;
            let is_plain =
                |s: &str| !s.is_empty() && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
            if !is_plain(account) || resource.is_empty() {
                return Err("an account is lower case letters and digits, and a resource is not empty".into());
            }
            let actor = Actor { account: account.to_owned(), resource: resource.to_owned() };
            if self.actors.insert(name.to_owned(), actor).is_some() {
                return Err(format!("{name} is declared twice"));
            }
            return Ok(true);
        }
        if let Some(name) = sentence.strip_suffix(" has no account") {
            self.strangers.push(name.to_owned());
            return Ok(true);
        }
        for kind in [Kind::Waystation, Kind::Prosody, Kind::Ejabberd] {
            let what =
                sentence.strip_prefix(kind.name()).and_then(|rest| rest.strip_prefix(" deviates, it "));
            if let Some(what) = what {
                self.deviations.insert(kind.name(), what.to_owned());
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn step(&self, sentence: &str) -> Result<Step, String> {
        if let Some((a, b)) = sentence.strip_suffix(" are contacts").and_then(|rest| rest.split_once(" and "))
        {
            return Ok(Step::Contacts(self.actor(a)?, self.actor(b)?));
        }
        if let Some((a, b)) = sentence.split_once(" is subscribed to ") {
            return Ok(Step::Subscribed(self.actor(a)?, self.actor(b)?));
        }
        if let Some((a, condition)) = sentence.split_once(" is thrown out with ") {
            return Ok(Step::ThrownOut(self.actor(a)?, condition.to_owned()));
        }
        type Make = fn(String) -> Step;
        let simple: [(&str, Make); 8] = [
            (" connects without logging in", Step::ConnectOnly),
            (" connects", Step::Connect),
            (" comes online", |a| Step::ComeOnline(a, None)),
            (" fetches the roster", Step::FetchRoster),
            (" receives nothing else", Step::NothingElse),
            (" pings the server", Step::Ping),
            (" disconnects", Step::Disconnect),
            ("'s connection breaks", Step::Break),
        ];
        for (ending, make) in simple {
            if let Some(name) = sentence.strip_suffix(ending) {
                return Ok(make(self.actor(name)?));
            }
        }
        Err(format!("not a statement of this language: {sentence:?}"))
    }

    fn step_with_block(&self, sentence: &str, block: &str) -> Result<Step, String> {
        let patterns = || Element::parse_all(block, CLIENT_NS).map_err(|e| e.to_string());
        if let Some(name) = sentence.strip_suffix(" sends") {
            return Ok(Step::Send(self.actor(name)?, unindent(block)));
        }
        if let Some(name) = sentence.strip_suffix(" comes online with") {
            return Ok(Step::ComeOnline(self.actor(name)?, Some(unindent(block))));
        }
        if let Some(name) = sentence.strip_suffix(" receives in any order") {
            return Ok(Step::ReceiveAnyOrder(self.actor(name)?, patterns()?));
        }
        if let Some(name) = sentence.strip_suffix(" may receive") {
            return Ok(Step::MayReceive(self.actor(name)?, patterns()?));
        }
        if let Some(name) = sentence.strip_suffix(" receives") {
            return Ok(Step::Receive(self.actor(name)?, patterns()?));
        }
        if let Some(name) = sentence.strip_suffix(" is offered") {
            return Ok(Step::Offered(self.actor(name)?, patterns()?));
        }
        Err(format!("not a statement of this language: {sentence:?}"))
    }

    fn actor(&self, name: &str) -> Result<String, String> {
        match self.actors.contains_key(name) {
            true => Ok(name.to_owned()),
            false => Err(format!("{name:?} is not declared: `{name} uses ACCOUNT/RESOURCE.`")),
        }
    }
}

/// Takes the block's common indentation away, so that what is sent is what is meant.
fn unindent(block: &str) -> String {
    let lines: Vec<&str> = block.lines().filter(|l| !l.trim().is_empty()).collect();
    let indent = lines.iter().map(|l| l.len() - l.trim_start().len()).min().unwrap_or(0);
    lines.iter().map(|l| &l[indent..]).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "# RFC 0: an example\nRomeo uses romeo/orchard.\nJuliet uses juliet/balcony.\n";

    #[test]
    fn parses_prose() {
        let text = format!(
            "{START}prosody deviates, it says nothing.\n\nRomeo and Juliet are contacts.\nRomeo comes online.\n\
             # a remark\nRomeo sends:\n    <message to='{{Juliet}}'>\n        <body>x</body>\n    </message>\n\
             Juliet receives nothing else.\nRomeo's connection breaks.\n"
        );
        let script = Script::parse(&text).unwrap();
        assert_eq!(script.about, "RFC 0: an example");
        assert_eq!(script.accounts(), ["juliet", "romeo"]);
        assert_eq!(script.deviations["prosody"], "says nothing");
        let steps: Vec<Step> = script.steps.into_iter().map(|(_, s)| s).collect();
        assert_eq!(
            steps,
            [
                Step::Contacts("Romeo".into(), "Juliet".into()),
                Step::ComeOnline("Romeo".into(), None),
                Step::Send("Romeo".into(), "<message to='{Juliet}'>\n    <body>x</body>\n</message>".into()),
                Step::NothingElse("Juliet".into()),
                Step::Break("Romeo".into()),
            ]
        );
    }

    #[test]
    fn mistakes_name_their_line() {
        for (line, mistake) in [
            (4, "Mercutio connects.\n"),
            (4, "Romeo jumps.\n"),
            (4, "Romeo connects\n"),
            (4, "Romeo sends:\n"),
            (4, "Romeo connects.\n    <presence/>\n"),
            (4, "Romeo receives:\n    <presence>\n"),
            (5, "Romeo connects.\nTybalt uses tybalt/a.\n"),
            (4, "Romeo uses other/a.\n"),
            (4, "Tybalt uses tybalt.\n"),
        ] {
            let error = Script::parse(&format!("{START}{mistake}")).unwrap_err();
            assert!(error.starts_with(&format!("line {line}:")), "{mistake:?}: {error}");
        }
        assert!(Script::parse("Romeo uses romeo/a.\n").unwrap_err().contains("line 1"));
    }
}

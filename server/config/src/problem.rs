//! What is wrong with a configuration, and how it is said: where, which key, what was found, what
//! was expected, and what to do.
//!
//! What must hold: one [`Problem`] a mistake; text from outside reaches the terminal without
//! control characters.

use std::fmt;
use std::path::PathBuf;

/// Where a value was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nowhere: the default holds.
    Default,
    /// A configuration file. Lines and columns count from 1, columns in characters.
    File {
        /// The file as it was named.
        path: PathBuf,
        /// Line of the value.
        line: usize,
        /// Column of the value.
        column: usize,
    },
    /// An environment variable.
    Environment(String),
    /// An argument of the command line, as it was written: `--set a.b=1`, `--data-dir x`.
    Argument(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line, column } => {
                write!(f, "{}:{line}:{column}", clean(&path.to_string_lossy()))
            }
            Self::Environment(name) => write!(f, "environment variable {}", clean(name)),
            Self::Argument(text) => f.write_str(&clean(text)),
        }
    }
}

/// The line of a file that a problem is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    /// The line's number, from 1.
    pub line: usize,
    /// The line's text.
    pub text: String,
    /// First marked character, from 1.
    pub column: usize,
    /// How many characters are marked, at least 1.
    pub width: usize,
}

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub origin: Origin,
    /// The key's full name, when the mistake is about one.
    pub key: Option<String>,
    /// What was found and what was expected.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The line, for mistakes in a file.
    pub excerpt: Option<Excerpt>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.origin != Origin::Default {
            write!(f, "{}: ", self.origin)?;
        }
        if let Some(key) = &self.key {
            write!(f, "{}: ", clean(key))?;
        }
        f.write_str(&clean(&self.message))?;
        if let Some(excerpt) = &self.excerpt {
            let number = excerpt.line.to_string();
            let (before, marks) = (" ".repeat(excerpt.column - 1), "^".repeat(excerpt.width));
            write!(f, "\n  {number} | {}", clean(&excerpt.text))?;
            write!(f, "\n  {} | {before}{marks}", " ".repeat(number.len()))?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {}", clean(help))?;
        }
        Ok(())
    }
}

/// All mistakes of a configuration, in the order of the sources.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    /// The mistakes; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "{problem}")?;
        }
        match self.problems.len() {
            1 => f.write_str("1 problem in the configuration"),
            n => write!(f, "{n} problems in the configuration"),
        }
    }
}

/// The text with each control or direction-changing character replaced by one `?`, so that
/// columns still match and a terminal shows only what is there.
fn clean(text: &str) -> String {
    let is_unsafe = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars()
        .map(|c| match c {
            '\t' => ' ',
            c if is_unsafe(c) => '?',
            c => c,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m16_control_characters_do_not_reach_the_terminal() {
        let problem = Problem {
            origin: Origin::Argument("--set \u{1b}[2J=1".into()),
            key: Some("a\nb".into()),
            message: "found \u{202e}x".into(),
            help: Some("\u{7}".into()),
            excerpt: Some(Excerpt { line: 12, text: "\ta\u{1b} = 1".into(), column: 2, width: 2 }),
        };
        assert_eq!(problem.to_string(), "--set ?[2J=1: a?b: found ?x\n  12 |  a? = 1\n     |  ^^\n  help: ?");
    }
}

//! The configuration as text: what is in force, and the commented reference of every key.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::node::{Item, ItemKind};
use crate::problem::Origin;
use crate::schema::Config;

const INTRODUCTION: &str = "\
# Every key of the configuration, with its default.
#
# Without a file the server runs on these defaults. To change some, write a file with just those
# keys and start with `waystation --config FILE`, or name the file in WAYSTATION_CONFIG.
#
# Any key can also be set without the file. The later of these wins:
#   1. the file
#   2. an environment variable: WAYSTATION_ and the key in capitals, with two underscores for
#      each dot. Its value is TOML: WAYSTATION_LISTEN__C2S='[\"0.0.0.0:5222\"]'
#   3. an argument: --set 'listen.c2s=[\"0.0.0.0:5222\"]' (several can be given)
#
# Durations are written as \"500ms\", \"30s\", \"5m\", \"24h\" or \"7d\"; sizes as \"256 KiB\", \"4 MiB\" or
# \"1 GiB\", or as a number of bytes. `waystation config check` says what is wrong with a file, and
# `waystation config show` what is in force and where it was set.
";

/// The text of `config/waystation.toml`: every key with its meaning, its kind and its default.
pub fn reference() -> String {
    let mut out = INTRODUCTION.to_owned();
    for Item { key, text, kind } in Config::default().items() {
        out.push('\n');
        for line in text {
            let line = format!("#{line}");
            out.push_str(line.trim_end());
            out.push('\n');
        }
        match kind {
            ItemKind::Section => push(&mut out, format_args!("[{key}]")),
            ItemKind::Key { expected, value } => {
                push(&mut out, format_args!("# Expected: {expected}."));
                push(&mut out, format_args!("{} = {value}", name(&key)));
            }
        }
    }
    out
}

/// The configuration as TOML; a comment says where a key was set, if it was.
pub(crate) fn show(config: &Config, origins: &BTreeMap<String, Origin>) -> String {
    let mut out = String::new();
    for Item { key, kind, .. } in config.items() {
        match kind {
            ItemKind::Section => push(&mut out, format_args!("\n[{key}]")),
            ItemKind::Key { value, .. } => match origins.get(&key) {
                Some(origin) => push(&mut out, format_args!("{} = {value} # {origin}", name(&key))),
                None => push(&mut out, format_args!("{} = {value}", name(&key))),
            },
        }
    }
    out
}

/// The name of a key within its section.
fn name(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn push(out: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "{line}");
}

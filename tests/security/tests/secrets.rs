//! SECURITY.md row A6: secrets are compared in constant time.
//!
//! Clippy can forbid functions, not operators, so `==` on a secret is forbidden in two other ways:
//! the types that hold secrets have no `==` (`server/auth` and the admin socket test that), and the
//! sources that handle them are read here.
//!
//! There is no statistical test. What is compared are 16 to 32 bytes, mostly hashes that whoever
//! guesses cannot choose; to find out by timing that such a comparison gave up early takes
//! differences of nanoseconds, which the noise of a shared machine hides from a test for as long
//! as a test may run. That would pass for any code, and so says nothing.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where secrets are compared, and how often. A new place belongs here once it was looked at.
const COMPARED: [(&str, usize); 6] = [
    // `Secret::ct_eq` itself.
    ("server/auth/src/crypto.rs", 1),
    // StoredKey against the client's proof (SCRAM), and against what a password gives (PLAIN).
    ("server/auth/src/credentials.rs", 2),
    // The server's signature, as the client of `waystation crashtest` sees it.
    ("server/auth/src/client.rs", 1),
    // The nonce and the channel-binding data of SCRAM.
    ("server/auth/src/server.rs", 2),
    // The keys of BOSH requests (XEP-0124 15).
    ("modules/bosh/src/keys.rs", 3),
    // The keys of dialback (XEP-0220 2.2.2).
    ("modules/federation/src/keys.rs", 1),
];

/// Words in the names of values that are secret, or guard something.
const SECRET_WORDS: [&str; 15] = [
    "password",
    "secret",
    "proof",
    "signature",
    "stored_key",
    "server_key",
    "client_key",
    "salted",
    "nonce",
    "channel_binding",
    "binding_input",
    "token",
    "digest",
    "hmac",
    "cookie",
];

/// Lines that only look as if they compared a secret.
const PUBLIC: [&str; 2] = [
    // Which extension of the handshake it is.
    "extended_master_secret |= kind == usize::from(EXTENDED_MASTER_SECRET);",
    // An offset of the XML reader.
    "let first = *at == self.token || *at == self.colon + 1;",
];

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

/// The sources below a folder, without the tests within them.
fn sources(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            if name.contains("/src/") && !name.contains("tests") && !name.ends_with("/testing.rs") {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
                found.insert(name, code.to_owned());
            }
        }
    }
}

fn all_sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in ["server", "modules"] {
        sources(&root().join(folder), &mut found);
    }
    assert!(found.len() > 100, "the sources are not where they are looked for");
    found
}

/// True for a line that compares something secret in a way that may stop early. Lengths and the
/// question whether there is anything are no secret.
fn compares_a_secret(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    let compares =
        [" == ", " != ", ".eq(", ".ne(", ".cmp(", ".starts_with("].iter().any(|op| code.contains(op));
    let about_length = code.contains("len()") || code.contains("is_empty()") || code.contains("_LEN");
    // Constants, which are written in capitals, are names of things and no secrets.
    compares
        && !about_length
        && SECRET_WORDS.iter().any(|word| code.contains(word))
        && !PUBLIC.contains(&line.trim())
}

#[test]
fn a6_comparisons_of_secrets_are_found() {
    for line in [
        "if message.proof == expected.proof {",
        "if stored_key.as_slice() != given {",
        "let right = token.eq(&given);",
        "password.starts_with(x)",
    ] {
        assert!(compares_a_secret(line), "{line}");
    }
    for line in ["if password.len() == 3 {", "let a = b == c;", "// a secret == another", "ct_eq(&proof)"] {
        assert!(!compares_a_secret(line), "{line}");
    }
}

#[test]
fn a6_secrets_are_compared_in_constant_time_and_where_it_is_known() {
    let mut compared = BTreeMap::new();
    let mut early = Vec::new();
    for (name, code) in all_sources() {
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in lines {
            let count = line.matches(".ct_eq(").count();
            if count > 0 {
                *compared.entry(name.clone()).or_insert(0) += count;
            }
            if compares_a_secret(line) {
                early.push(format!("{name}: {}", line.trim()));
            }
        }
    }
    let known: BTreeMap<String, usize> =
        COMPARED.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    assert_eq!(compared, known, "secrets are compared elsewhere than this test knows");
    assert_eq!(early, Vec::<String>::new(), "secrets may be compared in a way that stops early");
}

//! What people see when something in their configuration is wrong.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::ffi::OsString;
use std::path::Path;

use waystation_config::{Sources, load};

/// The message for a file, with its folder taken out.
fn message(text: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    message_in(folder.path(), text.as_bytes())
}

fn message_in(folder: &Path, text: &[u8]) -> String {
    let path = folder.join("w.toml");
    std::fs::write(&path, text).unwrap();
    let error = load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err();
    error.to_string().replace(&format!("{}/", folder.display()), "")
}

fn message_of_argument(set: &str) -> String {
    load(&Sources { set: vec![set.to_owned()], ..Sources::default() }).unwrap_err().to_string()
}

fn message_of_variable(name: &str, value: &str) -> String {
    let environment = vec![(OsString::from(name), OsString::from(value))];
    load(&Sources { environment, ..Sources::default() }).unwrap_err().to_string()
}

#[test]
fn every_mistake_of_a_file_is_told_with_its_place() {
    let text = r#"
data_dir = 5
hosts = ["example.org", "a b"]
threads = 5000
colour = "red"

[listen]
c2s = "127.0.0.1:5222"
c2s_tsl = ["127.0.0.1:5223"]

[tls]
required = "yes"
certificates = [{ hosts = ["example.org"], chain = "a.pem" }]

[limits]
inbound_rate = "16 KB"
unauthenticated_timeout = 30
"#;
    assert_eq!(
        message(text),
        r#"w.toml:2:12: data_dir: found the number 5, expected a path, as a string
  2 | data_dir = 5
    |            ^
w.toml:3:25: hosts: found the string "a b", expected a domain such as "example.org"
  3 | hosts = ["example.org", "a b"]
    |                         ^^^^^
w.toml:4:11: threads: found the number 5000, expected a whole number from 0 to 1024
  4 | threads = 5000
    |           ^^^^
w.toml:5:1: unknown key `colour`
  5 | colour = "red"
    | ^^^^^^
  help: `waystation config show` lists all keys
w.toml:8:7: listen.c2s: found the string "127.0.0.1:5222", expected a list of addresses such as "127.0.0.1:5222"
  8 | c2s = "127.0.0.1:5222"
    |       ^^^^^^^^^^^^^^^^
  help: a list is written in brackets, also with one element: ["..."]
w.toml:9:1: unknown key `listen.c2s_tsl`
  9 | c2s_tsl = ["127.0.0.1:5223"]
    | ^^^^^^^
  help: did you mean `listen.c2s_tls`?
w.toml:12:12: tls.required: found the string "yes", expected true or false
  12 | required = "yes"
     |            ^^^^^
w.toml:13:17: tls.certificates: the certificate has no `key`, expected a table with hosts, chain and key
  13 | certificates = [{ hosts = ["example.org"], chain = "a.pem" }]
     |                 ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
w.toml:16:16: limits.inbound_rate: found the string "16 KB", expected a size from 1 KiB to 1 GiB
  16 | inbound_rate = "16 KB"
     |                ^^^^^^^
  help: write a size as "256 KiB"; units are B, KiB, MiB and GiB, and a number alone counts bytes
w.toml:17:27: limits.unauthenticated_timeout: found the number 30, expected a duration from 1s to 10m
  17 | unauthenticated_timeout = 30
     |                           ^^
  help: write a duration as "30s"; units are ms, s, m, h and d
10 problems in the configuration"#
    );
}

#[test]
fn text_that_is_no_toml_is_told_beside_other_mistakes() {
    let text =
        "data_dir = /var/lib/waystation\nhosts = [localhost]\nthreads = \ntls.required = 1\nthreads = 2\n";
    assert_eq!(
        message(text),
        r#"w.toml:1:12: found the bare word `/var/lib/waystation`, expected a TOML value
  1 | data_dir = /var/lib/waystation
    |            ^^^^^^^^^^^^^^^^^^^
  help: a string is written in quotes: "/var/lib/waystation"
w.toml:2:10: found the bare word `localhost`, expected a TOML value
  2 | hosts = [localhost]
    |          ^^^^^^^^^
  help: a string is written in quotes: "localhost"
w.toml:3:11: found no value, expected one
  3 | threads = 
    |           ^
w.toml:4:16: tls.required: found the number 1, expected true or false
  4 | tls.required = 1
    |                ^
w.toml:5:1: not TOML: duplicate key
  5 | threads = 2
    | ^^^^^^^
5 problems in the configuration"#
    );
}

#[test]
fn keys_below_a_broken_header_are_not_blamed() {
    assert_eq!(
        message("[tls]\nrequird = true\n[listen\nc2s = []\n"),
        r#"w.toml:2:1: unknown key `tls.requird`
  2 | requird = true
    | ^^^^^^^
  help: did you mean `tls.required`?
w.toml:3:8: not TOML: unclosed table, expected `]`
  3 | [listen
    |        ^
2 problems in the configuration"#
    );
}

#[test]
fn a_section_is_a_table_and_a_quoted_path_is_no_path() {
    assert_eq!(
        message("limits = true\n\"tls.required\" = false\n"),
        r#"w.toml:1:10: limits: found true, expected a table: it is a section with keys of its own
  1 | limits = true
    |          ^^^^
w.toml:2:1: unknown key `tls.required`
  2 | "tls.required" = false
    | ^^^^^^^^^^^^^^
  help: did you mean `tls.required`?
2 problems in the configuration"#
    );
}

#[test]
fn columns_count_characters_and_lines_may_end_in_crlf() {
    assert_eq!(
        message("contact.admin = [\"mailto:ü@example.org\", 1]\r\n"),
        "w.toml:1:18: contact.admin: found the string \"mailto:ü@example.org\", expected a URI such as \
         \"mailto:abuse@example.org\"\n  \
         1 | contact.admin = [\"mailto:ü@example.org\", 1]\n    \
           |                  ^^^^^^^^^^^^^^^^^^^^^^\n\
         w.toml:1:42: contact.admin: found the number 1, expected a URI such as \"mailto:abuse@example.org\"\n  \
         1 | contact.admin = [\"mailto:ü@example.org\", 1]\n    \
           |                                          ^\n\
         2 problems in the configuration"
    );
}

#[test]
fn files_that_cannot_be_read_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.toml");
    let error = load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err().to_string();
    assert_eq!(
        error.replace(&format!("{}/", folder.path().display()), ""),
        "none.toml: the configuration file cannot be read: No such file or directory (os error 2)\n  \
         help: name it with --config FILE or WAYSTATION_CONFIG; without either the defaults hold\n\
         1 problem in the configuration"
    );
    assert_eq!(
        message_in(folder.path(), b"threads = 1\n# \xff\n"),
        "w.toml:2:3: found the byte 0xFF, expected text in UTF-8\n1 problem in the configuration"
    );
    let large = vec![b'\n'; 4 * 1024 * 1024 + 1];
    assert!(message_in(folder.path(), &large).contains("is larger than 4194304 bytes"));
}

#[test]
fn arguments_show_the_quoting() {
    assert_eq!(
        message_of_argument("data_dir=/var/lib/waystation"),
        "--set data_dir=/var/lib/waystation: data_dir: found `/var/lib/waystation`, expected a TOML value\n  \
         help: a string needs TOML's quotes inside the shell's: --set 'data_dir=\"/var/lib/waystation\"'\n\
         1 problem in the configuration"
    );
    assert_eq!(
        message_of_argument("listen.c2s=127.0.0.1:0"),
        "--set listen.c2s=127.0.0.1:0: listen.c2s: found `127.0.0.1:0`, expected a TOML value\n  \
         help: a string needs TOML's quotes inside the shell's: --set 'listen.c2s=\"127.0.0.1:0\"'\n\
         1 problem in the configuration"
    );
    assert_eq!(
        message_of_argument("tls.requird=true"),
        "--set tls.requird=true: unknown key `tls.requird`\n  help: did you mean `tls.required`?\n\
         1 problem in the configuration"
    );
    assert_eq!(
        message_of_argument("tls.required=1"),
        "--set tls.required=1: tls.required: found the number 1, expected true or false\n\
         1 problem in the configuration"
    );
    assert_eq!(
        message_of_argument("tls.required"),
        "--set tls.required: found no `=`, expected KEY=VALUE\n  \
         help: write KEY=VALUE, such as --set tls.required=false\n1 problem in the configuration"
    );
    assert_eq!(
        message_of_argument("tls required=true"),
        "--set tls required=true: found `tls required`, expected a key\n  \
         help: write KEY=VALUE, such as --set tls.required=false\n1 problem in the configuration"
    );
}

#[test]
fn variables_are_named() {
    assert_eq!(
        message_of_variable("WAYSTATION_TLS__REQUIRD", "true"),
        "environment variable WAYSTATION_TLS__REQUIRD: unknown key `tls.requird`\n  \
         help: did you mean `tls.required`?\n1 problem in the configuration"
    );
    assert_eq!(
        message_of_variable("WAYSTATION_DATA_DIR", "/data"),
        "environment variable WAYSTATION_DATA_DIR: data_dir: found `/data`, expected a TOML value\n  \
         help: a string needs TOML's quotes inside the shell's: WAYSTATION_DATA_DIR='\"/data\"'\n\
         1 problem in the configuration"
    );
    assert!(message_of_variable("WAYSTATION_", "1").contains("unknown key"));
    assert!(message_of_variable("WAYSTATION_THREADS", "").contains("found ``, expected a TOML value"));
}

#[test]
fn a_variable_that_is_no_text_is_told() {
    use std::os::unix::ffi::OsStringExt;
    let environment = vec![(OsString::from("WAYSTATION_THREADS"), OsString::from_vec(vec![0xff]))];
    let error = load(&Sources { environment, ..Sources::default() }).unwrap_err().to_string();
    assert_eq!(
        error,
        "environment variable WAYSTATION_THREADS: the value is no text in UTF-8, expected a TOML value\n\
         1 problem in the configuration"
    );
}

#[test]
fn what_federation_cannot_use_is_told() {
    assert_eq!(
        message(
            "[federation]\nauthorities = \"nowhere.pem\"\npeers = [{ domain = \"localhost\" }]\nqueue_messages = 0\n"
        ),
        r#"w.toml:2:15: federation.authorities: nowhere.pem cannot be read: No such file or directory (os error 2)
  2 | authorities = "nowhere.pem"
    |               ^^^^^^^^^^^^^
w.toml:3:9: federation.peers: found "localhost", which is served here, expected other domains
  3 | peers = [{ domain = "localhost" }]
    |         ^^^^^^^^^^^^^^^^^^^^^^^^^^
w.toml:4:18: federation.queue_messages: found the number 0, expected a whole number from 1 to 100000000
  4 | queue_messages = 0
    |                  ^
3 problems in the configuration"#
    );
}

#[test]
fn values_that_do_not_fit_together_are_told() {
    let text = r#"
hosts = ["example.org", "Example.ORG"]
admins = ["ann@example.net"]
durability = "fsync"
storage.engine = "sled"
sasl.mechanisms = []
limits.outbound_bytes = "1 MiB"
limits.stanza_size = "2 MiB"

[listen]
c2s = ["0.0.0.0:5222", "[::]:5222", "127.0.0.1:0"]
c2s_tls = ["127.0.0.1:5222", "127.0.0.1:0"]
https = ["127.0.0.1:5280"]
s2s = ["127.0.0.1:5281"]
s2s_tls = ["127.0.0.1:5281"]
"#;
    assert_eq!(
        message(text),
        r#"w.toml:2:9: hosts: found "example.org" twice, expected each host once
  2 | hosts = ["example.org", "Example.ORG"]
    |         ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
w.toml:3:10: admins: found "ann@example.net", expected accounts of the hosts (example.org, example.org)
  3 | admins = ["ann@example.net"]
    |          ^^^^^^^^^^^^^^^^^^^
w.toml:4:14: durability: found "fsync", which storage.engine "sled" cannot promise, expected "os" or less
  4 | durability = "fsync"
    |              ^^^^^^^
  help: write durability = "os", or storage.engine = "fjall"
w.toml:6:19: sasl.mechanisms: found no mechanism, expected at least one: nobody could log in
  6 | sasl.mechanisms = []
    |                   ^^
w.toml:7:25: limits.outbound_bytes: found 1 MiB, expected at least limits.stanza_size, which is 2 MiB: such a stanza could never be delivered
  7 | limits.outbound_bytes = "1 MiB"
    |                         ^^^^^^^
w.toml:12:11: listen.c2s_tls: found 127.0.0.1:5222, which is taken: listen.c2s has 0.0.0.0:5222 already
  12 | c2s_tls = ["127.0.0.1:5222", "127.0.0.1:0"]
     |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  help: use another port, or a single address instead of all
w.toml:13:9: listen.https: found 127.0.0.1:5280, which is taken: listen.http has it already
  13 | https = ["127.0.0.1:5280"]
     |         ^^^^^^^^^^^^^^^^^^
  help: use another port, or a single address instead of all
w.toml:15:11: listen.s2s_tls: found 127.0.0.1:5281, which is taken: listen.s2s has it already
  15 | s2s_tls = ["127.0.0.1:5281"]
     |           ^^^^^^^^^^^^^^^^^^
  help: use another port, or a single address instead of all
8 problems in the configuration"#
    );
    assert!(message("hosts = []").contains("hosts: found no host, expected at least one"));
}

#[test]
fn a_mistake_is_not_told_again_by_what_depends_on_it() {
    let all = message("hosts = [5]\nadmins = [\"ann@example.net\"]\n");
    assert!(all.ends_with("1 problem in the configuration"), "{all}");
}

#[test]
fn certificates_must_be_readable_and_of_local_hosts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("c.pem"), "-----BEGIN CERTIFICATE-----\n").unwrap();
    std::fs::write(path("k.pem"), "-----BEGIN EC PRIVATE KEY-----\n").unwrap();
    let certificate = |hosts: &str, chain: &str, key: &str| {
        let (chain, key) = (path(chain), path(key));
        format!("[[tls.certificates]]\nhosts = [{hosts}]\nchain = \"{chain}\"\nkey = \"{key}\"\n")
    };
    let text = certificate("\"localhost\"", "c.pem", "k.pem");
    std::fs::write(path("w.toml"), text).unwrap();
    load(&Sources { file: Some(path("w.toml").into()), ..Sources::default() }).unwrap();

    for (text, expected) in [
        (certificate("\"localhost\"", "no.pem", "k.pem"), "no.pem cannot be read: No such file or directory"),
        (
            certificate("\"localhost\"", "k.pem", "k.pem"),
            "k.pem holds no certificate, expected one in PEM form",
        ),
        (
            certificate("\"localhost\"", "c.pem", "c.pem"),
            "c.pem holds no private key, expected one in PEM form",
        ),
        (
            certificate("\"b.example\"", "c.pem", "k.pem"),
            "found \"b.example\", expected hosts of this server (localhost)",
        ),
        (certificate("", "c.pem", "k.pem"), "c.pem has no hosts, expected at least one"),
        (certificate("\"localhost\", \"localhost\"", "c.pem", "k.pem"), "\"localhost\" has two certificates"),
    ] {
        let all = message_in(folder.path(), text.as_bytes());
        assert!(all.contains(expected), "{all}");
        assert!(all.starts_with("w.toml:1:1: tls.certificates: "), "{all}");
    }
}

#[test]
fn the_write_buffer_and_the_limits_of_presence_have_bounds() {
    let told = message("[storage]\nwrite_buffer = \"1 MiB\"\n[limits]\npresence_recipient_window = \"0s\"\n");
    for expected in [
        "w.toml:2:16: storage.write_buffer: ",
        "expected a size from 4 MiB to 64 GiB",
        "w.toml:4:29: limits.presence_recipient_window: ",
        "expected a duration from 1s to 1d",
    ] {
        assert!(told.contains(expected), "{expected}: {told}");
    }
}

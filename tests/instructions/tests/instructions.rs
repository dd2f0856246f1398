//! Instructions per message on the hot paths, compared with `instructions.toml`: a regression is
//! seen without a clock.
//!
//! Each path runs under valgrind for N and for 2 N messages; the difference over N is what a message
//! costs. `-- --record` writes what it measures to the file instead.
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]
#![allow(clippy::print_stdout, reason = "the table is for whoever runs the test")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::{env, fs, thread};

use libtest_mimic::{Arguments, Trial};
use serde::Deserialize;
use waystation_instructions::PATHS;

const PROGRAM: &str = env!("CARGO_BIN_EXE_waystation-instructions");
const RECORD: &str = "cargo test -p waystation-instructions --test instructions -- --record";
/// Of paths that have none yet.
const TOLERANCE: f64 = 0.1;

/// What was recorded.
#[derive(Default, Deserialize)]
struct Recorded {
    /// By architecture.
    #[serde(flatten)]
    architectures: BTreeMap<String, Architecture>,
}

#[derive(Default, Deserialize)]
struct Architecture {
    /// The compiler that the program was made with.
    rustc: String,
    /// By name.
    paths: BTreeMap<String, Expected>,
}

#[derive(Deserialize)]
struct Expected {
    /// Per message.
    instructions: u64,
    /// The share by which that may be missed.
    tolerance: f64,
}

fn main() -> ExitCode {
    let mut arguments: Vec<String> = env::args().collect();
    let all = arguments.len();
    arguments.retain(|argument| argument != "--record");
    let recorded = read();
    if arguments.len() < all {
        return record(recorded);
    }
    let arguments = Arguments::from_iter(arguments);
    let left_out = left_out(&recorded);
    if let Some(why) = &left_out {
        eprintln!("LEFT OUT: {why}");
    }
    let expected = recorded.architectures.into_iter().find(|(name, _)| name == env::consts::ARCH);
    let expected = expected.map_or_else(Architecture::default, |(_, expected)| expected);
    let trial = Trial::test("instructions_per_message", move || compare(&expected).map_err(Into::into));
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(left_out.is_some())]).exit_code()
}

/// Why nothing can be compared.
fn left_out(recorded: &Recorded) -> Option<String> {
    if Command::new("valgrind").arg("--version").stdout(Stdio::null()).status().is_err() {
        return Some("valgrind is not installed: apt-get install valgrind".to_owned());
    }
    if !cfg!(debug_assertions) {
        return Some("instructions are counted in the dev profile: leave --release out".to_owned());
    }
    if !recorded.architectures.contains_key(env::consts::ARCH) {
        return Some(format!("no instructions were recorded for {}: {RECORD}", env::consts::ARCH));
    }
    None
}

fn file() -> PathBuf {
    FilePath::new(env!("CARGO_MANIFEST_DIR")).join("instructions.toml")
}

fn read() -> Recorded {
    fs::read_to_string(file()).map_or_else(|_| Recorded::default(), |text| toml::from_str(&text).unwrap())
}

/// The version of the compiler on the path, or of the one that cargo names.
fn rustc() -> String {
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(compiler).arg("--version").output();
    let text = output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into());
    text.split_whitespace().nth(1).unwrap_or("unknown").to_owned()
}

fn record(mut recorded: Recorded) -> ExitCode {
    let architecture = recorded.architectures.entry(env::consts::ARCH.to_owned()).or_default();
    let mut paths = BTreeMap::new();
    for path in PATHS {
        let instructions = match per_message(path.name, path.messages) {
            Ok(instructions) => instructions,
            Err(error) => {
                eprintln!("{error}");
                return ExitCode::FAILURE;
            }
        };
        println!("{:<12}{instructions:>10}", path.name);
        let before = architecture.paths.get(path.name);
        let tolerance = before.map_or(TOLERANCE, |before| before.tolerance);
        paths.insert(path.name.to_owned(), Expected { instructions, tolerance });
    }
    *architecture = Architecture { rustc: rustc(), paths };
    let mut text = format!(
        "# Instructions per message, in the dev profile; tests/bench/README.md explains them.\n# Written by: {RECORD}\n"
    );
    for (name, architecture) in &recorded.architectures {
        let _ = write!(text, "\n[{name}]\nrustc = \"{}\"\n\n[{name}.paths]\n", architecture.rustc);
        for (path, Expected { instructions, tolerance }) in &architecture.paths {
            let _ = writeln!(text, "{path} = {{ instructions = {instructions}, tolerance = {tolerance} }}");
        }
    }
    fs::write(file(), text).unwrap();
    ExitCode::SUCCESS
}

/// Prints the table; what is wrong, if anything is.
fn compare(expected: &Architecture) -> Result<(), String> {
    let mut table =
        format!("\n{:<12}{:>10}{:>10}{:>8}{:>11}\n", "path", "measured", "recorded", "ratio", "tolerance");
    let mut wrong = String::new();
    for path in PATHS {
        let measured = per_message(path.name, path.messages)?;
        let Some(Expected { instructions, tolerance }) = expected.paths.get(path.name) else {
            let _ = writeln!(wrong, "{}: {measured} instructions a message; none are recorded.", path.name);
            continue;
        };
        let ratio = measured as f64 / *instructions as f64;
        let percent = tolerance * 100.0;
        let _ = writeln!(
            table,
            "{:<12}{measured:>10}{instructions:>10}{ratio:>8.3}{:>11}",
            path.name,
            format!("{percent:.0} %"),
        );
        if (ratio - 1.0).abs() > *tolerance {
            let judged =
                if ratio > 1.0 { "dearer" } else { "cheaper, which is to be recorded so that it stays so" };
            let by = (ratio - 1.0).abs() * 100.0;
            let _ = writeln!(
                wrong,
                "{}: a message is {by:.1} % {judged}; {percent:.0} % are tolerated.",
                path.name
            );
        }
    }
    println!("{table}");
    if wrong.is_empty() {
        return Ok(());
    }
    let compiler = rustc();
    if compiler != expected.rustc {
        let _ = writeln!(
            wrong,
            "The numbers were recorded with rustc {}, this is {compiler}: the compiler may be the reason.",
            expected.rustc
        );
    }
    Err(format!(
        "{table}\n{wrong}\
         To see where instructions go: valgrind --tool=callgrind {PROGRAM} PATH 4000, then\n\
         callgrind_annotate --inclusive=yes callgrind.out.*\n\
         If the change is meant, record it and commit tests/instructions/instructions.toml: {RECORD}"
    ))
}

/// What a message costs on a path.
fn per_message(path: &str, messages: usize) -> Result<u64, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    // Both at once: others' work on the processor makes no difference to a count.
    let count = |messages| {
        let folder = folder.path();
        move || total(path, messages, folder)
    };
    let (once, twice) = thread::scope(|scope| {
        let once = scope.spawn(count(messages));
        let twice = scope.spawn(count(2 * messages));
        (once.join().unwrap(), twice.join().unwrap())
    });
    Ok(twice?.saturating_sub(once?) / messages as u64)
}

/// The instructions of a whole run, over all threads.
fn total(path: &str, messages: usize, folder: &FilePath) -> Result<u64, String> {
    let file = folder.join(messages.to_string());
    let output = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(PROGRAM)
        .args([path, &messages.to_string()])
        .output()
        .map_err(|error| format!("running valgrind: {error}"))?;
    let failed = |what: &str| {
        format!("{path}, {messages} messages: {what}\n{}", String::from_utf8_lossy(&output.stderr))
    };
    if !output.status.success() {
        return Err(failed(&output.status.to_string()));
    }
    let text = fs::read_to_string(&file).map_err(|error| failed(&error.to_string()))?;
    let total = text.lines().filter_map(|line| line.strip_prefix("totals: ")).next_back();
    total.and_then(|total| total.trim().parse().ok()).ok_or_else(|| failed("callgrind wrote no total"))
}

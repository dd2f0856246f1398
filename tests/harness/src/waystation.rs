//! How this project's server is found, configured and given accounts: only through its command line.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};
use crate::federation::{Federation, Files, Proof};
use crate::server::{Account, Config, Endpoint, Program};

/// The `waystation` binary: `WAYSTATION_BIN`, or the one in the target folder this test was built into.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("WAYSTATION_BIN") {
        return Ok(PathBuf::from(path));
    }
    let exe = std::env::current_exe().map_err(Error::io("find this program"))?;
    let found = exe.ancestors().skip(1).take(3).map(|dir| dir.join("waystation")).find(|path| path.is_file());
    found.ok_or_else(|| {
        Error::Setup("the server is not built: run `cargo build -p waystation`, or set WAYSTATION_BIN".into())
    })
}

/// The binary that a configuration names, or else the usual one.
fn program(config: &Config) -> Result<PathBuf> {
    config.program.clone().map_or_else(binary, Ok)
}

pub(crate) fn prepare(
    config: &Config,
    at: &Endpoint,
    folder: &Path,
    accounts: &[Account],
) -> Result<Program> {
    if let Some(federation) = &config.federation {
        Files::write(&config.hosts, Some(federation), folder)?;
    }
    if !accounts.is_empty() {
        let lines: String = accounts.iter().map(|a| format!("{} {}\n", a.jid(), a.password)).collect();
        let output = command(config, at, folder, &["user", "add", "--bulk", "-"], &lines)?;
        if !output.status.success() {
            return Err(Error::Setup(format!(
                "user add --bulk: {}: {}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )));
        }
    }
    let mut args = vec!["serve".to_owned()];
    args.extend(settings(config, at, folder));
    Ok(Program { path: program(config)?, args, env: Vec::new(), ready_file: None })
}

/// Runs one command of the CLI with the same settings as the server has.
pub(crate) fn command(
    config: &Config,
    at: &Endpoint,
    folder: &Path,
    args: &[&str],
    input: &str,
) -> Result<Output> {
    let mut child = clean(Command::new(program(config)?))
        .args(args)
        .args(settings(config, at, folder))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::io("start waystation"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that reads no input may end first; its exit status tells what went wrong.
        let _closed_early = stdin.write_all(input.as_bytes());
    }
    child.wait_with_output().map_err(Error::io("wait for waystation"))
}

/// Takes the tests' own variables out of a child's environment: to the server, `WAYSTATION_*` is configuration.
pub(crate) fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WAYSTATION_"))
    {
        command.env_remove(name);
    }
    command
}

fn settings(config: &Config, at: &Endpoint, folder: &Path) -> Vec<String> {
    let hosts: Vec<String> = config.hosts.iter().map(|h| toml(h)).collect();
    let http = if config.web { format!("[{}]", toml(&at.http.to_string())) } else { "[]".to_owned() };
    let mut keys = vec![
        ("data_dir".to_owned(), toml(&folder.join("data").to_string_lossy())),
        ("hosts".to_owned(), format!("[{}]", hosts.join(", "))),
        ("listen.c2s".to_owned(), format!("[{}]", toml(&at.c2s.to_string()))),
        ("listen.c2s_tls".to_owned(), format!("[{}]", toml(&at.c2s_tls.to_string()))),
        ("listen.http".to_owned(), http),
        ("listen.https".to_owned(), "[]".to_owned()),
        ("tls.required".to_owned(), config.tls_required.to_string()),
        ("limits.disabled".to_owned(), config.unlimited.to_string()),
    ];
    keys.extend(federated(config, at, folder));
    keys.extend(config.settings.iter().cloned());
    keys.into_iter().flat_map(|(key, value)| ["--set".to_owned(), format!("{key}={value}")]).collect()
}

/// The keys of a server that meets others, or of one that does not.
fn federated(config: &Config, at: &Endpoint, folder: &Path) -> Vec<(String, String)> {
    let Some(Federation { nameserver, proof, .. }) = &config.federation else {
        let none = [("listen.s2s", "[]"), ("listen.s2s_tls", "[]"), ("federation.enabled", "false")];
        return none.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    };
    let files = Files::of(folder);
    let hosts: Vec<String> = config.hosts.iter().map(|h| toml(h)).collect();
    let file = |path: &Path| toml(&path.to_string_lossy());
    let pair = format!(
        "[{{ hosts = [{}], chain = {}, key = {} }}]",
        hosts.join(", "),
        file(&files.certificate),
        file(&files.key)
    );
    [
        ("listen.s2s", format!("[{}]", toml(&at.s2s.to_string()))),
        ("listen.s2s_tls", format!("[{}]", toml(&at.s2s_tls.to_string()))),
        ("federation.enabled", "true".to_owned()),
        ("federation.private_targets", "true".to_owned()),
        ("federation.nameservers", format!("[{}]", toml(&nameserver.to_string()))),
        ("federation.authorities", file(&files.authorities)),
        ("federation.require_certificate", (*proof == Proof::Certificate).to_string()),
        ("tls.certificates", pair),
        // What goes wrong between servers is told to nobody but the log, whose end a failing test shows.
        ("log.modules", "{ waystation_federation = \"debug\", waystation_route = \"debug\" }".to_owned()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .to_vec()
}

fn toml(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

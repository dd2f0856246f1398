//! Prosody and ejabberd as Debian packages them, with a configuration of their own in a temporary folder.
//!
//! They serve two purposes: the tools are proven against servers that others
//! wrote, and measurements compare like with like. So the configurations here
//! are what reports state: only the modules that this project's server has too,
//! rate limits lifted when asked for, accounts stored as SCRAM keys, an ECDSA
//! certificate, errors and warnings logged. Both run as the calling user,
//! listen on loopback, and touch no system folder.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::{Error, Result};
use crate::sasl::{Hash, Keys};
use crate::server::{Account, Config, Endpoint, Program, make_dir, write};

/// As many rounds as the peers use by default at least; their logins do not depend on it.
const ITERATIONS: u32 = 4096;

pub(crate) fn prepare_prosody(
    config: &Config,
    at: &Endpoint,
    folder: &Path,
    accounts: &[Account],
) -> Result<Program> {
    make_dir(&folder.join("certs"))?;
    let (certificate, key) = certificate(&config.hosts, folder)?;
    let data = folder.join("data");
    let web: &[&str] = if config.web { &["bosh", "websocket"] } else { &[] };
    let modules = config.modules.iter().map(String::as_str).chain(web.iter().copied());
    let mut text = format!(
        r#"run_as_root = true
data_path = {data:?}
pidfile = {pid:?}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
c2s_direct_tls_ports = {{ {tls} }}
modules_enabled = {{ "roster", "saslauth", "tls", "disco", "ping", "version", "time", "lastactivity", "uptime"{modules} }}
modules_disabled = {{ "s2s" }}
c2s_require_encryption = {required}
allow_unencrypted_plain_auth = true
authentication = "internal_hashed"
password_hash = "{hash}"
storage = "internal"
{archives}{web}log = {{ warn = "*console" }}
ssl = {{ certificate = {certificate:?}, key = {key:?} }}
"#,
        pid = folder.join("prosody.pid"),
        c2s = at.c2s.port(),
        tls = at.c2s_tls.port(),
        modules = modules.map(|m| format!(", {m:?}")).collect::<String>(),
        required = config.tls_required,
        web = if config.web { prosody_web(at) } else { String::new() },
        // Of one account, in the archive as well as in what waits for it.
        archives = if config.unlimited { "storage_archive_item_limit = 10000000\n" } else { "" },
        hash = match config.hash {
            Hash::Sha1 => "SHA-1",
            Hash::Sha256 => "SHA-256",
        },
    );
    for host in &config.hosts {
        text.push_str(&format!("VirtualHost {host:?}\n"));
    }
    let path = folder.join("prosody.cfg.lua");
    write(&path, text)?;
    let salt = "waystation-peer-salt";
    for account in accounts {
        let keys = Keys::derive(config.hash, &account.password, salt.as_bytes(), ITERATIONS);
        let folder = data.join(file_name(&account.host)).join("accounts");
        make_dir(&folder)?;
        write(
            &folder.join(format!("{}.dat", file_name(&account.user))),
            format!(
                "return {{ [\"salt\"] = \"{salt}\"; [\"stored_key\"] = \"{}\"; [\"server_key\"] = \"{}\"; \
                 [\"iteration_count\"] = {ITERATIONS}; }};\n",
                hex(&keys.stored_key),
                hex(&keys.server_key)
            ),
        )?;
    }
    let args = vec!["--config".to_owned(), path.to_string_lossy().into_owned(), "-F".to_owned()];
    Ok(Program { path: program("prosody")?, args, env: Vec::new(), ready_file: None })
}

/// HTTP without TLS, which counts as secure, as loopback TCP does without `c2s_require_encryption`.
fn prosody_web(at: &Endpoint) -> String {
    format!(
        "http_ports = {{ {} }}\nhttp_interfaces = {{ \"127.0.0.1\" }}\nhttps_ports = {{}}\n\
         consider_bosh_secure = true\nconsider_websocket_secure = true\n",
        at.http.port()
    )
}

pub(crate) fn prepare_ejabberd(config: &Config, at: &Endpoint, folder: &Path) -> Result<Program> {
    let (certificate, key) = certificate(&config.hosts, folder)?;
    let hash = match config.hash {
        Hash::Sha1 => "sha",
        Hash::Sha256 => "sha256",
    };
    let listener = |port: u16, tls: &str| {
        // `shaper` is left out: without it there is no rate limit.
        format!(
            "  - {{port: {port}, ip: \"127.0.0.1\", module: ejabberd_c2s, max_stanza_size: 262144, {tls}, \
             backlog: 1024}}\n"
        )
    };
    let starttls = if config.tls_required { "starttls_required: true" } else { "starttls: true" };
    let waiting = if config.unlimited { "shaper_rules: {max_user_offline_messages: infinity}\n" } else { "" };
    let hosts: String = config.hosts.iter().map(|h| format!("  - {h:?}\n")).collect();
    let text = format!(
        "hosts:\n{hosts}loglevel: warning\ncertfiles: [{certificate:?}, {key:?}]\nlisten:\n{}{}{}\
         auth_method: internal\nauth_password_format: scram\nauth_scram_hash: {hash}\n\
         disable_sasl_mechanisms: [digest-md5, X-OAUTH2]\n{waiting}\
         modules:\n  mod_roster: {{versioning: true}}\n  mod_disco: {{}}\n  mod_ping: {{}}\n  mod_version: {{}}\n  \
         mod_time: {{}}\n  mod_last: {{}}\n  mod_offline: {{}}\n{}{}",
        listener(at.c2s.port(), starttls),
        listener(at.c2s_tls.port(), "tls: true"),
        if config.web { ejabberd_web(at) } else { String::new() },
        config.modules.iter().map(|module| format!("  {module}\n")).collect::<String>(),
        if config.web { "  mod_bosh: {}\n" } else { "" },
    );
    let path = folder.join("ejabberd.yml");
    write(&path, text)?;
    let spool = folder.join("spool");
    make_dir(&spool)?;
    let salt = b"waystation-peer-salt";
    let accounts: String = config
        .accounts
        .iter()
        .map(|a| {
            let keys = Keys::derive(config.hash, &a.password, salt, ITERATIONS);
            format!(
                "{{<<\"{}\">>,<<\"{}\">>,{{scram,<<\"{}\">>,<<\"{}\">>,<<\"{}\">>,{hash},{ITERATIONS}}}}}.\n",
                a.user,
                a.host,
                BASE64.encode(&keys.stored_key),
                BASE64.encode(&keys.server_key),
                BASE64.encode(salt)
            )
        })
        .collect();
    let list = folder.join("accounts.term");
    let imported = folder.join("accounts.imported");
    write(&list, accounts)?;
    // Started without distribution: no node name, no epmd, nothing but the two listeners.
    let import = format!(
        "{{ok, L}} = file:consult({list:?}), \
         [ejabberd_auth_mnesia:set_password(U, H, K) || {{U, H, K}} <- L], \
         ok = file:write_file({imported:?}, <<>>)."
    );
    let spool = format!("{spool:?}");
    let args: Vec<String> = [
        "-noinput", "+K", "true", "+P", "250000", "-mnesia", "dir", &spool, "-s", "ejabberd", "-eval",
        &import,
    ]
    .map(str::to_owned)
    .to_vec();
    let text = |p: &Path| p.to_string_lossy().into_owned();
    let env = [
        ("EJABBERD_CONFIG_PATH", text(&path)),
        ("EJABBERD_LOG_PATH", text(&folder.join("ejabberd.log"))),
        ("ERL_CRASH_DUMP", text(&folder.join("erl_crash.dump"))),
        ("HOME", text(folder)),
        ("ERL_LIBS", erlang_libraries()?),
    ];
    let env = env.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    Ok(Program { path: program("erl")?, args, env, ready_file: Some(imported) })
}

/// The paths are those that ejabberd's own configuration has, and Prosody by default.
fn ejabberd_web(at: &Endpoint) -> String {
    format!(
        "  - {{port: {}, ip: \"127.0.0.1\", module: ejabberd_http, request_handlers: \
         {{/http-bind: mod_bosh, /xmpp-websocket: ejabberd_http_ws}}, backlog: 1024}}\n",
        at.http.port()
    )
}

/// Writes a self-signed certificate (ECDSA P-256, as this project's server makes its own) and its key.
fn certificate(hosts: &[String], folder: &Path) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let failed = |e: rcgen::Error| Error::Setup(format!("certificate: {e}"));
    let signing_key = rcgen::KeyPair::generate().map_err(failed)?;
    let mut params = rcgen::CertificateParams::new(hosts.to_vec()).map_err(failed)?;
    // rcgen's default validity ends in the year 4096, at which ejabberd stumbles.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2049, 1, 1);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, hosts.first().map_or("localhost", String::as_str));
    let made = params.self_signed(&signing_key).map_err(failed)?;
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    write(&certificate, made.pem())?;
    write(&key, signing_key.serialize_pem())?;
    Ok((certificate, key))
}

/// Finds an installed program on the search path or in the system folders that a user's path may lack.
pub(crate) fn program(name: &str) -> Result<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin"].map(std::path::PathBuf::from);
    let found = std::env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| {
        Error::Setup(format!("{name} is not installed (Debian: apt-get install prosody ejabberd)"))
    })
}

/// Where Debian keeps Erlang libraries such as ejabberd's: the folder of the machine's architecture.
pub(crate) fn erlang_libraries() -> Result<String> {
    let libraries = Path::new("/usr/lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
    let has_ejabberd = std::fs::read_dir(&libraries)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with("ejabberd-"));
    if has_ejabberd {
        Ok(libraries.to_string_lossy().into_owned())
    } else {
        Err(Error::Setup("ejabberd is not installed (Debian: apt-get install ejabberd)".into()))
    }
}

/// Prosody's file names: everything but letters and digits in percent encoding.
fn file_name(name: &str) -> String {
    let encode =
        |b: u8| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02x}") };
    name.bytes().map(encode).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

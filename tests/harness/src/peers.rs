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
use crate::federation::{Federation, Files, Proof, rooms};
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
    let Files { certificate, key, .. } = Files::write(&config.hosts, config.federation.as_ref(), folder)?;
    let data = folder.join("data");
    let web: &[&str] = if config.web { &["bosh", "websocket"] } else { &[] };
    let modules = config.modules.iter().map(String::as_str).chain(web.iter().copied());
    let (federated, authorities) = match &config.federation {
        Some(federation) => (prosody_federated(federation, at, folder)?, cafile(folder)),
        None => ("modules_disabled = { \"s2s\" }\n".to_owned(), String::new()),
    };
    let mut text = format!(
        r#"run_as_root = true
data_path = {data:?}
pidfile = {pid:?}
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
c2s_direct_tls_ports = {{ {tls} }}
modules_enabled = {{ "roster", "saslauth", "tls", "disco", "ping", "version", "time", "lastactivity", "uptime"{modules}{others} }}
{federated}c2s_require_encryption = {required}
allow_unencrypted_plain_auth = true
authentication = "internal_hashed"
password_hash = "{hash}"
storage = "internal"
{archives}{web}log = {{ warn = "*console" }}
ssl = {{ certificate = {certificate:?}, key = {key:?}{authorities} }}
"#,
        pid = folder.join("prosody.pid"),
        c2s = at.c2s.port(),
        tls = at.c2s_tls.port(),
        modules = modules.map(|m| format!(", {m:?}")).collect::<String>(),
        others = config.federation.as_ref().map_or("", prosody_federated_modules),
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
    if let Some(rooms) = rooms_of(config) {
        text.push_str(&format!("Component {rooms:?} \"muc\"\n"));
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

fn prosody_federated_modules(federation: &Federation) -> &'static str {
    match (federation.proof, federation.bidi) {
        (Proof::Certificate, false) => ", \"vcard\"",
        (Proof::Certificate, true) => ", \"vcard\", \"s2s_bidi\"",
        (Proof::Dialback, false) => ", \"vcard\", \"dialback\"",
        (Proof::Dialback, true) => ", \"vcard\", \"dialback\", \"s2s_bidi\"",
    }
}

/// Other servers, found by the test's own name server.
fn prosody_federated(federation: &Federation, at: &Endpoint, folder: &Path) -> Result<String> {
    let resolver = folder.join("resolver.lua");
    write(&resolver, prosody_resolver(federation))?;
    Ok(format!(
        "RunScript {resolver:?}\ns2s_ports = {{ {} }}\ns2s_direct_tls_ports = {{ {} }}\n\
         s2s_require_encryption = true\ns2s_secure_auth = {}\nuse_ipv6 = false\n",
        at.s2s.port(),
        at.s2s_tls.port(),
        federation.proof == Proof::Certificate
    ))
}

/// Prosody's own resolver reads the system's configuration and asks port 53; no option changes that. So
/// it is loaded with another name server in it, and libunbound, which would take its place, is hidden.
fn prosody_resolver(federation: &Federation) -> String {
    format!(
        r#"package.preload["lunbound"] = function () error("not used here") end
package.preload["net.dns"] = function (name)
    local file = assert(package.searchpath(name, package.path))
    local dns = assert(loadfile(file))(name, file)
    local resolver = getmetatable(dns._resolver).__index
    function resolver:adddefaultnameservers() self:addnameserver("{ip}") end
    local set = resolver.socket_wrapper_set
    function resolver:socket_wrapper_set(wrap)
        set(self, function (...)
            local handler, err = wrap(...)
            if not handler then return nil, err end
            local setpeername = handler.setpeername
            handler.setpeername = function (sock, ip) return setpeername(sock, ip, {port}) end
            return handler
        end)
    end
    return dns
end
"#,
        ip = federation.nameserver.ip(),
        port = federation.nameserver.port()
    )
}

fn cafile(folder: &Path) -> String {
    format!(", cafile = {:?}", Files::of(folder).authorities)
}

/// The domain of the rooms, if there are any.
fn rooms_of(config: &Config) -> Option<String> {
    let wanted = config.federation.as_ref().is_some_and(|f| f.rooms);
    config.hosts.first().filter(|_| wanted).map(|host| rooms(host))
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
    let Files { certificate, key, .. } = Files::write(&config.hosts, config.federation.as_ref(), folder)?;
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
    let (federated, others) = match &config.federation {
        Some(federation) => (ejabberd_federated(at, folder), ejabberd_federated_modules(config, federation)),
        None => (String::new(), String::new()),
    };
    let text = format!(
        "hosts:\n{hosts}loglevel: warning\ncertfiles: [{certificate:?}, {key:?}]\nlisten:\n{}{}{}{federated}\
         auth_method: internal\nauth_password_format: scram\nauth_scram_hash: {hash}\n\
         disable_sasl_mechanisms: [digest-md5, X-OAUTH2]\n{waiting}\
         modules:\n  mod_roster: {{versioning: true}}\n  mod_disco: {{}}\n  mod_ping: {{}}\n  mod_version: {{}}\n  \
         mod_time: {{}}\n  mod_last: {{}}\n  mod_offline: {{}}\n{}{}{others}",
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
    let mut args: Vec<String> = [
        "-noinput", "+K", "true", "+P", "250000", "-mnesia", "dir", &spool, "-s", "ejabberd", "-eval",
        &import,
    ]
    .map(str::to_owned)
    .to_vec();
    if let Some(federation) = &config.federation {
        let resolver = folder.join("inetrc");
        write(&resolver, erlang_resolver(federation))?;
        args.extend(["-kernel".to_owned(), "inetrc".to_owned(), format!("{resolver:?}")]);
    }
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

/// Other servers: the listeners, which end the list of them, and what follows it.
fn ejabberd_federated(at: &Endpoint, folder: &Path) -> String {
    let listener = |port: u16, tls: &str| {
        format!(
            "  - {{port: {port}, ip: \"127.0.0.1\", module: ejabberd_s2s_in, max_stanza_size: 524288{tls}}}\n"
        )
    };
    format!(
        // After a stream that failed it waits for up to five minutes, unless told otherwise.
        "{}{}s2s_use_starttls: required\ns2s_cafile: {:?}\ns2s_max_retry_delay: 1\n\
         outgoing_s2s_families: [ipv4]\ns2s_dns_timeout: 5\n",
        listener(at.s2s.port(), ""),
        listener(at.s2s_tls.port(), ", tls: true"),
        Files::of(folder).authorities
    )
}

fn ejabberd_federated_modules(config: &Config, federation: &Federation) -> String {
    let mut modules = "  mod_vcard: {}\n".to_owned();
    if federation.proof == Proof::Dialback {
        modules.push_str("  mod_s2s_dialback: {}\n");
    }
    if let Some(rooms) = rooms_of(config) {
        modules.push_str(&format!("  mod_muc: {{host: {rooms:?}}}\n"));
    }
    modules
}

/// What Erlang's resolver reads instead of the system's files.
fn erlang_resolver(federation: &Federation) -> String {
    let ip = federation.nameserver.ip().to_string().replace(['.', ':'], ",");
    format!(
        "{{resolv_conf, \"\"}}.\n{{hosts_file, \"\"}}.\n{{lookup, [dns]}}.\n{{cache_size, 0}}.\n\
         {{nameserver, {{{ip}}}, {}}}.\n",
        federation.nameserver.port()
    )
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

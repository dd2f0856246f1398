"""The servers that the browser tests run against, and the ways to them.

What must hold: both kinds offer the same to a test (`Server` of the interoperability tests, and over it HTTP), and
whatever was started here is gone at the end.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import driver
from driver import Failure

# How long a server may take to start or to end.
PATIENCE = 60.0
PASSWORD = "CANARY-{}-secret"


def free_ports(count):
    """Ports of the loopback interface that nobody listens on; all held until all are known, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def listening(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    except OSError:
        return False


def wait_for(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise Failure(f"waited {PATIENCE:.0f} s for {what}")
        time.sleep(0.02)


class Waystation(driver.Server):
    """Ours, with HTTP; it serves the chat page, and its sessions outlive a SIGKILL."""

    serves_page = True

    def __init__(self, options, users, folder):
        (self.http,) = free_ports(1)
        super().__init__(options, users, folder, [f'listen.http=["127.0.0.1:{self.http}"]'])

    def log(self):
        """The lines of its log."""
        return lines(self.info["log"])


class Prosody:
    """Prosody as Debian packages it: a reference that tells whether a failure is ours. Its sessions die with it."""

    serves_page = False
    survives = False

    def __init__(self, options, users, folder):
        self.folder = Path(folder) / "prosody"
        self.folder.mkdir()
        host = "localhost"
        self.accounts = {user: {"jid": f"{user}@{host}", "password": PASSWORD.format(user)} for user in users}
        c2s, tls, self.http = free_ports(3)
        self.ports = {"starttls": c2s, "direct": tls}
        self.info = {"server": "prosody", "host": host}
        self.certificate = str(self.folder / "cert.pem")
        key = self.folder / "key.pem"
        made = subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            + ["-keyout", key, "-out", self.certificate, "-days", "2", "-subj", f"/CN={host}"]
            + ["-addext", f"subjectAltName=DNS:{host}"],
            capture_output=True,
            text=True,
        )
        if made.returncode != 0:
            raise SystemExit(f"openssl: {made.stderr}")
        (self.folder / "prosody.cfg.lua").write_text(
            f"""run_as_root = true
data_path = "{self.folder}/data"
pidfile = "{self.folder}/prosody.pid"
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {c2s} }}
c2s_direct_tls_ports = {{ {tls} }}
http_interfaces = {{ "127.0.0.1" }}
http_ports = {{ {self.http} }}
https_ports = {{}}
http_default_host = "{host}"
modules_enabled = {{
    "roster", "saslauth", "tls", "disco", "ping", "version", "smacks", "carbons", "mam", "csi", "pep", "vcard4",
    "bosh", "websocket", "http",
}}
modules_disabled = {{ "s2s" }}
consider_bosh_secure = true
consider_websocket_secure = true
c2s_require_encryption = true
authentication = "internal_plain"
storage = "internal"
log = {{ info = "{self.folder}/prosody.log" }}
ssl = {{ certificate = "{self.certificate}", key = "{key}" }}
VirtualHost "{host}"
"""
        )
        accounts = self.folder / "data" / host / "accounts"
        accounts.mkdir(parents=True)
        for user, account in self.accounts.items():
            name = re.sub(r"[^a-zA-Z0-9]", lambda found: f"%{ord(found[0]):02x}", user)
            (accounts / f"{name}.dat").write_text(f'return {{ ["password"] = "{account["password"]}"; }};\n')
        program = shutil.which("prosody") or "/usr/bin/prosody"
        self.process = subprocess.Popen(
            [program, "--config", self.folder / "prosody.cfg.lua", "-F"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_for(lambda: all(map(listening, (c2s, tls, self.http))), "Prosody to listen")

    def address(self, security):
        return "127.0.0.1", self.ports[security]

    def log(self):
        return lines(self.folder / "prosody.log")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=PATIENCE)


def missing(kind):
    """How to get a server that is not here, or None."""
    if kind == "prosody":
        return None if shutil.which("prosody") else "apt-get install prosody"
    return None


def lines(path):
    """The lines of a file."""
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError as error:
        return [f"(no log: {error})"]

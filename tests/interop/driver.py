"""What every case of the interoperability tests stands on: client programs, and the server they talk to."""

import contextlib
import json
import os
import queue
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHON = HERE.parent / ".venv/bin/python"
PATIENCE = 20.0

AGENTS = {
    "slixmpp": ([PYTHON, HERE / "agents/slixmpp_agent.py"], PYTHON, "tests/interop/setup"),
    "aioxmpp": ([PYTHON, HERE / "agents/aioxmpp_agent.py"], PYTHON, "tests/interop/setup"),
    "xmpp.js": (
        ["node", HERE / "agents/xmppjs_agent.mjs"],
        HERE / "node_modules/@xmpp/client",
        "node 20 or later, then tests/interop/setup",
    ),
}
GO_SENDXMPP = "go-sendxmpp"
# Servers that others wrote, with a program of each to look for.
PEERS = {"prosody": "prosody", "ejabberd": "ejabberdctl"}


class Failure(Exception):
    """A step that did not come out as it must."""


class Agent:
    """One client program and what it has reported."""

    # How long it waits for an event.
    patience = PATIENCE

    def __init__(self, kind, account, resource, server, security, managed=False):
        self.kind = kind
        self.account = account
        self.seen = []
        self.events = queue.SimpleQueue()
        command, _, _ = AGENTS[kind]
        environment = {**os.environ, "NODE_EXTRA_CA_CERTS": server.certificate, "PYTHONDONTWRITEBYTECODE": "1"}
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        threading.Thread(target=self._read, daemon=True).start()
        address, port = server.address(security)
        self.do(
            "connect",
            jid=account["jid"],
            password=account["password"],
            resource=resource,
            address=address,
            port=port,
            security=security,
            ca=server.certificate,
            managed=managed,
        )
        online = self.expect("online")
        self.jid = online["jid"]
        self.mechanism = online["mechanism"]
        self.tls = online["tls"]
        if self.jid != f"{account['jid']}/{resource}":
            raise Failure(f"{kind}: bound as {self.jid}")
        if not self.mechanism.startswith("SCRAM-"):
            raise Failure(f"{kind}: logged in with {self.mechanism}")

    def _read(self):
        for line in self.process.stdout:
            self.events.put(line)
        self.events.put(None)

    def do(self, what, **fields):
        """Gives the agent a command."""
        self.process.stdin.write(json.dumps({"do": what, **fields}) + "\n")
        self.process.stdin.flush()

    def expect(self, event, **fields):
        """Waits for an event with these fields; what comes in other order is kept for later."""

        def fits(seen):
            return seen["event"] == event and all(seen.get(key) == value for key, value in fields.items())

        end = time.monotonic() + self.patience
        while True:
            for index, seen in enumerate(self.seen):
                if fits(seen):
                    return self.seen.pop(index)
                if seen["event"] in ("failed", "refused"):
                    raise Failure(f"{self.kind}: {seen}{self._stderr()}")
            try:
                line = self.events.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                wanted = {"event": event, **fields}
                others = [seen for seen in self.seen if seen["event"] != "message"]
                came = f"came: {others} and {len(self.seen) - len(others)} messages"
                raise Failure(f"{self.kind}: no {wanted}; {came}{self._stderr()}") from None
            if line is None:
                raise Failure(f"{self.kind}: ended, waiting for {event} {fields}{self._stderr()}")
            self.seen.append(json.loads(line))

    def _stderr(self):
        self.errors.seek(0)
        text = self.errors.read().strip()
        return "\n" + "\n".join(text.splitlines()[-15:]) if text else ""

    def leave(self):
        """Logs out in order."""
        self.do("quit")
        self.expect("offline")

    def end(self):
        """Ends the process in any case."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


class Place:
    """Where clients find a server; `info` describes it as waystation-testserver does."""

    def take_certificate(self, path):
        """Its certificate is self-signed; the clients are told to trust it and still check its name."""
        self.certificate = str(path)
        path.write_text(ssl.get_server_certificate(self.address("direct")))

    def address(self, security):
        address, port = self.info["c2s_tls" if security == "direct" else "c2s"].rsplit(":", 1)
        return address, int(port)


class Peer(Place):
    """A second server, which the one under test meets."""

    def __init__(self, info, folder):
        self.info = info
        self.accounts = info["accounts"]
        self.take_certificate(Path(folder) / "peer.pem")


class Server(Place):
    """The server under test: started here, or one that `--at` describes."""

    def __init__(self, options, users, folder, settings=(), peer=None):
        """`settings` are further keys of ours, as KEY=TOML; `peer` is the kind of a second server that it meets."""
        self.process = None
        self.peer = None
        if options.at:
            self.info = json.loads(Path(options.at).read_text())
        else:
            program = Path(options.testserver or built("waystation-testserver"))
            command = [program, "--server", options.server, "--tls-required", "--users", ",".join(users)]
            command += [part for setting in settings for part in ("--set", setting)]
            command += ["--peer", peer] if peer else []
            self.process = subprocess.Popen(
                [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            line = self.process.stdout.readline()
            if not line:
                raise SystemExit(f"{options.server} did not start")
            self.info = json.loads(line)
        self.accounts = self.info["accounts"]
        if peer:
            self.peer = Peer(self.info["peer"], folder)
        # Only a server that was started here may be killed, and only ours promises what comes after.
        self.survives = self.process is not None and self.info["server"] == "waystation"
        self.take_certificate(Path(folder) / "server.pem")

    @contextlib.contextmanager
    def killed(self):
        """Kills the server with SIGKILL; at the end it runs again, on the same ports and the same data."""
        self._order("kill")
        try:
            yield
        finally:
            self._order("start")

    def _order(self, what):
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise Failure(f"the server did not {what} (see above)")

    def stop(self):
        """Stops the server that was started here; its own checks count."""
        if self.process:
            self.process.stdin.close()
            if self.process.wait(timeout=60) != 0:
                raise Failure("the server did not end as it should (see above)")


def built(name):
    """A program of this workspace, where cargo puts it."""
    return Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / name


def missing(name):
    """How to get a client or a server that is not here, or None."""
    if name == GO_SENDXMPP:
        return None if shutil.which(GO_SENDXMPP) else "apt-get install go-sendxmpp"
    if name in PEERS:
        there = shutil.which(PEERS[name], path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        return None if there else f"apt-get install {name}"
    command, needs, hint = AGENTS[name]
    there = Path(needs).exists() and shutil.which(str(command[0]))
    return None if there else hint

"""What is between a page and the server: a static server for the tests' own pages, and a proxy that cuts connections.

Both listen on a port of the loopback interface, and end with all that they have open.
"""

import contextlib
import http.server
import selectors
import socket
import struct
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Files:
    """Serves the tests' own pages (`/`) and npm packages (`/node_modules/`) by HTTP."""

    def __init__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class Handler(http.server.SimpleHTTPRequestHandler):
    """A file below `pages` or `node_modules`."""

    protocol_version = "HTTP/1.1"

    def translate_path(self, path):
        # One connection carries many requests.
        self.directory = str(HERE if path.startswith("/node_modules/") else HERE / "pages")
        return super().translate_path(path)

    def log_message(self, *_):
        """Nothing: what fails is on the page's console."""


class Proxy:
    """Passes TCP connections on to a port; `cut` ends them all, as a network does that goes away.

    With `bars`, it ends each connection whose client sends bytes that begin so, as proxies do that know no WebSocket.
    """

    def __init__(self, port, bars=None):
        self.port = port
        self.bars = bars
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = self.listener.getsockname()[1]
        self.selector = selectors.DefaultSelector()
        self.lock = threading.Lock()
        # Each socket with its other half.
        self.pairs = {}
        self.up = True
        # Connections that were cut, those that were tried in vain meanwhile, and those that were barred.
        self.cuts = 0
        self.refused = 0
        self.barred = 0
        self.ended = False
        self.wake, waker = socket.socketpair()
        self.waker = waker
        self.selector.register(self.wake, selectors.EVENT_READ)
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        while not self.ended:
            for key, _ in self.selector.select():
                one = key.fileobj
                with self.lock:
                    if one is self.listener:
                        self._accept()
                    elif one is self.wake:
                        self.wake.recv(1)
                    elif one in self.pairs:
                        self._pass(one)

    def _accept(self):
        client, _ = self.listener.accept()
        if not self.up:
            self.refused += 1
            reset(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        except OSError:
            reset(client)
            return
        for one, other in ((client, server), (server, client)):
            # Loopback takes what it is given, or the other side is stuck for good.
            one.settimeout(20)
            self.pairs[one] = other
            self.selector.register(one, selectors.EVENT_READ)

    def _pass(self, one):
        try:
            data = one.recv(1 << 16)
            if self.bars and data.startswith(self.bars):
                self.barred += 1
            elif data:
                self.pairs[one].sendall(data)
                return
        except OSError:
            pass
        self._drop(one)

    def _drop(self, one):
        for half in (one, self.pairs.get(one)):
            if half in self.pairs:
                del self.pairs[half]
                self.selector.unregister(half)
                half.close()

    @contextlib.contextmanager
    def cut(self):
        """Ends all connections with a reset, and takes none until the block is left."""
        with self.lock:
            self.up = False
            for one in list(self.pairs):
                if one in self.pairs:
                    other = self.pairs[one]
                    for half in (one, other):
                        half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self._drop(one)
                    self.cuts += 1
        try:
            yield
        finally:
            with self.lock:
                self.up = True

    def end(self):
        self.ended = True
        self.waker.send(b"x")
        self.thread.join()
        for one in list(self.pairs):
            self._drop(one)
        for one in (self.listener, self.wake, self.waker):
            one.close()
        self.selector.close()


def reset(connection):
    """Ends a connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()

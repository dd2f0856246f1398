"""A client in a page, as an agent of the interoperability tests: commands in, events out."""

import json
import queue

from driver import Agent, Failure

# A page that the server was killed under may wait for longer than the other agents: Strophe tries again to reach it
# at once, then after 8 s, then after 27 s (see its transports/bosh.ts).
PATIENCE = 60.0


class PageAgent(Agent):
    """One page with Strophe.js or Converse.js (pages/) and what it has reported."""

    patience = PATIENCE

    def __init__(self, kind, account, resource, page, files, service):
        """`service` is the URL of the server's BOSH or WebSocket."""
        self.kind = kind
        self.account = account
        self.seen = []
        self.events = queue.SimpleQueue()
        self.page = page
        page.emit = self.events.put
        self.page.open(f"{files.base}/{kind}.html")
        self.page.until("typeof perform === 'function'", "the page to take commands")
        self.do("connect", jid=account["jid"], password=account["password"], resource=resource, service=service)
        online = self.expect("online")
        self.jid = online["jid"]
        self.mechanism = online["mechanism"]
        if self.jid != f"{account['jid']}/{resource}":
            raise Failure(f"{kind}: bound as {self.jid}")
        if not self.mechanism.startswith("SCRAM-"):
            raise Failure(f"{kind}: logged in with {self.mechanism}")

    def do(self, what, **fields):
        """Gives the page a command and waits until it has carried it out."""
        self.page.evaluate(f"perform({json.dumps({'do': what, **fields})})")

    def _stderr(self):
        return ""

    def end(self):
        """Nothing: whoever made the page closes it."""

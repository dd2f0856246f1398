"""What people do in a browser: the cases, each over BOSH and over WebSocket.

At the other end is slixmpp over TCP. Around each disturbance both ends send numbered messages without heeding it;
all of them arrive, once each and in order.
"""

import contextlib
import re

from agents import PageAgent
from driver import Agent, Failure
from network import Proxy
from servers import wait_for

TRANSPORTS = ("BOSH", "WebSocket")
CLIENTS = {"strophe": "Strophe.js", "converse": "Converse.js"}
# How often the server is killed under a page. Converse forgets its stream when it has resumed it once.
KILLS = {"strophe": 2, "converse": 1}
# How many messages each end sends in one go, before, during and after a disturbance.
BATCH = 10


def service(transport, port):
    """The URL of a server's BOSH or WebSocket."""
    if transport == "BOSH":
        return f"http://127.0.0.1:{port}/http-bind"
    return f"ws://127.0.0.1:{port}/xmpp-websocket"


@contextlib.contextmanager
def pair(run, client, transport, users, port=None, managed=False):
    """A page and a contact over TCP, both online."""
    server = run.server
    me, friend = (server.accounts[user] for user in users)
    contact = Agent("slixmpp", friend, "desk", server, "starttls", managed=managed)
    try:
        contact.do("presence")
        contact.expect("presence", sender=contact.jid)
        with run.page() as page:
            agent = PageAgent(client, me, "web", page, run.files, service(transport, port or server.http))
            agent.do("roster")
            agent.do("presence")
            yield agent, contact
    finally:
        contact.end()


def befriend(page, contact):
    """Subscriptions both ways, each seen in both rosters."""
    me, friend = page.account["jid"], contact.account["jid"]
    page.do("subscribe", to=friend)
    contact.expect("presence", sender=me, kind="subscribe")
    contact.do("subscribed", to=me)
    page.expect("roster", jid=friend, subscription="to")
    page.expect("contact", jid=friend, show="online")
    contact.do("subscribe", to=me)
    if page.kind == "strophe":
        # Converse agrees by itself to who agreed before.
        page.expect("asked", jid=friend)
        page.do("subscribed", to=friend)
    contact.expect("roster", jid=me, subscription="both")
    page.expect("roster", jid=friend, subscription="both")
    contact.expect("presence", sender=page.jid, kind="available")


def conversation(run, client, transport, users):
    """Log in, subscribe to each other, see each other's presence, chat, log out."""
    with pair(run, client, transport, users) as (page, contact):
        friend = contact.account["jid"]
        befriend(page, contact)

        # Presence, with what it says.
        contact.do("presence", show="away", status="Bin gleich zurück ☕")
        page.expect("contact", jid=friend, show="away", status="Bin gleich zurück ☕")
        page.do("presence", show="dnd", status="<busy> & such")
        contact.expect("presence", sender=page.jid, show="dnd", status="<busy> & such")

        # Messages, with all that XML and JavaScript could stumble at.
        for sender, recipient in ((page, contact), (contact, page)):
            for to in (recipient.account["jid"], recipient.jid):
                body = f"{sender.kind} → {to} 😀 <tag/> &amp; \"quotes\" 'and' ]]> more"
                sender.do("message", to=to, body=body)
                recipient.expect("message", sender=sender.jid, kind="chat", body=body)

        # The end of a session is seen by the other.
        page.do("quit")
        page.expect("offline")
        contact.expect("presence", sender=page.jid, kind="unavailable")
        return page.mechanism


class Numbers:
    """Numbered messages both ways between two agents."""

    def __init__(self, page, contact):
        self.ways = ((page, contact), (contact, page))
        self.sent = 0
        self.came = {page: [], contact: []}

    def send(self):
        """Sends some more from both ends, and waits for nothing."""
        for number in range(self.sent, self.sent + BATCH):
            for sender, recipient in self.ways:
                sender.do("message", to=recipient.jid, body=str(number))
        self.sent += BATCH

    def receive(self):
        """Waits for all that was sent."""
        for _, recipient in self.ways:
            came = self.came[recipient]
            while not came or came[-1]["body"] != str(self.sent - 1):
                came.append(recipient.expect("message"))

    def check(self):
        """Asserts that all came in order; what came again is a copy by its stanza id. How many of them each got."""
        copies = {}
        for _, recipient in self.ways:
            messages = self.came[recipient]
            # What came after the last one.
            messages += [event for event in recipient.seen if event["event"] == "message"]
            firsts = {}
            for place, message in enumerate(messages):
                firsts.setdefault(message.get("id") or place, message["body"])
            bodies = list(firsts.values())
            if bodies != [str(number) for number in range(self.sent)]:
                came = " ".join(message["body"] for message in messages)
                raise Failure(f"of 0 to {self.sent - 1} {recipient.kind} got {came}")
            if any(message["body"] != firsts[message["id"]] for message in messages if message.get("id")):
                raise Failure(f"two messages to {recipient.kind} have the same stanza id")
            copies[recipient.kind] = len(messages) - len(bodies)
            if recipient.kind == "converse":
                self.check_shown(recipient)
        return copies

    def check_shown(self, page):
        """Asserts that Converse shows each message once, whatever came again.

        Its order is Converse's own, by the times of messages; those of what was delayed are in seconds.
        """
        _, contact = self.ways[0]
        page.do("shown", of=contact.account["jid"])
        shown = page.expect("shown")["bodies"].split()
        if sorted(map(int, shown)) != list(range(self.sent)):
            raise Failure(f"of 0 to {self.sent - 1} Converse shows {' '.join(shown)}")


def again(page, transport):
    """Waits until the page goes on where it was; over BOSH it does not know that anything happened."""
    if transport == "WebSocket":
        page.expect("resumed")


def no_new_session(*agents):
    """Asserts that nobody logged in anew."""
    for agent in agents:
        new = [event for event in agent.seen if event["event"] in ("online", "lost", "failed")]
        if new:
            raise Failure(f"{agent.kind} did not go on where it was: {new}")


def network_drops(run, client, transport, users):
    """The network between page and server goes away, and comes back."""
    proxy = Proxy(run.server.http)
    try:
        with pair(run, client, transport, users, proxy.address) as (page, contact):
            befriend(page, contact)
            numbers = Numbers(page, contact)
            numbers.send()
            numbers.receive()
            numbers.send()
            with proxy.cut():
                if transport == "WebSocket":
                    page.expect("suspended")
                numbers.send()
                wait_for(lambda: proxy.refused, "the page to try again")
            again(page, transport)
            numbers.send()
            numbers.receive()
            no_new_session(page)
            if any((copies := numbers.check()).values()):
                raise Failure(f"messages came again: {copies}")
            if not proxy.cuts:
                raise Failure("there was nothing to cut")
            return f"{2 * numbers.sent} messages, {proxy.cuts} connections cut"
    finally:
        proxy.end()


def server_killed(run, client, transport, users):
    """The server is killed with SIGKILL and started again, under both ends."""
    with pair(run, client, transport, users, managed=True) as (page, contact):
        befriend(page, contact)
        numbers = Numbers(page, contact)
        for _ in range(KILLS[client]):
            numbers.send()
            numbers.receive()
            numbers.send()
            with run.server.killed():
                contact.expect("suspended")
                if transport == "WebSocket":
                    page.expect("suspended")
                numbers.send()
            contact.expect("resumed")
            again(page, transport)
        numbers.send()
        numbers.receive()
        no_new_session(page, contact)
        copies = numbers.check()
        # Nothing of an earlier round: that was acknowledged.
        if max(copies.values()) > 2 * BATCH * KILLS[client]:
            raise Failure(f"too many came again: {copies}")
        copies = ", ".join(f"{number} to {kind}" for kind, number in copies.items())
        return f"{2 * numbers.sent} messages, {KILLS[client]} kills; copies: {copies}"


@contextlib.contextmanager
def way_to_page(server, transport):
    """The chat page's origin; for BOSH behind a proxy that knows no WebSocket, so that the page takes BOSH."""
    if transport == "WebSocket":
        yield f"http://127.0.0.1:{server.http}"
        return
    proxy = Proxy(server.http, bars=b"GET /xmpp-websocket")
    try:
        yield f"http://127.0.0.1:{proxy.address}"
        if not proxy.barred:
            raise Failure("the page did not try WebSocket first")
    finally:
        proxy.end()


def chat_page(run, transport, users):
    """What a person does on the chat page of the server: logs in, takes a contact, reads and writes."""
    me, friend = (run.server.accounts[user] for user in users)
    contact = Agent("slixmpp", friend, "desk", run.server, "starttls")
    try:
        contact.do("presence")
        with way_to_page(run.server, transport) as base, run.page() as page:
            page.open(f"{base}/")
            page.type('converse-login-form input[name="jid"]', me["jid"])
            page.type('converse-login-form input[name="password"]', me["password"])
            page.click('converse-login-form [type="submit"]')

            contact.do("subscribe", to=me["jid"])
            page.click(".requesting-xmpp-contact .contact-actions button")
            page.click(".requesting-xmpp-contact .accept-xmpp-request")
            page.click('.modal.show form [type="submit"]')
            contact.expect("roster", jid=me["jid"], subscription="to")

            greeting, answer = "Hello <b>from TCP</b> & co ☕", "Hello <i>from the page</i> & co 😀"
            contact.do("message", to=me["jid"], body=greeting)
            page.open_by(f'.open-chat[data-jid="{friend["jid"]}"]', ".chat-textarea")
            page.shows(".chat-msg__text", greeting)
            page.type(".chat-textarea", answer)
            page.enter()
            message = contact.expect("message", body=answer)
            page.shows(".chat-msg__text", answer)
            picture = run.picture(page)

            if not message["sender"].startswith(f"{me['jid']}/"):
                raise Failure(f"the answer came from {message['sender']}")
            check_page(page, base, transport)
            return picture
    finally:
        contact.end()


def check_page(page, base, transport):
    """Asserts that the page went nowhere but to its own server, over this transport, and complained of nothing."""
    sockets = base.replace("http:", "ws:")
    foreign = [url for url in page.requests if not url.startswith((f"{base}/", f"{sockets}/", "data:", "blob:"))]
    if foreign:
        raise Failure(f"the page asked other servers: {' '.join(foreign)}")
    used = "BOSH" if f"{base}/http-bind" in page.requests else "WebSocket"
    if used != transport:
        raise Failure(f"the page used {used}")
    # Converse writes the errors it is answered to the console: here, that the server has no PubSub.
    complaints = [line for line in page.complaints if not re.match(r'error: <iq [^>]*type="error"', line)]
    if transport == "BOSH":
        # That WebSocket does not work is what the case is about.
        complaints = [line for line in complaints if "websocket" not in line.lower()]
    if complaints:
        raise Failure("the page complains:\n    " + "\n    ".join(complaints))


def plan():
    """All cases: (name, what it needs of the server or None, function of the run); and the accounts they use."""
    cases, users = [], []

    def case(name, needs, test, *arguments):
        own = [f"w{len(users)}", f"w{len(users) + 1}"]
        users.extend(own)
        cases.append((name, needs, lambda run: test(run, *arguments, own)))

    for client, title in CLIENTS.items():
        for transport in TRANSPORTS:
            case(f"{title} over {transport}: a conversation", None, conversation, client, transport)
            case(f"{title} over {transport}: the network drops", None, network_drops, client, transport)
            case(f"{title} over {transport}: the server is killed", "survives", server_killed, client, transport)
    for transport in TRANSPORTS:
        case(f"Chat page over {transport}", "serves_page", chat_page, transport)
    return cases, users

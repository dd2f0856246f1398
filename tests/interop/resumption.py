"""The server is killed in the middle of a conversation; clients with stream management (XEP-0198) go on.

Before each kill both stop acknowledging and take no acknowledgement, so that the server learns what has arrived
from the `h` of `<resume/>` only, and the sender what to send again from that of `<resumed/>`. The sender goes on
sending, also while there is no server.
Every message arrives, in order; a second time only as the delivery contract allows.
"""

from driver import Agent, Failure

NAME = "killed server"
KILLS = 2
# How far the sender may be ahead of the receiver: the server does not let it get away with a thousand.
WINDOW = 50
# How many messages arrive after a disturbance: more than can wait, so the flow has gone on.
MESSAGES = 80
# How many arrive before a kill that the receiver does not acknowledge; and how many of them may come again.
# What is sent is noted in the log with the next commit or the one after it, each of a window at most.
UNACKNOWLEDGED = 150
AGAIN = 2 * WINDOW


class Inbox:
    """The messages of an agent, in the order in which they came."""

    def __init__(self, agent, sender):
        self.agent = agent
        self.sender = sender
        self.messages = []
        self.allowed = 0
        sender.do("flow", to=agent.account["jid"])
        self._allow(0)

    def _take(self, message):
        self.messages.append(message)
        if message["body"] != "end":
            self._allow(int(message["body"]))

    def _allow(self, number):
        if number + WINDOW - self.allowed >= WINDOW // 10:
            self.allowed = number + WINDOW
            self.sender.do("allow", count=self.allowed)

    def more(self, count):
        """Waits for this many more."""
        for _ in range(count):
            self._take(self.agent.expect("message"))

    def until(self, body):
        """Waits for this one."""
        while not self.messages or self.messages[-1]["body"] != body:
            self.more(1)

    def rest(self):
        """Takes what was reported before the event that was last waited for."""
        for event in [event for event in self.agent.seen if event["event"] == "message"]:
            self.agent.seen.remove(event)
            self._take(event)

    def runs(self):
        """What came, as [first, last] of each stretch without a gap or a step back; not the end."""
        runs = []
        for number in (int(message["body"]) for message in self.messages if message["body"] != "end"):
            if runs and number == runs[-1][1] + 1:
                runs[-1][1] = number
            else:
                runs.append([number, number])
        return runs

    def check_resumed(self):
        """Asserts that nothing is missing or came late; says how many came again.

        That is allowed once after each kill (DELIVERY P3), and far less than all that was not acknowledged: the
        server has to heed the `h` of `<resume/>`, and may only have failed to note what it had sent last.
        """
        runs = self.runs()
        copies = [before[1] + 1 - after[0] for before, after in zip(runs, runs[1:])]
        if not runs or runs[0][0] != 0 or any(number < 0 for number in copies):
            raise Failure(f"of 0, 1, ... came {runs}: some are missing or come late")
        if len(copies) > KILLS or any(number > AGAIN for number in copies):
            raise Failure(f"of 0, 1, ... came {runs}: too many come again")
        return sum(copies)

    def check_all(self, count):
        """Asserts that 0 to count - 1 and the end came first in this order; all else are copies, by their ids."""
        order = {}
        for message in self.messages:
            order.setdefault(message["id"], message["body"])
        came = list(order.values())
        if came != [str(number) for number in range(count)] + ["end"]:
            raise Failure(f"of 0 to {count - 1} came {self.runs()}, which is not once each: {came[-3:]}")
        if any(message["body"] != order[message["id"]] for message in self.messages):
            raise Failure("two messages have the same stanza id")
        return len(self.messages) - len(came)


def connected(server, kinds, securities, users):
    """A sender and a receiver, both with stream management."""
    agents = []
    try:
        for kind, security, user in zip(kinds, securities, users):
            agents.append(Agent(kind, server.accounts[user], "desk", server, security, managed=True))
            agents[-1].do("presence")
            agents[-1].expect("presence", sender=agents[-1].jid)
    except BaseException:
        end(agents)
        raise
    return agents


def end(agents):
    for agent in agents:
        agent.end()


def kill(server, sender, receiver, inbox, also=lambda: None):
    """Kills the server in the middle of the flow, with messages that the receiver has not acknowledged."""
    for agent in (sender, receiver):
        agent.do("mute")
        agent.expect("muted")
    # What came before may have been acknowledged.
    inbox.rest()
    inbox.more(UNACKNOWLEDGED)
    with server.killed():
        sender.expect("suspended")
        had = receiver.expect("suspended")
        inbox.rest()
        also()
    if int(had["handled"]) - int(had["told"]) < UNACKNOWLEDGED:
        raise Failure(f"the receiver had acknowledged too much: {had}")


def finish(server, sender, receiver, inbox):
    """Ends the flow; says how many messages it had."""
    inbox.more(MESSAGES)
    sender.do("stop")
    count = int(sender.expect("sent")["count"])
    sender.do("message", to=receiver.account["jid"], body="end")
    inbox.until("end")
    return count


def nothing_left(server, receiver, security):
    """Asserts that nothing of all that waits for the receiver's next session."""
    receiver.leave()
    later = Agent(receiver.kind, receiver.account, "later", server, security)
    try:
        later.do("presence")
        later.expect("presence", sender=later.jid)
        later.do("message", to=later.jid, body="nothing")
        message = later.expect("message")
        if message["body"] != "nothing":
            raise Failure(f"delivered again to the next session: {message}")
        later.leave()
    finally:
        later.end()


def bound_once(agent):
    """Asserts that an agent never bound again: each `<resumed/>` was waited for, and no new session came."""
    new = [event for event in agent.seen if event["event"] in ("online", "lost")]
    if new:
        raise Failure(f"{agent.kind} did not only resume: {new}")


def conversation(server, kinds, securities, users):
    """Both resume after each of some kills; after the last one, the receiver's session is unknown."""
    agents = sender, receiver = connected(server, kinds, securities, users)
    try:
        inbox = Inbox(receiver, sender)
        again = 0
        for _ in range(KILLS):
            kill(server, sender, receiver, inbox)
            receiver.expect("resumed")
            again += int(sender.expect("resumed")["again"])
            inbox.more(MESSAGES)
        for agent in agents:
            bound_once(agent)

        # The client asks for a session that nobody knows, and binds its resource again. What it had not
        # acknowledged comes again, and so does what the server had not yet stored as acknowledged.
        kill(server, sender, receiver, inbox, also=lambda: receiver.do("forget"))
        resumed = inbox.check_resumed()
        receiver.expect("lost")
        receiver.expect("online", jid=receiver.jid)
        receiver.do("presence")
        again += int(sender.expect("resumed")["again"])

        count = finish(server, sender, receiver, inbox)
        copies = inbox.check_all(count) - resumed
        bound_once(sender)
        if any(event["event"] == "resumed" for event in receiver.seen):
            raise Failure(f"{receiver.kind} resumed a session that it had forgotten")
        nothing_left(server, receiver, securities[1])
        sender.leave()
        copied = f"received again {resumed} resumed and {copies} bound"
        return f"{count} messages, {KILLS + 1} kills, sent again {again}, {copied}"
    finally:
        end(agents)


def tests(fresh):
    """The cases: (name, clients it needs, function of the server)."""
    first, second = "slixmpp", "aioxmpp"
    for kinds, securities in (((first, second), ("starttls", "direct")), ((second, first), ("direct", "starttls"))):
        name = f"{NAME}: {kinds[0]} sends to {kinds[1]}, both resume; then {kinds[1]} binds again"
        yield name, list(kinds), lambda s, k=kinds, x=securities, u=fresh(2): conversation(s, k, x, u)

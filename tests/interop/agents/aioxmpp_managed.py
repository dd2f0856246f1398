"""Lets an aioxmpp client survive the death of its server, around what aioxmpp 0.13 gets wrong."""

import datetime
import logging

import aioxmpp
import aioxmpp.misc
import aioxmpp.node
import aioxmpp.nonza

from protocol import emit


def stamp(message):
    """The id that the server stamped on a message for us (XEP-0359), if any."""
    stamps = message.xep0359_stanza_ids
    return stamps[0].id_ if stamps else None


class Managed:
    """Replaces methods of one client's stream, and tells the driver what stream management does."""

    def __init__(self, client):
        self.stream = client.stream
        self.down = False
        self.muted = False
        self.told = 0
        replaced = ("_process_incoming", "_process_outgoing")
        self.plain = {name: getattr(self.stream, name) for name in replaced}
        self.stream._process_incoming = self.process_incoming
        self.stream._process_outgoing = self.process_outgoing
        self.stream._resume_sm = self.resume
        # Its first pause is one second otherwise.
        client.backoff_start = datetime.timedelta(seconds=0.05)
        client.backoff_cap = datetime.timedelta(seconds=0.2)
        client.on_stream_suspended.connect(self.on_suspended)
        client.on_stream_established.connect(self.on_established)

    def on_suspended(self, _):
        if not self.down:
            self.down = True
            self.muted = False
            emit("suspended", handled=self.stream.sm_inbound_ctr, told=self.told)

    def on_established(self):
        if self.down:
            # Bound anew: the session is another one.
            self.down = False
            self.told = 0
            emit("lost")

    def forget(self):
        """Makes the id of the session one that no server knows."""
        self.stream._sm_id = "0" * 32

    def resume(self, number):
        """What `StanzaStream._resume_sm` does; that puts the stanzas to be sent again into the queue in reverse."""
        self.stream.sm_ack(number)
        again = self.stream._sm_unacked_list[:]
        self.stream._sm_unacked_list.clear()
        for token in reversed(again):
            self.stream._active_queue.putleft_nowait(token)
        self.down = False
        self.told = self.stream.sm_inbound_ctr
        emit("resumed", h=number, again=len(again))

    def process_incoming(self, xmlstream, entry):
        """Is deaf to the server's `<a/>` and leaves its `<r/>` open when the driver wants that, until the
        connection is gone."""
        element = entry[0]
        if self.muted and isinstance(element, (aioxmpp.nonza.SMRequest, aioxmpp.nonza.SMAcknowledgement)):
            return
        if isinstance(element, aioxmpp.nonza.SMRequest) and self.stream.sm_enabled:
            self.told = self.stream.sm_inbound_ctr
        self.plain["_process_incoming"](xmlstream, entry)

    def process_outgoing(self, xmlstream, token):
        """aioxmpp drops a stanza that meets a connection which is just closing, or puts it into its queue again,
        or gives up when its `<r/>` does; here all of it counts as sent, so that a resumption sends it again."""
        if self.stream.sm_enabled:
            xmlstream = Closing(xmlstream)
        self.plain["_process_outgoing"](xmlstream, token)


class Closing:
    """A connection of which the stream learns by itself that it is gone: what it refuses is no failure."""

    def __init__(self, xmlstream):
        self.xmlstream = xmlstream

    def send_xso(self, element):
        try:
            self.xmlstream.send_xso(element)
        except Exception as error:
            logging.info("is sent again later: %s", error)


async def nowhere(*_, **__):
    """Where to connect, besides the address that the driver gave: a server of somebody else is none of ours."""
    return []


def manage(client):
    """Makes this client survive; the address it has is the only one that it will ever connect to."""
    aioxmpp.node.discover_connectors = nowhere
    return Managed(client)

"""A client built on slixmpp, driven by commands (see protocol.py)."""

import asyncio
import logging
import sys

import slixmpp
from slixmpp.exceptions import IqError

from flow import Flow
from protocol import commands, emit

logging.basicConfig(stream=sys.stderr, level=logging.WARNING)

# How often, and after which pause, it tries to reconnect: ten seconds in all.
ATTEMPTS = 200
PAUSE = 0.05


class Agent(slixmpp.ClientXMPP):
    """Reports what it receives; answers ping, version and disco through slixmpp's plugins."""

    def __init__(self, command):
        super().__init__(f"{command['jid']}/{command['resource']}", command["password"])
        self.ca_certs = command["ca"]
        self.enable_plaintext = False
        self.enable_starttls = command["security"] == "starttls"
        self.enable_direct_tls = command["security"] == "direct"
        self.auto_reconnect = False
        # Requests are approved by the driver, not by the library.
        self.roster.auto_authorize = None
        self.roster.auto_subscribe = False
        for plugin in ("xep_0030", "xep_0115", "xep_0199"):
            self.register_plugin(plugin)
        self.register_plugin("xep_0092", {"software_name": "slixmpp agent", "version": "1"})
        self.add_event_handler("session_start", self.on_session)
        self.add_event_handler("message", self.on_message)
        self.add_event_handler("presence", self.on_presence)
        self.add_event_handler("roster_update", self.on_roster)
        self.add_event_handler("failed_all_auth", lambda _: emit("failed", reason="authentication"))
        self.add_event_handler("connection_failed", self.on_connection_failed)
        self.address = (command["address"], command["port"])
        self.managed = command["managed"]
        self.leaving = False
        self.down = False
        self.attempts = 0
        self.held = []
        self.muted = False
        self.told = 0
        if self.managed:
            # Before the handler of "disconnected", so that this one comes later.
            self.register_plugin("xep_0198")
            self["xep_0198"].send_ack = self.send_ack
            self.add_filter("in", self.hear)
            # The library's own handlers come first: what is sent again is in the queue before what was held.
            self.add_event_handler("session_resumed", self.on_resumed)
            self.add_event_handler("sm_failed", lambda _: emit("lost"))
        self.add_event_handler("disconnected", self.on_disconnected)

    def on_disconnected(self, _):
        if not self.managed or self.leaving:
            emit("offline")
            return
        # slixmpp stops keeping what is to be acknowledged here, and so loses what is in its queue at this moment.
        self["xep_0198"].enabled_out = True
        if not self.down:
            self.down = True
            self.muted = False
            self.attempts = 0
            emit("suspended", handled=self["xep_0198"].handled, told=self.told)
        self.connect_again()

    def on_connection_failed(self, error):
        if self.down and self.attempts < ATTEMPTS:
            self.connect_again()
        else:
            emit("failed", reason=error)

    def connect_again(self):
        # The library's own attempts begin with a pause of three seconds.
        self.attempts += 1
        self.loop.call_later(PAUSE, self.connect, *self.address)

    def hear(self, stanza):
        """Is deaf to the server's `<a/>` when the driver wants that, until the connection is gone."""
        return None if self.muted and stanza.xml.tag == "{urn:xmpp:sm:3}a" else stanza

    def send_ack(self):
        """Answers the server's `<r/>`, unless it is to be mute as well."""
        if not self.muted:
            self.told = self["xep_0198"].handled
            type(self["xep_0198"]).send_ack(self["xep_0198"])

    def on_resumed(self, resumed):
        management = self["xep_0198"]
        emit("resumed", h=resumed["h"], again=len(management.unacked_queue))
        self.told = management.handled
        self.release()

    def release(self):
        """Connected again: sends what was held."""
        self.down = False
        held, self.held = self.held, []
        for to, body in held:
            self.send_message(mto=to, mbody=body, mtype="chat")

    def say(self, to, body):
        # slixmpp sends what it was given while disconnected before what it sends again after <resumed/>, and
        # then counts both wrongly; so nothing is given to it then.
        if self.down:
            self.held.append((to, body))
        else:
            self.send_message(mto=to, mbody=body, mtype="chat")

    async def on_session(self, _):
        self.told = 0
        self.release()
        await self.get_roster()
        tls = self.socket.version()
        emit("online", jid=self.boundjid.full, mechanism=self["feature_mechanisms"].mech.name, tls=tls)

    def on_message(self, message):
        stamp = message.xml.find("{urn:xmpp:sid:0}stanza-id")
        stamp = None if stamp is None else stamp.get("id")
        emit("message", sender=message["from"], kind=message["type"], body=message["body"], id=stamp)

    def on_presence(self, presence):
        kind = presence.xml.get("type")
        show, status = presence.xml.findtext("{jabber:client}show"), presence["status"] or None
        emit("presence", sender=presence["from"], kind=kind or "available", show=show, status=status)

    def on_roster(self, iq):
        for jid, item in iq["roster"]["items"].items():
            emit("roster", jid=jid, subscription=item["subscription"], ask=item["ask"] or None)

    async def perform(self, command):
        """Carries out one command of the driver."""
        match command["do"]:
            case "presence":
                self.send_presence(pshow=command.get("show"), pstatus=command.get("status"))
            case "subscribe" | "subscribed":
                self.send_presence(pto=command["to"], ptype=command["do"])
            case "message":
                self.say(command["to"], command["body"])
            case "flow":
                self.flow = Flow(lambda body: self.say(command["to"], body))
            case "allow":
                self.flow.allowed = command["count"]
            case "stop":
                self.flow.stop()
            case "mute":
                self.muted = True
                emit("muted")
            case "forget":
                self["xep_0198"].sm_id = "0" * 32
            case "ping":
                await self["xep_0199"].send_ping(command["to"], timeout=10)
                emit("answer", to=command["to"], of="ping")
            case "version":
                iq = await self["xep_0092"].get_version(command["to"], timeout=10)
                emit("answer", to=command["to"], of="version", name=iq["software_version"]["name"])
            case "disco":
                iq = await self["xep_0030"].get_info(command["to"], timeout=10)
                categories = sorted(identity[0] for identity in iq["disco_info"]["identities"])
                emit("answer", to=command["to"], of="disco", identities=",".join(categories))
            case other:
                raise ValueError(f"unknown command {other}")


async def main():
    agent = None
    async for command in commands():
        if command["do"] == "connect":
            agent = Agent(command)
            agent.connect(command["address"], command["port"])
        elif command["do"] == "quit":
            agent.leaving = True
            if agent.managed:
                # Section 4 of XEP-0198 wants a last <a/> before the end, which slixmpp does not send.
                agent["xep_0198"].send_ack()
            await agent.disconnect()
        else:
            try:
                await agent.perform(command)
            except IqError as error:
                emit("refused", of=command["do"], condition=error.condition)


asyncio.run(main())

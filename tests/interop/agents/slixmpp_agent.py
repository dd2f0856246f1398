"""A client built on slixmpp, driven by commands (see protocol.py)."""

import asyncio
import logging
import sys

import slixmpp
from slixmpp.exceptions import IqError

from protocol import commands, emit

logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


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
        self.add_event_handler("connection_failed", lambda e: emit("failed", reason=e))
        self.add_event_handler("disconnected", lambda _: emit("offline"))

    async def on_session(self, _):
        await self.get_roster()
        tls = self.socket.version()
        emit("online", jid=self.boundjid.full, mechanism=self["feature_mechanisms"].mech.name, tls=tls)

    def on_message(self, message):
        emit("message", sender=message["from"], kind=message["type"], body=message["body"])

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
                self.send_message(mto=command["to"], mbody=command["body"], mtype="chat")
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
            await agent.disconnect()
        else:
            try:
                await agent.perform(command)
            except IqError as error:
                emit("refused", of=command["do"], condition=error.condition)


asyncio.run(main())

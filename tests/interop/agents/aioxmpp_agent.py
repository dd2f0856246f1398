"""A client built on aioxmpp, driven by commands (see protocol.py).

aioxmpp leaves channel binding to the application; here it is done, so that
the server's SCRAM-PLUS is tried by a library that others wrote.
"""

import asyncio
import hashlib
import logging
import sys

import aiosasl
import aiosasl.channel_binding
import aioxmpp
import aioxmpp.connector
import aioxmpp.disco.xso as disco_xso
import aioxmpp.ping
import aioxmpp.sasl
import aioxmpp.security_layer
import aioxmpp.version.xso as version_xso
import OpenSSL.SSL

from aioxmpp_managed import manage, stamp
from flow import Flow
from protocol import commands, emit

logging.basicConfig(stream=sys.stderr, level=logging.WARNING)


class BindingType(aioxmpp.xso.XSO):
    """One type of channel binding that the server has."""

    TAG = ("urn:xmpp:sasl-cb:0", "channel-binding")
    type_ = aioxmpp.xso.Attr("type")


@aioxmpp.nonza.StreamFeatures.as_feature_class
class BindingTypes(aioxmpp.xso.XSO):
    """The stream feature of XEP-0440; without it nobody knows which binding -PLUS would mean."""

    TAG = ("urn:xmpp:sasl-cb:0", "sasl-channel-binding")
    types = aioxmpp.xso.ChildList([BindingType])


class Binding(aiosasl.channel_binding.ChannelBindingProvider):
    """tls-exporter (RFC 9266) on TLS 1.3, else tls-server-end-point (RFC 5929) for SHA-256 certificates."""

    def __init__(self, connection):
        self.connection = connection

    @property
    def cb_name(self):
        is_13 = self.connection.get_protocol_version_name() == "TLSv1.3"
        return b"tls-exporter" if is_13 else b"tls-server-end-point"

    def extract_cb_data(self):
        if self.cb_name == b"tls-exporter":
            return self.connection.export_keying_material(b"EXPORTER-Channel-Binding", 32, b"")
        certificate = self.connection.get_peer_certificate()
        der = OpenSSL.crypto.dump_certificate(OpenSSL.crypto.FILETYPE_ASN1, certificate)
        return hashlib.sha256(der).digest()


class Password(aioxmpp.security_layer.SASLProvider):
    """SCRAM with channel binding where the server offers it, else without; never PLAIN."""

    def __init__(self, password):
        self.password = password
        self.used = None

    async def execute(self, client_jid, features, xmlstream, tls_transport):
        async def credentials():
            return client_jid.localpart, self.password

        binding = Binding(tls_transport.get_extra_info("ssl_object"))
        announced = features.get_feature(BindingTypes)
        offered = [t.type_.encode() for t in announced.types] if announced is not None else []
        classes = [aiosasl.SCRAMPLUS, aiosasl.SCRAM] if binding.cb_name in offered else [aiosasl.SCRAM]
        mechanism_class, token = self._find_supported(features, classes)
        if mechanism_class is None:
            return False
        extra = (binding,) if mechanism_class is aiosasl.SCRAMPLUS else ()
        self.used = token[0]
        interface = aioxmpp.sasl.SASLXMPPInterface(xmlstream)
        return await self._execute(interface, mechanism_class(credentials, *extra), token)


def tls_context(ca):
    """Trusts the test server's certificate and no other."""
    context = OpenSSL.SSL.Context(OpenSSL.SSL.TLS_METHOD)
    context.load_verify_locations(ca)
    return context


class Agent:
    """Reports what it receives; answers ping, version and disco through aioxmpp's services."""

    def __init__(self, command):
        self.password = Password(command["password"])
        layer = aioxmpp.security_layer.SecurityLayer(
            lambda: tls_context(command["ca"]),
            aioxmpp.security_layer.PKIXCertificateVerifier,
            True,
            [self.password],
        )
        connector = {
            "starttls": aioxmpp.connector.STARTTLSConnector,
            "direct": aioxmpp.connector.XMPPOverTLSConnector,
        }[command["security"]]()
        jid = aioxmpp.JID.fromstr(f"{command['jid']}/{command['resource']}")
        peer = (command["address"], command["port"], connector)
        self.client = aioxmpp.PresenceManagedClient(jid, layer, override_peer=[peer], max_initial_attempts=1)
        self.roster = self.client.summon(aioxmpp.RosterClient)
        self.presence = self.client.summon(aioxmpp.PresenceClient)
        self.server_presence = self.client.summon(aioxmpp.PresenceServer)
        self.disco = self.client.summon(aioxmpp.DiscoClient)
        self.client.summon(aioxmpp.EntityCapsService)
        self.client.summon(aioxmpp.ping.PingService)
        self.client.summon(aioxmpp.VersionServer).name = "aioxmpp agent"
        dispatcher = self.client.summon(aioxmpp.dispatcher.SimpleMessageDispatcher)
        dispatcher.register_callback(aioxmpp.MessageType.CHAT, None, self.on_message)
        self.roster.on_subscribe.connect(self.on_subscribe)
        self.presence.on_available.connect(self.on_available)
        self.presence.on_changed.connect(self.on_available)
        self.presence.on_unavailable.connect(self.on_available)
        self.roster.on_entry_added.connect(self.on_entry)
        self.roster.on_entry_subscription_state_changed.connect(self.on_entry)
        self.client.on_stream_established.connect(self.on_established)
        self.client.on_failure.connect(lambda error: emit("failed", reason=error))
        self.client.on_stopped.connect(lambda: emit("offline"))
        # It has stream management in any case; with this, it is also made to survive.
        self.managed = manage(self.client) if command["managed"] else None

    def on_established(self):
        transport = self.client.stream._xmlstream.transport.get_extra_info("ssl_object")
        tls = transport.get_protocol_version_name()
        emit("online", jid=self.client.local_jid, mechanism=self.password.used, tls=tls)

    def on_message(self, message):
        emit("message", sender=message.from_, kind="chat", body=message.body.any(), id=stamp(message))

    def say(self, to, body):
        message = aioxmpp.Message(type_=aioxmpp.MessageType.CHAT, to=to)
        message.body[None] = body
        self.client.enqueue(message)

    def on_subscribe(self, presence):
        emit("presence", sender=presence.from_, kind="subscribe")

    def on_available(self, jid, presence):
        show = presence.show.value if presence.show else None
        status = presence.status.any() if presence.status else None
        kind = presence.type_.value or "available"
        emit("presence", sender=presence.from_, kind=kind, show=show, status=status)

    def on_entry(self, entry):
        emit("roster", jid=entry.jid, subscription=entry.subscription, ask=entry.ask)

    async def perform(self, command):
        """Carries out one command of the driver."""
        to = aioxmpp.JID.fromstr(command["to"]) if "to" in command else None
        match command["do"]:
            case "presence":
                show = aioxmpp.PresenceShow(command.get("show"))
                state = aioxmpp.PresenceState(True, show)
                self.server_presence.set_presence(state, status=command.get("status") or {})
            case "subscribe":
                self.roster.subscribe(to)
            case "subscribed":
                self.roster.approve(to)
            case "message":
                self.say(to, command["body"])
            case "flow":
                self.flow = Flow(lambda body: self.say(to, body))
            case "allow":
                self.flow.allowed = command["count"]
            case "stop":
                self.flow.stop()
            case "mute":
                self.managed.muted = True
                emit("muted")
            case "forget":
                self.managed.forget()
            case "ping":
                await aioxmpp.ping.ping(self.client, to)
                emit("answer", to=to, of="ping")
            case "version":
                iq = aioxmpp.IQ(type_=aioxmpp.IQType.GET, to=to, payload=version_xso.Query())
                answer = await self.client.send(iq)
                emit("answer", to=to, of="version", name=answer.name)
            case "disco":
                iq = aioxmpp.IQ(type_=aioxmpp.IQType.GET, to=to, payload=disco_xso.InfoQuery())
                answer = await self.client.send(iq)
                categories = sorted(identity.category for identity in answer.identities)
                emit("answer", to=to, of="disco", identities=",".join(categories))
            case other:
                raise ValueError(f"unknown command {other}")


async def main():
    agent = None
    async for command in commands():
        if command["do"] == "connect":
            agent = Agent(command)
            # Connected without presence; the driver decides when to become available.
            agent.client.presence = aioxmpp.PresenceState(False)
            agent.client.start()
        elif command["do"] == "quit":
            agent.client.stop()
        else:
            try:
                await agent.perform(command)
            except aioxmpp.errors.XMPPError as error:
                emit("refused", of=command["do"], condition=error.condition.value[1])


asyncio.run(main())

// A client built on xmpp.js (@xmpp/client), driven by commands (see protocol.py).
// The library leaves roster, version and disco to the application: they are here.

import readline from "node:readline";

import { client, xml } from "@xmpp/client";

const ROSTER = "jabber:iq:roster";
const VERSION = "jabber:iq:version";
const DISCO = "http://jabber.org/protocol/disco#info";

const emit = (event, fields) => process.stdout.write(JSON.stringify({ event, ...fields }) + "\n");

let xmpp;
let mechanism;

function connect(command) {
  const scheme = command.security === "direct" ? "xmpps" : "xmpp";
  xmpp = client({
    // The name, not the address: on direct TLS the library takes it from here for the certificate.
    service: `${scheme}://${command.jid.split("@")[1]}:${command.port}`,
    domain: command.jid.split("@")[1],
    resource: command.resource,
    credentials: async (authenticate, mechanisms) => {
      mechanism = mechanisms.find((m) => m !== "PLAIN");
      await authenticate({ username: command.jid.split("@")[0], password: command.password }, mechanism);
    },
  });
  xmpp.reconnect.stop();
  // The library's two seconds are short for its own PBKDF2 on a busy machine.
  xmpp.timeout = 20_000;
  xmpp.iqCallee.set(ROSTER, "query", ({ stanza, element }) => {
    // A push is believed only from the own account (RFC 6121 2.1.6).
    const from = stanza.attrs.from;
    if (from && from !== xmpp.jid.bare().toString()) return xml("error", { type: "cancel" });
    for (const { attrs } of element.getChildren("item")) {
      emit("roster", { jid: attrs.jid, subscription: attrs.subscription, ask: attrs.ask });
    }
    return true;
  });
  xmpp.iqCallee.get(VERSION, "query", () =>
    xml("query", { xmlns: VERSION }, xml("name", {}, "xmpp.js agent"), xml("version", {}, "1")),
  );
  xmpp.iqCallee.get(DISCO, "query", () =>
    xml(
      "query",
      { xmlns: DISCO },
      xml("identity", { category: "client", type: "bot" }),
      xml("feature", { var: DISCO }),
      xml("feature", { var: VERSION }),
      xml("feature", { var: "urn:xmpp:ping" }),
    ),
  );
  xmpp.on("stanza", (stanza) => {
    const { from, type } = stanza.attrs;
    if (stanza.is("message") && stanza.getChild("body")) {
      emit("message", { sender: from, kind: type, body: stanza.getChildText("body") });
    } else if (stanza.is("presence")) {
      emit("presence", {
        sender: from,
        kind: type ?? "available",
        show: stanza.getChildText("show") ?? undefined,
        status: stanza.getChildText("status") ?? undefined,
      });
    }
  });
  xmpp.on("error", (error) => emit("failed", { reason: String(error) }));
  xmpp.on("offline", () => emit("offline", {}));
  xmpp.on("online", async (jid) => {
    await xmpp.iqCaller.get(xml("query", { xmlns: ROSTER }));
    emit("online", { jid: jid.toString(), mechanism, tls: xmpp.socket.socket.getProtocol() });
  });
  xmpp.start().catch((error) => emit("failed", { reason: String(error) }));
}

async function perform(command) {
  const { to } = command;
  switch (command.do) {
    case "connect":
      return connect(command);
    case "presence":
      return xmpp.send(
        xml(
          "presence",
          {},
          command.show && xml("show", {}, command.show),
          command.status && xml("status", {}, command.status),
        ),
      );
    case "subscribe":
    case "subscribed":
      return xmpp.send(xml("presence", { to, type: command.do }));
    case "message":
      return xmpp.send(xml("message", { to, type: "chat" }, xml("body", {}, command.body)));
    case "ping":
      await xmpp.iqCaller.get(xml("ping", { xmlns: "urn:xmpp:ping" }), to);
      return emit("answer", { to, of: "ping" });
    case "version": {
      const answer = await xmpp.iqCaller.get(xml("query", { xmlns: VERSION }), to);
      return emit("answer", { to, of: "version", name: answer.getChildText("name") });
    }
    case "disco": {
      const answer = await xmpp.iqCaller.get(xml("query", { xmlns: DISCO }), to);
      const categories = answer.getChildren("identity").map((i) => i.attrs.category);
      return emit("answer", { to, of: "disco", identities: categories.sort().join(",") });
    }
    case "quit":
      return xmpp.stop();
    default:
      throw new Error(`unknown command ${command.do}`);
  }
}

const lines = readline.createInterface({ input: process.stdin });
let turn = Promise.resolve();
lines.on("line", (line) => {
  const command = JSON.parse(line);
  turn = turn
    .then(() => perform(command))
    .catch((error) => emit("refused", { of: command.do, condition: error.condition ?? String(error) }));
});
lines.on("close", () => turn.finally(() => process.exit(0)));

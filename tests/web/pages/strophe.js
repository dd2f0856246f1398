// A client built on Strophe.js, driven by commands (see agents.py).
//
// Over WebSocket it uses Strophe's own stream management and connects again by itself, as a program has to
// that is built on Strophe. Over BOSH it does neither: there, going on where it was is BOSH's affair.

import { carry, report } from "./protocol.js";

const { Strophe, $msg, $pres, $iq } = window;
const { Status } = Strophe;

// Between two attempts to connect again.
const PAUSE = 250;

let connection;
let account;
let online = false;
let suspended = false;
let leaving = false;
// Messages that wait for the connection.
const held = [];

const named = (status) => Object.keys(Status).find((name) => Status[name] === status);

function connect() {
  connection.connect(account.jid, account.password, changed);
}

function changed(status, condition) {
  console.log(`status ${named(status)} ${condition ?? ""}`);
  if (status === Status.CONNECTED) {
    // Strophe forgets all handlers when a connection ends.
    listen();
    if (connection.hasResumed()) report("resumed");
    else if (suspended) report("lost", { jid: connection.jid });
    else report("online", { jid: connection.jid, mechanism: connection._sasl_mechanism.mechname });
    online = true;
    suspended = false;
    for (const [to, body] of held.splice(0)) send(to, body);
  } else if (status === Status.DISCONNECTED) {
    online = false;
    if (leaving) {
      report("offline");
    } else if (connection.sm) {
      if (!suspended) report("suspended");
      suspended = true;
      setTimeout(connect, PAUSE);
    } else {
      report("failed", { reason: `disconnected: ${condition}` });
    }
  } else if (status === Status.AUTHFAIL) {
    report("failed", { reason: `authentication: ${condition}` });
  }
}

const bare = (jid) => Strophe.getBareJidFromJid(jid);

function listen() {
  const all = (name, handle, ns = null, type = null) =>
    connection.addHandler((stanza) => (handle(stanza), true), ns, name, type);
  all("message", (stanza) => {
    const body = stanza.querySelector(":scope > body")?.textContent;
    const stamp = stanza.getElementsByTagNameNS("urn:xmpp:sid:0", "stanza-id")[0];
    if (body !== undefined) {
      const [sender, kind] = [stanza.getAttribute("from"), stanza.getAttribute("type")];
      report("message", { sender, kind, body, id: stamp?.getAttribute("id") });
    }
  });
  all("presence", (stanza) => {
    const text = (name) => stanza.querySelector(`:scope > ${name}`)?.textContent;
    const [jid, kind] = [bare(stanza.getAttribute("from")), stanza.getAttribute("type")];
    if (kind === "subscribe") report("asked", { jid });
    else if (kind === "unavailable") report("contact", { jid, show: "offline" });
    else if (!kind) report("contact", { jid, show: text("show") ?? "online", status: text("status") });
  });
  const push = (stanza) => {
    connection.send($iq({ type: "result", id: stanza.getAttribute("id") }));
    items(stanza);
  };
  all("iq", push, Strophe.NS.ROSTER, "set");
}

function items(stanza) {
  for (const item of stanza.getElementsByTagName("item")) {
    report("roster", { jid: item.getAttribute("jid"), subscription: item.getAttribute("subscription") });
  }
}

function send(to, body) {
  connection.send($msg({ to, type: "chat", id: connection.getUniqueId() }).c("body").t(body));
}

carry({
  connect({ jid, password, resource, service }) {
    account = { jid: `${jid}/${resource}`, password };
    connection = new Strophe.Connection(service, { enableStreamManagement: service.startsWith("ws") });
    connect();
  },
  roster: () =>
    new Promise((resolve, reject) => {
      const query = $iq({ type: "get" }).c("query", { xmlns: Strophe.NS.ROSTER });
      connection.sendIQ(query, (answer) => resolve(items(answer)), reject);
    }),
  presence({ show, status }) {
    const stanza = $pres();
    if (show) stanza.c("show").t(show).up();
    if (status) stanza.c("status").t(status).up();
    connection.send(stanza);
  },
  subscribe: ({ to }) => connection.send($pres({ to, type: "subscribe" })),
  subscribed: ({ to }) => connection.send($pres({ to, type: "subscribed" })),
  message({ to, body }) {
    if (connection.sm && !online) held.push([to, body]);
    else send(to, body);
  },
  quit() {
    leaving = true;
    connection.disconnect();
  },
});

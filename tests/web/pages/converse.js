// Converse.js, driven by commands (see agents.py) through its own interface for plugins.
//
// It connects again by itself and has stream management over WebSocket, both by default. What is sent while it
// has no connection it drops, so that waits here, as a person waits who sees that Converse is offline.

import { carry, report } from "./protocol.js";

const { Strophe } = window.converse.env;
const { Status } = Strophe;
const ASSETS = "/node_modules/converse.js/dist/";

let _converse;
let api;
let account;
let begun = false;
let online = false;
let leaving = false;
// Messages that wait for the connection.
const held = [];

window.converse.plugins.add("waystation-test", {
  initialize() {
    _converse = this._converse;
    api = _converse.api;
    _converse.state.connfeedback.on("change:connection_status", changed);
    api.listen.on("connected", () => ready(false));
    api.listen.on("reconnected", () => ready(true));
    api.listen.on("disconnected", () => report(leaving ? "offline" : "failed", { reason: "disconnected" }));
    api.listen.on("rosterInitialized", watch);
    api.listen.on("contactRequest", (contact) => report("asked", { jid: contact.get("jid") }));
    api.listen.on("contactPresenceChanged", (contact) =>
      report("contact", { jid: contact.get("jid"), show: contact.getStatus(), status: contact.get("status") }),
    );
    api.listen.on("message", ({ attrs }) => {
      if (!attrs.body) return;
      const { from, type, body } = attrs;
      report("message", { sender: from, kind: type, body, id: attrs[`stanza_id ${account}`] });
    });
  },
});

function changed(feedback) {
  const status = feedback.get("connection_status");
  console.log(`status ${Object.keys(Status).find((name) => Status[name] === status)}`);
  if (status === Status.CONNECTED || status === Status.ATTACHED) return;
  if (online && !leaving) {
    if (api.connection.isType("bosh")) report("failed", { reason: `status ${status}` });
    else report("suspended");
  }
  online = false;
}

function ready(again) {
  const connection = api.connection.get();
  if (again) report(connection.hasResumed() ? "resumed" : "lost", { jid: connection.jid });
  else report("online", { jid: connection.jid, mechanism: connection._sasl_mechanism?.mechname });
  begun = true;
  online = true;
  for (const [to, body] of held.splice(0)) send(to, body);
}

function watch(roster) {
  const tell = (contact) => report("roster", { jid: contact.get("jid"), subscription: contact.get("subscription") });
  roster.on("add", tell);
  roster.on("change:subscription", tell);
}

// Contacts' chats. Converse asks for the archive each time that one is opened.
const chats = new Map();

async function chatWith(jid) {
  const contact = Strophe.getBareJidFromJid(jid);
  if (!chats.has(contact)) chats.set(contact, await api.chats.open(contact));
  return chats.get(contact);
}

async function send(to, body) {
  await (await chatWith(to)).sendMessage({ body });
}

// One after the other, in the order of the commands.
let sending = Promise.resolve();

carry({
  async connect({ jid, password, resource, service }) {
    account = jid;
    await window.converse.initialize({
      [service.startsWith("ws") ? "websocket_url" : "bosh_service_url"]: service,
      assets_path: ASSETS,
      auto_login: true,
      blacklisted_plugins: ["converse-omemo", "converse-omemo-views"],
      discover_connection_methods: false,
      i18n: "en",
      jid: `${jid}/${resource}`,
      loglevel: "debug",
      password,
      view_mode: "fullscreen",
      whitelisted_plugins: ["waystation-test"],
    });
  },
  async roster() {
    for (const contact of await api.contacts.get()) {
      report("roster", { jid: contact.get("jid"), subscription: contact.get("subscription") });
    }
  },
  async presence({ show, status }) {
    // Converse has sent the first one by itself.
    if (!show && !status) return;
    await api.user.status.set(show, status);
  },
  subscribe: ({ to }) => api.contacts.add({ jid: to }),
  async subscribed({ to }) {
    (await api.contacts.get(to)).authorize();
  },
  message({ to, body }) {
    if (begun && !online) held.push([to, body]);
    else return (sending = sending.then(() => send(to, body)));
  },
  // What the chat shows of a contact's messages, in its order.
  async shown({ of }) {
    const theirs = (await chatWith(of)).messages.filter((message) => message.get("sender") === "them");
    report("shown", { bodies: theirs.map((message) => message.get("body")).join(" ") });
  },
  async quit() {
    leaving = true;
    await api.user.logout();
  },
});

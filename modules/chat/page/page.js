// Starts Converse.js on the server that this page comes from.
import converse from "./converse.min.js";

const { domain, websocket, bosh, registration } = document.body.dataset;
const { protocol, host, origin } = window.location;

/** An element with a text. */
function element(name, text, more = {}) {
  return Object.assign(document.createElement(name), { textContent: text }, more);
}

// Converse defines only those of its elements that are not there yet. These two say whose server this is.
customElements.define(
  "converse-brand-logo",
  class extends HTMLElement {
    connectedCallback() {
      this.replaceChildren(element("h1", domain), element("p", "Chat on this XMPP server"));
    }
  },
);
customElements.define(
  "converse-footer",
  class extends HTMLElement {
    connectedCallback() {
      this.replaceChildren(
        "XMPP by Waystation, this page by Converse.js. ",
        element("a", "Licences", { href: "/licences" }),
      );
    }
  },
);

const settings = {
  // What Converse loads later comes from here, too.
  assets_path: "/chat",
  notification_icon: "/chat/images/logo/conversejs-filled.svg",
  view_mode: "fullscreen",
  authentication: "login",
  auto_login: false,
  default_domain: domain,
  discover_connection_methods: false,
  allow_registration: registration === "true",
  registration_domain: domain,
  // OMEMO's library is not part of this server.
  blacklisted_plugins: ["converse-omemo", "converse-omemo-views"],
  allow_non_roster_messaging: true,
  message_archiving: "always",
  enable_smacks: true,
  reuse_scram_keys: false,
  // Nothing is asked of other hosts; the page's policy would not let it through either.
  autocomplete_providers_url: "",
  xmpp_providers_url: "",
  providers_link: "",
  embed_3rd_party_media_players: false,
  render_media: false,
  fetch_url_headers: false,
  play_sounds: false,
};
if (websocket) settings.websocket_url = `${protocol.replace("http", "ws")}//${host}${websocket}`;
if (bosh) settings.bosh_service_url = `${origin}${bosh}`;

/** Says what is wrong where the client would be. */
function fail(text) {
  document.body.replaceChildren(element("p", text, { id: "failure", role: "alert" }));
}

if (!websocket && !bosh) {
  fail("This server offers browsers no way to connect: it has neither WebSocket nor BOSH.");
} else {
  try {
    await converse.initialize(settings);
  } catch (error) {
    fail(`The chat client cannot start: ${error.message}`);
  }
}

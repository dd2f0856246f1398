// Starts Converse.js on the server that this page comes from.
import converse from "./converse.min.js";

const { domain, websocket, bosh, registration } = document.body.dataset;
const { protocol, host, origin } = window.location;

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
  allow_message_styling: true,
  allow_user_trust_override: "off",
  message_archiving: "always",
  enable_smacks: true,
  reuse_scram_keys: false,
  show_connection_url_input: false,
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
  const place = document.getElementById("failure");
  place.textContent = text;
  place.hidden = false;
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

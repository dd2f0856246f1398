//! The pages that are written here.

use actix_web::HttpResponse;
use actix_web::http::header;

use crate::Settings;

/// For pages that run nothing.
pub(crate) const PLAIN_POLICY: &str = "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; \
                                       frame-ancestors 'none'";

/// A page with a Content-Security-Policy.
pub(crate) fn respond(html: String, policy: &str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CONTENT_SECURITY_POLICY, policy))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .body(html)
}

/// For the chat page: everything from this server. The client sets styles on elements; browsers do not agree on
/// whether 'self' includes WebSocket, so its addresses are named. `base` is checked: it has no character that means
/// something here.
pub(crate) fn policy(base: &str) -> String {
    let authority = base.split_once("://").map_or("", |(_, authority)| authority);
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; \
         font-src 'self' data:; media-src 'self' data: blob:; connect-src 'self' ws://{authority} wss://{authority}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The page with the client.
pub(crate) fn chat(settings: &Settings, host: &str) -> String {
    let host = escape(host);
    let path = |path: &Option<String>| escape(path.as_deref().unwrap_or_default());
    let head = "<link rel=\"icon\" href=\"/chat/images/favicon.ico\">\n\
         <link rel=\"stylesheet\" href=\"/chat/converse.min.css\">\n\
         <link rel=\"stylesheet\" href=\"/chat/page.css\">\n\
         <script type=\"module\" src=\"/chat/page.js\"></script>\n";
    let body = format!(
        "<body class=\"converse-fullscreen\" data-domain=\"{host}\" data-websocket=\"{websocket}\" \
         data-bosh=\"{bosh}\" data-registration=\"{registration}\">\n\
         <noscript><p>This page is a chat client, which needs JavaScript. Any other XMPP client does as \
         well: log in as user@{host}.</p></noscript>\n\
         <converse-root></converse-root>\n\
         </body>\n",
        websocket = path(&settings.websocket),
        bosh = path(&settings.bosh),
        registration = settings.registration,
    );
    document(&format!("Chat on {host}"), head, &body)
}

/// The page for a connection that the server takes no login on.
pub(crate) fn insecure(host: &str) -> String {
    text_page(
        &format!("The XMPP server of {}", escape(host)),
        "<p>Here your password could be read on its way, so that this server takes no login. Open this page by \
         HTTPS instead; your administrator knows the address.</p>",
    )
}

/// The page of a server that was built without the client.
pub(crate) fn missing(host: &str) -> String {
    let host = escape(host);
    text_page(
        &format!("The XMPP server of {host}"),
        &format!(
            "<p>This server was built without its chat page, which takes npm: install it, touch \
             <code>modules/chat/package.json</code> and build the server again. Until then connect with any XMPP client \
             as <code>user@{host}</code>.</p>"
        ),
    )
}

/// What the pages are made of.
pub(crate) fn licences(converse: Option<&str>) -> String {
    let client = match converse {
        Some(version) => format!(
            "<h2>Converse.js {version}</h2>\n\
             <p>The chat client is Converse.js, copyright JC Brand and contributors, unchanged and without its OMEMO \
             library. It is available under the Mozilla Public License 2.0; its source is at \
             <a href=\"https://github.com/conversejs/converse.js/tree/v{version}\" rel=\"noreferrer\">\
             github.com/conversejs/converse.js</a>. It includes other works, whose licences are in \
             <a href=\"/licences/converse.txt\">the same text</a>, and icons of Font Awesome Free (CC BY 4.0).</p>"
        ),
        None => "<p>This server was built without its chat client.</p>".to_owned(),
    };
    text_page(
        "Licences",
        &format!(
            "<h2>Waystation</h2>\n<p>The server and its own pages are available under the MIT licence or the \
             Apache License 2.0, as you like.</p>\n{client}\n<p><a href=\"/\">Back</a></p>"
        ),
    )
}

fn text_page(title: &str, body: &str) -> String {
    let head = "<link rel=\"stylesheet\" href=\"/chat/page.css\">\n";
    document(title, head, &format!("<body class=\"text\">\n<h1>{title}</h1>\n{body}\n</body>\n"))
}

/// A page of a title, what else is in its head, and its body.
fn document(title: &str, head: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n\
         <html lang=\"en\">\n\
         <head>\n\
         <meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n\
         {head}\
         </head>\n\
         {body}\
         </html>\n"
    )
}

/// Text as HTML, also within quotes.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        let settings = Settings { websocket: Some("/a\"b".into()), ..Settings::default() };
        let html = chat(&settings, "<script>'");
        assert!(html.contains("&lt;script&gt;&#39;") && html.contains("/a&quot;b"), "{html}");
        assert!(!html.contains("<script>'"));
    }

    #[test]
    fn the_policy_names_only_the_server_itself() {
        let policy = policy("https://chat.example:5281");
        assert!(
            policy.contains("connect-src 'self' ws://chat.example:5281 wss://chat.example:5281;"),
            "{policy}"
        );
        assert!(!policy.contains('*') && !policy.contains("unsafe-eval"));
    }
}

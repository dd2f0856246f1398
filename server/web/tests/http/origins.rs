//! Pages of other origins: SECURITY M7, M15.

use waystation_web::Settings;

use crate::common::*;

fn server(origins: &[&str]) -> Server {
    let settings = Settings {
        origins: origins.iter().map(|&origin| origin.to_owned()).collect(),
        cross_origin: vec!["/echo".to_owned()],
        ..Settings::default()
    };
    Wanted { settings, ..Wanted::default() }.start()
}

const PREFLIGHT: &str = "Access-Control-Request-Method: POST";

#[actix_rt::test]
async fn any_origin_may_if_all_may_but_without_credentials() {
    let server = server(&["*"]);
    let response = server.request("OPTIONS /echo", &["Origin: https://a.example", PREFLIGHT]).await;
    assert_eq!(status(&response), 204);
    assert_eq!(header(&response, "access-control-allow-origin"), Some("*"));
    assert_eq!(header(&response, "access-control-allow-methods"), Some("GET, POST, OPTIONS"));
    assert_eq!(header(&response, "access-control-allow-headers"), Some("Content-Type"));
    assert_eq!(header(&response, "access-control-allow-credentials"), None);
    let response = server.request("POST /echo", &["Origin: https://a.example", "Content-Length: 0"]).await;
    assert_eq!(status(&response), 200);
    assert_eq!(header(&response, "access-control-allow-origin"), Some("*"));
}

#[actix_rt::test]
async fn m7_m15_an_origin_that_is_not_listed_is_refused() {
    let server = server(&["https://a.example"]);
    for line in ["POST /echo", "OPTIONS /echo"] {
        let response =
            server.request(line, &["Origin: https://b.example", PREFLIGHT, "Content-Length: 0"]).await;
        assert_eq!(status(&response), 403, "{line}");
        assert_eq!(header(&response, "access-control-allow-origin"), None, "{line}");
    }
    let junk = server.request("POST /echo", &["Origin: \u{fc}", "Content-Length: 0"]).await;
    assert_eq!(status(&junk), 403);
    let response = server.request("POST /echo", &["Origin: https://a.example", "Content-Length: 0"]).await;
    assert_eq!(status(&response), 200);
    assert_eq!(header(&response, "access-control-allow-origin"), Some("https://a.example"));
    assert_eq!(header(&response, "vary"), Some("Origin"));
    // A page of this server's own, and who is no page.
    let own = server.request("POST /echo", &["Origin: http://localhost", "Content-Length: 0"]).await;
    assert_eq!(status(&own), 200);
    assert_eq!(status(&server.request("POST /echo", &["Content-Length: 0"]).await), 200);
}

#[actix_rt::test]
async fn other_services_are_not_opened() {
    let server = server(&["*"]);
    let response = server.request("GET /info", &["Origin: https://a.example"]).await;
    assert_eq!(header(&response, "access-control-allow-origin"), None);
    assert_eq!(
        status(&server.request("OPTIONS /info", &["Origin: https://a.example", PREFLIGHT]).await),
        404
    );
}

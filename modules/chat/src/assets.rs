//! The embedded files.

use std::io::Read;

use actix_web::HttpResponse;
use actix_web::http::header::{self, HeaderMap};
use bytes::Bytes;
use flate2::read::GzDecoder;

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// An embedded file.
pub(crate) struct Asset {
    /// Where it is served.
    pub(crate) path: &'static str,
    content_type: &'static str,
    /// Differs when the content does.
    tag: &'static str,
    /// Bytes when not compressed.
    pub(crate) len: usize,
    gzip: &'static [u8],
}

/// The file, or word that the client has it (RFC 9110 13.1.2). Clients ask each time: what they have
/// may be of an earlier version of the server.
pub(crate) fn respond(asset: &Asset, headers: &HeaderMap) -> HttpResponse {
    let compressed = accepts_gzip(headers);
    let tag = if compressed { format!("\"{}-gzip\"", asset.tag) } else { format!("\"{}\"", asset.tag) };
    let known = headers.get_all(header::IF_NONE_MATCH).any(|value| {
        value.to_str().is_ok_and(|list| {
            list.split(',').map(str::trim).any(|one| one == "*" || one.trim_start_matches("W/") == tag)
        })
    });
    let mut response = if known { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response
        .insert_header((header::ETAG, tag))
        .insert_header((header::CACHE_CONTROL, "no-cache"))
        .insert_header((header::VARY, "Accept-Encoding"));
    if known {
        return response.finish();
    }
    response.content_type(asset.content_type);
    if compressed {
        response.insert_header((header::CONTENT_ENCODING, "gzip"));
        return response.body(Bytes::from_static(asset.gzip));
    }
    let mut plain = Vec::with_capacity(asset.len);
    match GzDecoder::new(asset.gzip).read_to_end(&mut plain) {
        Ok(_) => response.body(plain),
        // The build compressed it.
        Err(_) => HttpResponse::InternalServerError().finish(),
    }
}

/// RFC 9110 12.5.3.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut accepted = None;
    let values = headers.get_all(header::ACCEPT_ENCODING).filter_map(|value| value.to_str().ok());
    for coding in values.flat_map(|value| value.split(',')) {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = parts.any(|part| {
            part.strip_prefix("q=").is_some_and(|q| q.parse::<f32>().is_ok_and(|weight| weight <= 0.0))
        });
        if name.eq_ignore_ascii_case("gzip") {
            return !refused;
        }
        if name == "*" {
            accepted = Some(!refused);
        }
    }
    accepted.unwrap_or(false)
}

//! Headers: views for decisions, configured operations, and what must not travel between hops.

use std::borrow::Cow;

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, HOST, TE, TRANSFER_ENCODING, UPGRADE},
};
use mesh_core::{http::HeaderView, model::l7::HeaderOps};

/// `x-request-id`.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A header map as decisions see it.
pub struct View<'a>(pub &'a HeaderMap);

impl HeaderView for View<'_> {
    fn get(&self, name: &str) -> Option<Cow<'_, str>> {
        let mut values = self.0.get_all(name).iter();
        let first = String::from_utf8_lossy(values.next()?.as_bytes());
        let mut joined = first;
        for value in values {
            let text = joined.to_mut();
            text.push(',');
            text.push_str(&String::from_utf8_lossy(value.as_bytes()));
        }
        Some(joined)
    }
}

/// Applies `set`, `add`, `remove`; returns the host when `set` names `host` or `:authority`, which is
/// a rewrite of the authority. Names and values that are not legal HTTP are skipped: the control plane
/// has refused them already.
pub fn apply(ops: &HeaderOps, headers: &mut HeaderMap) -> Option<HeaderValue> {
    let mut authority = None;
    for (name, value) in &ops.set {
        let Ok(value) = HeaderValue::from_str(value) else { continue };
        match &**name {
            "host" | ":authority" => authority = Some(value),
            name => {
                if let Ok(name) = HeaderName::try_from(name) {
                    headers.insert(name, value);
                }
            }
        }
    }
    for (name, value) in &ops.add {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(&**name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    for name in &ops.remove {
        headers.remove(&**name);
    }
    authority
}

/// Removes the headers of one hop (RFC 9110 7.6.1); `te: trailers` stays, gRPC needs it. With
/// `upgrade` the handshake of a protocol switch stays as well.
pub fn strip_hop(headers: &mut HeaderMap, upgrade: bool) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|name| HeaderName::try_from(name.trim()).ok())
        .filter(|name| *name != UPGRADE && *name != TE)
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [TRANSFER_ENCODING, KEEP_ALIVE, PROXY_CONNECTION] {
        headers.remove(name);
    }
    if headers.get(TE).is_some_and(|v| v != "trailers") {
        headers.remove(TE);
    }
    if upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(CONNECTION);
        headers.remove(UPGRADE);
    }
}

/// Adds what applications expect of a proxy. `x-forwarded-client-cert` is not added, and one that a
/// client sends is removed: it would be a claim nobody proved.
pub fn forwarded(headers: &mut HeaderMap, request_id: impl FnOnce() -> String) {
    headers.remove("x-forwarded-client-cert");
    headers.entry(FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    if !headers.contains_key(REQUEST_ID)
        && let Ok(id) = HeaderValue::from_str(&request_id())
    {
        headers.insert(REQUEST_ID, id);
    }
}

/// Appends the client's address to `x-forwarded-for`.
pub fn forwarded_for(headers: &mut HeaderMap, client: &HeaderValue) {
    let value = match headers.get(FORWARDED_FOR) {
        None => Some(client.clone()),
        Some(old) => {
            let mut joined = old.as_bytes().to_vec();
            joined.extend_from_slice(b", ");
            joined.extend_from_slice(client.as_bytes());
            HeaderValue::from_bytes(&joined).ok()
        }
    };
    if let Some(value) = value {
        headers.insert(FORWARDED_FOR, value);
    }
}

/// Whether a request asks for a switch to WebSocket. Other protocols are not switched to: over some
/// (h2c) requests would pass that no policy has seen.
pub fn wants_websocket(headers: &HeaderMap) -> bool {
    let asks = |v: &HeaderValue| {
        v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
    };
    let mut protocols = headers.get_all(UPGRADE).iter();
    let websocket = |v: &HeaderValue| v.as_bytes().trim_ascii().eq_ignore_ascii_case(b"websocket");
    protocols.next().is_some_and(websocket)
        && protocols.next().is_none()
        && headers.get_all(CONNECTION).iter().any(asks)
}

/// Whether a message is gRPC.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(http::header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

/// The authority of a request: `:authority`, the host of an absolute URI, or the Host header.
pub fn authority(parts: &http::request::Parts) -> &str {
    match parts.uri.authority() {
        Some(authority) => authority.as_str(),
        None => parts.headers.get(HOST).and_then(|v| v.to_str().ok()).unwrap_or(""),
    }
}

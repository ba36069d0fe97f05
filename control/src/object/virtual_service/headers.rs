//! `headers`: what is set, added and removed on the way.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use mesh_core::model::l7::HeaderOps;

use crate::reader::Reader;

/// Operations on the request and on the response.
pub(super) fn headers(r: &Reader<'_>) -> (HeaderOps, HeaderOps) {
    r.opt("headers", |h| {
        h.known(&["request", "response"]);
        (h.at("request", |o| ops(&o)), h.at("response", |o| ops(&o)))
    })
    .unwrap_or_default()
}

fn ops(o: &Reader<'_>) -> HeaderOps {
    if o.present() {
        o.known(&["set", "add", "remove"]);
    }
    for name in ["add", "remove"] {
        o.at(name, |field| no_host(&field));
    }
    HeaderOps {
        set: pairs(o, "set"),
        add: pairs(o, "add"),
        remove: o.each("remove", |item| name(&item, item.element().unwrap_or_default())),
    }
}

/// There is one host: it can be set, which is a rewrite, but neither added nor removed.
fn no_host(field: &Reader<'_>) {
    let mut names = field.raw().as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    let listed = field.raw().as_array().into_iter().flatten().filter_map(|item| item.as_str());
    if names.any(is_host) || listed.into_iter().any(is_host) {
        field.error("bad-header", "the host can be set but neither added nor removed", "use set");
    }
}

fn is_host(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

fn pairs(o: &Reader<'_>, field: &str) -> Vec<(Arc<str>, Arc<str>)> {
    let map = o.map(field);
    o.at(field, |f| {
        map.into_iter()
            .map(|(key, text)| {
                f.at(&key, |v| value(&v, &text));
                (f.at(&key, |k| name(&k, &key)), text)
            })
            .collect()
    })
}

/// The lower-case name, which waypoints compare; `:authority` is the host.
fn name(field: &Reader<'_>, text: &str) -> Arc<str> {
    if is_host(text) {
        return "host".into();
    }
    if !text.is_empty() && text.parse::<HeaderName>().is_err() {
        let reason = format!("{text:?} is no name of a header");
        field.error("bad-header", reason, "use letters, digits and -");
    }
    text.to_ascii_lowercase().into()
}

fn value(field: &Reader<'_>, text: &str) {
    if HeaderValue::from_str(text).is_err() {
        field.error("bad-header", "the value has a character that no header may have", "correct the value");
    }
    let command = text.split('%').nth(1).unwrap_or_default();
    if text.matches('%').count() > 1 && command.starts_with(|c: char| c.is_ascii_uppercase()) {
        let reason = format!("%{command}% is not replaced: the value is sent as it is written");
        field.warn("unsupported-field", reason, "write the value itself");
    }
}

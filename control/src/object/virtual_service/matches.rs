//! `http[].match[]`: what a request must look like.

use std::sync::Arc;

use http::HeaderName;
use mesh_core::{
    http::match_error,
    model::l7::{HttpMatch, RouteMatch},
};

use crate::reader::Reader;

const MATCH_FIELDS: [&str; 12] = [
    "name",
    "uri",
    "ignoreUriCase",
    "scheme",
    "method",
    "authority",
    "headers",
    "withoutHeaders",
    "queryParams",
    "port",
    "sourceLabels",
    "sourceNamespace",
];

/// One alternative of a route's match.
pub(super) fn http_match(m: &Reader<'_>) -> HttpMatch {
    m.known(&MATCH_FIELDS);
    let one = |name: &str| m.opt(name, |s| string_match(&s, "must be exact, prefix or regex")).flatten();
    HttpMatch {
        name: m.string("name").unwrap_or_default(),
        uri: one("uri"),
        ignore_uri_case: m.flag("ignoreUriCase"),
        scheme: one("scheme"),
        method: one("method"),
        authority: one("authority"),
        headers: header_matches(m, "headers"),
        without_headers: header_matches(m, "withoutHeaders"),
        query: match_map(m, "queryParams"),
        port: m.port("port"),
        source_labels: m.map("sourceLabels"),
        source_namespace: m.string("sourceNamespace"),
    }
}

/// Header names are compared in lower case; one that no request can have is an error.
fn header_matches(m: &Reader<'_>, name: &str) -> Vec<(Arc<str>, RouteMatch)> {
    let matches = match_map(m, name);
    m.at(name, |field| {
        for (header, _) in matches.iter().filter(|(header, _)| header.parse::<HeaderName>().is_err()) {
            let reason = format!("{header:?} is no name of a header, so that it never matches");
            field
                .at(header, |f| f.error("bad-header", reason, "correct it, or use uri, method or authority"));
        }
    });
    matches.into_iter().map(|(header, value)| (header.to_ascii_lowercase().into(), value)).collect()
}

fn match_map(m: &Reader<'_>, name: &str) -> Vec<(Arc<str>, RouteMatch)> {
    m.at(name, |field| {
        field.mapping();
        let keys = field.raw().as_object().into_iter().flatten().map(|(key, _)| key);
        keys.map(|key| {
            let says_nothing =
                |s: &Reader<'_>| s.raw().as_object().map_or(!s.present(), serde_json::Map::is_empty);
            let found = field.at(key, |s| match says_nothing(&s) {
                true => None,
                false => string_match(&s, "must be exact, prefix, regex or empty for any value"),
            });
            (Arc::from(key.as_str()), found.unwrap_or(RouteMatch::Presence))
        })
        .collect()
    })
}

/// Makes a matcher of a text.
type Kind = fn(Arc<str>) -> RouteMatch;

/// One of exact, prefix and regex. A misspelt one would match everything and is an error.
fn string_match(s: &Reader<'_>, want: &str) -> Option<RouteMatch> {
    s.known(&["exact", "prefix", "regex"]);
    let kinds: [(&str, Kind); 3] =
        [("exact", RouteMatch::Exact), ("prefix", RouteMatch::Prefix), ("regex", RouteMatch::Regex)];
    let mut found = kinds.into_iter().filter_map(|(name, of)| Some((name, of(s.string(name)?))));
    let Some((name, first)) = found.next() else {
        s.error("bad-match", want, "write it like {exact: x}");
        return None;
    };
    if found.next().is_some() {
        s.error("bad-match", "only one of exact, prefix and regex can hold", "keep one of them");
    }
    if let Some(reason) = match_error(&first) {
        s.at(name, |f| f.error("bad-regex", reason, "correct the expression (RE2 syntax)"));
    }
    Some(first)
}

//! Paths and queries.

use std::borrow::Cow;

/// Normalises a path as Envoy does for Istio's default `BASE` normalisation: backslashes become
/// slashes, percent-encoded unreserved characters are decoded and dot segments are removed, so that
/// a policy and the application cannot see different paths. None when the path climbs above its root
/// or is not absolute.
pub fn normalise(path: &str) -> Option<Cow<'_, str>> {
    if path == "*" {
        return Some(Cow::Borrowed(path));
    }
    if !path.starts_with('/') {
        return None;
    }
    let plain = !path.contains(['%', '\\']) && !path.contains("/.");
    if plain {
        return Some(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path);
    remove_dot_segments(&decoded).map(Cow::Owned)
}

fn decode_unreserved(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        let code = rest.as_bytes().get(1..3).filter(|_| c == '%').and_then(hex);
        match code.map(char::from) {
            Some(decoded) if decoded.is_ascii_alphanumeric() || matches!(decoded, '-' | '.' | '_' | '~') => {
                out.push(decoded);
                rest = &rest[3..];
            }
            _ => {
                out.push(if c == '\\' { '/' } else { c });
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    out
}

fn hex(pair: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(pair).ok().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()))?;
    u8::from_str_radix(text, 16).ok()
}

fn remove_dot_segments(path: &str) -> Option<String> {
    let mut segments: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in path[1..].split('/') {
        directory = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => drop(segments.pop()?),
            _ => segments.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if directory || out.is_empty() {
        out.push('/');
    }
    Some(out)
}

/// The first value of a query parameter, as it was sent (not percent-decoded, as Envoy).
pub fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

//! Rewrites and redirects.

use std::sync::Arc;

use super::{CompiledRoute, Matched, RequestFacts};
use crate::model::l7::Redirect;

/// The parts of a request that a route replaces; none keeps what the client sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rewritten {
    /// New path without query.
    pub path: Option<String>,
    /// New host.
    pub authority: Option<Arc<str>>,
}

/// Applies `rewrite` of a route: `uri` replaces the matched prefix (or the whole path when the match
/// was something else), a regex replaces every match in the path.
pub fn rewrite(compiled: &CompiledRoute, matched: Matched<'_>, facts: &RequestFacts<'_>) -> Rewritten {
    let Some(rule) = &compiled.route.rewrite else { return Rewritten::default() };
    let path = match (&compiled.uri_regex, &rule.uri) {
        (Some((regex, by)), _) => Some(regex.replace_all(facts.path, by.as_str()).into_owned()),
        (None, Some(uri)) => Some(match matched {
            // A match that ignores case may be written differently: the length is what counts.
            Matched::Prefix(prefix) => format!("{uri}{}", facts.path.get(prefix.len()..).unwrap_or("")),
            Matched::Whole => uri.to_string(),
            // Without a path match the rule acts as prefix "/", as in Istio.
            Matched::Nothing => format!("{uri}{}", facts.path.strip_prefix('/').unwrap_or(facts.path)),
        }),
        (None, None) => None,
    };
    let path = path.map(|p| if p.starts_with('/') { p } else { format!("/{p}") });
    Rewritten { path, authority: rule.authority.clone() }
}

/// The `location` of a redirect: what the rule does not name is kept from the request.
pub fn location(redirect: &Redirect, facts: &RequestFacts<'_>) -> String {
    let scheme = redirect.scheme.as_deref().unwrap_or(facts.scheme);
    let host = redirect.authority.as_deref().unwrap_or(facts.authority);
    let bare = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let (path, query) = match redirect.uri.as_deref() {
        Some(uri) => (uri, if uri.contains('?') { "" } else { facts.query }),
        None => (facts.path, facts.query),
    };
    let mut out = format!("{scheme}://");
    match redirect.port {
        Some(port) if is_default(scheme, port) => out.push_str(bare),
        Some(port) => out.push_str(&format!("{bare}:{port}")),
        // A port that belonged to the other scheme makes no sense after a change of scheme.
        None if scheme != facts.scheme => out.push_str(bare),
        None => out.push_str(host),
    }
    out.push_str(path);
    if !query.is_empty() {
        out.push('?');
        out.push_str(query);
    }
    out
}

fn is_default(scheme: &str, port: u16) -> bool {
    matches!((scheme, port), ("http", 80) | ("https", 443))
}

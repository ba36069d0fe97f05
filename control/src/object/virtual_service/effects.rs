//! What a route does with a request beside sending it somewhere.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};
use mesh_core::{
    http::substitution_error,
    model::l7::{AbortStatus, DirectResponse, Fault, Redirect, RetryCondition, RetryPolicy, Rewrite},
};
use mesh_net::wire::l7::retry_condition;

use crate::reader::Reader;

pub(super) fn rewrite(w: &Reader<'_>) -> Rewrite {
    w.known(&["uri", "uriRegexRewrite", "authority"]);
    let uri = w.string("uri");
    let uri_regex = w.opt("uriRegexRewrite", |x| {
        x.known(&["match", "rewrite"]);
        let pair = (x.required("match"), x.required("rewrite"));
        if let Some(reason) = substitution_error(&pair.0, &pair.1) {
            x.at("match", |f| f.error("bad-regex", reason, "correct the expression (RE2 syntax)"));
        }
        pair
    });
    check_target(w);
    if uri.is_some() && uri_regex.is_some() {
        w.error("conflict", "uri and uriRegexRewrite exclude each other", "keep one of them");
    }
    Rewrite { uri, uri_regex, authority: w.string("authority") }
}

/// A path or host that no request can have would fail each request instead of this document.
fn check_target(r: &Reader<'_>) {
    let wrong = |name: &str, good: fn(&str) -> bool, what: &str| {
        r.opt(name, |f| {
            if let Some(text) = f.raw().as_str().filter(|text| !good(text)) {
                f.error("bad-value", format!("{text:?} is no {what}"), "correct the value");
            }
        });
    };
    wrong("uri", |text| format!("/{text}").parse::<PathAndQuery>().is_ok(), "path");
    wrong("authority", |text| text.parse::<Authority>().is_ok(), "host");
    wrong("scheme", |text| matches!(text, "http" | "https"), "scheme (http or https)");
}

pub(super) fn redirect(d: &Reader<'_>) -> Redirect {
    d.known(&["uri", "authority", "scheme", "port", "redirectCode"]);
    check_target(d);
    let code = d.number("redirectCode", 599).and_then(|c| u16::try_from(c).ok()).unwrap_or(301);
    if ![301, 302, 303, 307, 308].contains(&code) {
        d.at("redirectCode", |f| {
            f.error("bad-value", format!("{code} is no redirect"), "use 301, 302, 303, 307 or 308")
        });
    }
    Redirect {
        code,
        uri: d.string("uri"),
        authority: d.string("authority"),
        scheme: d.string("scheme"),
        port: d.port("port"),
    }
}

pub(super) fn direct(d: &Reader<'_>) -> DirectResponse {
    d.known(&["status", "body"]);
    let body = d.opt("body", |b| {
        b.known(&["string"]);
        b.string("string")
    });
    let status = d.number("status", 599).and_then(|s| u16::try_from(s).ok()).filter(|s| *s >= 200);
    if status.is_none() {
        d.at("status", |f| f.error("bad-value", "status must be 200 to 599", "correct the status"));
    }
    DirectResponse { status: status.unwrap_or(500), body: body.flatten().unwrap_or_default() }
}

pub(super) fn retries(p: &Reader<'_>) -> RetryPolicy {
    p.known(&["attempts", "perTryTimeout", "retryOn", "backoff"]);
    let mut policy = RetryPolicy::default();
    policy.attempts =
        p.number("attempts", 1000).and_then(|n| u32::try_from(n).ok()).unwrap_or(policy.attempts);
    policy.per_try_timeout = p.duration("perTryTimeout").filter(|t| !t.is_zero());
    policy.backoff = p.duration("backoff").unwrap_or(Duration::from_millis(25));
    if let Some(text) = p.string("retryOn").filter(|t| !t.is_empty()) {
        policy.retry_on = p.at("retryOn", |f| retry_on(&f, &text));
    }
    policy
}

/// The conditions of a list. `retriable-status-codes` says only that the codes in it count, as they do here
/// anyway; without codes it says nothing, because the mesh has none by default.
fn retry_on(field: &Reader<'_>, text: &str) -> Vec<RetryCondition> {
    let mut found = Vec::new();
    for name in text.split(',').map(str::trim).filter(|n| !n.is_empty() && *n != "retriable-status-codes") {
        match retry_condition(name) {
            Some(condition) => found.push(condition),
            None => field.warn(
                "unsupported-field",
                format!("condition {name:?} is not supported and repeats nothing"),
                "remove it",
            ),
        }
    }
    if found.is_empty() {
        let reason = "no condition is left, so that nothing is repeated";
        field.warn("no-effect", reason, "name conditions such as 5xx or 503, or set attempts to 0");
    }
    found
}

pub(super) fn fault(f: &Reader<'_>) -> Fault {
    f.known(&["delay", "abort"]);
    Fault { delay: f.opt("delay", |d| delay(&d)).flatten(), abort: f.opt("abort", |a| abort(&a)).flatten() }
}

fn delay(d: &Reader<'_>) -> Option<(Duration, u32)> {
    d.known(&["fixedDelay", "percentage", "percent"]);
    if !d.at("fixedDelay", |f| f.present()) {
        d.error("missing-field", "delay has no fixedDelay", "add one, such as 500ms");
    }
    d.duration("fixedDelay").map(|time| (time, share(d)))
}

fn abort(a: &Reader<'_>) -> Option<(AbortStatus, u32)> {
    a.known(&["httpStatus", "grpcStatus", "percentage", "percent"]);
    let has = |name: &str| a.at(name, |f| f.present());
    let status = match (has("httpStatus"), has("grpcStatus")) {
        (true, true) => {
            a.error("conflict", "httpStatus and grpcStatus exclude each other", "keep one of them");
            None
        }
        (true, false) => a.at("httpStatus", |f| http_status(&f)).map(AbortStatus::Http),
        (false, true) => a.at("grpcStatus", |f| grpc_status(&f)).map(AbortStatus::Grpc),
        (false, false) => {
            a.error("missing-field", "abort has neither httpStatus nor grpcStatus", "add one");
            None
        }
    };
    status.map(|status| (status, share(a)))
}

fn http_status(field: &Reader<'_>) -> Option<u16> {
    let status = field.raw().as_u64().and_then(|s| u16::try_from(s).ok()).filter(|s| (200..600).contains(s));
    if status.is_none() {
        field.error("bad-value", format!("{} is no status", field.raw()), "use 200 to 599");
    }
    status
}

/// Codes of gRPC by number.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A name, as Istio has it, or its number.
fn grpc_status(field: &Reader<'_>) -> Option<u32> {
    let named = |text: &str| GRPC.iter().position(|name| *name == text).map(|code| code as u64);
    let raw = field.raw();
    let code = raw.as_u64().or_else(|| raw.as_str().and_then(|t| named(t).or_else(|| t.parse().ok())));
    let code = code.filter(|code| *code < GRPC.len() as u64).and_then(|code| u32::try_from(code).ok());
    if code.is_none() {
        field.error("bad-value", format!("{raw} is no gRPC status"), "use a name such as UNAVAILABLE");
    }
    code
}

/// Parts per million; 100 % when nothing is said.
fn share(r: &Reader<'_>) -> u32 {
    let percent = r
        .opt("percentage", |p| {
            p.known(&["value"]);
            if p.raw().is_object() && !p.at("value", |v| v.present()) {
                p.error("missing-field", "percentage has no value", "write {value: 50}");
            }
            p.opt("value", |v| percent(&v))
        })
        .unwrap_or_else(|| r.opt("percent", |p| percent(&p)));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=1e6")]
    {
        (percent.unwrap_or(100.0).clamp(0.0, 100.0) * 10_000.0).round() as u32
    }
}

fn percent(field: &Reader<'_>) -> f64 {
    let number = field.raw().as_f64().filter(|n| (0.0..=100.0).contains(n));
    if number.is_none() {
        let reason = format!("{} is no percentage", field.raw());
        field.error("bad-number", reason, "use a number from 0 to 100, without quotes");
    }
    number.unwrap_or(0.0)
}

/// Warns of what has no effect when the route answers by itself.
pub(super) fn answers_itself(r: &Reader<'_>, action: &str) {
    let unused = |r: &Reader<'_>, names: &[&str]| {
        for name in names {
            r.opt(name, |f| {
                let reason = format!("has no effect beside {action}, which sends the request nowhere");
                f.warn("no-effect", reason, "remove it");
            });
        }
    };
    unused(r, &["rewrite", "retries", "timeout"]);
    let headers: &[&str] = if action == "redirect" { &["request", "response"] } else { &["request"] };
    r.opt("headers", |h| unused(&h, headers));
}

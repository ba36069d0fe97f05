//! Fields that would do nothing, or something else than they say: each is named, with a twin that is good.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{
    compile::Compiled,
    finding::{Finding, Severity},
};
use mesh_core::model::l7::{AbortStatus, HttpRoute, RetryCondition, RouteAction, RouteMatch};

const WEB: &str = "kind: Service\nmetadata: {name: web}\nspec: {ports: [{name: http, port: 80}]}\n";

fn compiled(document: &str) -> (Compiled, Vec<Finding>) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), format!("{WEB}---\n{document}")).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    (compiled, report.findings)
}

/// A VirtualService with one route that says this; flow style.
fn route(fields: &str) -> String {
    format!("kind: VirtualService\nmetadata: {{name: vs}}\nspec: {{hosts: [web], http: [{{{fields}}}]}}\n")
}

const TO: &str = "route: [{destination: {host: web}}]";

fn first_route(document: &str) -> HttpRoute {
    let (compiled, findings) = compiled(document);
    assert!(findings.is_empty(), "{document}: {findings:?}");
    compiled.routes.values().next().unwrap().http[0].clone()
}

/// Field below the route, severity and code of the only finding.
fn refused(fields: &str, severity: Severity, field: &str, code: &str) {
    let (_, findings) = compiled(&route(fields));
    let found: Vec<_> = findings.iter().map(|f| (f.severity, &*f.field, f.code)).collect();
    let at = format!("spec.http[0]{field}");
    assert_eq!(found, [(severity, &*at, code)], "{fields}: {findings:?}");
}

#[test]
fn a_route_that_would_lose_something_says_so() {
    use Severity::{Error, Warning};
    for (fields, severity, field, code) in [
        (format!("{TO}, redirect: {{uri: /x}}"), Error, "", "conflict"),
        (format!("{TO}, directResponse: {{status: 200}}"), Error, "", "conflict"),
        ("redirect: {uri: /x}, directResponse: {status: 200}".into(), Error, "", "conflict"),
        ("redirect: {uri: /x}, timeout: 1s".into(), Warning, ".timeout", "no-effect"),
        (
            "redirect: {uri: /x}, headers: {response: {set: {a: b}}}".into(),
            Warning,
            ".headers.response",
            "no-effect",
        ),
        (
            "directResponse: {status: 200}, headers: {request: {set: {a: b}}}".into(),
            Warning,
            ".headers.request",
            "no-effect",
        ),
        (
            format!("{TO}, rewrite: {{uri: /x, uriRegexRewrite: {{match: a, rewrite: b}}}}"),
            Error,
            ".rewrite",
            "conflict",
        ),
    ] {
        refused(&fields, severity, field, code);
    }
    for (target, field) in
        [("uri: '/a b'", "uri"), ("authority: 'a b'", "authority"), ("scheme: ftp", "scheme")]
    {
        refused(&format!("redirect: {{{target}}}"), Error, &format!(".redirect.{field}"), "bad-value");
    }
    refused(&format!("{TO}, rewrite: {{authority: 'x/y'}}"), Error, ".rewrite.authority", "bad-value");
    first_route(&route("redirect: {uri: /x?y=z, authority: a.example.com:8080, scheme: https}"));
    first_route(&route(
        "directResponse: {status: 200, body: {string: hi}}, headers: {response: {set: {a: b}}}",
    ));
}

#[test]
fn a_fault_without_effect_or_with_an_unclear_share_is_refused() {
    use Severity::Error;
    for (fault, field, code) in [
        ("delay: {percentage: {value: 50}}", ".delay", "missing-field"),
        ("delay: {fixedDelay: 1s, percentage: 50}", ".delay.percentage", "wrong-type"),
        ("delay: {fixedDelay: 1s, percentage: {}}", ".delay.percentage", "missing-field"),
        ("abort: {httpStatus: 503, percentage: {value: '50'}}", ".abort.percentage.value", "bad-number"),
        ("abort: {httpStatus: 503, percent: '50'}", ".abort.percent", "bad-number"),
        ("abort: {httpStatus: 503, percent: 101}", ".abort.percent", "bad-number"),
        ("abort: {httpStatus: 100}", ".abort.httpStatus", "bad-value"),
        ("abort: {grpcStatus: BUSY}", ".abort.grpcStatus", "bad-value"),
        ("abort: {httpStatus: 500, grpcStatus: UNAVAILABLE}", ".abort", "conflict"),
    ] {
        refused(&format!("{TO}, fault: {{{fault}}}"), Error, &format!(".fault{field}"), code);
    }
    let good = first_route(&route(&format!(
        "{TO}, fault: {{delay: {{fixedDelay: 1s, percentage: {{value: 0.5}}}}, abort: {{grpcStatus: UNAVAILABLE, percent: 20}}}}"
    )));
    assert_eq!(good.fault.delay.unwrap().1, 5_000);
    assert_eq!(good.fault.abort, Some((AbortStatus::Grpc(14), 200_000)));
    let always = first_route(&route(&format!("{TO}, fault: {{abort: {{httpStatus: 418}}}}")));
    assert_eq!(always.fault.abort, Some((AbortStatus::Http(418), 1_000_000)));
}

#[test]
fn a_header_that_no_message_can_have_is_refused_and_the_host_can_be_set() {
    use Severity::{Error, Warning};
    for (headers, severity, field, code) in [
        ("request: {set: {'a b': x}}", Error, ".request.set.a b", "bad-header"),
        ("request: {set: {':path': /x}}", Error, ".request.set.:path", "bad-header"),
        ("request: {add: {a: \"x\\ny\"}}", Error, ".request.add.a", "bad-header"),
        ("response: {remove: ['x(']}", Error, ".response.remove[0]", "bad-header"),
        ("request: {add: {Host: x}}", Error, ".request.add", "bad-header"),
        ("request: {remove: [':authority']}", Error, ".request.remove", "bad-header"),
        ("request: {set: {a: '%REQ(x)%'}}", Warning, ".request.set.a", "unsupported-field"),
    ] {
        refused(&format!("{TO}, headers: {{{headers}}}"), severity, &format!(".headers{field}"), code);
    }
    for host in ["Host", "host", ":authority"] {
        let route = first_route(&route(&format!("{TO}, headers: {{request: {{set: {{'{host}': other}}}}}}")));
        assert_eq!(route.request_headers.set, [("host".into(), "other".into())], "{host}");
    }
    let mixed = first_route(&route(&format!(
        "{TO}, headers: {{response: {{set: {{X-A: '5%'}}, remove: [Server]}}}}"
    )));
    assert_eq!(mixed.response_headers.set, [("x-a".into(), "5%".into())]);
    assert_eq!(&*mixed.response_headers.remove[0], "server");
}

#[test]
fn a_match_that_would_match_everything_or_never_is_refused() {
    use Severity::Error;
    for (matches, field, code) in [
        ("uri: {}", ".uri", "bad-match"),
        ("uri: {exact: /a, prefix: /b}", ".uri", "bad-match"),
        ("headers: {'bad name': {exact: x}}", ".headers.bad name", "bad-header"),
        ("headers: {':path': {exact: x}}", ".headers.:path", "bad-header"),
        ("headers: [x]", ".headers", "wrong-type"),
    ] {
        refused(&format!("{TO}, match: [{{{matches}}}]"), Error, &format!(".match[0]{field}"), code);
    }
    let (_, findings) = compiled(&route(&format!("{TO}, match: [{{uri: {{exakt: /a}}}}]")));
    assert!(findings.iter().any(|f| f.severity == Severity::Error && f.code == "bad-match"), "{findings:?}");
    let present = first_route(&route(&format!(
        "{TO}, match: [{{headers: {{X-A: {{}}}}, queryParams: {{q: {{regex: '*'}}}}}}]"
    )));
    assert_eq!(present.matches[0].headers, [("x-a".into(), RouteMatch::Presence)]);
}

#[test]
fn an_expression_is_checked_as_waypoints_compile_it() {
    use Severity::Error;
    let large = "((a{100}){100}){100}";
    for (fields, field) in [
        (format!("match: [{{uri: {{regex: '{large}'}}}}]"), ".match[0].uri.regex"),
        ("match: [{headers: {a: {regex: '('}}}]".into(), ".match[0].headers.a.regex"),
        ("match: [{headers: {a: {regex: 'x)(y'}}}]".into(), ".match[0].headers.a.regex"),
        ("rewrite: {uriRegexRewrite: {match: '(', rewrite: /}}".into(), ".rewrite.uriRegexRewrite.match"),
        (
            format!("rewrite: {{uriRegexRewrite: {{match: '{large}', rewrite: /}}}}"),
            ".rewrite.uriRegexRewrite.match",
        ),
        (
            "rewrite: {uriRegexRewrite: {match: '(a)', rewrite: '/\\2'}}".into(),
            ".rewrite.uriRegexRewrite.match",
        ),
    ] {
        refused(&format!("{TO}, {fields}"), Error, field, "bad-regex");
    }
    let good = format!(
        "{TO}, match: [{{uri: {{regex: '*'}}}}], rewrite: {{uriRegexRewrite: {{match: '(a)', rewrite: '/\\1'}}}}"
    );
    assert_eq!(first_route(&route(&good)).matches[0].uri, Some(RouteMatch::Regex("*".into())));
}

#[test]
fn conditions_of_retries_that_are_not_supported_are_named_and_an_empty_list_too() {
    let (_, findings) =
        compiled(&route(&format!("{TO}, retries: {{attempts: 1, retryOn: '5xx,envoy-ratelimited'}}")));
    assert!(
        matches!(&findings[..], [f] if f.code == "unsupported-field" && f.reason.contains("envoy-ratelimited"))
    );
    refused(
        &format!("{TO}, retries: {{retryOn: retriable-status-codes}}"),
        Severity::Warning,
        ".retries.retryOn",
        "no-effect",
    );
    let route = first_route(&route(&format!(
        "{TO}, retries: {{attempts: 1, retryOn: 'retriable-status-codes,503,reset'}}"
    )));
    assert_eq!(route.retries.retry_on, [RetryCondition::Status(503), RetryCondition::Reset]);
    assert!(matches!(route.action, RouteAction::Forward(_)));
}

#[test]
fn a_limit_of_zero_is_no_limit_and_no_time_is_no_time_to_connect() {
    let rule = |fields: &str| {
        format!(
            "kind: DestinationRule\nmetadata: {{name: r}}\nspec: {{host: web, trafficPolicy: {{connectionPool: {{{fields}}}}}}}\n"
        )
    };
    let (zero, findings) =
        compiled(&rule("tcp: {maxConnections: 0}, http: {http2MaxRequests: 0, maxRetries: 3}"));
    let policy = &zero.routes.values().next().unwrap().traffic_policy;
    assert_eq!((policy.max_connections, policy.max_requests, policy.max_retries), (None, None, Some(3)));
    assert!(findings.is_empty());
    let (_, findings) = compiled(&rule("tcp: {connectTimeout: 0s}"));
    assert_eq!(findings[0].code, "bad-duration");
}

#[test]
fn the_api_version_tells_kinds_of_the_same_name_apart() {
    let object = |api: &str, kind: &str| {
        format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: web}}\nspec: {{host: web, hosts: [web], http: [{{{TO}}}], ports: [{{port: 81}}], gatewayClassName: x}}\n"
        )
    };
    for (api, kind, severity, code) in [
        ("serving.knative.dev/v1", "Service", Severity::Info, "unknown-kind"),
        ("networking.istio.io/v1", "Gateway", Severity::Warning, "unsupported-kind"),
        ("networking.istio.io/v2", "VirtualService", Severity::Error, "bad-api-version"),
        ("v1", "DestinationRule", Severity::Error, "bad-api-version"),
        ("example.com/v1", "VirtualService", Severity::Error, "bad-api-version"),
        ("apps/v1", "Service", Severity::Error, "bad-api-version"),
    ] {
        let (compiled, findings) = compiled(&object(api, kind));
        let found: Vec<_> = findings.iter().map(|f| (f.severity, f.code)).collect();
        assert!(found.contains(&(severity, code)), "{api} {kind}: {findings:?}");
        assert_eq!(compiled.services.values().next().unwrap().ports[0].service_port, 80, "{api} {kind}");
    }
    let (_, findings) = compiled(
        &object("networking.istio.io/v1alpha3", "VirtualService")
            .replace("host: web, ", "")
            .replace("ports: [{port: 81}], gatewayClassName: x", ""),
    );
    assert!(findings.is_empty(), "{findings:?}");
    let wrong = "apiVersion: networking.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {action: DENY, rules: [{}]}\n";
    let (compiled, findings) = compiled(wrong);
    assert!(
        compiled.policies.len() == 1 && findings.iter().any(|f| f.code == "closed"),
        "a policy is closed, not left out"
    );
}

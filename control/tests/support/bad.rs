//! The folder of mistakes, and what is said about each.

use std::path::PathBuf;

/// A mistake: file, line, object, field, code, and what the reason says.
pub type Mistake = (&'static str, usize, &'static str, &'static str, &'static str, &'static str);

/// Each error of the folder, in order.
pub const MISTAKES: [Mistake; 26] = [
    ("01-syntax.yaml", 4, "", "", "bad-yaml", "did not find expected ',' or ']'"),
    ("02-no-kind.yaml", 1, "default/a", "kind", "missing-field", "kind is missing"),
    ("03-no-name.yaml", 2, "Service x/", "metadata.name", "missing-field", "name is missing"),
    ("04-bad-name.yaml", 3, "Namespace Not_OK", "metadata.name", "bad-name", "no Kubernetes name"),
    ("05-no-spec.yaml", 1, "Service default/nospec", "spec", "missing-field", "spec is missing"),
    (
        "06-port-range.yaml",
        7,
        "Service default/bigport",
        "spec.ports[0].port",
        "bad-port",
        "80000 is no port",
    ),
    (
        "07-cluster-ip.yaml",
        5,
        "Service default/badip",
        "spec.clusterIP",
        "bad-address",
        "\"10.0.0.300\" is no IP",
    ),
    ("08-pod-ip.yaml", 7, "Pod default/badpod", "status.podIP", "bad-address", "\"nonsense\" is no IP"),
    ("09-hosts.yaml", 5, "VirtualService default/nohosts", "spec.hosts", "missing-field", "missing or empty"),
    (
        "10-timeout.yaml",
        10,
        "VirtualService default/timeout",
        "spec.http[0].timeout",
        "bad-duration",
        "\"soon\"",
    ),
    (
        "11-regex.yaml",
        10,
        "VirtualService default/regex",
        "spec.http[0].match[0].uri.regex",
        "bad-regex",
        "unclosed group",
    ),
    (
        "12-weights.yaml",
        8,
        "VirtualService default/weights",
        "spec.http[0].route",
        "bad-weight",
        "above zero",
    ),
    (
        "13-no-route.yaml",
        8,
        "VirtualService default/noroute",
        "spec.http[0]",
        "missing-field",
        "neither route, redirect",
    ),
    (
        "14-redirect.yaml",
        9,
        "VirtualService default/redirect",
        "spec.http[0].redirect.redirectCode",
        "bad-value",
        "404",
    ),
    (
        "15-abort.yaml",
        11,
        "VirtualService default/abort",
        "spec.http[0].fault.abort",
        "missing-field",
        "neither httpStatus",
    ),
    (
        "16-subset.yaml",
        8,
        "DestinationRule default/twice",
        "spec.subsets[1].name",
        "duplicate-subset",
        "v1 is there twice",
    ),
    (
        "17-lb.yaml",
        8,
        "DestinationRule default/lb",
        "spec.trafficPolicy.loadBalancer.simple",
        "bad-value",
        "BEST",
    ),
    ("18-mode.yaml", 6, "PeerAuthentication default/mode", "spec.mtls.mode", "bad-value", "VERY is no mode"),
    ("19-action.yaml", 5, "AuthorizationPolicy default/action", "spec.action", "bad-value", "CUSTOM"),
    (
        "20-cidr.yaml",
        9,
        "AuthorizationPolicy default/cidr",
        "spec.rules[0].from[0].source.ipBlocks[0]",
        "bad-cidr",
        "10.0.0.0/99",
    ),
    (
        "21-narrowing.yaml",
        8,
        "AuthorizationPolicy default/narrowing",
        "spec.rules[0].from[0].source.requestPrincipals",
        "unsupported-field",
        "would mean something else",
    ),
    (
        "22-duplicate.yaml",
        3,
        "Service default/web",
        "metadata.name",
        "duplicate",
        "00-good.yaml:1, which is used",
    ),
    (
        "23-rewrite.yaml",
        12,
        "VirtualService default/rewrite",
        "spec.http[0].rewrite.uriRegexRewrite.match",
        "bad-regex",
        "unclosed group",
    ),
    (
        "24-header.yaml",
        13,
        "VirtualService default/header",
        "spec.http[0].headers.request.set.bad name",
        "bad-header",
        "\"bad name\" is no name",
    ),
    (
        "25-percent.yaml",
        13,
        "VirtualService default/percent",
        "spec.http[0].fault.abort.percentage.value",
        "bad-number",
        "\"50\" is no percentage",
    ),
    (
        "26-api-version.yaml",
        1,
        "AuthorizationPolicy default/group",
        "apiVersion",
        "bad-api-version",
        "no API version of AuthorizationPolicy",
    ),
];

/// Where the folder is.
pub fn folder() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bad")
}

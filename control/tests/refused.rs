//! Policies that are refused: nothing that they may have meant to restrict stays open.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use control::{
    compile::{self, Compiled, Options},
    finding::{Finding, Severity},
    memory::Memory,
    source::Store,
};
use mesh_core::model::{PolicyAction, PolicyName, PolicyScope, WorkloadUid, l7::L7Target};

const PODS: &str = r#"
kind: Pod
metadata: {name: web-1, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
kind: Pod
metadata: {name: other-1, labels: {app: other}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: other}
status: {podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
---
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, ports: [{name: http, port: 80}]}
"#;

/// A folder that is loaded again and again by one store, as the running control plane does.
struct Cluster {
    folder: tempfile::TempDir,
    store: Store,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("pods.yaml"), PODS).unwrap();
        Self { folder, store: Store::default() }
    }

    fn with(&mut self, policy: &str) -> (Compiled, Vec<Finding>) {
        std::fs::write(self.folder.path().join("policy.yaml"), policy).unwrap();
        self.store.load(self.folder.path());
        let mut memory = Memory::new(control::SERVICE_CIDR, None);
        let compiled = compile::compile(&self.store, &Options::default(), &mut memory);
        let findings = control::all_findings(&self.store, &compiled);
        (compiled, findings)
    }
}

fn once(policy: &str) -> (Compiled, Vec<Finding>) {
    Cluster::new().with(policy)
}

fn authorization(spec: &str) -> String {
    format!("kind: AuthorizationPolicy\nmetadata: {{name: p}}\nspec:\n{spec}")
}

fn policies_of(compiled: &Compiled, pod: &str) -> Vec<PolicyName> {
    compiled.workloads[&WorkloadUid::pod("Kubernetes", "default", pod)].policies.clone()
}

fn p() -> PolicyName {
    PolicyName::new("default", "p")
}

const SELECTED: &str = "  selector: {matchLabels: {app: web}}\n";
const BAD_RULES: &str = "  rules: [{from: [{source: {ipBlocks: [300.0.0.1]}}]}]\n";

#[test]
fn a_refused_allow_allows_nothing_to_what_it_selects_and_leaves_others_alone() {
    let (compiled, findings) = once(&authorization(&format!("{SELECTED}{BAD_RULES}")));
    let policy = &compiled.policies[&p()];
    assert_eq!((policy.action, policy.scope), (PolicyAction::Allow, PolicyScope::Workload));
    assert!(policy.rules.is_empty() && !policy.dry_run);
    assert_eq!(policies_of(&compiled, "web-1"), [p()]);
    assert!(policies_of(&compiled, "other-1").is_empty());
    let closed = findings.iter().find(|f| f.code == "closed").unwrap();
    assert_eq!((closed.severity, &*closed.object), (Severity::Warning, "AuthorizationPolicy default/p"));
    assert!(closed.reason.contains("allows nothing"), "{closed}");
    assert!(findings.iter().any(|f| f.severity == Severity::Error && f.code == "bad-cidr"));
}

#[test]
fn the_same_allow_without_the_mistake_allows_what_it_says() {
    let good = BAD_RULES.replace("300.0.0.1", "10.0.0.9");
    let (compiled, findings) = once(&authorization(&format!("{SELECTED}{good}")));
    assert_eq!(compiled.policies[&p()].rules.len(), 1);
    assert!(findings.is_empty(), "{findings:?}");
}

#[test]
fn a_refused_deny_denies_everything_because_any_part_may_have_been_meant() {
    let (compiled, _) = once(&authorization(&format!("{SELECTED}  action: DENY\n{BAD_RULES}")));
    let policy = &compiled.policies[&p()];
    assert_eq!((policy.action, policy.rules.len()), (PolicyAction::Deny, 1));
    assert!(policy.rules[0].clauses.is_empty(), "no condition: it holds for everybody");
    assert_eq!(policies_of(&compiled, "web-1"), [p()]);
    for unreadable in ["CUSTOM", "[1]"] {
        let (compiled, _) = once(&authorization(&format!("{SELECTED}  action: {unreadable}\n")));
        assert_eq!(compiled.policies[&p()].action, PolicyAction::Deny, "action {unreadable}");
    }
}

#[test]
fn a_selector_that_cannot_be_read_selects_the_whole_namespace() {
    for selector in ["  selector: {matchLabels: {app: 7}}\n", "  selector: [web]\n", "  targetRefs: web\n"] {
        let (compiled, findings) = once(&authorization(selector));
        assert_eq!(compiled.policies[&p()].scope, PolicyScope::Namespace, "{selector}: {findings:?}");
        assert!(compiled.policies[&p()].rules.is_empty());
    }
}

#[test]
fn a_refused_policy_of_a_service_closes_the_service() {
    let spec = format!("  targetRefs: [{{kind: Service, name: web}}]\n{BAD_RULES}");
    let (compiled, _) = once(&authorization(&spec));
    let policy = &compiled.l7_policies[&p()];
    assert!(matches!(&policy.targets[..], [L7Target::Service(s)] if s.hostname.starts_with("web.")));
    assert!(policy.rules.is_empty() && compiled.policies.contains_key(&require_waypoint()));
    assert_eq!(policies_of(&compiled, "web-1"), [require_waypoint()]);
}

fn require_waypoint() -> PolicyName {
    PolicyName::new("default", "culvert_require_waypoint_web.default.svc.cluster.local")
}

#[test]
fn an_earlier_good_version_stays_and_no_stand_in_takes_its_place() {
    let mut cluster = Cluster::new();
    let good = authorization(&format!("{SELECTED}{}", BAD_RULES.replace("300.0.0.1", "10.0.0.9")));
    cluster.with(&good);
    let bad = authorization(&format!("{SELECTED}{BAD_RULES}"));
    let (compiled, findings) = cluster.with(&bad);
    assert_eq!(compiled.policies[&p()].rules.len(), 1, "the good version");
    assert!(findings.iter().any(|f| f.code == "last-good") && findings.iter().all(|f| f.code != "closed"));
}

#[test]
fn a_stand_in_is_no_earlier_version_and_goes_with_its_document() {
    let mut cluster = Cluster::new();
    cluster.with(&authorization("  selector: [web]\n"));
    let (compiled, _) = cluster.with(&authorization(&format!("{SELECTED}{BAD_RULES}")));
    assert_eq!(compiled.policies[&p()].scope, PolicyScope::Workload, "the newer document counts");
    let (compiled, findings) = cluster.with("");
    assert!(compiled.policies.is_empty() && findings.is_empty());
}

#[test]
fn an_unknown_field_or_an_empty_value_refuses_a_policy_instead_of_widening_it() {
    for (spec, field) in [
        ("  rules: [{form: [{source: {principals: [x]}}]}]\n", "spec.rules[0].form"),
        ("  rules: [{from: [{sources: {principals: [x]}}]}]\n", "spec.rules[0].from[0].sources"),
        ("  rules: [{from: [{source: {}}]}]\n", "spec.rules[0].from[0].source"),
        ("  rules: [{to: [{operation: {ports: []}}]}]\n", "spec.rules[0].to[0].operation"),
        ("  rules: [null]\n", "spec.rules[0]"),
        (
            "  rules: [{from: [{source: {ipBlocks: [null, 10.0.0.1]}}]}]\n",
            "spec.rules[0].from[0].source.ipBlocks[0]",
        ),
        ("  rules: [{from: [{source: {principals: ['']}}]}]\n", "spec.rules[0].from[0].source.principals[0]"),
        ("  rules: [{when: [{key: source.ip}]}]\n", "spec.rules[0].when[0]"),
        ("  rules: [{when: [{key: destination.port, values: [http]}]}]\n", "spec.rules[0].when[0].values[0]"),
        ("  action: DENY\n  rule: [{}]\n", "spec.rule"),
    ] {
        let (compiled, findings) = once(&authorization(spec));
        assert!(findings.iter().any(|f| f.severity == Severity::Error && f.field == field), "{findings:?}");
        assert!(findings.iter().any(|f| f.code == "closed"), "{spec}");
        assert_eq!(compiled.policies.len(), 1);
    }
}

#[test]
fn a_refused_policy_that_only_logs_closes_nothing() {
    let logs =
        "kind: AuthorizationPolicy\nmetadata: {name: p, annotations: {istio.io/dry-run: 'true'}}\nspec:\n";
    let (compiled, _) = once(&format!("{logs}{BAD_RULES}"));
    assert!(compiled.policies[&p()].dry_run);
    let (compiled, findings) = once(&authorization("  action: AUDIT\n  rules: [{}]\n"));
    assert!(compiled.policies[&p()].rules.is_empty(), "never matches");
    assert_eq!(
        findings.iter().map(|f| (f.severity, f.code)).collect::<Vec<_>>(),
        [(Severity::Warning, "unsupported-field")]
    );
}

#[test]
fn a_refused_peer_authentication_counts_as_strict() {
    let strict = PolicyName::new("istio-system", "istio_converted_static_strict");
    let peer = |spec: &str| format!("kind: PeerAuthentication\nmetadata: {{name: p}}\nspec:\n{spec}");
    let (compiled, findings) = once(&peer(&format!("{SELECTED}  mtls: {{mode: STRIKT}}\n")));
    assert_eq!(policies_of(&compiled, "web-1"), std::slice::from_ref(&strict));
    assert!(policies_of(&compiled, "other-1").is_empty() && findings.iter().any(|f| f.code == "closed"));
    let (compiled, _) = once(&peer("  mtlss: {mode: STRICT}\n"));
    assert_eq!(policies_of(&compiled, "other-1"), [strict]);
    let (compiled, _) = once(&peer(&format!("{SELECTED}  mtls: {{mode: PERMISSIVE}}\n")));
    assert!(policies_of(&compiled, "web-1").is_empty());
}

#[test]
fn what_is_no_yaml_or_has_no_readable_namespace_selects_nothing_and_is_an_error() {
    for policy in [
        "kind: AuthorizationPolicy\nmetadata: {name: p\n",
        "kind: AuthorizationPolicy\nmetadata: {name: p, namespace: 7}\nspec: {action: DENY}\n",
    ] {
        let (compiled, findings) = once(policy);
        assert!(compiled.policies.is_empty());
        assert!(findings.iter().any(|f| f.severity == Severity::Error && f.file == "policy.yaml"));
    }
    let (compiled, _) = once("kind: AuthorizationPolicy\nmetadata: {}\nspec: {action: DENY}\n");
    assert_eq!(compiled.policies.len(), 1, "without a name the namespace is closed all the same");
}

//! What the programs may do with the API server: each rule with its reason. `docs/rbac.md` is this list.

use serde_json::{Value, json};

use super::{File, Object, global, meta};
use crate::manifest::{AGENT, CONTROL, TRUST_BUNDLE, template::when};

/// Where a rule counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// In every namespace.
    Cluster,
    /// In Culvert's namespace.
    Own,
}

/// What a program may do.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `agent` or `control`.
    pub program: &'static str,
    /// Where.
    pub scope: Scope,
    /// API group; empty is the core one.
    pub group: &'static str,
    /// Resources.
    pub resources: &'static [&'static str],
    /// Only objects of these names, when not empty.
    pub names: &'static [&'static str],
    /// Verbs.
    pub verbs: &'static [&'static str],
    /// Setting without which it is not there.
    pub when: Option<&'static str>,
    /// Why.
    pub why: &'static str,
}

const READ: &[&str] = &["get", "list", "watch"];
const STATUS: &[&str] = &["patch"];
/// Server-side apply asks for `create` besides `patch`.
const KEEP: &[&str] = &["create", "delete", "get", "list", "patch", "watch"];
const APPLY: &[&str] = &["get", "list", "patch", "watch"];
const REPLACE: &[&str] = &["get", "list", "update", "watch"];

const fn rule(
    program: &'static str,
    scope: Scope,
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    why: &'static str,
) -> Rule {
    Rule { program, scope, group, resources, names: &[], verbs, when: None, why }
}

const fn named(rule: Rule, names: &'static [&'static str]) -> Rule {
    Rule { names, ..rule }
}

const fn only(rule: Rule, when: &'static str) -> Rule {
    Rule { when: Some(when), ..rule }
}

use Scope::{Cluster, Own};

/// Every rule.
pub const RULES: &[Rule] = &[
    rule(
        "agent",
        Cluster,
        "",
        &["pods"],
        READ,
        "which pods are on this node and whether they belong to the mesh",
    ),
    rule("agent", Cluster, "", &["namespaces"], READ, "the label that enrols a namespace"),
    rule(
        "agent",
        Cluster,
        "",
        &["pods/status"],
        &["patch"],
        "the annotation `ambient.istio.io/redirection`, by which control planes learn that a pod takes HBONE",
    ),
    only(
        rule(
            "agent",
            Cluster,
            "",
            &["nodes"],
            &["get", "patch"],
            "removal of the taint `culvert.dev/not-ready` from its own node",
        ),
        "agent.readyTaint",
    ),
    rule(
        "control",
        Cluster,
        "",
        &["namespaces", "nodes", "pods", "serviceaccounts", "services"],
        READ,
        "workloads, their nodes and zones, services, labels of the mesh",
    ),
    rule("control", Cluster, "discovery.k8s.io", &["endpointslices"], READ, "endpoints of services"),
    rule(
        "control",
        Cluster,
        "apiextensions.k8s.io",
        &["customresourcedefinitions"],
        READ,
        "which of Istio's and the Gateway API's kinds exist, and when one appears",
    ),
    rule(
        "control",
        Cluster,
        "networking.istio.io",
        &[
            "destinationrules",
            "envoyfilters",
            "gateways",
            "serviceentries",
            "sidecars",
            "virtualservices",
            "workloadentries",
        ],
        READ,
        "routes and services; kinds without effect are read to say so",
    ),
    rule(
        "control",
        Cluster,
        "security.istio.io",
        &["authorizationpolicies", "peerauthentications", "requestauthentications"],
        READ,
        "policies",
    ),
    rule("control", Cluster, "telemetry.istio.io", &["telemetries"], READ, "read to say what has no effect"),
    rule(
        "control",
        Cluster,
        "gateway.networking.k8s.io",
        &["gatewayclasses", "gateways", "grpcroutes", "httproutes"],
        READ,
        "waypoints and routes",
    ),
    rule(
        "control",
        Cluster,
        "networking.istio.io",
        &[
            "destinationrules/status",
            "envoyfilters/status",
            "gateways/status",
            "serviceentries/status",
            "sidecars/status",
            "virtualservices/status",
            "workloadentries/status",
        ],
        STATUS,
        "what was accepted, and what is wrong",
    ),
    rule(
        "control",
        Cluster,
        "security.istio.io",
        &["authorizationpolicies/status", "peerauthentications/status", "requestauthentications/status"],
        STATUS,
        "what was accepted, and what is wrong",
    ),
    rule("control", Cluster, "telemetry.istio.io", &["telemetries/status"], STATUS, "what has no effect"),
    rule("control", Cluster, "", &["services/status"], &["patch"], "what is wrong with a service"),
    rule(
        "control",
        Cluster,
        "gateway.networking.k8s.io",
        &["gatewayclasses/status", "gateways/status"],
        STATUS,
        "conditions of waypoints",
    ),
    rule(
        "control",
        Cluster,
        "authentication.k8s.io",
        &["tokenreviews"],
        &["create"],
        "whether a caller's token is genuine",
    ),
    rule(
        "control",
        Cluster,
        "",
        &["configmaps"],
        &["create"],
        "the trust bundle of a new namespace; a rule for creation cannot name the object",
    ),
    named(
        rule("control", Cluster, "", &["configmaps"], APPLY, "the trust bundle, repaired when edited"),
        &[TRUST_BUNDLE],
    ),
    rule(
        "control",
        Cluster,
        "",
        &["serviceaccounts", "services"],
        &["create", "delete", "patch"],
        "waypoints; only objects that carry Culvert's label are touched",
    ),
    rule("control", Cluster, "apps", &["deployments"], KEEP, "waypoints"),
    rule("control", Cluster, "policy", &["poddisruptionbudgets"], KEEP, "waypoints"),
    named(
        only(
            rule(
                "control",
                Cluster,
                "admissionregistration.k8s.io",
                &["validatingwebhookconfigurations"],
                &["get", "patch"],
                "the roots by which the API server trusts the validating webhook",
            ),
            "validation.enabled",
        ),
        &[CONTROL],
    ),
    rule(
        "control",
        Cluster,
        "events.k8s.io",
        &["events"],
        &["create", "patch"],
        "refused objects are named in events",
    ),
    rule(
        "control",
        Own,
        "",
        &["secrets"],
        &["create"],
        "the root certificate, made once; a rule for creation cannot name the object",
    ),
    named(
        rule(
            "control",
            Own,
            "",
            &["secrets"],
            REPLACE,
            "the root and its rotation; a given intermediate is only read",
        ),
        &["culvert-ca", "cacerts"],
    ),
    named(rule("control", Own, "", &["configmaps"], REPLACE, "what outlives a restart"), &["culvert-state"]),
    rule(
        "control",
        Own,
        "coordination.k8s.io",
        &["leases"],
        &["create"],
        "the lease of the replica that writes",
    ),
    named(
        rule(
            "control",
            Own,
            "coordination.k8s.io",
            &["leases"],
            &["get", "update"],
            "the lease of the replica that writes",
        ),
        &[CONTROL],
    ),
];

fn rules(program: &str, scope: Scope) -> Value {
    let ours = RULES.iter().filter(|rule| rule.program == program && rule.scope == scope);
    let rule = |rule: &Rule| {
        let mut value = json!({"apiGroups": [rule.group], "resources": rule.resources, "verbs": rule.verbs});
        if !rule.names.is_empty() {
            value["resourceNames"] = json!(rule.names);
        }
        match rule.when {
            Some(setting) => when(setting, value),
            None => value,
        }
    };
    ours.map(rule).collect()
}

fn account(name: &str) -> Value {
    json!([{"kind": "ServiceAccount", "name": name, "namespace": "${namespace}"}])
}

fn reference(kind: &str, name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name})
}

pub(super) fn objects() -> Vec<Object> {
    let rbac = "rbac.authorization.k8s.io/v1";
    let mut objects = Vec::new();
    for (name, component) in [(CONTROL, "control"), (AGENT, "agent")] {
        objects.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(name, component), "imagePullSecrets": "${image.pullSecrets}"}));
        objects.push(json!({"apiVersion": rbac, "kind": "ClusterRole", "metadata": global(name, component), "rules": rules(component, Scope::Cluster)}));
        objects.push(json!({"apiVersion": rbac, "kind": "ClusterRoleBinding", "metadata": global(name, component), "roleRef": reference("ClusterRole", name), "subjects": account(name)}));
    }
    objects.push(json!({"apiVersion": rbac, "kind": "Role", "metadata": meta(CONTROL, "control"), "rules": rules("control", Scope::Own)}));
    objects.push(json!({"apiVersion": rbac, "kind": "RoleBinding", "metadata": meta(CONTROL, "control"), "roleRef": reference("Role", CONTROL), "subjects": account(CONTROL)}));
    objects.into_iter().map(|body| Object::new(File::Rbac, body)).collect()
}

//! What an AuthorizationPolicy written in YAML admits and refuses without a waypoint, why, field by field:
//! compiled by the control plane, decided by the code that agents run.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;

use mesh_core::{
    authz::{L4Facts, dry_run_matches},
    hbone::Authority,
    identity::Identity,
    inbound::{self, Arrival, InboundFacts},
    model::{Workload, WorkloadUid},
    outcome::Reason,
    snapshot::{PodRef, Snapshot},
};

const PODS: &str = r#"
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}], conditions: [{type: Ready, status: "True"}]}
"#;

/// Who asks `web`, from where.
#[derive(Clone, Copy, Debug)]
enum Who {
    /// shop/client, 10.1.0.1.
    Client,
    /// shop/other, 10.1.0.2.
    Other,
    /// far/client, 10.2.0.1.
    Far,
    /// No identity, 10.1.0.9.
    Plain,
    /// shop/client over IPv6, fd00:1::1.
    Client6,
    /// No identity, fd00:2::9.
    Plain6,
}
use Who::{Client, Client6, Far, Other, Plain, Plain6};

const EVERYBODY: [Who; 6] = [Client, Other, Far, Plain, Client6, Plain6];

impl Who {
    fn facts(self, snapshot: &Snapshot, port: u16) -> InboundFacts {
        let (account, from) = match self {
            Client => (Some(("shop", "client")), "10.1.0.1"),
            Other => (Some(("shop", "other")), "10.1.0.2"),
            Far => (Some(("far", "client")), "10.2.0.1"),
            Plain => (None, "10.1.0.9"),
            Client6 => (Some(("shop", "client")), "fd00:1::1"),
            Plain6 => (None, "fd00:2::9"),
        };
        let to = if from.contains(':') { "fd00::1" } else { "10.0.0.1" };
        let at = |port| SocketAddr::new(to.parse().unwrap(), port);
        let pod = web(snapshot);
        let arrival = match account {
            Some((namespace, name)) => Arrival::Hbone {
                identity: Identity::new("cluster.local", namespace, name),
                authority: Authority::Address(at(port)),
                forwarded_host: None,
                forwarded_network: None,
            },
            None => Arrival::Plaintext,
        };
        let local = if account.is_some() { at(15008) } else { at(port) };
        InboundFacts {
            pod: PodRef::of(pod),
            local,
            peer: SocketAddr::new(from.parse().unwrap(), 40000),
            arrival,
        }
    }
}

fn web(snapshot: &Snapshot) -> &Workload {
    snapshot.workload(&WorkloadUid::pod("Kubernetes", "shop", "web-1")).unwrap()
}

fn compiled(yaml: &str) -> Snapshot {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("all.yaml"), format!("{PODS}---\n{yaml}")).unwrap();
    let (compiled, report) = control::compile_folder(folder.path());
    assert!(!report.has_errors(), "{yaml}\n{:?}", report.findings);
    compiled.snapshot()
}

/// A policy of a namespace.
fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

fn deny(rule: &str) -> String {
    policy("shop", "deny", &format!("{{action: DENY, rules: [{rule}]}}"))
}

fn allow(rule: &str) -> String {
    policy("shop", "allow", &format!("{{action: ALLOW, rules: [{rule}]}}"))
}

fn refusal(snapshot: &Snapshot, who: Who, port: u16) -> Option<Reason> {
    inbound::admit(snapshot, &who.facts(snapshot, port)).err().map(|refusal| refusal.reason)
}

/// Everybody is let in to 80 but those named, who are refused for the reason.
fn refuses(yaml: &str, refused: &[Who], reason: Reason) -> Vec<String> {
    let snapshot = compiled(yaml);
    let wanted = |who: Who| refused.iter().any(|r| r.identity() == who.identity()).then_some(reason);
    let wrong = EVERYBODY.into_iter().filter(|who| refusal(&snapshot, *who, 80) != wanted(*who));
    wrong.map(|who| format!("{yaml}{who:?}: {:?}", refusal(&snapshot, who, 80))).collect()
}

impl Who {
    fn identity(self) -> u8 {
        self as u8
    }
}

fn none_of(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Fields of `source` and of `when`, and whom they match.
fn matching() -> Vec<(String, Vec<Who>)> {
    let from = |source: &str| format!("{{from: [{{source: {{{source}}}}}]}}");
    let when = |condition: &str| format!("{{when: [{{{condition}}}]}}");
    let all = EVERYBODY.to_vec();
    let shop = vec![Client, Other, Client6];
    let clients = vec![Client, Client6];
    let plain = vec![Plain, Plain6];
    vec![
        (from("principals: [cluster.local/ns/shop/sa/client]"), clients.clone()),
        (from("principals: [cluster.local/ns/shop/*]"), shop.clone()),
        (from("principals: ['*/sa/client']"), vec![Client, Far, Client6]),
        (from("principals: ['*']"), vec![Client, Other, Far, Client6]),
        (from("notPrincipals: ['*']"), plain.clone()),
        (from("notPrincipals: [cluster.local/ns/shop/*]"), vec![Far, Plain, Plain6]),
        (from("namespaces: [shop]"), shop.clone()),
        (from("namespaces: ['s*']"), shop.clone()),
        (from("namespaces: ['*ar']"), vec![Far]),
        (from("namespaces: ['*']"), vec![Client, Other, Far, Client6]),
        (from("notNamespaces: [shop]"), vec![Far, Plain, Plain6]),
        (from("notNamespaces: [far]"), vec![Client, Other, Plain, Client6, Plain6]),
        (from("serviceAccounts: [client]"), clients.clone()),
        (from("serviceAccounts: [far/client, other]"), vec![Far, Other]),
        (from("notServiceAccounts: [client]"), vec![Other, Far, Plain, Plain6]),
        (from("notServiceAccounts: [far/client]"), vec![Client, Other, Plain, Client6, Plain6]),
        (from("ipBlocks: [10.1.0.0/24]"), vec![Client, Other, Plain]),
        (from("ipBlocks: [10.1.0.2/31]"), vec![Other]),
        (from("ipBlocks: [10.1.0.1]"), vec![Client]),
        (from("ipBlocks: ['fd00:1::/32', 10.2.0.0/16]"), vec![Far, Client6]),
        (from("notIpBlocks: [10.0.0.0/8]"), vec![Client6, Plain6]),
        (from("ipBlocks: [10.0.0.0/8], notIpBlocks: [10.1.0.0/16]"), vec![Far]),
        (from("namespaces: [shop], ipBlocks: [10.1.0.0/24]"), vec![Client, Other]),
        (
            "{from: [{source: {namespaces: [far]}}, {source: {serviceAccounts: [other]}}]}".into(),
            vec![Far, Other],
        ),
        ("{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['81']}}]}".into(), vec![]),
        ("{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['80']}}]}".into(), shop.clone()),
        (when("key: source.ip, values: [10.1.0.0/24]"), vec![Client, Other, Plain]),
        (when("key: source.ip, notValues: [10.1.0.0/24, 'fd00::/16']"), vec![Far]),
        (when("key: source.ip, values: ['fd00:2::9']"), vec![Plain6]),
        (when("key: source.namespace, values: [shop]"), shop.clone()),
        (when("key: source.namespace, notValues: [shop]"), vec![Far, Plain, Plain6]),
        (when("key: source.principal, values: ['*/sa/client']"), vec![Client, Far, Client6]),
        (when("key: source.principal, notValues: ['*']"), plain),
        (when("key: destination.ip, values: [10.0.0.0/24]"), vec![Client, Other, Far, Plain]),
        (when("key: destination.ip, notValues: [10.0.0.1]"), vec![Client6, Plain6]),
        (when("key: destination.port, values: ['80', '443']"), all.clone()),
        (when("key: destination.port, values: ['81']"), vec![]),
        (when("key: destination.port, notValues: ['80']"), vec![]),
        (when("key: destination.port, notValues: ['81']"), all.clone()),
        (
            "{when: [{key: source.namespace, values: [shop]}, {key: source.ip, values: [10.0.0.0/8]}]}"
                .into(),
            vec![Client, Other],
        ),
        ("{}".into(), all),
    ]
}

#[test]
fn a_deny_rule_refuses_exactly_whom_each_of_its_fields_matches() {
    let wrong = matching().into_iter().flat_map(|(rule, who)| {
        // "Who has no identity" is how mutual TLS is demanded, and is told so.
        let demands = rule.contains("otPrincipals: ['*']") || rule.contains("notValues: ['*']");
        let reason = if demands { Reason::MtlsRequired } else { Reason::PolicyDenied };
        refuses(&deny(&rule), &who, reason)
    });
    none_of(wrong.collect());
}

#[test]
fn an_allow_rule_lets_in_exactly_whom_each_of_its_fields_matches() {
    let wrong = matching().into_iter().flat_map(|(rule, who)| {
        let named = |one: &Who| who.iter().any(|w| w.identity() == one.identity());
        let others: Vec<Who> = EVERYBODY.into_iter().filter(|one| !named(one)).collect();
        refuses(&allow(&rule), &others, Reason::NoAllowMatched)
    });
    none_of(wrong.collect());
}

#[test]
fn ports_of_an_operation_are_those_of_the_destination() {
    for (operation, matched, other) in [
        ("ports: ['80']", 80, 81),
        ("notPorts: ['80']", 81, 80),
        ("ports: ['80', '90'], notPorts: ['90']", 80, 90),
    ] {
        let rule = format!("{{to: [{{operation: {{{operation}}}}}]}}");
        let (deny, allow) = (compiled(&deny(&rule)), compiled(&allow(&rule)));
        for who in EVERYBODY {
            assert_eq!(refusal(&deny, who, matched), Some(Reason::PolicyDenied), "{operation}, {who:?}");
            assert_eq!(refusal(&deny, who, other), None, "{operation}, {who:?}");
            assert_eq!(refusal(&allow, who, matched), None, "{operation}, {who:?}");
            assert_eq!(refusal(&allow, who, other), Some(Reason::NoAllowMatched), "{operation}, {who:?}");
        }
    }
}

#[test]
fn a_policy_reaches_its_namespace_the_mesh_from_the_root_or_what_it_selects() {
    let spec = |selector: &str| format!("{{{selector}action: DENY, rules: [{{}}]}}");
    let (web, api) = ("selector: {matchLabels: {app: web}}, ", "selector: {matchLabels: {app: api}}, ");
    for (namespace, selector, reaches) in [
        ("shop", "", true),
        ("far", "", false),
        ("istio-system", "", true),
        ("shop", web, true),
        ("shop", api, false),
        ("far", web, false),
        ("istio-system", web, true),
        ("istio-system", api, false),
    ] {
        let refused = if reaches { &EVERYBODY[..] } else { &[] };
        none_of(refuses(&policy(namespace, "p", &spec(selector)), refused, Reason::PolicyDenied));
    }
}

#[test]
fn policies_together_deny_first_and_then_need_one_allow_of_any() {
    let from = |source: &str| format!("{{from: [{{source: {{{source}}}}}]}}");
    let other = policy("shop", "more", &format!("{{rules: [{}]}}", from("namespaces: [far]")));
    let two = allow(&from("serviceAccounts: [client]")) + &other;
    none_of(refuses(&two, &[Other, Plain, Plain6], Reason::NoAllowMatched));
    let rules = from("serviceAccounts: [client]") + ", " + &from("namespaces: [far]");
    none_of(refuses(&allow(&rules), &[Other, Plain, Plain6], Reason::NoAllowMatched));
    let snapshot = compiled(&(two + &deny(&from("ipBlocks: [10.0.0.0/8]"))));
    assert_eq!(refusal(&snapshot, Client, 80), Some(Reason::PolicyDenied), "DENY comes first");
    assert_eq!(refusal(&snapshot, Client6, 80), None);
    assert_eq!(refusal(&snapshot, Plain6, 80), Some(Reason::NoAllowMatched));
    let root =
        policy("istio-system", "mesh", &format!("{{rules: [{}]}}", from("serviceAccounts: [shop/other]")));
    let both = allow(&from("namespaces: [far]")) + &root;
    none_of(refuses(&both, &[Client, Client6, Plain, Plain6], Reason::NoAllowMatched));
}

#[test]
fn an_allow_without_rules_admits_nobody_and_a_deny_without_rules_refuses_nobody() {
    none_of(refuses(&policy("shop", "p", "{}"), &EVERYBODY, Reason::NoAllowMatched));
    none_of(refuses(&policy("shop", "p", "{action: ALLOW}"), &EVERYBODY, Reason::NoAllowMatched));
    none_of(refuses(&policy("shop", "p", "{action: DENY}"), &[], Reason::PolicyDenied));
}

#[test]
fn a_dry_run_policy_refuses_nobody_and_is_reported() {
    let yaml = deny("{from: [{source: {serviceAccounts: [client]}}]}")
        .replace("{name: deny,", "{annotations: {istio.io/dry-run: 'true'}, name: deny,");
    none_of(refuses(&yaml, &[], Reason::PolicyDenied));
    let snapshot = compiled(&yaml);
    let pod = web(&snapshot);
    let told = |name: &str| {
        let facts = L4Facts {
            identity: Some(Identity::new("cluster.local", "shop", name)),
            source_ip: "10.1.0.1".parse().unwrap(),
            destination_ip: "10.0.0.1".parse().unwrap(),
            destination_port: 80,
        };
        dry_run_matches(&snapshot, pod, &facts).len()
    };
    assert_eq!((told("client"), told("other")), (1, 0));
}

/// As Istio: who the client "really" is comes from HTTP headers, so both spellings need a waypoint.
#[test]
fn the_remote_address_is_an_attribute_of_requests_in_either_spelling() {
    for rule in [
        "{from: [{source: {remoteIpBlocks: [10.1.0.0/24]}}]}",
        "{from: [{source: {notRemoteIpBlocks: [10.9.0.0/24]}}]}",
        "{when: [{key: remote.ip, values: [10.1.0.0/24]}]}",
        "{when: [{key: remote.ip, notValues: [10.9.0.0/24]}]}",
    ] {
        none_of(refuses(&allow(rule), &EVERYBODY, Reason::NoAllowMatched));
        none_of(refuses(&deny(rule), &EVERYBODY, Reason::PolicyDenied));
    }
    let partly = "{from: [{source: {namespaces: [shop]}}], when: [{key: remote.ip, values: [10.9.0.0/24]}]}";
    none_of(refuses(&deny(partly), &[Client, Other, Client6], Reason::PolicyDenied));
}

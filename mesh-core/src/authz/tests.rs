use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{
    model::{PolicyName, PolicyScope, WorkloadUid},
    snapshot::Change,
};

fn workload(policies: &[&str]) -> Workload {
    let mut workload = Workload::new(WorkloadUid::pod("Kubernetes", "prod", "web"), "prod", "web");
    workload.policies = policies.iter().map(|name| name.parse().unwrap()).collect();
    workload
}

fn policy(name: &str, scope: PolicyScope, action: PolicyAction, matches: Vec<L4Match>) -> Policy {
    let clauses = vec![L4Clause { matches }];
    Policy { key: name.parse().unwrap(), scope, action, rules: vec![L4Rule { clauses }], dry_run: false }
}

fn world(policies: Vec<Policy>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.apply(policies.into_iter().map(|p| Change::Policy(Arc::new(p))));
    snapshot
}

fn client() -> Identity {
    Identity::new("cluster.local", "shop", "client")
}

fn decide(
    snapshot: &Snapshot,
    workload: &Workload,
    peer: Option<&Identity>,
    port: u16,
) -> Result<(), Reason> {
    let attributes =
        Attributes { peer, source: [10, 0, 0, 1].into(), destination: [10, 0, 0, 2].into(), port };
    authorize(snapshot, workload, &attributes).map_err(|refusal| refusal.reason)
}

fn from_client() -> L4Match {
    let principals = vec![StringMatch::Exact("cluster.local/ns/shop/sa/client".into())];
    L4Match { principals, ..L4Match::default() }
}

#[test]
fn allows_everything_without_policies() {
    assert_eq!(decide(&world(vec![]), &workload(&[]), None, 80), Ok(()));
}

#[test]
fn an_allow_policy_admits_its_principal_and_nobody_else() {
    let world =
        world(vec![policy("prod/web", PolicyScope::Namespace, PolicyAction::Allow, vec![from_client()])]);
    assert_eq!(decide(&world, &workload(&[]), Some(&client()), 80), Ok(()));
    let other = Identity::new("cluster.local", "shop", "other");
    assert_eq!(decide(&world, &workload(&[]), Some(&other), 80), Err(Reason::NoAllowMatched));
    assert_eq!(decide(&world, &workload(&[]), None, 80), Err(Reason::NoAllowMatched));
}

#[test]
fn deny_wins_over_allow_and_names_the_policy() {
    let world = world(vec![
        policy("prod/allow", PolicyScope::Namespace, PolicyAction::Allow, vec![from_client()]),
        policy("prod/deny", PolicyScope::Namespace, PolicyAction::Deny, vec![from_client()]),
    ]);
    let (peer, pod) = (client(), workload(&[]));
    let attributes = Attributes {
        peer: Some(&peer),
        source: [10, 0, 0, 1].into(),
        destination: [10, 0, 0, 2].into(),
        port: 80,
    };
    let refusal = authorize(&world, &pod, &attributes).unwrap_err();
    assert_eq!(refusal.reason, Reason::PolicyDenied);
    assert_eq!(refusal.detail, "explicitly denied by: prod/deny");
}

#[test]
fn strict_refuses_plaintext_and_admits_mutual_tls() {
    let strict = L4Match { not_principals: vec![StringMatch::Presence], ..L4Match::default() };
    let name = "istio-system/istio_converted_static_strict";
    let world = world(vec![policy(name, PolicyScope::Workload, PolicyAction::Deny, vec![strict])]);
    assert_eq!(decide(&world, &workload(&[name]), None, 80), Err(Reason::MtlsRequired));
    assert_eq!(decide(&world, &workload(&[name]), Some(&client()), 80), Ok(()));
    assert_eq!(decide(&world, &workload(&[]), None, 80), Ok(()), "only workloads that name it");
}

#[test]
fn denies_a_workload_whose_policy_is_unknown() {
    assert_eq!(
        decide(&world(vec![]), &workload(&["prod/missing"]), Some(&client()), 80),
        Err(Reason::PolicyUnknown)
    );
}

#[test]
fn an_empty_block_is_no_match_but_a_rule_without_clauses_is() {
    let deny_nothing =
        policy("prod/empty", PolicyScope::Namespace, PolicyAction::Deny, vec![L4Match::default()]);
    assert_eq!(decide(&world(vec![deny_nothing]), &workload(&[]), None, 80), Ok(()));
    let mut deny_all = policy("prod/all", PolicyScope::Namespace, PolicyAction::Deny, vec![]);
    deny_all.rules = vec![L4Rule::default()];
    assert_eq!(decide(&world(vec![deny_all]), &workload(&[]), None, 80), Err(Reason::PolicyDenied));
    let mut allow_nothing = policy("prod/none", PolicyScope::Namespace, PolicyAction::Allow, vec![]);
    allow_nothing.rules.clear();
    assert_eq!(decide(&world(vec![allow_nothing]), &workload(&[]), None, 80), Err(Reason::NoAllowMatched));
}

#[test]
fn policies_of_another_namespace_do_not_apply_and_global_ones_do() {
    let port_80 = L4Match { destination_ports: vec![80], ..L4Match::default() };
    let other = policy("dev/deny", PolicyScope::Namespace, PolicyAction::Deny, vec![port_80.clone()]);
    assert_eq!(decide(&world(vec![other]), &workload(&[]), None, 80), Ok(()));
    let global = policy("istio-system/deny", PolicyScope::Global, PolicyAction::Deny, vec![port_80]);
    let world = world(vec![global]);
    assert_eq!(decide(&world, &workload(&[]), None, 80), Err(Reason::PolicyDenied));
    assert_eq!(decide(&world, &workload(&[]), None, 81), Ok(()));
}

#[test]
fn a_dry_run_policy_changes_nothing() {
    let mut deny = policy("prod/deny", PolicyScope::Namespace, PolicyAction::Deny, vec![from_client()]);
    deny.dry_run = true;
    assert_eq!(decide(&world(vec![deny]), &workload(&[]), Some(&client()), 80), Ok(()));
}

fn any_match() -> impl Strategy<Value = L4Match> {
    let names = || {
        proptest::collection::vec(
            prop_oneof![
                Just(StringMatch::Presence),
                Just(StringMatch::Exact("shop".into())),
                Just(StringMatch::Prefix("s".into())),
                Just(StringMatch::Suffix("p".into())),
            ],
            0..2,
        )
    };
    let ports = || proptest::collection::vec(80_u16..83, 0..2);
    (names(), names(), ports(), ports()).prop_map(
        |(namespaces, not_namespaces, destination_ports, not_destination_ports)| L4Match {
            namespaces,
            not_namespaces,
            destination_ports,
            not_destination_ports,
            ..L4Match::default()
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let rule =
        proptest::collection::vec(proptest::collection::vec(any_match(), 0..3), 0..3).prop_map(|clauses| {
            L4Rule { clauses: clauses.into_iter().map(|matches| L4Clause { matches }).collect() }
        });
    (0_u8..20, any::<bool>(), proptest::collection::vec(rule, 0..3)).prop_map(|(n, deny, rules)| Policy {
        key: PolicyName::new("prod", format!("p{n}")),
        scope: PolicyScope::Namespace,
        action: if deny { PolicyAction::Deny } else { PolicyAction::Allow },
        rules,
        dry_run: false,
    })
}

proptest! {
    #[test]
    fn one_more_deny_policy_never_admits_more(policies in proptest::collection::vec(any_policy(), 0..4), extra in any_policy(), port in 80_u16..83, plain in any::<bool>()) {
        let peer = client();
        let peer = (!plain).then_some(&peer);
        let before = decide(&world(policies.clone()), &workload(&[]), peer, port);
        let mut deny = extra;
        deny.action = PolicyAction::Deny;
        deny.key = PolicyName::new("prod", "extra");
        let after = decide(&world(policies.into_iter().chain([deny]).collect()), &workload(&[]), peer, port);
        prop_assert!(before.is_ok() || after.is_err());
    }
}

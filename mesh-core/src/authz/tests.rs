use proptest::{collection::vec, prelude::*};

use super::{oracle, *};
use crate::{
    delta::Change,
    fixtures::{identity, pod, policy, strict},
    model::PolicyScope,
};

fn facts(peer: Option<&str>) -> L4Facts {
    L4Facts {
        identity: peer.map(identity),
        source_ip: [10, 0, 0, 1].into(),
        destination_ip: [10, 0, 0, 2].into(),
        destination_port: 80,
    }
}

fn from(name: &str) -> L4Match {
    L4Match { principals: vec![StringMatch::Exact(identity(name).principal().into())], ..L4Match::default() }
}

fn ask(policies: Vec<Policy>, named: &[&str], peer: Option<&str>) -> Result<Allowed, Reason> {
    let world = Snapshot::of(policies.into_iter().map(|p| Change::Policy(Arc::new(p))));
    let mut web = pod("web", [10, 0, 0, 2]);
    web.policies = named.iter().map(|n| PolicyName::new("default", *n)).collect();
    check(&world, &web, &facts(peer)).map_err(|refusal| refusal.reason)
}

const NS: PolicyScope = PolicyScope::Namespace;

#[test]
fn without_policy_everything_is_allowed() {
    assert_eq!(ask(vec![], &[], None), Ok(Allowed::ByDefault));
}

#[test]
fn one_allow_policy_denies_the_rest() {
    let allow = || vec![policy("a", NS, PolicyAction::Allow, from("client"))];
    assert_eq!(ask(allow(), &[], Some("client")), Ok(Allowed::ByPolicy(PolicyName::new("default", "a"))));
    assert_eq!(ask(allow(), &[], Some("other")), Err(Reason::NoAllowMatched));
    assert_eq!(ask(allow(), &[], None), Err(Reason::NoAllowMatched));
}

#[test]
fn deny_wins_over_allow() {
    let both = vec![
        policy("a", NS, PolicyAction::Allow, from("client")),
        policy("d", NS, PolicyAction::Deny, from("client")),
    ];
    assert_eq!(ask(both, &[], Some("client")), Err(Reason::PolicyDenied));
}

#[test]
fn strict_refuses_plaintext_by_its_own_reason_and_lets_identities_pass() {
    for scope in [PolicyScope::Global, NS] {
        assert_eq!(ask(vec![strict(scope)], &[], None), Err(Reason::MtlsRequired));
        assert_eq!(ask(vec![strict(scope)], &[], Some("client")), Ok(Allowed::ByDefault));
    }
}

#[test]
fn workload_policies_apply_only_where_they_are_named() {
    let selected = || vec![strict(PolicyScope::Workload)];
    assert_eq!(ask(selected(), &[], None), Ok(Allowed::ByDefault));
    assert_eq!(ask(selected(), &["strict"], None), Err(Reason::MtlsRequired));
}

#[test]
fn a_named_policy_that_is_missing_denies() {
    assert_eq!(ask(vec![], &["gone"], Some("client")), Err(Reason::PolicyUnknown));
    let allow = || vec![policy("a", NS, PolicyAction::Allow, from("client"))];
    assert_eq!(ask(allow(), &["gone"], Some("client")), Err(Reason::PolicyUnknown), "it could deny");
}

#[test]
fn what_a_known_policy_denies_does_not_wait_for_an_unknown_one() {
    let deny = vec![policy("d", NS, PolicyAction::Deny, from("client"))];
    assert_eq!(ask(deny, &["gone"], Some("client")), Err(Reason::PolicyDenied));
}

#[test]
fn namespace_policies_of_other_namespaces_do_not_apply() {
    let mut other = policy("d", NS, PolicyAction::Deny, from("client"));
    other.key.namespace = "other".into();
    assert_eq!(ask(vec![other], &[], Some("client")), Ok(Allowed::ByDefault));
}

#[test]
fn empty_parts_mean_what_istio_says() {
    let with = |rules| {
        let mut p = policy("d", NS, PolicyAction::Deny, L4Match::default());
        p.rules = rules;
        ask(vec![p], &[], None)
    };
    let clause = |matches| L4Clause { matches };
    assert_eq!(with(vec![]), Ok(Allowed::ByDefault), "no rules: never");
    assert_eq!(with(vec![L4Rule::default()]), Err(Reason::PolicyDenied), "a rule without clauses: always");
    assert_eq!(
        with(vec![L4Rule { clauses: vec![clause(vec![])] }]),
        Err(Reason::PolicyDenied),
        "empty clause: true"
    );
    let empty_block = vec![L4Rule { clauses: vec![clause(vec![L4Match::default()])] }];
    assert_eq!(with(empty_block), Ok(Allowed::ByDefault), "empty block: skipped");
}

#[test]
fn an_empty_allow_denies_everything() {
    let mut nothing = policy("a", NS, PolicyAction::Allow, L4Match::default());
    nothing.rules.clear();
    assert_eq!(ask(vec![nothing], &[], Some("client")), Err(Reason::NoAllowMatched));
}

#[test]
fn dry_run_policies_are_reported_and_never_decide() {
    let mut deny = policy("d", NS, PolicyAction::Deny, from("client"));
    deny.dry_run = true;
    let world = Snapshot::of([Change::Policy(Arc::new(deny))]);
    let web = pod("web", [10, 0, 0, 2]);
    assert_eq!(check(&world, &web, &facts(Some("client"))), Ok(Allowed::ByDefault));
    assert_eq!(dry_run_matches(&world, &web, &facts(Some("client"))).len(), 1);
}

#[test]
fn the_refusal_names_the_policy_and_the_peer() {
    let world = Snapshot::of([Change::Policy(Arc::new(policy("d", NS, PolicyAction::Deny, from("client"))))]);
    let text = check(&world, &pod("web", [10, 0, 0, 2]), &facts(Some("client"))).unwrap_err().to_string();
    assert!(text.contains("default/d") && text.contains("sa/client"), "{text}");
}

fn a_string() -> impl Strategy<Value = StringMatch> {
    prop_oneof![
        Just(StringMatch::Presence),
        Just(StringMatch::Exact("default".into())),
        Just(StringMatch::Exact(identity("client").principal().into())),
        Just(StringMatch::Suffix("sa/client".into())),
        Just(StringMatch::Prefix("cluster".into())),
        Just(StringMatch::Prefix("def".into())),
    ]
}

fn few<S: Strategy>(item: S) -> impl Strategy<Value = Vec<S::Value>>
where
    S::Value: Clone,
{
    prop_oneof![3 => Just(Vec::new()), 1 => vec(item, 1..3)]
}

fn a_net() -> impl Strategy<Value = ipnet::IpNet> {
    (0u8..4, prop_oneof![Just(8u8), Just(30), Just(32)])
        .prop_map(|(last, len)| ipnet::IpNet::new([10, 0, 0, last].into(), len).unwrap())
}

fn an_account() -> impl Strategy<Value = ServiceAccountMatch> {
    prop_oneof![Just("client"), Just("other")]
        .prop_map(|sa| ServiceAccountMatch { namespace: "default".into(), service_account: sa.into() })
}

prop_compose! {
    fn a_block()(
        namespaces in few(a_string()), not_namespaces in few(a_string()),
        principals in few(a_string()), not_principals in few(a_string()),
        source_ips in few(a_net()), not_source_ips in few(a_net()),
        destination_ips in few(a_net()), not_destination_ips in few(a_net()),
        destination_ports in few(79u16..82), not_destination_ports in few(79u16..82),
        service_accounts in few(an_account()), not_service_accounts in few(an_account()),
    ) -> L4Match {
        L4Match {
            namespaces, not_namespaces, principals, not_principals, source_ips, not_source_ips, destination_ips,
            not_destination_ips, destination_ports, not_destination_ports, service_accounts, not_service_accounts,
        }
    }
}

fn a_policy() -> impl Strategy<Value = Policy> {
    let clause = vec(a_block(), 0..3).prop_map(|matches| L4Clause { matches });
    let rule = vec(clause, 0..3).prop_map(|clauses| L4Rule { clauses });
    (0u8..6, vec(rule, 0..3), any::<bool>(), any::<bool>(), 0u8..3).prop_map(
        |(n, rules, deny, dry_run, scope)| Policy {
            key: PolicyName::new("default", format!("p{n}")),
            scope: [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::Workload][usize::from(scope)],
            action: if deny { PolicyAction::Deny } else { PolicyAction::Allow },
            rules,
            dry_run,
        },
    )
}

prop_compose! {
    fn some_facts()(peer in prop_oneof![Just(None), Just(Some("client")), Just(Some("other"))], from in 0u8..4, port in 79u16..82)
        -> L4Facts {
        L4Facts { source_ip: [10, 0, 0, from].into(), destination_port: port, ..facts(peer) }
    }
}

proptest! {
    /// The evaluator agrees with a second, naive one written from the specification.
    #[test]
    fn agrees_with_the_naive_evaluator(list in vec(a_policy(), 0..5), named in vec(0u8..6, 0..3), facts in some_facts()) {
        let world = Snapshot::of(list.into_iter().map(|p| Change::Policy(Arc::new(p))));
        let mut web = pod("web", [10, 0, 0, 2]);
        web.policies = named.iter().map(|n| PolicyName::new("default", format!("p{n}"))).collect();
        prop_assert_eq!(check(&world, &web, &facts).is_ok(), oracle::allowed(&world, &web, &facts));
    }

    /// Adding a DENY never admits more.
    #[test]
    fn adding_a_deny_never_admits_more(list in vec(a_policy(), 0..4), mut deny in a_policy(), facts in some_facts()) {
        deny.action = PolicyAction::Deny;
        deny.key = PolicyName::new("default", "added");
        let mut world = Snapshot::of(list.into_iter().map(|p| Change::Policy(Arc::new(p))));
        let web = pod("web", [10, 0, 0, 2]);
        let before = check(&world, &web, &facts).is_ok();
        world.apply([Change::Policy(Arc::new(deny))]);
        prop_assert!(before || check(&world, &web, &facts).is_err());
    }
}

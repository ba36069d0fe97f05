use mesh_core::{
    fixtures::{policy, strict},
    model::{
        L4Match, PolicyAction, PolicyName, PolicyScope, StringMatch,
        l7::{L7Policy, L7Rule, L7Target},
    },
};
use proptest::prelude::*;
use prost::Message;
use prost_types::Any;

use super::*;
use crate::{api::istio::security, wire};

fn resource(type_url: &str, name: &str, value: Vec<u8>) -> Resource {
    let body = Any { type_url: type_url.into(), value };
    Resource { name: name.into(), version: "1".into(), resource: Some(body), ..Resource::default() }
}

/// A client and its world, as one stream fills it.
#[derive(Default)]
struct Client {
    session: Session,
    world: Snapshot,
}

impl Client {
    /// Takes a response; what the client answers.
    fn take(&mut self, type_url: &str, resources: Vec<Resource>, removed: &[&str]) -> Option<String> {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..DeltaDiscoveryResponse::default()
        };
        let (changes, answer, _) = self.session.take(response, &self.world);
        self.world.apply(changes);
        answer.error_detail.map(|status| status.message)
    }

    fn policy(&mut self, name: &str, wire: &security::Authorization) -> Option<String> {
        let sent = resource(wire::AUTHORIZATION_TYPE, name, wire.encode_to_vec());
        self.take(wire::AUTHORIZATION_TYPE, vec![sent], &[])
    }

    /// Scope, action and number of rules of a policy.
    fn held(&self, name: &str) -> Option<(PolicyScope, PolicyAction, usize)> {
        let policy = self.world.policy(&name.parse().unwrap())?;
        Some((policy.scope, policy.action, policy.rules.len()))
    }
}

/// A policy that cannot be read, in a part that does not say what it reaches.
fn damaged(scope: PolicyScope, action: PolicyAction) -> security::Authorization {
    let block = L4Match { principals: vec![StringMatch::Presence], ..L4Match::default() };
    let mut wire = wire::policy::to_authorization(&policy("p", scope, action, block));
    wire.rules[0].clauses[0].matches[0].principals[0].match_type = None;
    wire
}

#[test]
fn a_refused_policy_that_was_never_held_closes_what_it_reaches() {
    for scope in [PolicyScope::Global, PolicyScope::Namespace, PolicyScope::Workload] {
        for (action, rules) in [(PolicyAction::Allow, 0), (PolicyAction::Deny, 1)] {
            let mut client = Client::default();
            let nack = client.policy("default/p", &damaged(scope, action)).unwrap();
            assert!(nack.starts_with("default/p: principals"), "{nack}");
            assert_eq!(client.held("default/p"), Some((scope, action, rules)));
        }
    }
    let mut client = Client::default();
    let strange = security::Authorization { action: 9, ..damaged(PolicyScope::Global, PolicyAction::Allow) };
    client.policy("default/p", &strange).unwrap();
    assert_eq!(client.held("default/p"), Some((PolicyScope::Global, PolicyAction::Deny, 1)));
    let garbage = vec![resource(wire::AUTHORIZATION_TYPE, "default/p", vec![0xff; 9])];
    client.take(wire::AUTHORIZATION_TYPE, garbage, &[]).unwrap();
    assert_eq!(client.held("default/p"), Some((PolicyScope::Namespace, PolicyAction::Deny, 1)));
}

#[test]
fn a_refused_policy_that_was_held_stays_as_it_was() {
    let mut client = Client::default();
    let good = strict(PolicyScope::Namespace);
    assert_eq!(client.policy("default/strict", &wire::policy::to_authorization(&good)), None);
    client.policy("default/strict", &damaged(PolicyScope::Global, PolicyAction::Allow)).unwrap();
    assert_eq!(**client.world.policy(&good.key).unwrap(), good);
    assert_eq!(client.session.versions()[wire::AUTHORIZATION_TYPE]["default/strict"], "1");
}

#[test]
fn a_stand_in_ends_with_a_good_version_or_with_its_removal_and_is_asked_for_again() {
    let mut client = Client::default();
    client.policy("default/p", &damaged(PolicyScope::Global, PolicyAction::Deny)).unwrap();
    let open = client.session.open(wire::AUTHORIZATION_TYPE, Node::default());
    let version = open.initial_resource_versions.get("default/p");
    assert!(version.is_some_and(|version| version != "1"), "{version:?}");
    let good = policy("p", PolicyScope::Workload, PolicyAction::Allow, L4Match::default());
    assert_eq!(client.policy("default/p", &wire::policy::to_authorization(&good)), None);
    assert_eq!(client.held("default/p"), Some((PolicyScope::Workload, PolicyAction::Allow, 1)));

    let mut client = Client::default();
    client.policy("default/p", &damaged(PolicyScope::Global, PolicyAction::Deny)).unwrap();
    client.take(wire::AUTHORIZATION_TYPE, vec![], &["default/p"]);
    assert_eq!(client.held("default/p"), None);
}

#[test]
fn a_waypoints_policy_that_cannot_be_read_closes_what_it_targets() {
    let gateway = L7Target::Gateway { namespace: "default".into(), name: "waypoint".into() };
    let full = L7Policy {
        key: PolicyName::new("default", "p"),
        targets: vec![gateway.clone()],
        action: PolicyAction::Deny,
        rules: vec![L7Rule::default()],
        dry_run: false,
    };
    let mut wire = wire::l7::to_l7_policy(&full);
    wire.rules[0].from.push(Default::default());
    wire.rules[0].from[0].ip_blocks.push("nonsense".into());
    let mut client = Client::default();
    for (body, targets) in [(wire.encode_to_vec(), gateway), (vec![0xff; 9], L7Target::AllWaypoints)] {
        let sent = resource(wire::L7_POLICY_TYPE, "default/p", body);
        client.take(wire::L7_POLICY_TYPE, vec![sent], &[]).unwrap();
        let held = client.world.l7_policies().next().unwrap();
        assert_eq!((&held.targets[..], held.action), (&[targets][..], PolicyAction::Deny));
        assert_eq!(held.rules, [L7Rule::default()]);
    }
}

/// Bytes of a good resource of every type, to damage.
fn good_bytes() -> Vec<(&'static str, Vec<u8>)> {
    let workload = mesh_core::fixtures::pod("web", [10, 0, 0, 1]);
    let service = mesh_core::fixtures::service("web", [10, 96, 0, 1], &[]);
    vec![
        (wire::ADDRESS_TYPE, wire::workload::workload_address(&workload).encode_to_vec()),
        (wire::ADDRESS_TYPE, wire::workload::service_address(&service).encode_to_vec()),
        (wire::AUTHORIZATION_TYPE, damaged(PolicyScope::Global, PolicyAction::Deny).encode_to_vec()),
        (wire::ROUTES_TYPE, vec![]),
        (wire::L7_POLICY_TYPE, vec![]),
        (wire::LABELS_TYPE, vec![]),
    ]
}

proptest! {
    #[test]
    fn random_bytes_of_any_type_never_panic_and_what_is_refused_is_named(
        kind in 0..6usize,
        random in prop::collection::vec(any::<u8>(), 0..64),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        let (type_url, mut damaged) = good_bytes().swap_remove(kind);
        for (at, byte) in hits {
            if !damaged.is_empty() {
                let at = at.index(damaged.len());
                damaged[at] = byte;
            }
        }
        for bytes in [random, damaged] {
            let mut client = Client::default();
            let nack = client.take(type_url, vec![resource(type_url, "default/some.name", bytes)], &[]);
            if let Some(message) = nack {
                prop_assert!(message.starts_with("default/some.name: "), "{message}");
                let names: Vec<_> = client.session.versions()[type_url].values().cloned().collect();
                prop_assert!(names.iter().all(|version| version == stand_in::VERSION), "{names:?}");
            }
        }
    }
}

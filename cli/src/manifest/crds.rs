//! Definitions of Istio's kinds that Culvert reads, for clusters that never had Istio. They name kinds and
//! columns and leave every field to the control plane, which says what is wrong in an object; Istio's own
//! are stricter and are never touched.

use serde_json::{Value, json};

use super::PART_OF;

/// Collection of definitions at the API server.
pub const COLLECTION: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A kind. Names, short names and columns are those that Istio's users type and read.
struct Kind {
    group: &'static str,
    versions: &'static [&'static str],
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    columns: &'static [(&'static str, &'static str)],
}

const NETWORKING: (&str, &[&str]) = ("networking.istio.io", &["v1", "v1beta1", "v1alpha3"]);
const SECURITY: (&str, &[&str]) = ("security.istio.io", &["v1", "v1beta1"]);

const fn kind(
    (group, versions): (&'static str, &'static [&'static str]),
    kind: &'static str,
    plural: &'static str,
    short: &'static str,
    columns: &'static [(&'static str, &'static str)],
) -> Kind {
    Kind { group, versions, kind, plural, short, columns }
}

const KINDS: &[Kind] = &[
    kind(
        NETWORKING,
        "VirtualService",
        "virtualservices",
        "vs",
        &[("Gateways", ".spec.gateways"), ("Hosts", ".spec.hosts")],
    ),
    kind(NETWORKING, "DestinationRule", "destinationrules", "dr", &[("Host", ".spec.host")]),
    kind(
        NETWORKING,
        "ServiceEntry",
        "serviceentries",
        "se",
        &[("Hosts", ".spec.hosts"), ("Location", ".spec.location"), ("Resolution", ".spec.resolution")],
    ),
    kind(NETWORKING, "WorkloadEntry", "workloadentries", "we", &[("Address", ".spec.address")]),
    kind(SECURITY, "AuthorizationPolicy", "authorizationpolicies", "ap", &[("Action", ".spec.action")]),
    kind(SECURITY, "PeerAuthentication", "peerauthentications", "pa", &[("Mode", ".spec.mtls.mode")]),
];

/// Every definition.
pub fn all() -> Vec<Value> {
    KINDS.iter().map(definition).collect()
}

/// Resources by group.
pub fn resources() -> Vec<(&'static str, Vec<&'static str>)> {
    let of = |group: &'static str| {
        (group, KINDS.iter().filter(|kind| kind.group == group).map(|kind| kind.plural).collect())
    };
    [NETWORKING.0, SECURITY.0].map(of).into()
}

fn definition(of: &Kind) -> Value {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let mut columns: Vec<Value> =
        of.columns.iter().map(|(name, path)| column(name, path, "string")).collect();
    columns.push(column("Age", ".metadata.creationTimestamp", "date"));
    // The first version is the one that is stored.
    let version = |(at, name): (usize, &&str)| {
        json!({
            "name": name, "served": true, "storage": at == 0, "subresources": {"status": {}},
            "additionalPrinterColumns": columns,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": open, "status": open}}},
        })
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{}", of.plural, of.group), "labels": {PART_OF.0: PART_OF.1}},
        "spec": {
            "group": of.group, "scope": "Namespaced",
            "names": {
                "kind": of.kind, "listKind": format!("{}List", of.kind), "plural": of.plural,
                "singular": of.kind.to_lowercase(), "shortNames": [of.short], "categories": ["istio-io"],
            },
            "versions": of.versions.iter().enumerate().map(version).collect::<Vec<_>>(),
        },
    })
}

fn column(name: &str, path: &str, kind: &str) -> Value {
    json!({"name": name, "jsonPath": path, "type": kind})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_definition_serves_the_tutorials_versions_and_stores_one() {
        let all = all();
        assert_eq!(all.len(), KINDS.len());
        for definition in &all {
            let versions = definition["spec"]["versions"].as_array().unwrap();
            assert_eq!(versions.iter().filter(|version| version["storage"] == true).count(), 1);
        }
        assert!(all[0]["spec"]["versions"].as_array().unwrap().iter().any(|one| one["name"] == "v1alpha3"));
    }
}

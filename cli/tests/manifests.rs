//! The generated files of the tree, and what kubectl and Kubernetes' own types make of them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use cli::manifest::{
    objects::{
        Object,
        rbac::{RULES, Rule, Scope},
    },
    profile::{PLATFORMS, PROFILES},
    resolve,
    values::Values,
    write,
};
use control::source::kinds::KINDS;
use k8s_openapi::api::{
    admissionregistration::v1 as admission, apps::v1 as apps, core::v1 as core, networking::v1 as networking,
    policy::v1 as policy, rbac::v1 as rbac,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

#[test]
fn the_generated_files_of_the_tree_are_what_the_program_writes() {
    let stale: Vec<_> = write::files()
        .unwrap()
        .into_iter()
        .filter(|(name, text)| fs::read_to_string(root().join(name)).ok().as_ref() != Some(text))
        .map(|(name, _)| name)
        .collect();
    assert!(stale.is_empty(), "stale: {stale:?}; cargo xtask codegen writes them anew");
}

/// What Kubernetes' own type keeps of an object.
fn kept<T: DeserializeOwned + Serialize>(body: &Value) -> Value {
    serde_json::to_value(serde_json::from_value::<T>(body.clone()).unwrap()).unwrap()
}

/// A field that a type does not know gets lost, and so does a misspelled one.
fn lost(path: &str, ours: &Value, theirs: &Value, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                match theirs.get(key) {
                    Some(their) => lost(&format!("{path}.{key}"), value, their, out),
                    None => out.push(format!("{path}.{key}")),
                }
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (at, (our, their)) in ours.iter().zip(theirs).enumerate() {
                lost(&format!("{path}[{at}]"), our, their, out);
            }
        }
        (ours, theirs) if ours == theirs => {}
        _ => out.push(path.to_owned()),
    }
}

fn check(object: &Object) -> Vec<String> {
    let body = &object.body;
    let theirs = match object.kind() {
        "Namespace" => kept::<core::Namespace>(body),
        "Service" => kept::<core::Service>(body),
        "ServiceAccount" => kept::<core::ServiceAccount>(body),
        "ResourceQuota" => kept::<core::ResourceQuota>(body),
        "DaemonSet" => kept::<apps::DaemonSet>(body),
        "Deployment" => kept::<apps::Deployment>(body),
        "ClusterRole" => kept::<rbac::ClusterRole>(body),
        "ClusterRoleBinding" => kept::<rbac::ClusterRoleBinding>(body),
        "Role" => kept::<rbac::Role>(body),
        "RoleBinding" => kept::<rbac::RoleBinding>(body),
        "NetworkPolicy" => kept::<networking::NetworkPolicy>(body),
        "PodDisruptionBudget" => kept::<policy::PodDisruptionBudget>(body),
        "ValidatingWebhookConfiguration" => kept::<admission::ValidatingWebhookConfiguration>(body),
        "GatewayClass" | "PodMonitor" | "ServiceMonitor" => return Vec::new(),
        kind => panic!("{kind}: teach this test its type"),
    };
    let mut out = Vec::new();
    lost(&object.to_string(), body, &theirs, &mut out);
    out
}

fn values(name: Option<&str>) -> Values {
    let mut values = Values::defaults(cli::manifest::NAMESPACE);
    for profile in PROFILES.iter().chain(PLATFORMS).filter(|profile| Some(profile.name) == name) {
        profile.apply(&mut values).unwrap();
    }
    values
}

#[test]
fn every_field_of_every_object_is_one_that_kubernetes_knows() {
    let names = PROFILES.iter().chain(PLATFORMS).map(|profile| profile.name);
    for name in names {
        let mut values = values(Some(name));
        for switch in [
            "agent.readyTaint",
            "monitoring.podMonitor",
            "monitoring.serviceMonitor",
            "control.podDisruptionBudget",
            "resourceQuota.enabled",
            "openshift.enabled",
        ] {
            values.set(&format!("{switch}=true")).unwrap();
        }
        let lost: Vec<_> = resolve::objects(&values).iter().flat_map(check).collect();
        assert!(lost.is_empty(), "{name}: {lost:?}");
    }
}

#[test]
fn agents_are_not_privileged_and_declare_no_port_and_nobody_holds_a_wildcard() {
    let objects = resolve::objects(&values(None));
    let text = |object: &Object| object.body.to_string();
    for object in &objects {
        // The webhook is asked about every version of the kinds that it names.
        let wildcard = text(object).contains("\"*\"") && object.kind() != "ValidatingWebhookConfiguration";
        assert!(!text(object).contains("\"privileged\":true") && !wildcard, "{object}");
        assert!(!text(object).contains("${"), "{object} has a reference left");
    }
    let agent = objects.iter().find(|o| o.kind() == "DaemonSet").unwrap();
    assert!(
        !text(agent).contains("containerPort") && text(agent).contains("\"readOnlyRootFilesystem\":true")
    );
    assert_eq!(agent.body["spec"]["template"]["spec"]["hostPID"], Value::Null);
}

#[test]
fn the_control_plane_may_read_every_kind_that_it_watches_and_no_custom_one_besides() {
    let reads =
        |rule: &&Rule| rule.program == "control" && rule.scope == Scope::Cluster && rule.names.is_empty();
    let may = |group: &str, plural: &str| {
        let of = |rule: &Rule| rule.group == group && rule.resources.contains(&plural);
        RULES.iter().filter(reads).any(|rule| of(rule) && rule.verbs == ["get", "list", "watch"])
    };
    for kind in &KINDS {
        assert!(may(kind.group, kind.plural), "{}.{}", kind.plural, kind.group);
    }
    for rule in RULES.iter().filter(|rule| rule.group.ends_with("istio.io") && rule.verbs.contains(&"watch"))
    {
        for plural in rule.resources {
            let watched = KINDS.iter().any(|kind| kind.group == rule.group && kind.plural == *plural);
            assert!(watched, "{plural}.{} is granted and not watched", rule.group);
        }
    }
}

/// Objects by kind, namespace and name.
fn by_name(documents: impl IntoIterator<Item = Value>) -> BTreeMap<String, Value> {
    let name = |o: &Value| format!("{} {}/{}", o["kind"], o["metadata"]["namespace"], o["metadata"]["name"]);
    documents.into_iter().filter(|o| !o.is_null()).map(|o| (name(&o), o)).collect()
}

#[test]
fn kubectl_builds_every_overlay_into_what_culvert_install_applies() {
    let Ok(probe) = Command::new("kubectl").args(["version", "--client"]).output() else {
        println!("SKIP kubectl_builds_every_overlay_into_what_culvert_install_applies: no kubectl");
        return;
    };
    assert!(probe.status.success());
    let names = PROFILES.iter().chain(PLATFORMS).map(|profile| Some(profile.name));
    for name in std::iter::once(None).chain(names) {
        let folder = name.map_or("manifests".to_owned(), |name| format!("manifests/overlays/{name}"));
        let built = Command::new("kubectl").arg("kustomize").arg(root().join(&folder)).output().unwrap();
        assert!(built.status.success(), "{folder}: {}", String::from_utf8_lossy(&built.stderr));
        let text = String::from_utf8(built.stdout).unwrap();
        let built = by_name(text.split("\n---\n").map(|document| serde_norway::from_str(document).unwrap()));
        let ours = by_name(resolve::objects(&values(name)).into_iter().map(|object| object.body));
        assert_eq!(built.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>(), "{folder}");
        for (key, object) in ours {
            assert_eq!(built[&key], object, "{folder}: {key}");
        }
    }
}

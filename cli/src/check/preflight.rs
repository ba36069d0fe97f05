//! What an installation needs of a cluster.

use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::Value;

use super::{
    finding::{Finding, State},
    nodes,
};
use crate::{
    cluster::{
        Cluster, OLDEST_MINOR,
        access::{Right, may},
        kinds::{collection, group, path, plural},
        pod::text,
    },
    exit::Failure,
    manifest::{crds, objects, resolve, values::Values},
};

const AREA: &str = "cluster";
/// Questions about rights that are asked at the same time.
const AT_ONCE: usize = 8;

/// Istio's and the Gateway API's kinds that Culvert reads, and where their CRDs come from.
const CRDS: &[(&str, &[&str], &str)] = &[
    (
        "networking.istio.io",
        &["virtualservices", "destinationrules", "serviceentries", "workloadentries"],
        ISTIO,
    ),
    ("security.istio.io", &["peerauthentications", "authorizationpolicies"], ISTIO),
    ("gateway.networking.k8s.io", &["gatewayclasses", "gateways"], GATEWAY),
];
const ISTIO: &str = "culvert install and culvert upgrade make those that are missing; so does kubectl apply -k manifests/crds";
const GATEWAY: &str = "kubectl apply --server-side -f https://github.com/kubernetes-sigs/gateway-api/releases/latest/download/standard-install.yaml";

/// Everything that an installation needs.
///
/// # Errors
/// The API server does not answer.
pub async fn look(cluster: &Cluster, namespace: &str) -> Result<Vec<Finding>, Failure> {
    let version = cluster.get("/version").await?.unwrap_or_default();
    let mut findings = vec![server(&cluster.server, &version)];
    let there = cluster.list(crds::COLLECTION, "").await.map_err(Failure::from);
    let defines = there.as_ref().is_ok_and(|there| crds::all().iter().any(|one| !defined(there, name(one))));
    findings.push(rights(cluster, namespace, defines).await?);
    findings.extend(known(there.map(|there| judge_crds(&there))));
    findings.extend(known(neighbours(cluster, namespace).await));
    findings.extend(known(policy(cluster, namespace).await.map(|finding| vec![finding])));
    let nodes = cluster.list(&collection("v1", "Node", ""), "").await.map_err(Failure::from);
    findings.extend(known(nodes.map(|all| nodes::judge(&all))));
    Ok(findings)
}

/// Findings; who may not look learns that, and the rest is looked at all the same.
fn known(looked: Result<Vec<Finding>, Failure>) -> Vec<Finding> {
    looked.unwrap_or_else(|failure| vec![Finding::error(AREA, failure.reason, failure.next)])
}

/// Refuses when something is missing that an installation cannot do without; warnings are said.
///
/// # Errors
/// An error was found and is not to be skipped, or the API server does not answer.
pub async fn demand(cluster: &Cluster, namespace: &str, skip: bool) -> Result<(), Failure> {
    let findings = look(cluster, namespace).await?;
    for finding in findings.iter().filter(|f| f.state != State::Fine) {
        let word = if finding.state == State::Error { "error" } else { "warning" };
        eprintln!("  {word}: {}\n    next: {}", finding.what, finding.next.as_deref().unwrap_or_default());
    }
    match findings.iter().find(|f| f.state == State::Error) {
        Some(error) if !skip => {
            let next = error.next.as_deref().unwrap_or_default();
            Err(Failure::new(
                format!("the cluster is not fit: {}", error.what),
                format!("{next}; or go on with --skip-check"),
            ))
        }
        _ => Ok(()),
    }
}

fn server(address: &str, version: &Value) -> Finding {
    let said = text(version, "/gitVersion");
    let number = |pointer| text(version, pointer).trim_end_matches('+').parse::<u32>().unwrap_or_default();
    let what = format!("Kubernetes {said} at {address}");
    if (number("/major"), number("/minor")) >= (1, OLDEST_MINOR) {
        return Finding::fine(AREA, what);
    }
    Finding::error(
        AREA,
        format!("{what} is too old"),
        format!("upgrade the cluster to Kubernetes 1.{OLDEST_MINOR} or newer"),
    )
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// Whether a definition is there.
fn defined(there: &[Value], wanted: &str) -> bool {
    there.iter().any(|one| name(one) == wanted)
}

/// Every right that `culvert install` uses, those to define kinds too when it has to.
fn needed(namespace: &str, defines: bool) -> Vec<Right> {
    let objects = resolve::objects(&Values::defaults(namespace));
    let right = |object: &objects::Object, verb: &str| Right {
        verb: verb.to_owned(),
        group: group(object.api_version()).to_owned(),
        resource: plural(object.kind()),
        namespace: object.namespace().to_owned(),
    };
    let mut rights: Vec<_> =
        objects.iter().flat_map(|o| ["get", "create", "patch"].map(|verb| right(o, verb))).collect();
    rights.extend(["get", "create", "patch"].map(|verb| Right {
        verb: verb.to_owned(),
        group: String::new(),
        resource: "configmaps".to_owned(),
        namespace: namespace.to_owned(),
    }));
    let definitions = ["get", "create", "patch"].map(|verb| Right {
        verb: verb.to_owned(),
        group: "apiextensions.k8s.io".to_owned(),
        resource: "customresourcedefinitions".to_owned(),
        namespace: String::new(),
    });
    rights.extend(definitions.into_iter().filter(|_| defines));
    rights.sort();
    rights.dedup();
    rights
}

async fn rights(cluster: &Cluster, namespace: &str, defines: bool) -> Result<Finding, Failure> {
    let asked = needed(namespace, defines).into_iter().map(|right| async move {
        let has = may(cluster, &right).await?;
        Ok::<_, Failure>((!has).then_some(right))
    });
    let missing: Vec<Option<Right>> = stream::iter(asked).buffered(AT_ONCE).try_collect().await?;
    let missing: Vec<_> = missing.into_iter().flatten().map(|right| right.to_string()).collect();
    if missing.is_empty() {
        return Ok(Finding::fine(AREA, "you may install"));
    }
    let next = "use an account with the ClusterRole cluster-admin, or one that has these rights";
    Ok(Finding::error(AREA, format!("you may not {}", missing.join(", ")), next))
}

fn judge_crds(there: &[Value]) -> Vec<Finding> {
    let of = |(group, plurals, next): &(&str, &[&str], &str)| {
        let missing: Vec<_> =
            plurals.iter().filter(|plural| !defined(there, &format!("{plural}.{group}"))).copied().collect();
        match missing.is_empty() {
            true => Finding::fine(AREA, format!("CRDs of {group} are there")),
            false => {
                let what = format!(
                    "CRDs of {group} are missing: {}; such objects cannot be written",
                    missing.join(", ")
                );
                Finding::warning(AREA, what, *next)
            }
        }
    };
    CRDS.iter().map(of).collect()
}

/// Other meshes and CNIs that need a word.
async fn neighbours(cluster: &Cluster, namespace: &str) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    let sets = cluster.list(&collection("apps/v1", "DaemonSet", ""), "").await?;
    for set in &sets {
        let (name, place) = (text(set, "/metadata/name"), text(set, "/metadata/namespace"));
        let next = match name {
            "ztunnel" => {
                "both would capture the same pods: remove ztunnel, or give Culvert other nodes with agent.nodeSelector; docs/migrate-from-istio.md"
            }
            "istio-cni-node" => {
                "it enrols the same pods: remove it together with ztunnel; docs/migrate-from-istio.md"
            }
            "kuma-cni-node" | "linkerd-cni" => {
                "its pods and Culvert's must not be the same: label only namespaces that it does not have"
            }
            "culvert-agent" if place != namespace => {
                "remove that installation first, or name its namespace with --namespace"
            }
            _ => continue,
        };
        findings.push(Finding::warning(AREA, format!("DaemonSet {place}/{name} is there"), next));
    }
    let config = path("v1", "ConfigMap", "kube-system", "cilium-config");
    if let Some(config) = cluster.get(&config).await? {
        findings.extend(cilium(&config));
    }
    Ok(findings)
}

fn cilium(config: &Value) -> Vec<Finding> {
    let is = |key: &str, value: &str| config["data"][key].as_str() == Some(value);
    let mut findings = Vec::new();
    if is("cni-exclusive", "true") {
        let next = "set cni.exclusive=false in Cilium's values, or install with --set cni.enabled=false";
        findings.push(Finding::warning(
            AREA,
            "Cilium removes other CNI plugins (cni-exclusive is true)",
            next,
        ));
    }
    if is("bpf-lb-sock", "true") && !is("bpf-lb-sock-hostns-only", "true") {
        let next = "set socketLB.hostNamespaceOnly=true in Cilium's values";
        let what = "Cilium replaces service addresses inside pods (bpf-lb-sock): routes and waypoints of services would not be met";
        findings.push(Finding::warning(AREA, what, next));
    }
    findings
}

/// Whether pod security lets agents in, when the namespace is there already.
async fn policy(cluster: &Cluster, namespace: &str) -> Result<Finding, Failure> {
    let there = cluster.get(&path("v1", "Namespace", "", namespace)).await?;
    Ok(judge_policy(namespace, there.as_ref()))
}

fn judge_policy(namespace: &str, there: Option<&Value>) -> Finding {
    let Some(object) = there else {
        return Finding::fine(AREA, format!("namespace {namespace} is free"));
    };
    if !text(object, "/metadata/deletionTimestamp").is_empty() {
        let next = format!("wait until it is gone: kubectl get namespace {namespace}");
        return Finding::error(AREA, format!("namespace {namespace} is being deleted"), next);
    }
    let level = &object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    match level.as_str() {
        Some(level @ ("baseline" | "restricted")) => {
            let next = format!(
                "kubectl label --overwrite namespace {namespace} pod-security.kubernetes.io/enforce=privileged; culvert install does that"
            );
            Finding::warning(
                AREA,
                format!("namespace {namespace} has pod security {level}, which refuses agents"),
                next,
            )
        }
        _ => Finding::fine(AREA, format!("namespace {namespace} admits agents")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_old_api_server_is_named() {
        let at = |minor: &str| {
            server("https://x", &json!({"major": "1", "minor": minor, "gitVersion": "v"})).state
        };
        assert_eq!((at("36"), at("30+"), at("29")), (State::Fine, State::Fine, State::Error));
        assert_eq!(server("x", &json!({})).state, State::Error, "what says no version is not trusted");
    }

    #[test]
    fn missing_crds_are_named_with_how_to_install_them() {
        let findings = judge_crds(&[json!({"metadata": {"name": "virtualservices.networking.istio.io"}})]);
        assert!(findings.iter().all(|f| f.state == State::Warning));
        assert!(
            !findings[0].what.contains("virtualservices") && findings[0].what.contains("destinationrules")
        );
        assert!(findings[2].next.as_deref().unwrap().contains("gateway-api"), "{:?}", findings[2]);
    }

    #[test]
    fn a_namespace_that_refuses_agents_is_named() {
        let with =
            |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
        assert_eq!(judge_policy("n", Some(&with("restricted"))).state, State::Warning);
        assert_eq!(judge_policy("n", Some(&with("privileged"))).state, State::Fine);
        assert_eq!(judge_policy("n", None).state, State::Fine);
        let going = json!({"metadata": {"deletionTimestamp": "now"}});
        assert_eq!(judge_policy("n", Some(&going)).state, State::Error);
    }

    #[test]
    fn ciliums_settings_that_get_in_the_way_are_named() {
        let bad = json!({"data": {"cni-exclusive": "true", "bpf-lb-sock": "true"}});
        let said: Vec<_> = cilium(&bad).into_iter().filter_map(|f| f.next).collect();
        assert!(said[0].contains("cni.exclusive=false") && said[1].contains("hostNamespaceOnly"), "{said:?}");
        let good = json!({"data": {"cni-exclusive": "false", "bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "true"}});
        assert!(cilium(&good).is_empty());
    }

    #[test]
    fn the_rights_are_those_of_the_manifests() {
        let needed: Vec<_> = needed("n", false).iter().map(ToString::to_string).collect();
        for right in [
            "create daemonsets.apps in n",
            "patch clusterroles.rbac.authorization.k8s.io",
            "create namespaces",
            "patch configmaps in n",
        ] {
            assert!(needed.iter().any(|n| n == right), "{right} in {needed:?}");
        }
    }
}

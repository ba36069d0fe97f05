//! Whether an installation works.

use serde_json::Value;

use super::{finding::Finding, mesh};
use crate::{
    args::lifecycle::Place,
    cluster::{
        ApiError, Cluster,
        kinds::{collection, path},
        pod::{name, text},
        rollout::{Rollout, look as rollout},
    },
    exit::Failure,
    manifest::{AGENT, CONTROL, TRUST_BUNDLE},
    record,
};

const AREA: &str = "installation";
const MESH: &str = "mesh";
/// Pods that are named.
const NAMED: usize = 10;

/// Every part of an installation; a single finding when there is none.
///
/// # Errors
/// The API server does not answer.
pub async fn look(cluster: &Cluster, place: &Place) -> Result<Vec<Finding>, Failure> {
    let namespace = &place.namespace;
    let agents = rollout(cluster, "DaemonSet", namespace, AGENT).await?;
    let control = rollout(cluster, "Deployment", namespace, CONTROL).await?;
    if agents.is_none() && control.is_none() {
        return Ok(vec![Finding::fine(
            AREA,
            format!("Culvert is not installed in {namespace}; culvert install does that"),
        )]);
    }
    let mut findings = Vec::new();
    findings.extend(version(cluster, namespace).await?);
    findings.extend(part("control plane", namespace, control));
    findings.extend(part("agents", namespace, agents));
    findings.push(bundle(cluster, namespace).await?);
    let all = cluster.list(&collection("v1", "Pod", namespace), "").await?;
    findings.extend(match mesh::look(place, &all).await {
        Ok(said) => said,
        Err(nobody) => vec![Finding::error(MESH, nobody.reason, nobody.next)],
    });
    findings.extend(enrolled(cluster).await?);
    Ok(findings)
}

async fn version(cluster: &Cluster, namespace: &str) -> Result<Option<Finding>, Failure> {
    let Some(record) = record::read(cluster, namespace).await? else { return Ok(None) };
    let mine = env!("CARGO_PKG_VERSION");
    Ok(Some(match (record.complete, record.version == mine) {
        (false, _) => {
            let what = format!("an installation of version {} was interrupted", record.version);
            Finding::error(AREA, what, "run culvert install again with the same options")
        }
        (true, true) => Finding::fine(AREA, format!("version {mine}")),
        (true, false) => {
            let what = format!("version {} is installed, this culvert is {mine}", record.version);
            Finding::warning(AREA, what, "use the culvert of that version, or culvert upgrade")
        }
    }))
}

fn part(what: &str, namespace: &str, rollout: Option<Rollout>) -> Vec<Finding> {
    let Some(rollout) = rollout else {
        return vec![Finding::error(
            AREA,
            format!("the {what} are missing in {namespace}"),
            "culvert upgrade puts them back",
        )];
    };
    let line = format!("{what}: {} of {} ready", rollout.ready, rollout.wanted);
    if rollout.done && rollout.troubles.is_empty() {
        return vec![Finding::fine(AREA, line)];
    }
    if rollout.troubles.is_empty() {
        return vec![Finding::error(
            AREA,
            line,
            format!("kubectl -n {namespace} describe {}", rollout.object.to_lowercase().replace(' ', "/")),
        )];
    }
    let of = |t: &crate::cluster::pod::Trouble| {
        let node = if t.node.is_empty() { String::new() } else { format!(" on {}", t.node) };
        Finding::error(AREA, format!("{what}: {}{node} {}", t.pod, t.reason), t.next.clone())
    };
    rollout.troubles.iter().take(NAMED).map(of).collect()
}

/// The roots are in every namespace.
async fn bundle(cluster: &Cluster, namespace: &str) -> Result<Finding, ApiError> {
    let query = format!("fieldSelector=metadata.name%3D{TRUST_BUNDLE}");
    let there = cluster.list(&collection("v1", "ConfigMap", ""), &query).await?;
    let namespaces = cluster.list(&collection("v1", "Namespace", ""), "").await?;
    let living = namespaces.iter().filter(|ns| text(ns, "/metadata/deletionTimestamp").is_empty());
    let lacks =
        |ns: &&Value| !there.iter().any(|map| text(map, "/metadata/namespace") == text(ns, "/metadata/name"));
    let lacking: Vec<_> = living.filter(lacks).map(|ns| text(ns, "/metadata/name")).collect();
    if lacking.is_empty() {
        return Ok(Finding::fine(
            AREA,
            format!("the roots of the mesh are in all {} namespaces", namespaces.len()),
        ));
    }
    let next = format!("the control plane writes it: kubectl -n {namespace} logs deployment/{CONTROL}");
    let what = format!(
        "ConfigMap {TRUST_BUNDLE} is missing in {}: pods that need it cannot start there",
        lacking.join(", ")
    );
    Ok(Finding::error(AREA, what, next))
}

/// Pods that their labels put into the mesh, and that no agent announced.
async fn enrolled(cluster: &Cluster) -> Result<Vec<Finding>, Failure> {
    let namespaces = cluster
        .list(&collection("v1", "Namespace", ""), "labelSelector=istio.io%2Fdataplane-mode%3Dambient")
        .await?;
    let (mut waiting, mut active) = (Vec::new(), 0);
    // Agents announce nothing in a namespace that is being deleted: its pods go anyhow.
    let stay = |ns: &&Value| text(ns, "/metadata/deletionTimestamp").is_empty();
    for namespace in namespaces.iter().filter(stay) {
        let pods = cluster.list(&collection("v1", "Pod", text(namespace, "/metadata/name")), "").await?;
        for pod in pods.iter().filter(|pod| wanted(pod)) {
            match announced(pod) {
                true => active += 1,
                false => waiting.push(name(pod)),
            }
        }
    }
    if namespaces.is_empty() {
        return Ok(vec![Finding::fine(
            MESH,
            "no namespace is in the mesh yet: kubectl label namespace default istio.io/dataplane-mode=ambient",
        )]);
    }
    if waiting.is_empty() {
        return Ok(vec![Finding::fine(
            MESH,
            format!("{active} pods in {} namespaces are in the mesh", namespaces.len()),
        )]);
    }
    let more = waiting.len().saturating_sub(NAMED);
    let shown = waiting.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let what = format!(
        "not in the mesh though their namespace is: {shown}{}",
        if more > 0 { format!(" and {more} more") } else { String::new() }
    );
    Ok(vec![Finding::error(MESH, what, "culvert status says why")])
}

/// Whether a running pod should be in the mesh; the agent's own decision knows more cases, and it gives
/// the reason.
fn wanted(pod: &Value) -> bool {
    let labels = &pod["metadata"]["labels"];
    text(pod, "/status/phase") == "Running"
        && pod.pointer("/spec/hostNetwork") != Some(&Value::Bool(true))
        && labels["istio.io/dataplane-mode"] != "none"
        && text(pod, "/metadata/deletionTimestamp").is_empty()
        && pod["metadata"]["annotations"]["sidecar.istio.io/status"].is_null()
}

fn announced(pod: &Value) -> bool {
    pod["metadata"]["annotations"]["ambient.istio.io/redirection"] == "enabled"
}

/// Whether Helm owns the agents of a namespace.
///
/// # Errors
/// The API server does not answer.
pub async fn owned_by_helm(cluster: &Cluster, namespace: &str) -> Result<bool, ApiError> {
    let set = cluster.get(&path("apps/v1", "DaemonSet", namespace, AGENT)).await?;
    Ok(set.is_some_and(|set| !set["metadata"]["annotations"]["meta.helm.sh/release-name"].is_null()))
}

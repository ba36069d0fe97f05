//! What the programs wrote by themselves: marks on pods, waypoints, roots.

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::enrolled::announced;
use crate::{
    cluster::{
        Cluster,
        kinds::{collection, path},
        pod::{name, text},
        rollout::PERIOD,
    },
    exit::Failure,
    manifest::{CONTROL, TRUST_BUNDLE},
};

/// Kinds of which the control plane makes objects in any namespace.
const MADE: [(&str, &str); 4] = [
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ServiceAccount"),
    ("policy/v1", "PodDisruptionBudget"),
];
const LABEL: &str = "labelSelector=culvert.dev%2Fmanaged-by%3Dcontrol";

/// Takes the mark off every pod of these nodes: a control plane that sees it takes the pod for one that
/// speaks HBONE. Pods of other nodes have it from their own agents, which may be Istio's.
pub(super) async fn unmark(cluster: &Cluster, nodes: &[String]) -> Result<(), Failure> {
    let pods = cluster.list(&collection("v1", "Pod", ""), "").await?;
    let none = json!({"metadata": {"annotations": {"ambient.istio.io/redirection": null}}});
    for pod in pods.iter().filter(|pod| announced(pod, nodes)) {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        cluster.merge(&path("v1", "Pod", namespace, name), &none).await?;
    }
    Ok(())
}

/// Waits until no replica of the control plane can write any more.
pub(super) async fn wait_gone(cluster: &Cluster, namespace: &str, deadline: Instant) -> Result<(), Failure> {
    let query = format!("labelSelector=app.kubernetes.io%2Fname%3D{CONTROL}");
    loop {
        let pods = cluster.list(&collection("v1", "Pod", namespace), &query).await?;
        let Some(pod) = pods.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            let reason = format!("the control plane did not stop in time: {}", name(pod));
            return Err(Failure::new(reason, "run culvert uninstall again when it is gone"));
        }
        sleep(PERIOD).await;
    }
}

/// Removes waypoints and roots of every namespace; names of what was there.
pub(super) async fn remove(cluster: &Cluster) -> Result<Vec<String>, Failure> {
    let mut removed = Vec::new();
    for (version, kind) in MADE {
        let objects = cluster.list(&collection(version, kind, ""), LABEL).await?;
        removed.extend(delete(cluster, version, kind, &objects).await?);
    }
    let bundles = format!("fieldSelector=metadata.name%3D{TRUST_BUNDLE}");
    let bundles = cluster.list(&collection("v1", "ConfigMap", ""), &bundles).await?;
    removed.extend(delete(cluster, "v1", "ConfigMap", &bundles).await?);
    Ok(removed)
}

async fn delete(
    cluster: &Cluster,
    version: &str,
    kind: &str,
    objects: &[Value],
) -> Result<Vec<String>, Failure> {
    let mut removed = Vec::new();
    for object in objects {
        let place = path(version, kind, text(object, "/metadata/namespace"), text(object, "/metadata/name"));
        if cluster.delete(&place).await? {
            removed.push(format!("{kind} {}", name(object)));
        }
    }
    Ok(removed)
}

//! Who is still in the mesh. Removing it under them turns their traffic from encrypted to plain, which
//! nobody should do by accident.

use serde_json::Value;

use crate::{
    cluster::{
        Cluster,
        kinds::collection,
        pod::{name, text},
    },
    exit::Failure,
};

/// Names that are shown.
const NAMED: usize = 10;
const SELECTED: &str = "labelSelector=istio.io%2Fdataplane-mode%3Dambient";

/// Refuses while a namespace or pod carries the label.
///
/// # Errors
/// One does, or the API server does not answer.
pub(super) async fn refuse(cluster: &Cluster) -> Result<(), Failure> {
    let namespaces = cluster.list(&collection("v1", "Namespace", ""), SELECTED).await?;
    let pods = cluster.list(&collection("v1", "Pod", ""), SELECTED).await?;
    let namespaces: Vec<_> = namespaces.iter().map(|ns| text(ns, "/metadata/name")).collect();
    let pods: Vec<_> = pods.iter().map(name).collect();
    match judge(&namespaces, &pods) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

fn judge(namespaces: &[&str], pods: &[String]) -> Option<Failure> {
    let shown = |names: &[&str]| names.iter().take(NAMED).copied().collect::<Vec<_>>().join(" ");
    let accept = "or pass --with-enrolled if plaintext is all right";
    if !namespaces.is_empty() {
        let reason = format!("{} namespaces are still in the mesh: {}", namespaces.len(), shown(namespaces));
        let next =
            format!("kubectl label namespace {} istio.io/dataplane-mode-, {accept}", shown(namespaces));
        return Some(Failure::new(reason, next));
    }
    let first = pods.first()?;
    let reason =
        format!("{} pods have a label of their own that keeps them in the mesh, first {first}", pods.len());
    Some(Failure::new(reason, format!("remove istio.io/dataplane-mode from what makes these pods, {accept}")))
}

/// Refuses while pods of these nodes are in the mesh.
///
/// # Errors
/// One is, or the API server does not answer.
pub(super) async fn refuse_on(cluster: &Cluster, nodes: &[String]) -> Result<(), Failure> {
    let pods = cluster.list(&collection("v1", "Pod", ""), "").await?;
    let Some(first) = pods.iter().find(|pod| announced(pod, nodes)) else { return Ok(()) };
    let node = text(first, "/spec/nodeName");
    Err(Failure::new(
        format!("pods of node {node} are still in the mesh, first {}", name(first)),
        format!(
            "kubectl drain {node} --ignore-daemonsets, or pass --with-enrolled if plaintext is all right"
        ),
    ))
}

/// Whether a pod of one of these nodes was announced to be in the mesh.
pub(super) fn announced(pod: &Value, nodes: &[String]) -> bool {
    let marked = !pod["metadata"]["annotations"]["ambient.istio.io/redirection"].is_null();
    marked && nodes.iter().any(|node| node == text(pod, "/spec/nodeName"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_pods_of_the_nodes_that_are_cleaned_lose_their_mark() {
        let pod = |node: &str, mark: Value| json!({"metadata": {"annotations": {"ambient.istio.io/redirection": mark}}, "spec": {"nodeName": node}});
        let ours = ["ours".to_owned()];
        assert!(announced(&pod("ours", json!("enabled")), &ours));
        assert!(!announced(&pod("ours", Value::Null), &ours));
        assert!(!announced(&pod("ztunnels", json!("enabled")), &ours), "its own agent has set it");
    }

    #[test]
    fn who_is_still_in_the_mesh_is_named_with_how_to_take_it_out() {
        assert_eq!(judge(&[], &[]), None);
        let labelled = judge(&["default", "shop"], &[]).unwrap();
        assert!(
            labelled.next.starts_with("kubectl label namespace default shop istio.io/dataplane-mode-"),
            "{}",
            labelled.next
        );
        let pod = judge(&[], &["default/web".to_owned()]).unwrap();
        assert!(pod.reason.contains("first default/web") && pod.next.contains("--with-enrolled"), "{pod}");
    }
}

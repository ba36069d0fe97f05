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

/// Whether a pod was announced to be in the mesh.
pub(super) fn announced(pod: &Value) -> bool {
    !pod["metadata"]["annotations"]["ambient.istio.io/redirection"].is_null()
}

#[cfg(test)]
mod tests {
    use super::*;

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

//! From Kubernetes objects to [`PodInfo`]: the same for a folder and for an API server.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Pod;
use mesh_core::{
    eligibility::{self, Candidate},
    snapshot::PodRef,
};

use super::PodInfo;
use crate::netns::Place;

/// Annotation that names the network namespace of a pod where no CNI plugin tells.
const NETNS_ANNOTATION: &str = "culvert.dev/netns";

/// What is the same for all pods of a node.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Node name.
    pub node: String,
    /// Cluster id.
    pub cluster: Arc<str>,
    /// Network id.
    pub network: Arc<str>,
    /// Namespaces that never take part.
    pub excluded: Vec<String>,
}

/// The pod, if it runs on this node and has not ended.
pub fn pod_info(
    pod: &Pod,
    namespaces: &BTreeMap<String, BTreeMap<String, String>>,
    node: &NodeFacts,
) -> Option<PodInfo> {
    let (meta, spec) = (&pod.metadata, pod.spec.as_ref()?);
    let status = pod.status.clone().unwrap_or_default();
    let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.node_name.as_deref() != Some(&node.node) || ended {
        return None;
    }
    let name = meta.name.as_deref()?;
    let namespace = meta.namespace.as_deref().unwrap_or("default");
    let has_overhead = spec.overhead.as_ref().is_some_and(|overhead| !overhead.is_empty());
    let (none, labels, annotations) = (BTreeMap::new(), meta.labels.clone(), meta.annotations.clone());
    let (labels, annotations) = (labels.unwrap_or_default(), annotations.unwrap_or_default());
    let eligibility = eligibility::decide(&Candidate {
        namespace,
        namespace_labels: namespaces.get(namespace).unwrap_or(&none),
        labels: &labels,
        annotations: &annotations,
        host_network: spec.host_network.unwrap_or(false),
        sandboxed: eligibility::is_sandboxed(spec.runtime_class_name.as_deref(), has_overhead),
        excluded_namespaces: &node.excluded,
    });
    let addresses = status.pod_ips.unwrap_or_default().into_iter().map(|entry| entry.ip).chain(status.pod_ip);
    let mut parsed = Vec::new();
    for address in addresses.filter_map(|ip| ip.parse().ok()) {
        if !parsed.contains(&address) {
            parsed.push(address);
        }
    }
    let account = spec.service_account_name.clone().unwrap_or_else(|| "default".to_owned());
    Some(PodInfo {
        uid: meta.uid.as_deref().map_or_else(|| format!("{namespace}/{name}").into(), Arc::from),
        pod: Arc::new(PodRef {
            cluster: node.cluster.clone(),
            namespace: namespace.into(),
            name: name.into(),
            service_account: account.into(),
            network: node.network.clone(),
        }),
        addresses: parsed,
        netns: None,
        lack: None,
        eligibility,
    })
}

/// What a folder says of a pod's network namespace. Only for folders, which are root's: whoever may make
/// a pod in a cluster could name another pod's namespace, or the node's.
pub fn netns_annotation(pod: &Pod) -> Option<Place> {
    let path = pod.metadata.annotations.as_ref()?.get(NETNS_ANNOTATION)?;
    Some(Place::Path(path.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeFacts {
        NodeFacts { node: "n1".into(), cluster: "Kubernetes".into(), network: "".into(), excluded: vec![] }
    }

    fn parse(text: &str) -> Pod {
        serde_norway::from_str(text).unwrap()
    }

    const POD: &str = "{metadata: {name: web, namespace: shop, uid: u1, annotations: {culvert.dev/netns: /run/netns/x}}, \
        spec: {nodeName: n1, serviceAccountName: web, containers: []}, \
        status: {podIP: 10.0.0.2, podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}";

    #[test]
    fn a_pod_of_this_node_in_a_labelled_namespace_is_eligible_and_keeps_both_addresses() {
        let labels = BTreeMap::from([("istio.io/dataplane-mode".into(), "ambient".into())]);
        let namespaces = BTreeMap::from([("shop".to_string(), labels)]);
        let info = pod_info(&parse(POD), &namespaces, &node()).unwrap();
        assert_eq!((info.name().as_str(), info.addresses.len()), ("shop/web", 2));
        assert!(info.eligibility.is_eligible() && info.netns.is_none());
        assert_eq!(netns_annotation(&parse(POD)), Some(Place::Path("/run/netns/x".into())));
        let without = pod_info(&parse(POD), &BTreeMap::new(), &node()).unwrap();
        assert!(!without.eligibility.is_eligible());
    }

    #[test]
    fn pods_of_other_nodes_and_pods_that_ended_are_not_ours() {
        assert!(pod_info(&parse(&POD.replace("n1", "n2")), &BTreeMap::new(), &node()).is_none());
        let ended = POD.replace("status: {", "status: {phase: Succeeded, ");
        assert!(pod_info(&parse(&ended), &BTreeMap::new(), &node()).is_none());
    }
}

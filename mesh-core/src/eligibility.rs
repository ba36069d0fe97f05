//! Whether a pod belongs in the mesh: one function for the agent, the CNI plugin and `culvert check`.

use std::collections::BTreeMap;

/// Label of namespaces and pods that selects the data plane.
pub const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// Annotation that tells the control plane that a pod is enrolled.
pub const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What decides about a pod.
#[derive(Debug, Clone, Copy)]
pub struct PodFacts<'a> {
    /// Labels of its namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Its own labels.
    pub labels: &'a BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// Shares the node's network.
    pub host_network: bool,
}

/// The answer, with its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eligibility {
    /// Enrol it.
    Eligible,
    /// Leave it alone; the text says why.
    Ignored(&'static str),
}

/// Decides enrolment: the pod's label overrides its namespace's; host-network and sidecar pods never.
pub fn eligibility(pod: &PodFacts<'_>) -> Eligibility {
    if pod.host_network {
        return Eligibility::Ignored("pod uses the node's network");
    }
    if pod.annotations.contains_key("sidecar.istio.io/status") {
        return Eligibility::Ignored("pod has a sidecar");
    }
    match pod.labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("ambient") => return Eligibility::Eligible,
        Some(_) => return Eligibility::Ignored("pod label istio.io/dataplane-mode opts out"),
        None => {}
    }
    if pod.namespace_labels.get(DATAPLANE_MODE).is_some_and(|mode| mode == "ambient") {
        return Eligibility::Eligible;
    }
    if pod.namespace_labels.get("istio-injection").is_some_and(|mode| mode == "enabled") {
        return Eligibility::Eligible;
    }
    Eligibility::Ignored("namespace is not labelled istio.io/dataplane-mode=ambient")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(
        namespace: &[(&str, &str)],
        labels: &[(&str, &str)],
        host_network: bool,
        sidecar: bool,
    ) -> Eligibility {
        let map =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let annotations = if sidecar { map(&[("sidecar.istio.io/status", "{}")]) } else { BTreeMap::new() };
        eligibility(&PodFacts {
            namespace_labels: &map(namespace),
            labels: &map(labels),
            annotations: &annotations,
            host_network,
        })
    }

    #[test]
    fn a_labelled_namespace_enrols_its_pods() {
        assert_eq!(decide(&[(DATAPLANE_MODE, "ambient")], &[], false, false), Eligibility::Eligible);
        assert_eq!(decide(&[("istio-injection", "enabled")], &[], false, false), Eligibility::Eligible);
        assert_ne!(decide(&[], &[], false, false), Eligibility::Eligible);
    }

    #[test]
    fn a_pod_label_overrides_its_namespace() {
        assert_eq!(decide(&[], &[(DATAPLANE_MODE, "ambient")], false, false), Eligibility::Eligible);
        assert_ne!(
            decide(&[(DATAPLANE_MODE, "ambient")], &[(DATAPLANE_MODE, "none")], false, false),
            Eligibility::Eligible
        );
    }

    #[test]
    fn host_network_and_sidecar_pods_are_never_enrolled() {
        assert_ne!(decide(&[], &[(DATAPLANE_MODE, "ambient")], true, false), Eligibility::Eligible);
        assert_ne!(decide(&[], &[(DATAPLANE_MODE, "ambient")], false, true), Eligibility::Eligible);
    }
}

//! Who is in the mesh: one pure function for the agent, the CNI plugin and `culvert check`.
//!
//! As istio-cni decides, plus one rule of ours for people who move from sidecars: a namespace with
//! `istio-injection=enabled` counts when the pod has no sidecar.

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

/// Label on namespaces and pods: `ambient` or `none`.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Label on namespaces of the sidecar mode.
pub const INJECTION_LABEL: &str = "istio-injection";
/// Annotation that a pod with a sidecar has.
pub const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";
/// Annotation that the agent writes when a pod is enrolled.
pub const REDIRECTION_ANNOTATION: &str = "ambient.istio.io/redirection";

/// What is known of a pod and its namespace.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Labels of the namespace.
    pub namespace_labels: &'a BTreeMap<String, String>,
    /// Labels of the pod.
    pub labels: &'a BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: &'a BTreeMap<String, String>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Namespaces that never take part (`kube-system` by default).
    pub excluded_namespaces: &'a [String],
}

/// The verdict and its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Eligibility {
    /// In: the pod's own label says `ambient`.
    PodLabel,
    /// In: the namespace's label says `ambient`.
    NamespaceLabel,
    /// In: the namespace asks for sidecar injection and the pod has none.
    InjectionLabel,
    /// Out: shares the node's network.
    HostNetwork,
    /// Out: has a sidecar.
    Sidecar,
    /// Out: the namespace is excluded by configuration.
    ExcludedNamespace,
    /// Out: a label of the pod opts out.
    OptedOut,
    /// Out: nothing asks for it.
    NotSelected,
}

impl Eligibility {
    /// Whether the pod belongs into the mesh.
    pub fn is_eligible(self) -> bool {
        matches!(self, Self::PodLabel | Self::NamespaceLabel | Self::InjectionLabel)
    }

    /// One sentence for people.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::PodLabel => "the pod has istio.io/dataplane-mode=ambient",
            Self::NamespaceLabel => "its namespace has istio.io/dataplane-mode=ambient",
            Self::InjectionLabel => "its namespace has istio-injection=enabled and the pod has no sidecar",
            Self::HostNetwork => "pods with hostNetwork are never enrolled",
            Self::Sidecar => "the pod has a sidecar (sidecar.istio.io/status)",
            Self::ExcludedNamespace => "its namespace is excluded by configuration",
            Self::OptedOut => "the pod's istio.io/dataplane-mode label opts out",
            Self::NotSelected => "neither the pod nor its namespace is labelled for the mesh",
        }
    }
}

impl fmt::Display for Eligibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.explanation())
    }
}

/// Decides whether a pod belongs into the mesh. Exclusions come first, then the pod's own label,
/// then the namespace's.
pub fn decide(pod: &Candidate<'_>) -> Eligibility {
    if pod.host_network {
        return Eligibility::HostNetwork;
    }
    if pod.annotations.contains_key(SIDECAR_ANNOTATION) {
        return Eligibility::Sidecar;
    }
    if pod.excluded_namespaces.iter().any(|n| n == pod.namespace) {
        return Eligibility::ExcludedNamespace;
    }
    let label = |labels: &BTreeMap<String, String>, key: &str, value: &str| {
        labels.get(key).is_some_and(|v| v == value)
    };
    match pod.labels.get(MODE_LABEL).map(String::as_str) {
        Some("ambient") => Eligibility::PodLabel,
        Some("none") => Eligibility::OptedOut,
        _ if label(pod.namespace_labels, MODE_LABEL, "ambient") => Eligibility::NamespaceLabel,
        _ if label(pod.namespace_labels, MODE_LABEL, "none") => Eligibility::NotSelected,
        _ if label(pod.namespace_labels, INJECTION_LABEL, "enabled") => injected(pod),
        _ => Eligibility::NotSelected,
    }
}

/// `sidecar.istio.io/inject: "false"` opts a pod out of the sidecar mode, so also out of what
/// replaces it.
fn injected(pod: &Candidate<'_>) -> Eligibility {
    const INJECT: &str = "sidecar.istio.io/inject";
    let refuses = |map: &BTreeMap<String, String>| map.get(INJECT).is_some_and(|v| v == "false");
    match refuses(pod.labels) || refuses(pod.annotations) {
        true => Eligibility::OptedOut,
        false => Eligibility::InjectionLabel,
    }
}

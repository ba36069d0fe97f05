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
    /// Whether it runs in a guest of its own (see [`is_sandboxed`]).
    pub sandboxed: bool,
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
    /// Out although labels ask for it: a guest kernel's sockets cannot be captured.
    SandboxedRuntime,
}

impl Eligibility {
    /// Whether the pod belongs into the mesh.
    pub fn is_eligible(self) -> bool {
        matches!(self, Self::PodLabel | Self::NamespaceLabel | Self::InjectionLabel)
    }

    /// Whether labels ask for the mesh and the pod cannot be in it.
    pub fn is_refused(self) -> bool {
        self == Self::SandboxedRuntime
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
            Self::SandboxedRuntime => {
                "its runtime class runs it in a guest whose sockets cannot be captured; \
                 use another runtimeClassName, or label the pod istio.io/dataplane-mode=none"
            }
        }
    }
}

impl fmt::Display for Eligibility {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.explanation())
    }
}

/// Whether a pod with this `spec.runtimeClassName` runs in a guest of its own (gVisor, Kata and kin), by
/// the names that their handlers have. `overhead` says that it has a `spec.overhead`: what a guest costs
/// beside its containers, which plain containers do not have.
pub fn is_sandboxed(runtime_class: Option<&str>, overhead: bool) -> bool {
    const GUESTS: [&str; 7] =
        ["kata", "gvisor", "runsc", "firecracker", "cloud-hypervisor", "peerpod", "peer-pod"];
    runtime_class.is_some_and(|class| overhead || GUESTS.iter().any(|guest| class.contains(guest)))
}

/// Decides whether a pod belongs into the mesh. Exclusions come first, then the pod's own label,
/// then the namespace's.
pub fn decide(pod: &Candidate<'_>) -> Eligibility {
    match selected(pod) {
        wanted if wanted.is_eligible() && pod.sandboxed => Eligibility::SandboxedRuntime,
        decided => decided,
    }
}

/// What is remembered of a pod's namespace where nobody can be asked about the pod itself.
#[derive(Debug, Clone, Copy)]
pub struct Remembered<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Its labels as they were last known; none when it never was.
    pub labels: Option<&'a BTreeMap<String, String>>,
    /// Whether pods in it were seen that ask for the mesh by a label of their own.
    pub own_labels: bool,
    /// Namespaces that never take part.
    pub excluded_namespaces: &'a [String],
}

/// Whether a pod of which only the namespace is known may belong into the mesh. Such a pod starts blocked
/// until somebody knows better: yes for what is not known.
pub fn may_be_eligible(known: &Remembered<'_>) -> bool {
    if known.excluded_namespaces.iter().any(|n| n == known.namespace) {
        return false;
    }
    let Some(labels) = known.labels else { return true };
    let none = BTreeMap::new();
    let by_namespace = selected(&Candidate {
        namespace: known.namespace,
        namespace_labels: labels,
        labels: &none,
        annotations: &none,
        host_network: false,
        sandboxed: false,
        excluded_namespaces: &[],
    });
    known.own_labels || by_namespace.is_eligible()
}

fn selected(pod: &Candidate<'_>) -> Eligibility {
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

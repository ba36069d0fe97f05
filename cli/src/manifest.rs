//! What is applied to a cluster: one tree of objects with references to settings, from which
//! `culvert install`, the kustomize base with its overlays, the Helm chart and the tables of `docs/` are made.

pub mod chart;
pub mod crds;
pub mod kustomize;
pub mod objects;
pub mod page;
pub mod profile;
pub mod resolve;
pub mod setting;
pub mod template;
pub mod values;
pub mod write;
pub mod yaml;

/// Namespace of the mesh's own programs unless told otherwise.
pub const NAMESPACE: &str = "culvert-system";
/// Label and value that every object of ours carries.
pub const PART_OF: (&str, &str) = ("app.kubernetes.io/part-of", "culvert");
/// Name of the agents' DaemonSet and service account.
pub const AGENT: &str = "culvert-agent";
/// Name of the control plane's Deployment, Service and service account.
pub const CONTROL: &str = "culvert-control";
/// ConfigMap with the roots, written by the control plane into every namespace.
pub const TRUST_BUNDLE: &str = "culvert-ca-root-cert";
/// Class of waypoints.
pub const WAYPOINT_CLASS: &str = "culvert-waypoint";

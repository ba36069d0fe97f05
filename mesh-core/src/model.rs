//! What the mesh knows: workloads, services, policies and L7 routes, as values that can only be valid.
//!
//! Wire forms (`istio.workload`, `istio.security`, `culvert.l7.v1`) are parsed into these in
//! `mesh-net`; the control plane builds them from YAML and Kubernetes objects.

pub mod l7;
pub mod policy;
pub mod service;
pub mod workload;

pub use policy::*;
pub use service::*;
pub use workload::*;

//! Wire form ⇄ model: parse at the edge, valid values inside.
//!
//! `to_*` is what the control plane sends, `from_*` what agents and waypoints accept. A resource that
//! cannot be valid is refused with the field and the reason; the caller names the resource.

pub mod l7;
pub mod policy;
#[cfg(test)]
mod tests;
pub mod workload;

use std::net::IpAddr;

/// Type URL of workloads and services.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of L4 policies.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of L7 routes of a service.
pub const ROUTES_TYPE: &str = "type.googleapis.com/culvert.l7.v1.ServiceRoutes";
/// Type URL of L7 policies.
pub const L7_POLICY_TYPE: &str = "type.googleapis.com/culvert.l7.v1.Policy";
/// Type URL of workload labels.
pub const LABELS_TYPE: &str = "type.googleapis.com/culvert.l7.v1.WorkloadLabels";

/// Why a resource cannot be accepted: the field and what is wrong with it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{field}: {problem}")]
pub struct WireError {
    /// Field path in the proto.
    pub field: String,
    /// What is wrong.
    pub problem: String,
}

impl WireError {
    /// Builds an error.
    pub fn new(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), problem: problem.into() }
    }
}

fn ip_from_bytes(field: &str, bytes: &[u8]) -> Result<IpAddr, WireError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(v4));
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => Err(WireError::new(field, format!("an address has 4 or 16 bytes, not {}", bytes.len()))),
    }
}

fn ip_to_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn port(field: &str, value: u32) -> Result<u16, WireError> {
    u16::try_from(value).map_err(|_| WireError::new(field, format!("port {value} is above 65535")))
}

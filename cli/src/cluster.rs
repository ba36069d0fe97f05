//! A Kubernetes cluster: reaching its API server, reading and writing objects, waiting for rollouts.

pub mod access;
pub mod client;
pub mod connect;
pub mod error;
pub mod kinds;
pub mod pod;
pub mod rollout;

pub use client::Cluster;
pub use error::ApiError;

/// Oldest minor version of Kubernetes 1 that Culvert's objects fit: `appArmorProfile` came with 1.30.
pub const OLDEST_MINOR: u32 = 30;

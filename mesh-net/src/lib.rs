//! Doing what `mesh-core` decides: TLS and identity, HBONE, relay, xDS, telemetry.

pub mod api;
pub mod ca;
pub mod store;
pub mod task;
pub mod wire;
pub mod xds;

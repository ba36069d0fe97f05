//! Doing what `mesh-core` decides: TLS and identity, HBONE, relay, xDS, telemetry, admin endpoints.

pub mod admin;
pub mod api;
pub mod ca;
pub mod dial;
pub mod folder;
pub mod hbone;
pub mod listen;
pub mod load;
pub mod relay;
pub mod resolve;
pub mod store;
pub mod task;
pub mod telemetry;
pub mod tls;
pub mod wire;
pub mod xds;

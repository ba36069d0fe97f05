//! Kubernetes as a source and as a place to write to: the client, the kinds that are watched, the watches.

pub mod client;

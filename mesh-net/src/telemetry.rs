//! Metrics with Istio's names and labels, so that Kiali and Istio's dashboards work, and the access log.

pub mod access;
pub mod sets;
pub mod tcp;

use prometheus::{IntGaugeVec, Opts, Registry};

/// Registers `istio_build`, always 1: which component and version this is.
///
/// # Errors
/// The name is taken.
pub fn build(registry: &Registry, component: &str, version: &str) -> prometheus::Result<()> {
    let build = IntGaugeVec::new(Opts::new("istio_build", "Component and version"), &["component", "tag"])?;
    registry.register(Box::new(build.clone()))?;
    build.with_label_values(&[component, version]).set(1);
    Ok(())
}

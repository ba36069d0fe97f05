//! Metrics with Istio's names and labels, so that Kiali and Istio's dashboards work.

pub mod tcp;

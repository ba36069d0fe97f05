//! Admin endpoint: health, metrics, what is published, who is connected, and why.

pub mod bounded;
mod explain;
pub mod socket;

use std::{path::PathBuf, sync::Arc};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{finding::Severity, metrics::Metrics, publish::Published, push::Clients};

/// What the endpoint shows.
#[derive(Clone)]
pub struct Admin {
    /// Cluster folder, for messages.
    pub folder: PathBuf,
    /// What is current.
    pub current: watch::Receiver<Arc<Published>>,
    /// Who is connected.
    pub clients: Arc<Clients>,
    /// Figures.
    pub metrics: Metrics,
}

/// Routes of the endpoint.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(|State(admin): State<Admin>| async move { admin.metrics.text() }))
        .route("/debug/config", get(config))
        .route("/debug/objects", get(objects))
        .route("/debug/clients", get(clients))
        .route("/debug/services", get(services))
        .route("/debug/explain", get(explain::handle))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let current = admin.current.borrow().clone();
    if current.version > 0 {
        return (StatusCode::OK, "ready\n".into());
    }
    let why = current.findings.iter().find(|f| f.severity == Severity::Error);
    let why = why.map(|f| format!(": {}", f.reason)).unwrap_or_default();
    let text = format!("awaits: first reading of the folder {}{why}\n", admin.folder.display());
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn config(State(admin): State<Admin>) -> Json<Value> {
    let current = admin.current.borrow().clone();
    let mut shown = serde_json::to_value(&current.compiled).unwrap_or_default();
    shown["version"] = current.version.into();
    Json(shown)
}

async fn clients(State(admin): State<Admin>) -> Json<Value> {
    Json(json!(admin.clients.list()))
}

async fn objects(State(admin): State<Admin>) -> Json<Value> {
    let current = admin.current.borrow().clone();
    let listed: Vec<Value> = current
        .objects
        .iter()
        .map(|(key, file, line)| {
            let name = key.to_string();
            let findings: Vec<_> = current.findings.iter().filter(|f| f.object == name).collect();
            json!({"object": name, "file": file, "line": line, "findings": findings})
        })
        .collect();
    Json(json!({"version": current.version, "objects": listed, "findings": current.findings,
                "waypoints": current.compiled.waypoints}))
}

async fn services(State(admin): State<Admin>) -> Json<Value> {
    let current = admin.current.borrow().clone();
    let listed = current.compiled.services.values().map(|s| {
        let vips: Vec<String> = s.vips.iter().map(|v| v.range.addr().to_string()).collect();
        let ports: Vec<u16> = s.ports.iter().map(|p| p.service_port).collect();
        json!({"name": s.name, "namespace": s.key.namespace, "hostname": s.key.hostname,
               "vip": vips.first(), "vips": vips, "ports": ports, "waypoint": s.waypoint})
    });
    Json(listed.collect())
}

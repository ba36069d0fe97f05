//! Admin endpoint: health, metrics, what is published, who is connected, and why.

pub mod bounded;
mod explain;
pub mod socket;

use std::{path::PathBuf, sync::Arc};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    ca::Authority, finding::Severity, kube::health::Health, metrics::Metrics, publish::Published,
    push::Clients,
};

/// What the endpoint shows.
#[derive(Clone)]
pub struct Admin {
    /// Cluster folder, for messages.
    pub folder: Option<PathBuf>,
    /// Watches of the API server; none when it is no source.
    pub watches: Option<Health>,
    /// The CA in use.
    pub ca: Authority,
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
        .route("/metrics", get(metrics))
        .route("/debug/config", get(config))
        .route("/debug/objects", get(objects))
        .route("/debug/clients", get(clients))
        .route("/debug/services", get(services))
        .route("/debug/kubernetes", get(kubernetes))
        .route("/debug/explain", get(explain::handle))
        .with_state(admin)
}

async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let current = admin.current.borrow().clone();
    let signs = admin.ca.current().is_some();
    if current.version > 0 && signs {
        return (StatusCode::OK, "ready\n".into());
    }
    let mut text = String::new();
    if let Some(watches) = admin.watches.as_ref().filter(|_| !current.awaits.is_empty()) {
        text = format!("awaits: first list from the API server: {}", current.awaits.join(", "));
        for (kind, trouble) in watches.troubles() {
            text.push_str(&format!("\n{kind}: {trouble}"));
        }
    } else if let Some(folder) = &admin.folder {
        let why = current.findings.iter().find(|f| f.severity == Severity::Error);
        let why = why.map(|f| format!(": {}", f.reason)).unwrap_or_default();
        text = format!("awaits: first reading of the folder {}{why}", folder.display());
    }
    if !signs {
        let begin = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!(
            "{begin}awaits: the CA: Secret culvert-ca or cacerts; the log says what fails"
        ));
    }
    (StatusCode::SERVICE_UNAVAILABLE, text + "\n")
}

async fn metrics(State(admin): State<Admin>) -> String {
    admin.watches.iter().for_each(Health::measure);
    admin.metrics.text()
}

async fn kubernetes(State(admin): State<Admin>) -> Json<Value> {
    let awaits = admin.current.borrow().awaits.clone();
    let watches = admin.watches.as_ref().map(Health::shown);
    Json(json!({"source": watches.is_some(), "awaits": awaits, "watches": watches}))
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

//! `GET /debug/explain?source=…&destination=host:port`: what would happen to a connection, with the
//! waypoint's routes and policies, on the configuration that is published.

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
};
use mesh_core::{
    explain::{explain, find_destination, find_source},
    http::explain_routes,
    snapshot::Snapshot,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Admin;
use crate::publish::Published;

/// Names that are offered for one that is not known.
const NEAR: usize = 3;

/// The question.
#[derive(Debug, Deserialize)]
pub struct Question {
    source: Option<String>,
    destination: Option<String>,
}

pub(super) async fn handle(
    State(admin): State<Admin>,
    Query(question): Query<Question>,
) -> (StatusCode, Json<Value>) {
    let (Some(source), Some(destination)) = (question.source, question.destination) else {
        let error = "source and destination are needed: /debug/explain?source=NAME&destination=HOST:PORT";
        return (StatusCode::BAD_REQUEST, Json(json!({"error": error})));
    };
    let current = admin.current.borrow().clone();
    // The first question after a change builds a snapshot: of a large mesh that takes a while.
    let work = move || answer(&current, &source, &destination);
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(answer)) => (StatusCode::OK, Json(answer)),
        Ok(Err(error)) => (StatusCode::NOT_FOUND, Json(json!({"error": error}))),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": error.to_string()}))),
    }
}

/// The explanation; its snapshot number is the version of the configuration.
fn answer(current: &Published, source: &str, destination: &str) -> Result<Value, String> {
    let snapshot = current.snapshot();
    let workload = find_source(snapshot, source)
        .ok_or_else(|| unknown("source", source, &near(workload_names(snapshot), last(source))))?;
    let (host, port) = destination.rsplit_once(':').unwrap_or((destination, ""));
    if port.parse::<u16>().is_err() {
        return Err(format!("destination {destination:?} is not HOST:PORT"));
    }
    let to = find_destination(snapshot, workload, destination).ok_or_else(|| {
        let names = service_names(snapshot).into_iter().chain(workload_names(snapshot)).collect();
        unknown("destination", host, &near(names, last(host)))
    })?;
    let mut explanation = explain(snapshot, workload, to, &explain_routes);
    explanation.snapshot = current.version;
    Ok(json!({"explanation": explanation, "node": "control"}))
}

/// The part of `namespace/name` that people mistype.
fn last(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

fn unknown(what: &str, name: &str, near: &[String]) -> String {
    match near {
        [] => format!("{what} {name:?} is not known to the control plane"),
        list => format!("{what} {name:?} is not known to the control plane; near: {}", list.join(", ")),
    }
}

fn workload_names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.workloads().flat_map(|w| [w.name.to_string(), w.workload_name.to_string()]).collect()
}

fn service_names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.services().map(|s| s.name.to_string()).collect()
}

/// The closest names, best first.
fn near(mut names: Vec<String>, wanted: &str) -> Vec<String> {
    names.sort();
    names.dedup();
    let wanted: Vec<char> = wanted.chars().take(64).collect();
    let limit = wanted.len() / 3 + 1;
    let rank = |name: String| {
        let chars: Vec<char> = name.chars().take(64).collect();
        let far = match chars.starts_with(&wanted) && !wanted.is_empty() {
            true => 0,
            false => distance(&chars, &wanted),
        };
        (far <= limit && !name.is_empty()).then_some((far, name))
    };
    let mut ranked: Vec<(usize, String)> = names.into_iter().filter_map(rank).collect();
    ranked.sort();
    ranked.into_iter().take(NEAR).map(|(_, name)| name).collect()
}

/// Edits from one word to the other.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::near;

    #[test]
    fn near_names_are_those_with_few_edits_or_the_same_beginning() {
        let names = || ["client", "client-1", "nginx", "ngnix-2", "waypoint"].map(String::from).to_vec();
        assert_eq!(near(names(), "clinet"), ["client"]);
        assert_eq!(near(names(), "clie"), ["client", "client-1"]);
        assert_eq!(near(names(), "nginxx"), ["nginx"]);
        assert!(near(names(), "zookeeper").is_empty());
    }
}

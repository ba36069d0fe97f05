//! What the API server is answered when it asks about an object before it keeps it (a validating webhook,
//! `admission.k8s.io/v1`): the mistakes that are in the object alone. What needs the rest of the mesh is said
//! by findings, statuses and events afterwards.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Request, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use prometheus::IntCounterVec;
use serde_json::{Value, json};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    finding::{Problem, Severity, Sink},
    object,
};

/// Path of the webhook.
pub const PATH: &str = "/validate";
/// A review has an object of at most 1.5 MiB twice.
const LIMIT: usize = 8 << 20;
/// Reviews at one time; the port is open to all, and each may be as long as that.
const AT_ONCE: usize = 8;
/// The API server waits no longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest warning that the API server passes on, bytes.
const WARNING: usize = 256;
/// Warnings that are told.
const WARNINGS: usize = 10;

#[derive(Clone)]
struct Desk {
    room: Arc<Semaphore>,
    counts: IntCounterVec,
}

/// The webhook's route; reviews are counted by `result`: allowed, refused, unreadable.
pub fn route(counts: IntCounterVec) -> Router {
    Router::new()
        .route(PATH, post(handle))
        .with_state(Desk { room: Arc::new(Semaphore::new(AT_ONCE)), counts })
}

async fn handle(State(desk): State<Desk>, request: Request<Body>) -> Response {
    let read = async {
        let _room = desk.room.acquire().await.ok();
        let bytes = to_bytes(request.into_body(), LIMIT).await.map_err(|error| error.to_string())?;
        let asked: Value = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        review(&asked).ok_or_else(|| "no AdmissionReview of admission.k8s.io/v1 with a request".to_string())
    };
    let answer = timeout(PATIENCE, read).await.unwrap_or_else(|_| Err("the review came too slowly".into()));
    let result = match &answer {
        Ok(answer) if answer["response"]["allowed"] == true => "allowed",
        Ok(_) => "refused",
        Err(_) => "unreadable",
    };
    desk.counts.with_label_values(&[result]).inc();
    match answer {
        Ok(answer) => Json(answer).into_response(),
        Err(reason) => (StatusCode::BAD_REQUEST, reason + "\n").into_response(),
    }
}

/// The answer to a review; none when it is none.
pub fn review(asked: &Value) -> Option<Value> {
    let request = &asked["request"];
    let uid = request["uid"].as_str()?;
    let problems = problems(request);
    let (errors, others): (Vec<_>, Vec<_>) =
        problems.iter().partition(|problem| problem.severity == Severity::Error);
    // Somebody who only changes labels, or removes a finalizer, is not held up by an older mistake.
    let untouched =
        request["operation"] == "UPDATE" && request["oldObject"]["spec"] == request["object"]["spec"];
    let mut response = json!({"uid": uid, "allowed": errors.is_empty() || untouched});
    let mut told = others;
    if untouched {
        told.extend(&errors);
    } else if !errors.is_empty() {
        let message = errors.iter().map(|error| said(error)).collect::<Vec<_>>().join("\n");
        response["status"] = json!({"code": 422, "reason": "Invalid", "message": message});
    }
    let warnings: Vec<String> = told
        .iter()
        .filter(|problem| problem.severity != Severity::Info)
        .take(WARNINGS)
        .map(|problem| said(problem))
        .map(|said| said[..said.floor_char_boundary(WARNING)].to_string())
        .collect();
    if !warnings.is_empty() {
        response["warnings"] = json!(warnings);
    }
    Some(json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

/// What is wrong in the object of a request.
fn problems(request: &Value) -> Vec<Problem> {
    let mut object = request["object"].clone();
    if !object.is_object() {
        return Vec::new();
    }
    let meta = &mut object["metadata"];
    // Names that the API server makes up, it makes up later.
    if meta["name"].is_null() && meta["generateName"].is_string() {
        meta["name"] = "generated".into();
    }
    if meta["namespace"].is_null() && request["namespace"].is_string() {
        meta["namespace"] = request["namespace"].clone();
    }
    let sink = Sink::default();
    object::parse(&object, &sink);
    sink.into_problems()
}

fn said(problem: &Problem) -> String {
    format!("{}: {} [{}]; {}", problem.field, problem.reason, problem.code, problem.remedy)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn asked(operation: &str, timeout: &str, old: &str) -> Value {
        let object = |timeout: &str| {
            json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                "metadata": {"generateName": "a-", "labels": {"now": timeout}},
                "spec": {"hosts": ["web"], "http": [{"timeout": timeout, "route": [{"destination": {"host": "web"}}]}]}})
        };
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "7",
            "operation": operation, "namespace": "shop", "object": object(timeout), "oldObject": object(old)}})
    }

    #[test]
    fn a_mistake_is_refused_with_field_reason_and_remedy_and_a_good_object_is_not() {
        let good = review(&asked("CREATE", "1s", "")).unwrap();
        assert_eq!((&good["response"]["uid"], &good["response"]["allowed"]), (&json!("7"), &json!(true)));
        let bad = review(&asked("CREATE", "soon", "")).unwrap();
        assert_eq!(bad["response"]["allowed"], false);
        let message = bad["response"]["status"]["message"].as_str().unwrap();
        assert!(message.contains("spec.http[0].timeout") && message.contains("; "), "{message}");
    }

    #[test]
    fn an_older_mistake_holds_up_nobody_who_leaves_the_spec_as_it_is() {
        let mut same = asked("UPDATE", "soon", "soon");
        same["request"]["object"]["metadata"]["labels"]["now"] = json!("other");
        let answer = review(&same).unwrap();
        assert_eq!(answer["response"]["allowed"], true);
        assert!(answer["response"]["warnings"][0].as_str().unwrap().contains("timeout"), "{answer}");
        assert_eq!(review(&asked("UPDATE", "soon", "1s")).unwrap()["response"]["allowed"], false);
    }

    #[test]
    fn what_is_deleted_is_allowed_and_what_is_no_review_is_not_answered() {
        let mut gone = asked("DELETE", "soon", "soon");
        gone["request"]["object"] = Value::Null;
        assert_eq!(review(&gone).unwrap()["response"]["allowed"], true);
        for odd in [json!({}), json!([]), json!({"request": {}}), json!("x")] {
            assert!(review(&odd).is_none(), "{odd}");
        }
    }
}

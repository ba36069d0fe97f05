//! Waiting until what was applied runs.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::{
    ApiError, Cluster,
    kinds::{collection, path},
    pod::{Trouble, text, trouble},
};
use crate::exit::Failure;

/// Time between two questions.
pub const PERIOD: Duration = Duration::from_secs(1);

/// How far a DaemonSet or Deployment is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Rollout {
    /// `kind name`.
    pub object: String,
    /// Pods that should be.
    pub wanted: i64,
    /// Pods of the newest version that are ready.
    pub ready: i64,
    /// Whether it is complete.
    pub done: bool,
    /// What is wrong with its pods.
    pub troubles: Vec<Trouble>,
}

/// How far a DaemonSet or Deployment is; none when there is none.
///
/// # Errors
/// The API server does not answer.
pub async fn look(
    cluster: &Cluster,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Option<Rollout>, ApiError> {
    let Some(object) = cluster.get(&path("apps/v1", kind, namespace, name)).await? else { return Ok(None) };
    let query = format!("labelSelector=app.kubernetes.io%2Fname%3D{name}");
    let pods = cluster.list(&collection("v1", "Pod", namespace), &query).await?;
    Ok(Some(judge(kind, name, &object, &pods)))
}

fn judge(kind: &str, name: &str, object: &Value, pods: &[Value]) -> Rollout {
    let number = |pointer| object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default();
    let seen = number("/status/observedGeneration") >= number("/metadata/generation");
    let (wanted, updated, ready) = match kind {
        "DaemonSet" => {
            let wanted = number("/status/desiredNumberScheduled");
            (wanted, number("/status/updatedNumberScheduled"), number("/status/numberReady"))
        }
        _ => {
            let wanted = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
            (wanted, number("/status/updatedReplicas"), number("/status/availableReplicas"))
        }
    };
    let surplus = kind != "DaemonSet" && number("/status/replicas") > wanted;
    let ready = ready.min(updated);
    // A DaemonSet without nodes is complete, but its controller has to have seen it.
    let done = seen && ready >= wanted && !surplus && number("/status/observedGeneration") > 0;
    let going = |pod: &&Value| text(pod, "/metadata/deletionTimestamp").is_empty();
    let troubles = pods.iter().filter(going).filter_map(trouble).collect();
    Rollout { object: format!("{kind} {name}"), wanted, ready, done, troubles }
}

impl Rollout {
    /// In a line.
    pub fn line(&self) -> String {
        let first = self.troubles.first().map(|t| format!(" ({} {})", t.pod, t.reason)).unwrap_or_default();
        format!("{}: {} of {} ready{first}", self.object, self.ready, self.wanted)
    }
}

/// Waits until it is complete, and calls `say` with each line that is new.
///
/// # Errors
/// It is not complete at the deadline, is not there, or the API server does not answer by then.
pub async fn wait(
    cluster: &Cluster,
    (kind, namespace, name): (&str, &str, &str),
    deadline: Instant,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(), Failure> {
    let mut last = String::new();
    loop {
        let failure = match look(cluster, kind, namespace, name).await {
            Ok(Some(rollout)) => {
                let line = rollout.line();
                if line != last {
                    say(&line);
                    last = line;
                }
                if rollout.done {
                    return Ok(());
                }
                unfinished(&rollout)
            }
            Ok(None) => Failure::new(format!("there is no {kind} {namespace}/{name}"), "run culvert install"),
            Err(error) => error.into(),
        };
        if Instant::now() >= deadline {
            return Err(failure);
        }
        sleep(PERIOD).await;
    }
}

fn unfinished(rollout: &Rollout) -> Failure {
    let next = match rollout.troubles.first() {
        Some(trouble) => trouble.next.clone(),
        None => "culvert check; or wait longer with --timeout SECONDS".to_owned(),
    };
    Failure::new(format!("not complete in time: {}", rollout.line()), next)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rollout_is_complete_only_with_every_pod_of_the_newest_version() {
        let set = |generation: i64, seen: i64, updated: i64, ready: i64| {
            let status = json!({"observedGeneration": seen, "desiredNumberScheduled": 2, "updatedNumberScheduled": updated, "numberReady": ready});
            judge("DaemonSet", "a", &json!({"metadata": {"generation": generation}, "status": status}), &[])
                .done
        };
        assert!(set(2, 2, 2, 2));
        assert!(!set(3, 2, 2, 2), "the controller has not seen the change");
        assert!(!set(2, 2, 1, 2), "a pod is of the old version");
        assert!(!set(2, 2, 2, 1));
        assert!(!judge("DaemonSet", "a", &json!({"metadata": {}}), &[]).done, "nobody looked at it");
        let deployment = |replicas: i64| json!({"metadata": {"generation": 1}, "spec": {"replicas": 1}, "status": {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1, "replicas": replicas}});
        assert!(judge("Deployment", "a", &deployment(1), &[]).done);
        assert!(!judge("Deployment", "a", &deployment(2), &[]).done, "the old one has not gone");
    }
}

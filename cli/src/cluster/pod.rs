//! Why a pod is not ready, in words with a remedy.

use serde_json::Value;

/// A pod that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Trouble {
    /// `namespace/name`.
    pub pod: String,
    /// Its node; empty when it has none.
    pub node: String,
    /// What is wrong.
    pub reason: String,
    /// What to do.
    pub next: String,
}

/// A text of an object; empty when it is not there.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// `namespace/name` of an object.
pub fn name(object: &Value) -> String {
    format!("{}/{}", text(object, "/metadata/namespace"), text(object, "/metadata/name"))
}

/// Whether the condition is `True`.
pub fn condition(object: &Value, kind: &str) -> bool {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|c| c["type"] == kind && c["status"] == "True")
}

/// What is wrong with a pod; none when it is ready.
pub fn trouble(pod: &Value) -> Option<Trouble> {
    if condition(pod, "Ready") {
        return None;
    }
    let pod_name = name(pod);
    let logs =
        format!("kubectl -n {} logs {}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    let describe = logs.replacen(" logs ", " describe pod ", 1);
    let started = pod.pointer("/status/containerStatuses").is_some();
    let phase = format!("is {}, not ready", text(pod, "/status/phase").to_lowercase());
    let (reason, next) = unschedulable(pod)
        .or_else(|| waiting(pod, &logs, &describe))
        .unwrap_or_else(|| (phase, if started { logs.clone() } else { describe.clone() }));
    Some(Trouble { pod: pod_name, node: text(pod, "/spec/nodeName").to_owned(), reason, next })
}

fn unschedulable(pod: &Value) -> Option<(String, String)> {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array)?;
    let waits = conditions.iter().find(|c| c["type"] == "PodScheduled" && c["status"] == "False")?;
    let message = waits["message"].as_str().unwrap_or("no reason given");
    let next = "make room, or change agent.resources, agent.tolerations or control.nodeSelector with culvert upgrade --set";
    Some((format!("has no node: {message}"), next.to_owned()))
}

fn waiting(pod: &Value, logs: &str, describe: &str) -> Option<(String, String)> {
    let of = |list: &str| pod.pointer(&format!("/status/{list}")).and_then(Value::as_array).cloned();
    let containers = [of("initContainerStatuses"), of("containerStatuses")];
    for status in containers.into_iter().flatten().flatten() {
        let Some(wait) = status.pointer("/state/waiting") else { continue };
        let reason = wait["reason"].as_str().unwrap_or("waiting");
        let message = wait["message"].as_str().unwrap_or_default();
        let said = if message.is_empty() { reason.to_owned() } else { format!("{reason}: {message}") };
        return Some(match reason {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" => {
                let image = status["image"].as_str().unwrap_or_default();
                let next = "put the image where the node finds it: load the archive on the nodes, or name a registry with --set image.registry=…";
                (format!("cannot get its image {image}: {said}"), next.to_owned())
            }
            "CrashLoopBackOff" => {
                let code = status.pointer("/lastState/terminated/exitCode").and_then(Value::as_i64);
                let code = code.map(|code| format!(", last with exit code {code}")).unwrap_or_default();
                (format!("ends again and again{code}"), format!("{logs} --previous"))
            }
            _ => (said, describe.to_owned()),
        });
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(status: Value) -> Value {
        json!({"metadata": {"namespace": "n", "name": "p"}, "spec": {"nodeName": "node-1"}, "status": status})
    }

    fn waits(reason: &str) -> Trouble {
        let container = json!({"image": "x:1", "state": {"waiting": {"reason": reason, "message": "said"}}, "lastState": {"terminated": {"exitCode": 2}}});
        trouble(&pod(json!({"containerStatuses": [container]}))).unwrap()
    }

    #[test]
    fn each_trouble_of_a_pod_has_its_own_remedy() {
        assert_eq!(trouble(&pod(json!({"conditions": [{"type": "Ready", "status": "True"}]}))), None);
        let image = waits("ImagePullBackOff");
        assert!(image.reason.contains("cannot get its image x:1") && image.next.contains("image.registry"));
        let crash = waits("CrashLoopBackOff");
        assert!(
            crash.reason.contains("exit code 2") && crash.next.ends_with("logs p --previous"),
            "{crash:?}"
        );
        assert!(waits("ContainerCreating").next.contains("describe pod p"));
        let homeless =
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes"}]});
        assert!(trouble(&pod(homeless)).unwrap().reason.contains("has no node: 0/2 nodes"));
        assert!(trouble(&pod(json!({"phase": "Running"}))).unwrap().reason.contains("running, not ready"));
    }
}

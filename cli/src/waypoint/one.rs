//! One waypoint: making, removing, looking at it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{GATEWAY, USE};
use crate::{
    args::lifecycle::{WaypointApply, WaypointOne},
    cluster::{
        Cluster,
        connect::connect,
        kinds::path,
        pod::{condition, text},
        rollout,
    },
    exit::{Exit, Failure},
    manifest::WAYPOINT_CLASS,
    style::Style,
};

fn gateway(options: &WaypointApply) -> Value {
    json!({
        "apiVersion": GATEWAY, "kind": "Gateway",
        "metadata": {
            "name": options.one.name, "namespace": options.one.namespace,
            "labels": {"istio.io/waypoint-for": options.traffic},
        },
        "spec": {
            "gatewayClassName": WAYPOINT_CLASS,
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE", "allowedRoutes": {"namespaces": {"from": "Same"}}}],
        },
    })
}

fn place(one: &WaypointOne) -> String {
    path(GATEWAY, "Gateway", &one.namespace, &one.name)
}

fn shown(one: &WaypointOne) -> String {
    format!("{}/{}", one.namespace, one.name)
}

/// Makes a waypoint.
///
/// # Errors
/// The Gateway belongs to another class, or the API server refuses it.
pub(super) async fn apply(
    options: &WaypointApply,
    as_json: bool,
    style: Style,
) -> Result<(Exit, String), Failure> {
    let one = &options.one;
    let cluster = connect(&one.reach).await?;
    if let Some(there) = cluster.get(&place(one)).await? {
        ours(one, &there)?;
    }
    let change = cluster.apply(&place(one), &gateway(options), false).await.map_err(|error| match error.status {
        404 => Failure::new(
            format!("Gateway {} is not applied: {}", shown(one), error.message),
            "is the namespace right, and are the CRDs of the Gateway API there? culvert check names those",
        ),
        _ => error.into(),
    })?;
    let namespace = path("v1", "Namespace", "", &one.namespace);
    if options.enroll_namespace {
        cluster.merge(&namespace, &json!({"metadata": {"labels": {USE: one.name}}})).await?;
    }
    if options.wait {
        let deadline = Instant::now() + Duration::from_secs(one.timeout);
        wait(&cluster, one, deadline).await?;
    }
    if as_json {
        let value = json!({"waypoint": shown(one), "change": change, "enrolledNamespace": options.enroll_namespace, "ready": options.wait});
        return Ok((Exit::Well, format!("{value:#}\n")));
    }
    let state = if options.wait { "ready" } else { "applied" };
    let next = match options.enroll_namespace {
        true => format!("  next: culvert waypoint status {} -n {}\n", one.name, one.namespace),
        false => format!(
            "  next: choose who uses it: kubectl label namespace {} {USE}={}\n",
            one.namespace, one.name
        ),
    };
    Ok((Exit::Well, format!("{}\n{next}", style.good(&format!("waypoint {} is {state}", shown(one))))))
}

/// Waits for the Deployment that the control plane makes of the Gateway.
async fn wait(cluster: &Cluster, one: &WaypointOne, deadline: Instant) -> Result<(), Failure> {
    let place = path("apps/v1", "Deployment", &one.namespace, &one.name);
    while cluster.get(&place).await?.is_none() {
        if Instant::now() >= deadline {
            let reason = format!("the control plane made no Deployment for waypoint {} in time", shown(one));
            return Err(Failure::new(
                reason,
                "culvert waypoint status says what it objects to; culvert check, whether it runs",
            ));
        }
        tokio::time::sleep(rollout::PERIOD).await;
    }
    let mut say = |line: &str| eprintln!("  {line}");
    rollout::wait(cluster, ("Deployment", &one.namespace, &one.name), deadline, &mut say).await
}

fn ours(one: &WaypointOne, there: &Value) -> Result<(), Failure> {
    match text(there, "/spec/gatewayClassName") {
        WAYPOINT_CLASS => Ok(()),
        class => {
            let reason = format!("Gateway {} is of class {class}, not {WAYPOINT_CLASS}", shown(one));
            Err(Failure::new(reason, "choose another name, or change its class with kubectl edit"))
        }
    }
}

/// Removes a waypoint.
///
/// # Errors
/// There is none, it is of another class, or the API server refuses.
pub(super) async fn delete(one: &WaypointOne, as_json: bool) -> Result<(Exit, String), Failure> {
    let cluster = connect(&one.reach).await?;
    let there = found(&cluster, one).await?;
    ours(one, &there)?;
    cluster.delete(&place(one)).await?;
    if as_json {
        return Ok((Exit::Well, format!("{:#}\n", json!({"waypoint": shown(one), "removed": true}))));
    }
    let next = format!(
        "labels {USE}={} that name it refuse traffic until they are removed: culvert waypoint list -n {} showed them",
        one.name, one.namespace
    );
    Ok((Exit::Well, format!("waypoint {} is removed\n  next: {next}\n", shown(one))))
}

async fn found(cluster: &Cluster, one: &WaypointOne) -> Result<Value, Failure> {
    let missing = || {
        Failure::new(
            format!("there is no Gateway {}", shown(one)),
            "culvert waypoint list shows what is there",
        )
    };
    cluster.get(&place(one)).await?.ok_or_else(missing)
}

/// Whether a waypoint is ready.
///
/// # Errors
/// There is none, or the API server does not answer.
pub(super) async fn status(
    one: &WaypointOne,
    as_json: bool,
    style: Style,
) -> Result<(Exit, String), Failure> {
    let cluster = connect(&one.reach).await?;
    let gateway = cluster.get(&place(one)).await?;
    let rollout = rollout::look(&cluster, "Deployment", &one.namespace, &one.name).await?;
    if gateway.is_none() && rollout.is_none() {
        return found(&cluster, one).await.map(|_| (Exit::NotWell, String::new()));
    }
    let conditions = gateway.as_ref().map(problems).unwrap_or_default();
    let ready = rollout.as_ref().is_some_and(|r| r.done) && conditions.is_empty();
    if as_json {
        let value = json!({"waypoint": shown(one), "ready": ready, "byItself": gateway.is_none(), "rollout": rollout, "problems": conditions});
        return Ok((Exit::well_if(ready), format!("{value:#}\n")));
    }
    let mut out = match ready {
        true => format!("{}\n", style.good(&format!("waypoint {} is ready", shown(one)))),
        false => format!("{}\n", style.bad(&format!("waypoint {} is not ready", shown(one)))),
    };
    if gateway.is_none() {
        out.push_str("  made by itself, because routes or policies need it\n");
    }
    match &rollout {
        Some(rollout) => {
            out.push_str(&format!("  {}\n", rollout.line()));
            out.extend(rollout.troubles.iter().map(|t| format!("  next: {}\n", t.next)));
        }
        None => out.push_str(
            "  its Deployment does not exist yet\n  next: culvert check: does the control plane run?\n",
        ),
    }
    out.extend(conditions.iter().map(|problem| format!("  {problem}\n")));
    Ok((Exit::well_if(ready), out))
}

/// What the control plane objects to.
fn problems(gateway: &Value) -> Vec<String> {
    let conditions = gateway.pointer("/status/conditions").and_then(Value::as_array);
    let bad = |c: &&Value| c["status"] == "False";
    let said = |c: &Value| format!("{}: {} {}", text(c, "/type"), text(c, "/reason"), text(c, "/message"));
    let mut problems: Vec<_> = conditions.into_iter().flatten().filter(bad).map(said).collect();
    if problems.is_empty() && !condition(gateway, "Accepted") {
        problems.push("nobody has accepted the Gateway yet".to_owned());
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_control_plane_objects_to_is_shown() {
        let with = |status: &str| json!({"status": {"conditions": [{"type": "Accepted", "status": status, "reason": "R", "message": "m"}]}});
        assert_eq!(problems(&with("False")), ["Accepted: R m"]);
        assert!(problems(&with("True")).is_empty());
        assert_eq!(problems(&json!({})), ["nobody has accepted the Gateway yet"]);
        assert_eq!(problems(&with("Unknown")).len(), 1);
    }

    #[test]
    fn a_gateway_of_another_class_is_left_alone() {
        let one =
            WaypointOne { name: "w".into(), namespace: "n".into(), timeout: 1, reach: Default::default() };
        let error = ours(&one, &json!({"spec": {"gatewayClassName": "istio"}})).unwrap_err();
        assert!(error.reason.contains("n/w is of class istio"), "{error}");
    }
}

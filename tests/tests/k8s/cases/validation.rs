//! The validating webhook.

use anyhow::{Context, Result, ensure};
use harness::wait;
use serde_json::{Value, json};

use crate::stage::{LIMIT, ROLLOUT, SYSTEM, Stage};

const NS: &str = "validation";

/// A mistake is refused when it is written, with field and reason; while no control plane answers it is let
/// in, and then said afterwards.
pub fn mistakes_are_refused_when_written_and_let_in_while_nobody_can_judge_them(
    stage: &mut Stage,
) -> Result<()> {
    stage.namespace(NS, false)?;
    // A string for Istio's own schema, which does not look into it.
    let route = |pattern: &str| {
        json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {"name": "route", "namespace": NS},
            "spec": {"hosts": ["web"], "http": [{"match": [{"uri": {"regex": pattern}}], "route": [{"destination": {"host": "web"}}]}]}})
    };
    let (good, bad) = (route("/shop"), route("/(shop"));
    wait::until(LIMIT, "a mistake to be refused", || {
        let refused = stage.cluster.apply_object(&bad).err().map(|error| format!("{error:#}"));
        if refused.is_none() {
            let _ = stage.cluster.kubectl(&["-n", NS, "delete", "virtualservice", "route"]);
        }
        refused
    })
    .and_then(|said| {
        let named = said.contains("validation.culvert.dev") && said.contains("spec.http[0].match[0].uri");
        ensure!(named, "the refusal names neither who nor where: {said}");
        Ok(())
    })?;
    stage.cluster.apply_object(&good).context("a good object is refused")?;

    let outcome = without_control(stage, &bad);
    stage.cluster.kubectl(&["-n", SYSTEM, "scale", "deployment/culvert-control", "--replicas=1"])?;
    stage.cluster.rolled_out(SYSTEM, "deployment/culvert-control", ROLLOUT)?;
    outcome?;
    let words = ["-n", NS, "virtualservice", "route"];
    stage.cluster.wait_for(LIMIT, "the status to say what is wrong", &words, |object| {
        object["status"].to_string().contains("match[0].uri").then_some(())
    })
}

fn without_control(stage: &Stage, bad: &Value) -> Result<()> {
    stage.cluster.kubectl(&["-n", SYSTEM, "scale", "deployment/culvert-control", "--replicas=0"])?;
    let gone = ["-n", SYSTEM, "wait", "--for=delete", "pods", "-l", "app.kubernetes.io/name=culvert-control"];
    stage.cluster.kubectl(&[&gone[..], &["--timeout=60s"]].concat())?;
    stage.cluster.apply_object(bad).context("an outage of the control plane keeps objects out").map(drop)
}

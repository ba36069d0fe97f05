//! A hundred pods on a node.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::stage::Stage;

const NS: &str = "many";

/// They come up, are enrolled, and answer under STRICT.
pub fn a_hundred_pods_on_a_node_are_enrolled_and_answer(stage: &mut Stage) -> Result<()> {
    let outcome = answer(stage);
    // The next case wants the nodes for itself.
    stage.cluster.kubectl(&["-n", NS, "scale", "deployment/web", "--replicas=0"])?;
    stage.cluster.kubectl(&["-n", NS, "wait", "--for=delete", "pods", "-l", "app=web", "--timeout=180s"])?;
    outcome
}

fn answer(stage: &Stage) -> Result<()> {
    stage.namespace(NS, true)?;
    stage.strict(NS)?;
    stage.idle(NS, "client", "node-a")?;
    stage.web(NS, "web", 100, &json!({"nodeName": "node-b"}))?;
    stage.say("a hundred pods are ready");
    stage.enrolled(NS, true)?;
    stage.say("a hundred pods are enrolled");
    stage.until(NS, "client", "/usr/bin/curl -sf --max-time 5 http://web/")?;
    let answers = stage.ask(NS, "client", "http://web/whoami", 300)?;
    let mut from: Vec<&str> = answers.iter().filter_map(|answer| answer.split(' ').next()).collect();
    let bad: Vec<_> = answers.iter().filter(|answer| !answer.starts_with("web-")).collect();
    ensure!(bad.is_empty(), "of 300 requests failed: {bad:?}");
    from.sort_unstable();
    from.dedup();
    ensure!(from.len() > 60, "300 requests reached only {} of 100 pods", from.len());
    Ok(())
}

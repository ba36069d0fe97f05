//! `culvert check` and `culvert status` of a cluster that is well.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::stage::Stage;

/// Nothing is wrong, and that is what they say.
pub fn culvert_check_finds_nothing_wrong_and_status_names_every_pod_of_ours(stage: &mut Stage) -> Result<()> {
    stage.shop()?;
    let config = stage.cluster.kubeconfig().display().to_string();
    let text = stage.culvert(&["check", "--kubeconfig", &config, "--wait", "--json"])?;
    let told: Value = serde_json::from_str(&text).context("culvert check --json")?;
    ensure!(told["errors"] == 0, "{text}");
    let status = stage.culvert(&["status", "--kubeconfig", &config])?;
    ensure!(status.contains("node-a") && status.contains("node-b"), "{status}");
    Ok(())
}

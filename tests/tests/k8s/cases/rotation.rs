//! Another root for the mesh's certificates.

use anyhow::{Context, Result, ensure};
use harness::wait;
use serde_json::json;

use crate::{
    shop::{CLIENT, SHOP, URL},
    stage::{ROLLOUT, SYSTEM, Stage},
};

const BUNDLE: &str = "culvert-ca-root-cert";
/// Seconds; longer than a kubelet takes to bring a changed ConfigMap to its pods here.
const OVERLAP: &str = "--root-overlap=20";

/// Asked for by an annotation, it passes through both phases under load without a failed handshake, and
/// ends with the new root alone.
pub fn the_root_is_rotated_under_load_without_a_failed_request(stage: &mut Stage) -> Result<()> {
    let outcome = rotate(stage);
    if outcome.is_err() {
        // The cases after this one want a control plane that is well.
        stage.cluster.kubectl(&["-n", SYSTEM, "rollout", "undo", "deployment/culvert-control"])?;
    }
    outcome
}

fn rotate(stage: &Stage) -> Result<()> {
    stage.shop()?;
    let argument =
        json!([{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": OVERLAP}]);
    let words = ["-n", SYSTEM, "patch", "deployment", "culvert-control", "--type=json", "-p"];
    stage.cluster.kubectl(&[&words[..], &[&argument.to_string()]].concat())?;
    stage.cluster.rolled_out(SYSTEM, "deployment/culvert-control", ROLLOUT)?;
    let before = roots(stage)?;
    ensure!(before.len() == 1, "{} roots before", before.len());
    let load = stage.load(SHOP, CLIENT, URL, 75, 20, true)?;
    let rotate = "culvert.dev/rotate=by-the-test";
    stage.cluster.kubectl(&["-n", SYSTEM, "annotate", "secret", "culvert-ca", rotate])?;
    wait::until(ROLLOUT, "two roots in the bundle", || (roots(stage).ok()?.len() == 2).then_some(()))?;
    stage.say("both roots are accepted");
    wait::until(ROLLOUT, "the new root alone", || {
        let now = roots(stage).ok()?;
        (now.len() == 1 && now != before).then_some(())
    })?;
    stage.say("the old root is gone");
    load.end(stage)?.all_good(1200)
}

/// The certificates that a namespace's pods are told to accept.
fn roots(stage: &Stage) -> Result<Vec<String>> {
    let map = stage.cluster.get(&["-n", SHOP, "configmap", BUNDLE])?;
    let text = map["data"]["root-cert.pem"].as_str().context("a bundle")?;
    let end = "-----END CERTIFICATE-----";
    Ok(text.split(end).map(str::trim).filter(|part| !part.is_empty()).map(str::to_string).collect())
}

//! Another version, and back.

use anyhow::{Result, ensure};
use harness::capture::Capture;
use serde_json::Value;

use crate::{
    load::SECRET,
    shop::{CLIENT, SHOP, URL},
    stage::{SYSTEM, Stage},
};

const REGISTRY: &str = "culvert.local";
const THIS: &str = env!("CARGO_PKG_VERSION");
const NEXT: &str = "9.9.9";

/// Under load, control plane, waypoint and agents are replaced by those of another tag, and by the first
/// ones again. An agent's connections end with it after their grace: what fails is counted, goes nowhere
/// in plaintext, and traffic goes on by itself.
pub fn an_upgrade_and_a_downgrade_under_load_replace_every_part_and_leak_nothing(
    stage: &mut Stage,
) -> Result<()> {
    stage.shop()?;
    stage.cluster.retag(REGISTRY, THIS, NEXT)?;
    let file = stage.cluster.root.join("upgraded.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    for tag in [NEXT, THIS] {
        let load = stage.load(SHOP, CLIENT, URL, 35, 50, true)?;
        let config = stage.cluster.kubeconfig().display().to_string();
        let setting = format!("image.tag={tag}");
        let words = ["upgrade", "--kubeconfig", &config, "--wait", "--set", &setting, "--json"];
        let said: Value = serde_json::from_str(&stage.culvert(&words)?)?;
        ensure!(said["ready"] == true && said["error"].is_null(), "{said}");
        let answers = load.end(stage)?;
        stage.say(&format!("tag {tag}: {:?}", answers.0));
        ensure!(answers.good() > 700, "{:?}", answers.0);
        for namespace in [SYSTEM, SHOP] {
            replaced(stage, namespace, tag)?;
        }
        stage.load(SHOP, CLIENT, URL, 4, 50, true)?.end(stage)?.all_good(150)?;
    }
    ensure!(!capture.stop()?.contains(SECRET), "a request is readable on the wire");
    Ok(())
}

/// Waits until every image of ours in a namespace is of a tag.
fn replaced(stage: &Stage, namespace: &str, tag: &str) -> Result<()> {
    let what = format!("images of tag {tag} in {namespace}");
    stage.cluster.wait_for(crate::stage::ROLLOUT, &what, &["-n", namespace, "pods"], |list| {
        let pods = list["items"].as_array()?;
        let containers = pods.iter().filter_map(|pod| pod["spec"]["containers"].as_array()).flatten();
        let images: Vec<&str> = containers.filter_map(|one| one["image"].as_str()).collect();
        let mut ours = images.iter().filter_map(|image| image.strip_prefix("culvert.local/"));
        ours.all(|image| image.starts_with("test-tools") || image.ends_with(&format!(":{tag}"))).then_some(())
    })
}

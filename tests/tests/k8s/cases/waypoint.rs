//! Waypoints that come by themselves.

use anyhow::{Result, ensure};
use harness::wait;

use crate::{
    shop::{CLIENT, SHOP, URL},
    stage::{LIMIT, ROLLOUT, Stage},
};

const KINDS: [&str; 4] = ["deployment", "service", "serviceaccount", "poddisruptionbudget"];

/// A route brings one with everything that belongs to it, `culvert waypoint` lists it, and when the last
/// route goes it goes too, and traffic takes the direct way.
pub fn a_waypoint_is_made_for_a_route_listed_and_removed_with_the_last_route(
    stage: &mut Stage,
) -> Result<()> {
    stage.shop()?;
    for kind in KINDS {
        stage.cluster.get(&["-n", SHOP, kind, "waypoint"])?;
    }
    let config = stage.cluster.kubeconfig().display().to_string();
    let listed = stage.culvert(&["waypoint", "list", "--kubeconfig", &config, "-n", SHOP])?;
    ensure!(listed.contains("waypoint"), "culvert waypoint list: {listed}");
    stage.cluster.kubectl(&["-n", SHOP, "delete", "virtualservice", "nginx-vs"])?;
    stage.cluster.kubectl(&["-n", SHOP, "delete", "destinationrule", "nginx-dr"])?;
    for kind in KINDS {
        wait::until(ROLLOUT, &format!("the waypoint's {kind} to go"), || {
            stage.cluster.kubectl(&["-n", SHOP, "get", kind, "waypoint"]).is_err().then_some(())
        })?;
    }
    stage.until(SHOP, CLIENT, &format!("/usr/bin/curl -sf --max-time 5 {URL}"))?;
    stage.apply_file(SHOP, "examples/nginx-canary/routing.yaml")?;
    stage.waypoint(SHOP)?;
    wait::until(LIMIT, "answers through the new waypoint", || {
        let answers = stage.ask(SHOP, CLIENT, URL, 40).ok()?;
        let from_a = answers.iter().filter(|answer| answer.contains("Full Cycle A")).count();
        (from_a > 28).then_some(())
    })
}

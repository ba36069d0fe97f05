//! Rolling restarts under load.

use anyhow::{Result, ensure};
use harness::capture::Capture;

use crate::{
    load::SECRET,
    shop::{CLIENT, SHOP, URL},
    stage::{ROLLOUT, SYSTEM, Stage},
};

/// Control plane and waypoint are replaced without a failed request, on kept and on fresh connections.
pub fn control_plane_and_waypoint_are_replaced_under_load_without_a_failed_request(
    stage: &mut Stage,
) -> Result<()> {
    stage.shop()?;
    for (namespace, workload) in [(SYSTEM, "deployment/culvert-control"), (SHOP, "deployment/waypoint")] {
        let kept = stage.load(SHOP, CLIENT, URL, 12, 50, false)?;
        let fresh = stage.load(SHOP, CLIENT, URL, 12, 50, true)?;
        stage.cluster.kubectl(&["-n", namespace, "rollout", "restart", workload])?;
        stage.cluster.rolled_out(namespace, workload, ROLLOUT)?;
        let (kept, fresh) = (kept.end(stage)?, fresh.end(stage)?);
        stage.say(&format!("{workload}: kept {:?}, fresh {:?}", kept.0, fresh.0));
        kept.all_good(500)?;
        fresh.all_good(500)?;
    }
    Ok(())
}

/// An agent that is replaced ends its connections after their grace, and nothing else: what fails is
/// counted, goes nowhere in plaintext, and traffic goes on by itself.
pub fn agents_that_are_replaced_under_load_fail_closed_and_recover(stage: &mut Stage) -> Result<()> {
    stage.shop()?;
    let file = stage.cluster.root.join("replaced.pcap");
    let capture = Capture::start(&stage.cluster.place(), "br0", file)?;
    let fresh = stage.load(SHOP, CLIENT, URL, 30, 50, true)?;
    stage.cluster.kubectl(&["-n", SYSTEM, "rollout", "restart", "daemonset/culvert-agent"])?;
    stage.cluster.rolled_out(SYSTEM, "daemonset/culvert-agent", ROLLOUT)?;
    let answers = fresh.end(stage)?;
    ensure!(!capture.stop()?.contains(SECRET), "a request is readable on the wire");
    stage.say(&format!("agents replaced: {:?}", answers.0));
    ensure!(answers.good() > 500, "{:?}", answers.0);
    stage.load(SHOP, CLIENT, URL, 5, 50, true)?.end(stage)?.all_good(200)
}

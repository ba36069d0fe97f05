//! Rolling restarts under load.

use anyhow::Result;

use crate::{
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

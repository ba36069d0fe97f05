//! The API server away.

use anyhow::{Result, ensure};
use harness::wait;

use crate::{
    shop::{CLIENT, SHOP, URL},
    stage::{LIMIT, Stage},
};

/// Traffic does not notice; what is applied after its return counts.
pub fn the_api_server_may_be_away_under_load_and_what_is_applied_after_its_return_counts(
    stage: &mut Stage,
) -> Result<()> {
    stage.shop()?;
    let load = stage.load(SHOP, CLIENT, URL, 25, 50, true)?;
    stage.cluster.kill_api_server();
    // Long enough for watches to break and to be tried again several times.
    let since = std::time::Instant::now();
    wait::until(LIMIT, "ten seconds without an API server", || {
        (since.elapsed().as_secs() >= 10).then_some(())
    })?;
    stage.cluster.start_api_server()?;
    load.end(stage)?.all_good(1000)?;
    let all_to_b = include_str!("all-to-b.yaml");
    stage.cluster.kubectl(&["-n", SHOP, "delete", "virtualservice", "nginx-vs"])?;
    stage.cluster.feed(&["-n", SHOP, "apply", "-f", "-"], all_to_b)?;
    let only_b = wait::until(LIMIT, "every answer from version B", || {
        let answers = stage.ask(SHOP, CLIENT, URL, 20).ok()?;
        answers.iter().all(|answer| answer.contains("Full Cycle B")).then_some(())
    });
    ensure!(only_b.is_ok(), "a route that was applied after the API server came back does not count");
    stage.cluster.kubectl(&["-n", SHOP, "delete", "virtualservice", "all-to-b"])?;
    stage.apply_file(SHOP, "examples/nginx-canary/routing.yaml")
}

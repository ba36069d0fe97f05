//! The tutorial, from the label to 90/10.

use anyhow::{Result, ensure};
use harness::wait;

use crate::stage::{LIMIT, ROLLOUT, Stage};

const URL: &str = "http://nginx-service:8000/";
const NS: &str = "tutorial";

/// Deployments and Service run; the label enrols them as they run; VirtualService and DestinationRule
/// bring a waypoint and 90/10.
pub fn a_labelled_namespace_gets_ninety_to_ten_through_a_waypoint_as_the_tutorial_says(
    stage: &mut Stage,
) -> Result<()> {
    stage.namespace(NS, false)?;
    stage.apply_file(NS, "examples/nginx-canary/app.yaml")?;
    stage.idle(NS, "client", "node-a")?;
    for version in ["nginx-a", "nginx-b"] {
        stage.cluster.rolled_out(NS, &format!("deployment/{version}"), ROLLOUT)?;
    }
    stage.until(NS, "client", &format!("/usr/bin/curl -sf --max-time 5 {URL}"))?;
    let restarts = started(stage)?;

    stage.label(NS, true)?;
    stage.enrolled(NS, true)?;
    stage.say("the running pods are enrolled");
    let answers = stage.ask(NS, "client", URL, 40)?;
    ensure!(count(&answers, "Full Cycle") == 40, "while enrolled without a route: {answers:?}");
    ensure!(started(stage)? == restarts, "enrolment restarted a pod");

    stage.apply_file(NS, "examples/nginx-canary/routing.yaml")?;
    stage.waypoint(NS)?;
    stage.say("the waypoint is ready");
    let mut last = Vec::new();
    let ninety = wait::until(LIMIT, "nine of ten answers from version A", || {
        last = stage.ask(NS, "client", URL, 200).unwrap_or_default();
        let (a, b) = (count(&last, "Full Cycle A"), count(&last, "Full Cycle B"));
        (a + b == 200 && (165..=195).contains(&a)).then_some(())
    });
    ensure!(ninety.is_ok(), "A {} B {}", count(&last, "Full Cycle A"), count(&last, "Full Cycle B"));
    stage.load(NS, "client", URL, 5, 200, false)?.end(stage)?.all_good(900)?;
    Ok(())
}

fn count(answers: &[String], what: &str) -> usize {
    answers.iter().filter(|answer| answer.contains(what)).count()
}

/// When each container started, by pod.
fn started(stage: &Stage) -> Result<String> {
    let path = "jsonpath={range .items[*]}{.metadata.name} {.status.containerStatuses[*].state.running.startedAt}{\"\\n\"}{end}";
    stage.cluster.kubectl(&["-n", NS, "get", "pods", "-o", path])
}

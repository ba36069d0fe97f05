//! Waiting for workloads, and what is wrong when they do not come.

use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;

impl Cluster {
    /// Waits until a Deployment or DaemonSet (`deployment/NAME`) runs as it is described now; what its
    /// namespace's pods say is part of the error.
    pub fn rolled_out(&self, namespace: &str, workload: &str, limit: Duration) -> Result<()> {
        let limit = format!("--timeout={}s", limit.as_secs());
        self.kubectl(&["-n", namespace, "rollout", "status", workload, &limit])
            .map(drop)
            .with_context(|| format!("{workload} did not come up:\n{}", self.trouble(namespace)))
    }

    /// Waits until every pod of a selection is ready.
    pub fn pods_ready(&self, namespace: &str, selector: &str, limit: Duration) -> Result<()> {
        let what = format!("pods of {namespace} with {selector} to be ready");
        let words = ["-n", namespace, "pods", "-l", selector];
        self.wait_for(limit, &what, &words, |list| {
            let pods = list["items"].as_array()?;
            let ready = pods.iter().all(|pod| {
                let conditions = pod["status"]["conditions"].as_array();
                conditions.is_some_and(|all| {
                    all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
                })
            });
            (ready && !pods.is_empty()).then_some(())
        })
        .with_context(|| self.trouble(namespace))
    }

    /// Pods, warnings and the last lines of logs of a namespace, as far as they can be had.
    pub fn trouble(&self, namespace: &str) -> String {
        let mut text = String::new();
        for words in [
            &["get", "pods", "-o", "wide"][..],
            &["get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp"],
        ] {
            let seen = self.kubectl(&[&["-n", namespace], words].concat());
            text.push_str(&seen.unwrap_or_else(|error| format!("{error:#}\n")));
        }
        let pods = self.kubectl(&["-n", namespace, "get", "pods", "-o", "name"]).unwrap_or_default();
        for pod in pods.lines().take(6) {
            let words = ["-n", namespace, "logs", pod, "--tail=60", "--all-containers", "--prefix"];
            let log = self.kubectl(&words).unwrap_or_default();
            // A line per connection would hide what matters.
            let told: Vec<&str> = log.lines().filter(|line| !line.contains(" access: ")).collect();
            for line in &told[told.len().saturating_sub(15)..] {
                text.extend(line.chars().take(400).chain(['\n']));
            }
        }
        text
    }
}

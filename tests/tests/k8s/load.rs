//! Load from inside a pod, by fortio, that goes on while the API server or a kubelet is away.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::stage::Stage;

/// Connections at a time.
const CONNECTIONS: &str = "4";

/// A word in a header of every request, which must not be readable on the wire.
pub const SECRET: &str = "openwords";

/// A load that runs.
pub struct Load {
    namespace: String,
    pod: String,
    file: String,
    limit: Duration,
}

/// Answers by their status; `-1` is a connection that failed.
#[derive(Debug)]
pub struct Answers(pub BTreeMap<String, u64>);

impl Answers {
    /// Answers with status 200.
    pub fn good(&self) -> u64 {
        self.0.get("200").copied().unwrap_or(0)
    }

    /// All others.
    pub fn bad(&self) -> u64 {
        self.0.iter().filter(|(status, _)| *status != "200").map(|(_, count)| count).sum()
    }

    /// Fails when a request did.
    pub fn all_good(&self, at_least: u64) -> Result<()> {
        ensure!(self.bad() == 0 && self.good() >= at_least, "answers by status: {:?}", self.0);
        Ok(())
    }
}

impl Stage {
    /// Starts load in a pod for some seconds; `fresh` makes a new connection for every request.
    pub fn load(
        &self,
        namespace: &str,
        pod: &str,
        url: &str,
        seconds: u64,
        per_second: u32,
        fresh: bool,
    ) -> Result<Load> {
        let file = format!("/tmp/load-{}.json", self.number());
        let script = format!(
            "/usr/bin/fortio load -qps {per_second} -c {CONNECTIONS} -t {seconds}s -timeout 5s -keepalive={} \
             -H secret:{SECRET} -allow-initial-errors -json {file} {url} > {file}.log 2>&1 < /dev/null &",
            !fresh
        );
        self.exec(namespace, pod, &["/bin/sh", "-c", &script])?;
        let limit = Duration::from_secs(seconds + 60);
        Ok(Load { namespace: namespace.to_string(), pod: pod.to_string(), file, limit })
    }
}

impl Load {
    /// Waits for its end.
    pub fn end(self, stage: &Stage) -> Result<Answers> {
        let script = format!("test -s {0} && cat {0}", self.file);
        let text = stage.until_within(self.limit, &self.namespace, &self.pod, &script)?;
        let told: Value = serde_json::from_str(&text).context("fortio's report")?;
        let codes = told["RetCodes"].as_object().context("fortio counts answers by status")?;
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        Ok(Answers(codes.iter().map(|(code, value)| (code.clone(), count(value))).collect()))
    }
}

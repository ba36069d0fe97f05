//! `culvert-node init FILE`: the first process of a test cluster's node. It makes the node's view of the
//! machine (own sysfs, cgroup v2, bpffs, /run, /var, /opt, an overlay on /etc), then keeps the node's
//! programs running, as an init system would. `culvert-node runc …`: runc without resource limits.
#![forbid(unsafe_code)]

mod node {
    pub mod boot;
    pub mod keep;
    pub mod runc;
}

use std::{fs, process::ExitCode};

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let verb = words.next().unwrap_or_default();
    let outcome = match verb.to_str() {
        Some("init") => init(&words.next().unwrap_or_default()),
        Some("runc") => node::runc::become_it(&words.collect::<Vec<_>>()),
        _ => Err(anyhow::anyhow!("usage: culvert-node init FILE | runc WORDS")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn init(file: &std::ffi::OsStr) -> Result<()> {
    if std::process::id() != 1 {
        bail!("this changes mounts: it runs only as the first process of a namespace of its own");
    }
    let text = fs::read_to_string(file).context("cannot read what to do")?;
    let plan: node::boot::Plan = serde_json::from_str(&text).context("what to do")?;
    node::boot::boot(&plan)?;
    node::keep::keep(&plan.programs)
}

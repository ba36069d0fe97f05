//! `culvert check`: whether a cluster is fit for Culvert, whether what is installed works, and for each
//! problem what to do.

pub mod finding;
pub mod installed;
mod mesh;
pub mod node;
pub mod nodes;
pub mod preflight;

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    args::lifecycle::Check,
    cluster::{Cluster, connect::connect},
    exit::{Exit, Failure},
    style::Style,
};
use finding::{Finding, State};

/// Between two looks with `--wait`.
const AGAIN: Duration = Duration::from_secs(2);

/// Checks: before an installation what it needs, after it also whether it works.
///
/// # Errors
/// The cluster cannot be reached or does not answer.
pub async fn run(options: &Check, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let findings = match options.node {
        true => node::probe(&options.root),
        false => last(options).await?,
    };
    let errors = count(&findings, State::Error);
    Ok((Exit::well_if(errors == 0), text(&findings, as_json, style)))
}

/// What a cluster's checks found in the end: at once, or when nothing is wrong any more or time is up.
async fn last(options: &Check) -> Result<Vec<Finding>, Failure> {
    let cluster = connect(&options.place.reach).await?;
    let until = Instant::now() + Duration::from_secs(options.timeout);
    loop {
        let looked = look(&cluster, options).await;
        let well = looked.as_ref().is_ok_and(|findings| count(findings, State::Error) == 0);
        if well || !options.wait || Instant::now() + AGAIN >= until {
            return looked;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn look(cluster: &Cluster, options: &Check) -> Result<Vec<Finding>, Failure> {
    let mut findings = preflight::look(cluster, &options.place.namespace).await?;
    if !options.before {
        findings.extend(installed::look(cluster, &options.place).await?);
    }
    Ok(findings)
}

fn count(findings: &[Finding], state: State) -> usize {
    findings.iter().filter(|finding| finding.state == state).count()
}

fn text(findings: &[Finding], as_json: bool, style: Style) -> String {
    let (errors, warnings) = (count(findings, State::Error), count(findings, State::Warning));
    if as_json {
        let value = json!({"errors": errors, "warnings": warnings, "findings": findings});
        return format!("{value:#}\n");
    }
    let (mut out, mut area) = (String::new(), "");
    for finding in findings {
        if finding.area != area {
            area = finding.area;
            let _ = writeln!(out, "{}{}", if out.is_empty() { "" } else { "\n" }, style.bold(area));
        }
        let mark = match finding.state {
            State::Fine => style.good("ok     "),
            State::Warning => style.doubtful("warning"),
            State::Error => style.bad("error  "),
        };
        let _ = writeln!(out, "  {mark} {}", finding.what);
        if let Some(next) = &finding.next {
            let _ = writeln!(out, "          next: {next}");
        }
    }
    let verdict = match (errors, warnings) {
        (0, 0) => style.good("all is well"),
        (0, _) => style.doubtful(&format!("{warnings} warnings, no error")),
        _ => style.bad(&format!("{errors} errors, {warnings} warnings")),
    };
    let _ = writeln!(out, "\n{verdict}");
    out
}

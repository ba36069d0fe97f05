//! What an installation or upgrade did, and what comes next.

use std::fmt::Write;

use serde_json::json;

use super::{carry::Done, plan::Plan};
use crate::{
    cluster::client::Change,
    exit::{Exit, Failure},
    style::Style,
};

/// As text or JSON. `what` is what happened: `installed` or `upgraded`.
///
/// # Errors
/// There is no JSON of it.
pub fn text(
    what: &str,
    plan: &Plan,
    done: &Done,
    dry_run: bool,
    as_json: bool,
    style: Style,
) -> Result<(Exit, String), Failure> {
    let exit = Exit::well_if(done.failure.is_none());
    let next = next(plan, done, dry_run);
    if as_json {
        let applied: Vec<_> =
            done.applied.iter().map(|(object, change)| json!({"object": object, "change": change})).collect();
        let value = json!({
            "version": plan.record.version, "before": plan.record.before, "namespace": plan.namespace,
            "dryRun": dry_run, "applied": applied, "skipped": done.skipped, "removed": done.removed,
            "ready": done.ready, "error": done.failure.as_ref().map(|f| f.reason.clone()), "next": next,
        });
        return Ok((exit, format!("{value:#}\n")));
    }
    let mut out = String::new();
    for (object, change) in &done.applied {
        let word = match change {
            Change::Created => style.good("created"),
            Change::Changed => style.doubtful("changed"),
            Change::Unchanged => style.faint("unchanged"),
        };
        let _ = writeln!(out, "  {word} {object}");
    }
    for object in &done.removed {
        let _ = writeln!(out, "  {} {object}", style.bad("removed"));
    }
    for object in &done.skipped {
        let _ =
            writeln!(out, "  {} {object}: the cluster does not know this kind", style.doubtful("skipped"));
    }
    let _ = writeln!(out, "\n{}", verdict(what, plan, done, dry_run, style));
    next.iter().for_each(|step| {
        let _ = writeln!(out, "  next: {step}");
    });
    Ok((exit, out))
}

fn verdict(what: &str, plan: &Plan, done: &Done, dry_run: bool, style: Style) -> String {
    let (version, namespace) = (&plan.record.version, &plan.namespace);
    match (&done.failure, done.ready) {
        _ if dry_run => format!("nothing was changed; Culvert {version} would be {what} in {namespace}"),
        (Some(failure), _) => style
            .bad(&format!("Culvert {version} is applied in {namespace} and not ready: {}", failure.reason)),
        (None, Some(_)) => style.good(&format!("Culvert {version} is {what} in {namespace} and ready")),
        (None, None) => {
            format!("Culvert {version} is {what} in {namespace}; nobody waited until it is ready")
        }
    }
}

fn next(plan: &Plan, done: &Done, dry_run: bool) -> Vec<String> {
    let mut next = Vec::new();
    if dry_run {
        return vec!["run it without --dry-run".to_owned()];
    }
    if let Some(failure) = &done.failure {
        next.push(failure.next.clone());
        if !plan.record.before.is_empty() {
            let before = &plan.record.before;
            next.push(format!("to go back: culvert upgrade of version {before} (its settings are kept)"));
        }
    }
    if !done.skipped.is_empty() {
        next.push("install the CRDs that culvert check names, then run culvert upgrade".to_owned());
    }
    if done.ready.is_none() {
        next.push("culvert check says when everything is ready".to_owned());
    }
    if done.failure.is_none() {
        next.push(
            "put a namespace into the mesh: kubectl label namespace default istio.io/dataplane-mode=ambient"
                .to_owned(),
        );
    }
    next
}

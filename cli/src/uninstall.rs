//! `culvert uninstall`: first the nodes, so that no pod stays captured by programs that nobody serves, then
//! everything else.

mod enrolled;
mod leftovers;
mod nodes;

use std::{fmt::Write, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::{
    args::lifecycle::Uninstall,
    check::installed::owned_by_helm,
    cluster::{Cluster, connect::connect},
    exit::{Exit, Failure},
    manifest::values::Values,
    record::{self, Named, Record},
    style::Style,
};

/// What was removed, and what not.
#[derive(Debug, Default)]
struct Done {
    /// Nodes that are clean.
    nodes: Vec<String>,
    /// Nodes that are not, and why.
    stuck: Vec<(String, String)>,
    /// Objects.
    removed: Vec<String>,
}

/// Removes an installation.
///
/// # Errors
/// Pods are still in the mesh and nobody said that this is all right; Helm owns the objects; a named node is
/// not there or still has agents; the API server does not answer. It can be run again.
pub async fn run(options: &Uninstall, as_json: bool, style: Style) -> Result<(Exit, String), Failure> {
    let namespace = &options.place.namespace;
    let cluster = connect(&options.place.reach).await?;
    let everywhere = options.nodes.is_empty();
    if everywhere && !options.nodes_only && owned_by_helm(&cluster, namespace).await? {
        let reason = format!("Helm installed Culvert in {namespace}");
        return Err(Failure::new(reason, "culvert uninstall --nodes-only, then helm uninstall"));
    }
    let record = record::read(&cluster, namespace).await?;
    let values = values(record.as_ref(), namespace);
    let chosen = nodes::choose(&cluster, namespace, &values, &options.nodes).await?;
    let names = chosen.names();
    match (options.with_enrolled, everywhere) {
        (true, _) => {}
        (false, true) => enrolled::refuse(&cluster).await?,
        (false, false) => enrolled::refuse_on(&cluster, &names).await?,
    }
    let objects = objects(record.as_ref(), namespace);
    if options.dry_run {
        let removed = if everywhere { objects.iter().map(ToString::to_string).collect() } else { Vec::new() };
        let done = Done { nodes: names, stuck: Vec::new(), removed };
        return Ok(report(&done, options, as_json, style));
    }
    let mut done = Done::default();
    let deadline = Instant::now() + Duration::from_secs(options.timeout);
    nodes::clean(&cluster, namespace, chosen, deadline, &mut done).await?;
    leftovers::unmark(&cluster, &names).await?;
    if everywhere && !options.nodes_only && done.stuck.is_empty() {
        everything(&cluster, namespace, &objects, deadline, &mut done).await?;
    }
    Ok(report(&done, options, as_json, style))
}

/// The settings of the installation as far as they fit this version.
fn values(record: Option<&Record>, namespace: &str) -> Values {
    record.and_then(|record| record.values(namespace).ok()).unwrap_or_else(|| Values::defaults(namespace))
}

/// Objects to remove: those of the record and those of this version, the last applied first.
fn objects(record: Option<&Record>, namespace: &str) -> Vec<Named> {
    let mine = crate::manifest::objects::all();
    let values = Values::defaults(namespace);
    let mine = mine.into_iter().map(|mut object| {
        object.body = crate::manifest::resolve::resolve(&object.body, &values);
        Named::of(&object)
    });
    let mut all: Vec<Named> = record.map(|record| record.objects.clone()).unwrap_or_default();
    for object in mine {
        if !all.iter().any(|there| there.same(&object)) {
            all.push(object);
        }
    }
    all.reverse();
    all
}

async fn everything(
    cluster: &Cluster,
    namespace: &str,
    objects: &[Named],
    deadline: Instant,
    done: &mut Done,
) -> Result<(), Failure> {
    // Who writes goes before what it writes.
    let (writers, others): (Vec<_>, Vec<_>) = objects.iter().partition(|object| object.kind == "Deployment");
    for object in &writers {
        if cluster.delete(&object.path()).await? {
            done.removed.push(object.to_string());
        }
    }
    leftovers::wait_gone(cluster, namespace, deadline).await?;
    done.removed.extend(leftovers::remove(cluster).await?);
    for object in &others {
        if cluster.delete(&object.path()).await? {
            done.removed.push(object.to_string());
        }
    }
    Ok(())
}

fn report(done: &Done, options: &Uninstall, as_json: bool, style: Style) -> (Exit, String) {
    let exit = Exit::well_if(done.stuck.is_empty());
    if as_json {
        let stuck: Vec<_> =
            done.stuck.iter().map(|(node, why)| json!({"node": node, "reason": why})).collect();
        let value =
            json!({"dryRun": options.dry_run, "nodes": done.nodes, "stuck": stuck, "removed": done.removed});
        return (exit, format!("{value:#}\n"));
    }
    let mut out = String::new();
    let _ =
        writeln!(out, "  {} on {} nodes: {}", style.good("clean"), done.nodes.len(), done.nodes.join(", "));
    for object in &done.removed {
        let _ = writeln!(out, "  {} {object}", style.bad("removed"));
    }
    for (node, why) in &done.stuck {
        let _ = writeln!(out, "  {} {node}: {why}", style.bad("not clean"));
    }
    let (bad, next) = (
        "\nnot everything is removed; captured pods of those nodes open no connection until they are clean\n",
        "  next: repair the node and run culvert uninstall again, or reboot it: programs do not outlive that\n",
    );
    match (options.dry_run, done.stuck.is_empty(), options.nodes_only) {
        (true, ..) => out.push_str("\nnothing was changed; that is what would be removed\n  next: run it without --dry-run\n"),
        (_, false, _) => out.push_str(&format!("{}{next}", style.bad(bad))),
        (_, true, false) if !options.nodes.is_empty() => {
            out.push_str("\nthe nodes are clean; the mesh goes on without them\n");
        }
        (_, true, true) => out.push_str("\nthe nodes are clean; pods talk as if there was no mesh\n  next: helm uninstall, or kubectl delete -k manifests\n"),
        (_, true, false) => out.push_str("\nCulvert is removed; pods talk as if there was no mesh\n"),
    }
    (exit, out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_what_was_recorded_and_what_this_version_knows_the_namespace_last() {
        let old = Named {
            api_version: "v1".into(),
            kind: "Service".into(),
            namespace: "n".into(),
            name: "old".into(),
        };
        let record = Record { objects: vec![old], ..Record::default() };
        let all: Vec<_> = objects(Some(&record), "n").iter().map(ToString::to_string).collect();
        for object in
            ["Service n/old", "PodDisruptionBudget n/culvert-control", "GatewayClass culvert-waypoint"]
        {
            assert!(all.iter().any(|o| o == object), "{object} in {all:?}");
        }
        let at = |object: &str| all.iter().position(|o| o == object).unwrap();
        assert!(at("Namespace n") > at("DaemonSet n/culvert-agent"));
        assert!(all.iter().collect::<std::collections::BTreeSet<_>>().len() == all.len(), "{all:?}");
    }
}

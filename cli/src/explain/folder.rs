//! Explaining from a folder: the same functions as in the running programs.

use std::path::Path;

use control::finding::Severity;
use mesh_core::{
    explain::{explain, find_destination, find_source},
    http::explain_routes,
    snapshot::Snapshot,
};

use super::Told;
use crate::{args::Explain, exit::Failure, offline};

/// Names that are offered for one that is unknown.
const OFFERED: usize = 8;

pub(super) fn tell(folder: &Path, options: &Explain) -> Result<Told, Failure> {
    let world = offline::load(folder, &options.settings)?;
    let snapshot = &world.snapshot;
    let source = find_source(snapshot, &options.source)
        .ok_or_else(|| unknown("workload", &options.source, folder, workloads(snapshot)))?;
    let destination = find_destination(snapshot, source, &options.destination)
        .ok_or_else(|| no_destination(snapshot, &options.destination, folder))?;
    let explanation = explain(snapshot, source, destination, &explain_routes);
    let mut notes = world.assumptions;
    match world.findings.iter().filter(|f| f.severity == Severity::Error).count() {
        0 => {}
        count => notes.push(format!(
            "{count} documents of the folder are refused and not part of this: culvert analyze -f {}",
            folder.display()
        )),
    }
    Ok(Told {
        source: options.source.clone(),
        destination: options.destination.clone(),
        by: format!("folder {}", folder.display()),
        notes,
        explanation,
        agent: None,
        disagreement: None,
    })
}

fn workloads(snapshot: &Snapshot) -> Vec<String> {
    snapshot.workloads().map(|w| format!("{}/{}", w.namespace, w.name)).collect()
}

fn no_destination(snapshot: &Snapshot, text: &str, folder: &Path) -> Failure {
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port.is_none() {
        return Failure::new(
            format!("{text} has no port"),
            "write HOST:PORT, for example nginx-service:8000",
        );
    }
    let services = snapshot.services().map(|s| format!("{}/{}", s.key.namespace, s.name)).collect();
    unknown("service, pod or address", text, folder, services)
}

fn unknown(what: &str, name: &str, folder: &Path, known: Vec<String>) -> Failure {
    let reason = format!("{} has no {what} {name}", folder.display());
    let more = if known.len() > OFFERED { ", …" } else { "" };
    let next = match known.is_empty() {
        true => "the folder has none: is it the folder of the whole cluster?".to_owned(),
        false => format!("known: {}{more}", known[..known.len().min(OFFERED)].join(", ")),
    };
    Failure::new(reason, next)
}

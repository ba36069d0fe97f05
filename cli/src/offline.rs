//! A folder of YAML as the snapshot that a running mesh would have, with what had to be assumed.

mod assume;

use std::{fs, path::Path};

use control::{
    SERVICE_CIDR,
    compile::{self, Compiled, Options},
    finding::Finding,
    source::{Store, files},
    vips::Vips,
};
use mesh_core::{delta::Change, snapshot::Snapshot};

use crate::exit::Failure;

/// A folder, compiled.
#[derive(Debug)]
pub struct World {
    /// What every agent and waypoint would know.
    pub snapshot: Snapshot,
    /// What is not in the folder and was taken for granted, one sentence each.
    pub assumptions: Vec<String>,
    /// What is wrong with the folder.
    pub findings: Vec<Finding>,
}

/// How many files of a folder will be read.
///
/// # Errors
/// The folder or one inside it cannot be listed, or holds no file that counts.
pub fn readable(folder: &Path) -> Result<usize, Failure> {
    if folder.is_file() {
        let next = "pass the folder that it is in";
        return Err(Failure::new(format!("{} is a file, not a folder", folder.display()), next));
    }
    list(folder)?;
    match files(folder).len() {
        0 => {
            let reason = format!("{} has no .yaml, .yml or .json file", folder.display());
            Err(Failure::new(reason, "check the path: nothing was read"))
        }
        count => Ok(count),
    }
}

/// Lists every folder that the control plane's library would list, because it skips what it may not.
fn list(folder: &Path) -> Result<(), Failure> {
    let fail = |error: std::io::Error| {
        let reason = format!("{} cannot be read: {error}", folder.display());
        let next = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "make it readable, or run as its owner",
            _ => "check the path",
        };
        Failure::new(reason, next)
    };
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.is_dir() {
            list(&path)?;
        }
    }
    Ok(())
}

/// Reads and compiles a folder. Eligible pods count as enrolled and needed waypoints as running,
/// because both are the work of a running mesh.
///
/// # Errors
/// As [`readable`].
pub fn load(folder: &Path) -> Result<World, Failure> {
    readable(folder)?;
    let mut store = Store::default();
    store.load(folder);
    let mut vips = Vips::new(SERVICE_CIDR, None);
    let mut assumptions = assume::pods(&mut store);
    let mut compiled = compile::compile(&store, &Options::default(), &mut vips);
    let waypoints = assume::waypoints(&mut store, &compiled);
    if !waypoints.is_empty() {
        assumptions.extend(waypoints);
        compiled = compile::compile(&store, &Options::default(), &mut vips);
    }
    let findings = control::all_findings(&store, &compiled);
    Ok(World { snapshot: Snapshot::of(changes(compiled)), assumptions, findings })
}

fn changes(compiled: Compiled) -> impl Iterator<Item = Change> {
    (compiled.policies.into_values().map(|p| Change::Policy(p.into())))
        .chain(compiled.services.into_values().map(|s| Change::Service(s.into())))
        .chain(compiled.workloads.into_values().map(|w| Change::Workload(w.into())))
        .chain(compiled.l7_policies.into_values().map(|p| Change::L7Policy(p.into())))
        .chain(compiled.routes.into_values().map(|r| Change::Routes(r.into())))
        .chain(compiled.labels.into_values().map(|l| Change::Labels(l.into())))
}

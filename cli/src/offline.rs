//! A folder of YAML as the snapshot that a running mesh would have, with what had to be assumed.

mod assume;

use std::{io, path::Path};

use control::{
    SERVICE_CIDR,
    compile::{self, Options},
    finding::Finding,
    memory::Memory,
    source::{Store, files::list},
};
use mesh_core::snapshot::Snapshot;

use crate::{args::Settings, exit::Failure};

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
    let listing = list(folder);
    if let Some((path, error)) = listing.unreadable.first() {
        let reason = format!("{} cannot be read: {error}", path.display());
        let next = match error.kind() {
            io::ErrorKind::PermissionDenied => "make it readable, or run as its owner",
            _ => "check the path",
        };
        return Err(Failure::new(reason, next));
    }
    match listing.files.len() {
        0 => {
            let reason = format!("{} has no .yaml, .yml or .json file", folder.display());
            Err(Failure::new(reason, "check the path: nothing was read"))
        }
        count => Ok(count),
    }
}

/// Reads and compiles a folder. Eligible pods count as enrolled and needed waypoints as running,
/// because both are the work of a running mesh.
///
/// # Errors
/// As [`readable`].
pub fn load(folder: &Path, settings: &Settings) -> Result<World, Failure> {
    readable(folder)?;
    let mut store = Store::default();
    store.load(folder);
    let (options, mut memory) = prepared(settings);
    let mut assumptions = assume::pods(&mut store);
    let mut compiled = compile::compile(&store, &options, &mut memory);
    let waypoints = assume::waypoints(&mut store, &compiled);
    if !waypoints.is_empty() {
        assumptions.extend(waypoints);
        compiled = compile::compile(&store, &options, &mut memory);
    }
    let findings = control::all_findings(&store, &compiled);
    Ok(World { snapshot: compiled.snapshot(), assumptions, findings })
}

/// Every finding of a folder, as a control plane with these settings has them.
pub fn findings(folder: &Path, settings: &Settings) -> Vec<Finding> {
    let mut store = Store::default();
    store.load(folder);
    let (options, mut memory) = prepared(settings);
    let compiled = compile::compile(&store, &options, &mut memory);
    control::all_findings(&store, &compiled)
}

fn prepared(settings: &Settings) -> (Options, Memory) {
    let mut options = Options::default();
    if let Some(namespace) = &settings.root_namespace {
        options.root_namespace = namespace.as_str().into();
    }
    if let Some(domain) = &settings.trust_domain {
        options.trust_domain = domain.as_str().into();
    }
    (options, Memory::new(settings.service_cidr.unwrap_or(SERVICE_CIDR), None))
}

//! What the tests on Kubernetes are given: the cluster's programs and the images of its nodes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::Result;

use crate::{
    command::target,
    images,
    setup::kubernetes::{self, Part},
};

/// Programs of ours that are in images.
const PROGRAMS: [&str; 4] = ["culvert-agent", "culvert-control", "culvert-waypoint", "culvert"];

/// Where both are.
pub struct Cluster {
    programs: PathBuf,
    images: PathBuf,
}

impl Cluster {
    /// Tells a command that starts tests; a skip for want of a cluster is a failure from here on.
    pub fn tell(&self, command: &mut Command) {
        command.env("CULVERT_CLUSTER_PROGRAMS", &self.programs);
        command.env("CULVERT_CLUSTER_IMAGES", &self.images);
        command.env("CULVERT_REQUIRE", "root,bpf,cluster");
    }
}

/// Builds what is missing, after the programs of the debug profile were built; `None` without Go.
pub fn prepare(root: &Path, parts: &[Part]) -> Result<Option<Cluster>> {
    let Some(programs) = kubernetes::ensure(root, parts)? else {
        println!("test: no Go compiler: what runs on Kubernetes is skipped");
        return Ok(None);
    };
    let debug = target(root)?.join("debug");
    let images = debug.join("images");
    if stale(&debug, &images) {
        println!("test: writing the images of the cluster's nodes");
        images::assemble(root, &debug, &images)?;
        images::testing::assemble(&programs, &images)?;
        fs::write(images.join("done"), "")?;
    }
    Ok(Some(Cluster { programs, images }))
}

/// Whether a program was built after the images were written.
fn stale(debug: &Path, images: &Path) -> bool {
    let time = |path: PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(written) = time(images.join("done")) else { return true };
    let newest = PROGRAMS.iter().filter_map(|name| time(debug.join(name))).max();
    newest.unwrap_or(SystemTime::UNIX_EPOCH) > written
}

//! What the tests on Kubernetes are given: the cluster's programs, the images of its nodes, and those of
//! Istio's parts where a ztunnel is given.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::Result;

use crate::{
    images,
    setup::kubernetes::{self, Part},
};

/// Programs of ours that are in images.
const PROGRAMS: [&str; 4] = ["culvert-agent", "culvert-control", "culvert-waypoint", "culvert"];

/// Where both are.
pub struct Cluster {
    programs: PathBuf,
    images: PathBuf,
    istio: Option<PathBuf>,
}

impl Cluster {
    /// Tells a command that starts tests; a skip for want of a cluster is a failure from here on.
    pub fn tell(&self, command: &mut Command) {
        command.env("CULVERT_CLUSTER_PROGRAMS", &self.programs);
        command.env("CULVERT_CLUSTER_IMAGES", &self.images);
        if let Some(istio) = &self.istio {
            command.env("CULVERT_ISTIO_IMAGES", istio);
        }
        command.env("CULVERT_REQUIRE", "root,bpf,cluster");
    }

    /// Has the tests beside Istio's parts run, with this ztunnel.
    pub fn with_ztunnel(mut self, root: &Path, built: &Path, ztunnel: &Path) -> Result<Self> {
        let parts = [Part::ControlPlane, Part::Nodes, Part::IstioCni, Part::Istiod];
        kubernetes::ensure(root, &parts)?;
        let images = built.join("images-istio");
        images::istio::assemble(&self.programs, ztunnel, &images)?;
        self.istio = Some(images);
        Ok(self)
    }
}

impl Cluster {
    /// Builds what is missing, after our programs were built into a folder; `None` without Go.
    pub fn prepare(root: &Path, built: &Path, parts: &[Part]) -> Result<Option<Self>> {
        let Some(programs) = kubernetes::ensure(root, parts)? else {
            println!("no Go compiler: nothing runs on Kubernetes");
            return Ok(None);
        };
        let images = built.join("images");
        if stale(built, &images) {
            println!("writing the images of the cluster's nodes");
            images::assemble(root, built, &images)?;
            images::testing::assemble(&programs, &images)?;
            fs::write(images.join("done"), "")?;
        }
        Ok(Some(Self { programs, images, istio: None }))
    }
}

/// Whether a program was built after the images were written.
fn stale(built: &Path, images: &Path) -> bool {
    let time = |path: PathBuf| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let Some(written) = time(images.join("done")) else { return true };
    let newest = PROGRAMS.iter().filter_map(|name| time(built.join(name))).max();
    newest.unwrap_or(SystemTime::UNIX_EPOCH) > written
}

//! Images of Istio's own parts for tests beside them: ztunnel as it was given, and what comes from
//! Istio's Go module.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    archive::{self, Image},
    rootfs::Rootfs,
    testing::{PATH, machine},
};

/// Writes the archives; `programs` is the folder of the cluster's Go programs.
pub fn assemble(programs: &Path, ztunnel: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut files = Rootfs::default();
    files.program(ztunnel, "/usr/local/bin/ztunnel")?;
    write(out, "test-ztunnel", files, &["/usr/local/bin/ztunnel"])?;

    let mut files = Rootfs::default();
    files.program(&programs.join("install-cni"), "/usr/local/bin/install-cni")?;
    // Everything in this folder is copied to the node.
    files.program(&programs.join("istio-cni"), "/opt/cni/bin/istio-cni")?;
    files.program(&machine("nft")?, "/usr/sbin/nft")?;
    write(out, "test-istio-cni", files, &["/usr/local/bin/install-cni"])?;

    let mut files = Rootfs::default();
    files.program(&programs.join("pilot-discovery"), "/usr/local/bin/pilot-discovery")?;
    write(out, "test-istiod", files, &["/usr/local/bin/pilot-discovery"])
}

fn write(out: &Path, name: &str, mut files: Rootfs, entry: &[&str]) -> Result<()> {
    files.file("/etc/passwd", 0o644, b"root:x:0:0:root:/:/sbin/nologin\n".to_vec());
    files.file("/etc/group", 0o644, b"root:x:0:\n".to_vec());
    files.file("/etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec());
    for folder in ["/run", "/var/run", "/host", "/proc", "/sys", "/dev"] {
        files.folder(folder, 0o755);
    }
    files.folder("/tmp", 0o1777);
    let image = Image {
        names: vec![format!("culvert.local/{name}:1")],
        config: json!({"Entrypoint": entry, "Env": [PATH], "WorkingDir": "/"}),
    };
    archive::write(&out.join(format!("{name}.tar")), &files, &[image])
}

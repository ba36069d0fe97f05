//! `cargo xtask images`: our programs as OCI images, without a container engine. The same programs and
//! libraries give the same digests.

mod archive;
pub mod istio;
mod rootfs;
mod sbom;
pub mod testing;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{
    build,
    command::{output, target},
};
use archive::Image;
use rootfs::Rootfs;

/// Registry part of our images' names. No such host exists: what is not loaded is never fetched.
const REGISTRY: &str = "culvert.local";
/// User and group of images that need no rights on their node.
const NONROOT: &str = "65532:65532";
/// Folder of our programs in an image.
const BIN: &str = "/usr/local/bin";
/// Program that the agent copies to its node, whose libraries are not those of the image.
const COPIED: &str = "culvert-cni";
/// Bundle of the machine's certificate authorities.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An image of ours.
struct Ours {
    name: &'static str,
    /// Package whose dependencies are the bill of materials.
    package: &'static str,
    /// Programs; the first one is the entry point. One that is not built is left out, unless it is first.
    programs: &'static [&'static str],
    user: &'static str,
    title: &'static str,
}

const OURS: &[Ours] = &[
    Ours {
        name: "agent",
        package: "agent",
        programs: &["culvert-agent", "culvert-cni"],
        // It enters network namespaces and loads kernel programs.
        user: "0:0",
        title: "Culvert's node agent and CNI plugin",
    },
    Ours {
        name: "control",
        package: "control",
        programs: &["culvert-control"],
        user: NONROOT,
        title: "Culvert's control plane",
    },
    Ours {
        name: "waypoint",
        package: "waypoint",
        programs: &["culvert-waypoint"],
        user: NONROOT,
        title: "Culvert's waypoint",
    },
    Ours {
        name: "cli",
        package: "cli",
        programs: &["culvert"],
        user: NONROOT,
        title: "Culvert's command line",
    },
];

/// Builds the programs, writes the archives and says what they are.
pub fn run_images(root: &Path, out: Option<PathBuf>, debug: bool) -> Result<()> {
    build::all(root, !debug)?;
    let profile = if debug { "debug" } else { "release" };
    let target = target(root)?;
    let out = out.unwrap_or_else(|| target.join("images"));
    for image in assemble(root, &target.join(profile), &out)? {
        println!("{}", image.display());
    }
    println!(
        "load them with: ctr -n k8s.io images import FILE, kind load image-archive FILE, k3d image import FILE"
    );
    Ok(())
}

/// Writes an archive and a bill of materials for each of our images from programs that are built.
pub fn assemble(root: &Path, programs: &Path, out: &Path) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let metadata = sbom::metadata(root)?;
    OURS.iter().map(|ours| write(root, ours, programs, &metadata, out)).collect()
}

fn write(root: &Path, ours: &Ours, programs: &Path, metadata: &Value, out: &Path) -> Result<PathBuf> {
    let version = env!("CARGO_PKG_VERSION");
    let mut files = base()?;
    for (index, program) in ours.programs.iter().enumerate() {
        let path = programs.join(program);
        if index == 0 || path.is_file() {
            ensure!(
                *program != COPIED || rootfs::libraries(&path)?.is_empty(),
                "{} needs libraries and must not: has another rustc-workspace-wrapper taken the place of .cargo/rustc?",
                path.display()
            );
            files.program_bytes(&stripped(&path)?, &path, &format!("{BIN}/{program}"))?;
        }
    }
    let bill = serde_json::to_vec_pretty(&sbom::bill(metadata, ours.package, &files)?)?;
    files.file("/usr/share/sbom/culvert.cdx.json", 0o644, bill.clone());
    for licence in ["LICENSE", "LICENSE-GPL-2.0"] {
        files.file(&format!("/usr/share/licenses/culvert/{licence}"), 0o644, fs::read(root.join(licence))?);
    }
    let mut labels = json!({
        "org.opencontainers.image.title": ours.title,
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "Apache-2.0",
    });
    // A checkout without its history has no revision to tell.
    if let Ok(revision) = output(Command::new("git").current_dir(root).args(["rev-parse", "HEAD"])) {
        labels["org.opencontainers.image.revision"] = revision.trim().into();
    }
    let image = Image {
        names: vec![format!("{REGISTRY}/{}:{version}", ours.name)],
        config: json!({"User": ours.user, "Entrypoint": [format!("{BIN}/{}", ours.programs[0])],
            "Env": [format!("PATH={BIN}:/usr/bin:/bin")], "WorkingDir": "/", "Labels": labels}),
    };
    fs::write(out.join(format!("culvert-{}-{version}.cdx.json", ours.name)), bill)?;
    let path = out.join(format!("culvert-{}-{version}.tar", ours.name));
    archive::write(&path, &files, &[image])?;
    Ok(path)
}

/// What every program finds: users, how names are resolved, the public authorities.
fn base() -> Result<Rootfs> {
    let mut files = Rootfs::default();
    files.file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n".to_vec(),
    );
    files.file("/etc/group", 0o644, b"root:x:0:\nnonroot:x:65532:\n".to_vec());
    files.file("/etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec());
    if let Ok(bundle) = fs::read(AUTHORITIES) {
        files.file(AUTHORITIES, 0o644, bundle);
    }
    files.folder("/tmp", 0o1777);
    files.folder("/run", 0o755);
    Ok(files)
}

/// A program without its debugging sections, which are most of its size.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let slim = std::env::temp_dir().join(format!("culvert-strip-{}", std::process::id()));
    run_quietly(Command::new("strip").arg("--strip-debug").arg("-o").arg(&slim).arg(program))
        .with_context(|| format!("cannot take the debugging sections out of {}", program.display()))?;
    let bytes = fs::read(&slim)?;
    fs::remove_file(&slim)?;
    Ok(bytes)
}

fn run_quietly(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

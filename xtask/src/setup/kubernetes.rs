//! The programs of the tests' Kubernetes cluster, built from the Go module in `tests/cluster` into the
//! cache, each once; with them the custom resources that Istio's and the Gateway API's modules ship.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{cache, find, output};

/// What a verb needs of a cluster; each is built only when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// API server, controller manager, scheduler; kubectl where the machine has none.
    ControlPlane,
    /// Kubelet, kube-proxy, containerd, CoreDNS, and fortio as a load generator.
    Nodes,
    /// The chart's own tool.
    Helm,
    /// Istio's control plane, for tests of the agent under it.
    Istiod,
    /// Istio's node agent and plugin that capture pods for ztunnel.
    IstioCni,
}

const K8S: &str = "k8s.io/kubernetes/cmd";
const CONTAINERD: &str = "github.com/containerd/containerd/v2/cmd";

impl Part {
    /// Programs and the packages that they are built from.
    fn programs(self) -> Vec<(&'static str, String)> {
        let of = |base: &str, names: &[&'static str]| {
            names.iter().map(|name| (*name, format!("{base}/{name}"))).collect::<Vec<_>>()
        };
        match self {
            Self::ControlPlane => {
                let mut programs = of(K8S, &["kube-apiserver", "kube-controller-manager", "kube-scheduler"]);
                if find("kubectl").is_none() {
                    programs.extend(of(K8S, &["kubectl"]));
                }
                programs
            }
            Self::Nodes => {
                let mut programs = of(K8S, &["kubelet", "kube-proxy"]);
                programs.extend(of(CONTAINERD, &["containerd", "containerd-shim-runc-v2", "ctr"]));
                programs.push(("coredns", "./coredns".to_string()));
                programs.push(("fortio", "fortio.org/fortio".to_string()));
                programs
            }
            Self::Helm => of("helm.sh/helm/v3/cmd", &["helm"]),
            Self::Istiod => of("istio.io/istio/pilot/cmd", &["pilot-discovery"]),
            Self::IstioCni => of("istio.io/istio/cni/cmd", &["install-cni", "istio-cni"]),
        }
    }
}

/// Builds what is missing and returns the folder of the programs; `None` without a Go compiler.
pub fn ensure(root: &Path, parts: &[Part]) -> Result<Option<PathBuf>> {
    if find("go").is_none() {
        return Ok(None);
    }
    let module = root.join("tests/cluster");
    let folder = cache()?.join(format!("k8s-{:016x}", version(&module)?));
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create {}", bin.display()))?;
    let wanted: Vec<_> = parts.iter().flat_map(|part| part.programs()).collect();
    if wanted.iter().all(|(name, _)| bin.join(name).is_file()) && folder.join("crds").is_dir() {
        return Ok(Some(bin));
    }
    let turn = File::create(folder.join("lock")).context("cannot lock the cluster's programs")?;
    turn.lock().context("cannot lock the cluster's programs")?;
    copy_crds(&module, &folder)?;
    let missing: Vec<_> = wanted.iter().filter(|(name, _)| !bin.join(name).is_file()).collect();
    let flags = linker_flags(&fs::read_to_string(module.join("go.mod"))?)?;
    for (index, (name, package)) in missing.iter().enumerate() {
        println!("setup: building {name} ({} of {}) from its Go module", index + 1, missing.len());
        let started = Instant::now();
        let half = bin.join(format!(".{name}"));
        let mut build = go(&module);
        build.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(&half).arg(package);
        output(&mut build).with_context(|| format!("cannot build {package}"))?;
        fs::rename(&half, bin.join(name))?;
        println!("setup: built {name} in {:.0} s", started.elapsed().as_secs_f64());
    }
    Ok(Some(bin))
}

fn go(module: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(module).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "local");
    command.env("GOFLAGS", "-buildvcs=false");
    command
}

/// Other sources are another folder: a stale program is never mistaken for a good one.
fn version(module: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for file in ["go.mod", "go.sum", "coredns/main.go"] {
        let path = module.join(file);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?.hash(&mut hasher);
    }
    Ok(hasher.finish())
}

/// Without these the API server calls itself v0.0.0, and others refuse to talk to it.
fn linker_flags(module: &str) -> Result<String> {
    let version = module.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()? == "k8s.io/kubernetes").then(|| words.next()).flatten()
    });
    let version = version.context("tests/cluster/go.mod names no version of k8s.io/kubernetes")?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut flags = "-s -w".to_string();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("Version", version), ("Major", major), ("Minor", minor), ("TreeState", "clean")]
        {
            flags.push_str(&format!(" -X {package}.git{name}={value}"));
        }
    }
    Ok(flags)
}

/// The Gateway API's experimental channel has all of the standard one; its admission policy refuses one
/// channel over the other and is left out.
fn copy_crds(module: &Path, folder: &Path) -> Result<()> {
    let done = folder.join("crds");
    if done.is_dir() {
        return Ok(());
    }
    let half = folder.join(".crds");
    let _ = fs::remove_dir_all(&half);
    let istio = source(module, "istio.io/istio")?.join("manifests/charts/base/files/crd-all.gen.yaml");
    fs::create_dir_all(half.join("istio"))?;
    fs::write(half.join("istio/crds.yaml"), fs::read(&istio)?)?;
    fs::create_dir_all(half.join("gateway-api"))?;
    let gateway = source(module, "sigs.k8s.io/gateway-api")?.join("config/crd/experimental");
    for entry in fs::read_dir(&gateway).with_context(|| format!("cannot read {}", gateway.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("gateway.networking.k8s.io_") && !name.contains("safeupgrades") {
            fs::write(half.join("gateway-api").join(&name), fs::read(&path)?)?;
        }
    }
    Ok(fs::rename(&half, &done)?)
}

/// Folder of a module's sources, downloaded when they are not there.
fn source(module: &Path, name: &str) -> Result<PathBuf> {
    let text = output(go(module).args(["mod", "download", "-json", name]))?;
    let told: Value = serde_json::from_str(&text).context("go mod download")?;
    Ok(told["Dir"].as_str().with_context(|| format!("go names no folder of {name}"))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_told_the_version_that_the_module_names() {
        let flags = linker_flags("require (\n\tk8s.io/kubernetes v1.36.1 // indirect\n)\n").unwrap();
        assert!(flags.contains("component-base/version.gitVersion=v1.36.1"), "{flags}");
        assert!(flags.contains("client-go/pkg/version.gitMinor=36"), "{flags}");
        assert!(linker_flags("module x\n").is_err());
    }
}

//! This machine as a node, by probe.

use std::{fs, io, net::TcpListener, path::Path};

use super::{
    finding::Finding,
    nodes::{OLDEST_KERNEL, too_old},
};

const AREA: &str = "this machine";
/// Ports that an agent takes in the node's own network namespace.
const PORTS: [u16; 1] = [15020];
/// Folders where CNI configuration may be.
const CNI: [&str; 2] = ["etc/cni/net.d", "var/lib/rancher/k3s/agent/etc/cni/net.d"];

/// Every probe. Nothing is changed; ports are taken for a moment.
pub fn probe(root: &Path) -> Vec<Finding> {
    let mut findings = vec![kernel(root), btf(root), cgroup(root), bpffs(root), cni(root)];
    // Ports are the machine's own, whatever root is looked at.
    findings.extend(PORTS.map(|port| judge_port(port, &TcpListener::bind(("0.0.0.0", port)).map(drop))));
    findings
}

fn kernel(root: &Path) -> Finding {
    let (major, minor) = OLDEST_KERNEL;
    let path = root.join("proc/sys/kernel/osrelease");
    match fs::read_to_string(&path) {
        Ok(release) if !too_old(&release) => Finding::fine(AREA, format!("Linux {}", release.trim())),
        Ok(release) => {
            let what = format!("Linux {} is too old", release.trim());
            Finding::error(AREA, what, format!("install a kernel of version {major}.{minor} or newer"))
        }
        Err(error) => unread(&path, &error, "is /proc mounted?"),
    }
}

fn unread(path: &Path, error: &io::Error, next: &str) -> Finding {
    Finding::error(AREA, format!("{} cannot be read: {error}", path.display()), next)
}

fn btf(root: &Path) -> Finding {
    match root.join("sys/kernel/btf/vmlinux").exists() {
        true => Finding::fine(AREA, "the kernel describes its types (BTF)"),
        false => {
            let next = "use a kernel that is built with CONFIG_DEBUG_INFO_BTF=y, as those of all large distributions are";
            Finding::error(AREA, "/sys/kernel/btf/vmlinux is missing: the kernel has no BTF", next)
        }
    }
}

/// Mount points of a file system type.
fn mounted(root: &Path, kind: &str) -> io::Result<Vec<String>> {
    let table = fs::read_to_string(root.join("proc/self/mounts"))?;
    let fields = |line: &str| -> Option<(String, String)> {
        let mut words = line.split(' ').skip(1);
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    Ok(table.lines().filter_map(fields).filter(|(_, of)| of == kind).map(|(at, _)| at).collect())
}

fn cgroup(root: &Path) -> Finding {
    match mounted(root, "cgroup2") {
        Ok(at) if at.iter().any(|at| at == "/sys/fs/cgroup") => {
            Finding::fine(AREA, "cgroup v2 is at /sys/fs/cgroup")
        }
        Ok(at) => {
            let next =
                "boot with systemd.unified_cgroup_hierarchy=1 and let the container runtime use cgroup v2";
            let what = match at.first() {
                Some(at) => {
                    format!("cgroup v2 is at {at} and not at /sys/fs/cgroup: pods are in version 1 groups")
                }
                None => "cgroup v2 is not mounted".to_owned(),
            };
            Finding::error(AREA, what, next)
        }
        Err(error) => unread(&root.join("proc/self/mounts"), &error, "is /proc mounted?"),
    }
}

fn bpffs(root: &Path) -> Finding {
    match mounted(root, "bpf") {
        Ok(at) if at.iter().any(|at| at == "/sys/fs/bpf") => {
            Finding::fine(AREA, "the bpf file system is at /sys/fs/bpf")
        }
        Ok(_) => {
            let next = "mount -t bpf bpf /sys/fs/bpf, and put it into /etc/fstab";
            Finding::error(AREA, "the bpf file system is not mounted at /sys/fs/bpf", next)
        }
        Err(error) => unread(&root.join("proc/self/mounts"), &error, "is /proc mounted?"),
    }
}

fn cni(root: &Path) -> Finding {
    let holds = |folder: &Path| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .any(|n| n.ends_with(".conflist") || n.ends_with(".conf"))
    };
    match CNI.iter().find(|folder| holds(&root.join(folder))) {
        Some(folder) => Finding::fine(AREA, format!("CNI configuration is in /{folder}")),
        None => {
            let next = "install a CNI first; if its configuration is elsewhere, say so with --set cni.confDir=FOLDER and cni.binDir=FOLDER; without the plugin: --set cni.enabled=false";
            Finding::warning(AREA, "there is no CNI configuration in /etc/cni/net.d", next)
        }
    }
}

fn judge_port(port: u16, bound: &io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::fine(AREA, format!("port {port} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let next =
                format!("`ss -ltnp sport = :{port}` names who has it; an agent that runs here is no problem");
            Finding::warning(AREA, format!("port {port} is taken"), next)
        }
        Err(error) => {
            Finding::warning(AREA, format!("port {port} cannot be tried: {error}"), "run it again as root")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    const MOUNTS: &str =
        "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\nbpf /sys/fs/bpf bpf rw 0 0\nproc /proc proc rw 0 0\n";

    /// A machine that has everything, and what is changed about it.
    fn machine(change: impl FnOnce(&Path)) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("proc/sys/kernel/osrelease", "6.12.8-amd64\n");
        put("sys/kernel/btf/vmlinux", "");
        put("proc/self/mounts", MOUNTS);
        put("etc/cni/net.d/10-x.conflist", "{}");
        change(root.path());
        root
    }

    /// What is not fine with a machine, apart from its ports.
    fn problems(change: impl FnOnce(&Path)) -> Vec<(State, String)> {
        let root = machine(change);
        let findings = probe(root.path()).into_iter();
        findings
            .filter(|f| f.state != State::Fine && !f.what.starts_with("port"))
            .map(|f| (f.state, f.what + " → " + &f.next.unwrap()))
            .collect()
    }

    fn the_only(change: impl FnOnce(&Path)) -> String {
        let problems = problems(change);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems[0].1.clone()
    }

    #[test]
    fn a_machine_that_has_everything_is_fit() {
        assert_eq!(problems(|_| ()), []);
    }

    #[test]
    fn a_kernel_that_is_too_old_is_named() {
        let said = the_only(|root| fs::write(root.join("proc/sys/kernel/osrelease"), "5.15.0").unwrap());
        assert!(said.contains("5.15.0 is too old") && said.contains("6.1 or newer"), "{said}");
    }

    #[test]
    fn a_kernel_without_btf_is_named() {
        let said = the_only(|root| fs::remove_file(root.join("sys/kernel/btf/vmlinux")).unwrap());
        assert!(said.contains("no BTF") && said.contains("CONFIG_DEBUG_INFO_BTF"), "{said}");
    }

    #[test]
    fn a_missing_or_hybrid_cgroup_v2_is_named() {
        let mounts = |cgroup: &str| format!("{cgroup}\nbpf /sys/fs/bpf bpf rw 0 0\n");
        let said = the_only(|root| fs::write(root.join("proc/self/mounts"), mounts("")).unwrap());
        assert!(
            said.contains("cgroup v2 is not mounted") && said.contains("unified_cgroup_hierarchy"),
            "{said}"
        );
        let hybrid = mounts("cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0");
        let said = the_only(|root| fs::write(root.join("proc/self/mounts"), hybrid).unwrap());
        assert!(said.contains("/sys/fs/cgroup/unified"), "{said}");
    }

    #[test]
    fn a_missing_bpf_file_system_is_named() {
        let said = the_only(|root| {
            fs::write(root.join("proc/self/mounts"), "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n").unwrap()
        });
        assert!(said.contains("bpf file system is not mounted") && said.contains("mount -t bpf"), "{said}");
    }

    #[test]
    fn a_machine_without_cni_configuration_is_named() {
        let said = the_only(|root| fs::remove_file(root.join("etc/cni/net.d/10-x.conflist")).unwrap());
        assert!(said.contains("no CNI configuration") && said.contains("cni.confDir"), "{said}");
    }

    #[test]
    fn a_port_that_is_taken_is_named() {
        let listener = TcpListener::bind(("0.0.0.0", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let finding = judge_port(port, &TcpListener::bind(("0.0.0.0", port)).map(drop));
        assert!(
            finding.state == State::Warning && finding.what == format!("port {port} is taken"),
            "{finding:?}"
        );
    }
}

//! A node in small: pod `a`, pod `b` and the node `n` between them, joined by veth; and a cgroup.

use std::{
    collections::HashMap,
    fs::{self, File},
    path::PathBuf,
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::agent::{
    bpf::{Bpf, BpfConfig, Pod, PodState},
    cgroup, netns,
};

/// Pod a's addresses.
pub const A4: &str = "10.77.1.2";
/// See [`A4`].
pub const A6: &str = "fd77:1::2";
/// Pod b's address.
pub const B4: &str = "10.77.2.2";
/// The links that one enrolled pod and its node have: seven programs, a link each.
const LINKS: usize = 7;

/// Three namespaces and this process's cgroup.
#[derive(Debug)]
pub struct World {
    /// Pod a.
    pub a: File,
    /// Pod b.
    pub b: File,
    /// The node's own namespace.
    pub n: File,
    group: PathBuf,
}

impl World {
    /// Makes it.
    ///
    /// # Errors
    /// The kernel lacks something, or `ip` does.
    pub fn make() -> Result<(Self, Value)> {
        let group = cgroup::v2_mount()?.join("verify");
        fs::create_dir_all(&group)?;
        fs::write(group.join("cgroup.procs"), std::process::id().to_string())?;
        for ns in ["a", "b", "n"] {
            ip(&format!("netns add {ns}"))?;
            // A link-local address that is still being checked cannot ask for a neighbour.
            let namespace = File::open(format!("/run/netns/{ns}"))?;
            netns::within(&namespace, || fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0"))?;
            ip(&format!("-n {ns} link set lo up"))?;
        }
        join("a", 1)?;
        join("b", 2)?;
        let open = |ns| File::open(format!("/run/netns/{ns}")).with_context(|| format!("namespace {ns}"));
        let world = Self { a: open("a")?, b: open("b")?, n: open("n")?, group };
        netns::within(&world.n, || {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?;
        let cookies = [netns::cookie(&world.a)?, netns::cookie(&world.b)?, netns::cookie(&world.n)?];
        Ok((world, json!({"netns_cookies": cookies})))
    }

    /// Loads, attaches and pins by the agent's own loader: the node's hooks and pod a's.
    ///
    /// # Errors
    /// As the loader.
    pub fn attach(&self) -> Result<(Bpf, Value)> {
        let bpf = Bpf::load(&BpfConfig {
            node: "verify".to_string(),
            debug: false,
            cgroup: self.group.clone(),
            bpffs: "/sys/fs/bpf".into(),
            host_netns: netns::cookie(&self.n)?,
            capacities: HashMap::new(),
        })?;
        bpf.attach_pod(netns::cookie(&self.a)?, &self.a)?;
        let programs = bpf.program_stats()?;
        // connect4 and connect6 share the 15 bytes that the kernel keeps of a name.
        let links = links()?;
        ensure!(links == LINKS, "{links} links are pinned, not {LINKS}");
        Ok((bpf, json!({"links": links, "programs_by_kernel_name": programs.len()})))
    }

    /// Takes everything out again and shows that a connect is then untouched.
    ///
    /// # Errors
    /// Pins cannot be removed.
    pub fn detach(&self, bpf: Bpf) -> Result<Value> {
        bpf.remove_all()?;
        let left = links().unwrap_or(0);
        ensure!(left == 0, "{left} links stay behind");
        Ok(json!({"links": 0}))
    }

    /// Pod a as the agent would enrol it.
    ///
    /// # Errors
    /// Its namespace cannot be entered.
    pub fn pod(&self, state: PodState) -> Result<Pod> {
        Ok(Pod { netns: netns::cookie(&self.a)?, v4: A4.parse().ok(), v6: A6.parse().ok(), state, epoch: 1 })
    }
}

/// Joins a pod to the node; `net` numbers its network, the node is host 1 of it.
fn join(pod: &str, net: u8) -> Result<()> {
    ip(&format!("-n {pod} link add eth0 type veth peer name pod-{pod} netns n"))?;
    for (ns, device, host) in [(pod, "eth0", 2), ("n", &*format!("pod-{pod}"), 1)] {
        ip(&format!("-n {ns} addr add 10.77.{net}.{host}/24 dev {device}"))?;
        ip(&format!("-n {ns} addr add fd77:{net}::{host}/64 dev {device} nodad"))?;
        ip(&format!("-n {ns} link set {device} up"))?;
    }
    ip(&format!("-n {pod} route add default via 10.77.{net}.1"))?;
    ip(&format!("-n {pod} -6 route add default via fd77:{net}::1"))
}

/// By its full path: busybox has an applet of the same name.
fn ip(args: &str) -> Result<()> {
    let out = Command::new("/usr/bin/ip").args(args.split(' ')).output().context("ip does not start")?;
    ensure!(out.status.success(), "ip {args}: {}", String::from_utf8_lossy(&out.stderr).trim());
    Ok(())
}

/// Links pinned below the node's folder.
fn links() -> Result<usize> {
    let links = PathBuf::from("/sys/fs/bpf/culvert/verify")
        .join(format!("v{}", agent_common::ABI_VERSION))
        .join("links");
    let mut count = 0;
    for object in fs::read_dir(links)? {
        count += fs::read_dir(object?.path())?.count();
    }
    Ok(count)
}

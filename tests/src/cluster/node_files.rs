//! What lies on a node's disk before it boots for the first time, and what runs on it.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{node::BIN, pki::Pki, registry};
use crate::net;

/// Debian's folder of the CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";
/// Image of the container that holds a pod's namespaces.
const PAUSE: &str = "culvert.local/test-pause:1";
/// Address of the cluster's DNS service.
pub const DNS: &str = "10.96.0.10";
/// Where kubelet and containerd meet.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// Writes a fresh disk.
pub fn write(state: &Path, name: &str, index: u8, pki: &Pki) -> Result<()> {
    for folder in [
        "etc/kubernetes/manifests",
        "etc/containerd/certs.d/_default",
        "etc/cni/net.d",
        "etc.work",
        "opt/cni/bin",
        "opt/cluster",
        "tmp",
        "var/tmp",
        "var/lib/kubelet",
        "var/lib/containerd",
        "var/log/pods",
        "var/log/containers",
    ] {
        fs::create_dir_all(state.join(folder))?;
    }
    symlink("/run", state.join("var/run"))?;
    for plugin in fs::read_dir(PLUGINS).with_context(|| format!("no CNI plugins in {PLUGINS}"))? {
        let plugin = plugin?;
        fs::copy(plugin.path(), state.join("opt/cni/bin").join(plugin.file_name()))?;
    }
    let put = |path: &str, text: &str| fs::write(state.join(path), text);
    put("opt/cluster/runc", "#!/bin/sh\nexec /opt/cluster/culvert-node runc \"$@\"\n")?;
    fs::set_permissions(state.join("opt/cluster/runc"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    put("etc/cni/net.d/10-ptp.conflist", &conflist(index).to_string())?;
    put("etc/containerd/config.toml", &containerd())?;
    put("etc/containerd/certs.d/_default/hosts.toml", &registry::hosts())?;
    // Pods without the cluster's DNS have none: nothing here may leave the cluster.
    put("etc/kubernetes/resolv.conf", &format!("nameserver {}\n", net::UNDERLAY))?;
    put("etc/kubernetes/kubelet.json", &kubelet().to_string())?;
    put("etc/hosts", &format!("127.0.0.1 localhost\n::1 localhost\n{} {name}\n", net::node_address(index)))?;
    for (from, to) in [
        ("ca.crt".to_string(), "ca.crt"),
        (format!("{name}.crt"), "node.crt"),
        (format!("{name}.key"), "node.key"),
        (format!("{name}.kubeconfig"), "kubelet.kubeconfig"),
        ("kube-proxy.crt".to_string(), "kube-proxy.crt"),
        ("kube-proxy.key".to_string(), "kube-proxy.key"),
        ("kube-proxy.kubeconfig".to_string(), "kube-proxy.kubeconfig"),
    ] {
        let text = fs::read_to_string(pki.file(&from))?;
        // The node sees its own copies.
        let own = "/etc/kubernetes";
        let text = text.replace(&pki.file(name).display().to_string(), &format!("{own}/node"));
        put(&format!("etc/kubernetes/{to}"), &text.replace(&pki.folder.display().to_string(), own))?;
    }
    Ok(())
}

/// What a node keeps running. kube-proxy writes nftables on even nodes and iptables on odd ones, because
/// clusters have both.
pub fn programs(index: u8, name: &str) -> Value {
    let proxy = if index.is_multiple_of(2) { "nftables" } else { "iptables" };
    let config = |program: &str| format!("--kubeconfig=/etc/kubernetes/{program}.kubeconfig");
    let host = format!("--hostname-override={name}");
    let address = format!("--node-ip={}", net::node_address(index));
    let program = |program: &str| format!("{BIN}/{program}");
    json!([
        {"name": "containerd", "words": [program("containerd")], "socket": SOCKET},
        {"name": "kubelet", "words": [program("kubelet"), "--config=/etc/kubernetes/kubelet.json",
            config("kubelet"), host, address, "--v=2"]},
        {"name": "kube-proxy", "words": [program("kube-proxy"), config("kube-proxy"), host,
            format!("--proxy-mode={proxy}"), format!("--cluster-cidr={}", super::control_plane::PODS),
            // These sysctls belong to the machine, not to a network namespace.
            "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0"]},
    ])
}

fn conflist(index: u8) -> Value {
    json!({"cniVersion": "1.0.0", "name": "ptp", "plugins": [
        {"type": "ptp", "ipMasq": false, "mtu": 1500, "ipam": {"type": "host-local",
            "ranges": [[{"subnet": format!("10.244.{index}.0/24")}]], "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]})
}

fn containerd() -> String {
    format!(
        "version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
  tolerate_missing_hugetlb_controller = true
  disable_apparmor = true
  # Without CAP_SYS_RESOURCE a container's score cannot be lowered.
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = false
  BinaryName = '/opt/cluster/runc'
"
    )
}

/// The groups of pods have no limits here (see culvert-node's runc), and nothing is evicted.
fn kubelet() -> Value {
    json!({"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": "/etc/kubernetes/node.crt", "tlsPrivateKeyFile": "/etc/kubernetes/node.key",
        "staticPodPath": "/etc/kubernetes/manifests",
        "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
        "failCgroupV1": false, "failSwapOn": false, "localStorageCapacityIsolation": false,
        "clusterDNS": [DNS], "clusterDomain": "cluster.local",
        "resolvConf": "/etc/kubernetes/resolv.conf",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%",
            "nodefs.inodesFree": "0%"},
        "imageGCHighThresholdPercent": 100, "maxPods": 250, "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
        "registryPullQPS": 0, "kubeAPIQPS": 100, "kubeAPIBurst": 200})
}

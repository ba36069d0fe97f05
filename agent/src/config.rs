//! Command line and environment.

use std::{net::IpAddr, net::SocketAddr, path::PathBuf};

use agent_common::maps::{MAPS, MapSpec};
use clap::Parser;
use ipnet::IpNet;

use crate::cni;

/// Culvert's node agent: captures the traffic of this node's pods and carries it with mutual TLS.
#[derive(Debug, Clone, Parser)]
#[command(name = "culvert-agent", version)]
pub struct Config {
    /// Name of this node.
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// Folder of YAML with namespaces and pods; watched.
    #[arg(long, env = "CULVERT_FOLDER", required_unless_present_any = ["uninstall", "kubernetes"])]
    pub folder: Option<PathBuf>,
    /// Watches the API server instead of a folder.
    #[arg(long, env = "CULVERT_KUBERNETES", conflicts_with = "folder")]
    pub kubernetes: bool,
    /// How to reach the API server; the pod's service account when not given.
    #[arg(long, requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,
    /// The node's `/proc`, where pods' processes and through them their network namespaces are found.
    #[arg(long, env = "CULVERT_PROC", default_value = "/proc")]
    pub proc: PathBuf,
    /// Control plane, `https://host:port`: configuration and certificates.
    #[arg(long, env = "CULVERT_CONTROL", required_unless_present = "uninstall")]
    pub control: Option<String>,
    /// PEM file with the roots that the control plane's certificate must chain to.
    #[arg(long, env = "CULVERT_CA_ROOT")]
    pub ca_root: Option<PathBuf>,
    /// Name to verify in the control plane's certificate instead of the url's host.
    #[arg(long, env = "CULVERT_CONTROL_NAME")]
    pub control_name: Option<String>,
    /// File with the bearer token.
    #[arg(long, env = "CULVERT_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Folder for the last good configuration.
    #[arg(long, env = "CULVERT_STATE_DIR", default_value = "/var/lib/culvert/agent")]
    pub state_dir: PathBuf,
    /// Folder of the node's CNI plugins. With `--cni-conf-dir`, the agent puts its plugin there and keeps it
    /// chained behind the primary one.
    #[arg(long, env = "CULVERT_CNI_BIN_DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// Folder of the node's CNI configuration.
    #[arg(long, env = "CULVERT_CNI_CONF_DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where the CNI plugin asks the agent.
    #[arg(long, env = "CULVERT_CNI_SOCKET", default_value = cni::SOCKET)]
    pub cni_socket: PathBuf,
    /// Removes the taint `culvert.dev/not-ready` from the node when the agent is ready.
    #[arg(long, env = "CULVERT_READY_TAINT", requires = "kubernetes")]
    pub ready_taint: bool,
    /// Root of the node's cgroup v2 tree; the system's mount when not given.
    #[arg(long, env = "CULVERT_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Mount point of the bpf file system, where programs and tables are pinned.
    #[arg(long, env = "CULVERT_BPFFS", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Network namespace of the node, whose probes reach applications directly.
    #[arg(long, env = "CULVERT_HOST_NETNS", default_value = "/proc/self/ns/net")]
    pub host_netns: PathBuf,
    /// Metrics, readiness and debugging.
    #[arg(long, env = "CULVERT_ADMIN", default_value = "0.0.0.0:15020")]
    pub admin: SocketAddr,
    /// The same on a Unix socket, for `culvert` on this machine.
    #[arg(long, env = "CULVERT_ADMIN_SOCKET")]
    pub admin_socket: Option<PathBuf>,
    /// Address of this agent, part of its name towards the control plane.
    #[arg(long, env = "INSTANCE_IP", default_value = "1.1.1.1")]
    pub instance_ip: IpAddr,
    /// Name of the agent's pod.
    #[arg(long, env = "POD_NAME", default_value = "culvert-agent")]
    pub pod_name: String,
    /// Namespace of the agent's pod.
    #[arg(long, env = "POD_NAMESPACE", default_value = "culvert-system")]
    pub pod_namespace: String,
    /// Trust domain.
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Cluster id.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster: String,
    /// Network id.
    #[arg(long, env = "NETWORK", default_value = "")]
    pub network: String,
    /// Namespaces whose pods are never enrolled.
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = "kube-system")]
    pub exclude_namespaces: Vec<String>,
    /// Every pod and service range of the mesh. With them, destinations outside bypass the agent (they
    /// are still counted); without, everything goes through it.
    #[arg(long, env = "CULVERT_MESH_CIDRS", value_delimiter = ',')]
    pub mesh_cidrs: Vec<IpNet>,
    /// Data threads; one per core when 0.
    #[arg(long, env = "CULVERT_WORKERS", default_value_t = 0)]
    pub workers: usize,
    /// Most connections that one data thread carries at a time; more are refused.
    #[arg(long, env = "CULVERT_MAX_CONNECTIONS", default_value_t = 50_000)]
    pub max_connections: usize,
    /// Most connections of peers to 15008 that one data thread keeps at a time, those whose handshake
    /// is under way included; more are refused.
    #[arg(long, env = "CULVERT_MAX_TUNNELS", default_value_t = 10_000)]
    pub max_tunnels: usize,
    /// Seconds that open connections get when the agent stops. Those of a pod that leaves the mesh alive
    /// go on until they end by themselves.
    #[arg(long, env = "CULVERT_DRAIN_SECONDS", default_value_t = 5)]
    pub drain_seconds: u64,
    /// Asks the control plane for certificates of this validity, in seconds.
    #[arg(long, env = "CULVERT_CERTIFICATE_SECONDS", default_value_t = 86_400)]
    pub certificate_seconds: i64,
    /// Does not let the kernel measure the run time of the eBPF programs (it costs some nanoseconds a run).
    #[arg(long, env = "CULVERT_NO_BPF_STATS")]
    pub no_bpf_stats: bool,
    /// The eBPF programs log what they decide about every connection. For debugging: it costs time on
    /// each connect. Off, the programs do not contain the code.
    #[arg(long, env = "CULVERT_BPF_DEBUG")]
    pub bpf_debug: bool,
    /// Entries of a kernel table, `NAME=N`, when its default does not fit the node; repeatable. For tables
    /// that are pinned already it counts after `--uninstall`.
    #[arg(long, env = "CULVERT_MAP_CAPACITY", value_delimiter = ',', value_parser = map_capacity)]
    pub map_capacity: Vec<(&'static str, u32)>,
    /// Ends capture of every pod of this node, removes programs and tables, and exits.
    #[arg(long)]
    pub uninstall: bool,
}

impl Config {
    /// Number of data threads.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        }
    }
}

/// Reads `NAME=N` with the name of a table whose size may be chosen.
fn map_capacity(text: &str) -> Result<(&'static str, u32), String> {
    let (name, entries) = text.split_once('=').ok_or("NAME=N is expected")?;
    let sized = |spec: &&MapSpec| !["CONFIG", "COUNTERS"].contains(&spec.name);
    let known = || MAPS.iter().filter(sized).map(|spec| spec.name);
    let name = known()
        .find(|known| *known == name)
        .ok_or_else(|| format!("no table {name}; there are {}", known().collect::<Vec<_>>().join(", ")))?;
    match entries.parse() {
        Ok(entries) if entries > 0 => Ok((name, entries)),
        _ => Err(format!("{entries} is no number of entries")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Config::command().debug_assert();
        let words = ["culvert-agent", "--node", "n", "--folder", "f", "--control", "http://c"];
        let config = Config::try_parse_from(words).unwrap();
        assert!(config.worker_count() >= 1);
        assert!(Config::try_parse_from(["culvert-agent", "--node", "n"]).is_err());
        assert!(Config::try_parse_from(["culvert-agent", "--node", "n", "--uninstall"]).is_ok());
        let kubernetes = ["culvert-agent", "--node", "n", "--control", "http://c", "--kubernetes"];
        assert!(Config::try_parse_from(kubernetes).is_ok());
        assert!(Config::try_parse_from(kubernetes.into_iter().chain(["--folder", "f"])).is_err());
    }

    #[test]
    fn the_capacity_of_a_table_is_named_and_positive() {
        assert_eq!(map_capacity("ORIG=2"), Ok(("ORIG", 2)));
        assert!(map_capacity("EVENTS=4096").is_ok());
        for wrong in ["ORIG", "ORIG=0", "ORIG=-1", "ORIG=many", "COUNTERS=1"] {
            assert!(map_capacity(wrong).is_err(), "{wrong}");
        }
        let unknown = map_capacity("NOWHERE=1").unwrap_err();
        assert!(unknown.contains("NOWHERE") && unknown.contains("FLOW_DST"), "{unknown}");
    }
}

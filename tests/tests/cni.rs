//! The CNI plugin as a runtime calls it, with real namespaces and the real kernel side.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Output, Stdio},
    time::Duration,
};

use harness::{
    echo::{Echo, ask},
    mesh::{LIMIT, MESHED, Mesh, PLAIN},
    peer::{FAMILIES, Peer},
    require, wait,
    world::Pod,
};
use serde_json::{Value, json};

/// Namespace of which nobody knows anything.
const NEW: &str = "new";

struct Node {
    mesh: Mesh,
    socket: PathBuf,
    far: Peer,
    _server: Echo,
}

impl Node {
    fn new(name: &str) -> Option<Self> {
        require::root(name).then(|| {
            let mut mesh = Mesh::without_agents().unwrap();
            mesh.world.bpffs(0).unwrap();
            fs::create_dir_all(mesh.world.agent_state(0)).unwrap();
            let far = mesh.outsider("far", 1).unwrap();
            let server = Echo::serve(&far, 80, "far").unwrap();
            let socket = mesh.world.root.join("cni.sock");
            Self { mesh, socket, far, _server: server }
        })
    }

    /// What the agent knew when it was there.
    fn knew(&self, namespaces: &Value) {
        let text = json!({"namespaces": namespaces}).to_string();
        fs::write(self.mesh.world.agent_state(0).join("known.json"), text).unwrap();
    }

    fn pod(&mut self, namespace: &str, name: &str) -> Peer {
        let pod = self.mesh.world.add_pod(namespace, name, 0, name).unwrap();
        Peer::start(pod, &self.mesh.world.programs, &self.mesh.world.log_file(name)).unwrap()
    }

    fn settings(&self, pod: &Pod) -> Value {
        json!({
            "cniVersion": "1.1.0", "name": "pods", "type": "culvert-cni",
            "node": "node-a",
            "socket": self.socket,
            "stateDir": self.mesh.world.agent_state(0),
            "bpffs": self.mesh.world.bpffs(0).unwrap(),
            "cgroup": self.mesh.world.node_cgroup(0),
            "excludeNamespaces": ["kube-system"],
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{"name": "eth0", "sandbox": format!("/run/netns/{}", pod.netns)}],
                "ips": [{"address": format!("{}/32", pod.ip), "interface": 0},
                        {"address": format!("{}/128", pod.ip6), "interface": 0}],
            },
        })
    }

    fn call(&self, verb: &str, pod: &Pod, settings: &Value) -> Output {
        let program = self.mesh.world.programs.join("culvert-cni");
        let mut command = self.mesh.world.node_place(0).command(&program.to_string_lossy()).unwrap();
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
            pod.namespace, pod.name, pod.uid
        );
        let netns = if verb == "DEL" { String::new() } else { format!("/run/netns/{}", pod.netns) };
        command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", &pod.netns).env("CNI_IFNAME", "eth0");
        command.env("CNI_ARGS", args).env("CNI_NETNS", netns).env("CNI_PATH", "/opt/cni/bin");
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(settings.to_string().as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn add(&self, peer: &Peer) {
        let settings = self.settings(&peer.pod);
        let output = self.call("ADD", &peer.pod, &settings);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result, settings["prevResult"], "the result is that of the plugin before");
    }

    fn del(&self, peer: &Peer) {
        let output = self.call("DEL", &peer.pod, &self.settings(&peer.pod));
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    }

    /// Whether the pod's connections go out; all families say the same.
    fn is_open(&self, peer: &Peer) -> bool {
        let open = FAMILIES.map(|family| ask(peer, self.far.at(family, 80)).is_ok());
        assert_eq!(open[0], open[1], "both families are treated alike");
        open[0]
    }
}

/// Kinds of a program's segments (ELF, 64 bits, little endian).
fn segments(program: &str) -> Vec<u32> {
    let bytes = fs::read(harness::mesh::programs().unwrap().join(program)).unwrap();
    assert_eq!(bytes[..6], *b"\x7fELF\x02\x01", "{program} is a program of a 64-bit machine");
    let half = |at: usize| usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()));
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let table = usize::try_from(u64::from_le_bytes(bytes[32..40].try_into().unwrap())).unwrap();
    (0..half(56)).map(|index| word(table + index * half(54))).collect()
}

#[test]
fn the_plugin_needs_nothing_of_the_node_that_it_is_copied_to() {
    const LOAD: u32 = 1;
    const INTERPRETER: u32 = 3;
    let plugin = segments("culvert-cni");
    assert!(plugin.contains(&LOAD) && !plugin.contains(&INTERPRETER), "it is linked statically: {plugin:?}");
    assert!(segments("culvert-agent").contains(&INTERPRETER), "a program that is not has a loader");
}

#[test]
fn a_pod_that_starts_while_the_agent_is_away_is_blocked_and_its_end_frees_the_kernels_entry() {
    let name = "a_pod_that_starts_while_the_agent_is_away_is_blocked_and_its_end_frees_the_kernels_entry";
    let Some(mut node) = Node::new(name) else { return };
    node.knew(&json!({MESHED: {"labels": {"istio.io/dataplane-mode": "ambient"}}, PLAIN: {"labels": {}}}));
    let app = node.pod(MESHED, "app");
    assert!(node.is_open(&app));
    node.add(&app);
    assert!(!node.is_open(&app), "no agent has run since the machine started, and it is blocked");
    let check = node.call("CHECK", &app.pod, &node.settings(&app.pod));
    assert!(check.status.success(), "{check:?}");
    // Pods that come later use what is there, also several at once.
    let [second, third, fourth] = ["second", "third", "fourth"].map(|name| node.pod(MESHED, name));
    std::thread::scope(|scope| {
        for pod in [&second, &third, &fourth] {
            scope.spawn(|| node.add(pod));
        }
    });
    assert!(!node.is_open(&second) && !node.is_open(&third) && !node.is_open(&fourth));
    node.del(&app);
    assert!(node.is_open(&app) && !node.is_open(&second));
    node.del(&app);
    // What the runtime forgot is collected.
    let mut settings = node.settings(&second.pod);
    settings["cni.dev/valid-attachments"] = json!([]);
    assert!(node.call("GC", &second.pod, &settings).status.success());
    assert!(node.is_open(&second));
}

#[test]
fn with_the_agent_away_only_what_surely_does_not_belong_into_the_mesh_starts_untouched() {
    let name = "with_the_agent_away_only_what_surely_does_not_belong_into_the_mesh_starts_untouched";
    let Some(mut node) = Node::new(name) else { return };
    node.knew(&json!({PLAIN: {"labels": {}}, "mixed": {"labels": {}, "own_labels": true}}));
    for (namespace, pod, open) in
        [(PLAIN, "plain", true), ("kube-system", "dns", true), (NEW, "new", false), ("mixed", "mixed", false)]
    {
        let peer = node.pod(namespace, pod);
        node.add(&peer);
        assert_eq!(node.is_open(&peer), open, "{namespace}");
    }
    // Without any state nothing is known, and only what is excluded is untouched.
    fs::remove_file(node.mesh.world.agent_state(0).join("known.json")).unwrap();
    let (plain, dns) = (node.pod(PLAIN, "later"), node.pod("kube-system", "later-dns"));
    node.add(&plain);
    node.add(&dns);
    assert!(!node.is_open(&plain) && node.is_open(&dns));
}

#[test]
fn a_pod_that_cannot_be_blocked_does_not_start_and_the_error_says_why() {
    let name = "a_pod_that_cannot_be_blocked_does_not_start_and_the_error_says_why";
    let Some(mut node) = Node::new(name) else { return };
    let app = node.pod(MESHED, "app");
    let mut settings = node.settings(&app.pod);
    settings["bpffs"] = json!("/proc/version");
    let output = node.call("ADD", &app.pod, &settings);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(!output.status.success() && error["code"] == 11 && error["cniVersion"] == "1.1.0", "{error}");
    let details = error["details"].as_str().unwrap();
    assert!(details.contains("shop/app") && details.contains("/proc/version"), "{details}");
    // Its end is none of an agent's business.
    node.del(&app);
    let mut alone = node.settings(&app.pod);
    alone["prevResult"].take();
    let output = node.call("ADD", &app.pod, &alone);
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(error["code"] == 7 && error["details"].as_str().unwrap().contains("chained"), "{error}");
    let output = node.call("VERSION", &app.pod, &json!({"cniVersion": "1.1.0"}));
    let versions: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(versions["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
    assert!(node.call("STATUS", &app.pod, &node.settings(&app.pod)).status.success());
}

#[test]
fn an_agent_without_the_api_server_answers_the_plugin_by_what_it_knew() {
    let name = "an_agent_without_the_api_server_answers_the_plugin_by_what_it_knew";
    let Some(mut node) = Node::new(name) else { return };
    node.knew(&json!({MESHED: {"labels": {"istio.io/dataplane-mode": "ambient"}}, PLAIN: {"labels": {}}}));
    let kubeconfig = node.mesh.world.root.join("kubeconfig");
    let cluster = json!({"server": "https://127.0.0.1:1", "insecure-skip-tls-verify": true});
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "none"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    });
    fs::write(&kubeconfig, config.to_string()).unwrap();
    node.mesh.world.agent_kubeconfig = Some(kubeconfig);
    node.mesh.world.agent_words = vec!["--cni-socket".into(), node.socket.display().to_string()];
    node.mesh.world.agent_filter = "info,agent::cni=debug".into();
    node.mesh.world.start_control().unwrap();
    node.mesh.world.spawn_agent(0).unwrap();
    wait::until(LIMIT, "the agent to listen", || node.socket.exists().then_some(())).unwrap();
    let (app, plain) = (node.pod(MESHED, "app"), node.pod(PLAIN, "plain"));
    let mark = node.mesh.mark("agent-node-a");
    node.add(&app);
    node.add(&plain);
    node.mesh.logged(&mark, &["Captured"]).unwrap();
    node.mesh.logged(&mark, &["Untouched"]).unwrap();
    assert!(!node.is_open(&app) && node.is_open(&plain));
    // It stays blocked when the agent dies, and one that hangs is as good as none.
    node.mesh.world.kill_agent(0);
    assert!(!node.is_open(&app));
    let hangs = std::os::unix::net::UnixListener::bind(node.mesh.world.root.join("hangs.sock")).unwrap();
    node.socket = node.mesh.world.root.join("hangs.sock");
    let late = node.pod(MESHED, "late");
    let begun = std::time::Instant::now();
    node.add(&late);
    assert!(!node.is_open(&late) && begun.elapsed() < Duration::from_secs(30));
    drop(hangs);
}

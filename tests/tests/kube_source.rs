//! `culvert-control --kubernetes` against a real API server.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, process::Command, time::Duration};

use harness::{
    cluster::{Cluster, crds::Crds},
    janitor, mesh,
    process::Process,
    require, shell, wait,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

/// A replica of the control plane; ends when dropped.
struct Control {
    process: Process,
    socket: PathBuf,
}

impl Control {
    fn start(cluster: &Cluster, name: &str) -> Self {
        Self::start_as(cluster, name, &cluster.kubeconfig())
    }

    fn start_as(cluster: &Cluster, name: &str, kubeconfig: &std::path::Path) -> Self {
        let program = mesh::programs().unwrap().join("culvert-control");
        let sockets = janitor::sockets(&cluster.id);
        std::fs::create_dir_all(&sockets).unwrap();
        let socket = sockets.join(format!("{name}.sock"));
        let state = cluster.root.join("state").join(name);
        std::fs::create_dir_all(&state).unwrap();
        let mut command = cluster.place_of(name).command(&program.to_string_lossy()).unwrap();
        command.args(["--kubernetes", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.args(["--pod-namespace", "culvert-system", "--pod-name", name]);
        command.arg("--kubeconfig").arg(kubeconfig).arg("--state-dir").arg(state);
        command.arg("--admin-socket").arg(&socket);
        let process = Process::spawn(&mut command, &cluster.log_file(name)).unwrap();
        Self { process, socket }
    }

    fn text(&self, path: &str) -> Option<String> {
        let url = format!("http://control{path}");
        let mut curl = Command::new("curl");
        curl.args(["-s", "-m", "5", "--unix-socket"]).arg(&self.socket).arg(url);
        shell::output(&mut curl).ok()
    }

    fn json(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.text(path)?).ok()
    }

    fn ready(&self) -> bool {
        self.text("/readyz").is_some_and(|text| text == "ready\n")
    }

    /// Waits until something can be seen in what is published.
    fn until<T>(&self, what: &str, observe: impl Fn(&Value) -> Option<T>) -> T {
        let seen = wait::until(LIMIT, what, || observe(&self.json("/debug/config")?));
        seen.unwrap_or_else(|error| {
            let objects = self.text("/debug/objects").unwrap_or_default();
            panic!("{error:#}\n{}\n{objects}", self.process.log())
        })
    }

    fn becomes_ready(&self) {
        wait::until(LIMIT, "readiness", || self.ready().then_some(())).unwrap();
    }

    /// The first address of a service.
    fn address(&self, name: &str) -> String {
        let of = |config: &Value| {
            let services = config["services"].as_array()?;
            let service = services.iter().find(|service| service["name"] == name)?;
            Some(service["vips"][0]["range"].as_str()?.to_string())
        };
        self.until(&format!("service {name}"), of)
    }
}

/// Health of a pod, as published.
fn health(config: &Value, pod: &str) -> Option<String> {
    let workloads = config["workloads"].as_array()?;
    let one = workloads.iter().find(|workload| workload["name"] == pod)?;
    Some(one["health"].to_string())
}

/// A pod that runs on a node of its own world, made ready by writing its status.
fn pod(cluster: &Cluster, name: &str, ip: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {"nodeName": "node-x", "serviceAccountName": "default",
                 "containers": [{"name": "c", "image": "i"}]}});
    cluster.apply_object(&pod).unwrap();
    let status = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    let words = ["patch", "pod", name, "--subresource=status", "--type=merge", "-p"];
    cluster.kubectl(&[&words[..], &[&status.to_string()]].concat()).unwrap();
}

fn route(timeout: &str) -> Value {
    json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"hosts": ["web"], "http": [{"retries": {"attempts": 2, "retryOn": "5xx",
            "perTryTimeout": timeout}, "route": [{"destination": {"host": "web"}}]}]}})
}

/// What control told an object, once it speaks of the object's present generation.
fn told(object: &Value) -> Option<(String, String)> {
    let conditions = object["status"]["conditions"].as_array()?;
    let accepted = conditions.iter().find(|c| c["type"] == "Accepted")?;
    let current = accepted["observedGeneration"] == object["metadata"]["generation"];
    let text = |field: &str| accepted[field].as_str().map(String::from);
    Some((text("status")?, text("message")?)).filter(|_| current)
}

fn prepared(crds: &[Crds]) -> Cluster {
    let cluster = Cluster::api_server(crds).unwrap();
    cluster.kubectl(&["create", "namespace", "culvert-system"]).unwrap();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "default"}});
    cluster.apply_object(&account).unwrap();
    cluster
}

#[test]
fn the_control_plane_follows_the_api_server_through_restarts_and_kinds_that_come_and_go() {
    let name = "the_control_plane_follows_the_api_server_through_restarts_and_kinds_that_come_and_go";
    if !require::cluster(name) {
        return;
    }
    let mut cluster = prepared(&[]);
    let control = Control::start(&cluster, "control-1");
    control.becomes_ready();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    cluster.apply_object(&service).unwrap();
    control.address("web");
    pod(&cluster, "one", "10.1.0.1");
    control.until("a ready pod", |config| (health(config, "one")? == "\"Healthy\"").then_some(()));

    // A deleted pod takes no connections while it ends, and is gone when it is gone.
    cluster.kubectl(&["delete", "pod", "one", "--wait=false"]).unwrap();
    control.until("a pod that ends", |config| (health(config, "one")? != "\"Healthy\"").then_some(()));
    cluster.kubectl(&["delete", "pod", "one", "--force", "--grace-period=0"]).unwrap();
    control.until("no pod", |config| health(config, "one").is_none().then_some(()));

    // Kinds that come later; a refusal is told and an event written, and better news follow.
    cluster.install_crds(Crds::Istio).unwrap();
    cluster.apply_object(&route("1s")).unwrap();
    let words = ["virtualservice", "web"];
    let accepted = |status: &'static str| move |object: &Value| told(object).filter(|(is, _)| is == status);
    cluster.wait_for(LIMIT, "acceptance", &words, accepted("True")).unwrap();
    let refused = route("1s");
    let mut refused = refused;
    refused["spec"]["http"][0]["retries"]["attempts"] = json!(99_999);
    cluster.apply_object(&refused).unwrap();
    let (_, why) = cluster.wait_for(LIMIT, "a refusal", &words, accepted("False")).unwrap();
    assert!(why.contains("spec.http[0].retries.attempts"), "{why}");
    assert!(why.contains("the version before stays in effect"), "{why}");
    let events = ["events", "--field-selector=reason=Refused,type=Warning"];
    let note = cluster.wait_for(LIMIT, "an event", &events, |list| {
        list["items"].as_array()?.first().map(|event| event["message"].to_string())
    });
    assert!(note.unwrap().contains("attempts"));
    let status = |cluster: &Cluster| cluster.get(&words).unwrap();

    // The API server is away: what is known stays; it is back: what happens is seen.
    let written = status(&cluster);
    cluster.kill_api_server();
    assert!(control.ready());
    control.until("the last state", |config| (!config["services"].as_array()?.is_empty()).then_some(()));
    cluster.start_api_server().unwrap();
    let mut later = service;
    later["metadata"]["name"] = json!("later");
    later["spec"]["selector"] = json!({"app": "later"});
    cluster.apply_object(&later).unwrap();
    control.address("later");
    let now = status(&cluster);
    assert_eq!(now, written, "our own status write brought about another one: {}", control.process.log());
    pod(&cluster, "two", "10.1.0.2");
    control.until("a pod after the restart", |config| health(config, "two"));

    // A kind that goes takes its objects along.
    cluster.kubectl(&["delete", "crd", "virtualservices.networking.istio.io"]).unwrap();
    let gone = || {
        let objects = control.text("/debug/objects")?;
        (!objects.contains("VirtualService default/web")).then_some(())
    };
    wait::until(LIMIT, "no route", gone).unwrap();
    control.until("the pod", |config| health(config, "two"));
}

#[test]
fn replicas_give_the_same_addresses_also_after_a_restart() {
    if !require::cluster("replicas_give_the_same_addresses_also_after_a_restart") {
        return;
    }
    let cluster = prepared(&[Crds::Istio]);
    let controls = ["control-1", "control-2"].map(|name| Control::start(&cluster, name));
    controls.iter().for_each(Control::becomes_ready);
    let names: Vec<String> = (0..20).map(|n| format!("host-{n}")).collect();
    for name in &names {
        let entry = json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"hosts": [format!("{name}.example.com")], "resolution": "DNS",
                     "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]}});
        cluster.apply_object(&entry).unwrap();
    }
    let addresses = |control: &Control| names.iter().map(|name| control.address(name)).collect::<Vec<_>>();
    let [first, second] = controls.each_ref().map(addresses);
    assert_eq!(first, second);
    let words = ["-n", "culvert-system", "configmap", "culvert-state"];
    cluster
        .wait_for(LIMIT, "all addresses to be kept", &words, |map| {
            let text = map["data"]["external-vips.json"].as_str()?;
            names.iter().all(|name| text.contains(name.as_str())).then_some(())
        })
        .unwrap();
    drop(controls);
    let again = Control::start(&cluster, "control-3");
    again.becomes_ready();
    assert_eq!(addresses(&again), first);
}

#[test]
fn a_control_plane_without_permissions_is_not_ready_and_says_which_it_lacks() {
    if !require::cluster("a_control_plane_without_permissions_is_not_ready_and_says_which_it_lacks") {
        return;
    }
    let cluster = prepared(&[]);
    let config = cluster.kubeconfig_of("default", "default").unwrap();
    let control = Control::start_as(&cluster, "control-1", &config);
    let said = wait::until(LIMIT, "a reason", || {
        control.text("/readyz").filter(|text| text.contains("is forbidden"))
    });
    assert!(said.unwrap().starts_with("awaits: first list from the API server"));
}

//! The cluster of the tests itself: what every case on Kubernetes relies on.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use harness::{
    cluster::{Cluster, Shape, crds::Crds, programs},
    janitor, mesh, require, shell, wait,
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);
const READY: Duration = Duration::from_secs(120);

#[test]
fn an_api_server_keeps_objects_over_a_restart_and_reviews_tokens_by_audience() {
    if !require::cluster("an_api_server_keeps_objects_over_a_restart_and_reviews_tokens_by_audience") {
        return;
    }
    let mut cluster = Cluster::api_server(&Crds::ALL).unwrap();
    cluster.kubectl(&["create", "namespace", "shop"]).unwrap();
    cluster.kubectl(&["-n", "shop", "create", "serviceaccount", "web"]).unwrap();
    let service = json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"hosts": ["web"]}});
    cluster.apply_object(&service).unwrap();
    let token = cluster.token("shop", "web", "istio-ca").unwrap();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["istio-ca"]}});
    let reviewed = cluster.feed(&["create", "-o", "json", "-f", "-"], &review.to_string()).unwrap();
    let reviewed: serde_json::Value = serde_json::from_str(&reviewed).unwrap();
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:shop:web");
    assert_eq!(reviewed["status"]["audiences"], json!(["istio-ca"]));

    cluster.stop_api_server();
    assert!(cluster.kubectl(&["get", "namespaces"]).is_err());
    cluster.start_api_server().unwrap();
    let words = ["-n", "shop", "virtualservice", "web"];
    let hosts = cluster.wait_for(LIMIT, "the object", &words, |object| Some(object["spec"]["hosts"].clone()));
    assert_eq!(hosts.unwrap(), json!(["web"]));
    let reached = cluster.inside(|| std::net::TcpStream::connect(("127.0.0.1", 6443)).is_ok()).unwrap();
    assert!(reached);

    let config = cluster.kubeconfig_of("shop", "web").unwrap();
    let denied = shell::output(cluster.kubectl_as(&config).unwrap().args(["get", "pods"]));
    assert!(denied.unwrap_err().to_string().contains("forbidden"));
    let uses = cluster.uses("system:serviceaccount:shop:web").unwrap();
    assert!(uses.iter().any(|one| one.resource == "pods" && one.verb == "list" && !one.allowed), "{uses:?}");

    let (id, group) = (cluster.id.clone(), cluster.place().cgroup);
    drop(cluster);
    assert!(!janitor::folder(&id).exists() && !group.exists());
    let left = shell::output(Command::new("ip").args(["netns", "list"])).unwrap();
    assert!(!left.contains(&format!("{}{id}", janitor::NETNS_PREFIX)));
    assert!(fs::read_dir(janitor::WORLDS).is_ok());
}

#[test]
fn two_nodes_run_pods_that_reach_each_other_services_and_names_and_a_node_survives_its_power_cut() {
    let name =
        "two_nodes_run_pods_that_reach_each_other_services_and_names_and_a_node_survives_its_power_cut";
    if !require::cluster(name) {
        return;
    }
    let started = Instant::now();
    let shape = Shape {
        controllers: true,
        nodes: 2,
        helpers: mesh::programs().unwrap(),
        images: programs::images().unwrap(),
        ..Shape::default()
    };
    let mut cluster = Cluster::start(&shape).unwrap();
    println!("up after {:.1} s", started.elapsed().as_secs_f64());
    let web = json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "web"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "web", "image": "nginx",
                "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}}]}}}});
    cluster.apply_object(&web).unwrap();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 8000, "targetPort": 80}]}});
    cluster.apply_object(&service).unwrap();
    cluster.rolled_out("default", "daemonset/web", READY).unwrap();
    let pods = cluster.get(&["pods", "-l", "app=web"]).unwrap();
    let pods: Vec<(String, String)> = pods["items"].as_array().unwrap().iter().map(told).collect();
    assert_eq!(pods.len(), 2);
    for (pod, own) in &pods {
        let fetch = |url: &str| cluster.kubectl(&["exec", pod, "--", "/usr/bin/curl", "-sf", "-m", "5", url]);
        for (_, address) in pods.iter().filter(|(_, address)| address != own) {
            // Addresses of clients are kept from node to node.
            assert!(fetch(&format!("http://{address}/whoami")).unwrap().contains(own.as_str()));
        }
        // Names and kube-proxy's tables follow a little after the pods.
        let what = format!("an answer by name, through kube-proxy, at {pod}");
        let answer = wait::until(READY, &what, || fetch("http://web:8000/").ok()).unwrap();
        assert_eq!(answer, "nginx\n");
    }
    cluster.power_off(1).unwrap();
    cluster.power_on(1).unwrap();
    let words = ["pods", "-l", "app=web", "--field-selector=spec.nodeName=node-b"];
    cluster
        .wait_for(READY, "the pod of the node to be started again", &words, |list| {
            let status = &list["items"][0]["status"]["containerStatuses"][0];
            (status["restartCount"] == 1 && status["ready"] == true).then_some(())
        })
        .unwrap();
    let first = &pods[0].0;
    let fetch =
        || cluster.kubectl(&["exec", first, "--", "/usr/bin/curl", "-sf", "-m", "5", "http://web:8000/"]);
    wait::until(LIMIT, "an answer after the power cut", || fetch().ok()).unwrap();
}

/// Name and address of a pod.
fn told(pod: &serde_json::Value) -> (String, String) {
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_string();
    (text(&pod["metadata"]["name"]), text(&pod["status"]["podIP"]))
}

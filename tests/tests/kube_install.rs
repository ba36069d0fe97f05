//! `culvert install` and its kin against a real API server: what it accepts, what is left behind.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{process::Command, time::Duration};

use harness::{
    cluster::{Cluster, Shape, crds::Crds, programs::Programs},
    mesh, require, shell,
};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "culvert-system";
const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests");

/// Exit status, standard output and standard error of `culvert`.
fn culvert_as(cluster: &Cluster, kubeconfig: &std::path::Path, words: &[&str]) -> (i32, String, String) {
    let program = mesh::programs().unwrap().join("culvert");
    let mut command = cluster.place_of("culvert").command(&program.to_string_lossy()).unwrap();
    let out = command.args(words).env("KUBECONFIG", kubeconfig).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn culvert(cluster: &Cluster, words: &[&str]) -> (i32, String, String) {
    culvert_as(cluster, &cluster.kubeconfig(), words)
}

/// Names of everything of ours, in every namespace.
fn ours(cluster: &Cluster) -> String {
    let kinds = "namespaces,serviceaccounts,clusterroles,clusterrolebindings,roles,rolebindings,services,deployments,\
        daemonsets,gatewayclasses,networkpolicies,poddisruptionbudgets,jobs,pods,configmaps";
    let words = ["get", kinds, "--all-namespaces", "-l", "app.kubernetes.io/part-of=culvert", "-o", "name"];
    cluster.kubectl(&words).unwrap()
}

fn with_controllers() -> Shape {
    Shape { controllers: true, crds: Crds::ALL.to_vec(), ..Shape::default() }
}

#[test]
fn an_installation_is_tried_dry_then_accepted_upgraded_and_removed_without_a_trace() {
    if !require::cluster("an_installation_is_tried_dry_then_accepted_upgraded_and_removed_without_a_trace") {
        return;
    }
    let cluster = Cluster::start(&with_controllers()).unwrap();
    let before = ours(&cluster);
    assert_eq!(before, "");
    let (status, _, error) = culvert(&cluster, &["install"]);
    assert!(status == 2 && error.contains("no Linux node"), "{error}");

    let (status, text, error) = culvert(&cluster, &["install", "--dry-run"]);
    assert!(status == 0 && text.contains("nothing was changed"), "{text}{error}");
    assert_eq!(ours(&cluster), "", "a dry run writes nothing");

    // Strict validation: the API server refuses a field that it does not know.
    let (status, text, error) =
        culvert(&cluster, &["install", "--skip-check", "--profile", "production", "--json"]);
    assert_eq!(status, 0, "{text}{error}");
    let told: Value = serde_json::from_str(&text).unwrap();
    let applied = told["applied"].as_array().unwrap();
    assert!(applied.iter().all(|one| one["change"] == "created") && told["skipped"] == json!([]), "{text}");
    let replicas =
        cluster.get(&["-n", NAMESPACE, "deployment", "culvert-control"]).unwrap()["spec"]["replicas"].clone();
    assert_eq!(replicas, 2);
    let (status, _, error) = culvert(&cluster, &["install", "--skip-check"]);
    assert!(status == 2 && error.contains("culvert upgrade"), "{error}");

    // Settings are kept, what a setting takes away goes, what is the same is not touched.
    let words = ["upgrade", "--skip-check", "--set", "control.podDisruptionBudget=false"];
    let (status, text, error) = culvert(&cluster, &words);
    assert!(
        status == 0 && text.contains("removed PodDisruptionBudget culvert-system/culvert-control"),
        "{text}{error}"
    );
    assert!(text.contains("unchanged Deployment"), "{text}");
    let edit = ["-n", NAMESPACE, "scale", "deployment", "culvert-control", "--replicas=5"];
    cluster.kubectl(&edit).unwrap();
    let (_, text, _) = culvert(&cluster, &["upgrade", "--skip-check", "--dry-run"]);
    assert!(text.contains("changed Deployment culvert-system/culvert-control"), "{text}");

    // Check names what is missing: nobody writes the roots here, and no node runs a pod.
    let (status, text, _) = culvert(&cluster, &["check"]);
    assert!(
        status == 1 && text.contains("has no node") && text.contains("culvert-ca-root-cert is missing"),
        "{text}"
    );

    cluster.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode=ambient"]).unwrap();
    let (status, _, error) = culvert(&cluster, &["uninstall"]);
    assert!(
        status == 2 && error.contains("kubectl label namespace default istio.io/dataplane-mode-"),
        "{error}"
    );
    cluster.kubectl(&["label", "namespace", "default", "istio.io/dataplane-mode-"]).unwrap();
    let made = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "waypoint",
        "namespace": "default", "labels": {"culvert.dev/managed-by": "control"}}});
    let roots = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "culvert-ca-root-cert", "namespace": "default"}});
    let foreign = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "mine", "namespace": "default"}});
    for object in [&made, &roots, &foreign] {
        cluster.apply_object(object).unwrap();
    }
    let (status, text, error) = culvert(&cluster, &["uninstall"]);
    assert!(status == 0 && text.contains("Culvert is removed"), "{text}{error}");
    let gone = |list: &Value| {
        list["items"].as_array()?.iter().all(|ns| ns["metadata"]["name"] != NAMESPACE).then_some(())
    };
    cluster.wait_for(LIMIT, "the namespace to go", &["namespaces"], gone).unwrap();
    assert_eq!(ours(&cluster), "");
    assert!(cluster.get(&["serviceaccount", "waypoint"]).is_err(), "what the control plane made is gone");
    assert!(cluster.get(&["configmap", "culvert-ca-root-cert"]).is_err());
    assert!(cluster.get(&["serviceaccount", "mine"]).is_ok(), "what is not ours stays");
}

#[test]
fn kubectl_installs_what_the_api_server_accepts_and_the_rights_of_a_user_are_checked() {
    let name = "kubectl_installs_what_the_api_server_accepts_and_the_rights_of_a_user_are_checked";
    if !require::cluster(name) {
        return;
    }
    let cluster = Cluster::api_server(&Crds::ALL).unwrap();
    cluster.kubectl(&["create", "namespace", NAMESPACE]).unwrap();
    for overlay in ["", "/overlays/production", "/overlays/gke", "/overlays/openshift"] {
        let folder = format!("{MANIFESTS}{overlay}");
        cluster.kubectl(&["apply", "--dry-run=server", "--validate=strict", "-k", &folder]).unwrap();
    }
    cluster.kubectl(&["apply", "--server-side", "-k", MANIFESTS]).unwrap();

    // A user without rights learns which are missing; nothing is written.
    cluster.kubectl(&["create", "serviceaccount", "nobody"]).unwrap();
    let nobody = cluster.kubeconfig_of("default", "nobody").unwrap();
    let view =
        ["create", "clusterrolebinding", "nobody", "--clusterrole=view", "--serviceaccount=default:nobody"];
    cluster.kubectl(&view).unwrap();
    let (status, text, error) = culvert_as(&cluster, &nobody, &["check", "--before"]);
    assert!(
        status == 1 && text.contains("you may not create configmaps") && text.contains(" clusterroles.rbac"),
        "{text}{error}"
    );
}

#[test]
fn missing_kinds_of_istio_are_defined_and_those_that_are_there_are_left_alone() {
    if !require::cluster("missing_kinds_of_istio_are_defined_and_those_that_are_there_are_left_alone") {
        return;
    }
    let cluster = Cluster::api_server(&[]).unwrap();
    let defined = || cluster.kubectl(&["get", "crds", "-o", "name"]).unwrap();
    let (_, text, _) = culvert(&cluster, &["check", "--before"]);
    assert!(text.contains("virtualservices") && text.contains("culvert install"), "{text}");
    let (status, text, error) = culvert(&cluster, &["install", "--skip-check", "--skip-crds"]);
    assert!(status == 0 && defined().is_empty(), "{text}{error}");
    let (status, text, error) = culvert(&cluster, &["upgrade", "--skip-check"]);
    assert!(
        status == 0 && text.contains("created CustomResourceDefinition virtualservices.networking.istio.io"),
        "{text}{error}"
    );
    assert_eq!(defined().lines().count(), 6, "{}", defined());
    let routing = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nginx-canary/routing.yaml");
    cluster.wait_for(LIMIT, "the new kinds", &["virtualservices"], |_| Some(())).unwrap();
    cluster.kubectl(&["apply", "--validate=strict", "-f", routing]).unwrap();
    let shown = cluster.kubectl(&["get", "vs,dr"]).unwrap();
    assert!(shown.contains("HOSTS") && shown.contains(r#"["nginx-service"]"#), "{shown}");

    // Istio's own, which are stricter, replace ours, and the next upgrade does not touch them.
    cluster.install_crds(Crds::Istio).unwrap();
    let crd = ["crd", "virtualservices.networking.istio.io"];
    let before = cluster.get(&crd).unwrap()["metadata"]["generation"].clone();
    let (status, text, error) = culvert(&cluster, &["upgrade", "--skip-check"]);
    assert!(status == 0 && !text.contains("CustomResourceDefinition"), "{text}{error}");
    assert_eq!(cluster.get(&crd).unwrap()["metadata"]["generation"], before);
    cluster.kubectl(&["get", "vs", "nginx-vs"]).unwrap();
}

/// A node object, of which nobody runs anything.
fn node(cluster: &Cluster, name: &str, ready: &str) {
    let labels = json!({"kubernetes.io/os": "linux"});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    cluster.apply_object(&node).unwrap();
    let info = json!({"operatingSystem": "linux", "kernelVersion": "6.12.1", "architecture": "amd64"});
    let condition = json!({"type": "Ready", "status": ready, "reason": "Test", "message": "test"});
    let status = json!({"status": {"nodeInfo": info, "conditions": [condition]}}).to_string();
    cluster.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "-p", &status]).unwrap();
}

#[test]
fn nodes_are_cleaned_by_a_job_each_before_anything_is_removed_and_one_that_is_away_is_named() {
    let name = "nodes_are_cleaned_by_a_job_each_before_anything_is_removed_and_one_that_is_away_is_named";
    if !require::cluster(name) {
        return;
    }
    // Without controllers: the test says how the jobs end.
    let cluster = Cluster::api_server(&Crds::ALL).unwrap();
    node(&cluster, "here", "True");
    node(&cluster, "away", "False");
    let (status, text, error) = culvert(&cluster, &["install"]);
    assert!(status == 0, "{text}{error}");
    assert!(error.contains("not ready: away"), "the check before says it: {error}");
    let (status, job, text) = std::thread::scope(|scope| {
        let removing = scope.spawn(|| culvert(&cluster, &["uninstall"]));
        let found = |list: &Value| list["items"].as_array()?.first().cloned();
        let job = cluster.wait_for(LIMIT, "the job", &["-n", NAMESPACE, "jobs"], found).unwrap();
        assert!(cluster.get(&["-n", NAMESPACE, "daemonset", "culvert-agent"]).is_err(), "agents stop first");
        complete(&cluster, &job);
        let (status, text, _) = removing.join().unwrap();
        (status, job, text)
    });
    let pod = &job["spec"]["template"]["spec"];
    assert_eq!((&pod["nodeName"], &pod["containers"][0]["args"][0]), (&json!("here"), &json!("--uninstall")));
    assert!(status == 1 && text.contains("not clean away: the node is not ready"), "{text}");
    assert!(
        cluster.get(&["-n", NAMESPACE, "deployment", "culvert-control"]).is_ok(),
        "the rest waits: {text}"
    );
}

/// Lets a job end well, as its controller would say it.
fn complete(cluster: &Cluster, job: &Value) {
    let at = job["metadata"]["creationTimestamp"].clone();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Test", "message": "test"});
    let status = json!({"status": {"startTime": at, "completionTime": at, "succeeded": 1, "uncountedTerminatedPods": {},
        "conditions": [condition("SuccessCriteriaMet"), condition("Complete")]}});
    let (name, status) = (job["metadata"]["name"].as_str().unwrap(), status.to_string());
    let words =
        ["-n", NAMESPACE, "patch", "job", name, "--subresource=status", "--type=merge", "-p", &status];
    cluster.kubectl(&words).unwrap();
}

#[test]
fn the_chart_with_its_defaults_is_the_base_and_its_schema_refuses_a_misspelled_value() {
    let name = "the_chart_with_its_defaults_is_the_base_and_its_schema_refuses_a_misspelled_value";
    let Some(helm) = require::helm(name) else { return };
    let chart = format!("{MANIFESTS}/helm/culvert");
    let render = |more: &[&str]| {
        let words = ["template", "culvert", &chart, "--namespace", NAMESPACE, "--kube-version", "1.36.0"];
        shell::output(Command::new(&helm).args(words).args(more))
    };
    let kubectl = Programs::find().unwrap().path("kubectl");
    let built = |folder: &str| shell::output(Command::new(&kubectl).args(["kustomize", folder])).unwrap();
    assert_eq!(documents(&render(&[]).unwrap()), documents(&built(MANIFESTS)));
    let production = built(&format!("{MANIFESTS}/overlays/production"));
    let values = format!("{chart}/values-production.yaml");
    assert_eq!(documents(&render(&["--values", &values]).unwrap()), documents(&production));
    let refused = render(&["--set", "control.replica=2"]).unwrap_err().to_string();
    assert!(refused.contains("replica"), "the schema refuses a misspelled value: {refused}");
}

/// Objects by kind and name, without the namespace.
fn documents(text: &str) -> std::collections::BTreeMap<String, Value> {
    let read = |document: &str| serde_norway::from_str::<Value>(document).unwrap();
    let name = |o: Value| (format!("{} {}", o["kind"], o["metadata"]["name"]), o);
    let all = text.split("\n---\n").map(read).filter(|o| !o.is_null() && o["kind"] != "Namespace");
    all.map(name).collect()
}

//! The built binary on folders.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::Path, process::Command};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Exit status, standard output and standard error.
fn culvert(args: &[&str]) -> (i32, String, String) {
    let out = Command::new(env!("CARGO_BIN_EXE_culvert")).args(args).current_dir(root()).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

/// The tutorial in a cluster, and further documents.
fn cluster(more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in ["cli/tests/cluster", "examples/nginx-canary"] {
        for entry in fs::read_dir(root().join(from)).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    fs::write(folder.path().join("more.yaml"), more).unwrap();
    folder
}

fn explain(folder: &tempfile::TempDir) -> (i32, String, String) {
    culvert(&["explain", "-f", folder.path().to_str().unwrap(), "client", "nginx-service:8000"])
}

#[test]
fn the_binary_names_every_mistake_of_the_bad_folder_and_fails() {
    let (status, text, _) = culvert(&["analyze", "-f", "control/tests/fixtures/bad"]);
    assert_eq!(status, 1);
    let errors = text.lines().filter(|l| l.starts_with("  error   ") && l.contains(".yaml:")).count();
    let mistakes = fs::read_dir(root().join("control/tests/fixtures/bad")).unwrap().count() - 1;
    assert!(
        errors == mistakes && errors >= 20,
        "{errors} errors of {mistakes} files beside the good one\n{text}"
    );
    assert!(!text.contains('\x1b'), "no colours in a pipe");
    let (status, text, _) = culvert(&["analyze", "-f", "control/tests/fixtures/bad", "--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, told["errors"].as_u64().unwrap() as usize), (1, errors));
    for f in told["findings"].as_array().unwrap() {
        assert!(["file", "reason", "remedy", "code"].iter().all(|k| f[k].as_str() != Some("")), "{f}");
        assert!(f["line"].as_u64().unwrap() > 0, "{f}");
    }
}

#[test]
fn a_warning_fails_only_when_asked_to_and_a_good_folder_never() {
    let route = "kind: VirtualService\nmetadata: {name: vs}\nspec: {hosts: [nobody], http: [{route: [{destination: \
                 {host: nginx-service}}]}]}\n";
    let folder = cluster(route);
    let path = folder.path().to_str().unwrap();
    let (status, text, _) = culvert(&["analyze", "-f", path]);
    assert!(status == 0 && text.contains("unknown-host"), "{text}");
    assert_eq!(culvert(&["analyze", "-f", path, "--fail-on", "warning"]).0, 1);
    let good = cluster("");
    assert_eq!(culvert(&["analyze", "-f", good.path().to_str().unwrap(), "--fail-on", "warning"]).0, 0);
}

#[test]
fn a_folder_that_cannot_be_read_or_is_empty_is_no_success() {
    let empty = tempfile::tempdir().unwrap();
    let file = root().join("README.md");
    let asked = [
        ("/nonexistent/folder", "cannot be read"),
        (empty.path().to_str().unwrap(), "has no .yaml"),
        (file.to_str().unwrap(), "is a file"),
    ];
    for (path, reason) in asked {
        let (status, _, error) = culvert(&["analyze", "-f", path]);
        assert!(status == 2 && error.contains(reason) && error.contains("next: "), "{error}");
    }
}

#[test]
fn offline_explain_names_waypoint_route_endpoints_and_tunnel_of_the_tutorial() {
    let (status, text, _) = explain(&cluster(""));
    assert_eq!(status, 0, "{text}");
    for part in [
        "taken as enrolled, because labels ask for it: 3 pods",
        "waypoint default/waypoint taken as running",
        "waypoint  waypoint default/waypoint.default.svc.cluster.local",
        "VirtualService default/nginx-vs route 0: every request: 90 % to \
         nginx-service.default.svc.cluster.local subset v1, 10 % to",
        "endpoint  workload Kubernetes//Pod/default/nginx-a-1",
        "endpoint  workload Kubernetes//Pod/default/nginx-b-1",
        "peer must be spiffe://cluster.local/ns/default/sa/waypoint",
        "verdict   carried",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn offline_explain_names_the_policy_that_refuses_and_exits_with_one() {
    let deny = "kind: AuthorizationPolicy\nmetadata: {name: no-nginx}\nspec:\n  action: DENY\n  selector: {matchLabels: \
                {app: nginx}}\n  rules: [{}]\n";
    let (status, text, _) = explain(&cluster(deny));
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("policy_denied") && text.contains("default/no-nginx"), "{text}");
    assert!(text.contains("policy_denied means: An AuthorizationPolicy with action DENY"), "{text}");
}

#[test]
fn deployments_without_pods_are_explained_as_one_pod_and_it_is_said() {
    let (status, text, _) =
        culvert(&["explain", "-f", "examples/nginx-canary", "nginx-a", "nginx-service:8000"]);
    assert!(status == 0 && text.contains("taken as one pod: default/nginx-a, default/nginx-b"), "{text}");
    assert!(text.contains("is not enrolled"), "nothing asks for the mesh there: {text}");
}

#[test]
fn a_folder_is_explained_also_when_the_environment_names_a_running_mesh() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    let args = ["explain", "-f", "examples/nginx-canary", "nginx-a", "nginx-service:8000"];
    command.args(args).current_dir(root()).env("CULVERT_AGENT", "unix:/nonexistent/agent.sock");
    assert!(command.output().unwrap().status.success());
}

#[test]
fn an_unknown_name_is_answered_with_the_known_ones() {
    let folder = cluster("");
    let path = folder.path().to_str().unwrap();
    let (status, out, error) = culvert(&["explain", "-f", path, "--json", "clien", "nginx-service:8000"]);
    let told: Value = serde_json::from_str(&out).unwrap();
    assert!(status == 2 && error.contains("has no workload clien"), "{error}");
    assert!(told["next"].as_str().unwrap().contains("default/client"), "{told}");
    let (status, _, error) = culvert(&["explain", "-f", path, "client", "nginx-service"]);
    assert!(status == 2 && error.contains("has no port"), "{error}");
}

#[test]
fn a_folder_is_judged_with_the_settings_of_its_mesh() {
    let strict = "kind: AuthorizationPolicy\nmetadata: {name: all, namespace: mesh-root}\nspec: {action: DENY, rules: [{}]}\n---\n\
                  kind: AuthorizationPolicy\nmetadata: {name: gates, namespace: mesh-root}\nspec: {targetRefs: [{kind: GatewayClass, name: x}], rules: [{}]}\n";
    let folder = cluster(strict);
    let path = folder.path().to_str().unwrap();
    let asked = ["explain", "-f", path, "client", "nginx-service:8000"];
    let settings =
        ["--root-namespace", "mesh-root", "--trust-domain", "example.org", "--service-cidr", "10.200.0.0/24"];
    let (status, text, _) = culvert(&asked);
    assert!(status == 0 && !text.contains("mesh-root/all") && text.contains("cluster.local/ns/"), "{text}");
    let (status, text, _) = culvert(&[&asked[..], &settings[..]].concat());
    assert!(status == 1 && text.contains("mesh-root/all"), "{text}");
    assert!(text.contains("example.org/ns/default") && text.contains("10.200.0."), "{text}");
    assert!(culvert(&["analyze", "-f", path]).1.contains("not-allowed"));
    assert!(!culvert(&["analyze", "-f", path, settings[0], settings[1]]).1.contains("not-allowed"));
    let (status, _, error) = culvert(&["explain", "client", "nginx-service:8000", settings[0], settings[1]]);
    assert!(status == 2 && error.contains("--folder"), "{error}");
}

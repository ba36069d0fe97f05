//! The admin endpoint and its Unix socket.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use control::admin::socket::{self, SocketError};
use mesh_core::{explain::Explanation, trace::StepKind};
use support::Running;

const MESH: &str = r#"
kind: Service
metadata: {name: web}
spec: {selector: {app: web}, clusterIP: 10.96.0.10, ports: [{name: http, port: 8000, targetPort: 80}]}
---
kind: Pod
metadata: {name: web-1, labels: {app: web}, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: web}
status: {podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
kind: Pod
metadata: {name: client-1, annotations: {ambient.istio.io/redirection: enabled}}
spec: {nodeName: n1, serviceAccountName: client}
status: {podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
---
kind: Service
metadata: {name: waypoint, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{port: 15008}]}
---
kind: Pod
metadata: {name: waypoint-1, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {nodeName: n1, serviceAccountName: waypoint}
status: {podIP: 10.0.0.9, conditions: [{type: Ready, status: "True"}]}
---
kind: VirtualService
metadata: {name: canary}
spec: {hosts: [web], http: [{name: all, route: [{destination: {host: web}}]}]}
"#;

#[tokio::test]
async fn the_socket_explains_a_connection_with_its_routes() {
    let running = Running::start(&[("mesh.yaml", MESH)]).await;
    let (status, body) = running.get_local("/debug/explain?source=client-1&destination=web%3A8000").await;
    assert_eq!(status, 200, "{body}");
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["node"], "control");
    let told: Explanation = serde_json::from_value(answer["explanation"].clone()).unwrap();
    assert!(told.carried, "{told}");
    assert!(told.steps.iter().any(|s| s.kind == StepKind::Waypoint));
    let route = told.steps.iter().find(|s| s.kind == StepKind::Route).unwrap();
    assert_eq!(route.object, "VirtualService default/canary route all");
    assert_eq!(told.snapshot, running.json("/debug/config").await["version"]);
    assert_eq!(running.get("/readyz").await.0, 200, "TCP serves the same");
}

#[tokio::test]
async fn what_cannot_be_explained_is_named_with_its_neighbours() {
    let running = Running::start(&[("mesh.yaml", MESH)]).await;
    for (query, status, says) in [
        (
            "source=clinet-1&destination=web:8000",
            404,
            "source \\\"clinet-1\\\" is not known to the control plane; near: client-1",
        ),
        (
            "source=client-1&destination=webb:8000",
            404,
            "destination \\\"webb\\\" is not known to the control plane; near: web",
        ),
        ("source=client-1&destination=web", 404, "is not HOST:PORT"),
        ("source=client-1", 400, "source and destination are needed"),
    ] {
        let (got, body) = running.get_local(&format!("/debug/explain?{query}")).await;
        assert!(got == status && body.starts_with("{\"error\":") && body.contains(says), "{got} {body}");
    }
}

#[tokio::test]
async fn the_socket_file_goes_with_the_process_and_a_stale_one_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/control.sock");
    let (listener, file) = socket::bind(&path).await.unwrap();
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(matches!(socket::bind(&path).await, Err(SocketError::Taken(_))), "somebody answers");
    drop(listener);
    std::mem::forget(file);
    assert!(path.exists(), "as after a kill");
    let (_second, file) = socket::bind(&path).await.expect("nobody answers at the stale file");
    drop(file);
    assert!(!path.exists());
    let (_third, file) = socket::bind(&path).await.unwrap();
    std::fs::write(folder.path().join("other"), "").unwrap();
    std::fs::rename(folder.path().join("other"), &path).unwrap();
    drop(file);
    assert!(path.exists(), "what is not ours stays");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(socket::bind(&path).await, Err(SocketError::NoSocket(_))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn the_program_removes_its_socket_when_it_is_terminated() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir(at("cluster")).unwrap();
    std::fs::write(at("tokens"), "{}").unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_culvert-control"));
    command
        .arg("--folder")
        .arg(at("cluster"))
        .arg("--state-dir")
        .arg(at("state"))
        .arg("--tokens")
        .arg(at("tokens"));
    command
        .args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
        .arg("--admin-socket")
        .arg(at("c.sock"));
    let mut child = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    while std::os::unix::net::UnixStream::connect(at("c.sock")).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(!at("c.sock").exists());
}

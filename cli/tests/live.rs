//! The built binary against programs that speak the contract of the admin endpoints.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::net::UnixListener,
    path::Path,
    process::Command,
    thread,
};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Path prefix, status and body.
type Answers = Vec<(&'static str, u16, String)>;

fn answer(stream: &mut (impl Read + Write), answers: &Answers) {
    let mut head = String::new();
    let mut reader = BufReader::new(&mut *stream);
    while reader.read_line(&mut head).unwrap() > 2 {}
    let path = head.split(' ').nth(1).unwrap();
    let found = answers.iter().find(|(prefix, ..)| path.starts_with(prefix));
    let (status, body) = found.map_or((404, ""), |(_, status, body)| (*status, body));
    let length = body.len();
    // The client may be gone already: its limits are what some tests are about.
    let _ =
        write!(stream, "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
}

/// Serves until the test's process ends.
fn serve(socket: &Path, answers: Answers) {
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || listener.incoming().for_each(|stream| answer(&mut stream.unwrap(), &answers)));
}

fn explanation(snapshot: u64, refusal: Option<&str>) -> Value {
    let refusal = refusal.map(|detail| json!({"reason": "policy_denied", "detail": detail}));
    let verdict = if refusal.is_some() { "refused" } else { "carried" };
    let step =
        |kind: &str, object: &str, detail: &str| json!({"kind": kind, "object": object, "detail": detail});
    json!({"snapshot": snapshot, "carried": refusal.is_none(), "refusal": refusal, "steps": [
        step("source", "workload Kubernetes//Pod/default/client", "the client"),
        step("route", "VirtualService default/nginx-vs route 0", "every request: 90 % to v1, 10 % to v2"),
        step("verdict", "", verdict),
    ]})
}

fn control(refusal: Option<&str>) -> Answers {
    let objects = json!({"objects": [{}, {}], "findings": [{"severity": "error", "file": "a.yaml", "line": 3,
        "object": "Service default/web", "reason": "70000 is no port"}]});
    let clients = json!([{"name": "node node-1", "node": "ztunnel~1", "sent": 4, "acks": 4, "nacks": 0}]);
    vec![
        ("/readyz", 200, "ready\n".into()),
        ("/debug/objects", 200, objects.to_string()),
        ("/debug/clients", 200, clients.to_string()),
        (
            "/debug/explain",
            200,
            json!({"explanation": explanation(7, refusal), "node": "control"}).to_string(),
        ),
    ]
}

fn agent(node: &str, pod_state: &str, explain: (u16, Value)) -> Answers {
    let config = json!({"node": node, "version": "0.1.0", "ready": true, "awaiting": [],
        "snapshot": {"version": 3, "workloads": 4, "services": 2, "policies": 0},
        "pods": [{"pod": "default/client", "uid": "u", "state": pod_state, "reason": null,
                  "addresses": ["10.0.0.1"], "since_seconds": 130}], "kernel": {}});
    vec![
        ("/readyz", 200, "ready\n".into()),
        ("/debug/config", 200, config.to_string()),
        ("/debug/explain", explain.0, explain.1.to_string()),
    ]
}

fn here(node: &str) -> (u16, Value) {
    let kernel = json!([{"table": "PODS", "entry": "netns cookie 5", "detail": "active"}]);
    (200, json!({"explanation": explanation(3, None), "kernel": kernel, "node": node}))
}

fn elsewhere() -> (u16, Value) {
    (404, json!({"error": "pod default/client is not on this node"}))
}

fn world(control: Answers, pod_state: &str) -> TempDir {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("demo");
    serve(&folder.join("control.sock"), control);
    serve(&folder.join("agent-node-1.sock"), agent("node-1", pod_state, here("node-1")));
    serve(&folder.join("agent-node-2.sock"), agent("node-2", "active", elsewhere()));
    run
}

fn culvert(run: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert"));
    command.args(args).env("CULVERT_RUN_DIR", run).env_remove("CULVERT_AGENT").env_remove("CULVERT_CONTROL");
    let out = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

const QUESTION: [&str; 3] = ["explain", "client", "nginx-service:8000"];

#[test]
fn live_explain_joins_the_control_planes_routes_and_the_kernel_entries_of_the_clients_node() {
    let run = world(control(None), "active");
    let (status, text, _) = culvert(run.path(), &QUESTION);
    assert_eq!(status, 0, "{text}");
    for part in ["VirtualService default/nginx-vs route 0", "kernel of node node-1", "netns cookie 5"] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains("WARNING"), "{text}");
}

#[test]
fn an_agent_that_decides_otherwise_than_the_control_plane_is_said_loudly() {
    let run = world(control(Some("AuthorizationPolicy default/no-client denies")), "active");
    let (status, text, _) = culvert(run.path(), &QUESTION);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("WARNING: the agent decides otherwise"), "{text}");
    assert!(text.contains("snapshot      3  carried") && text.contains("snapshot      7  refused"), "{text}");
    let (_, text, _) = culvert(run.path(), &["explain", "client", "nginx-service:8000", "--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(told["disagreement"]["agent"], "carried");
    assert_eq!(told["agent"]["kernel"][0]["table"], "PODS");
}

#[test]
fn without_a_control_plane_the_agent_explains_and_the_gap_is_said() {
    let run = tempfile::tempdir().unwrap();
    let socket = run.path().join("agent.sock");
    serve(&socket, agent("node-1", "active", here("node-1")));
    let endpoint = format!("unix:{}", socket.display());
    let asked = ["explain", "--agent", &endpoint, "client", "nginx-service:8000"];
    let (status, text, _) = culvert(run.path(), &asked);
    assert!(status == 0 && text.contains("no L7 routes and policies here: not asked"), "{text}");
}

#[test]
fn an_unknown_client_is_answered_in_the_words_of_the_control_plane() {
    let run = tempfile::tempdir().unwrap();
    let error = json!({"error": "source \"clien\" is not known to the control plane; near: client"});
    serve(&run.path().join("w/control.sock"), vec![("/debug/explain", 404, error.to_string())]);
    let (status, _, error) = culvert(run.path(), &["explain", "clien", "nginx-service:8000"]);
    assert!(status == 2 && error.contains("near: client") && error.contains("next: "), "{error}");
}

#[test]
fn status_is_well_when_everything_is_ready_and_still_names_refused_documents() {
    let run = world(control(None), "active");
    let (status, text, _) = culvert(run.path(), &["status"]);
    assert_eq!(status, 0, "{text}");
    for part in ["mesh demo", "all ready", "node-2", "default/client", "2m", "1 errors in the configuration"]
    {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn status_fails_for_a_pod_that_is_not_active_and_an_agent_that_is_gone() {
    let run = world(control(None), "pending");
    let gone = run.path().join("demo/agent-node-3.sock");
    drop(UnixListener::bind(&gone).unwrap());
    let (status, text, _) = culvert(run.path(), &["status"]);
    assert_eq!(status, 1, "{text}");
    assert!(text.contains("default/client on node-1 is pending for 130 s"), "{text}");
    assert!(
        text.contains("agent-node-3.sock cannot be reached") && text.contains("is it running?"),
        "{text}"
    );
    let (status, text, _) = culvert(run.path(), &["status", "--json"]);
    let told: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &told["ready"]), (1, &json!(false)));
    assert_eq!(told["agents"].as_array().unwrap().len(), 3);
}

#[test]
fn status_over_tcp_says_when_nothing_listens() {
    let run = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let answers = control(None);
    thread::spawn(move || {
        listener.incoming().take(3).for_each(|stream| answer(&mut stream.unwrap(), &answers));
    });
    let asked = ["status", "--control", &endpoint];
    assert_eq!(culvert(run.path(), &asked).0, 0);
    // The server took its three questions and is gone, or is going: nobody answers any more.
    let (status, text, _) = culvert(run.path(), &asked);
    assert!(status == 1 && text.contains("next: "), "{text}");
}

#[test]
fn what_is_no_endpoint_of_ours_is_said_and_not_shown() {
    let run = tempfile::tempdir().unwrap();
    serve(&run.path().join("w/control.sock"), vec![("/debug/explain", 200, "<html>".into())]);
    let (status, _, error) = culvert(run.path(), &QUESTION);
    assert!(status == 2 && error.contains("something else than expected"), "{error}");
}

#[test]
fn the_command_line_page_shows_real_answers_of_a_running_mesh() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("docs/cli.md");
    let page = fs::read_to_string(page).unwrap();
    let run = world(control(Some("AuthorizationPolicy default/no-client denies")), "active");
    for args in [&QUESTION[..], &["status"]] {
        let (_, text, _) = culvert(run.path(), args);
        let text = text.replace(run.path().to_str().unwrap(), "/run/culvert");
        let text: Vec<_> = text.lines().map(str::trim_end).collect();
        let block = format!("```\n$ culvert {}\n{}\n```", args.join(" "), text.join("\n"));
        assert!(page.contains(&block), "docs/cli.md lacks this, or has an older one:\n{block}");
    }
}

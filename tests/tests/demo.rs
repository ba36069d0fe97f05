//! The demo as a user runs it: every check, a kept one that is looked around in, one that is interrupted.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use harness::{janitor, mesh, require, wait};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

fn demo(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-demo"));
    command.arg("--programs").arg(mesh::programs().unwrap()).args(words);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a verb on a kept demo: exit status, standard output and standard error.
fn on(world: &str, words: &[&str], input: &str) -> (i32, String, String) {
    let mut command = demo(&["--world", world]);
    command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code().unwrap(), text(&stdout), text(&stderr))
}

/// Removes a kept demo also when the test fails.
struct Kept(String);

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = janitor::remove(&self.0);
    }
}

#[test]
fn the_demo_holds_every_check_and_a_kept_one_can_be_looked_around_in() {
    if !require::root("the_demo_holds_every_check_and_a_kept_one_can_be_looked_around_in") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("demo.json");
    let shown = demo(&["--keep", "--pods", "1", "--json"]).arg(&file).output().unwrap();
    let shown = text(&shown.stdout);
    let id = shown
        .lines()
        .find_map(|line| line.strip_prefix("kept as world "))
        .unwrap_or_else(|| panic!("{shown}"));
    let kept = Kept(id.split(';').next().unwrap().to_string());
    let report: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(report["ok"], true, "{report:#}");
    assert_eq!(report["steps"].as_array().unwrap().len(), 10);
    assert!(report["summary"]["with"]["connections_32"]["rate"].as_f64().unwrap() > 0.0);

    let ask = ["exec", "client", "--", "curl", "-s", "nginx-service:8000"];
    let (status, page, _) = on(&kept.0, &ask, "");
    assert!(status == 0 && page.starts_with("Full Cycle"), "{status} {page}");
    assert_eq!(on(&kept.0, &["exec", "default/client-0-0", "--", "cat"], "its input").1, "its input");
    assert_eq!(on(&kept.0, &["exec", "client", "--", "sh", "-c", "exit 7"], "").0, 7);
    let (status, _, error) = on(&kept.0, &["exec", "nobody", "--", "true"], "");
    assert!(status == 1 && error.contains("no pod default/nobody; there are default/client-0-0"), "{error}");

    let (status, said) = apply(&kept.0, folder.path(), "weight: many");
    assert!(status == 1 && said.contains("spec.http[0].route[0].weight"), "{status} {said}");
    let (status, said) = apply(&kept.0, folder.path(), "weight: 100");
    assert!(status == 0 && !said.contains("error"), "{status} {said}");
    let (status, logs, _) = on(&kept.0, &["logs", "control"], "");
    assert!(status == 0 && logs.contains("bad-number") && !logs.contains("agent started"), "{logs}");
    assert_eq!(on(&kept.0, &["down"], "").0, 0);
    assert!(!janitor::worlds().contains(&kept.0), "nothing is left");
    let (status, _, error) = on(&kept.0, &["logs"], "");
    assert!(status == 1 && error.contains("no "), "{error}");
}

/// Applies a VirtualService that sends everything to version A, with one line of the test's choice.
fn apply(world: &str, folder: &Path, weight: &str) -> (i32, String) {
    let file = folder.join("mine.yaml");
    let route = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: mine, namespace: default}}\n\
         spec:\n  hosts: [nginx-service.example]\n  http:\n    - route:\n        - destination: {{host: nginx-service}}\n          {weight}\n"
    );
    fs::write(&file, route).unwrap();
    let (status, said, _) = on(world, &["apply", "-f", file.to_str().unwrap()], "");
    (status, said)
}

/// The world of a demo that runs: its owner is a child of the process that was started.
fn world_of(demo: &Child) -> Option<String> {
    let parent = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse::<u32>().ok())
    };
    janitor::worlds().into_iter().find(|id| {
        let owner = fs::read_to_string(janitor::folder(id).join("owner")).unwrap_or_default();
        owner.split(' ').next().and_then(parent) == Some(demo.id())
    })
}

#[test]
fn a_demo_that_is_interrupted_leaves_nothing_behind() {
    if !require::root("a_demo_that_is_interrupted_leaves_nothing_behind") {
        return;
    }
    let mut running = demo(&[]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let id = wait::until(LIMIT, "the world", || world_of(&running)).unwrap();
    wait::until(LIMIT, "its agents", || {
        janitor::folder(&id).join("logs/agent-node-a.log").exists().then_some(())
    })
    .unwrap();
    kill(Pid::from_raw(i32::try_from(running.id()).unwrap()), Signal::SIGINT).unwrap();
    let mut said = String::new();
    running.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(130), "{said}");
    assert!(!janitor::worlds().contains(&id), "the world is gone");
    let names = Command::new("ip").args(["netns", "list"]).output().unwrap();
    assert!(
        !text(&names.stdout).contains(&format!("{}{id}", janitor::NETNS_PREFIX)),
        "its namespaces are gone"
    );
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&format!("culvert-worlds/{id}")), "its mounts are gone");
    assert!(!janitor::sockets(&id).exists(), "its sockets are gone");
}

#[test]
fn the_demo_on_kubernetes_tells_the_tutorial_and_a_kept_one_can_be_looked_around_in() {
    if !require::cluster("the_demo_on_kubernetes_tells_the_tutorial_and_a_kept_one_can_be_looked_around_in") {
        return;
    }
    let told = demo(&["--kubernetes", "--keep"]).output().unwrap();
    let (shown, failed) = (text(&told.stdout), text(&told.stderr));
    let id = shown.lines().find_map(|line| line.strip_prefix("kept as cluster "));
    let id = id.unwrap_or_else(|| panic!("{shown}\n{failed}"));
    let kept = Kept(id.split(';').next().unwrap().to_string());
    assert!(shown.contains("every check held"), "{shown}");
    let (status, pods, _) = on(&kept.0, &["kubectl", "get", "pods", "-n", "culvert-system"], "");
    assert!(status == 0 && pods.contains("culvert-agent-"), "{pods}");
    let ask = ["exec", "client", "--", "curl", "-s", "nginx-service:8000"];
    let (status, page, _) = on(&kept.0, &ask, "");
    assert!(status == 0 && page.starts_with("Full Cycle"), "{status} {page}");
    assert_eq!(on(&kept.0, &["exec", "client", "--", "sh", "-c", "exit 7"], "").0, 7);
    let both = "kubectl get nodes -o name && culvert check --wait";
    let (status, said, error) = on(&kept.0, &["shell", "--", "sh", "-c", both], "");
    assert!(status == 0 && said.contains("node/node-a") && said.contains("all is well"), "{said}{error}");
    assert_eq!(on(&kept.0, &["down"], "").0, 0);
    assert!(!janitor::worlds().contains(&kept.0), "nothing is left");
}

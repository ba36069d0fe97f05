//! The program itself: admin socket, last good configuration, drain.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::{fs::FileTypeExt, net::UnixListener, net::UnixStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use mesh_core::{
    delta::Change,
    model::{Workload, WorkloadUid},
    snapshot::Snapshot,
};
use mesh_net::store::{self, Versions};

struct Waypoint(Child);

impl Drop for Waypoint {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts one whose control plane does not answer.
fn start(socket: &Path, more: &[&str]) -> Waypoint {
    let mut command = Command::new(env!("CARGO_BIN_EXE_culvert-waypoint"));
    command.args(["--control", "http://127.0.0.1:1", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--admin-socket").arg(socket).args(more);
    Waypoint(command.stderr(Stdio::piped()).spawn().unwrap())
}

fn get(socket: &Path, path: &str) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn until<T>(what: &str, mut seen: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match seen() {
            Some(value) => return value,
            None => assert!(Instant::now() < deadline, "{what}"),
        }
        std::thread::yield_now();
    }
}

fn terminate(waypoint: &mut Waypoint) {
    let pid = waypoint.0.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(waypoint.0.wait().unwrap().success());
}

#[test]
fn the_admin_socket_replaces_a_stale_file_and_serves() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("run/admin.sock");
    fs::create_dir_all(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket(), "a stale file is there");
    let mut waypoint = start(&socket, &[]);
    let text = until("the socket answers", || get(&socket, "/readyz"));
    assert!(text.contains("503") && text.contains("awaiting certificate, configuration"), "{text}");
    assert!(get(&socket, "/metrics").unwrap().contains("culvert_waypoint_refusals_total"));
    terminate(&mut waypoint);
}

#[test]
fn an_admin_socket_is_taken_over_and_what_is_no_socket_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let mut first = start(&socket, &[]);
    until("the first answers", || get(&socket, "/healthz"));
    let file = dir.path().join("file");
    fs::write(&file, "precious").unwrap();
    let mut refused = start(&file, &[]);
    assert!(!refused.0.wait().unwrap().success());
    let mut said = String::new();
    refused.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("not a socket") && said.contains(&file.display().to_string()), "{said}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");

    let mut second = start(&socket, &[]);
    terminate(&mut first);
    until("the second answers", || get(&socket, "/healthz"));
    terminate(&mut second);
}

#[test]
fn a_waypoint_starts_from_its_last_good_configuration_without_the_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("admin.sock");
    let state = dir.path().join("state");
    fs::create_dir_all(&state).unwrap();
    let uid = WorkloadUid::pod("Kubernetes", "default", "remembered");
    let known = Workload::new(uid, "default", "remembered");
    let snapshot = Snapshot::of([Change::Workload(std::sync::Arc::new(known))]);
    store::save(&state.join("snapshot"), &snapshot, &Versions::default()).unwrap();
    let arguments = ["--state-dir", state.to_str().unwrap()];
    let mut waypoint = start(&socket, &arguments);
    let awaits = |text: &str| text.contains("awaiting certificate\n");
    until("only the certificate is awaited", || get(&socket, "/readyz").filter(|text| awaits(text)));
    assert!(get(&socket, "/debug/config").unwrap().contains("Pod/default/remembered"));
    terminate(&mut waypoint);

    fs::write(state.join("snapshot"), "damaged").unwrap();
    let mut waypoint = start(&socket, &arguments);
    let text = until("it starts all the same", || get(&socket, "/readyz"));
    assert!(text.contains("awaiting certificate, configuration"), "{text}");
    terminate(&mut waypoint);
}

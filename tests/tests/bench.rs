//! The benchmarks that a user runs, with few objects: that they run, and that their figures can be.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

use harness::require;
use serde_json::Value;

#[test]
fn the_control_planes_benchmark_tells_every_client_of_every_change() {
    if !require::cluster("the_control_planes_benchmark_tells_every_client_of_every_change") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("figures.json");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_culvert-bench"));
    bench.args(["control", "--pods", "40", "--services", "8", "--nodes", "4", "--routes", "2"]);
    bench.args(["--clients", "2", "--seconds", "2", "--json"]).arg(&file);
    let out = bench.output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}\n{}", String::from_utf8_lossy(&out.stderr));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let figure = |key: &str| report["figures"][key].as_f64().unwrap_or_else(|| panic!("{key}: {report:#}"));
    assert_eq!((figure("lost"), figure("refused")), (0.0, 0.0), "{report:#}");
    for key in ["changes_per_s", "push_p99_ms", "first_push_ms", "memory_mib", "compilations_per_s"] {
        assert!(figure(key) > 0.0, "{key}: {report:#}");
    }
    assert!(figure("push_p50_ms") <= figure("push_p99_ms"), "{report:#}");
    assert!(said.contains("from there to a client, p99, ms"), "{said}");
}

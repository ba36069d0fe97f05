//! `cargo xtask test`: every test that this machine can run.

use std::path::Path;

use anyhow::Result;

use crate::{
    build,
    command::{cargo, is_root, run},
};

/// Runs the tests. As root the kernel and namespace tests must run: a skip there is a failure.
pub fn run_tests(root: &Path, filter: Option<&str>) -> Result<()> {
    let object = build::ebpf(root)?;
    let mut build = cargo(root);
    build.env("CULVERT_EBPF_OBJECT", &object).arg("build");
    run(&mut build)?;
    let mut command = cargo(root);
    command.env("CULVERT_EBPF_OBJECT", &object).args(["test", "--workspace", "--exclude", "agent-ebpf"]);
    if is_root() {
        command.env("CULVERT_REQUIRE", "root,bpf");
    } else {
        println!("SKIP kernel and namespace tests: they need root; run: sudo -E cargo xtask test");
    }
    if let Some(filter) = filter {
        command.arg(filter);
    }
    // Namespaces, cgroups and two cores are shared by the tests of one binary.
    command.args(["--", "--test-threads=2"]);
    run(&mut command)
}

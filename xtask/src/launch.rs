//! `cargo xtask demo` and `cargo xtask bench`: build what they need, then become them.

use std::{path::Path, process::Command};

use anyhow::Result;

use crate::{
    build,
    command::{cargo, is_root, run, target},
    setup::{self, Need},
};

/// Builds everything optimised and runs a program of the `tests` crate with the given arguments.
pub fn launch(root: &Path, program: &str, args: &[String]) -> Result<()> {
    setup::ensure(Need::Load)?;
    build::all(root, true)?;
    run(cargo(root).args(["build", "--release", "-p", "culvert-tests"]))?;
    let binary = target(root)?.join("release").join(program);
    let mut command = if is_root() {
        Command::new(&binary)
    } else {
        println!("{program} makes network namespaces and loads eBPF programs: it runs with sudo");
        let mut sudo = Command::new("sudo");
        sudo.arg("-E").arg(&binary);
        sudo
    };
    run(command.args(args))
}

//! Programs that Debian has packages of.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Need, line};
use crate::command::find;

/// A program, its package, what needs it, and how it tells its version.
struct Program {
    name: &'static str,
    package: &'static str,
    need: Need,
    version: &'static str,
}

const fn program(name: &'static str, package: &'static str, need: Need, version: &'static str) -> Program {
    Program { name, package, need, version }
}

const PROGRAMS: &[Program] = &[
    program("cc", "gcc", Need::Build, "--version"),
    program("ip", "iproute2", Need::Test, "-V"),
    program("nginx", "nginx-light", Need::Test, "-v"),
    program("curl", "curl", Need::Test, "--version"),
    program("tcpdump", "tcpdump", Need::Test, "--version"),
    program("nsenter", "util-linux", Need::Test, "--version"),
    program("wrk", "wrk", Need::Test, "-v"),
    program("iperf3", "iperf3", Need::Test, "--version"),
    program("prometheus", "prometheus", Need::Test, "--version"),
    program("etcd", "etcd-server", Need::Cluster, "--version"),
    program("runc", "runc", Need::Cluster, "--version"),
    program("/usr/lib/cni/ptp", "containernetworking-plugins", Need::Cluster, "--version"),
    program("iptables", "iptables", Need::Cluster, "--version"),
    program("nft", "nftables", Need::Cluster, "--version"),
    program("conntrack", "conntrack", Need::Cluster, "--version"),
    program("busybox", "busybox-static", Need::Cluster, "--help"),
];

/// Package of the libc that programs are linked with; a compiler comes without it.
const LIBC: &str = "libc6-dev";

/// Packages of the programs that are not here.
pub fn missing(need: Need) -> Vec<String> {
    let wanted = PROGRAMS.iter().filter(|program| program.need <= need);
    let absent = wanted.filter(|program| path(program.name).is_none());
    let mut packages: Vec<String> = absent.map(|program| program.package.to_string()).collect();
    if !has_static_libc() {
        packages.push(LIBC.to_string());
    }
    packages
}

/// Whether there is a libc to link statically: the CNI plugin runs on nodes whose libc is not known.
fn has_static_libc() -> bool {
    let asked = Command::new("cc").arg("-print-file-name=libc.a").stderr(Stdio::null()).output();
    // A compiler that does not find the file says its name alone.
    asked.is_ok_and(|out| Path::new(String::from_utf8_lossy(&out.stdout).trim()).is_absolute())
}

/// A line for each program; those of `installed` packages were not here before.
pub fn announce(installed: &[String]) {
    for program in PROGRAMS {
        let was_there = !installed.iter().any(|package| package == program.package);
        line(program.name, was_there, &version(program).unwrap_or_else(|| "unknown version".to_string()));
    }
}

/// Users other than root often lack the system folders on their PATH.
pub fn path(name: &str) -> Option<PathBuf> {
    find(name).or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|path| path.is_file()))
}

/// The first line that it prints, on whichever output; wrk's exit status is 1 even so.
fn version(program: &Program) -> Option<String> {
    let out = Command::new(path(program.name)?).arg(program.version).stdin(Stdio::null()).output().ok()?;
    let text = [out.stdout, out.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(|line| line.chars().take(72).collect())
}

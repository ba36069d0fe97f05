//! Installing Debian packages without the services that they bring.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::command::{find, is_root, run};

/// Packages of ours that bring a service, and its name.
const SERVICES: &[(&str, &str)] =
    &[("nginx-light", "nginx"), ("prometheus", "prometheus"), ("etcd-server", "etcd")];

/// Debian asks this program before it starts a service at an installation (invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Ours, known again by its text: "no service may be started".
const REFUSAL: &str =
    "#!/bin/sh\n# cargo xtask setup: removed again when the installation is over\nexit 101\n";

/// Installs packages, or says which command would. Services of packages that were not here before stay
/// off, now and after a restart; nothing that was here is touched.
pub fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if find("apt-get").is_none() {
        bail!("missing, by Debian's names of the packages: {list}; install them and run this again");
    }
    if !is_root() {
        bail!("missing packages; run: sudo apt-get update && sudo apt-get install -y {list}");
    }
    println!("setup: installing {list}");
    run(apt_get().args(["-qq", "update"]))?;
    let quiet = Quiet::hold(Path::new(POLICY));
    let installed = run(apt_get().args(["-qq", "install", "-y", "--no-install-recommends"]).args(packages));
    drop(quiet);
    let services = SERVICES.iter().filter(|(package, _)| packages.iter().any(|name| name == package));
    services.for_each(|(_, service)| turn_off(service));
    installed
}

/// Takes away what a killed run left behind.
pub fn remove_leftover() {
    if is_root() {
        remove_ours(Path::new(POLICY));
    }
}

/// Waits for another installation, up to five minutes.
fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

/// While it lives, packages cannot start their services. A policy of the user's own is left as it is:
/// what it lets start is stopped afterwards.
struct Quiet(PathBuf);

impl Quiet {
    fn hold(path: &Path) -> Self {
        let file = File::options().write(true).create_new(true).mode(0o755).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(REFUSAL.as_bytes()))
            && error.kind() != ErrorKind::AlreadyExists
        {
            println!("setup: {}: {error}; services are stopped after the installation", path.display());
        }
        Self(path.to_path_buf())
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        remove_ours(&self.0);
    }
}

fn remove_ours(path: &Path) {
    if fs::read_to_string(path).is_ok_and(|text| text == REFUSAL) {
        fs::remove_file(path).ok();
    }
}

/// A service that this installation brought must not run, nor start with the machine.
fn turn_off(service: &str) {
    let booted = Path::new("/run/systemd/system").exists();
    let mut command = match (find("systemctl"), booted) {
        (Some(systemctl), true) => with(systemctl, &["disable", "--now", service]),
        (Some(systemctl), false) => with(systemctl, &["disable", service]),
        (None, _) => with("update-rc.d".into(), &[service, "disable"]),
    };
    let off =
        command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    let how = if off { "is off" } else { "has no unit to turn off" };
    println!("setup: the service {service} that came with it {how}");
}

fn with(program: PathBuf, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_against_services_goes_away_and_a_users_own_stays() {
        let path = std::env::temp_dir().join(format!("culvert-policy-{}", std::process::id()));
        drop(Quiet::hold(&path));
        assert!(!path.exists());
        fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
        drop(Quiet::hold(&path));
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nexit 0\n");
        fs::remove_file(&path).unwrap();
    }
}

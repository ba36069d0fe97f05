//! Images of the tests' own cluster, from the machine's programs: the pause container, CoreDNS, and one
//! that stands for the public images of nginx, curl, fortio and busybox.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    archive::{self, Image},
    rootfs::Rootfs,
};
use crate::command::{find, output};

pub(super) const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const NGINX: &str = "worker_processes 1;
error_log /dev/stderr;
pid /run/nginx.pid;
events {}
http {
  default_type text/plain;
  access_log off;
  server {
    listen 80;
    listen [::]:80;
    root /usr/share/nginx/html;
    location = /slow { limit_rate 100k; }
    location = /whoami { return 200 \"$hostname $remote_addr\\n\"; }
  }
}
";

/// Writes the archives; `programs` is the folder of the cluster's Go programs.
pub fn assemble(programs: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    pause(&out.join("test-pause.tar"))?;
    coredns(programs, &out.join("test-coredns.tar"))?;
    tools(programs, &out.join("test-tools.tar"))
}

pub(super) fn machine(name: &str) -> Result<PathBuf> {
    let found = find(name).or_else(|| Some(Path::new("/usr/sbin").join(name)).filter(|path| path.is_file()));
    found.with_context(|| format!("{name} is not on this machine; run: cargo xtask setup"))
}

/// A container that only holds a pod's namespaces.
fn pause(path: &Path) -> Result<()> {
    let mut files = Rootfs::default();
    files.program(&machine("busybox")?, "/bin/busybox")?;
    let config = json!({"Entrypoint": ["/bin/busybox", "sleep", "2147483647"], "Env": [PATH]});
    archive::write(path, &files, &[Image { names: vec!["culvert.local/test-pause:1".to_string()], config }])
}

fn coredns(programs: &Path, path: &Path) -> Result<()> {
    let mut files = Rootfs::default();
    files.program(&programs.join("coredns"), "/coredns")?;
    let config = json!({"Entrypoint": ["/coredns"], "Env": [PATH]});
    archive::write(path, &files, &[Image { names: vec!["culvert.local/test-coredns:1".to_string()], config }])
}

fn tools(programs: &Path, path: &Path) -> Result<()> {
    let mut files = Rootfs::default();
    let busybox = machine("busybox")?;
    files.program(&busybox, "/bin/busybox")?;
    for (name, to) in [("nginx", "/usr/sbin/nginx"), ("curl", "/usr/bin/curl")] {
        files.program(&machine(name)?, to)?;
    }
    files.program(&programs.join("fortio"), "/usr/bin/fortio")?;
    for applet in output(Command::new(&busybox).arg("--list"))?.lines() {
        let link = format!("/bin/{applet}");
        if !files.has(&link) && !files.has(&format!("/usr/bin/{applet}")) {
            files.link(&link, "busybox");
        }
    }
    let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n";
    files.file("/etc/passwd", 0o644, users.into());
    files.file("/etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n".to_vec());
    files.file("/etc/nsswitch.conf", 0o644, b"hosts: files dns\n".to_vec());
    files.file("/etc/nginx/nginx.conf", 0o644, format!("user nobody nogroup;\n{NGINX}").into());
    files.file("/usr/share/nginx/html/index.html", 0o644, b"nginx\n".to_vec());
    for folder in ["/var/log/nginx", "/var/lib/nginx", "/run", "/root", "/proc", "/sys", "/dev"] {
        files.folder(folder, 0o755);
    }
    files.folder("/tmp", 0o1777);
    let image =
        |names: &[&str], config| Image { names: names.iter().map(|name| (*name).into()).collect(), config };
    let images = [
        image(
            &["culvert.local/test-tools:1", "docker.io/library/busybox:latest"],
            json!({"Cmd": ["/bin/sh"], "Env": [PATH]}),
        ),
        image(
            &["docker.io/library/nginx:latest"],
            json!({"Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"], "Env": [PATH]}),
        ),
        image(&["docker.io/curlimages/curl:latest"], json!({"Entrypoint": ["/usr/bin/curl"], "Env": [PATH]})),
        image(
            &["docker.io/fortio/fortio:latest"],
            json!({"Entrypoint": ["/usr/bin/fortio"], "Cmd": ["server"], "Env": [PATH]}),
        ),
    ];
    archive::write(path, &files, &images)
}
